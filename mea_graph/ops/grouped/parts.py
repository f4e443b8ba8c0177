"""Shared by the grouped ops: their checks, where they may run, and the rows of each group."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.eager import PLAIN_TYPES, is_traced, is_transformed


def check(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int]) -> None:
    if x.dim() != 2:
        raise ValueError(f"x: expected (N, C), got {tuple(x.shape)}")
    groups = len(weights)
    if not groups or len(biases) not in (0, groups) or len(starts) != groups or len(sizes) != groups:
        counts = (groups, len(biases) or groups, len(starts), len(sizes))
        raise ValueError(f"weights, biases, starts, sizes: expected one of each for every group, got {counts}")
    rows = x.size(0)
    for s, n in zip(starts, sizes, strict=True):
        if s < 0 or n < 0 or s + n > rows:
            raise ValueError(f"starts, sizes: expected rows of the {rows} of x, got {list(starts)}, {list(sizes)}")


def check_shapes(name: str, tensors: Sequence[Tensor], *shape: Any) -> None:
    for g, t in enumerate(tensors):
        if t.shape != shape:
            raise ValueError(f"{name}[{g}]: expected ({', '.join(map(str, shape))}{',' * (len(shape) == 1)}), got {tuple(t.shape)}")


def refuse(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], scales: Sequence[Tensor] = (), shifts: Sequence[Tensor] = (), **_: Any
) -> str | None:
    if is_traced():
        return "a compiler joins the formula itself"
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        return "autocast chooses the precision of each map"
    dtype = x.dtype
    for t in (x, *weights, *biases, *scales, *shifts):
        if t.dtype != dtype or type(t) not in PLAIN_TYPES:
            return "the tensors are of different types"
    return None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if is_transformed():  # under torch.func, torch's own second derivative is wrong where x and the weights vary together
        return torch.addcmul(bias, F.layer_norm(x, weight.shape, eps=eps), weight)
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def slices(starts: Sequence[int], sizes: Sequence[int]) -> list[tuple[slice, slice]]:
    """The rows of x, and those of the result, by group."""
    found, row = [], 0
    for s, n in zip(starts, sizes, strict=True):
        found.append((slice(s, s + n), slice(row, row + n)))
        row += n
    return found


def split(tensors: Sequence[Tensor], counts: Sequence[int]) -> list[list[Tensor]]:
    """Lists of so many tensors each, one after the other: weights, biases, scales and shifts, as an autograd function has them."""
    found, first = [], 0
    for count in counts:
        found.append(list(tensors[first : first + count]))
        first += count
    return found
