"""What makes cuts of a PyG data set views: an index over stored samples, which everything follows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch_geometric.data import Dataset, HeteroData

from mea_graph.data.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Self

Index = slice | torch.Tensor | np.ndarray | Sequence[int] | Sequence[bool]


class ViewedDataset(Dataset):
    """A PyG data set whose cuts share everything with it but their index; they have its class and do not call its constructor."""

    def __copy__(self) -> Self:
        """A view of the same samples. What was worked out of the index is left behind, so that the index may be set to another."""
        view = type(self).__new__(type(self))
        known = {name for name in vars(self) if isinstance(getattr(type(self), name, None), cached_property)}
        view.__dict__.update({name: value for name, value in vars(self).items() if name not in known})
        return view

    def _view(self, **changes: Any) -> Self:
        view = copy.copy(self)
        view.__dict__.update(changes)
        return view

    @property
    def _rows(self) -> np.ndarray:
        """Which of the stored samples these are, in their order."""
        return np.asarray(self.indices())

    @overload
    def __getitem__(self, idx: int | np.integer) -> HeteroData: ...

    @overload
    def __getitem__(self, idx: Index) -> Self: ...

    def __getitem__(self, idx: Any) -> Any:
        return super().__getitem__(idx.item() if isinstance(idx, np.ndarray) and not idx.ndim else idx)

    def index_select(self, idx: Index) -> Self:
        """Returns the samples at `idx` as a view: a slice (of numbers, or of shares such as `[:0.8]`), integers, or a mask.

        Raises:
            IndexError: If an index is out of range, or no integer.
        """
        try:
            return self._view(_indices=self._rows[positions(idx, len(self))])
        except DataError as error:
            raise IndexError(str(error)) from error


def positions(indices: Index, samples: int) -> np.ndarray:
    """Integers in `[-samples, samples)` for any index that PyG takes, or a `DataError`."""
    if isinstance(indices, slice):
        first, last = (round(end * samples) if isinstance(end, float) else end for end in (indices.start, indices.stop))
        return np.arange(samples)[first : last : indices.step]
    picked = np.asarray(indices.cpu() if torch.is_tensor(indices) else indices)
    picked = picked.reshape(-1) if picked.ndim > 1 else picked  # as `mask.nonzero()` is, which PyG takes
    if picked.dtype == bool and picked.shape == (samples,):
        return np.flatnonzero(picked)
    if picked.ndim != 1 or (picked.size and (picked.dtype.kind not in "iu" or picked.dtype == np.uint8)):  # uint8 may be a mask
        raise DataError(
            f"indices: expected integers of shape (n,), a mask of shape ({samples},) or a slice, got {picked.dtype} of shape {picked.shape}"
        )
    picked = picked.astype(np.int64)
    if picked.size and (picked.min() < -samples or picked.max() >= samples):
        raise DataError(f"indices: expected integers in [{-samples}, {samples}), got {picked.min()} to {picked.max()}")
    return picked
