"""Predictive attention edge by edge, over any graph: the predicted logit of an edge is one dot product of folded rows."""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from mea_graph.ops.dtypes import wide_dtype
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.segment import segment_softmax, segment_sum


def neighbours(x: Tensor, pointers: Pointers) -> Tensor:
    """(N, K, D) to (N, 3, K, D): the row before, the row and the row after, zeros outside the sample."""
    real = pointers.real
    x = x.masked_fill(~real[:, None, None], 0)
    before, after = F.pad(x, (0, 0, 0, 0, 1, 0))[:-1], F.pad(x, (0, 0, 0, 0, 0, 1))[1:]
    first, last = pointers.position == 0, pointers.position == pointers.length.index_select(0, pointers.sample) - 1
    before, after = before.masked_fill(first[:, None, None], 0), after.masked_fill(last[:, None, None], 0)
    return torch.stack([before, x, after], 1)


def weights(
    query: Tensor,
    key: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mu: float,
    pointers: Pointers,
    edge_index: Tensor,
) -> Tensor:
    """The map A of [MEA] Eq. 2 at the edges, (E, K)."""
    source, target = edge_index[0], edge_index[1]
    current = (query.index_select(0, target) * key.index_select(0, source)).sum(-1) * query.size(-1) ** -0.5
    current = segment_softmax(current, target, query.size(0))
    folded = einsum(weight, neighbours(prior_query, pointers), "o h x y, n x h c -> n y o h c")
    folded = folded * prior_query.size(-1) ** -0.5
    shifted = neighbours(prior_key, pointers)  # (N, y, h, c)
    folded = rearrange(folded, "n y o h c -> n o (y h c)").index_select(0, target)
    shifted = rearrange(shifted, "n y h c -> n (y h c)").index_select(0, source)
    predicted = einsum(folded, shifted, "edge o width, edge width -> edge o")
    predicted = F.gelu(predicted if bias is None else predicted + bias)
    return segment_softmax(mu * predicted + (1 - mu) * current, target, query.size(0))


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mu: float,
    pointers: Pointers,
    edges: IntervalEdges | Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """(N, K, D_v), in time and memory O(E K^2 D)."""
    edge_index = edges.edge_index() if isinstance(edges, IntervalEdges) else edges
    tensors = (query, key, value, prior_query, prior_key, weight)
    dtype = wide_dtype(*tensors)
    q, k, v, q_prior, k_prior, w = (t.to(dtype) for t in tensors)
    a = weights(q, k, q_prior, k_prior, w, None if bias is None else bias.to(dtype), mu, pointers, edge_index)
    a = F.dropout(a, dropout) if dropout else a
    messages = a.unsqueeze(-1) * v.index_select(0, edge_index[0])
    return segment_sum(messages, edge_index[1], query.size(0)).to(value.dtype)
