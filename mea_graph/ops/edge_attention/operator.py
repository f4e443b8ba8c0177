"""Registers an implementation of edge attention as operators that autograd and the compiler know."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.edge_attention.edges import InEdges, sort_by_target
from mea_graph.ops.library import _without_autocast as without_autocast
from mea_graph.ops.library import register

# The fields of `InEdges`. The last two may be left to the backward pass, which not every call has.
_EDGES = "Tensor source, Tensor target, Tensor order, Tensor start, Tensor? by_source, Tensor? source_start"


def define(backend: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Defines `mea_graph::edge_attention_<backend>` and its `_backward`; returns what runs the former on the public arguments."""
    differentiate = register(
        f"edge_attention_{backend}_backward",
        f"(Tensor? grad_y, Tensor? grad_weights, Tensor x, Tensor score_dst, Tensor score_src, Tensor weights, {_EDGES})"
        " -> (Tensor, Tensor, Tensor)",
        backward,
        _fake_backward,
    )

    def gradients(run: Callable[..., Any], ctx: Any, grad_y: Tensor | None, grad_weights: Tensor | None) -> tuple[Any, ...]:
        grads: tuple[Tensor | None, ...] = (None, None, None)
        if grad_y is not None or grad_weights is not None:
            grads = run(grad_y, grad_weights, *ctx.saved_tensors)
        return (*grads, None, None, None, None, None, None)

    compute = register(
        f"edge_attention_{backend}",
        f"(Tensor x, Tensor score_dst, Tensor score_src, {_EDGES}) -> (Tensor, Tensor)",
        forward,
        _fake,
        _setup_context,
        functools.partial(gradients, differentiate),
    )

    class Eager(torch.autograd.Function):
        """The same without the dispatcher: on a graph of a thousand edges that saves a sixth of the time."""

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = without_autocast(forward)(*args)
            _setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            # Gradients are enabled here if somebody means to differentiate twice: the operator refuses.
            return gradients(differentiate if torch.is_grad_enabled() else without_autocast(backward), ctx, *grads)

    def run(x: Tensor, score_dst: Tensor, score_src: Tensor, edge_index: Tensor | InEdges) -> tuple[Tensor, Tensor]:
        plain = type(x) in (Tensor, torch.nn.Parameter) and not x.is_meta
        eager = plain and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        # Edges are sorted by source in the backward pass, which not every call has.
        edges = edge_index if isinstance(edge_index, InEdges) else (*sort_by_target(edge_index, score_dst.size(0)), None, None)
        y, weights = (Eager.apply if eager else compute)(x, score_dst, score_src, *edges)
        return y, weights.to(torch.promote_types(score_dst.dtype, score_src.dtype))

    return run


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of the arithmetic, and of the weights that an operator returns: the backward pass needs them unrounded."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _fake(x: Tensor, score_dst: Tensor, score_src: Tensor, edges: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
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
