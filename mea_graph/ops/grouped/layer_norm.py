"""A layer normalisation whose scale and shift are those of each group of rows, in one call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.backends import Backend, Op, accept, is_unwatched
from mea_graph.ops.eager import is_batched
from mea_graph.ops.grouped import batched, native, reference, triton
from mea_graph.ops.grouped.parts import check, check_shapes, refuse, slices
from mea_graph.ops.library import register, through_reference
from mea_graph.ops.native import library

__all__ = ["grouped_layer_norm"]


def grouped_layer_norm(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    starts: Sequence[int],
    sizes: Sequence[int],
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    r"""Normalises every row once, then scales and shifts each group of consecutive rows by its own weights.

    .. math:: y_g = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}}\Big|_{[s_g, s_g + n_g)} \odot w_g + b_g

    Args:
        x: The rows.
        weights, biases: One of each a group.
        starts, sizes: First row and number of rows of each group; groups may share rows.
        eps: Added to the variance.
        backend: "auto", "triton" (kernels for a GPU and groups of equal size, for up to 256 channels), "batched" (torch's own, on a device
            and for groups of equal size), "native" (C++ that a compiler on this machine builds at
            first use, on a CPU, for up to 256 channels), "joined" (one operator for all groups) or "reference".

    Shape:
        - x: :math:`(N, C)`; weights[g], biases[g]: :math:`(C,)`; result: :math:`(\sum_g n_g, C)`

    Raises:
        ValueError: If a group lacks its weight, bias, start or size, a shape is not as above, or x does not have the rows.

    >>> import torch
    >>> x = torch.tensor([[1.0, -1.0], [3.0, 1.0]])
    >>> y = grouped_layer_norm(
    ...     x,
    ...     [torch.ones(2), torch.zeros(2)],
    ...     [torch.zeros(2), torch.ones(2)],
    ...     [0, 1],
    ...     [1, 1],
    ... )
    >>> y.round(decimals=2).tolist()
    [[1.0, -1.0], [1.0, 1.0]]
    """
    if backend == "auto" and is_unwatched():
        out = native.norm_at_once(x, weights, biases, starts, sizes, eps)
        if out is not None:
            return out
    check(x, weights, biases, starts, sizes)
    if not biases:
        raise ValueError(f"biases: expected {len(weights)}, one a group, got none")
    check_shapes("weights", weights, x.size(1))
    check_shapes("biases", biases, x.size(1))
    arguments = {"x": x, "weights": list(weights), "biases": list(biases), "starts": list(starts), "sizes": list(sizes), "eps": eps}
    return _NORM.run(backend, x.device, arguments)


def _norm(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and the mean and inverse deviation of the rows for the backward pass, (N, 1) each."""
    normal, mean, rstd = torch.native_layer_norm(x, x.shape[1:], None, None, eps)
    out = x.new_empty(sum(sizes), x.size(1))
    for g, (rows, place) in enumerate(slices(starts, sizes)):
        torch.addcmul(biases[g], normal[rows], weights[g], out=out[place])
    return out, mean, rstd


def _norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weights: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int]
) -> list[Tensor]:
    """The gradients of x, of the weights, and of the biases."""
    normal, d_normal = (x - mean).mul_(rstd), torch.zeros_like(x)
    d_weights, d_biases = [], []
    for g, (rows, place) in enumerate(slices(starts, sizes)):
        part = grad[place]
        d_normal[rows].addcmul_(part, weights[g])
        d_weights.append((part * normal[rows]).sum(0))
        d_biases.append(part.sum(0))
    d_x = torch.ops.aten.native_layer_norm_backward(d_normal, x, x.shape[1:], mean, rstd, None, None, [True, False, False])[0]
    return [d_x, *d_weights, *d_biases]


def _fake_norm(x: Tensor, weights: Any, biases: Any, starts: Any, sizes: Sequence[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(sum(sizes), x.size(1)), x.new_empty(x.size(0), 1), x.new_empty(x.size(0), 1)


def _fake_norm_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weights: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(x), *map(torch.empty_like, weights), *map(torch.empty_like, weights)]


_norm_backward_operator = register(
    "grouped_layer_norm_backward",
    "(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor[] weights, int[] starts, int[] sizes) -> Tensor[]",
    _norm_backward,
    _fake_norm_backward,
)
_GROUPS = "Tensor x, Tensor[] weights, Tensor[] biases, int[] starts, int[] sizes, float eps"
_norm_operator = register("grouped_layer_norm", f"({_GROUPS}) -> (Tensor, Tensor, Tensor)", _norm, _fake_norm)


class _Norm(torch.autograd.Function):
    """Stands in for `torch.library.register_autograd`, which for lists of tensors takes longer than the normalisation itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, starts: list[int], sizes: list[int], eps: float, groups: int, *parameters: Tensor) -> Tensor:
        ctx.starts, ctx.sizes, ctx.eps, ctx.groups = starts, sizes, eps, groups
        out, mean, rstd = _norm_operator(x, parameters[:groups], parameters[groups:], starts, sizes, eps)
        ctx.save_for_backward(x, mean, rstd, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, *parameters = ctx.saved_tensors
        n, weights = ctx.groups, parameters[: ctx.groups]
        if torch.is_grad_enabled() or is_batched(grads[0]):
            inputs = (x, weights, parameters[n:], ctx.starts, ctx.sizes, ctx.eps)
            d_x, d_weights, d_biases, *_ = through_reference(reference.norm, inputs, grads[0])
            return d_x, None, None, None, None, *d_weights, *d_biases
        d_x, *d = _norm_backward_operator(grads[0], x, mean, rstd, weights, ctx.starts, ctx.sizes)
        return d_x, None, None, None, None, *d


def _run_norm(x: Tensor, weights: list[Tensor], biases: list[Tensor], starts: list[int], sizes: list[int], eps: float) -> Tensor:
    if not torch.is_grad_enabled():
        return _norm(x, weights, biases, starts, sizes, eps)[0]
    return _Norm.apply(x, starts, sizes, eps, len(weights), *weights, *biases)


_NORM = Op(
    grouped_layer_norm,
    {
        "triton": Backend(triton.norm, triton.refuse, prefers="cuda"),
        "batched": Backend(batched.norm, batched.refuse, prefers="cuda"),
        "native": Backend(native.norm, native.refuse, hold=library.hold),
        "joined": Backend(_run_norm, refuse),
        "reference": Backend(reference.norm, accept),
    },
)
