"""Passes the messages of several spaces at once, in few kernels."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mea_graph.nn._side_by_side import Groups, can_join
from mea_graph.nn._side_by_side import linear as side_by_side
from mea_graph.nn.graph.graph_fusion_conv import GraphFusionConv, is_large
from mea_graph.ops.masking import softmax_without


def pass_side_by_side(convs: Sequence[nn.Module], x: Sequence[Tensor], edge_index: Tensor) -> Tensor | None:
    """Runs each convolution on its own nodes, over the same edges, in one pass: the stacked nodes `x` to (G, N, C_out).

    None where that would not be the same as one after the other, or where the graphs are large.
    """
    each = _alike(convs)
    if each is None:
        return None
    first, groups = each[0], len(each)
    nodes = sum(rows.size(0) for rows in x) // groups
    if nodes == 0 or is_large(edge_index.size(1) * groups * first.heads):
        return None
    values, source, target = _values_and_scores(each, x, nodes)
    edges = torch.cat([edge_index + g * nodes if g else edge_index for g in range(groups)], 1)
    scores, values = (source.flatten(0, 1), target.flatten(0, 1)), first._by_head(values)
    if first._fuses(edges, None, None):
        return first._activated(first._fused(values, scores, edges, None)[0]).unflatten(0, (groups, nodes))
    alpha = first.edge_updater(edges, alpha=scores, edge_attr=None, edge_weight=None, size=None)
    out = first.propagate(edges, x=(values, values), alpha=alpha, size=None).to(values.dtype)
    return first._activated(out).unflatten(0, (groups, nodes))


def pass_within_samples(convs: Sequence[nn.Module], x: Sequence[Tensor], joined: Tensor) -> Tensor | None:
    r"""The same on a graph that joins the nodes of one sample, as `fusion_graph` makes it: softmaxes over nodes, and no list of edges.

    None where `pass_side_by_side` gives None.

    Shape:
        - x: G times M of :math:`(B, C)`; joined: :math:`(M, M, B)`, which node of which sample sends to which
        - result: :math:`(G, M, B, C_{out})`
    """
    each = _alike(convs)
    if each is None:
        return None
    first, groups, (count, _, samples) = each[0], len(each), joined.shape
    if samples == 0 or is_large(joined.numel() * groups * first.heads) or first.flow != "source_to_target":
        return None
    values, source, target = _values_and_scores(each, x, count * samples)
    score = F.gelu(source.view(groups, count, 1, samples, -1) + target.view(groups, 1, count, samples, -1))
    alpha = softmax_without(score, ~joined.unsqueeze(-1), 1).unsqueeze(-1)  # (G, M, M, B, H, 1)
    out = (alpha * values.view(groups, count, 1, samples, first.heads, -1)).sum(1).to(values.dtype)
    out = out.flatten(0, 2)
    return first._activated(out.squeeze(1) if first.heads == 1 else out).view(groups, count, samples, -1)


def _alike(convs: Sequence[nn.Module]) -> list[GraphFusionConv] | None:
    """The convolutions, if they differ in their weights alone and nobody looks at their messages; else None."""
    each = [conv for conv in convs if type(conv) is GraphFusionConv and conv._passes_unseen()]
    each = [conv for conv in each if conv.lin is not None and conv.bias is None and not (conv.dropout and conv.training)]
    return each if len(each) == len(convs) and can_join(convs) and len({_MANNER(conv) for conv in each}) == 1 else None


def _values_and_scores(convs: Sequence[GraphFusionConv], x: Sequence[Tensor], nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """W h, (G N, H C), and the scores of the nodes as sources and as destinations, (G, N, H)."""
    groups, heads = len(convs), convs[0].heads
    linears: list[Any] = [conv.lin for conv in convs]
    values = side_by_side(linears, torch.cat(list(x)), Groups.below_each_other([nodes] * groups))
    halves = torch.stack([half for conv in convs for half in (conv.score_src, conv.score_dst)]).view(groups, 2, 1, heads, -1)
    source, target = (values.view(groups, 1, nodes, heads, -1) * halves).sum(-1).unbind(1)
    return values, source + torch.stack([conv.score_bias for conv in convs]).unsqueeze(1), target


_MANNER = attrgetter("out_channels", "heads", "concat", "activation", "edge_dim", "dropout", "flow", "aggr")
