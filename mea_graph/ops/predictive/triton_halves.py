"""Loops of predictive attention in float32 on narrow heads, whose products are products of half precision.

Three products of halves, which `triton_halves_fold.py` writes, are as exact as three in TF32. They take half the time, and no instruction
to cut the operands up. Formulas and names are those of `triton_kernels.py`, except that

    share = 2^(s - inner) = p      z = mu log2(e) GELU(u) + (1 - mu) log2(e) p

What the loops compute is cut here. The gradient of u is cut into halves, in units that keep it within float16's range; its second half is
in units of 2^-11, and meets an operand that is smaller by as much. Maps that are products of two softmaxes, or without a bound, are cut
into three parts of bfloat16.

All loops round the logits alike: gradients are differences that cancel only then.
"""

import triton
import triton.language as tl

from mea_graph.ops.interval.triton_kernels import LN_2, LOWEST
from mea_graph.ops.predictive.triton_fold import place
from mea_graph.ops.predictive.triton_gelu import gelu, gelu_and_slope
from mea_graph.ops.predictive.triton_halves_fold import LARGE, PARTS, POWERS, PRODUCTS, SMALL, at_statistics
from mea_graph.ops.predictive.triton_kernels import bounds, store_tile
from mea_graph.ops.predictive.triton_once import LOG2_E, fold_columns


@triton.jit
def _split(x):
    """The first half in float16, and what it leaves in float32."""
    high = x.to(tl.float16)
    return high, x - high.to(tl.float32)


@triton.jit
def _row(source, rows, stride, WIDTH: tl.constexpr):
    return tl.load(source + rows[:, None] * stride + tl.arange(0, 4 * WIDTH)[None, :])


@triton.jit
def _parts(source, rows, stride):
    return tl.load(source + rows[:, None] * stride + tl.arange(0, PARTS)[None, :])


@triton.jit
def _half(source, rows, LOW: tl.constexpr, FOLDED: tl.constexpr):
    return tl.load(source + rows[:, None] * (2 * FOLDED) + (LOW * FOLDED + tl.arange(0, FOLDED))[None, :])


@triton.jit
def _small(source, rows, FOLDED: tl.constexpr):
    """The first halves in units of 2^11. They are read again, in a way of its own: registers would have to hold the first read."""
    return tl.load(source + rows[:, None] * (2 * FOLDED) + tl.arange(0, FOLDED)[None, :], cache_modifier=".ca") * SMALL


@triton.jit
def _folded_dot(left, left_low, high, low):
    product = tl.dot(left_low, tl.trans(high))
    product = tl.dot(left, tl.trans(low), product)
    return tl.dot(left, tl.trans(high), product)


@triton.jit
def _add_folded(total, x, right, rows, high, low, FOLDED: tl.constexpr):
    first, rest = _split(x)
    total = tl.dot((rest * LARGE).to(tl.float16), _small(right, rows, FOLDED), total)
    total = tl.dot(first, low, total)
    return tl.dot(first, high, total)


@triton.jit
def _leading(x):
    """The first 8 bits of the mantissa, cut off: a mask, since what rounds a number alone occupies the unit of special functions."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _add_parts(total, x, right):
    """For numbers of any size, in three parts of bfloat16: 24 bits, all that there are."""
    first = _leading(x)
    x -= first
    second = _leading(x)
    x -= second
    total = tl.dot(x.to(tl.bfloat16), right, total)
    total = tl.dot(second.to(tl.bfloat16), right, total)
    return tl.dot(first.to(tl.bfloat16), right, total)


@triton.jit
def _join(sums, width):
    """The sum of the products with the three parts of an operand: a product that picks columns, of parts again, and so exact."""
    at = tl.arange(0, PARTS)
    chosen = (at[:, None] % width == at[None, :]) & (at[:, None] < 3 * width)
    return _add_parts(tl.zeros([sums.shape[0], PARTS], tl.float32), sums, chosen.to(tl.float32).to(tl.bfloat16))


@triton.jit
def _column(sums, column):
    return tl.sum(tl.where((tl.arange(0, PARTS) == column)[None, :], sums, 0.0), 1)


@triton.jit
def _attend_bounded(
    queries, folded_queries, folded_low, key, value, folded_key, length, scale, folded_scale, bias, mu,
    WIDTH: tl.constexpr, FOLDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """No maximum runs along. Only the last keys are masked; where there is none, a share is no number that matters, and a value zero."""
    totals = tl.zeros([queries.shape[0], 8], tl.float32)
    last = (length - 1) // COLUMNS * COLUMNS
    for start in range(0, last, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        totals += fold_columns(tl.exp2(tl.dot(queries, tl.trans(_row(key, columns, 4 * WIDTH, WIDTH))) * scale))
    columns = last + tl.arange(0, COLUMNS)
    logits = tl.dot(queries, tl.trans(_row(key, columns, 4 * WIDTH, WIDTH))) * scale
    totals += fold_columns(tl.exp2(tl.where((columns < length)[None, :], logits, -float("inf"))))
    inner_rows = tl.log2(tl.sum(totals, 1))

    sums = tl.zeros([queries.shape[0], PARTS], tl.float32)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        keys = _row(key, columns, 4 * WIDTH, WIDTH)
        high = _half(folded_key, columns, 0, FOLDED)
        low = _half(folded_key, columns, 1, FOLDED)
        values = _parts(value, columns, PARTS)
        share = tl.exp2(tl.dot(queries, tl.trans(keys)) * scale - inner_rows[:, None])
        folded = _folded_dot(folded_queries, folded_low, high, low)
        weights = tl.exp2(gelu(folded * folded_scale + bias, True, False) * (mu * LOG2_E) + share * ((1.0 - mu) * LOG2_E))
        sums = _add_parts(sums, weights, values)
    return sums, inner_rows, tl.zeros([queries.shape[0]], tl.float32)


@triton.jit
def _attend(
    queries, folded_queries, folded_low, key, value, folded_key, length, scale, folded_scale, bias, mu,
    WIDTH: tl.constexpr, FOLDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """For logits of any size."""
    top = tl.full([queries.shape[0]], LOWEST, tl.float32)
    total = tl.zeros([queries.shape[0]], tl.float32)
    for start in range(0, length, COLUMNS):  # statistics of the inner softmax
        columns = start + tl.arange(0, COLUMNS)
        logits = tl.dot(queries, tl.trans(_row(key, columns, 4 * WIDTH, WIDTH))) * scale
        logits = tl.where((columns < length)[None, :], logits, -float("inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(logits - higher[:, None]), 1)
        top = higher
    inner_rows = top + tl.log2(total)

    top = tl.full([queries.shape[0]], LOWEST, tl.float32)
    sums = tl.zeros([queries.shape[0], PARTS], tl.float32)
    for start in range(0, length, COLUMNS):  # the outer softmax, its maximum found on the way, times V
        columns = start + tl.arange(0, COLUMNS)
        keys = _row(key, columns, 4 * WIDTH, WIDTH)
        high = _half(folded_key, columns, 0, FOLDED)
        low = _half(folded_key, columns, 1, FOLDED)
        values = _parts(value, columns, PARTS)
        share = tl.exp2(tl.dot(queries, tl.trans(keys)) * scale - inner_rows[:, None])
        folded = _folded_dot(folded_queries, folded_low, high, low)
        mixed = gelu(folded * folded_scale + bias, True, False) * (mu * LOG2_E) + share * ((1.0 - mu) * LOG2_E)
        mixed = tl.where((columns < length)[None, :], mixed, -float("inf"))
        higher = tl.maximum(top, tl.max(mixed, 1))
        sums *= tl.exp2(top - higher)[:, None]
        sums = _add_parts(sums, tl.exp2(mixed - higher[:, None]), values)
        top = higher
    return sums, inner_rows, top


@triton.jit(do_not_specialize=["per_set"])
def predictive_attention_fwd_kernel(
    query, key, value, folded_query, folded_key, norms, powers, bias, starts, lengths,
    out, inner, outer,
    heads, steps_padded, value_width, per_set, scale, mu,
    HAS_BIAS: tl.constexpr, NORM_ROWS: tl.constexpr, WIDTH: tl.constexpr, FOLDED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Block t of line b heads + o: rows of one head of one sample. `scale` has log2(e) in it."""
    block, line = place(steps_padded, ROWS)
    pair = line.to(tl.int64)
    sample = pair // heads
    head = pair % heads
    length = tl.load(lengths + sample).to(tl.int32)
    rows = block * ROWS + tl.arange(0, ROWS)
    inner += pair * steps_padded
    outer += pair * steps_padded
    if block * ROWS >= length:
        tl.store(inner + rows, tl.zeros([ROWS], tl.float32))
        tl.store(outer + rows, tl.zeros([ROWS], tl.float32))
        return

    tl.assume(length > 0)
    key += pair * steps_padded * 4 * WIDTH
    value += pair * steps_padded * PARTS
    folded_key += sample * steps_padded * 2 * FOLDED
    folded_query += pair * steps_padded * 2 * FOLDED
    powers += pair * POWERS
    queries = _row(query + pair * steps_padded * 4 * WIDTH, rows, 4 * WIDTH, WIDTH)
    folded_queries = _half(folded_query, rows, 0, FOLDED)
    folded_low = _half(folded_query, rows, 1, FOLDED)
    inner_scale = scale * tl.load(powers) * tl.load(powers + 1)
    folded_scale = tl.load(powers + 4) * tl.load(powers + 5)
    bias_of_head = tl.load(bias + sample // per_set * heads + head).to(tl.float32) if HAS_BIAS else 0.0
    inner_bound, outer_bound = bounds(
        norms, pair, sample * heads, tl.num_programs(0) // (steps_padded // ROWS), steps_padded // NORM_ROWS,
        tl.cdiv(length, NORM_ROWS), scale, mu,
    )  # fmt: skip
    outer_bound += tl.abs(bias_of_head) * (mu * LOG2_E)
    # So that no sum of powers of two leaves float32. Outer logits are at least -0.17 mu log2(e): their sum is at least 0.8.
    short = (inner_bound < 100.0) & (outer_bound < 98.0)
    tl.debug_barrier()  # after it, the compiler takes the branches for those of all threads: addresses are uniform there
    if short:
        sums, inner_rows, top = _attend_bounded(
            queries, folded_queries, folded_low, key, value, folded_key, length, inner_scale, folded_scale, bias_of_head, mu,
            WIDTH, FOLDED, COLUMNS,
        )  # fmt: skip
    else:
        sums, inner_rows, top = _attend(
            queries, folded_queries, folded_low, key, value, folded_key, length, inner_scale, folded_scale, bias_of_head, mu,
            WIDTH, FOLDED, COLUMNS,
        )  # fmt: skip
    total = _column(sums, 3 * value_width)
    sums = _join(sums, value_width) / total[:, None]
    at_first = ((tl.load(starts + sample) + block * ROWS) * heads + head) * value_width
    store_tile(out + at_first, heads * value_width, length - block * ROWS, sums, value_width, PARTS)
    tl.store(inner + rows, inner_rows)
    tl.store(outer + rows, top + tl.log2(total))


@triton.jit(do_not_specialize=["per_set"])
def predictive_attention_bwd_query_kernel(
    query, key, query_parts, key_parts, folded_query, folded_key, statistics, powers, bias, starts, lengths,
    query_grad, folded_query_grad, bias_parts,
    heads, steps_padded, width, folded_width, per_set, scale, mu,
    HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, FOLDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Block t of line b heads + o: gradients of queries and folded queries, and g = rowsum(p o dz), a statistic for the other loop.

    One pass: the gradient of a query, sum_j p_j (dz_j - g) k_j, is split into sum_j p_j dz_j k_j and g sum_j p_j k_j, since g is known
    only at the end.
    """
    block, line = place(steps_padded, ROWS)
    pair = line.to(tl.int64)
    sample = line // heads
    head = line % heads
    length = tl.load(lengths + sample).to(tl.int32)
    if block * ROWS >= length:
        tl.store(bias_parts + tl.program_id(0), 0.0)
        return

    STRIDE: tl.constexpr = 8 * WIDTH
    rows = block * ROWS + tl.arange(0, ROWS)
    tl.assume(length > 0)
    query += pair * steps_padded * STRIDE
    key += pair * steps_padded * STRIDE
    folded_query += pair * steps_padded * 2 * FOLDED
    folded_key += sample.to(tl.int64) * steps_padded * 2 * FOLDED
    key_parts += pair * steps_padded * PARTS
    statistics += pair * steps_padded * 4
    powers += pair * POWERS
    of_folded_key = tl.load(powers + 5)
    inner_scale = scale * tl.load(powers) * tl.load(powers + 1)
    folded_scale = tl.load(powers + 4) * of_folded_key
    bias_of_head = tl.load(bias + sample // per_set * heads + head).to(tl.float32) if HAS_BIAS else 0.0
    queries = _row(query, rows, STRIDE, WIDTH)
    grads = _row(query + 4 * WIDTH, rows, STRIDE, WIDTH)
    folded_queries = _half(folded_query, rows, 0, FOLDED)
    folded_low = _half(folded_query, rows, 1, FOLDED)
    inner_rows = tl.load(at_statistics(statistics, rows, 0))[:, None]
    outer_rows = tl.load(at_statistics(statistics, rows, 1))[:, None]

    weighted = tl.zeros([ROWS, PARTS], tl.float32)
    mean_keys = tl.zeros([ROWS, PARTS], tl.float32)
    folded_grads = tl.zeros([ROWS, FOLDED], tl.float32)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        values = _row(key + 4 * WIDTH, columns, STRIDE, WIDTH)
        keys = _row(key, columns, STRIDE, WIDTH)
        high = _half(folded_key, columns, 0, FOLDED)
        low = _half(folded_key, columns, 1, FOLDED)
        keys_parts = _parts(key_parts, columns, PARTS)
        products = tl.dot(grads, tl.trans(values)) * PRODUCTS
        share = tl.exp2(tl.dot(queries, tl.trans(keys)) * inner_scale - inner_rows)
        folded = _folded_dot(folded_queries, folded_low, high, low)
        activated, slope = gelu_and_slope(folded * folded_scale + bias_of_head, True, False)
        weights = tl.exp2(activated * (mu * LOG2_E) + (share * ((1.0 - mu) * LOG2_E) - outer_rows))
        mixed_grads = weights * products
        weighted = _add_parts(weighted, share * mixed_grads, keys_parts)
        mean_keys = _add_parts(mean_keys, share, keys_parts)
        folded_grads = _add_folded(folded_grads, mixed_grads * slope, folded_key, columns, high, low, FOLDED)

    unit = tl.load(powers + 2) * tl.load(powers + 3) * (1.0 / PRODUCTS)
    inner_deltas = _column(weighted, 3 * width)
    query_grads = _join(weighted - inner_deltas[:, None] * mean_keys, width) * (scale * LN_2 * (1.0 - mu) * unit)
    at_first = ((tl.load(starts + sample) + block * ROWS) * heads + head) * width
    store_tile(query_grad + at_first, heads * width, length - block * ROWS, query_grads, width, PARTS)
    tl.store(at_statistics(statistics, rows, 2), inner_deltas)
    folded_query_grad += pair * steps_padded * FOLDED + rows[:, None] * FOLDED
    tl.store(folded_query_grad + tl.arange(0, FOLDED)[None, :], folded_grads * (mu * unit * of_folded_key))
    tl.debug_barrier()  # one column is read back: to find it in the registers, each thread would keep the numbers of its columns
    bias_grads = tl.load(folded_query_grad + folded_width)
    tl.store(bias_parts + tl.program_id(0), tl.sum(bias_grads) / of_folded_key)


@triton.jit(do_not_specialize=["per_set"])
def predictive_attention_bwd_key_kernel(
    query, key, query_parts, key_parts, folded_query, folded_key, statistics, powers, bias, starts, lengths,
    key_grad, value_grad, folded_key_grad,
    heads, steps_padded, width, value_width, per_set, scale, mu,
    HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, FOLDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Block t of line b heads + o: gradients of keys and values, and what the head gives to the gradient of the folded keys.

    One head only: a loop over heads, as in `triton_kernels.py`, would keep more numbers than there are registers.

    Tiles are transposed, (keys, queries). Queries that do not exist weigh nothing: they, their gradients and deltas are zeros, their
    statistics numbers; of the other loop's, wherever it has a tile, and so a tile of this one must not have more rows.
    """
    block, line = place(steps_padded, COLUMNS)
    pair = line.to(tl.int64)
    sample = line // heads
    head = line % heads
    length = tl.load(lengths + sample).to(tl.int32)
    if block * COLUMNS >= length:
        return

    STRIDE: tl.constexpr = 8 * WIDTH
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    tl.assume(length > 0)
    query += pair * steps_padded * STRIDE
    key += pair * steps_padded * STRIDE
    query_parts += pair * steps_padded * 2 * PARTS
    folded_query += pair * steps_padded * 2 * FOLDED
    folded_key += sample.to(tl.int64) * steps_padded * 2 * FOLDED
    statistics += pair * steps_padded * 4
    powers += pair * POWERS
    of_folded_query = tl.load(powers + 4)
    inner_scale = scale * tl.load(powers) * tl.load(powers + 1)
    folded_scale = of_folded_query * tl.load(powers + 5)
    bias_of_head = tl.load(bias + sample // per_set * heads + head).to(tl.float32) if HAS_BIAS else 0.0
    keys = _row(key, columns, STRIDE, WIDTH)
    values = _row(key + 4 * WIDTH, columns, STRIDE, WIDTH)
    folded_keys = _half(folded_key, columns, 0, FOLDED)
    folded_low = _half(folded_key, columns, 1, FOLDED)

    key_grads = tl.zeros([COLUMNS, PARTS], tl.float32)
    value_grads = tl.zeros([COLUMNS, PARTS], tl.float32)
    folded_grads = tl.zeros([COLUMNS, FOLDED], tl.float32)
    for start in range(0, length, ROWS):
        rows = start + tl.arange(0, ROWS)
        queries = _row(query, rows, STRIDE, WIDTH)
        grads = _row(query + 4 * WIDTH, rows, STRIDE, WIDTH)
        high = _half(folded_query, rows, 0, FOLDED)
        low = _half(folded_query, rows, 1, FOLDED)
        queries_parts = _parts(query_parts, rows, 2 * PARTS)
        grads_parts = _parts(query_parts + PARTS, rows, 2 * PARTS)
        inner_rows = tl.load(at_statistics(statistics, rows, 0))[None, :]
        outer_rows = tl.load(at_statistics(statistics, rows, 1))[None, :]
        inner_deltas = tl.load(at_statistics(statistics, rows, 2))[None, :]
        share = tl.exp2(tl.dot(keys, tl.trans(queries)) * inner_scale - inner_rows)
        folded = _folded_dot(folded_keys, folded_low, high, low)
        activated, slope = gelu_and_slope(folded * folded_scale + bias_of_head, True, False)
        weights = tl.exp2(activated * (mu * LOG2_E) + (share * ((1.0 - mu) * LOG2_E) - outer_rows))
        products = tl.dot(values, tl.trans(grads)) * PRODUCTS
        mixed_grads = weights * products
        folded_grads = _add_folded(folded_grads, mixed_grads * slope, folded_query, rows, high, low, FOLDED)
        logit_grads = share * (mixed_grads - inner_deltas)
        key_grads = _add_parts(key_grads, logit_grads, queries_parts)
        value_grads = _add_parts(value_grads, weights, grads_parts)

    unit = tl.load(powers + 2) * tl.load(powers + 3) * (1.0 / PRODUCTS)
    at_first = (tl.load(starts + sample) + block * COLUMNS) * heads + head
    count = length - block * COLUMNS
    value_grads = _join(value_grads, value_width)
    store_tile(value_grad + at_first * value_width, heads * value_width, count, value_grads, value_width, PARTS)
    key_grads = _join(key_grads, width) * (scale * LN_2 * (1.0 - mu) * unit)
    store_tile(key_grad + at_first * width, heads * width, count, key_grads, width, PARTS)
    folded_key_grad += pair * steps_padded * FOLDED + columns[:, None] * FOLDED + tl.arange(0, FOLDED)[None, :]
    tl.store(folded_key_grad, folded_grads * (mu * unit * of_folded_query))
