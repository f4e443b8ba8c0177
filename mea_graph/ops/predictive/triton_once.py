"""The forward loop of predictive attention in half precision, in one pass over the keys.

The outer logits need the inner softmax p, and so its sum over all keys, which is known only at the end. But (1 - mu) p lies between 0
and 1, where a cubic polynomial is its exponential to what half precision can tell. With e = 2^s, not yet divided by its sum E, and
w = exp(mu GELU(u)):

    sum_j exp(mu GELU(u_j) + (1 - mu) p_j) v_j = sum_m a_m ((1 - mu) / E)^m sum_j w_j e_j^m v_j

So four sums run along instead of one, and each pair takes two special functions instead of three: the inner logits are computed once.
"""

import triton
import triton.language as tl

from mea_graph.ops.interval.triton_kernels import add_dot, dot
from mea_graph.ops.predictive.triton_gelu import gelu

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def tile(source, rows, WIDTH: tl.constexpr):
    return tl.load(source + rows[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :])


@triton.jit
def fold_columns(x):
    """Sums of every eighth column. A tile's products leave those to one thread, so that none is handed from thread to thread."""
    return tl.sum(tl.reshape(x, [x.shape[0], x.shape[1] // 8, 8]), 1)


@triton.jit
def _times(left, right):
    """A product of half precision, rounded once. Compilers make one instruction of two; the interpreter has no such arithmetic."""
    return (left.to(tl.float32) * right.to(tl.float32)).to(left.dtype)


@triton.jit
def attend_once(
    queries, folded_queries, key, value, folded_key, length, value_width, scale, mu,
    WIDTH: tl.constexpr, FOLDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """For logits whose largest, w e^3, float32 holds. Spare channels mask keys and sum the outer softmax."""
    totals = tl.zeros([queries.shape[0], 8], tl.float32)
    sums = tl.zeros([queries.shape[0], WIDTH], tl.float32)
    linear = tl.zeros([queries.shape[0], WIDTH], tl.float32)
    square = tl.zeros([queries.shape[0], WIDTH], tl.float32)
    cubic = tl.zeros([queries.shape[0], WIDTH], tl.float32)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inner = tl.exp2(dot(queries, tl.trans(tile(key, columns, WIDTH)), False) * scale)
        totals += fold_columns(inner)
        folded = dot(folded_queries, tl.trans(tile(folded_key, columns, FOLDED)), False)
        values = tile(value, columns, WIDTH)
        factors = inner.to(values.dtype)
        weights = tl.exp2(gelu(folded, False, key.dtype.element_ty == tl.bfloat16) * (mu * LOG2_E)).to(values.dtype)
        sums = add_dot(sums, weights, values, False)
        weights = _times(weights, factors)
        linear = add_dot(linear, weights, values, False)
        weights = _times(weights, factors)
        square = add_dot(square, weights, values, False)
        weights = _times(weights, factors)
        cubic = add_dot(cubic, weights, values, False)

    # The polynomial is exp to 3.7e-4 of itself from 0 to 1. Multiplied in turn, so that no power of the share leaves float32.
    inner_total = tl.sum(totals, 1)
    share = ((1.0 - mu) / inner_total)[:, None]
    sums += share * (1.008917948933713 * linear + share * (0.4415851767391343 * square + share * (0.2667840182797011 * cubic)))
    total = tl.sum(tl.where((tl.arange(0, WIDTH) == value_width)[None, :], sums, 0.0), 1)
    return sums, total, tl.log2(inner_total), tl.log2(total)
