"""Edge attention in plain torch, as operators: turns nodes by heads into the flat tensors of `flat.py`, and back."""

import torch
from torch import Tensor

from mea_graph.ops.dtypes import wide_dtype
from mea_graph.ops.edge.flat import (
    all_heads,
    all_heads_by_source,
    attend,
    attend_backward,
    by_head,
    by_node,
    in_given_order,
    logits,
)
from mea_graph.ops.edge.operator import define


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
    edges = all_heads(source, target, start, x.size(0), heads)
    y, weight, _ = attend(by_head(x.to(wide)), by_head(score_dst.to(wide)), by_head(score_src.to(wide)), edges)
    # `.data` is no view for autograd, which forbids in-place changes of a view that an operator returns.
    return by_node(y, heads).data.to(x.dtype), in_given_order(weight, order, heads)


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
    edges = all_heads(source, target, start, x.size(0), heads)
    grad_x, grad_dst, grad_src = attend_backward(
        None if grad_y is None else by_head(grad_y.to(wide)),
        None if grad_weights is None else by_head(grad_weights.to(wide).index_select(0, order)),
        by_head(x.to(wide)),
        by_head(weights.to(wide).index_select(0, order)),
        logits(by_head(score_dst.to(wide)), by_head(score_src.to(wide)), edges),
        edges,
        all_heads_by_source(by_source, source_start, source, x.size(0), heads),
    )
    return (
        torch.zeros_like(x, memory_format=torch.contiguous_format) if grad_x is None else by_node(grad_x, heads).to(x.dtype),
        by_node(grad_dst, heads).to(score_dst.dtype),
        by_node(grad_src, heads).to(score_src.dtype),
    )


run = define("cpu", _forward, _backward)
