"""The formulas of the grouped ops, one call a group."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.grouped.parts import layer_norm


def linear(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    starts: Sequence[int],
    sizes: Sequence[int],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    eps: float,
    steps_last: bool,
    onto: Tensor | None = None,
) -> Tensor:
    parts = []
    for g, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        rows = x.narrow(0, start, size)
        if scales:
            rows = layer_norm(rows, scales[g], shifts[g], eps)
        parts.append(F.linear(rows, weights[g], biases[g] if biases else None))
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out if onto is None else onto + out


def norm(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int], eps: float) -> Tensor:
    groups = zip(weights, biases, starts, sizes, strict=True)
    parts = [layer_norm(x.narrow(0, s, n), w, b, eps) for w, b, s, n in groups]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
