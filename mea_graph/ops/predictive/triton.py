"""Predictive attention on NVIDIA GPUs: launches the Triton kernels and registers them as operators.

Memory beyond the inputs is O(B K T (D + 3 K D)); no map is stored. A sample costs what its true length costs. The host knows no length but
T, the longest. Triton itself is imported at the first call.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.interval import triton as gpu
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.launch import launch
from mea_graph.ops.library import register, through_reference
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.predictive import padded, triton_tiles
from mea_graph.ops.predictive.triton_tiles import ALL_REGISTERS, FOLD_HEADS, HALF_WIDTH, Tiles

_WIDEST_FOLDED = 256  # columns that a tile of folded queries may have
_MOST_STEPS = 2**22  # of a sample: addresses within its folded rows are int32
_BLOCK = 128  # copies are padded to multiples of it, and every tile divides it
_UNFOLD_ROWS = 16
_CHANNELS = 32  # of a warp that folds or unfolds: a thread has 32 or 16 numbers of a tile, over which the cost of addresses is spread
_GROUPS = 4  # the loop over queries takes the heads in so many groups: whatever the batch, so that no sum is cut by its company


def refuse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor | None,
    prior_key: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mu: float,
    pointers: Pointers,
    edges: IntervalEdges | Tensor | None,
) -> str | None:
    """Why these kernels cannot run on these tensors, or None."""
    if prior_query is None or prior_key is None or weight is None:
        return "there is no prior: plain attention does not use this kernel"
    if isinstance(edges, Tensor):
        return "the edges are a list"
    if edges is not None and not edges.is_complete:
        return "the edges are a window, and these kernels hear the whole sample"
    tensors = {"query": query, "key": key, "value": value, "prior_query": prior_query, "prior_key": prior_key, "weight": weight}
    reason = gpu.refuse_tensors(tensors if bias is None else tensors | {"bias": bias}) or gpu.refuse_sizes(query, key, value)
    if reason is not None:
        return reason
    heads, width = prior_query.shape[1:]
    folded = 3 * heads * width
    if folded > _WIDEST_FOLDED:
        return f"the prior's {heads} heads of {width} channels fold into 3 K D = {folded}, and the kernels hold at most {_WIDEST_FOLDED}"
    if width == 0:
        return "the prior's heads have no channels"
    return None


class Call:
    """What forward and backward share: sizes, where the rows are, and the aligned copies that the loops read."""

    def __init__(self, tensors: tuple[Tensor, ...], bias: Tensor | None, start: Tensor, length: Tensor, steps: int, mu: float) -> None:
        self.query, self.key, self.value, self.prior_query, self.prior_key = map(gpu.dense_rows, tensors[:5])
        self.weight, self.mu = tensors[5].contiguous(), float(mu)
        self.has_bias = bias is not None
        self.bias = self.weight if bias is None else bias.contiguous()  # never read without a bias
        self.start, self.length, self.batch = start.contiguous(), length.contiguous(), start.size(0)
        self.heads, self.width = self.query.shape[1:]
        self.per_set = self.batch // _sets(self.weight)
        self.value_width, self.prior_width = self.value.size(2), self.prior_query.size(2)
        self.scale = math.log2(math.e) / math.sqrt(self.width)
        self.shift = math.log2(max(1 - self.mu, 1e-30) * math.log2(math.e))  # mu = 1: small enough to vanish, and finite
        self.prior_scale = 1 / math.sqrt(self.prior_width)
        self.steps_padded = pad(steps)
        dtypes = {t.dtype for t in tensors[:5]}
        self.dtype = self.query.dtype if len(dtypes) == 1 else torch.float32
        # One width for queries and values: each pair of widths would be a form of the loops, with tiles of its own.
        width = gpu.power_of_2(max(self.width, self.value_width))
        # Channels for what saves the loops work (see triton_fold.py). float16 cannot hold what goes there.
        room = width - max(self.width + 1, self.value_width)
        self.exact, self.spare = self.dtype == torch.float32, room >= 2 and self.dtype != torch.float16
        folded = gpu.power_of_2(3 * self.heads * self.prior_width)
        self.halves = triton_tiles.halves(self.dtype, max(self.width, self.value_width), folded)
        if not self.halves:  # at least as wide as the prior of one such head: the loops are cut for these sizes, and in others they spill
            folded = max(folded, 2 * width)
        self.fold_warps, self.fold_rows = warps(max(folded, width)), triton_tiles.fold_rows(self.dtype, width, folded)
        self.fold_grid = (self.batch * (gpu.cdiv(self.heads, FOLD_HEADS) + 1) * (self.steps_padded // self.fold_rows),)
        width = HALF_WIDTH if self.halves else width
        self.tiles = {"WIDTH": width, "FOLDED": folded}

    def copies(self, inner: Tensor | None = None, out: Tensor | None = None, grad: Tensor | None = None) -> dict[str, Tensor]:
        """Query, key, value, the folded query and key (and the result's gradient): aligned, zero where no step exists."""
        from mea_graph.ops.predictive.triton_fold import predictive_attention_fold_kernel

        copies = {
            "query_copy": self.empty("WIDTH"),
            "key_copy": self.empty("WIDTH"),
            "value_copy": self.empty("WIDTH"),
            "folded_query": self.empty("FOLDED"),
            "folded_key": self.empty("FOLDED", per_head=False),
            "grad_copy": self.empty("WIDTH") if grad is not None else self.query,
            "delta": self.rows() if grad is not None else self.query,
        }
        backward = out is not None and grad is not None
        norms = self.query.new_empty(0 if backward else 4, self.batch, self.heads, self.steps_padded // self.fold_rows, dtype=torch.float32)
        grad = gpu.dense_rows(self.value if grad is None else grad)
        sources = [self.query, self.key, self.value, self.prior_query, self.prior_key]
        strided = [a for t in sources for a in (t, *t.stride()[:2])]
        launch(
            predictive_attention_fold_kernel, self.fold_grid,
            *strided, self.weight, self.bias, self.start, self.length,
            norms if inner is None else inner, self.value if out is None else out, grad, *grad.stride()[:2],
            *copies.values(), norms, self.steps_padded, self.width, self.value_width, self.per_set, self.scale, self.prior_scale,
            HEADS=self.heads, PRIOR_WIDTH=self.prior_width, BACKWARD=backward, HAS_BIAS=self.has_bias, SPARE=self.spare,
            **self.tiles, TOGETHER=FOLD_HEADS, ROWS=self.fold_rows, BLOCK=_BLOCK,
            num_warps=self.fold_warps, maxnreg=ALL_REGISTERS,
        )  # fmt: skip
        return copies if backward else copies | {"norms": norms}

    def loop(self, name: str) -> tuple[Tiles, dict[str, Any]]:
        """How a loop is cut, and its compile-time arguments."""
        tiles = triton_tiles.cut(gpu.capability(self.query), name, self.dtype, self.tiles["WIDTH"], self.tiles["FOLDED"], self.spare)
        sizes = {"ROWS": tiles.rows, "COLUMNS": tiles.columns}
        options = {"num_warps": tiles.warps, "num_stages": tiles.stages} | ({"maxnreg": tiles.registers} if tiles.registers else {})
        if self.halves:
            return tiles, self.tiles | sizes | options
        return tiles, {"EXACT": self.exact, "CHUNK": tiles.chunk} | self.tiles | sizes | options

    def empty(self, width: str, per_head: bool = True) -> Tensor:
        heads = self.heads if per_head else 1
        return self.query.new_empty(self.batch, heads, self.steps_padded, self.tiles[width], dtype=self.dtype)

    def rows(self) -> Tensor:
        return self.query.new_empty(self.batch, self.heads, self.steps_padded, dtype=torch.float32)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    start: Tensor,
    length: Tensor,
    steps: int,
    packed: bool,
    mu: float,
) -> tuple[Tensor, Tensor]:
    nothing = query.size(0) == 0 or steps == 0
    out, statistics = gpu.rows_like(value, packed and not nothing), _statistics(query, start, steps)
    if nothing:
        return out, statistics.zero_()
    from mea_graph.ops.predictive.triton_kernels import predictive_attention_fwd_kernel

    with gpu.on_device_of(query):
        call = Call((query, key, value, prior_query, prior_key, weight), bias, start, length, steps, mu)
        if call.halves:
            from mea_graph.ops.predictive import triton_halves_call

            triton_halves_call.forward(call, out, statistics[0], statistics[1])
            return out, statistics
        *copies, _, _, norms = call.copies().values()
        tiles, constants = call.loop("forward")
        launch(
            predictive_attention_fwd_kernel, (call.batch * call.heads * (call.steps_padded // tiles.rows),),
            *copies, norms, call.start, call.length, out, statistics[0], statistics[1],
            call.heads, call.steps_padded, call.value_width, call.scale, call.mu, call.shift,
            SPARE=call.spare, NORM_ROWS=call.fold_rows, **constants,
        )  # fmt: skip
    return out, statistics


def _backward(grad: Tensor, out: Tensor, statistics: Tensor, *given: Any) -> tuple[Tensor, ...]:
    *tensors, bias, start, length, steps, packed, mu = given
    query, weight = tensors[0], tensors[5]
    if query.size(0) == 0 or steps == 0:
        return tuple(g.zero_() for g in _fake_backward(grad, out, statistics, *given))
    d_query, d_key, d_value, d_prior_query, d_prior_key = (gpu.rows_like(t, packed) for t in tensors[:5])
    from mea_graph.ops.predictive import triton_fold

    with gpu.on_device_of(query):
        call = Call(tuple(tensors), bias, start, length, steps, mu)
        if call.halves:
            from mea_graph.ops.predictive.triton_halves_call import backward as loops
        else:
            loops = _backward_loops
        folded_query_grad, folded_key_grad, bias_parts = loops(call, out, grad, statistics, (d_query, d_key, d_value))

        channels = gpu.power_of_2(call.heads * call.prior_width)
        blocks = call.steps_padded // _UNFOLD_ROWS
        weight_parts = query.new_empty(call.batch * blocks, call.heads, 3, 3, channels, dtype=torch.float32)
        launch(
            triton_fold.predictive_attention_bwd_fold_kernel, (call.batch * blocks,),
            call.prior_query, *call.prior_query.stride()[:2], call.weight, call.start, call.length,
            folded_query_grad, folded_key_grad, d_prior_query, d_prior_key, weight_parts,
            call.heads, folded_key_grad.size(1), call.steps_padded, call.per_set, call.prior_scale,
            PRIOR_WIDTH=call.prior_width, FOLDED=call.tiles["FOLDED"], CHANNELS=channels, ROWS=_UNFOLD_ROWS,
            num_warps=warps(channels), maxnreg=ALL_REGISTERS,
        )  # fmt: skip
        used = weight_parts[..., : call.heads * call.prior_width].unflatten(4, (call.heads, call.prior_width))
        of_sets = used.movedim(4, 2).unflatten(0, (-1, call.per_set * blocks))
        d_weight = of_sets.sum((1, 6)).view(weight.shape).to(weight.dtype)
        d_bias = bias_parts.unflatten(0, (-1, call.per_set)).sum((1, 3)).view(weight.shape[:-3])
        d_bias = d_bias.to(weight.dtype if bias is None else bias.dtype)
    return d_query, d_key, d_value, d_prior_query, d_prior_key, d_weight, d_bias


def _backward_loops(
    call: Call, out: Tensor, grad: Tensor, statistics: Tensor, gradients: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Fills the gradients of query, key and value; returns the folded query's, the folded key's by group and the bias's in parts."""
    from mea_graph.ops.predictive import triton_kernels

    *copies, delta = call.copies(statistics[0], out, grad).values()
    shared = (*copies, call.start, call.length, statistics[0], statistics[1], delta)
    empty = functools.partial(torch.empty, dtype=torch.float32, device=call.query.device)

    tiles, constants = call.loop("query")
    blocks = call.steps_padded // tiles.rows
    # The largest tensor of all. In bfloat16 it is rounded, as the folded queries are; in float16 it would underflow.
    folded_query_grad = empty(copies[3].shape, dtype=torch.bfloat16 if call.dtype == torch.bfloat16 else torch.float32)
    bias_parts = empty((call.batch, call.heads, blocks))
    inner_delta = call.rows()
    launch(
        triton_kernels.predictive_attention_bwd_query_kernel, (call.batch * call.heads * blocks,),
        *shared, gradients[0], folded_query_grad, bias_parts, inner_delta,
        call.heads, call.steps_padded, call.width, call.scale, call.mu, call.shift,
        SPARE=call.spare, **constants,
    )  # fmt: skip

    tiles, constants = call.loop("key")
    blocks = call.steps_padded // tiles.columns
    groups = min(call.heads, _GROUPS)
    folded_key_grad = empty((call.batch, groups, *copies[3].shape[2:]))
    for part in range(tiles.parts):
        launch(
            triton_kernels.predictive_attention_bwd_key_kernel, (call.batch * groups * blocks,),
            *shared, inner_delta, *gradients[1:], folded_key_grad,
            call.heads, groups, call.steps_padded, call.width, call.value_width, call.scale, call.mu, call.shift,
            PART=part, PARTS=tiles.parts, SPARE=call.spare, **constants,
        )  # fmt: skip
    return folded_query_grad, folded_key_grad, bias_parts


def warps(channels: int) -> int:
    """For a kernel that folds or unfolds tiles of so many channels."""
    return max(1, channels // _CHANNELS)


def _sets(weight: Tensor) -> int:
    """Of samples, each with a convolution of its own."""
    return 1 if weight.dim() == 4 else weight.size(0)


def pad(steps: int) -> int:
    return gpu.cdiv(steps, _BLOCK) * _BLOCK


def _statistics(query: Tensor, start: Tensor, steps: int) -> Tensor:
    """For log2 of the sums of both softmaxes: aligned as the copies are, which spares the loops a second kind of address."""
    return query.new_empty(2, start.size(0), query.size(1), pad(steps), dtype=torch.float32)


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    start, _length, steps = rest[4:7]
    return value.new_empty(value.shape), _statistics(query, start, steps)


def _fake_backward(grad: Tensor, out: Tensor, statistics: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    weight, bias = rest[5:7]
    grads = (t.new_empty(t.shape) for t in rest[:6])
    return *grads, weight.new_empty(weight.shape[:-3], dtype=weight.dtype if bias is None else bias.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.steps, ctx.packed, ctx.mu = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, *tensors)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 12
    out, statistics, *tensors = ctx.saved_tensors
    numbers = (ctx.steps, ctx.packed, ctx.mu)
    if torch.is_grad_enabled():
        return tuple(through_reference(_again, (*tensors, *numbers), grad))
    *grads, d_bias = _BACKWARD(grad, out, statistics, *tensors, *numbers)
    return *grads, None if tensors[6] is None else d_bias, *(None,) * 5


def _again(*inputs: Any) -> Tensor:
    """The same by the reference, for a second derivative."""
    *rows, weight, bias, start, length, _steps, packed, mu = inputs
    query, key, value, prior_query, prior_key = rows
    sets = [(weight, bias, start, length)]
    if weight.dim() == 5:
        biases = [None] * len(weight) if bias is None else bias
        sets = list(zip(weight, biases, start.chunk(len(weight)), length.chunk(len(weight)), strict=True))
    found = []
    for w, b, first, count in sets:
        own = Pointers._unchecked(
            first, count, query.size(0), packed=packed and len(sets) == 1
        )  # rows of other sets are gaps, and give zeros
        found.append(padded.run_reference(query, key, value, prior_query, prior_key, w, b, mu, own, None))
    return found[0] if len(found) == 1 else torch.stack(found).sum(0)


_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor prior_query, Tensor prior_key, Tensor weight, Tensor? bias,"
    " Tensor start, Tensor length, int steps, bool packed, float mu"
)
_BACKWARD = register(
    "predictive_attention_triton_backward",
    f"(Tensor grad, Tensor out, Tensor statistics, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_FORWARD = register(
    "predictive_attention_triton",
    f"({_INPUTS}) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    _setup_context,
    _autograd,
)


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mu: float,
    pointers: Pointers,
    edges: IntervalEdges | None,
) -> Tensor:
    """See `mea_graph.ops.predictive_attention`."""
    if pointers.max_length > _MOST_STEPS:
        raise ValueError(f"layout: expected samples of at most {_MOST_STEPS} steps on a GPU, got one of {pointers.max_length}")
    where = (pointers.start, pointers.length, pointers.max_length, pointers.packed)
    return _FORWARD(query, key, value, prior_query, prior_key, weight, bias, *where, mu)[0]
