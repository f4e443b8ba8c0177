"""Triton kernels that write what the loops of `triton_halves.py` read: float32 numbers as two of float16, or as three of bfloat16.

float16 has 11 bits and little range, so a number x of a tensor is kept as

    x = 2^e (high + low)      high = float16(x / 2^e), low = float16 of the rest

with a power of two for each tensor, and each head of each sample, that brings the largest number near the end of float16's range. Folded
rows have these two, side by side. Narrow rows keep `low` in units of 2^-11, and have a copy of `high` that is smaller by as much, in four
groups of channels:

    query, gradient    high, low 2^11, high 2^-11, spare
    key, value         high, high 2^-11, low 2^11, spare

so that one product of two such rows is high high + low high + high low. Narrow rows that multiply maps are there once more, in three parts
of bfloat16, whose range is float32's.

Channels that would hold nothing but zeros save the loops work:

    behind a head's channels    of values UNIT for each step, and of gradients minus the row's delta divided by it: dO V^T comes with delta
                                subtracted
    in the last group           of queries FAR, and of keys -FAR where there is no step: no logit is lower than theirs
    behind the three parts      1 for each step, so that products sum rows as well
    in the folded key           1 for each step, for the gradient of the bias

The folded operands are those of `triton_fold.py`, without the bias. Names are as there.
"""

import triton
import triton.language as tl

from mea_graph.ops.predictive.triton_fold import _norm, _take, place, shares, taken

LARGE = tl.constexpr(2048.0)  # 2^11: how much smaller the second half is than the first
SMALL = tl.constexpr(1.0 / 2048)
FAR = tl.constexpr(32768.0)
UNIT = tl.constexpr(8192.0)  # what no number of a narrow copy reaches
PRODUCTS = tl.constexpr(2.0**-17)  # units of dO V^T in the loops: its largest entry is 2^14 then, and gradients of maps fit float16
PARTS = tl.constexpr(16)  # channels of a narrow copy in three parts of bfloat16: five in each, and one to spare
POWERS = tl.constexpr(8)  # for each head of each sample: those of query, key, value, gradient, folded query and folded key; prior's sizes
STATISTICS = tl.constexpr(16)  # rows whose inner statistics lie side by side, then their outer ones, then g; a fourth place is not used


@triton.jit
def at_statistics(base, rows, WHICH: tl.constexpr):
    return base + rows // STATISTICS * (4 * STATISTICS) + rows % STATISTICS + STATISTICS * WHICH


@triton.jit
def _below(size):
    """The power of two at or below a number; not so small that products of two vanish."""
    return tl.maximum((size.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True), 2.0**-60)


@triton.jit
def _inverse(power):
    """Of a power of two, exactly."""
    return (0x7F000000 - power.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def _larger(largest, source, stride, rows, real, width, PADDED: tl.constexpr):
    """What is infinite stays so, whatever the power."""
    size = tl.abs(_take(source, stride, rows, real, width, PADDED))
    return tl.maximum(largest, tl.where(size < float("inf"), size, 0.0))


@triton.jit
def _largest(tile):
    return _below(tl.max(tl.max(tile, 1), 0))


@triton.jit
def predictive_attention_power_kernel(
    query, query_t, query_h,
    key, key_t, key_h,
    value, value_t, value_h,
    prior_query, prior_query_t, prior_query_h,
    prior_key, prior_key_t, prior_key_h,
    grad, grad_t, grad_h,  # read by the backward pass only
    starts, lengths, powers, heads, width, value_width, prior_width,
    BACKWARD: tl.constexpr, WIDTH: tl.constexpr, PRIOR_WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Head o of sample b: its powers of two, and the sizes of its prior's query and key."""
    sample = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    first = tl.load(starts + sample)
    length = tl.load(lengths + sample).to(tl.int32)
    query += first * query_t + head * query_h
    key += first * key_t + head * key_h
    value += first * value_t + head * value_h
    prior_query += first * prior_query_t + head * prior_query_h
    prior_key += first * prior_key_t + head * prior_key_h
    grad += first * grad_t + head * grad_h
    of_query = tl.zeros([ROWS, WIDTH], tl.float32)
    of_key = tl.zeros([ROWS, WIDTH], tl.float32)
    of_value = tl.zeros([ROWS, WIDTH], tl.float32)
    of_grad = tl.zeros([ROWS, WIDTH], tl.float32)
    of_prior_query = tl.zeros([ROWS, PRIOR_WIDTH], tl.float32)
    of_prior_key = tl.zeros([ROWS, PRIOR_WIDTH], tl.float32)
    for start in range(0, length, ROWS):
        rows = start + tl.arange(0, ROWS)
        real = rows < length
        of_query = _larger(of_query, query, query_t, rows, real, width, WIDTH)
        of_key = _larger(of_key, key, key_t, rows, real, width, WIDTH)
        of_value = _larger(of_value, value, value_t, rows, real, value_width, WIDTH)
        of_prior_query = _larger(of_prior_query, prior_query, prior_query_t, rows, real, prior_width, PRIOR_WIDTH)
        of_prior_key = _larger(of_prior_key, prior_key, prior_key_t, rows, real, prior_width, PRIOR_WIDTH)
        if BACKWARD:
            of_grad = _larger(of_grad, grad, grad_t, rows, real, value_width, WIDTH)
    powers += tl.program_id(0).to(tl.int64) * POWERS
    tl.store(powers, _largest(of_query) * (2.0 / UNIT))
    tl.store(powers + 1, _largest(of_key) * (2.0 / UNIT))
    tl.store(powers + 2, _largest(of_value) * (2.0 / UNIT))
    tl.store(powers + 3, _largest(of_grad) * (2.0 / UNIT))
    tl.store(powers + 6, _largest(of_prior_query))
    tl.store(powers + 7, _largest(of_prior_key))


@triton.jit
def _put_halves(target, at, tile, PADDED: tl.constexpr):
    """A folded tile: both halves, side by side."""
    target += at[:, None] * (2 * PADDED) + tl.arange(0, PADDED)[None, :]
    high = tile.to(tl.float16)
    tl.store(target, high)
    tl.store(target + PADDED, (tile - high.to(tl.float32)).to(tl.float16))


@triton.jit
def _put_groups(target, tile, spare, RIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """A narrow tile in four groups of channels, in the order for the right or the left side of a product."""
    high = tile.to(tl.float16)
    tl.store(target, high)
    tl.store(target + (2 if RIGHT else 1) * WIDTH, ((tile - high.to(tl.float32)) * LARGE).to(tl.float16))
    tl.store(target + (1 if RIGHT else 2) * WIDTH, (high.to(tl.float32) * SMALL).to(tl.float16))
    tl.store(target + 3 * WIDTH, spare.to(tl.float16))


@triton.jit
def _put_parts(target, at, stride, tile, width, exists, WIDTH: tl.constexpr):
    """A narrow tile in three parts of bfloat16, side by side, then 1 for each step."""
    target += at[:, None] * stride
    columns = tl.arange(0, PARTS)[None, :]
    tl.store(target + columns, tl.where(columns == 3 * width, exists[:, None], 0.0).to(tl.bfloat16), mask=columns >= 3 * width)
    columns = tl.arange(0, WIDTH)[None, :]
    for part in tl.static_range(3):
        rounded = tile.to(tl.bfloat16)
        tl.store(target + part * width + columns, rounded, mask=columns < width)
        tile -= rounded.to(tl.float32)


@triton.jit(do_not_specialize=["per_set"])
def predictive_attention_fold_kernel(
    query, query_t, query_h,
    key, key_t, key_h,
    value, value_t, value_h,
    prior_query, prior_query_t, prior_query_h,
    prior_key, prior_key_t, prior_key_h,
    grad, grad_t, grad_h, inner, outer, out,  # read by the backward pass only
    weight, starts, lengths, powers,
    query_copy, key_copy, query_parts, key_parts, folded_query, folded_key, statistics,
    norms,  # (4, B, K, blocks): of the longest query, key, folded query and folded key of a block, squared; written for the forward pass
    steps_padded, width, value_width, per_set, prior_scale,
    HEADS: tl.constexpr, PRIOR_WIDTH: tl.constexpr, BACKWARD: tl.constexpr,
    TOGETHER: tl.constexpr, WIDTH: tl.constexpr, FOLDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Block t of line b (groups + 1) + g: steps of the heads of group g, TOGETHER at most; the last g: of the folded keys.

    In the backward pass rows of queries and gradients lie side by side, and so do keys and values. `key_parts` are the keys' parts there,
    and the values' in the forward pass.
    """
    block, line = place(steps_padded, ROWS)
    LINES: tl.constexpr = (HEADS + TOGETHER - 1) // TOGETHER + 1
    sample = (line // LINES).to(tl.int64)
    group = line % LINES
    length = tl.load(lengths + sample).to(tl.int32)
    if block * ROWS >= tl.cdiv(length, BLOCK) * BLOCK:
        return
    first = tl.load(starts + sample)
    rows = block * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, FOLDED)
    ALL_HEADS: tl.constexpr = HEADS * PRIOR_WIDTH
    shift = columns // ALL_HEADS
    other = columns % ALL_HEADS // PRIOR_WIDTH
    channel = columns % PRIOR_WIDTH
    used = columns < 3 * ALL_HEADS
    blocks = steps_padded // ROWS
    lines = tl.num_programs(0) // LINES * HEADS  # B K blocks
    norms += sample * HEADS * blocks + block
    real = rows < length
    exists = real.to(tl.float32)
    of_priors = powers + (sample * HEADS + other) * POWERS
    of_folded_key = tl.max(tl.load(of_priors + 7, mask=used, other=0.0), 0) * (1.0 / UNIT)  # below 2^14 then

    if group == LINES - 1:
        steps = rows[:, None] + shift[None, :] - 1
        inside = (steps >= 0) & (steps < length) & used[None, :] & real[:, None]
        at = (first + steps) * prior_key_t + (other.to(tl.int64) * prior_key_h + channel)[None, :]
        tile = tl.load(prior_key + at, mask=inside, other=0.0).to(tl.float32)
        if not BACKWARD:
            tl.store(norms + 3 * lines, _norm(tile))
        tile = tl.where((columns == 3 * ALL_HEADS)[None, :], exists[:, None], tile * _inverse(of_folded_key))
        _put_halves(folded_key, sample * steps_padded + rows, tile, FOLDED)
        return

    weight += sample // per_set * (HEADS * HEADS * 9)
    source = prior_query + first * prior_query_t + (other.to(tl.int64) * prior_query_h + channel)[None, :]
    used_by = used[None, :] & real[:, None]
    before = taken(source, prior_query_t, rows - 1, used_by, length)
    here = taken(source, prior_query_t, rows, used_by, length)
    after = taken(source, prior_query_t, rows + 1, used_by, length)
    sizes = tl.load(of_priors + 6, mask=used, other=0.0)
    STRIDE: tl.constexpr = 8 * WIDTH if BACKWARD else 4 * WIDTH
    narrow = tl.arange(0, WIDTH)[None, :]
    for head in range(group * TOGETHER, min(group * TOGETHER + TOGETHER, HEADS)):
        by_first, by_middle, by_last = shares(weight + (head * HEADS + other) * 9 + shift, used, prior_scale)
        bound = tl.max((tl.abs(by_first) + tl.abs(by_middle) + tl.abs(by_last)) * sizes, 0)
        of_folded_query = _below(bound) * (4.0 / (2.0 * UNIT))
        unit = _inverse(of_folded_query)
        tile = (by_first * unit)[None, :] * before.to(tl.float32)
        tile += (by_middle * unit)[None, :] * here.to(tl.float32)
        tile += (by_last * unit)[None, :] * after.to(tl.float32)
        pair = sample * HEADS + head
        of_head = powers + pair * POWERS
        if block == 0:
            tl.store(of_head + 4, of_folded_query)
            tl.store(of_head + 5, of_folded_key)
        at = pair * steps_padded + rows
        _put_halves(folded_query, at, tile, FOLDED)

        # One copy after the other: a store between the loads keeps the compiler from holding all tiles in registers at once.
        queries = _take(query + first * query_t + tl.cast(head, tl.int64) * query_h, query_t, rows, real, width, WIDTH)
        if BACKWARD:
            _put_parts(query_parts, at, 2 * PARTS, queries, width, exists, WIDTH)
        else:
            tl.store(norms + 2 * lines + head * blocks, _norm(tile) * of_folded_query * of_folded_query)
            tl.store(norms + head * blocks, _norm(queries))
        far = tl.where(narrow == width, exists[:, None] * FAR, 0.0)
        _put_groups(query_copy + at[:, None] * STRIDE + narrow, queries * _inverse(tl.load(of_head)), far, False, WIDTH)
        keys = _take(key + first * key_t + tl.cast(head, tl.int64) * key_h, key_t, rows, real, width, WIDTH)
        if BACKWARD:
            _put_parts(key_parts, at, PARTS, keys, width, exists, WIDTH)
        else:
            tl.store(norms + lines + head * blocks, _norm(keys))
        far = tl.where(narrow == width, (exists - 1.0)[:, None] * FAR, 0.0)
        _put_groups(key_copy + at[:, None] * STRIDE + narrow, keys * _inverse(tl.load(of_head + 1)), far, True, WIDTH)
        values = _take(value + first * value_t + tl.cast(head, tl.int64) * value_h, value_t, rows, real, value_width, WIDTH)
        if not BACKWARD:
            _put_parts(key_parts, at, PARTS, values, value_width, exists, WIDTH)
        else:
            nothing = tl.zeros([ROWS, WIDTH], tl.float32)
            in_units = _inverse(tl.load(of_head + 2))
            values = tl.where(narrow == value_width, exists[:, None] * UNIT, values * in_units)
            _put_groups(key_copy + at[:, None] * STRIDE + 4 * WIDTH + narrow, values, nothing, True, WIDTH)
            grads = _take(grad + first * grad_t + tl.cast(head, tl.int64) * grad_h, grad_t, rows, real, value_width, WIDTH)
            _put_parts(query_parts + PARTS, at, 2 * PARTS, grads, value_width, exists, WIDTH)
            grads *= _inverse(tl.load(of_head + 3))
            inside = real[:, None] & (narrow < value_width)
            outs = tl.load(out + ((first + rows) * HEADS + head)[:, None] * value_width + narrow, mask=inside, other=0.0)
            deltas = tl.sum(grads * (outs.to(tl.float32) * in_units), 1)
            grads = tl.where(narrow == value_width, deltas[:, None] * (-1.0 / UNIT), grads)
            _put_groups(query_copy + at[:, None] * STRIDE + 4 * WIDTH + narrow, grads, nothing, False, WIDTH)
            of_pair = statistics + pair * steps_padded * 4
            tl.store(at_statistics(of_pair, rows, 0), tl.load(inner + at, mask=real, other=0.0))
            # Where there is no query, a statistic for which every weight is zero, and none infinite.
            tl.store(at_statistics(of_pair, rows, 1), tl.load(outer + at, mask=real, other=1e30))
