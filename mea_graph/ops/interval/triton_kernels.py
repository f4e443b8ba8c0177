"""Triton kernels of interval attention: forward and the gradient of queries, by target rows; gradients of keys and values, by source rows.

With s the logits in units of ln 2, so that an exponential is one instruction, and `logsumexp` of each row

    P = 2^(s - logsumexp)      out = P V      delta = rowsum(dO o O)      ds = P o (dO V^T - delta)

A program takes a block of rows of one head and visits only the blocks of rows on the other side that hear it, or that it hears. Rows of
other samples and gaps never meet it, whatever they hold. Nothing is accumulated across programs: the results are the same on every run.

Names: rows are of the target, columns of the source; upper case is known at compile time. `starts` and `lengths` are (B,);
`source_starts` and `source_lengths` (B, S), whose pairs of a sample and a source are called segments; `begin` and `end` (N_t, S), read if
HAS_RUNS; otherwise each row hears all of its segments. A tensor is followed by its strides over rows and heads.
"""

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # a running maximum before its first element: finite, for -inf - -inf is NaN
SCAN = tl.constexpr(128)  # numbers looked through at once


@triton.jit
def _halves(x):
    """A float32 as the sum of two that tf32 holds: the first 10 bits of the mantissa, and the rest."""
    high = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def add_dot(total, left, right, EXACT: tl.constexpr):
    """total + left @ right; float32 as three tf32 products, whose error is that of float32.

    By hand, since `input_precision="tf32x3"` also guards against NaN with a second accumulator, for which there are no registers.
    """
    if EXACT:
        left_high, left_low = _halves(left)
        right_high, right_low = _halves(right)
        total = tl.dot(left_low, right_high, total, input_precision="tf32")
        total = tl.dot(left_high, right_low, total, input_precision="tf32")
        return tl.dot(left_high, right_high, total, input_precision="tf32")
    return tl.dot(left.to(right.dtype), right, total)


@triton.jit
def dot(left, right, EXACT: tl.constexpr):
    return add_dot(tl.zeros([left.shape[0], right.shape[1]], tl.float32), left, right, EXACT)


@triton.jit
def find_block(starts, lengths, samples, ROWS: tl.constexpr):
    """A program's sample, the first row of its block and the row after the sample's last; a block from there on is not needed.

    The blocks of sample b have the numbers starts[b] // ROWS + b and up. Since starts rise, no number is given twice.
    """
    index = tl.arange(0, SCAN)
    passed = tl.zeros([SCAN], tl.int32)
    for at in range(0, samples, SCAN):
        start = tl.load(starts + at + index, mask=at + index < samples, other=2147483647).to(tl.int32)
        passed += (start // ROWS + at + index <= tl.program_id(0)).to(tl.int32)
    sample = tl.maximum(tl.sum(passed, 0) - 1, 0)
    start = tl.load(starts + sample).to(tl.int32)
    end = start + tl.load(lengths + sample).to(tl.int32)
    block = tl.program_id(0) - (start // ROWS + sample)
    return sample, tl.where(block >= 0, start + block * ROWS, end), end


@triton.jit
def _tile(source, stride, rows, inside, width, WIDTH: tl.constexpr, EXACT: tl.constexpr):
    """Rows of one head, zeros where nothing is."""
    columns = tl.arange(0, WIDTH)[None, :]
    tile = tl.load(source + rows[:, None].to(tl.int64) * stride + columns, mask=inside[:, None] & (columns < width), other=0.0)
    if EXACT:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _store_tile(target, stride, rows, inside, tile, width, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)[None, :]
    at = target + rows[:, None].to(tl.int64) * stride + columns
    tl.store(at, tile.to(target.dtype.element_ty), mask=inside[:, None] & (columns < width))


@triton.jit
def _runs(begin, end, rows, inside, source, sources, first, last):
    """The columns that each row hears of a segment, none from `last` to `first`."""
    at = rows.to(tl.int64) * sources + source
    low = tl.maximum(tl.load(begin + at, mask=inside, other=0).to(tl.int32), first)
    high = tl.minimum(tl.load(end + at, mask=inside, other=0).to(tl.int32), last)
    return tl.where(low < high, low, last), tl.where(low < high, high, first)


@triton.jit(do_not_specialize=["samples", "sources", "num_rows"])
def interval_attention_fwd_kernel(
    query, query_t, query_h, key, key_t, key_h, value, value_t, value_h,
    starts, lengths, source_starts, source_lengths, begin, end,
    out, logsumexp,
    heads, samples, sources, num_rows, width, value_width, scale,
    HAS_RUNS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Program (t, o): a block of target rows of one sample and head. `scale` has log2(e) in it."""
    sample, first_row, last_row = find_block(starts, lengths, samples, ROWS)
    if first_row >= last_row:
        return
    head = tl.program_id(1).to(tl.int64)
    rows = first_row + tl.arange(0, ROWS)
    inside = rows < last_row
    queries = _tile(query + head * query_h, query_t, rows, inside, width, WIDTH, EXACT)
    key += head * key_h
    value += head * value_h

    top = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    for source in range(sources):
        first = tl.load(source_starts + sample * sources + source).to(tl.int32)
        last = first + tl.load(source_lengths + sample * sources + source).to(tl.int32)
        low = first
        high = last
        if HAS_RUNS:
            lows, highs = _runs(begin, end, rows, inside, source, sources, first, last)
            low = tl.min(lows, 0)
            high = tl.max(highs, 0)
        for at in range(low, high, COLUMNS):
            columns = at + tl.arange(0, COLUMNS)
            near = columns < high
            keys = _tile(key, key_t, columns, near, width, WIDTH, EXACT)
            heard = near[None, :]
            if HAS_RUNS:
                heard = (columns[None, :] >= lows[:, None]) & (columns[None, :] < highs[:, None])
            logits = tl.where(heard, dot(queries, tl.trans(keys), EXACT) * scale, -float("inf"))
            higher = tl.maximum(top, tl.max(logits, 1))
            shrink = tl.exp2(top - higher)
            weights = tl.exp2(logits - higher[:, None])
            total = total * shrink + tl.sum(weights, 1)
            values = _tile(value, value_t, columns, near, value_width, VALUE_WIDTH, EXACT)
            sums = add_dot(sums * shrink[:, None], weights, values, EXACT)
            top = higher

    nothing = total == 0.0  # what a row that hears nothing has for a sum
    sums = sums / tl.where(nothing, 1.0, total)[:, None]
    _store_tile(out + head * value_width, heads * value_width, rows, inside, sums, value_width, VALUE_WIDTH)
    logs = tl.where(nothing, 0.0, top + tl.log2(total))
    tl.store(logsumexp + head * num_rows + rows, logs, mask=inside)


@triton.jit(do_not_specialize=["samples", "sources", "num_rows"])
def interval_attention_bwd_query_kernel(
    query, query_t, query_h, key, key_t, key_h, value, value_t, value_h, grad, grad_t, grad_h,
    starts, lengths, source_starts, source_lengths, begin, end,
    logsumexp, out, delta, query_grad,
    heads, samples, sources, num_rows, width, value_width, scale,
    HAS_RUNS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Program (t, o): the gradient of a block of queries of one sample and head, and `delta` for the other loop."""
    sample, first_row, last_row = find_block(starts, lengths, samples, ROWS)
    if first_row >= last_row:
        return
    head = tl.program_id(1).to(tl.int64)
    rows = first_row + tl.arange(0, ROWS)
    inside = rows < last_row
    queries = _tile(query + head * query_h, query_t, rows, inside, width, WIDTH, EXACT)
    grads = _tile(grad + head * grad_h, grad_t, rows, inside, value_width, VALUE_WIDTH, EXACT)
    outs = _tile(out + head * value_width, heads * value_width, rows, inside, value_width, VALUE_WIDTH, True)
    delta_rows = tl.sum(grads.to(tl.float32) * outs, 1)
    at_rows = head * num_rows + rows
    tl.store(delta + at_rows, delta_rows, mask=inside)
    logs = tl.load(logsumexp + at_rows, mask=inside, other=0.0)
    key += head * key_h
    value += head * value_h

    query_grads = tl.zeros([ROWS, WIDTH], tl.float32)
    for source in range(sources):
        first = tl.load(source_starts + sample * sources + source).to(tl.int32)
        last = first + tl.load(source_lengths + sample * sources + source).to(tl.int32)
        low = first
        high = last
        if HAS_RUNS:
            lows, highs = _runs(begin, end, rows, inside, source, sources, first, last)
            low = tl.min(lows, 0)
            high = tl.max(highs, 0)
        for at in range(low, high, COLUMNS):
            columns = at + tl.arange(0, COLUMNS)
            near = columns < high
            keys = _tile(key, key_t, columns, near, width, WIDTH, EXACT)
            heard = near[None, :]
            if HAS_RUNS:
                heard = (columns[None, :] >= lows[:, None]) & (columns[None, :] < highs[:, None])
            logits = dot(queries, tl.trans(keys), EXACT) * scale - logs[:, None]
            weights = tl.exp2(tl.where(heard, logits, -float("inf")))
            values = _tile(value, value_t, columns, near, value_width, VALUE_WIDTH, EXACT)
            logit_grads = weights * (dot(grads, tl.trans(values), EXACT) - delta_rows[:, None])
            query_grads = add_dot(query_grads, logit_grads, keys, EXACT)

    # ln 2 takes the log2(e) out of `scale` again.
    _store_tile(query_grad + head * width, heads * width, rows, inside, query_grads * (scale * LN_2), width, WIDTH)


@triton.jit
def _segments_of(source_starts, source_lengths, segments, block, end_of_block):
    """The first segment that has rows of a block, and the one after the last."""
    index = tl.arange(0, SCAN)
    lowest = tl.full([SCAN], 2147483647, tl.int32)
    highest = tl.zeros([SCAN], tl.int32)
    for at in range(0, segments, SCAN):
        number = at + index
        first = tl.load(source_starts + number, mask=number < segments, other=0).to(tl.int32)
        last = first + tl.load(source_lengths + number, mask=number < segments, other=0).to(tl.int32)
        meets = (tl.maximum(first, block) < tl.minimum(last, end_of_block)) & (number < segments)
        lowest = tl.minimum(lowest, tl.where(meets, number, 2147483647))
        highest = tl.maximum(highest, tl.where(meets, number + 1, 0))
    return tl.min(lowest, 0), tl.max(highest, 0)


@triton.jit
def _rows_of(begin, end, low, high, source, sources, first, last):
    """Of the rows from `low` to `high`, the first that hears a column from `first` to `last`, and the one after the last."""
    index = tl.arange(0, SCAN)
    lowest = tl.zeros([SCAN], tl.int32) + high
    highest = tl.zeros([SCAN], tl.int32) + low
    for at in range(low, high, SCAN):
        rows = at + index
        lows, highs = _runs(begin, end, rows, rows < high, source, sources, first, last)
        lowest = tl.minimum(lowest, tl.where(lows < highs, rows, high))
        highest = tl.maximum(highest, tl.where(lows < highs, rows + 1, low))
    return tl.min(lowest, 0), tl.max(highest, 0)


@triton.jit(do_not_specialize=["segments", "sources", "num_rows", "num_source_rows"])
def interval_attention_bwd_key_kernel(
    query, query_t, query_h, key, key_t, key_h, value, value_t, value_h, grad, grad_t, grad_h,
    starts, lengths, source_starts, source_lengths, begin, end,
    logsumexp, delta, key_grad, value_grad,
    heads, segments, sources, num_rows, num_source_rows, width, value_width, scale,
    HAS_RUNS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Program (t, o): gradients of a block of keys and values of one head, one segment after the other.

    A block may have rows of several segments, and a row may belong to several. Tiles are transposed, (columns, rows), so that each is the
    left operand of the products that follow.
    """
    head = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) * COLUMNS
    columns = block + tl.arange(0, COLUMNS)
    exists = columns < num_source_rows
    keys = _tile(key + head * key_h, key_t, columns, exists, width, WIDTH, EXACT)
    values = _tile(value + head * value_h, value_t, columns, exists, value_width, VALUE_WIDTH, EXACT)
    query += head * query_h
    grad += head * grad_h
    logsumexp += head * num_rows
    delta += head * num_rows

    key_total = tl.zeros([COLUMNS, WIDTH], tl.float32)
    value_total = tl.zeros([COLUMNS, VALUE_WIDTH], tl.float32)
    first_segment, end_of_segments = _segments_of(source_starts, source_lengths, segments, block, block + COLUMNS)
    for segment in range(first_segment, end_of_segments):
        sample = segment // sources
        source = segment % sources
        first = tl.load(source_starts + segment).to(tl.int32)
        last = first + tl.load(source_lengths + segment).to(tl.int32)
        first = tl.maximum(first, block)
        last = tl.minimum(last, block + COLUMNS)
        low = tl.load(starts + sample).to(tl.int32)
        high = low + tl.load(lengths + sample).to(tl.int32)
        high = tl.where(first < last, high, low)  # of a segment between those that have rows of this block
        if HAS_RUNS:
            low, high = _rows_of(begin, end, low, high, source, sources, first, last)
        heard = (columns >= first) & (columns < last)
        key_grads = tl.zeros([COLUMNS, WIDTH], tl.float32)
        value_grads = tl.zeros([COLUMNS, VALUE_WIDTH], tl.float32)
        for at in range(low, high, ROWS):
            rows = at + tl.arange(0, ROWS)
            inside = rows < high
            queries = _tile(query, query_t, rows, inside, width, WIDTH, EXACT)
            grads = _tile(grad, grad_t, rows, inside, value_width, VALUE_WIDTH, EXACT)
            logs = tl.load(logsumexp + rows, mask=inside, other=0.0)
            delta_rows = tl.load(delta + rows, mask=inside, other=0.0)
            hears = inside[None, :]
            if HAS_RUNS:
                lows, highs = _runs(begin, end, rows, inside, source, sources, first, last)
                hears = (columns[:, None] >= lows[None, :]) & (columns[:, None] < highs[None, :])
            logits = dot(keys, tl.trans(queries), EXACT) * scale - logs[None, :]
            weights = tl.exp2(tl.where(hears, logits, -float("inf")))
            value_grads = add_dot(value_grads, weights, grads, EXACT)
            logit_grads = weights * (dot(values, tl.trans(grads), EXACT) - delta_rows[None, :])
            key_grads = add_dot(key_grads, logit_grads, queries, EXACT)
        # Only here are columns outside the segment cut off: zero times what another sample holds may be NaN.
        key_total += tl.where(heard[:, None], key_grads, 0.0)
        value_total += tl.where(heard[:, None], value_grads, 0.0)

    # ln 2 takes the log2(e) out of `scale` again.
    _store_tile(key_grad + head * width, heads * width, columns, exists, key_total * (scale * LN_2), width, WIDTH)
    _store_tile(value_grad + head * value_width, heads * value_width, columns, exists, value_total, value_width, VALUE_WIDTH)
