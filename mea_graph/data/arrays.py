"""Numbers and names as people hold them: tensors, lists, masked arrays, columns of pandas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mea_graph.data.errors import DataError, brief
from mea_graph.data.texts import as_text


def as_numbers(what: str, value: Any) -> np.ndarray:
    """Anything that numpy makes an array of, and every tensor; what it would take for something else is refused."""
    try:
        array = _of_tensor(value) if torch.is_tensor(value) else np.asanyarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        if "inhomogeneous" in str(error):
            raise DataError(f"{what}: expected an array, got rows of different lengths") from error
        raise DataError(f"{what}: expected an array, got {brief(value)} ({error})"[:300]) from error
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):  # numpy would take what stands under the mask
        hidden = int(np.ma.getmaskarray(array).sum())
        raise DataError(f"{what}: expected numbers without a mask, got {hidden} that are masked; array.filled(value) gives them one")
    return np.asarray(array)


def _of_tensor(value: torch.Tensor) -> np.ndarray:
    value = value.detach().cpu()
    value = value if value.layout == torch.strided else value.to_dense()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def as_names(what: str, values: Any) -> list[str]:
    """Names in their order, of a list, an array, a tensor or a column, as text."""
    if torch.is_tensor(values) or isinstance(values, np.ndarray):
        values = as_numbers(what, values)
        if values.ndim != 1:
            raise DataError(f"{what}: expected one name each, shape (N,), got {values.shape}")
    if isinstance(values, str | bytes | Mapping | set | frozenset) or not hasattr(values, "__len__"):
        raise DataError(f"{what}: expected a list, whose order counts, got {brief(values)}")
    return [_as_name(what, value) for value in values]


def _as_name(what: str, value: Any) -> str:
    if torch.is_tensor(value) and value.numel() == 1:
        value = value.item()
    if value is None or (isinstance(value, float) and value != value):
        raise DataError(f"{what}: expected a name for each, got {value}")
    return as_text(value) if isinstance(value, bytes) else str(value)
