"""A linear map for each group of rows, in one call; on request with a layer normalisation before each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.backends import Backend, Op, accept, is_unwatched
from mea_graph.ops.eager import is_batched
from mea_graph.ops.grouped import batched, native, reference, triton
from mea_graph.ops.grouped.parts import check, check_shapes, refuse, slices, split
from mea_graph.ops.library import register, through_reference
from mea_graph.ops.native import library

__all__ = ["grouped_linear"]


def grouped_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    starts: Sequence[int],
    sizes: Sequence[int],
    scales: Sequence[Tensor] = (),
    shifts: Sequence[Tensor] = (),
    eps: float = 1e-5,
    steps_last: bool = False,
    backend: str = "auto",
    onto: Tensor | None = None,
) -> Tensor:
    r"""A linear map for each group of consecutive rows; the results stand one below the other.

    .. math:: y_g = x_{[s_g, s_g + n_g)} W_g^T + b_g

    Groups may share rows, and may leave some out. With `scales` and `shifts` each group has a layer normalisation before its map. Rows
    are then normalised once for all groups, and scale and shift become part of the map:
    :math:`(\hat x \odot a + c) W^T + b = \hat x (W \odot a)^T + (W c + b)`.

    Args:
        x: The rows.
        weights, biases: One of each for every group; the biases may be left out, as an empty list.
        starts, sizes: First row and number of rows of each group.
        scales, shifts, eps: Parameters of the normalisation, one of each for every group; without them nothing is normalised.
        steps_last: Whether the result is laid out with rows along the last dimension in memory, as attention on a CPU reads it; its shape
            and values are the same.
        backend: "auto", "triton" (kernels for a GPU and groups of equal size, for up to 256 channels), "batched" (batched products, on a
            device and for groups of equal size), "native" (C++ that a compiler on this
            machine builds at first use, on a CPU, for up to 256 channels), "joined" (one operator for all groups) or "reference".
        onto: What the result is added to, as a residual.

    Shape:
        - x: :math:`(N, C)`; weights[g]: :math:`(C', C)`; biases[g]: :math:`(C',)`; scales[g], shifts[g]: :math:`(C,)`
        - result, onto: :math:`(\sum_g n_g, C')`

    Raises:
        ValueError: If a group lacks its weight, bias, start or size, a shape is not as above, or x does not have the rows.

    >>> import torch
    >>> x, weights = torch.ones(3, 2), [torch.ones(1, 2), torch.zeros(1, 2)]
    >>> grouped_linear(x, weights, [], [0, 2], [2, 1]).flatten().tolist()
    [2.0, 2.0, 0.0]
    """
    if backend == "auto" and is_unwatched():
        out = native.linear_at_once(x, weights, biases, starts, sizes, scales, shifts, eps, steps_last, onto)
        if out is not None:
            return out
    check(x, weights, biases, starts, sizes)
    if len(scales) != len(shifts) or len(scales) not in (0, len(weights)):
        raise ValueError(f"scales, shifts: expected none or {len(weights)} of each, got {len(scales)} and {len(shifts)}")
    width = weights[0].size(0) if weights[0].dim() == 2 else "C'"
    check_shapes("weights", weights, width, x.size(1))
    check_shapes("biases", biases, width)
    check_shapes("scales", scales, x.size(1))
    check_shapes("shifts", shifts, x.size(1))
    if onto is not None and onto.shape != (sum(sizes), width):
        raise ValueError(f"onto: expected ({sum(sizes)}, {width}) as the result, got {tuple(onto.shape)}")
    arguments = {
        "x": x,
        "weights": list(weights),
        "biases": list(biases),
        "starts": list(starts),
        "sizes": list(sizes),
        "scales": list(scales),
        "shifts": list(shifts),
        "eps": eps,
        "steps_last": steps_last,
        "onto": onto,
    }
    return _LINEAR.run(backend, x.device, arguments)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, (C', N) with `steps_last`; and the mean and inverse deviation of the rows, (N, 1) each, or empty."""
    mean, rstd = x.new_empty(0), x.new_empty(0)
    if scales:
        x, mean, rstd = torch.native_layer_norm(x, x.shape[1:], None, None, eps)
    width, total = weights[0].size(0), sum(sizes)
    out = x.new_empty(width, total) if steps_last else x.new_empty(total, width)
    for g, (rows, place) in enumerate(slices(starts, sizes)):
        weight, bias = _map(g, weights, biases, scales, shifts)
        if steps_last:
            if bias is None:
                torch.mm(weight, x[rows].t(), out=out[:, place])
            else:
                torch.addmm(bias.unsqueeze(1), weight, x[rows].t(), out=out[:, place])
        elif bias is None:
            torch.mm(x[rows], weight.t(), out=out[place])
        else:
            torch.addmm(bias, x[rows], weight.t(), out=out[place])
    return out, mean, rstd


def _map(
    g: int, weights: Sequence[Tensor], biases: Sequence[Tensor], scales: Sequence[Tensor], shifts: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a group, with scale and shift of its normalisation as a part of them."""
    bias = biases[g] if biases else None
    if not scales:
        return weights[g], bias
    shift = torch.mv(weights[g], shifts[g]) if bias is None else torch.addmv(bias, weights[g], shifts[g])
    return weights[g] * scales[g], shift


def _linear_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    starts: Sequence[int],
    sizes: Sequence[int],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    eps: float,
    steps_last: bool,
) -> list[Tensor]:
    """The gradients of x, of the weights, of the biases, of the scales and of the shifts."""
    if not steps_last:
        grad = grad.contiguous()
    given = x
    if scales:
        x = torch.native_layer_norm(x, x.shape[1:], None, None, eps)[0]
    d_x = torch.zeros_like(x)
    d_weights: list[Tensor] = []
    d_biases: list[Tensor] = []
    d_scales: list[Tensor] = []
    d_shifts: list[Tensor] = []
    for g, (rows, place) in enumerate(slices(starts, sizes)):
        by_channel = grad[:, place] if steps_last else grad[place].t()  # (C', n)
        d_x[rows].addmm_(by_channel.t(), weights[g] * scales[g] if scales else weights[g])
        d_weight = torch.mm(by_channel, x[rows])
        if bias or scales:
            total = by_channel.sum(1)
        if bias:
            d_biases.append(total)
        if scales:
            d_scales.append((d_weight * weights[g]).sum(0))
            d_shifts.append(torch.mv(weights[g].t(), total))
            d_weight = torch.addr(d_weight.mul_(scales[g]), total, shifts[g])
        d_weights.append(d_weight)
    if scales:
        d_x = torch.ops.aten.native_layer_norm_backward(d_x, given, x.shape[1:], mean, rstd, None, None, [True, False, False])[0]
    return [d_x, *d_weights, *d_biases, *d_scales, *d_shifts]


def _fake_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Any,
    starts: Any,
    sizes: Sequence[int],
    scales: Any,
    shifts: Any,
    eps: float,
    steps_last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    width, total = weights[0].size(0), sum(sizes)
    mean, rstd = (x.new_empty(x.size(0), 1) if scales else x.new_empty(0) for _ in range(2))
    return x.new_empty(width, total) if steps_last else x.new_empty(total, width), mean, rstd


def _fake_linear_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    starts: Any,
    sizes: Any,
    scales: Any,
    shifts: Any,
    *_: Any,
) -> list[Tensor]:
    biases = [w.new_empty(w.size(0)) for w in weights] if bias else []
    return [torch.empty_like(x), *map(torch.empty_like, weights), *biases, *map(torch.empty_like, scales), *map(torch.empty_like, shifts)]


_GROUPS = "Tensor x, Tensor[] weights, Tensor[] biases, int[] starts, int[] sizes"
_NORMS = "Tensor[] scales, Tensor[] shifts, float eps, bool steps_last"
_linear_backward_operator = register(
    "grouped_linear_backward",
    f"(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor[] weights, bool bias, int[] starts, int[] sizes, {_NORMS}) -> Tensor[]",
    _linear_backward,
    _fake_linear_backward,
)
_linear_operator = register("grouped_linear", f"({_GROUPS}, {_NORMS}) -> (Tensor, Tensor, Tensor)", _linear, _fake_linear)


class _Linear(torch.autograd.Function):
    """Stands in for `torch.library.register_autograd`, which for lists of tensors takes longer than the product of a thousand rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, starts: list[int], sizes: list[int], counts: list[int], eps: float, steps_last: bool, *parameters: Tensor
    ) -> Tensor:
        ctx.starts, ctx.sizes, ctx.counts, ctx.eps, ctx.steps_last = starts, sizes, counts, eps, steps_last
        weights, biases, scales, shifts = split(parameters, counts)
        out, mean, rstd = _linear_operator(x, weights, biases, starts, sizes, scales, shifts, eps, steps_last)
        ctx.save_for_backward(x, mean, rstd, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, *parameters = ctx.saved_tensors
        weights, biases, scales, shifts = split(parameters, ctx.counts)
        if torch.is_grad_enabled() or is_batched(grads[0]):
            grad = grads[0].t() if ctx.steps_last else grads[0]
            inputs = (x, weights, biases, ctx.starts, ctx.sizes, scales, shifts, ctx.eps, False)
            d_x, d_weights, d_biases, _, _, d_scales, d_shifts, *_ = through_reference(reference.linear, inputs, grad)
            return d_x, *(None,) * 5, *d_weights, *d_biases, *d_scales, *d_shifts
        groups = (ctx.starts, ctx.sizes, scales, shifts, ctx.eps, ctx.steps_last)
        d_x, *d = _linear_backward_operator(grads[0], x, mean, rstd, weights, bool(biases), *groups)
        return d_x, *(None,) * 5, *d


def _run_linear(
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
    if not torch.is_grad_enabled():  # the operator would cost a third of the call on few rows
        out = _linear(x, weights, biases, starts, sizes, scales, shifts, eps, steps_last)[0]
    else:
        counts = [len(weights), len(biases), len(scales), len(shifts)]
        out = _Linear.apply(x, starts, sizes, counts, eps, steps_last, *weights, *biases, *scales, *shifts)
    out = out.t() if steps_last else out
    return out if onto is None else onto + out


_LINEAR = Op(
    grouped_linear,
    {
        "triton": Backend(triton.linear, triton.refuse, prefers="cuda"),
        "batched": Backend(batched.linear, batched.refuse, prefers="cuda"),
        "native": Backend(native.linear, native.refuse, hold=library.hold),
        "joined": Backend(_run_linear, refuse),
        "reference": Backend(reference.linear, accept),
    },
)
