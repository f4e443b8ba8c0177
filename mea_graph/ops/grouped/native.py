"""The grouped ops in compiled C++: one call for all groups, forward and backward, and no operator of torch for each of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.eager import PLAIN_TYPES, is_batched, is_observed, is_traced
from mea_graph.ops.grouped import parts, reference
from mea_graph.ops.grouped.addresses import unpacked
from mea_graph.ops.library import register, through_reference
from mea_graph.ops.native import library

WIDEST = 256  # of a map; for wider ones torch's own products are as fast or faster
_LISTS = "Tensor[] weights, Tensor[] biases, int[] starts, int[] sizes, Tensor[] scales, Tensor[] shifts, float eps, bool steps_last"


def refuse(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], scales: Sequence[Tensor] = (), shifts: Sequence[Tensor] = (), **_: Any
) -> str | None:
    """Why the loops cannot run on these tensors, or None."""
    if not x.is_cpu:
        return f"the tensors are on {x.device.type}"
    dtype, parameters = x.dtype, [*weights, *biases, *scales, *shifts]
    for t in parameters:  # a loop, not `all`, whose generator takes as long as what it asks
        if t.dtype != dtype or type(t) not in PLAIN_TYPES or not t.is_cpu or not t.is_contiguous():
            return parts.refuse(x, parameters, ()) or "a parameter is not in one piece of memory, or not on a CPU"
    if type(x) not in PLAIN_TYPES or is_traced() or torch.is_autocast_enabled("cpu"):
        return parts.refuse(x, parameters, ())
    if x.is_neg():
        return "the rows are a view of the negative of others"
    if dtype not in (torch.float32, torch.float64):
        return f"it computes float32 and float64, and these are {dtype}"
    shape = weights[0].shape
    if not 0 < min(shape) <= max(shape) <= WIDEST:
        return f"it is for 1 to {WIDEST} channels, since plain products are as fast for more"
    return library.refuse()


def linear_at_once(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    starts: Sequence[int],
    sizes: Sequence[int],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    eps: float,
    steps_last: bool,
    onto: Tensor | None,
    normal: Tensor | None = None,
) -> Tensor | None:
    """What `linear` returns where nobody watches and everything is as the loops need it, else None: each tensor is asked once.

    On few rows the checks of the op, the choice of a backend and the latter's own checks take longer than the product. `normal`, (sum of
    sizes, C) and without gaps, is for the normalised rows.
    """
    shape, groups = weights[0].shape if weights else (), len(weights)
    if len(shape) != 2 or len(biases) not in (0, groups) or len(scales) not in (0, groups) or len(scales) != len(shifts):
        return None
    (wide, width), dtype = shape, x.dtype
    if not 0 < wide <= WIDEST or not _are_rows(x, width, starts, sizes, groups):
        return None
    if not (fit(weights, shape, dtype) and fit(biases, (wide,), dtype) and fit(scales, (width,), dtype) and fit(shifts, (width,), dtype)):
        return None
    if onto is not None and (steps_last or not fit([onto], (sum(sizes), wide), dtype)):
        return None
    out = _linear(x, weights, biases, starts, sizes, scales, shifts, eps, steps_last, onto, normal)
    return out.t() if steps_last else out


def norm_at_once(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int], eps: float
) -> Tensor | None:
    """As `linear_at_once`."""
    groups, shape, dtype = len(weights), x.shape[1:], x.dtype
    if not groups or len(biases) != groups or not _are_rows(x, x.size(-1), starts, sizes, groups):
        return None
    return _norm(x, weights, biases, starts, sizes, eps) if fit(weights, shape, dtype) and fit(biases, shape, dtype) else None


def _are_rows(x: Tensor, width: int, starts: Sequence[int], sizes: Sequence[int], groups: int) -> bool:
    """Whether the loops can read these rows of x, and are there."""
    if x.dim() != 2 or x.size(1) != width or not 0 < width <= WIDEST or len(starts) != groups or len(sizes) != groups:
        return False
    if not x.is_cpu or type(x) not in PLAIN_TYPES or x.dtype not in (torch.float32, torch.float64) or x.is_neg():
        return False
    rows = x.size(0)
    for s, n in zip(starts, sizes, strict=True):
        if s < 0 or n < 0 or s + n > rows:
            return False
    return not library.is_switched_off() and library.refuse() is None


def fit(tensors: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> bool:
    for t in tensors:  # a loop, not `all`, whose generator takes as long as what it asks
        if t.shape != shape or t.dtype is not dtype or type(t) not in PLAIN_TYPES or not t.is_cpu or not t.is_contiguous():
            return False
    return True


def _fields(
    x: Tensor, y: Tensor, strides: Sequence[int], others: tuple[Tensor | None, Tensor | None, Tensor | None], shape: Sequence[int]
) -> list[int]:
    """What a call begins with.

    `strides` are those of the rows and of the channels of y; `others` what the result is added to, the gradient of x and where normalised
    rows go; `shape` is (C, C'), groups and normalised.
    """
    outputs = [0 if t is None else t.data_ptr() for t in others]
    return [x.data_ptr(), x.stride(0), y.data_ptr(), *strides, *outputs, x.size(0), *shape, torch.get_num_threads()]


def addresses(tensors: Sequence[Tensor], groups: int) -> list[int]:
    return [*map(Tensor.data_ptr, tensors)] if tensors else [0] * groups


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _linear(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    starts: Sequence[int],
    sizes: Sequence[int],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    eps: float,
    steps_last: bool,
    onto: Tensor | None,
    normal: Tensor | None = None,
) -> Tensor:
    """The result, (C', N) with `steps_last`; `onto` is then None, and else without gaps. Writes the normalised rows to `normal`."""
    x, groups, (wide, width), total = _rows(x), len(weights), weights[0].shape, sum(sizes)
    out = torch.empty((wide, total) if steps_last else (total, wide), dtype=x.dtype, device="cpu")
    fields = _fields(x, out, (1, total) if steps_last else (wide, 1), (onto, None, normal), (width, wide, groups, bool(scales)))
    nothing = [0] * groups
    lists = [addresses(t, groups) for t in (weights, biases, scales, shifts)]
    for group in zip(*lists, starts, sizes, nothing, nothing, nothing, nothing, strict=True):
        fields += group
    library.call_addresses("grouped_linear_forward", x.dtype, fields, eps)
    return out


def _linear_backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    starts: Sequence[int],
    sizes: Sequence[int],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    eps: float,
    steps_last: bool,
) -> list[Tensor]:
    """The gradients of x, of the weights, of the biases, of the scales and of the shifts."""
    x, groups, (wide, width) = _rows(x), len(weights), weights[0].shape
    grad = grad if 1 in grad.stride() else grad.contiguous()
    strides = grad.stride()[::-1] if steps_last else grad.stride()
    d_x = x.new_empty(x.shape)
    gradients = [[torch.empty_like(t) for t in tensors] for tensors in (weights, biases, scales, shifts)]
    fields = _fields(x, grad, strides, (None, d_x, None), (width, wide, groups, bool(scales)))
    lists = (addresses(t, groups) for t in (weights, biases, scales, shifts))
    for group in zip(*lists, starts, sizes, *(addresses(t, groups) for t in gradients), strict=True):
        fields += group
    library.call_addresses("grouped_linear_backward", x.dtype, fields, eps)
    return [d_x, *(t for tensors in gradients for t in tensors)]


def _fake_linear(x: Tensor, weights: Sequence[Tensor], biases: Any, starts: Any, sizes: Sequence[int], *rest: Any) -> Tensor:
    width, total, steps_last = weights[0].size(0), sum(sizes), rest[3]
    return x.new_empty((width, total) if steps_last else (total, width))


def _fake_linear_backward(
    grad: Tensor, x: Tensor, weights: Sequence[Tensor], biases: Any, starts: Any, sizes: Any, scales: Any, shifts: Any, *_: Any
) -> list[Tensor]:
    return [x.new_empty(x.shape), *map(torch.empty_like, (*weights, *biases, *scales, *shifts))]


_linear_operator = register("grouped_linear_native", f"(Tensor x, {_LISTS}, Tensor? onto) -> Tensor", _linear, _fake_linear)
_linear_backward_operator = register(
    "grouped_linear_native_backward", f"(Tensor grad, Tensor x, {_LISTS}) -> Tensor[]", _linear_backward, _fake_linear_backward
)


class _Linear(torch.autograd.Function):
    """Stands in for `torch.library.register_autograd`, which for lists of tensors takes longer than the product of a thousand rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, onto: Tensor | None, counts: list[int], numbers: tuple[Any, ...], *tensors: Tensor) -> Tensor:
        ctx.counts, ctx.numbers = counts, numbers
        ctx.save_for_backward(x, *tensors)
        arguments = *_arguments(counts, numbers, tensors), onto
        return (_linear_operator if is_observed() else _linear)(x, *arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *tensors = unpacked(ctx)
        arguments = _arguments(ctx.counts, ctx.numbers, tensors)
        d_onto = grads[0] if ctx.needs_input_grad[1] else None
        if torch.is_grad_enabled() or is_batched(grads[0]):
            *lists, eps, steps_last = arguments
            grad = grads[0].t() if steps_last else grads[0]
            d_x, d_weights, d_biases, _, _, d_scales, d_shifts, *_ = through_reference(reference.linear, (x, *lists, eps, False), grad)
            return d_x, d_onto, None, None, *d_weights, *d_biases, *d_scales, *d_shifts
        d_x, *d = (_linear_backward_operator if is_observed() else _linear_backward)(grads[0], x, *arguments)
        return d_x, d_onto, None, None, *d


def _arguments(counts: Sequence[int], numbers: tuple[Any, ...], tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """What the operators take after the rows; `numbers` are starts, sizes, eps and `steps_last`."""
    weights, biases, scales, shifts = parts.split(tensors, counts)
    starts, sizes, eps, steps_last = numbers
    return weights, biases, starts, sizes, scales, shifts, eps, steps_last


def linear(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    starts: list[int],
    sizes: list[int],
    scales: list[Tensor],
    shifts: list[Tensor],
    eps: float,
    steps_last: bool,
    onto: Tensor | None,
) -> Tensor:
    """See `grouped_linear`."""
    inside = onto if onto is not None and not steps_last and onto.dtype == x.dtype and onto.is_contiguous() else None
    if torch.is_grad_enabled():
        counts, numbers = [len(weights), len(biases), len(scales), len(shifts)], (starts, sizes, eps, steps_last)
        out = _Linear.apply(x, inside, counts, numbers, *weights, *biases, *scales, *shifts)
    else:
        run = _linear_operator if is_observed() else _linear
        out = run(x, weights, biases, starts, sizes, scales, shifts, eps, steps_last, inside)
    out = out.t() if steps_last else out
    return out if onto is inside else onto + out


def _norm(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int], eps: float
) -> Tensor:
    x, width = _rows(x), x.size(1)
    out = torch.empty((sum(sizes), width), dtype=x.dtype, device="cpu")
    fields = _fields(x, out, (width, 1), (None, None, None), (width, width, len(weights), True))
    for scale, shift, start, size in zip(weights, biases, starts, sizes, strict=True):
        fields += (0, 0, scale.data_ptr(), shift.data_ptr(), start, size, 0, 0, 0, 0)
    library.call_addresses("grouped_norm_forward", x.dtype, fields, eps)
    return out


def _norm_backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    starts: Sequence[int],
    sizes: Sequence[int],
    eps: float,
) -> list[Tensor]:
    """The gradients of x, of the weights, and of the biases."""
    x, grad, width = _rows(x), _rows(grad), x.size(1)
    d_x, d_weights, d_biases = x.new_empty(x.shape), [*map(torch.empty_like, weights)], [*map(torch.empty_like, biases)]
    fields = _fields(x, grad, grad.stride(), (None, d_x, None), (width, width, len(weights), True))
    for scale, start, size, d_scale, d_shift in zip(weights, starts, sizes, d_weights, d_biases, strict=True):
        fields += (0, 0, scale.data_ptr(), 0, start, size, 0, 0, d_scale.data_ptr(), d_shift.data_ptr())
    library.call_addresses("grouped_norm_backward", x.dtype, fields, eps)
    return [d_x, *d_weights, *d_biases]


def _fake_norm(x: Tensor, weights: Any, biases: Any, starts: Any, sizes: Sequence[int], eps: float) -> Tensor:
    return x.new_empty(sum(sizes), x.size(1))


def _fake_norm_backward(grad: Tensor, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [x.new_empty(x.shape), *map(torch.empty_like, (*weights, *biases))]


_NORM_LISTS = "Tensor x, Tensor[] weights, Tensor[] biases, int[] starts, int[] sizes, float eps"
_norm_operator = register("grouped_layer_norm_native", f"({_NORM_LISTS}) -> Tensor", _norm, _fake_norm)
_norm_backward_operator = register(
    "grouped_layer_norm_native_backward", f"(Tensor grad, {_NORM_LISTS}) -> Tensor[]", _norm_backward, _fake_norm_backward
)


class _Norm(torch.autograd.Function):
    """As `_Linear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, starts: list[int], sizes: list[int], eps: float, *tensors: Tensor) -> Tensor:
        ctx.numbers = starts, sizes, eps
        ctx.save_for_backward(x, *tensors)
        groups = len(starts)
        return (_norm_operator if is_observed() else _norm)(x, tensors[:groups], tensors[groups:], starts, sizes, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *tensors = unpacked(ctx)
        groups = len(ctx.numbers[0])
        inputs = (x, tensors[:groups], tensors[groups:], *ctx.numbers)
        if torch.is_grad_enabled() or is_batched(grads[0]):
            d_x, d_weights, d_biases, *_ = through_reference(reference.norm, inputs, grads[0])
            return d_x, None, None, None, *d_weights, *d_biases
        d_x, *d = (_norm_backward_operator if is_observed() else _norm_backward)(grads[0], *inputs)
        return d_x, None, None, None, *d


def norm(x: Tensor, weights: list[Tensor], biases: list[Tensor], starts: list[int], sizes: list[int], eps: float) -> Tensor:
    """See `grouped_layer_norm`."""
    if torch.is_grad_enabled():
        return _Norm.apply(x, starts, sizes, eps, *weights, *biases)
    return (_norm_operator if is_observed() else _norm)(x, weights, biases, starts, sizes, eps)
