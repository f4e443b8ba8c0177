"""Edge attention with the linear maps in front of it: values W h, and scores that are linear in them, as in [MEA] Eq. 17-18.

On a small graph calls are what takes the time. Without a compiler the CPU therefore takes maps and attention in one step of autograd,
whose gradient is written by hand (`_OneStep`). Everywhere else it is matrix products and `edge_attention`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mea_graph.ops.eager import is_traced
from mea_graph.ops.edge_attention import edge_attention
from mea_graph.ops.edge_attention.edges import InEdges, check_edges, sort_by_target
from mea_graph.ops.edge_attention.flat import (
    FlatEdges,
    all_heads,
    all_heads_by_source,
    attend,
    attend_backward,
    by_head,
    by_node,
    in_given_order,
)


def linear_edge_attention(
    x: tuple[Tensor, Tensor],
    weight: Tensor,
    score_dst: Tensor,
    score_src: Tensor,
    score_bias: Tensor,
    edge_index: Tensor | InEdges,
    need_weights: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """`edge_attention` of W h_j with the scores q_1^T W h_i + b of destinations and q_2^T W h_j of sources.

    Args:
        x: Features of the sources (N_src, C_in) and the destinations (N_dst, C_in), one tensor twice on a graph that is not bipartite.
        weight: W of all heads, (H C, C_in).
        score_dst, score_src, score_bias: q_1 and q_2, (H, C), and b, (H,).
        edge_index: As for `edge_attention`.
        need_weights: Whether the transfer coefficients are wanted; they may come all the same.
    """
    arguments = (weight, score_dst, score_src, score_bias)
    if _takes_one_step(x, arguments):
        nodes = x[0].size(0)
        check_edges(edge_index, nodes, nodes)
        edges = edge_index if isinstance(edge_index, InEdges) else (*sort_by_target(edge_index, nodes), None, None)
        return _OneStep.apply(x[0], *arguments, need_weights, *edges)
    return _composed(*x, *arguments, edge_index)


def _composed(
    x_src: Tensor, x_dst: Tensor, weight: Tensor, score_dst: Tensor, score_src: Tensor, score_bias: Tensor, edge_index: Tensor | InEdges
) -> tuple[Tensor, Tensor]:
    heads, channels = score_dst.shape
    values = F.linear(x_src, weight).view(-1, heads, channels)  # (N_src, H, C)
    # q^T [W h_i, W h_j] = (q_1^T W) h_i + (q_2^T W) h_j: two narrow products with h instead of passes over W h.
    halves = torch.bmm(torch.stack([score_dst, score_src], 1), weight.view(heads, channels, -1))
    if x_dst is x_src:
        of_dst, of_src = F.linear(x_src, halves.flatten(0, 1)).view(-1, heads, 2).unbind(-1)  # (N, H) each
    else:
        of_dst, of_src = F.linear(x_dst, halves[:, 0]), F.linear(x_src, halves[:, 1])  # (N_dst, H) and (N_src, H)
    return edge_attention(values, of_dst + score_bias, of_src, edge_index)


def _takes_one_step(x: tuple[Tensor, Tensor], parameters: tuple[Tensor, ...]) -> bool:
    nodes = x[0]
    if nodes is not x[1] or nodes.device.type != "cpu" or nodes.dtype not in (torch.float32, torch.float64):
        return False
    if not all(type(t) in (Tensor, torch.nn.Parameter) and t.dtype == nodes.dtype for t in (nodes, *parameters)):
        return False
    return not is_traced() and not torch.is_autocast_enabled("cpu")


class _OneStep(torch.autograd.Function):
    """The heads' values and scores come one head after the other, as `attend` takes them: (H, N, C) and (H, N)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        score_dst: Tensor,
        score_src: Tensor,
        score_bias: Tensor,
        need_weights: bool,
        source: Tensor,
        target: Tensor,
        order: Tensor,
        start: Tensor,
        by_source: Tensor | None,
        source_start: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        heads, channels = score_dst.shape
        edges = all_heads(source, target, start, x.size(0), heads)
        values = torch.bmm(x.expand(heads, -1, -1), weight.view(heads, channels, -1).transpose(1, 2))
        halves = torch.stack([score_dst, score_src], 1)  # (H, 2, C)
        of_dst, of_src = torch.bmm(halves, values.transpose(1, 2)).unbind(1)
        values = values.view(-1, channels)
        sums, xi, logit = attend(values, of_dst.add(score_bias.unsqueeze(1)).view(-1), of_src.reshape(-1), edges)
        ctx.save_for_backward(x, weight, halves, values, xi, logit, *edges[:3], order, by_source, source_start)
        ctx.degree = edges.degree
        ctx.set_materialize_grads(False)
        return by_node(sums, heads), in_given_order(xi, order, heads) if need_weights else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_weights: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, halves, values, xi, logit, source, target, start, order, by_source, source_start = ctx.saved_tensors
        if grad_y is None and grad_weights is None:
            return (None,) * 12
        (heads, _, channels), nodes = halves.shape, x.size(0)
        grad_values, grad_dst, grad_src = attend_backward(
            None if grad_y is None else by_head(grad_y),
            None if grad_weights is None else by_head(grad_weights.index_select(0, order)),
            values,
            xi,
            logit,
            FlatEdges(source, target, start, ctx.degree),
            all_heads_by_source(by_source, source_start, source[: order.size(0)], nodes, heads),
        )
        grad_scores = torch.stack([grad_dst.view(heads, nodes), grad_src.view(heads, nodes)], 1)
        through_scores = grad_scores.transpose(1, 2)  # (H, N, 2)
        if grad_values is None:
            grad_values = torch.bmm(through_scores, halves)
        else:
            grad_values = grad_values.view(heads, nodes, channels).baddbmm_(through_scores, halves)
        grad_halves = torch.bmm(grad_scores, values.view(heads, nodes, channels))
        grad_x = by_node(grad_values.view(-1, channels), heads).flatten(1).mm(weight) if ctx.needs_input_grad[0] else None
        grad_weight = torch.bmm(grad_values.transpose(1, 2), x.expand(heads, -1, -1)).view_as(weight)
        return grad_x, grad_weight, grad_halves[:, 0], grad_halves[:, 1], grad_scores[:, 0].sum(1), *(None,) * 7
