"""Triton kernels of predictive attention: the forward loop over keys, and the backward loops over keys and over queries.

Their operands are the aligned, zero-filled copies that `triton_fold.py` writes. Everything is in base 2, so that an exponential is one
instruction: with s the inner logits (in units of ln 2), u = conv(A_pre) before GELU, and row statistics `inner` and `outer`

    p = 2^(s - inner)                                       the inner softmax
    z = mu log2(e) GELU(u) + (1 - mu) log2(e) p             the outer logits
    P = 2^(z - outer)                                       the outer softmax, times V

Backward, with delta = rowsum(dO o O) and g = rowsum(p o dz):

    dz = P o (dO V^T - delta)      du = mu GELU'(u) o dz      ds = (1 - mu) p o (dz - g)

Nothing is accumulated across programs: the results are the same on every run.
"""

import triton
import triton.language as tl

from mea_graph.ops.interval.triton_kernels import LN_2, LOWEST, add_dot, dot
from mea_graph.ops.predictive.triton_fold import place

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _normal_tail(t, EXACT: tl.constexpr):
    """Probability that a standard normal variable exceeds t >= 0, as 2^polynomial(t), which needs one exponential and no branch.

    Fitted on [0, 5.5] to the least error of GELU; beyond, both are zero to rounding. Errors: degree 8, below float32's rounding; degree 5,
    8e-7. The leading coefficients are negative, so that it falls to zero.
    """
    if EXACT:
        power = -2.2759882085665595e-06 * t + 3.296929207863286e-05
        power = power * t - 0.00015728428843431175
        power = power * t - 0.00020246696658432484
        power = power * t + 0.007142767775803804
        power = power * t - 0.052546426653862
        power = power * t - 0.45919305086135864
        power = power * t - 1.1511069536209106
        power = power * t - 0.9999999403953552
    else:
        power = -0.0005002740654163063 * t + 0.007282455451786518
        power = power * t - 0.052343375980854034
        power = power * t - 0.45941397547721863
        power = power * t - 1.1510521173477173
        power = power * t - 1.0000019073486328
    return tl.exp2(power)


@triton.jit
def _gelu(u, EXACT: tl.constexpr):
    t = tl.abs(u)
    return tl.maximum(u, 0.0) - t * _normal_tail(t, EXACT)


@triton.jit
def _gelu_and_slope(u, EXACT: tl.constexpr):
    t = tl.abs(u)
    tail = _normal_tail(t, EXACT)
    density = 0.3989422804014327 * tl.exp2(u * u * -0.7213475204444817)  # log2(e) / 2
    return tl.maximum(u, 0.0) - t * tail, tl.where(u >= 0.0, 1.0 - tail, tail) + u * density


@triton.jit
def _tile(source, rows, WIDTH: tl.constexpr):
    return tl.load(source + rows[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :])


@triton.jit
def _folded_dot(left, left_rows, right, right_rows, FOLDED: tl.constexpr, CHUNK: tl.constexpr, EXACT: tl.constexpr):
    """left @ right^T, loaded a few channels at a time: in float32 a whole operand, in two halves, does not fit into the registers."""
    product = tl.zeros([left_rows.shape[0], right_rows.shape[0]], tl.float32)
    for start in range(0, FOLDED, CHUNK):
        channels = start + tl.arange(0, CHUNK)[None, :]
        one = tl.load(left + left_rows[:, None] * FOLDED + channels)
        other = tl.load(right + right_rows[:, None] * FOLDED + channels)
        product = add_dot(product, one, tl.trans(other), EXACT)
    return product


@triton.jit
def _store_tile(target, stride, count, tile, width, WIDTH: tl.constexpr):
    """The first `count` rows into the caller's tensor, one head of a block of steps. Offsets from its first row fit int32."""
    rows = tl.arange(0, tile.shape[0])[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    tl.store(target + rows * stride + columns, tile.to(target.dtype.element_ty), mask=(rows < count) & (columns < width))


@triton.jit
def predictive_attention_fwd_kernel(
    query, key, value, folded_query, folded_key, bias, starts, lengths,
    out, inner, outer,
    heads, steps_padded, value_width, scale, mu,
    HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, FOLDED: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
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
    key += pair * steps_padded * WIDTH
    value += pair * steps_padded * VALUE_WIDTH
    folded_key += sample * steps_padded * FOLDED
    queries = _tile(query + pair * steps_padded * WIDTH, rows, WIDTH)
    folded_query += pair * steps_padded * FOLDED
    if CHUNK == FOLDED:
        folded_queries = _tile(folded_query, rows, FOLDED)
    offset = 0.0
    if HAS_BIAS:
        offset = tl.load(bias + head).to(tl.float32)

    top = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, length, COLUMNS):  # statistics of the inner softmax
        columns = start + tl.arange(0, COLUMNS)
        real = columns < length
        logits = dot(queries, tl.trans(_tile(key, columns, WIDTH)), EXACT) * scale
        logits = tl.where(real[None, :], logits, -float("inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(logits - higher[:, None]), 1)
        top = higher
    inner_rows = top + tl.log2(total)

    top = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    for start in range(0, length, COLUMNS):  # the outer softmax, its maximum found on the way, times V
        columns = start + tl.arange(0, COLUMNS)
        real = columns < length
        logits = dot(queries, tl.trans(_tile(key, columns, WIDTH)), EXACT) * scale
        share = tl.exp2(logits - inner_rows[:, None])
        if CHUNK == FOLDED:
            folded = dot(folded_queries, tl.trans(_tile(folded_key, columns, FOLDED)), EXACT) + offset
        else:
            folded = _folded_dot(folded_query, rows, folded_key, columns, FOLDED, CHUNK, EXACT) + offset
        mixed = (mu * LOG2_E) * _gelu(folded, EXACT) + ((1.0 - mu) * LOG2_E) * share
        mixed = tl.where(real[None, :], mixed, -float("inf"))
        higher = tl.maximum(top, tl.max(mixed, 1))
        shrink = tl.exp2(top - higher)
        weights = tl.exp2(mixed - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        values = _tile(value, columns, VALUE_WIDTH)
        sums = add_dot(sums * shrink[:, None], weights, values, EXACT)
        top = higher

    sums = sums / total[:, None]
    at_first = ((tl.load(starts + sample) + block * ROWS) * heads + head) * value_width
    _store_tile(out + at_first, heads * value_width, length - block * ROWS, sums, value_width, VALUE_WIDTH)
    tl.store(inner + rows, inner_rows)
    tl.store(outer + rows, top + tl.log2(total))


@triton.jit
def _gain(copy):
    """What gradients of maps are multiplied by before they are rounded to the dtype of the copies: in float16, where they are products of
    two softmaxes, they would fall below what it holds. An exact power of two; what is summed of them is divided by it again."""
    return 256.0 if copy.dtype.element_ty == tl.float16 else 1.0


@triton.jit
def predictive_attention_bwd_query_kernel(
    query, key, value, folded_query, folded_key, grad, bias, starts, lengths, inner, outer, delta,
    query_grad, folded_query_grad, bias_parts, inner_delta,
    heads, steps_padded, width, scale, mu,
    HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, FOLDED: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Block t of line b heads + o: gradients of queries and folded queries, and g = rowsum(p o dz) for the other loop.

    One pass: the gradient of a query, sum_j p_j (dz_j - g) k_j, is split into sum_j p_j dz_j k_j and g sum_j p_j k_j, since g is known
    only at the end.
    """
    block, line = place(steps_padded, ROWS)
    pair = line.to(tl.int64)
    sample = pair // heads
    head = pair % heads
    length = tl.load(lengths + sample).to(tl.int32)
    if block * ROWS >= length:
        tl.store(bias_parts + tl.program_id(0), 0.0)
        return

    rows = block * ROWS + tl.arange(0, ROWS)
    tl.assume(length > 0)
    key += pair * steps_padded * WIDTH
    value += pair * steps_padded * VALUE_WIDTH
    folded_key += sample * steps_padded * FOLDED
    queries = _tile(query + pair * steps_padded * WIDTH, rows, WIDTH)
    folded_query += pair * steps_padded * FOLDED
    if CHUNK == FOLDED:
        folded_queries = _tile(folded_query, rows, FOLDED)
    grads = _tile(grad + pair * steps_padded * VALUE_WIDTH, rows, VALUE_WIDTH)
    offset = 0.0
    if HAS_BIAS:
        offset = tl.load(bias + head).to(tl.float32)
    inside = rows < length
    inner_rows = tl.load(inner + pair * steps_padded + rows, mask=inside, other=float("inf"))
    outer_rows = tl.load(outer + pair * steps_padded + rows, mask=inside, other=float("inf"))
    delta_rows = tl.load(delta + pair * steps_padded + rows)
    gain = _gain(grad)

    inner_deltas = tl.zeros([ROWS], tl.float32)
    bias_grads = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, WIDTH], tl.float32)
    mean_keys = tl.zeros([ROWS, WIDTH], tl.float32)
    folded_grads = tl.zeros([ROWS, FOLDED], tl.float32)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        real = (columns < length)[None, :]
        keys = _tile(key, columns, WIDTH)
        logits = dot(queries, tl.trans(keys), EXACT) * scale - inner_rows[:, None]
        share = tl.exp2(tl.where(real, logits, -float("inf")))
        if CHUNK == FOLDED:
            folded_keys = _tile(folded_key, columns, FOLDED)
            folded = dot(folded_queries, tl.trans(folded_keys), EXACT) + offset
        else:
            folded = _folded_dot(folded_query, rows, folded_key, columns, FOLDED, CHUNK, EXACT) + offset
        gelu, slope = _gelu_and_slope(folded, EXACT)
        mixed = (mu * LOG2_E) * gelu + ((1.0 - mu) * LOG2_E) * share - outer_rows[:, None]
        weights = tl.exp2(tl.where(real, mixed, -float("inf")))
        products = dot(grads, tl.trans(_tile(value, columns, VALUE_WIDTH)), EXACT)
        mixed_grads = weights * (products - delta_rows[:, None]) * gain
        shared_grads = share * mixed_grads
        inner_deltas += tl.sum(shared_grads, 1)
        weighted = add_dot(weighted, shared_grads, keys, EXACT)
        mean_keys = add_dot(mean_keys, share, keys, EXACT)
        mixed_grads *= mu * slope
        bias_grads += tl.sum(mixed_grads, 1)
        if CHUNK != FOLDED:
            folded_keys = _tile(folded_key, columns, FOLDED)
        folded_grads = add_dot(folded_grads, mixed_grads, folded_keys, EXACT)

    folded_query_grad += pair * steps_padded * FOLDED + rows[:, None] * FOLDED + tl.arange(0, FOLDED)[None, :]
    tl.store(folded_query_grad, (folded_grads / gain).to(folded_query_grad.dtype.element_ty))
    # ln 2 takes the log2(e) out of `scale` again.
    query_grads = (weighted - inner_deltas[:, None] * mean_keys) * ((1.0 - mu) * scale * LN_2 / gain)
    at_first = ((tl.load(starts + sample) + block * ROWS) * heads + head) * width
    _store_tile(query_grad + at_first, heads * width, length - block * ROWS, query_grads, width, WIDTH)
    tl.store(inner_delta + pair * steps_padded + rows, inner_deltas)  # with the gain, which the other loop has too
    tl.store(bias_parts + tl.program_id(0), tl.sum(bias_grads, 0) / gain)


@triton.jit(do_not_specialize=["groups"])
def predictive_attention_bwd_key_kernel(
    query, key, value, folded_query, folded_key, grad, bias, starts, lengths, inner, outer, delta, inner_delta,
    key_grad, value_grad, folded_key_grad,
    heads, groups, steps_padded, width, value_width, scale, mu,
    HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, FOLDED: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Block t of line b groups + g: gradients of keys and values for a group of heads, one head after the other.

    All heads share the folded keys: their gradient is summed over the group here, over the groups when it is unfolded. Tiles are
    transposed, (keys, queries), so that each is the left operand of the products that follow.
    """
    block, line = place(steps_padded, COLUMNS)
    sample = (line // groups).to(tl.int64)
    group = line % groups
    length = tl.load(lengths + sample).to(tl.int32)
    if block * COLUMNS >= length:
        return

    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    low = group * heads // groups
    high = (group + 1) * heads // groups
    tl.assume(length > 0)
    tl.assume(high > low)
    real = (columns < length)[:, None]
    folded_key += sample * steps_padded * FOLDED
    if CHUNK == FOLDED:
        folded_keys = _tile(folded_key, columns, FOLDED)
    folded_grads = tl.zeros([COLUMNS, FOLDED], tl.float32)
    gain = _gain(grad)
    for head in range(low, high):
        pair = sample * heads + head
        keys = _tile(key + pair * steps_padded * WIDTH, columns, WIDTH)
        values = _tile(value + pair * steps_padded * VALUE_WIDTH, columns, VALUE_WIDTH)
        offset = 0.0
        if HAS_BIAS:
            offset = tl.load(bias + head).to(tl.float32)
        key_grads = tl.zeros([COLUMNS, WIDTH], tl.float32)
        value_grads = tl.zeros([COLUMNS, VALUE_WIDTH], tl.float32)
        for start in range(0, length, ROWS):
            rows = start + tl.arange(0, ROWS)
            inside = rows < length
            inner_rows = tl.load(inner + pair * steps_padded + rows, mask=inside, other=float("inf"))
            outer_rows = tl.load(outer + pair * steps_padded + rows, mask=inside, other=float("inf"))
            delta_rows = tl.load(delta + pair * steps_padded + rows, mask=inside, other=0.0)
            inner_deltas = tl.load(inner_delta + pair * steps_padded + rows, mask=inside, other=0.0)
            queries = _tile(query + pair * steps_padded * WIDTH, rows, WIDTH)
            logits = dot(keys, tl.trans(queries), EXACT) * scale - inner_rows[None, :]
            share = tl.exp2(tl.where(real, logits, -float("inf")))
            folded_rows = folded_query + pair * steps_padded * FOLDED
            if CHUNK == FOLDED:
                folded_queries = _tile(folded_rows, rows, FOLDED)
                folded = dot(folded_keys, tl.trans(folded_queries), EXACT) + offset
            else:
                folded = _folded_dot(folded_key, columns, folded_rows, rows, FOLDED, CHUNK, EXACT) + offset
            gelu, slope = _gelu_and_slope(folded, EXACT)
            mixed = (mu * LOG2_E) * gelu + ((1.0 - mu) * LOG2_E) * share - outer_rows[None, :]
            weights = tl.exp2(tl.where(real, mixed, -float("inf")))
            grads = _tile(grad + pair * steps_padded * VALUE_WIDTH, rows, VALUE_WIDTH)
            value_grads = add_dot(value_grads, weights, grads, EXACT)
            products = dot(values, tl.trans(grads), EXACT)
            mixed_grads = weights * (products - delta_rows[None, :]) * gain
            logit_grads = share * (mixed_grads - inner_deltas[None, :])
            key_grads = add_dot(key_grads, logit_grads, queries, EXACT)
            mixed_grads *= mu * slope
            if CHUNK != FOLDED:
                folded_queries = _tile(folded_rows, rows, FOLDED)
            folded_grads = add_dot(folded_grads, mixed_grads, folded_queries, EXACT)
        # ln 2 takes the log2(e) out of `scale` again.
        key_grads *= (1.0 - mu) * scale * LN_2 / gain
        at_first = (tl.load(starts + sample) + block * COLUMNS) * heads + head
        count = length - block * COLUMNS
        _store_tile(key_grad + at_first * width, heads * width, count, key_grads, width, WIDTH)
        _store_tile(value_grad + at_first * value_width, heads * value_width, count, value_grads, value_width, VALUE_WIDTH)
    folded_key_grad += (sample * groups + group) * steps_padded * FOLDED
    tl.store(folded_key_grad + columns[:, None] * FOLDED + tl.arange(0, FOLDED)[None, :], folded_grads / gain)
