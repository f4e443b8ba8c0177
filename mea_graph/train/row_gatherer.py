"""One batch out of those of all processes, so that terms over a batch do not depend on how many processes share it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor


class RowGatherer:
    """Puts the rows of all processes one after the other; in a single process it returns what it gets.

    Every process must call it with as many tensors, of the same shapes but for the number of rows. The gradient is that of a
    loss which every process computes alike and whose gradients are then averaged over the processes, as DDP does: exactly the
    gradient that one process would have on the joint batch.

    Args:
        counts: Number of rows of each process; None: there is one process.

    >>> RowGatherer()(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, counts: Sequence[int] | None = None) -> None:
        self.counts = counts

    @classmethod
    def for_rows(cls, rows: int, device: torch.device) -> RowGatherer:
        """Asks every process for its number of rows; they may differ."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed or torch.distributed.get_world_size() == 1:
            return cls()
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(sizes, torch.tensor([rows], device=device))
        return cls([int(size) for size in sizes])

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.counts is None else _Gather.apply(x, self.counts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.first = sum(counts[: torch.distributed.get_rank()])
        ctx.rows, ctx.processes = x.size(0), len(counts)
        flat = x.detach().reshape(x.size(0), math.prod(x.shape[1:])).contiguous().view(torch.uint8)  # bytes: every dtype alike
        padded = flat.new_zeros(max(counts), flat.size(1))
        padded[: x.size(0)] = flat
        found = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(found, padded)
        joined = torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])
        return joined.view(x.dtype).reshape(len(joined), *x.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.first : ctx.first + ctx.rows] * ctx.processes, None
