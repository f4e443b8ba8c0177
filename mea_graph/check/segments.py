"""Cases of the segment reductions, which choose between torch_scatter and torch by themselves: each is made to take either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mea_graph.check.cases import Build, OpCase, draws, op_case
from mea_graph.ops import has_torch_scatter, segment, segment_max, segment_mean, segment_softmax, segment_sum

NAME = "segment_reductions"
BACKENDS = ("torch_scatter", "torch")
FUNCTIONS = (segment_sum, segment_mean, segment_max, segment_softmax)
SIZES = (3, 0, 1, 65, 0, 130)


def refuse(backend: str, device: str) -> str | None:
    """Says why a library cannot be used here, or nothing."""
    if backend == "torch":
        return None
    if not has_torch_scatter():
        return "torch-scatter is not installed, or cannot be loaded"
    if device != "cpu" and torch.ops.torch_scatter.cuda_version() == -1:
        return "torch-scatter was built without CUDA"
    return None


@contextmanager
def _by(backend: str) -> Iterator[None]:
    """Only scatter operations ("reference") and these two libraries know how to reduce."""
    if backend == "auto":
        yield
        return
    chosen, segment._path = segment._path, lambda src: "traced" if backend == "reference" else backend
    try:
        yield
    finally:
        segment._path = chosen


def reduction(function: Callable[..., Tensor], width: int, by_ptr: bool) -> Build:
    """One of the functions, over rows in order or, by index, in any order."""

    def build(dtype: torch.dtype, device: str) -> OpCase:
        draw, sizes = draws(device), torch.tensor(SIZES)
        inputs = {"src": draw(int(sizes.sum()), width)}
        index = torch.repeat_interleave(sizes)[torch.randperm(int(sizes.sum()), generator=torch.Generator().manual_seed(3))]
        ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        given = {"ptr": ptr.to(device)} if by_ptr else {"index": index.to(device), "num_segments": len(SIZES)}

        def run(src: Tensor, backend: str) -> Tensor:
            with _by(backend):
                out = function(src, **given)
            return out

        return op_case(f"{function.__name__}, {width} wide, by {'ptr' if by_ptr else 'index'}", run, inputs, {}, dtype)

    return build


CASES: list[Build] = [reduction(function, width, by_ptr) for function in FUNCTIONS for width in (1, 40) for by_ptr in (True, False)]
