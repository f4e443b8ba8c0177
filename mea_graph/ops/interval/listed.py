"""Attention edge by edge, over any graph: the same formula for edges that are no intervals."""

import math

import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.dtypes import wide_dtype
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.segment import segment_softmax, segment_sum


def weights(query: Tensor, key: Tensor, edge_index: Tensor) -> Tensor:
    """The softmax over each target's edges, (E, K)."""
    source, target = edge_index[0], edge_index[1]
    logits = (query.index_select(0, target) * key.index_select(0, source)).sum(-1) / math.sqrt(query.size(-1))
    return segment_softmax(logits, target, query.size(0))


def run(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges | Tensor, dropout: float = 0.0) -> Tensor:
    """(N_t, K, D_v), in time and memory O(E)."""
    edge_index = edges.edge_index() if isinstance(edges, IntervalEdges) else edges
    dtype = wide_dtype(query, key, value)
    xi = weights(query.to(dtype), key.to(dtype), edge_index)
    xi = F.dropout(xi, dropout) if dropout else xi
    messages = xi.unsqueeze(-1) * value.to(dtype).index_select(0, edge_index[0])
    return segment_sum(messages, edge_index[1], query.size(0)).to(value.dtype)
