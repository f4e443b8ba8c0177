"""Runs a pass on a pretended device: shows where the host would wait for it, and how many kernels it would launch.

    python -m benchmarks.pretend    # a training step of MEA: the launches by operator, and every wait with its place

Tensors are on torch's "meta" device, which has shapes and no numbers. To the library it is not a CPU, so the branches of a GPU run, and the
operator of a kernel counts as its launch. A read of a number is noted, and refused unless an answer is given.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import mea_graph
from benchmarks.samples import CHANNELS, SHAPES, Kind, Shape, draw
from mea_graph.nn import MEA, MEALoss
from mea_graph.ops import Pointers, interval_edges, pointers
from mea_graph.ops.backends import Op
from mea_graph.ops.grouped import layer_norm, linear
from mea_graph.ops.interval import triton

META = torch.device("meta")
_PACKAGE = f"{Path(mea_graph.__file__).parent}{os.sep}"
# What our operators launch, where that is not one kernel.
_LAUNCHES = {
    "predictive_attention_triton": 3,  # in float32 on heads of up to 5 channels; otherwise one less, and in the backward pass too
    "predictive_attention_triton_backward": 5 + 2,  # and the sums over parts
    "interval_attention_triton_backward": 2,
    "grouped_linear_triton_backward": 2,
    "grouped_layer_norm_triton_backward": 1 + 1,  # and the sum over parts
    "bilstm_triton": 2,  # and the transposed weights
    "bilstm_triton_backward": 1 + 3,  # and a product for the weights, after two copies
}
_INSIDE: dict[str, Callable[..., Any]] = {  # operators that are made of torch's: counted as those
    "grouped_linear": linear._linear,
    "grouped_linear_backward": linear._linear_backward,
    "grouped_layer_norm": layer_norm._norm,
    "grouped_layer_norm_backward": layer_norm._norm_backward,
}
# Their results' sizes are numbers on the device.
_COUNTING = ("nonzero", "masked_select", "repeat_interleave", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal")
_NO_KERNEL = ("empty", "new_empty", "_unsafe_view", "lift_fresh", "detach", "alias", "_has_compatible", "is_same_size", "result_type")


class HostRead(RuntimeError):
    """The host would wait for the device."""


class Pretended(TorchDispatchMode):
    """Counts launches, by operator in `launches` and by function in `places`, and notes in `reads` the places that read a number.

    `answer` is the number that they get.

    Raises:
        HostRead: A number is asked for and there is no answer, or more than a number: `nonzero`, indexing by bools, `.cpu()`.
    """

    def __init__(self, answer: int | None = None) -> None:
        super().__init__()
        self.answer, self.reads = answer, Counter[str]()
        self.launches, self.places = Counter[str](), Counter[str]()

    def __enter__(self) -> Pretended:
        self._sent = _Sent(self)
        self._sent.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._sent.__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        tensors = [a for a in _flat((*args, *kwargs.values())) if isinstance(a, Tensor)]
        if not any(t.is_meta for t in tensors) and kwargs.get("device") != META:
            return func(*args, **kwargs)  # the host's own
        if name == "_local_scalar_dense":
            return self._read(name)
        by_bools = name.startswith(("index", "_index_put")) and any(
            t.dtype in (torch.bool, torch.uint8) for t in _flat(args[1:2]) if isinstance(t, Tensor)
        )
        sized = name == "repeat_interleave" and kwargs.get("output_size") is not None  # the host knows how many there will be
        if (name in _COUNTING and not sized) or by_bools:
            raise self._refused(name)
        if name in _INSIDE:
            with self:
                return _INSIDE[name](*args)
        try:
            out = func(*args, **kwargs)
        except NotImplementedError as refused:
            raise self._refused(name) from refused
        results = [t for t in _flat((out,)) if isinstance(t, Tensor)]
        if any(t.device.type == "cpu" and t.dim() for t in [*tensors, *results]):  # a copy from the one to the other waits
            raise self._refused(name)
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not (is_view or name.startswith(_NO_KERNEL)):
            self.launches[name] += _LAUNCHES.get(name, 1)
            self.places[_place()] += _LAUNCHES.get(name, 1)
        return out

    def _read(self, name: str) -> int:
        if self.answer is None:
            raise self._refused(name)
        self.reads[f"{name} in {_place()}"] += 1
        return self.answer

    def _refused(self, name: str) -> HostRead:
        self.reads[f"{name} in {_place()}"] += 1
        return HostRead(f"{name} in {_place()} makes the host wait for the device")


class _Sent(TorchFunctionMode):
    """Sees numbers of Python sent to the device, which waits for the copy: torch makes such a tensor where no other mode looks."""

    def __init__(self, seen: Pretended) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        made = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if made and torch.device(kwargs.get("device") or "cpu") == META:
            raise self.seen._refused("tensor")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(i, list) for i in index):
                raise self.seen._refused("index by a list")
        return func(*args, **kwargs)


def _place() -> str:
    """The innermost function of the library on the stack."""
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename[len(_PACKAGE) :]}, {frame.f_code.co_name}" if frame else "autograd"


def _flat(values: Any) -> Iterator[Any]:
    for v in values:
        if isinstance(v, list | tuple):
            yield from _flat(v)
        else:
            yield v


@contextmanager
def kernels_accept_meta() -> Iterator[None]:
    """The kernels take the pretended device for theirs."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(triton, "refuse_tensors", lambda tensors: None))
        for module in (pointers, interval_edges):  # they ask the device for a number, which these tensors do not refuse
            stack.enter_context(patch.object(module, "number", lambda value, name: int(value)))
        first, cuda = Op._first, torch.device("cuda")
        stack.enter_context(patch.object(Op, "_first", lambda op, device, arguments: first(op, cuda, arguments)))
        yield


def training_step(layout: str = "rows", answer: int | None = None, shape: Shape = SHAPES["MOSI"], kind: Kind = "true lengths") -> Pretended:
    """MEA at its defaults: forward, loss, backward, on a batch of 32 that is on the device; rows with ptr, or padded with masks."""
    samples = draw(shape, 32, kind)
    network, objective = MEA.published(CHANNELS, 1).to(META), MEALoss("regression").to(META)
    x = {m: (samples.x_dict if layout == "rows" else samples.padded)[m].to(META) for m in CHANNELS}
    where: dict[str, Any] = {m: mask.to(META) for m, mask in samples.mask.items()}
    if layout == "rows":
        longest = {m: max(n) for m, n in samples.lengths.items()}  # as a PyG batch says them
        where = {m: Pointers.from_ptr(ptr.to(META), len(x[m]), longest[m]) for m, ptr in samples.ptr_dict.items()}
    y = samples.y.to(META)
    with kernels_accept_meta(), Pretended(answer) as seen:
        objective(network(x, where), y).total.backward()
    return seen


def inference(steps: dict[str, int], size: int = 32) -> Pretended:
    """The forward pass of a padded batch of `size` samples and so many steps, as a CUDA graph would capture it."""
    network = MEA.published(CHANNELS, 1).to(META).eval()
    x = {m: torch.zeros(size, n, CHANNELS[m], device=META) for m, n in steps.items()}
    mask = {m: torch.ones(size, n, dtype=torch.bool, device=META) for m, n in steps.items()}
    with torch.no_grad(), kernels_accept_meta(), Pretended() as seen:
        network(x, mask)
    return seen


if __name__ == "__main__":
    for layout in ("rows", "padded"):
        seen = training_step(layout)
        print(f"{layout}: {seen.launches.total()} launches: " + ", ".join(f"{n} {c}" for n, c in seen.launches.most_common(25)))
        print(*(f"  {count:>5} in {place}" for place, count in seen.places.most_common(15)), sep="\n")
        print(*(f"  waits {count} x: {place}" for place, count in seen.reads.items()), sep="\n")
