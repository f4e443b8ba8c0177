"""Edge attention on sorted edges in plain torch: a weighted `embedding_bag`, whose bags are the in-edges of the destinations.

Nothing of size edges x channels is stored, forward or backward. Every sum runs over sorted edges in a fixed order, so that results repeat
bit for bit. With several heads, node i of head h is row `i * H + h` of the values, and the bags of one head come before those of the
next: the values of one head at a time fit the cache better.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.edge_attention.edges import sort_by_source
from mea_graph.ops.edge_attention.operator import define, wide_dtype


def _rows(values: Tensor, wide: torch.dtype) -> Tensor:
    """(N, H, C) as (N H, C), contiguous: `embedding_bag` is slow otherwise."""
    return values.to(wide).flatten(0, 1).contiguous()


def _per_head(values: Tensor, wide: torch.dtype) -> Tensor:
    """(N, H), or (N,) if there is one head: most operations are faster on it."""
    values = values.to(wide)
    return values.reshape(-1) if values.size(1) == 1 else values


def _rows_by_edge(node: Tensor, heads: int) -> Tensor:
    """The rows of an edge's node, all heads of one edge before the next edge: (E H,)."""
    return node if heads == 1 else (node.unsqueeze(1) * heads + torch.arange(heads, device=node.device)).flatten()


def _rows_by_head(node: Tensor, heads: int) -> Tensor:
    """The rows of an edge's node, all edges of one head before the next head: (H E,)."""
    return node if heads == 1 else (node * heads + torch.arange(heads, device=node.device).unsqueeze(1)).flatten()


def _weighted_sums(rows: Tensor, node: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    """The sum of `weight[k] * rows[node[k]]` over `k` from `start[i]` to `start[i + 1]`, for each i and head: (N, H, C)."""
    if weight.dim() == 1:
        return F.embedding_bag(node, rows, start, mode="sum", per_sample_weights=weight, include_last_offset=True).unsqueeze(1)
    edges, heads = weight.shape
    bags = (start[:-1] + torch.arange(heads, device=start.device).unsqueeze(1) * edges).flatten()
    sums = F.embedding_bag(_rows_by_head(node, heads), rows, bags, mode="sum", per_sample_weights=weight.t().reshape(-1))
    return sums.view(heads, start.size(0) - 1, rows.size(1)).transpose(0, 1)


def _segments(reduce: str, values: Tensor, start: Tensor) -> Tensor:
    return torch.segment_reduce(values, reduce, offsets=start, axis=0, unsafe=True)  # unsafe: `start` is right, do not check it


def _logits(score_dst: Tensor, score_src: Tensor, target: Tensor, source: Tensor, wide: torch.dtype) -> Tensor:
    """a_i + b_j of every edge, before the GELU."""
    return _per_head(score_dst, wide).index_select(0, target).add_(_per_head(score_src, wide).index_select(0, source))


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
    heads, wide = x.size(1), wide_dtype(x, score_dst, score_src)
    weight = F.gelu(_logits(score_dst, score_src, target, source, wide))
    weight.sub_(_segments("max", weight, start).index_select(0, target)).exp_()
    weight.div_(_segments("sum", weight, start).index_select(0, target))
    y = _weighted_sums(_rows(x, wide), source, start, weight)
    weights = torch.empty(source.size(0), heads, dtype=wide, device=x.device)
    weights.index_copy_(0, order, weight.view(-1, heads))
    return y.to(x.dtype).contiguous(), weights


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
    heads, wide = x.size(1), wide_dtype(x, score_dst, score_src)
    if by_source is None or source_start is None:
        by_source, source_start = sort_by_source(source, x.size(0))
    weight = _per_head(weights.index_select(0, order), wide)
    if grad_y is None:
        grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
        grad = torch.zeros_like(weight)
    else:
        rows = _rows(grad_y, wide)
        grad_x = _weighted_sums(rows, target.index_select(0, by_source), source_start, weight.index_select(0, by_source))
        # The dot products of x[source] and grad_y[target]: what `embedding_bag` has for a gradient of its weights.
        grad = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            rows, _rows(x, wide), _rows_by_edge(source, heads), start, _rows_by_edge(target, heads), 0
        ).view_as(weight)
    if grad_weights is not None:
        grad.add_(_per_head(grad_weights.index_select(0, order), wide))
    # Softmax, then GELU.
    grad.sub_(_segments("sum", weight * grad, start).index_select(0, target)).mul_(weight)
    grad = torch.ops.aten.gelu_backward(grad, _logits(score_dst, score_src, target, source, wide))
    grad_dst = _segments("sum", grad, start).view(-1, heads)
    grad_src = _segments("sum", grad.index_select(0, by_source), source_start).view(-1, heads)
    return grad_x.to(x.dtype).contiguous(), grad_dst.to(score_dst.dtype), grad_src.to(score_src.dtype)


run = define("cpu", _forward, _backward)
