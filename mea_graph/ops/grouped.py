"""Linear maps and normalisations of many groups of rows, each with weights of its own, in one call.

Modalities and arrows have weights of their own, and each alone is little work: on few rows calls are what takes the time.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.backends import Backend, Op
from mea_graph.ops.eager import is_traced, is_transformed
from mea_graph.ops.library import register, through_reference

__all__ = ["grouped_layer_norm", "grouped_linear"]


_PLAIN_TYPES = (torch.nn.Parameter, Tensor)


def grouped_linear(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int], backend: str = "auto"
) -> Tensor:
    r"""A linear map for each group of consecutive rows; the results stand one below the other.

    .. math:: y_g = x_{[s_g, s_g + n_g)} W_g^T + b_g

    Groups may share rows, and may leave some out.

    Args:
        x: The rows.
        weights, biases: One of each a group; no biases at all is allowed.
        starts, sizes: First row and number of rows of each group.
        backend: "auto", "joined" (one call for all groups) or "reference".

    Shape:
        - x: :math:`(N, C)`; weights[g]: :math:`(C', C)`; biases[g]: :math:`(C',)`; result: :math:`(\sum_g n_g, C')`

    Raises:
        ValueError: Not one weight, bias, start and size for each group, shapes other than above, or rows that x does not have.

    >>> import torch
    >>> x, weights = torch.ones(3, 2), [torch.ones(1, 2), torch.zeros(1, 2)]
    >>> grouped_linear(x, weights, [], [0, 2], [2, 1]).flatten().tolist()
    [2.0, 2.0, 0.0]
    """
    _check(x, weights, biases, starts, sizes)
    shape = (weights[0].size(0) if weights[0].dim() == 2 else "C'", x.size(1))
    _check_shapes(weights, shape, biases, shape[:1])
    arguments = {"x": x, "weights": list(weights), "biases": list(biases), "starts": list(starts), "sizes": list(sizes)}
    return _LINEAR.run(backend, x.device, arguments)


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
        backend: "auto", "joined" (one call for all groups) or "reference".

    Shape:
        - x: :math:`(N, C)`; weights[g], biases[g]: :math:`(C,)`; result: :math:`(\sum_g n_g, C)`

    Raises:
        ValueError: Not one weight, bias, start and size for each group, shapes other than above, or rows that x does not have.

    >>> import torch
    >>> x = torch.tensor([[1.0, -1.0], [3.0, 1.0]])
    >>> y = grouped_layer_norm(x, [torch.ones(2), torch.zeros(2)], [torch.zeros(2), torch.ones(2)], [0, 1], [1, 1])
    >>> y.round(decimals=2).tolist()
    [[1.0, -1.0], [1.0, 1.0]]
    """
    _check(x, weights, biases, starts, sizes)
    if not biases:
        raise ValueError(f"biases: expected {len(weights)}, one a group, got none")
    _check_shapes(weights, (x.size(1),), biases, (x.size(1),))
    arguments = {"x": x, "weights": list(weights), "biases": list(biases), "starts": list(starts), "sizes": list(sizes), "eps": eps}
    return _NORM.run(backend, x.device, arguments)


def _check(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int]) -> None:
    if x.dim() != 2:
        raise ValueError(f"x: expected (N, C), got {tuple(x.shape)}")
    counts = (len(weights), len(biases) or len(weights), len(starts), len(sizes))
    if len(set(counts)) != 1 or not weights:
        raise ValueError(f"weights, biases, starts, sizes: expected one of each for every group, got {counts}")
    if any(s < 0 or n < 0 or s + n > x.size(0) for s, n in zip(starts, sizes, strict=True)):
        raise ValueError(f"starts, sizes: expected rows of the {x.size(0)} of x, got {list(starts)}, {list(sizes)}")


def _check_shapes(weights: Sequence[Tensor], weight_shape: tuple[Any, ...], biases: Sequence[Tensor], bias_shape: tuple[Any, ...]) -> None:
    for name, tensors, shape in (("weights", weights, weight_shape), ("biases", biases, bias_shape)):
        for g, t in enumerate(tensors):
            if t.shape != shape:
                raise ValueError(f"{name}[{g}]: expected ({', '.join(map(str, shape))}{',' * (len(shape) == 1)}), got {tuple(t.shape)}")


def _refuse(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], **_: Any) -> str | None:
    if is_traced():
        return "a compiler joins the formula itself"
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        return "autocast chooses the precision of each map"
    dtype = x.dtype
    for t in (x, *weights, *biases):
        if t.dtype != dtype or type(t) not in _PLAIN_TYPES:
            return "the tensors are of different types"
    return None


def _linear_reference(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int]
) -> Tensor:
    of_group: Sequence[Tensor | None] = biases or [None] * len(weights)
    parts = [F.linear(x.narrow(0, s, n), w, b) for w, b, s, n in zip(weights, of_group, starts, sizes, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _norm_reference(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int], eps: float
) -> Tensor:
    groups = zip(weights, biases, starts, sizes, strict=True)
    if is_transformed():  # under torch.func, torch's own second derivative is wrong where x and the weights vary together
        parts = [torch.addcmul(b, F.layer_norm(x.narrow(0, s, n), w.shape, eps=eps), w) for w, b, s, n in groups]
    else:
        parts = [F.layer_norm(x.narrow(0, s, n), w.shape, w, b, eps) for w, b, s, n in groups]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _slices(starts: Sequence[int], sizes: Sequence[int]) -> list[tuple[slice, slice]]:
    """The rows of x, and those of the result, by group."""
    found, row = [], 0
    for s, n in zip(starts, sizes, strict=True):
        found.append((slice(s, s + n), slice(row, row + n)))
        row += n
    return found


def _linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    out = x.new_empty(sum(sizes), weights[0].size(0))
    for g, (rows, place) in enumerate(_slices(starts, sizes)):
        if biases:
            torch.addmm(biases[g], x[rows], weights[g].t(), out=out[place])
        else:
            torch.mm(x[rows], weights[g].t(), out=out[place])
    return out


def _linear_backward(
    grad: Tensor, x: Tensor, weights: Sequence[Tensor], bias: bool, starts: Sequence[int], sizes: Sequence[int]
) -> list[Tensor]:
    """Of x, of the weights, and of the biases."""
    grad = grad.contiguous()
    d_x, d_weights, d_biases = torch.zeros_like(x), [], []
    for g, (rows, place) in enumerate(_slices(starts, sizes)):
        d_x[rows].addmm_(grad[place], weights[g])
        d_weights.append(torch.mm(grad[place].t(), x[rows]))
        if bias:
            d_biases.append(grad[place].sum(0))
    return [d_x, *d_weights, *d_biases]


def _norm(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and what the backward pass normalises by, (N, 1) each."""
    normal, mean, rstd = torch.native_layer_norm(x, x.shape[1:], None, None, eps)
    out = x.new_empty(sum(sizes), x.size(1))
    for g, (rows, place) in enumerate(_slices(starts, sizes)):
        torch.addcmul(biases[g], normal[rows], weights[g], out=out[place])
    return out, mean, rstd


def _norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weights: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int]
) -> list[Tensor]:
    """Of x, of the weights, and of the biases."""
    normal, d_normal = (x - mean).mul_(rstd), torch.zeros_like(x)
    d_weights, d_biases = [], []
    for g, (rows, place) in enumerate(_slices(starts, sizes)):
        part = grad[place]
        d_normal[rows].addcmul_(part, weights[g])
        d_weights.append((part * normal[rows]).sum(0))
        d_biases.append(part.sum(0))
    d_x = torch.ops.aten.native_layer_norm_backward(d_normal, x, x.shape[1:], mean, rstd, None, None, [True, False, False])[0]
    return [d_x, *d_weights, *d_biases]


def _fake_linear(x: Tensor, weights: Sequence[Tensor], biases: Any, starts: Any, sizes: Sequence[int]) -> Tensor:
    return x.new_empty(sum(sizes), weights[0].size(0))


def _fake_norm(x: Tensor, weights: Any, biases: Any, starts: Any, sizes: Sequence[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(sum(sizes), x.size(1)), x.new_empty(x.size(0), 1), x.new_empty(x.size(0), 1)


def _fake_linear_backward(grad: Tensor, x: Tensor, weights: Sequence[Tensor], bias: bool, *_: Any) -> list[Tensor]:
    biases = [w.new_empty(w.size(0)) for w in weights] if bias else []
    return [torch.empty_like(x), *map(torch.empty_like, weights), *biases]


def _fake_norm_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weights: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(x), *map(torch.empty_like, weights), *map(torch.empty_like, weights)]


_GROUPS = "Tensor x, Tensor[] weights, Tensor[] biases, int[] starts, int[] sizes"
_linear_backward_operator = register(
    "grouped_linear_backward",
    "(Tensor grad, Tensor x, Tensor[] weights, bool bias, int[] starts, int[] sizes) -> Tensor[]",
    _linear_backward,
    _fake_linear_backward,
)
_linear_operator = register("grouped_linear", f"({_GROUPS}) -> Tensor", _linear, _fake_linear)
_norm_backward_operator = register(
    "grouped_layer_norm_backward",
    "(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor[] weights, int[] starts, int[] sizes) -> Tensor[]",
    _norm_backward,
    _fake_norm_backward,
)
_norm_operator = register("grouped_layer_norm", f"({_GROUPS}, float eps) -> (Tensor, Tensor, Tensor)", _norm, _fake_norm)


class _Linear(torch.autograd.Function):
    """Not `torch.library.register_autograd`: for lists of tensors that takes longer than the product of a thousand rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, starts: list[int], sizes: list[int], groups: int, *parameters: Tensor) -> Tensor:
        ctx.starts, ctx.sizes, ctx.groups = starts, sizes, groups
        ctx.save_for_backward(x, *parameters)
        return _linear_operator(x, parameters[:groups], parameters[groups:], starts, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *parameters = ctx.saved_tensors
        n, weights, biases = ctx.groups, parameters[: ctx.groups], parameters[ctx.groups :]
        if torch.is_grad_enabled():
            d_x, d_weights, d_biases, *_ = through_reference(_linear_reference, (x, weights, biases, ctx.starts, ctx.sizes), grads[0])
            return d_x, None, None, None, *d_weights, *d_biases
        d_x, *d = _linear_backward_operator(grads[0], x, weights, bool(biases), ctx.starts, ctx.sizes)
        return d_x, None, None, None, *d[:n], *d[n:]


class _Norm(torch.autograd.Function):
    """As `_Linear`."""

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
        if torch.is_grad_enabled():
            inputs = (x, weights, parameters[n:], ctx.starts, ctx.sizes, ctx.eps)
            d_x, d_weights, d_biases, *_ = through_reference(_norm_reference, inputs, grads[0])
            return d_x, None, None, None, None, *d_weights, *d_biases
        d_x, *d = _norm_backward_operator(grads[0], x, mean, rstd, weights, ctx.starts, ctx.sizes)
        return d_x, None, None, None, None, *d


def _run_linear(x: Tensor, weights: list[Tensor], biases: list[Tensor], starts: list[int], sizes: list[int]) -> Tensor:
    if not torch.is_grad_enabled():  # the operator would only cost: on few rows a third of the call
        return _linear(x, weights, biases, starts, sizes)
    return _Linear.apply(x, starts, sizes, len(weights), *weights, *biases)


def _run_norm(x: Tensor, weights: list[Tensor], biases: list[Tensor], starts: list[int], sizes: list[int], eps: float) -> Tensor:
    if not torch.is_grad_enabled():
        return _norm(x, weights, biases, starts, sizes, eps)[0]
    return _Norm.apply(x, starts, sizes, eps, len(weights), *weights, *biases)


def _accept(**_: Any) -> None:
    """For the backend that runs on anything."""


_LINEAR = Op(grouped_linear, {"joined": Backend(_run_linear, _refuse), "reference": Backend(_linear_reference, _accept)})
_NORM = Op(grouped_layer_norm, {"joined": Backend(_run_norm, _refuse), "reference": Backend(_norm_reference, _accept)})
