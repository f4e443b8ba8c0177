"""Edge attention by compiled C++: a pass over the edges asks the memory for rows some edges before it reads them.

Forward there is one such pass, by destination, and backward one, by source; what else there is to do has a number per edge and head.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from mea_graph.ops.dtypes import wide_dtype
from mea_graph.ops.edge import checks, counting_sort
from mea_graph.ops.edge.edges import InEdges, is_vouched_for, sort_by_target, vouch_for
from mea_graph.ops.edge.operator import define, refuse_transforms
from mea_graph.ops.native import library

_NARROW = 2**31  # below it, 32 bits number nodes and edges in what a call makes for itself
_FEW = 1024  # edges that are looked at in less time than it takes to find out whether they must be


def refuse(x: Tensor, score_dst: Tensor, score_src: Tensor, edge_index: Tensor | InEdges) -> str | None:
    """Why the loops cannot run on these tensors, or None."""
    for tensor in (x, score_dst, score_src, edge_index.source if isinstance(edge_index, InEdges) else edge_index):
        if tensor.device.type != "cpu":
            return f"the tensors are on {tensor.device.type}"
    return refuse_transforms() or library.refuse()


def _sort(edge_index: Tensor, num_sources: int, num_targets: int) -> Sequence[Tensor]:
    plain = edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
    if not counting_sort.takes(plain):
        return sort_by_target(edge_index, num_targets)
    narrow = max(plain.size(1), num_sources + 1, num_targets + 1) < _NARROW
    return counting_sort.by_target(plain, num_sources, num_targets, torch.int32 if narrow else torch.int64)


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
    wide = wide_dtype(x, score_dst, score_src)
    y = x.new_empty((score_dst.size(0), *x.shape[1:]), dtype=wide)
    weights = x.new_empty((source.size(0), x.size(1)), dtype=wide)
    edges = (source, target, order, start, by_source, source_start)
    _call("edge_forward", x, None, (score_dst, score_src, weights, None, None, y, None, None, None), edges, wide, own=by_source is None)
    return y.to(x.dtype), weights


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
    wide = wide_dtype(x, score_dst, score_src)
    own = by_source is None or source_start is None
    if own:
        by_source, source_start = counting_sort.by_source(source, x.size(0))
    make = x.new_zeros if grad_y is None else x.new_empty
    grad_x, slope = make(x.shape, dtype=wide), make(weights.shape, dtype=wide)
    grad_dst, grad_src = x.new_empty(score_dst.shape, dtype=wide), x.new_empty(score_src.shape, dtype=wide)
    edges = (source, target, order, start, by_source, source_start)
    tensors = (score_dst, score_src, weights, grad_weights, slope, None, grad_x, grad_dst, grad_src)
    _call("edge_backward", x, grad_y, tensors, edges, wide, own)
    return grad_x.to(x.dtype), grad_dst.to(score_dst.dtype), grad_src.to(score_src.dtype)


def _call(name: str, x: Tensor, grad_y: Tensor | None, tensors: Sequence[Any], edges: Sequence[Any], dtype: torch.dtype, own: bool) -> None:
    """Fills those of the tensors that are results. They are as the loops take them; the others are made so.

    Edges that this call did not sort itself (`own`) are looked at; where they are many, only once, and never where `sort_edges` made them.
    """
    (sources, heads, channels), targets, edge_count = x.shape, tensors[0].size(0), edges[0].size(0)
    kind = checks.check_fields(edges, sources, targets, x.device)
    foreign = not own and (edge_count < _FEW or not is_vouched_for(*edges))
    rows = [t if t is None else t.to(dtype) for t in (x, grad_y)]
    rows = [t if t is None or t.stride(2) == 1 else t.contiguous() for t in rows]
    held = [t if t is None else t.to(dtype).contiguous() for t in tensors] + [t if t is None else t.contiguous() for t in edges]
    fields = [field for t in rows for field in ((0,) * 4 if t is None else (t.data_ptr(), *t.stride()[:2], 1))]
    fields += [0 if t is None else t.data_ptr() for t in held]
    fault = ctypes.c_int64(0)
    fields += [kind == torch.int64, grad_y is not None, foreign, edge_count, sources, targets, heads, channels, torch.get_num_threads()]
    library.call_addresses(name, dtype, [*fields, ctypes.addressof(fault)])
    if fault.value:
        checks.refuse(InEdges._fields[fault.value - 1])
    if foreign and edge_count >= _FEW:
        vouch_for(*edges)


run = define("native", _forward, _backward, _sort)
