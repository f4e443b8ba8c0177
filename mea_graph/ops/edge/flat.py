"""Edge attention of one head in plain torch, on edges sorted by destination, with everything by edge in one flat tensor.

The sums over in-edges are a weighted `embedding_bag`, whose bags are the in-edges of the destinations: nothing of size edges x channels is
stored, forward or backward. Every sum runs in a fixed order, so that results repeat bit for bit. Several heads are as many copies of the
graph, one after the other (`all_heads`).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.edge.edges import sort_by_source


class FlatEdges(NamedTuple):
    """The fields of `InEdges` that a forward pass needs, for all heads."""

    source: Tensor  # (H E,)
    target: Tensor  # (H E,)
    start: Tensor  # (H N_dst + 1,)


def all_heads(source: Tensor, target: Tensor, start: Tensor, num_sources: int, heads: int) -> FlatEdges:
    edges, num_targets = source.size(0), start.size(0) - 1
    return FlatEdges(_copies(source, heads, num_sources), _copies(target, heads, num_targets), _starts(start, heads, edges))


def _copies(index: Tensor, heads: int, size: int) -> Tensor:
    return index if heads == 1 else (index + size * torch.arange(heads, device=index.device).unsqueeze(1)).flatten()


def _starts(start: Tensor, heads: int, edges: int) -> Tensor:
    return start if heads == 1 else F.pad(_copies(start[:-1], heads, edges), (0, 1), value=heads * edges)


def by_head(values: Tensor) -> Tensor:
    """(N, H, *) as (H N, *), contiguous: `embedding_bag` is slow otherwise."""
    return values.transpose(0, 1).flatten(0, 1).contiguous()


def by_node(flat: Tensor, heads: int) -> Tensor:
    """(H N, *) as (N, H, *), contiguous."""
    return flat.view(heads, flat.size(0) // heads, *flat.shape[1:]).transpose(0, 1).contiguous()


def in_given_order(weight: Tensor, order: Tensor, heads: int) -> Tensor:
    """The weights of the sorted edges (H E,) as those of the edges that were sorted (E, H)."""
    weight = by_node(weight, heads)
    return torch.empty_like(weight).index_copy_(0, order, weight)


def attend(rows: Tensor, score_dst: Tensor, score_src: Tensor, edges: FlatEdges) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted sums of `rows` (H N_src, C) by destination (H N_dst, C), the weights (H E,), and the logits for `attend_backward`."""
    logit = logits(score_dst, score_src, edges)
    weight = F.gelu(logit)
    weight.sub_(_segments("max", weight, edges.start).index_select(0, edges.target)).exp_()
    weight.div_(_segments("sum", weight, edges.start).index_select(0, edges.target))
    return _weighted_sums(rows, edges.source, edges.start, weight), weight, logit


def logits(score_dst: Tensor, score_src: Tensor, edges: FlatEdges) -> Tensor:
    """a_i + b_j, before the GELU: (H E,)."""
    return score_src.index_select(0, edges.source).add_(score_dst.index_select(0, edges.target))


def attend_backward(
    grad_sums: Tensor | None,
    grad_weight: Tensor | None,
    rows: Tensor,
    weight: Tensor,
    logit: Tensor,
    edges: FlatEdges,
    by_source: tuple[Tensor, Tensor],
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of `rows` (None without `grad_sums`), `score_dst` and `score_src`; `by_source` is for all heads."""
    source, target, start = edges
    order, source_start = by_source
    grad_rows = None
    if grad_sums is None:
        grad = torch.zeros_like(weight)
    else:
        grad_rows = _weighted_sums(grad_sums, target.index_select(0, order), source_start, weight.index_select(0, order))
        # The dot products of rows[source] and grad_sums[target]: the gradient of the weights of `embedding_bag`.
        grad = torch.ops.aten._embedding_bag_per_sample_weights_backward(grad_sums, rows, source, start, target, 0)
    if grad_weight is not None:
        grad.add_(grad_weight)
    grad.sub_(_segments("sum", weight * grad, start).index_select(0, target)).mul_(weight)
    grad = torch.ops.aten.gelu_backward(grad, logit)
    grad_dst = _segments("sum", grad, start)
    return grad_rows, grad_dst, _segments("sum", grad.index_select(0, order), source_start)


def all_heads_by_source(
    by_source: Tensor | None, source_start: Tensor | None, source: Tensor, nodes: int, heads: int
) -> tuple[Tensor, Tensor]:
    """The last two fields of `InEdges` for all heads, made of the sorted edges' `source` where they are not given."""
    if by_source is None or source_start is None:
        by_source, source_start = sort_by_source(source, nodes)
    edges = source.size(0)
    return _copies(by_source, heads, edges), _starts(source_start, heads, edges)


def _weighted_sums(rows: Tensor, node: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    """The sum of `weight[k] * rows[node[k]]` over `k` from `start[i]` to `start[i + 1]`, for each i."""
    return F.embedding_bag(node, rows, start, mode="sum", per_sample_weights=weight, include_last_offset=True)


def _segments(reduce: str, values: Tensor, start: Tensor) -> Tensor:
    return torch.segment_reduce(values, reduce, offsets=start, axis=0, unsafe=True)  # unsafe: skips a check of `start`, which is right
