"""The real steps of a padded batch without the padding, so that what works step by step is not paid for on padding.

Packing reads lengths from the mask, so it happens on the CPU only, where that costs nothing, and never while a graph is traced: elsewhere
the layers work on the padded batch. An encoder packs once: its layers, given `Steps`, give `Steps`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mea_graph.ops.eager import is_traced


class Steps(NamedTuple):
    """The real steps of all samples, one sample after the other."""

    x: Tensor  # (N, d)
    lengths: list[int]  # by sample
    sample: Tensor  # (N,), whose each step is
    mask: Tensor | None  # (B, T), of the padded batch; None of joined sequences

    def padded(self) -> Tensor:
        """(B, T, d), zeros in the padding."""
        if self.mask is None:
            raise ValueError("joined sequences have no padded form")
        return unpack(self.x, self.mask)


def are_steps(x: Mapping[str, Tensor] | Mapping[str, Steps]) -> TypeGuard[Mapping[str, Steps]]:
    """Whether an encoder hands on what it packed."""
    return bool(x) and all(isinstance(z, Steps) for z in x.values())


def can_pack(x: Tensor) -> bool:
    return x.device.type == "cpu" and not is_traced()


class _Take(torch.autograd.Function):
    """Rows by an index that names each at most once: going back they are put, where torch's own indexing would add, row by row."""

    @staticmethod
    def forward(x: Tensor, rows: Tensor) -> Tensor:
        return x.index_select(0, rows)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.size = len(inputs[0])  # type: ignore[attr-defined]
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return _put(grads[0], rows, ctx.size), None  # type: ignore[attr-defined]


def _put(x: Tensor, rows: Tensor, size: int) -> Tensor:
    return x.new_zeros(size, *x.shape[1:]).index_copy(0, rows, x)


def take(x: Tensor, mask: Tensor) -> Tensor:
    """The real steps of (B, T, d), one sample after the other: (N, d)."""
    rows = mask.flatten().nonzero().squeeze(1)
    x = x.flatten(0, 1)
    return x if len(rows) == len(x) else _Take.apply(x, rows)


def pack(x: Tensor, mask: Tensor) -> Steps:
    """(B, T, d) and (B, T) to steps; `unpack` puts them back."""
    lengths = mask.sum(1)
    return Steps(take(x, mask), lengths.tolist(), torch.arange(len(mask)).repeat_interleave(lengths), mask)


def unpack(x: Tensor, mask: Tensor) -> Tensor:
    """(N, d) to (B, T, d), zeros in the padding: the inverse of `take`."""
    if x.size(0) < mask.numel():
        x = _put(x, mask.flatten().nonzero().squeeze(1), mask.numel())
    return x.view(*mask.shape, x.size(1))


def join(parts: Sequence[Steps]) -> Steps:
    """Several sequences of each sample as one: all steps of the first sample, then all of the second."""
    if len(parts) == 1:
        return parts[0]
    x, lengths = torch.cat([p.x for p in parts]), [sum(n) for n in zip(*(p.lengths for p in parts), strict=True)]
    sample, order = torch.cat([p.sample for p in parts]).sort(stable=True)
    return Steps(x if len(lengths) == 1 else _Take.apply(x, order), lengths, sample, None)


def linear_steps_last(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer's result with the steps last, as packed attention wants them: (N, d) to (d', N)."""
    return torch.addmm(layer.bias.unsqueeze(1), layer.weight, x.mT)
