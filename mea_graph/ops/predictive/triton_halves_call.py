"""Launches the kernels of `triton_halves.py` and `triton_halves_fold.py`. Imported at the first call, as Triton is."""

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mea_graph.ops.interval import triton as gpu
from mea_graph.ops.launch import launch
from mea_graph.ops.predictive import triton_halves as loops
from mea_graph.ops.predictive import triton_halves_fold as folds
from mea_graph.ops.predictive.triton_tiles import ALL_REGISTERS, FOLD_HEADS, POWER_ROWS

if TYPE_CHECKING:
    from mea_graph.ops.predictive.triton import Call

_BLOCK = 128  # as the other copies, a multiple of it is what tiles divide


class Copies(NamedTuple):
    """What the loops read, in the order in which they take it."""

    query: Tensor
    key: Tensor
    query_parts: Tensor
    key_parts: Tensor
    folded_query: Tensor
    folded_key: Tensor
    statistics: Tensor
    norms: Tensor
    powers: Tensor


def _copies(call: "Call", inner: Tensor | None, outer: Tensor | None, out: Tensor | None, grad: Tensor | None) -> Copies:
    backward = grad is not None
    empty = functools.partial(torch.empty, dtype=torch.float32, device=call.query.device)
    steps, width, folded = call.steps_padded, call.tiles["WIDTH"], call.tiles["FOLDED"]
    heads = (call.batch, call.heads)
    nothing = empty(0)
    row = (8 if backward else 4) * width
    copies = Copies(
        query=empty(*heads, steps, row, dtype=torch.float16),
        key=empty(*heads, steps, row, dtype=torch.float16),
        query_parts=empty(*heads, steps if backward else 0, 2 * folds.PARTS.value, dtype=torch.bfloat16),
        key_parts=empty(*heads, steps, folds.PARTS.value, dtype=torch.bfloat16),
        folded_query=empty(*heads, steps, 2 * folded, dtype=torch.float16),
        folded_key=empty(call.batch, steps, 2 * folded, dtype=torch.float16),
        statistics=empty(*heads, steps, 4) if backward else nothing,
        norms=empty(0 if backward else 4, *heads, steps // call.fold_rows),
        powers=empty(*heads, folds.POWERS.value),
    )
    grad = gpu.dense_rows(call.value if grad is None else grad)
    sources = (call.query, call.key, call.value, call.prior_query, call.prior_key, grad)
    strided = [a for t in sources for a in (t, *t.stride()[:2])]
    constants = {"BACKWARD": backward, "WIDTH": width}
    launch(
        folds.predictive_attention_power_kernel, (call.batch * call.heads,),
        *strided, call.start, call.length, copies.powers, call.heads, call.width, call.value_width, call.prior_width,
        PRIOR_WIDTH=max(8, gpu.power_of_2(call.prior_width)), ROWS=POWER_ROWS, **constants,
    )  # fmt: skip
    launch(
        folds.predictive_attention_fold_kernel, call.fold_grid,
        *strided, *(nothing if t is None else t for t in (inner, outer, out)), call.weight, call.start, call.length, copies.powers,
        *copies[:8], steps, call.width, call.value_width, call.per_set, call.prior_scale,
        HEADS=call.heads, PRIOR_WIDTH=call.prior_width, FOLDED=folded, TOGETHER=FOLD_HEADS, ROWS=call.fold_rows, BLOCK=_BLOCK, **constants,
        num_warps=call.fold_warps, maxnreg=ALL_REGISTERS,
    )  # fmt: skip
    return copies


def forward(call: "Call", out: Tensor, inner: Tensor, outer: Tensor) -> None:
    copies = _copies(call, None, None, None, None)
    tiles, constants = call.loop("forward")
    launch(
        loops.predictive_attention_fwd_kernel, (call.batch * call.heads * (call.steps_padded // tiles.rows),),
        copies.query, copies.key, copies.key_parts, copies.folded_query, copies.folded_key, copies.norms, copies.powers,
        call.bias, call.start, call.length, out, inner, outer,
        call.heads, call.steps_padded, call.value_width, call.per_set, call.scale, call.mu,
        HAS_BIAS=call.has_bias, NORM_ROWS=call.fold_rows, **constants,
    )  # fmt: skip


def backward(
    call: "Call", out: Tensor, grad: Tensor, statistics: Tensor, gradients: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Fills the gradients of query, key and value; returns the folded query's, the folded key's by head and the bias's in parts."""
    copies = _copies(call, statistics[0], statistics[1], out, grad)
    shared = (*copies[:7], copies.powers, call.bias, call.start, call.length)
    empty = functools.partial(torch.empty, dtype=torch.float32, device=call.query.device)

    tiles, constants = call.loop("query")
    blocks = call.steps_padded // tiles.rows
    folded_query_grad = empty(call.batch, call.heads, call.steps_padded, call.tiles["FOLDED"])
    bias_parts = empty(call.batch, call.heads, blocks)
    launch(
        loops.predictive_attention_bwd_query_kernel, (call.batch * call.heads * blocks,),
        *shared, gradients[0], folded_query_grad, bias_parts,
        call.heads, call.steps_padded, call.width, 3 * call.heads * call.prior_width, call.per_set, call.scale, call.mu,
        HAS_BIAS=call.has_bias, **constants,
    )  # fmt: skip

    tiles, constants = call.loop("key")
    blocks = call.steps_padded // tiles.columns
    folded_key_grad = empty(call.batch, call.heads, call.steps_padded, call.tiles["FOLDED"])
    launch(
        loops.predictive_attention_bwd_key_kernel, (call.batch * call.heads * blocks,),
        *shared, *gradients[1:], folded_key_grad,
        call.heads, call.steps_padded, call.width, call.value_width, call.per_set, call.scale, call.mu,
        HAS_BIAS=call.has_bias, **constants,
    )  # fmt: skip
    return folded_query_grad, folded_key_grad, bias_parts
