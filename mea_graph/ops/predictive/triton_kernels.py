"""Triton kernels of predictive attention: the forward loop over keys, and the backward loops over keys and over queries.

Their operands are the aligned, zero-filled copies that `triton_fold.py` writes. Everything is in base 2, so that an exponential is one
instruction: with s the inner logits (in units of ln 2), u = conv(A_pre) before GELU, and row statistics `inner` and `outer`

    share = 2^(s - inner + shift) = (1 - mu) log2(e) p      the inner softmax p, in the units of the outer logits
    z = mu log2(e) GELU(u) + share                          the outer logits
    P = 2^(z - outer)                                       the outer softmax, times V

Backward, with delta = rowsum(dO o O) and g = rowsum(p o dz):

    dz = P o (dO V^T - delta)      du = mu GELU'(u) o dz      ds = (1 - mu) p o (dz - g)

`scale` has log2(e) in it, and each gradient of a share an (1 - mu) log2(e), which ln(2)^2 and ln(2) take out again. Keys that do not exist
are zeros and so weigh nothing in any product, if only their weights are numbers: that is all that is asked of these.

Nothing is accumulated across programs: the results are the same on every run.
"""

import triton
import triton.language as tl

from mea_graph.ops.interval.triton_kernels import LN_2, LOWEST, add_dot, dot
from mea_graph.ops.predictive.triton_fold import place
from mea_graph.ops.predictive.triton_gelu import gelu, gelu_and_slope
from mea_graph.ops.predictive.triton_once import LOG2_E, attend_once, fold_columns
from mea_graph.ops.predictive.triton_once import tile as _tile


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
def store_tile(target, stride, count, tile, width, WIDTH: tl.constexpr):
    """The first `count` rows into the caller's tensor, one head of a block of steps. Offsets from its first row fit int32."""
    rows = tl.arange(0, tile.shape[0])[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    tl.store(target + rows * stride + columns, tile.to(target.dtype.element_ty), mask=(rows < count) & (columns < width))


@triton.jit
def _largest(norms, blocks):
    at = tl.arange(0, 128)
    found = tl.zeros([128], tl.float32)
    for first in range(0, blocks, 128):
        found = tl.maximum(found, tl.load(norms + first + at, mask=first + at < blocks, other=0.0))
    return tl.max(found, 0)


@triton.jit
def bounds(norms, pair, first_pair, pairs, stride, blocks, scale, mu):
    """What the inner and the outer logits of a head cannot pass: no product is longer than both of its factors."""
    norms += pair * stride
    squares = _largest(norms, blocks) * _largest(norms + pairs * stride, blocks)
    of_folded = _largest(norms + 2 * pairs * stride, blocks) * _largest(norms + (3 * pairs + first_pair - pair) * stride, blocks)
    return tl.sqrt(squares) * scale, tl.sqrt(of_folded) * (mu * LOG2_E)


@triton.jit
def _attend_bounded(
    queries, folded_queries, key, value, folded_query, folded_key, length, rows, value_width, scale, mu, shift,
    WIDTH: tl.constexpr, FOLDED: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """No maximum runs along, no key is masked (spare channels do that), and the sums of the outer softmax are a column of the result."""
    totals = tl.zeros([queries.shape[0], 8], tl.float32)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        totals += fold_columns(tl.exp2(dot(queries, tl.trans(_tile(key, columns, WIDTH)), EXACT) * scale))
    inner_rows = tl.log2(tl.sum(totals, 1))

    shifts = (shift - inner_rows)[:, None]
    sums = tl.zeros([queries.shape[0], WIDTH], tl.float32)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        share = tl.exp2(dot(queries, tl.trans(_tile(key, columns, WIDTH)), EXACT) * scale + shifts)
        if CHUNK == FOLDED:
            folded = dot(folded_queries, tl.trans(_tile(folded_key, columns, FOLDED)), EXACT)
        else:
            folded = _folded_dot(folded_query, rows, folded_key, columns, FOLDED, CHUNK, EXACT)
        weights = tl.exp2(gelu(folded, EXACT, key.dtype.element_ty == tl.bfloat16) * (mu * LOG2_E) + share)
        sums = add_dot(sums, weights, _tile(value, columns, WIDTH), EXACT)
    total = tl.sum(tl.where((tl.arange(0, WIDTH) == value_width)[None, :], sums, 0.0), 1)
    return sums, total, inner_rows, tl.log2(total)


@triton.jit
def _attend(
    queries, folded_queries, key, value, folded_query, folded_key, length, rows, scale, mu,
    WIDTH: tl.constexpr, FOLDED: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """For logits of any size."""
    top = tl.full([queries.shape[0]], LOWEST, tl.float32)
    total = tl.zeros([queries.shape[0]], tl.float32)
    for start in range(0, length, COLUMNS):  # statistics of the inner softmax
        columns = start + tl.arange(0, COLUMNS)
        real = columns < length
        logits = dot(queries, tl.trans(_tile(key, columns, WIDTH)), EXACT) * scale
        logits = tl.where(real[None, :], logits, -float("inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(logits - higher[:, None]), 1)
        top = higher
    inner_rows = top + tl.log2(total)

    top = tl.full([queries.shape[0]], LOWEST, tl.float32)
    total = tl.zeros([queries.shape[0]], tl.float32)
    sums = tl.zeros([queries.shape[0], WIDTH], tl.float32)
    for start in range(0, length, COLUMNS):  # the outer softmax, its maximum found on the way, times V
        columns = start + tl.arange(0, COLUMNS)
        real = columns < length
        logits = dot(queries, tl.trans(_tile(key, columns, WIDTH)), EXACT) * scale
        share = tl.exp2(logits - inner_rows[:, None])
        if CHUNK == FOLDED:
            folded = dot(folded_queries, tl.trans(_tile(folded_key, columns, FOLDED)), EXACT)
        else:
            folded = _folded_dot(folded_query, rows, folded_key, columns, FOLDED, CHUNK, EXACT)
        mixed = (mu * LOG2_E) * gelu(folded, EXACT, key.dtype.element_ty == tl.bfloat16) + ((1.0 - mu) * LOG2_E) * share
        mixed = tl.where(real[None, :], mixed, -float("inf"))
        higher = tl.maximum(top, tl.max(mixed, 1))
        shrink = tl.exp2(top - higher)
        weights = tl.exp2(mixed - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        values = _tile(value, columns, WIDTH)
        sums = add_dot(sums * shrink[:, None], weights, values, EXACT)
        top = higher
    return sums, total, inner_rows, top + tl.log2(total)


@triton.jit
def _attend_twice(
    short, queries, folded_queries, key, value, folded_query, folded_key, length, rows, value_width, scale, mu, shift,
    WIDTH: tl.constexpr, FOLDED: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    if short:
        sums, total, inner_rows, outer_rows = _attend_bounded(
            queries, folded_queries, key, value, folded_query, folded_key, length, rows, value_width, scale, mu, shift,
            WIDTH, FOLDED, CHUNK, COLUMNS, EXACT,
        )  # fmt: skip
    else:
        sums, total, inner_rows, outer_rows = _attend(
            queries, folded_queries, key, value, folded_query, folded_key, length, rows, scale, mu,
            WIDTH, FOLDED, CHUNK, COLUMNS, EXACT,
        )  # fmt: skip
    return sums, total, inner_rows, outer_rows


@triton.jit
def predictive_attention_fwd_kernel(
    query, key, value, folded_query, folded_key, norms, starts, lengths,
    out, inner, outer,
    heads, steps_padded, value_width, scale, mu, shift,
    SPARE: tl.constexpr, NORM_ROWS: tl.constexpr, WIDTH: tl.constexpr, FOLDED: tl.constexpr, CHUNK: tl.constexpr,
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
    value += pair * steps_padded * WIDTH
    folded_key += sample * steps_padded * FOLDED
    queries = _tile(query + pair * steps_padded * WIDTH, rows, WIDTH)
    folded_query += pair * steps_padded * FOLDED
    folded_queries = _tile(folded_query, rows, FOLDED) if CHUNK == FOLDED else queries  # read only if all channels are taken at once
    once = False
    short = False
    if SPARE:
        inner_bound, outer_bound = bounds(
            norms, pair, sample * heads, tl.num_programs(0) // (steps_padded // ROWS), steps_padded // NORM_ROWS,
            tl.cdiv(length, NORM_ROWS), scale, mu,
        )  # fmt: skip
        # So that no sum of powers of two leaves float32. Outer logits are at least -0.17 mu log2(e): their sum is at least 0.8.
        short = (inner_bound < 100.0) & (outer_bound < 98.0)
        once = 3.0 * inner_bound + outer_bound < 98.0
        tl.debug_barrier()  # after it, the compiler takes the branches for those of all threads: addresses are uniform there
    ONCE: tl.constexpr = SPARE and CHUNK == FOLDED and not EXACT
    if ONCE:
        if once:
            sums, total, inner_rows, outer_rows = attend_once(
                queries, folded_queries, key, value, folded_key, length, value_width, scale, mu, WIDTH, FOLDED, COLUMNS
            )
        else:
            sums, total, inner_rows, outer_rows = _attend_twice(
                short, queries, folded_queries, key, value, folded_query, folded_key, length, rows, value_width, scale, mu, shift,
                WIDTH, FOLDED, CHUNK, COLUMNS, EXACT,
            )  # fmt: skip
    else:
        sums, total, inner_rows, outer_rows = _attend_twice(
            short, queries, folded_queries, key, value, folded_query, folded_key, length, rows, value_width, scale, mu, shift,
            WIDTH, FOLDED, CHUNK, COLUMNS, EXACT,
        )  # fmt: skip
    sums = sums / total[:, None]
    at_first = ((tl.load(starts + sample) + block * ROWS) * heads + head) * value_width
    store_tile(out + at_first, heads * value_width, length - block * ROWS, sums, value_width, WIDTH)
    tl.store(inner + rows, inner_rows)
    tl.store(outer + rows, outer_rows)


@triton.jit
def _gain(copy):
    """What gradients of maps are multiplied by before they are rounded to the dtype of the copies: in float16, where they are products of
    two softmaxes, they would fall below what it holds. An exact power of two; what is summed of them is divided by it again."""
    return 256.0 if copy.dtype.element_ty == tl.float16 else 1.0


@triton.jit(do_not_specialize=["width"])  # of 16 or 32, known to be multiples of 16, 16 bytes would spill in float32
def predictive_attention_bwd_query_kernel(
    query, key, value, folded_query, folded_key, grad, starts, lengths, inner, outer, delta,
    query_grad, folded_query_grad, bias_parts, inner_delta,
    heads, steps_padded, width, scale, mu, shift,
    SPARE: tl.constexpr, WIDTH: tl.constexpr, FOLDED: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Block t of line b heads + o: gradients of queries and folded queries, and g = rowsum(p o dz) for the other loop.

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

    rows = block * ROWS + tl.arange(0, ROWS)
    tl.assume(length > 0)
    key += pair * steps_padded * WIDTH
    value += pair * steps_padded * WIDTH
    folded_key += sample.to(tl.int64) * steps_padded * FOLDED
    queries = _tile(query + pair * steps_padded * WIDTH, rows, WIDTH)
    folded_query += pair * steps_padded * FOLDED
    if CHUNK == FOLDED:
        folded_queries = _tile(folded_query, rows, FOLDED)
    grads = _tile(grad + pair * steps_padded * WIDTH, rows, WIDTH)
    outer_rows = tl.load(outer + pair * steps_padded + rows)
    if not SPARE:  # with it, the products subtract them
        inner_rows = tl.load(inner + pair * steps_padded + rows)[:, None]
        delta_rows = tl.load(delta + pair * steps_padded + rows)[:, None]
    gain = _gain(grad)

    inner_deltas = tl.zeros([ROWS], tl.float32)
    bias_grads = tl.zeros([ROWS, 8], tl.float32)
    weighted = tl.zeros([ROWS, WIDTH], tl.float32)
    mean_keys = tl.zeros([ROWS, WIDTH], tl.float32)
    folded_grads = tl.zeros([ROWS, FOLDED], tl.float32)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        values = _tile(value, columns, WIDTH)
        keys = _tile(key, columns, WIDTH)
        if CHUNK == FOLDED:
            folded_keys = _tile(folded_key, columns, FOLDED)
        products = dot(grads, tl.trans(values), EXACT)
        if not SPARE:
            products = tl.where((columns < length)[None, :], products - delta_rows, 0.0)
        logits = dot(queries, tl.trans(keys), EXACT) * scale + shift
        if not SPARE:
            logits = tl.where((columns < length)[None, :], logits - inner_rows, -float("inf"))
        share = tl.exp2(logits)
        if CHUNK == FOLDED:
            folded = dot(folded_queries, tl.trans(folded_keys), EXACT)
        else:
            folded = _folded_dot(folded_query, rows, folded_key, columns, FOLDED, CHUNK, EXACT)
        activated, slope = gelu_and_slope(folded, EXACT, key.dtype.element_ty == tl.bfloat16)
        weights = tl.exp2(activated * (mu * LOG2_E) + (share - outer_rows[:, None]))
        mixed_grads = weights * products * gain
        shared_grads = share * mixed_grads
        if not SPARE:
            inner_deltas += tl.sum(shared_grads, 1)
        weighted = add_dot(weighted, shared_grads, keys, EXACT)
        mean_keys = add_dot(mean_keys, share, keys, EXACT)
        mixed_grads *= slope
        bias_grads += fold_columns(mixed_grads)  # a product would round each
        if CHUNK != FOLDED:
            folded_keys = _tile(folded_key, columns, FOLDED)
        folded_grads = add_dot(folded_grads, mixed_grads, folded_keys, EXACT)

    if SPARE:
        inner_deltas = tl.sum(tl.where((tl.arange(0, WIDTH) == width + 1)[None, :], weighted, 0.0), 1)
    inner_deltas *= tl.exp2(-shift)
    query_grads = (weighted - inner_deltas[:, None] * mean_keys) * (scale * LN_2 * LN_2 / gain)
    at_first = ((tl.load(starts + sample) + block * ROWS) * heads + head) * width
    store_tile(query_grad + at_first, heads * width, length - block * ROWS, query_grads, width, WIDTH)
    tl.store(inner_delta + pair * steps_padded + rows, inner_deltas)  # with the gain, which the other loop has too
    folded_query_grad += pair * steps_padded * FOLDED + rows[:, None] * FOLDED + tl.arange(0, FOLDED)[None, :]
    tl.store(folded_query_grad, (folded_grads * (mu / gain)).to(folded_query_grad.dtype.element_ty))
    tl.store(bias_parts + tl.program_id(0), tl.sum(bias_grads) * (mu / gain))


@triton.jit(do_not_specialize=["groups"])
def predictive_attention_bwd_key_kernel(
    query, key, value, folded_query, folded_key, grad, starts, lengths, inner, outer, delta, inner_delta,
    key_grad, value_grad, folded_key_grad,
    heads, groups, steps_padded, width, value_width, scale, mu, shift,
    PART: tl.constexpr, PARTS: tl.constexpr, SPARE: tl.constexpr, WIDTH: tl.constexpr, FOLDED: tl.constexpr,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Block t of line b groups + g: gradients of keys and values for a group of heads, one head after the other.

    All heads share the folded keys: their gradient is summed over the group here, over the groups when it is unfolded. Tiles are
    transposed, (keys, queries), so that each is the left operand of the products that follow.

    A wide gradient of folded keys leaves no registers for the rest, so that each of PARTS launches computes the maps again and sums an
    equal part of its channels; the first also sums the gradient of values, the last that of keys. PARTS > 1 asks for CHUNK < FOLDED.

    Queries that do not exist weigh nothing either: they, their gradients and deltas are zeros, their statistics numbers. `inner_delta` has
    numbers wherever a tile of the other loop lies, and so a tile of this one must not have more rows.
    """
    block, line = place(steps_padded, COLUMNS)
    sample = line // groups
    group = line % groups
    length = tl.load(lengths + sample).to(tl.int32)
    if block * COLUMNS >= length:
        return

    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    low = group * heads // groups
    high = (group + 1) * heads // groups
    tl.assume(length > 0)
    tl.assume(high > low)
    folded_key += sample.to(tl.int64) * steps_padded * FOLDED
    if CHUNK == FOLDED:
        folded_keys = _tile(folded_key, columns, FOLDED)
    part_channels = PART * (FOLDED // PARTS) + tl.arange(0, FOLDED // PARTS)[None, :]
    folded_grads = tl.zeros([COLUMNS, FOLDED // PARTS], tl.float32)
    gain = _gain(grad)
    for head in range(low, high):
        pair = (sample * heads + head).to(tl.int64)
        keys = _tile(key + pair * steps_padded * WIDTH, columns, WIDTH)
        values = _tile(value + pair * steps_padded * WIDTH, columns, WIDTH)
        key_grads = tl.zeros([COLUMNS, WIDTH], tl.float32)
        value_grads = tl.zeros([COLUMNS, WIDTH], tl.float32)
        for start in range(0, length, ROWS):
            rows = start + tl.arange(0, ROWS)
            grads = _tile(grad + pair * steps_padded * WIDTH, rows, WIDTH)
            queries = _tile(query + pair * steps_padded * WIDTH, rows, WIDTH)
            folded_rows = folded_query + pair * steps_padded * FOLDED
            if CHUNK == FOLDED:
                folded_queries = _tile(folded_rows, rows, FOLDED)
            outer_rows = tl.load(outer + pair * steps_padded + rows)
            inner_deltas = tl.load(inner_delta + pair * steps_padded + rows)
            products = dot(values, tl.trans(grads), EXACT)
            if not SPARE:
                products -= tl.load(delta + pair * steps_padded + rows)[None, :]
            logits = dot(keys, tl.trans(queries), EXACT) * scale + shift
            if not SPARE:
                logits -= tl.load(inner + pair * steps_padded + rows)[None, :]
            share = tl.exp2(logits)
            if CHUNK == FOLDED:
                folded = dot(folded_keys, tl.trans(folded_queries), EXACT)
            else:
                folded = _folded_dot(folded_key, columns, folded_rows, rows, FOLDED, CHUNK, EXACT)
            activated, slope = gelu_and_slope(folded, EXACT, key.dtype.element_ty == tl.bfloat16)
            weights = tl.exp2(activated * (mu * LOG2_E) + (share - outer_rows[None, :]))
            if PART == 0:
                value_grads = add_dot(value_grads, weights, grads, EXACT)
            mixed_grads = weights * products * gain
            if PART == PARTS - 1:
                logit_grads = share * (mixed_grads - inner_deltas[None, :])
                key_grads = add_dot(key_grads, logit_grads, queries, EXACT)
            mixed_grads *= slope
            if CHUNK != FOLDED:
                folded_queries = tl.load(folded_rows + rows[:, None] * FOLDED + part_channels)
            folded_grads = add_dot(folded_grads, mixed_grads, folded_queries, EXACT)
        at_first = (tl.load(starts + sample) + block * COLUMNS) * heads + head
        count = length - block * COLUMNS
        if PART == 0:
            store_tile(value_grad + at_first * value_width, heads * value_width, count, value_grads, value_width, WIDTH)
        if PART == PARTS - 1:
            key_grads *= scale * LN_2 * LN_2 / gain
            store_tile(key_grad + at_first * width, heads * width, count, key_grads, width, WIDTH)
    folded_key_grad += line.to(tl.int64) * steps_padded * FOLDED
    tl.store(folded_key_grad + columns[:, None] * FOLDED + part_channels, folded_grads * (mu / gain))
