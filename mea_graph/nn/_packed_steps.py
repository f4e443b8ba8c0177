"""The real steps of a padded batch without the padding, so that what works step by step is not paid for on padding.

Packing reads lengths from the mask, so it happens on the CPU only, where that costs nothing, and never while a graph is traced: elsewhere
the layers work on the padded batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Steps(NamedTuple):
    """The real steps of all samples, one sample after the other."""

    x: Tensor  # (N, d)
    lengths: list[int]  # by sample
    sample: Tensor  # (N,), whose each step is


def can_pack(x: Tensor) -> bool:
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()
    return x.device.type == "cpu" and not traced


def pack(x: Tensor, mask: Tensor) -> Steps:
    """(B, T, d) and (B, T) to steps; `unpack` puts them back."""
    sample, step = mask.nonzero(as_tuple=True)
    rows = x.flatten(0, 1)
    if len(sample) < len(rows):
        rows = rows.index_select(0, sample * x.size(1) + step)
    return Steps(rows, mask.sum(1).tolist(), sample)


def unpack(x: Tensor, mask: Tensor) -> Tensor:
    """(N, d) to (B, T, d), zeros in the padding."""
    if x.size(0) < mask.numel():
        x = x.new_zeros(mask.numel(), x.size(1)).index_copy(0, mask.flatten().nonzero().squeeze(1), x)
    return x.view(*mask.shape, x.size(1))


def join(parts: Sequence[Steps]) -> Steps:
    """Several sequences of each sample as one: all steps of the first sample, then all of the second."""
    if len(parts) == 1:
        return parts[0]
    sample, order = torch.cat([p.sample for p in parts]).sort(stable=True)
    lengths = [sum(n) for n in zip(*(p.lengths for p in parts), strict=True)]
    return Steps(torch.cat([p.x for p in parts]).index_select(0, order), lengths, sample)


def linear_steps_last(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer's result with the steps last, as packed attention wants them: (N, d) to (d', N)."""
    return torch.addmm(layer.bias.unsqueeze(1), layer.weight, x.mT)
