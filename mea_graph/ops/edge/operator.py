"""Registers an implementation of edge attention as operators that autograd and the compiler know."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.dtypes import wide_dtype
from mea_graph.ops.eager import is_transformed
from mea_graph.ops.edge.edges import InEdges, sort_by_target
from mea_graph.ops.edge.reference import edge_attention
from mea_graph.ops.library import register

# The fields of `InEdges`. The last two may be left to the backward pass, which not every call has.
_EDGES = "Tensor source, Tensor target, Tensor order, Tensor start, Tensor? by_source, Tensor? source_start"


def _sort(edge_index: Tensor, num_sources: int, num_targets: int) -> Sequence[Tensor]:
    return sort_by_target(edge_index, num_targets)


def define(
    backend: str, forward: Callable[..., Any], backward: Callable[..., Any], sort: Callable[[Tensor, int, int], Sequence[Tensor]] = _sort
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Defines `mea_graph::edge_attention_<backend>` and its `_backward`; returns what runs the former on the public arguments.

    `sort` takes edges and the numbers of sources and destinations, and returns the first four fields of `InEdges`.
    """
    differentiate = register(
        f"edge_attention_{backend}_backward",
        f"(Tensor? grad_y, Tensor? grad_weights, Tensor x, Tensor score_dst, Tensor score_src, Tensor weights, {_EDGES})"
        " -> (Tensor, Tensor, Tensor)",
        backward,
        _fake_backward,
    )

    def gradients(ctx: Any, grad_y: Tensor | None, grad_weights: Tensor | None) -> tuple[Any, ...]:
        grads: tuple[Tensor | None, ...] = (None, None, None)
        if grad_y is not None or grad_weights is not None:
            # Gradients are enabled here if the caller means to differentiate again.
            grads = (_by_reference if torch.is_grad_enabled() else differentiate)(grad_y, grad_weights, *ctx.saved_tensors)
        return (*grads, None, None, None, None, None, None)

    compute = register(
        f"edge_attention_{backend}",
        f"(Tensor x, Tensor score_dst, Tensor score_src, {_EDGES}) -> (Tensor, Tensor)",
        forward,
        _fake,
        _setup_context,
        gradients,
    )

    def run(x: Tensor, score_dst: Tensor, score_src: Tensor, edge_index: Tensor | InEdges) -> tuple[Tensor, Tensor]:
        # Edges are sorted by source in the backward pass, which not every call has.
        edges = edge_index if isinstance(edge_index, InEdges) else (*sort(edge_index, x.size(0), score_dst.size(0)), None, None)
        y, weights = compute(x, score_dst, score_src, *edges)
        return y, weights.to(torch.promote_types(score_dst.dtype, score_src.dtype))

    return run


def _by_reference(
    grad_y: Tensor | None,
    grad_weights: Tensor | None,
    x: Tensor,
    score_dst: Tensor,
    score_src: Tensor,
    weights: Tensor,
    source: Tensor,
    target: Tensor,
    order: Tensor,
    *_: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients as a function that can be differentiated in turn: those of the reference, computed anew."""
    edges, order = torch.stack([source, target]).long(), order.long()  # they may be of 32 bits
    y, again = edge_attention(x, score_dst, score_src, torch.empty_like(edges).index_copy_(1, order, edges))
    given = [(o, g.to(o.dtype)) for o, g in ((y, grad_y), (again, grad_weights)) if g is not None and o.requires_grad]
    inputs = [t for t in (x, score_dst, score_src) if t.requires_grad]
    outputs, cotangents = [o for o, _ in given], [g for _, g in given]
    found = iter(torch.autograd.grad(outputs, inputs, cotangents, create_graph=True, allow_unused=True) if given else [None] * 3)
    return tuple(next(found) if t.requires_grad else None for t in (x, score_dst, score_src))


def refuse_transforms(**_: Any) -> str | None:
    return "torch.func and forward-mode differentiation go through plain operations only" if is_transformed() else None


def _fake(x: Tensor, score_dst: Tensor, score_src: Tensor, edges: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weights are as wide as the arithmetic: the backward pass needs them unrounded."""
    y = torch.empty(score_dst.size(0), x.size(1), x.size(2), dtype=x.dtype, device=x.device)
    return y, torch.empty(edges.size(-1), x.size(1), dtype=wide_dtype(x, score_dst, score_src), device=x.device)


def _fake_backward(
    grad_y: Tensor | None, grad_weights: Tensor | None, x: Tensor, score_dst: Tensor, score_src: Tensor, *_: Tensor | None
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, score_dst, score_src))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, score_dst, score_src, *edges = inputs
    ctx.save_for_backward(x, score_dst, score_src, output[1], *edges)
    ctx.set_materialize_grads(False)
