"""Interval attention on NVIDIA GPUs: launches the Triton kernels and registers them as operators.

No map is stored, no row is copied, and no length is read by the host: the kernels find out which rows belong together. Triton itself is
imported at the first call. What the kernels of predictive attention need of the host as well stands here too.
"""

import contextlib
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mea_graph.ops.interval.padded import run_reference
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.launch import launch
from mea_graph.ops.library import register, through_reference
from mea_graph.ops.pointers import Pointers

INSTALLED = importlib.util.find_spec("triton") is not None
HALF = (torch.bfloat16, torch.float16)
WIDEST = 64  # channels that a head may have
MOST_HEADS = 2**16 - 1  # what the second axis of a launch holds
MOST_ROWS = 2**31 - 2**10  # row numbers are int32, the end of the last tile included


class Tiles(NamedTuple):
    """How a loop is cut."""

    rows: int  # of the target
    columns: int  # of the source
    warps: int
    stages: int


# By loop, precision and whether heads have at most 16 channels. Chosen so that nothing spills, with Triton 3.6 and 3.9, on Ampere and on
# Hopper: see tests/ops/triton/test_compiled.py.
TILES = {
    ("forward", "half", "narrow"): Tiles(64, 64, 4, 2),
    ("forward", "half", "wide"): Tiles(64, 64, 8, 2),
    ("forward", "float", "narrow"): Tiles(64, 64, 4, 2),
    ("forward", "float", "wide"): Tiles(64, 16, 4, 1),
    ("query", "half", "narrow"): Tiles(64, 64, 4, 2),
    ("query", "half", "wide"): Tiles(64, 32, 4, 2),
    ("query", "float", "narrow"): Tiles(64, 32, 4, 1),
    ("query", "float", "wide"): Tiles(64, 16, 4, 1),
    ("key", "half", "narrow"): Tiles(32, 64, 4, 1),
    ("key", "half", "wide"): Tiles(32, 32, 4, 1),
    ("key", "float", "narrow"): Tiles(16, 64, 4, 1),
    ("key", "float", "wide"): Tiles(16, 32, 4, 1),
}


def capability(x: Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (9, 0)  # interpreted, as the newest


def refuse_tensors(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns why no Triton kernel can run on tensors of this device or of these dtypes, or None if one can."""
    if not INSTALLED:
        return "triton is not installed"
    first = next(iter(tensors.values()))
    if first.device.type == "cuda":
        if torch.version.hip is not None:
            return "the kernels are made for NVIDIA GPUs"
        major, minor = capability(first)
        if major < 8:
            return f"the GPU's compute capability is {major}.{minor}, below 8.0"
    elif not (first.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"the tensors are on {first.device.type}, not on cuda"
    for name, tensor in tensors.items():
        if tensor.device != first.device:  # a kernel is given addresses, which mean nothing on another device
            return f"{name} is on {tensor.device}, and the first of the tensors on {first.device}"
        if tensor.dtype not in (torch.float32, *HALF):
            return f"{name} is {str(tensor.dtype).removeprefix('torch.')}; expected float32, bfloat16 or float16"
    return None


def refuse_sizes(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    """Returns why no Triton kernel can run on heads of these sizes, or None if one can."""
    width = max(query.size(2), value.size(2))
    if width > WIDEST:
        return f"a head is {width} wide, and the kernels hold at most {WIDEST}"
    if min(query.size(1), query.size(2), value.size(2)) == 0:
        return "there are no heads, or heads without channels"
    if query.size(1) > MOST_HEADS:
        return f"there are {query.size(1)} heads, and a launch counts at most {MOST_HEADS}"
    rows = max(query.size(0), key.size(0))
    if rows > MOST_ROWS:
        return f"there are {rows} rows, and the kernels count at most {MOST_ROWS}"
    return None


def refuse(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges | Tensor) -> str | None:
    """Why these kernels cannot run on these tensors, or None."""
    if not isinstance(edges, IntervalEdges):
        return "the edges are a list"
    return refuse_tensors({"query": query, "key": key, "value": value}) or refuse_sizes(query, key, value)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())  # 16 is the least that a tensor core's product takes


def dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def rows_like(x: Tensor, packed: bool) -> Tensor:
    """For results of x's shape. The kernels write every row that is a step; gaps are to hold zeros."""
    return x.new_empty(x.shape) if packed else x.new_zeros(x.shape)


class _Call:
    """What forward and backward share."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: Tensor,
        length: Tensor,
        source_start: Tensor,
        source_length: Tensor,
        begin: Tensor | None,
        end: Tensor | None,
    ) -> None:
        self.tensors = [dense_rows(x) for x in (query, key, value)]
        edges = (start, length, source_start, source_length, start if begin is None else begin, start if end is None else end)
        self.edges = [x.contiguous() for x in edges]
        self.num_rows, self.heads, width = query.shape
        self.num_source_rows, self.samples, self.sources = key.size(0), start.size(0), source_start.size(1)
        self.sizes = (width, value.size(2), math.log2(math.e) / math.sqrt(width))
        half = query.dtype == key.dtype == value.dtype and query.dtype in HALF
        widths = {"WIDTH": power_of_2(width), "VALUE_WIDTH": power_of_2(value.size(2))}
        self.kind = ("half" if half else "float", "narrow" if max(widths.values()) <= 16 else "wide")
        self.constants = {"HAS_RUNS": begin is not None, "EXACT": not half, **widths}

    def strided(self, *more: Tensor) -> list[Any]:
        """Each tensor, then its strides over rows and heads."""
        return [a for x in (*self.tensors, *more) for a in (x, *x.stride()[:2])]

    def loop(self, name: str) -> tuple[Tiles, dict[str, Any]]:
        """How a loop is cut, and its compile-time arguments."""
        tiles = TILES[(name, *self.kind)]
        sizes = {"ROWS": tiles.rows, "COLUMNS": tiles.columns}
        return tiles, self.constants | sizes | {"num_warps": tiles.warps, "num_stages": tiles.stages}

    def row_blocks(self, tiles: Tiles) -> int:
        """At least as many as blocks of target rows are needed, where each holds rows of one sample: see `find_block`."""
        return self.num_rows // tiles.rows + self.samples


def _hears_nothing(query: Tensor, key: Tensor, source_start: Tensor) -> bool:
    return query.size(0) == 0 or key.size(0) == 0 or source_start.numel() == 0


def _forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *edges, packed = rest
    nothing = _hears_nothing(query, key, edges[2])
    out, logsumexp = _results(query, value, torch.empty if packed and not nothing else torch.zeros)
    if nothing:
        return out, logsumexp
    from mea_graph.ops.interval.triton_kernels import interval_attention_fwd_kernel

    with on_device_of(query):
        call = _Call(query, key, value, *edges)
        tiles, constants = call.loop("forward")
        launch(
            interval_attention_fwd_kernel, (call.row_blocks(tiles), call.heads),
            *call.strided(), *call.edges, out, logsumexp, call.heads, call.samples, call.sources, call.num_rows, *call.sizes, **constants,
        )  # fmt: skip
    return out, logsumexp


def _backward(
    grad: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *edges, packed = rest
    if _hears_nothing(query, key, edges[2]):
        return query.new_zeros(query.shape), key.new_zeros(key.shape), value.new_zeros(value.shape)
    from mea_graph.ops.interval import triton_kernels

    d_query, d_key, d_value = rows_like(query, packed), key.new_empty(key.shape), value.new_empty(value.shape)
    with on_device_of(query):
        call = _Call(query, key, value, *edges)
        shared = (*call.strided(dense_rows(grad)), *call.edges)
        delta = torch.empty_like(logsumexp)
        tiles, constants = call.loop("query")
        launch(
            triton_kernels.interval_attention_bwd_query_kernel, (call.row_blocks(tiles), call.heads),
            *shared, logsumexp, out, delta, d_query, call.heads, call.samples, call.sources, call.num_rows, *call.sizes, **constants,
        )  # fmt: skip
        tiles, constants = call.loop("key")
        launch(
            triton_kernels.interval_attention_bwd_key_kernel, (cdiv(call.num_source_rows, tiles.columns), call.heads),
            *shared, logsumexp, delta, d_key, d_value,
            call.heads, call.samples * call.sources, call.sources, call.num_rows, call.num_source_rows, *call.sizes, **constants,
        )  # fmt: skip
    return d_query, d_key, d_value


def _results(query: Tensor, value: Tensor, new: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Memory for the result, and for log2 of the sum of each softmax."""
    rows, heads, _width = query.shape
    out = new(rows, heads, value.size(2), dtype=value.dtype, device=value.device)
    return out, new(heads, rows, dtype=torch.float32, device=query.device)


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _results(query, value, torch.empty)


def _fake_backward(grad: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.packed = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    if torch.is_grad_enabled():
        return tuple(through_reference(_again, (*ctx.saved_tensors[2:], ctx.packed), grad))
    return *_BACKWARD(grad, *ctx.saved_tensors, ctx.packed), *(None,) * 7


def _again(query: Tensor, key: Tensor, value: Tensor, start: Tensor, length: Tensor, *edges: Any) -> Tensor:
    """The same by the reference, for a second derivative."""
    source_start, source_length, begin, end, packed = edges
    target = Pointers._unchecked(start, length, query.size(0), packed=packed)
    return run_reference(query, key, value, IntervalEdges.of_runs(source_start, source_length, key.size(0), target, begin, end))


_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor start, Tensor length, Tensor source_start, Tensor source_length,"
    " Tensor? begin, Tensor? end, bool packed"
)
_BACKWARD = register(
    "interval_attention_triton_backward",
    f"(Tensor grad, Tensor out, Tensor logsumexp, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_FORWARD = register("interval_attention_triton", f"({_INPUTS}) -> (Tensor, Tensor)", _forward, _fake_forward, _setup_context, _autograd)


def run(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges) -> Tensor:
    """See `mea_graph.ops.interval_attention`."""
    target = edges.target
    begin, end = (None, None) if edges.is_complete else (edges.begin, edges.end)
    where = (target.start, target.length, edges.source_start, edges.source_length, begin, end, target.packed)
    return _FORWARD(query, key, value, *where)[0]
