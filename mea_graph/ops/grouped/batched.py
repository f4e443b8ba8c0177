"""The grouped ops on groups of equal size: batched products over stacked weights, with as few kernels for twelve groups as for two.

A GPU takes some microseconds to launch even a small kernel, and many small products would spend their time on launches. On a CPU a call
costs less than a copy of the weights, and one product a group is as fast.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mea_graph.ops.eager import is_traced
from mea_graph.ops.grouped.parts import PLAIN_TYPES


class Plan(NamedTuple):
    """The rows are `ranges` pieces of `rows` each, and `shared` groups, one after the other, read the same piece."""

    ranges: int
    shared: int
    rows: int


def plan_of(x: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Plan | None:
    """None where groups differ in size, or lie in another order."""
    rows, groups, total = sizes[0], len(sizes), x.size(0)
    if rows == 0 or total % rows:
        return None
    ranges = total // rows
    shared, rest = divmod(groups, ranges)
    if rest or [*sizes] != [rows] * groups or [*starts] != [rows * (g // shared) for g in range(groups)]:
        return None
    return Plan(ranges, shared, rows)


def refuse(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    starts: Sequence[int],
    sizes: Sequence[int],
    scales: Sequence[Tensor] = (),
    shifts: Sequence[Tensor] = (),
    **_: Any,
) -> str | None:
    if is_traced():
        return "a compiler joins the formula itself"
    dtype = x.dtype if autocast_dtype(x) is None else weights[0].dtype
    alike = type(x) in PLAIN_TYPES
    for t in (*weights, *biases, *scales, *shifts):  # a loop, not `all`, whose generator takes as long as what it asks
        alike = alike and t.dtype is dtype and type(t) in PLAIN_TYPES
    if not alike:
        return "the tensors are of different types"
    if plan_of(x, starts, sizes) is None:
        return "the groups differ in size, or do not read each piece of the rows equally often, one piece after the other"
    return None


def norm(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], starts: Sequence[int], sizes: Sequence[int], eps: float) -> Tensor:
    """See `grouped_layer_norm`."""
    plan = plan_of(x, starts, sizes)
    assert plan is not None
    normal = torch.nn.functional.layer_norm(x, x.shape[1:], eps=eps).view(plan.ranges, 1, plan.rows, -1)
    weight, bias = (t.view(plan.ranges, plan.shared, 1, -1) for t in _stacked(weights, biases))
    return _Affine.apply(bias, normal, weight).flatten(0, 2)


def linear(
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
) -> Tensor:
    """See `grouped_linear`. Ignores `steps_last`, a layout for attention on a CPU."""
    if scales:
        x = norm(x, scales, shifts, starts, sizes, eps)
        starts = [sizes[0] * g for g in range(len(sizes))]
    plan = plan_of(x, starts, sizes)
    assert plan is not None
    weight, *bias = _stacked(weights, biases) if biases else _stacked(weights)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weight = x.to(dtype), weight.to(dtype)
    x = x.view(plan.ranges, 1, plan.rows, -1).expand(-1, plan.shared, -1, -1).reshape(len(sizes), plan.rows, -1)
    shift = bias[0].unsqueeze(1) if bias else None
    if onto is not None and shift is not None and x.dtype == weight.dtype == onto.dtype:
        return _Product.apply(x, weight, onto.view(len(sizes), plan.rows, -1) + shift.to(onto.dtype)).flatten(0, 1)
    out = _Product.apply(x, weight, None)
    out = (out if shift is None else out + shift.to(out.dtype)).flatten(0, 1)
    return out if onto is None else onto + out


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if on else None


def _stacked(*kinds: Sequence[Tensor]) -> list[Tensor]:
    return list(_Stack.apply([len(kind) for kind in kinds], *(t for kind in kinds for t in kind)))


class _Stack(torch.autograd.Function):
    """Stacks each kind of weights to one tensor (G, ...), by one copy of them all; the backward pass copies nothing."""

    @staticmethod
    def forward(ctx: Any, counts: list[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        flat, found, first, row = torch.cat([t.reshape(-1) for t in tensors]), [], 0, 0
        for count in counts:
            size = count * tensors[first].numel()
            found.append(flat[row : row + size].view(count, *tensors[first].shape))
            first, row = first + count, row + size
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(g for grad in grads for g in grad.unbind())


class _Affine(torch.autograd.Function):
    """`torch.addcmul` of (R, J, 1, C), (R, 1, n, C) and (R, J, 1, C), whose own gradients take twice the products."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.addcmul(bias, x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        d_x = grads[0] * weight
        return grads[0].sum(2, True), d_x if weight.size(1) == 1 else d_x.sum(1, True), (grads[0] * x).sum(2, True)


class _Product(torch.autograd.Function):
    """(G, n, C) times the transposed (G, C', C), added to `onto` in its place if that is given.

    The gradient of the weights is laid out as they are, so that nothing copies it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, onto: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if onto is None:
            return torch.bmm(x, weight.mT)
        ctx.mark_dirty(onto)
        return onto.baddbmm_(x, weight.mT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        onto = grads[0] if ctx.needs_input_grad[2] else None
        return _Product.apply(grads[0], weight.mT, None), _Product.apply(grads[0].mT, x.mT, None), onto
