"""Both directions of a recurrent layer as they are defined; over the formulas of `steps` they are the truth in every test."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.pointers import Pointers
from mea_graph.ops.recurrent.layers import both_ways

Direction = Callable[[Tensor], Tensor]


def of_rows(ahead: Direction, back: Direction, x: Tensor, pointers: Pointers) -> Tensor:
    """`both_ways` over rows (N, C): the states (N, 2 H)."""
    batch = pointers.pad(x)
    if pointers.max_length == 0:  # torch's layers refuse no steps, and every weight must get a gradient
        return pointers.unpad(both_ways(ahead, back, F.pad(batch, (0, 0, 0, 1)), pointers.length)[:, :0])
    return pointers.unpad(both_ways(ahead, back, batch, pointers.length))


def by_direction(
    run: Callable[..., Tensor], x: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], pointers: Sequence[Pointers]
) -> list[Tensor]:
    """Computes set by set, each direction by `run`, which takes a padded batch and four weights."""
    states = []
    for rows, own, where in zip(x, weights, pointers, strict=True):
        ahead, back = (lambda batch, four=four: run(batch, *four) for four in (own[:4], own[4:]))
        states.append(of_rows(ahead, back, rows, where))
    return states
