"""The grouped ops on NVIDIA GPUs, for groups of equal size: launches the Triton kernels and registers them as operators.

A call is one launch forward, with normalisation, bias and residual, and two backward. Triton itself is imported at the first call.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mea_graph.ops.eager import PLAIN_TYPES, is_batched, is_observed, is_traced
from mea_graph.ops.grouped import batched, reference
from mea_graph.ops.grouped.addresses import addresses, unpacked
from mea_graph.ops.grouped.batched import autocast_dtype
from mea_graph.ops.grouped.parts import split
from mea_graph.ops.interval import triton as gpu
from mea_graph.ops.launch import launch
from mea_graph.ops.library import register, through_reference
from mea_graph.ops.predictive.triton_tiles import ALL_REGISTERS

_WIDEST = 256  # of a map: a program holds all channels of a row that it normalises, and for wider ones torch's products are as fast
_BLOCK = 64  # of C, that a program has at once where rows are not normalised
_ROWS = _COLUMNS = 32  # of a tile: from 64 on, products in TF32 take instructions of Hopper that have failed there
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_STEP = {torch.float32: 16, torch.bfloat16: 32, torch.float16: 32}  # terms of a sum that are added at once: more of float32 would spill
_PROGRAMS = 264  # that a sum over rows is cut into, if it is long: two for each multiprocessor of an H200
_MOST_SPLITS, _LEAST_ROWS = 32, 128  # into which rows are cut, and of one split


def refuse(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    starts: Sequence[int],
    sizes: Sequence[int],
    scales: Sequence[Tensor] = (),
    shifts: Sequence[Tensor] = (),
    onto: Tensor | None = None,
    **_: Any,
) -> str | None:
    """Why the kernels cannot run on these tensors, or None."""
    tensors = {"x": x, "weights": weights[0]} | ({} if onto is None else {"onto": onto})
    reason = batched.refuse(x, weights, biases, starts, sizes, scales, shifts) or gpu.refuse_tensors(tensors)
    if reason is not None:
        return reason
    if type(onto) not in (*PLAIN_TYPES, type(None)):
        return "the residual is of another type"
    device = x.get_device()
    for t in (*weights, *biases, *scales, *shifts):
        if t.get_device() != device or not t.is_contiguous() or t.is_neg():
            return "a parameter is on another device, or not in one piece of memory"
    if not 0 < min(weights[0].shape) <= max(weights[0].shape) <= _WIDEST:
        return f"the kernels are for 1 to {_WIDEST} channels"
    if len(weights) > gpu.MOST_HEADS:
        return f"there are {len(weights)} groups, and a launch counts at most {gpu.MOST_HEADS}"
    if len(weights) * sizes[0] > gpu.MOST_ROWS:
        return f"there are {len(weights) * sizes[0]} rows, and the kernels count at most {gpu.MOST_ROWS}"
    return None


def _rows(x: Tensor) -> Tensor:
    """As the kernels read them: channels side by side, a tile's places in 32 bits, no sign still to be changed, which they do not see."""
    return (gpu.dense_rows(x) if x.stride(0) * _ROWS < 2**31 else x.contiguous()).resolve_neg()


class _Cut(NamedTuple):
    """How the kernels of a call are cut."""

    rows: int  # of a group
    shared: int  # groups that read the same rows
    ranges: int
    channels: int
    width: int

    @classmethod
    def of(cls, x: Tensor, weights: Sequence[Tensor], rows: int, shared: int) -> "_Cut":
        return cls(rows, shared, len(weights) // shared, x.size(1), weights[0].size(0))

    @property
    def tiles(self) -> int:
        return gpu.cdiv(self.rows, _ROWS)

    @property
    def groups(self) -> int:
        return self.ranges * self.shared

    def held(self, normalises: bool) -> int:
        """Channels of a row that a program has at once."""
        whole = gpu.power_of_2(self.channels)
        return whole if normalises else min(whole, _BLOCK)

    def splits(self) -> tuple[int, int]:
        """Into how many parts a sum over rows is cut, a power of two, and the rows of each."""
        programs = self.groups * gpu.cdiv(self.width, _COLUMNS) * gpu.cdiv(self.channels, _BLOCK)
        wanted = min(_MOST_SPLITS, self.rows // _LEAST_ROWS, _PROGRAMS // programs)
        splits = 1 << max(wanted, 1).bit_length() - 1
        return splits, gpu.cdiv(gpu.cdiv(self.rows, splits), _ROWS) * _ROWS


def _loop(held: int) -> dict[str, int]:
    return {"num_warps": 4 if held <= 128 else 8, "num_stages": 2, "maxnreg": ALL_REGISTERS}


def _linear(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    onto: Tensor | None,
    rows: int,
    shared: int,
    eps: float,
    compute: torch.dtype,
    learns: bool,
) -> tuple[Tensor, Tensor]:
    """The result; and mean and inverse deviation of the rows, if they are normalised and the backward pass will ask for them."""
    from mea_graph.ops.grouped.triton_kernels import grouped_linear_fwd_kernel

    out, moments = _fake_linear(x, weights, biases, scales, shifts, onto, rows, shared, eps, compute, learns)
    cut, x, normalises = _Cut.of(x, weights, rows, shared), _rows(x), bool(scales)
    held, added = cut.held(normalises), out if onto is None else onto.contiguous().resolve_neg()
    with gpu.on_device_of(x):
        launch(
            grouped_linear_fwd_kernel, (cut.tiles * gpu.cdiv(cut.width, _COLUMNS), cut.groups),
            x, x.stride(0), addresses((weights, biases, scales, shifts), x.device), weights[0],
            added, out, moments, cut.rows, cut.shared, cut.groups, cut.channels, cut.width, eps,
            HAS_NORM=normalises, HAS_BIAS=bool(biases), HAS_ONTO=onto is not None, SAVES=learns, COMPUTE=_NAMES[compute],
            CHANNELS=held, CHUNK=_STEP[compute], ROWS=_ROWS, COLUMNS=_COLUMNS, **_loop(held),
        )  # fmt: skip
    return out, moments


def _linear_backward(
    grad: Tensor,
    x: Tensor,
    moments: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    rows: int,
    shared: int,
    compute: torch.dtype,
) -> list[Tensor]:
    """The gradients of x; and of weights, biases, scales and shifts, stacked."""
    from mea_graph.ops.grouped import triton_kernels

    d_x, *stacked = _fake_linear_backward(grad, x, moments, weights, biases, scales, shifts)
    cut, x, grad, normalises = _Cut.of(x, weights, rows, shared), _rows(x), _rows(grad), bool(scales)
    table, like = addresses((weights, biases, scales, shifts), x.device), weights[0]
    held, block, (splits, per_split) = cut.held(normalises), cut.held(False), cut.splits()
    parts = x.new_empty(splits, cut.groups, cut.width * (cut.channels + 1), dtype=torch.float32)
    with gpu.on_device_of(x):
        blocks = gpu.cdiv(cut.channels, block), gpu.cdiv(cut.width, _COLUMNS)
        programs = cut.tiles * gpu.cdiv(cut.channels, held) * cut.ranges + blocks[0] * blocks[1] * cut.groups * splits
        launch(
            triton_kernels.grouped_linear_bwd_kernel, (programs,),
            grad, grad.stride(0), table, like, x, x.stride(0), moments, d_x, parts,
            cut.rows, cut.shared, cut.groups, cut.channels, cut.width, per_split,
            HAS_NORM=normalises, COMPUTE=_NAMES[compute], CHANNELS=held, BLOCK=block,
            STEP=_STEP[compute], ROWS=_ROWS, COLUMNS=_COLUMNS, **_loop(held),
        )  # fmt: skip
        none = d_weight = stacked[0]
        d_bias = stacked[1] if biases else none
        d_scale, d_shift = stacked[-2:] if normalises else (none, none)
        launch(
            triton_kernels.grouped_linear_bwd_sum_kernel, (blocks[0], cut.groups, 1 if normalises else blocks[1]),
            parts, table, like, d_weight, d_bias, d_scale, d_shift, cut.groups, cut.channels, cut.width,
            HAS_NORM=normalises, HAS_BIAS=bool(biases), SPLITS=splits, CHANNELS=block, COLUMNS=_COLUMNS, num_warps=4,
        )  # fmt: skip
    return [d_x, *stacked]


def _fake_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Any,
    scales: Sequence[Tensor],
    shifts: Any,
    onto: Tensor | None,
    rows: int,
    shared: int,
    eps: float,
    compute: torch.dtype,
    learns: bool,
) -> tuple[Tensor, Tensor]:
    dtype = compute if onto is None else torch.promote_types(compute, onto.dtype)
    moments = x.new_empty((x.size(0), 2) if learns and scales else 0, dtype=torch.float32)
    return x.new_empty(rows * len(weights), weights[0].size(0), dtype=dtype), moments


def _fake_linear_backward(
    grad: Tensor,
    x: Tensor,
    moments: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    *_: Any,
) -> list[Tensor]:
    return [x.new_empty(x.shape), *(kind[0].new_empty(len(kind), *kind[0].shape) for kind in (weights, biases, scales, shifts) if kind)]


_LISTS, _RANGES = "Tensor[] weights, Tensor[] biases, Tensor[] scales, Tensor[] shifts", "int rows, int shared"
_linear_operator = register(
    "grouped_linear_triton",
    f"(Tensor x, {_LISTS}, Tensor? onto, {_RANGES}, float eps, ScalarType compute, bool learns) -> (Tensor, Tensor)",
    _linear,
    _fake_linear,
)
_linear_backward_operator = register(
    "grouped_linear_triton_backward",
    f"(Tensor grad, Tensor x, Tensor moments, {_LISTS}, {_RANGES}, ScalarType compute) -> Tensor[]",
    _linear_backward,
    _fake_linear_backward,
)


class _Linear(torch.autograd.Function):
    """In place of `torch.library.register_autograd`, slower for lists of tensors than a launch. Compiled autograd traces `backward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, onto: Tensor | None, counts: list[int], numbers: tuple[Any, ...], *tensors: Tensor) -> Tensor:
        ctx.counts, ctx.numbers = counts, numbers
        run: Callable[..., Any] = _linear_operator if is_observed() else _linear
        out, moments = run(x, *split(tensors, counts), onto, *numbers, True)
        ctx.dtype = None if onto is None else onto.dtype
        ctx.save_for_backward(x, moments, *tensors)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, moments, *tensors = unpacked(ctx)
        rows, shared, _eps, compute = ctx.numbers
        grad, lists = grads[0], split(tensors, ctx.counts)
        d_onto = grad.to(ctx.dtype) if ctx.needs_input_grad[1] else None
        if not (ctx.needs_input_grad[0] or any(ctx.needs_input_grad[4:])):
            return None, d_onto, *(None,) * (2 + len(tensors))
        if torch.is_grad_enabled() or is_batched(grads[0]):
            d = _again(grad, x, lists, ctx.numbers)
            return d[0], d_onto, None, None, *d[1:]
        run: Callable[..., Any] = _linear_backward_operator if is_traced() or is_observed() else _linear_backward
        d_x, *stacked = run(grad, x, moments, *lists, rows, shared, compute)
        return d_x, d_onto, None, None, *(d for kind in stacked for d in kind.unbind())


def _again(grad: Tensor, x: Tensor, lists: Sequence[Sequence[Tensor]], numbers: tuple[Any, ...]) -> list[Any]:
    """The gradients by the reference, for a second derivative."""
    (rows, shared, eps, compute), (weights, biases, scales, shifts) = numbers, lists
    starts, sizes = _ranges(rows, shared, len(weights))
    with torch.autocast(x.device.type, compute, enabled=compute != x.dtype or compute != weights[0].dtype):
        inputs = (x, weights, biases, starts, sizes, scales, shifts, eps, False)
        d_x, d_weights, d_biases, _, _, d_scales, d_shifts, *_ = through_reference(reference.linear, inputs, grad.to(compute))
    return [d_x, *d_weights, *d_biases, *d_scales, *d_shifts]


def _pieces(x: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> tuple[int, int]:
    plan = batched.plan_of(x, starts, sizes)
    assert plan is not None
    return plan.rows, plan.shared


def _ranges(rows: int, shared: int, groups: int) -> tuple[list[int], list[int]]:
    return [rows * (g // shared) for g in range(groups)], [rows] * groups


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
    """See `grouped_linear`. Ignores `steps_last`, a layout for attention on a CPU."""
    numbers = *_pieces(x, starts, sizes), eps, autocast_dtype(x) or weights[0].dtype
    if torch.is_grad_enabled():
        counts = [len(weights), len(biases), len(scales), len(shifts)]
        return _Linear.apply(x, onto, counts, numbers, *weights, *biases, *scales, *shifts)
    run: Callable[..., Any] = _linear_operator if is_observed() else _linear
    return run(x, weights, biases, scales, shifts, onto, *numbers, False)[0]


def _norm(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    rows: int,
    shared: int,
    eps: float,
    dtype: torch.dtype,
    learns: bool,
) -> tuple[Tensor, Tensor]:
    """The result, and mean and inverse deviation of the rows, if the backward pass will ask for them."""
    from mea_graph.ops.grouped.triton_kernels import grouped_layer_norm_fwd_kernel

    out, moments = _fake_norm(x, weights, biases, rows, shared, eps, dtype, learns)
    cut, x = _Cut.of(x, weights, rows, shared), _rows(x)
    held = cut.held(True)
    with gpu.on_device_of(x):
        launch(
            grouped_layer_norm_fwd_kernel, (cut.tiles, cut.ranges),
            x, x.stride(0), addresses((weights, biases), x.device), weights[0], out, moments,
            cut.rows, cut.shared, cut.groups, cut.channels, eps,
            SAVES=learns, CHANNELS=held, ROWS=_ROWS, **_loop(held),
        )  # fmt: skip
    return out, moments


def _norm_backward(
    grad: Tensor,
    x: Tensor,
    moments: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    rows: int,
    shared: int,
) -> list[Tensor]:
    """The gradients of x; and of weights and biases, stacked: (2, G, C)."""
    from mea_graph.ops.grouped.triton_kernels import grouped_layer_norm_bwd_kernel

    cut, d_x = _Cut.of(x, weights, rows, shared), x.new_empty(x.shape)
    x, grad, held = _rows(x), _rows(grad), cut.held(True)
    parts = x.new_empty(cut.tiles, 2, cut.groups, cut.channels, dtype=torch.float32)
    with gpu.on_device_of(x):
        launch(
            grouped_layer_norm_bwd_kernel, (cut.tiles, cut.ranges),
            grad, grad.stride(0), addresses((weights, biases), x.device), weights[0], x, x.stride(0), moments, d_x, parts,
            cut.rows, cut.shared, cut.groups, cut.channels,
            CHANNELS=held, ROWS=_ROWS, **_loop(held),
        )  # fmt: skip
    return [d_x, parts.sum(0, dtype=torch.float32).to(weights[0].dtype)]


def _fake_norm(
    x: Tensor, weights: Sequence[Tensor], biases: Any, rows: int, shared: int, eps: float, dtype: torch.dtype, learns: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(rows * len(weights), x.size(1), dtype=dtype), x.new_empty((x.size(0), 2) if learns else 0, dtype=torch.float32)


def _fake_norm_backward(grad: Tensor, x: Tensor, moments: Tensor, weights: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [x.new_empty(x.shape), weights[0].new_empty(2, len(weights), x.size(1))]


_NORM_LISTS = f"Tensor[] weights, Tensor[] biases, {_RANGES}"
_norm_operator = register(
    "grouped_layer_norm_triton",
    f"(Tensor x, {_NORM_LISTS}, float eps, ScalarType dtype, bool learns) -> (Tensor, Tensor)",
    _norm,
    _fake_norm,
)
_norm_backward_operator = register(
    "grouped_layer_norm_triton_backward",
    f"(Tensor grad, Tensor x, Tensor moments, {_NORM_LISTS}) -> Tensor[]",
    _norm_backward,
    _fake_norm_backward,
)


class _Norm(torch.autograd.Function):
    """As `_Linear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, numbers: tuple[Any, ...], *tensors: Tensor) -> Tensor:
        ctx.numbers, groups = numbers, len(tensors) // 2
        run: Callable[..., Any] = _norm_operator if is_observed() else _norm
        out, moments = run(x, tensors[:groups], tensors[groups:], *numbers, True)
        ctx.save_for_backward(x, moments, *tensors)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, moments, *tensors = unpacked(ctx)
        rows, shared, eps, dtype = ctx.numbers
        groups = len(tensors) // 2
        if torch.is_grad_enabled() or is_batched(grads[0]):
            x, *tensors = (t.to(dtype) for t in (x, *tensors))  # torch's own asks for one dtype; autograd converts the gradients back
            inputs = (x, tensors[:groups], tensors[groups:], *_ranges(rows, shared, groups), eps)
            d_x, d_weights, d_biases, *_ = through_reference(reference.norm, inputs, grads[0])
            return d_x, None, *d_weights, *d_biases
        run: Callable[..., Any] = _norm_backward_operator if is_traced() or is_observed() else _norm_backward
        d_x, stacked = run(grads[0], x, moments, tensors[:groups], tensors[groups:], rows, shared)
        return d_x, None, *(d for kind in stacked for d in kind.unbind())


def norm(x: Tensor, weights: list[Tensor], biases: list[Tensor], starts: list[int], sizes: list[int], eps: float) -> Tensor:
    """See `grouped_layer_norm`. Under autocast the result is float32, as that of `torch.nn.LayerNorm`."""
    dtype = x.dtype if autocast_dtype(x) is None else torch.promote_types(x.dtype, torch.float32)
    numbers = *_pieces(x, starts, sizes), eps, dtype
    if torch.is_grad_enabled():
        return _Norm.apply(x, numbers, *weights, *biases)
    return (_norm_operator if is_observed() else _norm)(x, weights, biases, *numbers, False)[0]
