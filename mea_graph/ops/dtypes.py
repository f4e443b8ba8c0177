"""The dtype in which an op computes, from those of its inputs."""

import torch
from torch import Tensor


def wide_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 where an input is float64, else float32: what sums are taken in."""
    for t in tensors:  # a loop, not `any`, whose generator takes as long as what it asks
        if t is not None and t.dtype == torch.float64:
            return torch.float64
    return torch.float32


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """What torch promotes the dtypes of all inputs to."""
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype
