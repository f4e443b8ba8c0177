"""An op on one input: by any of its backends, and in float64 by the reference. What an error may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mea_graph.ops import Pointers

HEADS, WIDTH, MU = 8, 5, 0.25  # of the model: d = 40, Table I
FLOAT64, FLOAT32, BFLOAT16, FLOAT16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
# A budget is a relative error of output or gradient. A few roundings of 2^-8 (bfloat16) or 2^-11 (float16) through a chain.
BUDGET = {FLOAT64: 1e-9, FLOAT32: 1e-4, BFLOAT16: 3e-2, FLOAT16: 4e-3}
MODEL_BUDGET = 1e-3  # of gradients through the whole model in float32, without TF32 in cuDNN
REPEATS = ("triton", "cuda", "batched", "joined")  # whose results repeat bit for bit; of cuDNN and of the formulas nobody promises that
REPEATS_ON_CPU = (*REPEATS, "native", "cpu")


class OpCase(NamedTuple):
    """An op on one input, values and gradients."""

    name: str
    run: Callable[[str], list[Tensor]]  # by the backend of that name, or "auto": the result, and the gradient of every input
    truth: Callable[[], list[Tensor]]  # the same in float64, by the reference
    dtype: torch.dtype
    reads: list[Tensor]  # what a pass reads, for who would change it: the gradient of the result joins after a first pass
    runs: str | None  # the backend that has to run on a GPU, if not the op's usual one


Build = Callable[[torch.dtype, str], OpCase]  # on a device


def op_case(
    name: str,
    op: Callable[..., Any],
    inputs: Mapping[str, Tensor],
    rest: Mapping[str, Any],
    dtype: torch.dtype,
    scale: float = 1.0,
    runs: str | None = None,
) -> OpCase:
    """Makes the case of an op.

    Args:
        name: What is told of it.
        op: The function; takes inputs, rest and `backend` by name.
        inputs: What is differentiated: drawn in float32, and rounded to `dtype` here.
        rest: The op's other arguments.
        dtype: Of the inputs.
        scale: That of the gradient of the result.
        runs: The backend that has to run on a GPU, if not the op's usual one.
    """
    rounded = {n: t.to(dtype).requires_grad_() for n, t in inputs.items()}
    wide = {n: t.detach().double().requires_grad_() for n, t in rounded.items()}
    read = list(rounded.values())
    grads: dict[torch.dtype, Tensor] = {}  # drawn once: a pass that sends them to the device waits for it

    def run(tensors: Mapping[str, Tensor], backend: str) -> list[Tensor]:
        out = op(**tensors, **rest, backend=backend)
        out = out[0] if isinstance(out, tuple) else out
        if out.dtype not in grads:
            generator = torch.Generator().manual_seed(1)
            grads[out.dtype] = (scale * torch.randn(out.shape, generator=generator)).to(dtype).to(out)
            if out.dtype == dtype:
                read.append(grads[dtype])
        return [out.detach(), *torch.autograd.grad(out, list(tensors.values()), grads[out.dtype])]

    return OpCase(name, lambda backend: run(rounded, backend), lambda: run(wide, "reference"), dtype, read, runs)


def error(actual: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Returns the largest relative error, in the 2-norm, of an output or gradient; NaN and inf give inf. A truth of zeros is met by zeros.

    Args:
        actual: Outputs and gradients.
        truth: The same in float64.

    >>> error([torch.tensor([1.0, 1.5])], [torch.tensor([1.0, 1.0])]) < 0.36
    True
    """
    worst = 0.0
    for a, t in zip(actual, truth, strict=True):
        norm = t.double().norm().item()
        difference = (a.double() - t.double()).norm().item()
        one = difference / norm if norm else difference
        worst = max(worst, one if one == one else float("inf"))
    return worst


def bound(dtype: torch.dtype, formula: float = 0.0) -> float:
    """Returns the largest error that is right: the budget, or in half precision the formula's own error, where that is beyond it.

    Small differences of sums make it so.

    Args:
        dtype: Of the inputs.
        formula: Error of the reference on the same inputs, which computes in float32 at least.

    >>> bound(torch.bfloat16, 0.05)
    0.05
    """
    return max(BUDGET[dtype], formula) if dtype in (BFLOAT16, FLOAT16) else BUDGET[dtype]


def exact() -> Any:
    """cuDNN rounds to TF32 by default, in the convolution of the formula too; what is checked must not."""
    return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)


def draws(device: str) -> Callable[..., Tensor]:
    """Draws the same tensors on every device."""
    generator = torch.Generator().manual_seed(2)
    return lambda *size: torch.randn(*size, generator=generator).to(device)


def mosi_lengths(batch: int, longest: int = 500, mean: int = 60) -> list[int]:
    """Lengths like those of MOSI's vision: many short clips, one as long as the padding."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.empty(batch - 1).log_normal_(0.0, 0.6, generator=generator)
    drawn = (drawn / drawn.sum() * (mean * batch - longest)).round().clamp(3, longest).long()
    return [longest, *drawn.tolist()]


def prefix_mask(lengths: Sequence[int], longest: int, device: str) -> Tensor:
    """(B, longest): which steps of a padded batch are real."""
    return torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]


def pointers_of(lengths: Sequence[int], device: str = "cpu") -> Pointers:
    """Makes pointers of samples one after the other, as in a PyG batch, whose longest length is known: no pass waits for it."""
    ptr = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(device)
    return Pointers.from_ptr(ptr, sum(lengths), max(lengths, default=0))


def laid_out(lengths: Sequence[int], layout: str, device: str) -> Pointers:
    """Rows without gaps, a padded batch as rows with gaps, or gaps of any size."""
    if layout == "packed":
        return pointers_of(lengths, device)
    if layout == "padded":
        return Pointers.from_mask(prefix_mask(lengths, max(lengths, default=0) + 2, device))
    length = torch.tensor(lengths)
    room = length + torch.tensor([3, 70, 0, 1, 20])[torch.arange(len(length)) % 5]
    return Pointers((room.cumsum(0) - room).to(device), length.to(device), int(room.sum()))


def shortly(lengths: Sequence[int]) -> str:
    """Lengths in the name of a case."""
    return str(list(lengths)) if len(lengths) < 8 else f"{len(lengths)} of up to {max(lengths)}"


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as it is written in a result: "float32"."""
    return str(dtype).removeprefix("torch.")
