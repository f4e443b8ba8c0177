"""Edge attention by the kernels of `kernel.cu`, compiled at first use for the GPU at hand and the width of the values."""

import ctypes
import functools
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from mea_graph.ops.edge import checks, driver, nvrtc
from mea_graph.ops.edge.driver import Argument
from mea_graph.ops.edge.edges import InEdges, sort_by_source
from mea_graph.ops.edge.operator import define, refuse_transforms

WARP, WARPS = 32, 8  # threads in a warp and warps in a block, as in kernel.cu
_VALUES = (torch.float32, torch.bfloat16)
_SCORES = (torch.float32, torch.bfloat16, torch.float16)
_LOAD = 16  # bytes, the most that a thread reads at once


class Variant(NamedTuple):
    """What kernel.cu is compiled for."""

    bf16: bool
    vector: int  # channels that a lane reads at once
    lanes: int  # lanes that share a row of channels

    @property
    def options(self) -> tuple[str, ...]:
        return f"-DVALUE_BF16={int(self.bf16)}", f"-DVECTOR={self.vector}", f"-DLANES={self.lanes}"


def variant_for(dtype: torch.dtype, channels: int) -> Variant:
    """The widest reads that divide a row, and as few lanes as cover it."""
    vector = _LOAD // dtype.itemsize
    while channels % vector:
        vector //= 2
    lanes = 1
    while lanes < WARP and lanes * vector < channels:
        lanes *= 2
    return Variant(dtype == torch.bfloat16, vector, lanes)


def source() -> str:
    return (resources.files("mea_graph.ops.edge") / "kernel.cu").read_text()


class Kernels(Protocol):
    def launch(self, name: str, grid: tuple[int, int], arguments: Sequence[Argument]) -> None: ...


@functools.cache
def kernels(variant: Variant, device: torch.device) -> Kernels:
    """The compiled kernels, on a device."""
    major, minor = torch.cuda.get_device_capability(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    cubin, path = nvrtc.cached_cubin(source(), 10 * major + minor, variant.options)
    try:
        return driver.Module(cubin, index, WARP * WARPS)
    except RuntimeError:  # a damaged file
        cubin = nvrtc.write_cubin(path, nvrtc.compile_source(source(), 10 * major + minor, variant.options)[0])
        return driver.Module(cubin, index, WARP * WARPS)


def refuse(x: Tensor, score_dst: Tensor, score_src: Tensor, edge_index: Tensor | InEdges) -> str | None:
    if not x.is_cuda:
        return f"the tensors are on {x.device.type}, not on CUDA"
    if x.dtype not in _VALUES:
        return f"the kernels take values in {_names(_VALUES)}, got {x.dtype}"
    for score in (score_dst, score_src):
        if score.dtype not in _SCORES:
            return f"the kernels take scores in {_names(_SCORES)}, got {score.dtype}"
    edges = edge_index if isinstance(edge_index, Tensor) else edge_index.source
    for name, tensor in (("score_dst", score_dst), ("score_src", score_src), ("edge_index", edges)):
        if tensor.device != x.device:  # a kernel is given addresses, which mean nothing on another device
            return f"{name} is on {tensor.device}, and x on {x.device}"
    return refuse_transforms() or _what_is_missing(x.device)


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype) for dtype in dtypes)


@torch.compiler.assume_constant_result
@functools.cache
def _what_is_missing(device: torch.device) -> str | None:
    if nvrtc.load() is None:
        return "NVRTC is not installed; it comes with CUDA builds of torch, or as the package nvidia-cuda-nvrtc"
    if driver.load() is None:
        return "libcuda.so.1, the CUDA driver, cannot be loaded"
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor not in nvrtc.architectures():
        return f"NVRTC {nvrtc.version()} cannot compile for compute capability {major}.{minor}"
    return None


def _forward(
    x: Tensor,
    score_dst: Tensor,
    score_src: Tensor,
    source: Tensor,
    target: Tensor,
    order: Tensor,
    start: Tensor,
    by_source: Tensor | None,
    source_start: Tensor | None,
) -> tuple[Tensor, Tensor]:
    (num_sources, heads, channels), num_targets = x.shape, score_dst.size(0)
    source, target, order, start, by_source, source_start = _checked(
        (source, target, order, start, by_source, source_start), x, num_targets
    )
    y = x.new_empty(num_targets, heads, channels)
    weights = x.new_empty(source.size(0), heads, dtype=torch.float32)
    _launch(
        "edge_attention_fwd_kernel",
        x,
        num_targets * heads,
        [_aligned(x), _scores(score_dst), _scores(score_src), source, order, start, y, weights],
        (num_sources, num_targets, source.size(0)),
    )
    return y, weights


def _backward(
    grad_y: Tensor | None,
    grad_weights: Tensor | None,
    x: Tensor,
    score_dst: Tensor,
    score_src: Tensor,
    weights: Tensor,
    source: Tensor,
    target: Tensor,
    order: Tensor,
    start: Tensor,
    by_source: Tensor | None,
    source_start: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    (num_sources, heads, channels), num_targets = x.shape, score_dst.size(0)
    source, target, order, start, by_source, source_start = _checked(
        (source, target, order, start, by_source, source_start), x, num_targets
    )
    if by_source is None or source_start is None:
        by_source, source_start = sort_by_source(source, num_sources)
    grad_y = x.new_zeros(num_targets, heads, channels) if grad_y is None else _aligned(grad_y)
    grad_weights = None if grad_weights is None else _scores(grad_weights)
    dst, src, weights = _scores(score_dst), _scores(score_src), weights.contiguous()
    grad_x = x.new_empty(x.shape)
    grad_logit, grad_dst, grad_src = torch.empty_like(weights), torch.empty_like(dst), torch.empty_like(src)
    sizes = (num_sources, num_targets, source.size(0))
    _launch(
        "edge_attention_bwd_target_kernel",
        x,
        num_targets * heads,
        [grad_y, grad_weights, _aligned(x), dst, src, weights, source, order, start, grad_logit, grad_dst],
        sizes,
    )
    _launch(
        "edge_attention_bwd_source_kernel",
        x,
        num_sources * heads,
        [grad_y, weights, grad_logit, target, order, by_source, source_start, grad_x, grad_src],
        sizes,
    )
    return grad_x, grad_dst.to(score_dst.dtype), grad_src.to(score_src.dtype)


def _checked(fields: Sequence[Tensor | None], x: Tensor, num_targets: int) -> list[Any]:
    """The edges as the kernels take them. Those that this call did not sort itself, which come with the last two fields, are checked."""
    num_sources, num_edges = x.size(0), cast(Tensor, fields[0]).size(0)
    if num_edges and not (num_sources and num_targets):
        raise ValueError(f"edge_index: expected no edges between {num_sources} sources and {num_targets} destinations, got {num_edges}")
    if fields[-1] is None:
        return [None if field is None else field.contiguous() for field in fields]
    edges = InEdges(*cast(Sequence[Tensor], fields))
    checks.check_fields(edges, num_sources, num_targets, x.device)
    checks.check_on_device(edges)
    return [field.long().contiguous() for field in edges]


def _launch(name: str, x: Tensor, rows: int, tensors: list[Tensor | None], counts: tuple[int, int, int]) -> None:
    """`rows` and `x` fix the grid; every kernel takes tensors, the numbers of sources, destinations, edges, heads and channels."""
    if not rows:
        return
    heads, channels = x.shape[1:]
    variant = variant_for(x.dtype, max(channels, 1))
    tiles = max(1, -(-channels // (variant.vector * variant.lanes))) if name != "edge_attention_bwd_target_kernel" else 1
    sizes: list[Argument] = [*map(ctypes.c_int64, counts), ctypes.c_int(heads), ctypes.c_int(channels)]
    kernels(variant, x.device).launch(name, (-(-rows // WARPS), tiles), [*tensors, *sizes])


def _scores(score: Tensor) -> Tensor:
    return score.to(torch.float32).contiguous()


def _aligned(values: Tensor) -> Tensor:
    """Makes values contiguous and aligned for wide reads: a slice of another tensor may begin anywhere."""
    values = values.contiguous()
    return values.clone() if values.data_ptr() % _LOAD else values


run = define("cuda", _forward, _backward)
