"""Triton kernels around the attention loops: fold the convolution into queries and keys, and take its gradients apart again.

The loops want every operand aligned, padded with zeros to powers of two (and to multiples of BLOCK steps, which the
loops' tiles divide), and zero at steps that do not exist. The first kernel writes such copies; what it never writes (blocks beyond a
sample's length) is never read.

The folded width is R = 3 K D: column r of a folded query or key stands for shift y = r // (K D) and, of the heads side by side, channel
r % (K D). With a prior's query q' and key k', both zero at steps that do not exist:

    folded query of head o   qhat_o(i)[y, h, c] = sum_x  weight[o, h, x, y] q'_h(i + x - 1)[c] / sqrt(D)
    folded key of all heads  khat(j)[y, h, c]   = k'_h(j + y - 1)[c]

Channels that would hold nothing but zeros save the loops work:

    column 3 K D of the folded operands   the bias, and 1 for each step: the bias is added by the product
    with SPARE, behind a head's channels  query FAR, key -FAR where there is no step: the exponential of their product is zero
                                          two more of the key and two of the value: 1 for each step, so that products sum rows as well;
                                          backward, with the two parts of a query's statistic, and of its delta, they subtract it

Samples may come in sets, each with a convolution of its own: weight (S, K, K, 3, 3), bias (S, K), for `per_set` samples after each other.

Names: rows are queries, columns are keys; upper case is known at compile time; `real` says which steps exist.
"""

import triton
import triton.language as tl

FAR = tl.constexpr(1.152921504606847e18)  # 2^60


@triton.jit
def place(steps_padded, ROWS: tl.constexpr):
    """A program's block of steps and its line (a sample's head, say). All lines lie on the grid's first axis: the others end at 65535."""
    blocks = steps_padded // ROWS
    return tl.program_id(0) % blocks, tl.program_id(0) // blocks


@triton.jit
def _take(source, stride, rows, real, width, PADDED: tl.constexpr):
    """`width` columns of rows, in float32, in `PADDED` columns with zeros wherever nothing exists."""
    columns = tl.arange(0, PADDED)
    inside = real[:, None] & (columns[None, :] < width)
    return tl.load(source + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _put(target, rows, tile, PADDED: tl.constexpr):
    tl.store(target + rows[:, None] * PADDED + tl.arange(0, PADDED)[None, :], tile.to(target.dtype.element_ty))


@triton.jit
def _mark(tile, column, marks, PADDED: tl.constexpr):
    """The tile with a number for each row in one of its columns."""
    return tl.where((tl.arange(0, PADDED) == column)[None, :], marks[:, None], tile)


@triton.jit
def _mark_parts(tile, column, marks, PADDED: tl.constexpr):
    """The tile with a number for each row in two of its columns, whose sum is that number even where one would be rounded."""
    high = marks.to(tl.bfloat16).to(tl.float32)
    return _mark(_mark(tile, column, high, PADDED), column + 1, marks - high, PADDED)


@triton.jit
def _norm(tile):
    """Of the longest row, squared."""
    return tl.max(tl.sum(tile * tile, 1), 0)


@triton.jit
def taken(at, stride, steps, used, length):
    """Steps of a prior in the columns that use them, as they are stored; zero where no step exists."""
    inside = ((steps >= 0) & (steps < length))[:, None] & used
    return tl.load(at + steps[:, None].to(tl.int64) * stride, mask=inside, other=0.0)


@triton.jit
def shares(at, used, scale):
    """What the taps x = 0, 1, 2 of a head give each column."""
    first = tl.load(at, mask=used, other=0.0).to(tl.float32) * scale
    middle = tl.load(at + 3, mask=used, other=0.0).to(tl.float32) * scale
    last = tl.load(at + 6, mask=used, other=0.0).to(tl.float32) * scale
    return first, middle, last


@triton.jit(do_not_specialize=["per_set"])
def predictive_attention_fold_kernel(
    query, query_t, query_h,  # a tensor, then its strides over rows and heads; the last dimension is dense
    key, key_t, key_h,
    value, value_t, value_h,
    prior_query, prior_query_t, prior_query_h,
    prior_key, prior_key_t, prior_key_h,
    weight, bias, starts, lengths,
    inner, out, grad, grad_t, grad_h,  # read by the backward pass only
    query_copy, key_copy, value_copy, folded_query, folded_key, grad_copy, delta,
    norms,  # (4, B, K, blocks): of the longest query, key, folded query and folded key of a block, squared; written for the forward pass
    steps_padded, width, value_width, per_set, scale, prior_scale,
    HEADS: tl.constexpr, PRIOR_WIDTH: tl.constexpr, BACKWARD: tl.constexpr, HAS_BIAS: tl.constexpr, SPARE: tl.constexpr,
    TOGETHER: tl.constexpr, WIDTH: tl.constexpr, FOLDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Block t of line b (groups + 1) + g: steps of the heads of group g, TOGETHER at most; the last g: of the folded keys.

    All heads share the folded keys. The heads of a group share what the taps read, which is most of the work. The number of heads and the
    prior's width are known at compile time, so that the divisions below cost nothing.
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

    if group == LINES - 1:
        steps = rows[:, None] + shift[None, :] - 1
        inside = (steps >= 0) & (steps < length) & used[None, :] & real[:, None]
        at = (first + steps) * prior_key_t + (other.to(tl.int64) * prior_key_h + channel)[None, :]
        tile = tl.load(prior_key + at, mask=inside, other=0.0).to(tl.float32)
        tile = _mark(tile, 3 * ALL_HEADS, exists, FOLDED)
        _put(folded_key + sample * steps_padded * FOLDED, rows, tile, FOLDED)
        if not BACKWARD:
            tl.store(norms + 3 * lines, _norm(tile))
        return

    weight += sample // per_set * (HEADS * HEADS * 9)
    bias += sample // per_set * HEADS
    source = prior_query + first * prior_query_t + (other.to(tl.int64) * prior_query_h + channel)[None, :]
    used_by = used[None, :] & real[:, None]
    before = taken(source, prior_query_t, rows - 1, used_by, length)
    here = taken(source, prior_query_t, rows, used_by, length)
    after = taken(source, prior_query_t, rows + 1, used_by, length)
    for head in range(group * TOGETHER, min(group * TOGETHER + TOGETHER, HEADS)):
        by_first, by_middle, by_last = shares(weight + (head * HEADS + other) * 9 + shift, used, prior_scale)
        tile = by_first[None, :] * before.to(tl.float32)
        tile += by_middle[None, :] * here.to(tl.float32)
        tile += by_last[None, :] * after.to(tl.float32)
        if HAS_BIAS:
            tile = _mark(tile, 3 * ALL_HEADS, exists * tl.load(bias + head).to(tl.float32), FOLDED)
        at = (sample * HEADS + head) * steps_padded
        _put(folded_query + at * FOLDED, rows, tile, FOLDED)
        # One copy after the other: a store between the loads keeps the compiler from holding all tiles in registers at once.
        queries = _take(query + first * query_t + tl.cast(head, tl.int64) * query_h, query_t, rows, real, width, WIDTH)
        if not BACKWARD:
            tl.store(norms + 2 * lines + head * blocks, _norm(tile))
            tl.store(norms + head * blocks, _norm(queries))
        if SPARE:
            queries = _mark(queries, width, exists * FAR, WIDTH)
            if BACKWARD:
                queries = _mark_parts(queries, width + 1, tl.load(inner + at + rows, mask=real, other=0.0) / -scale, WIDTH)
        _put(query_copy + at * WIDTH, rows, queries, WIDTH)
        keys = _take(key + first * key_t + tl.cast(head, tl.int64) * key_h, key_t, rows, real, width, WIDTH)
        if not BACKWARD:
            tl.store(norms + lines + head * blocks, _norm(keys))
        if SPARE:
            keys = _mark(keys, width, (exists - 1.0) * FAR, WIDTH)
            keys = _mark(_mark(keys, width + 1, exists, WIDTH), width + 2, exists, WIDTH)
        _put(key_copy + at * WIDTH, rows, keys, WIDTH)
        values = _take(value + first * value_t + tl.cast(head, tl.int64) * value_h, value_t, rows, real, value_width, WIDTH)
        if SPARE:
            values = _mark(_mark(values, value_width, exists, WIDTH), value_width + 1, exists, WIDTH)
        _put(value_copy + at * WIDTH, rows, values, WIDTH)
        if BACKWARD:
            grads = _take(grad + first * grad_t + tl.cast(head, tl.int64) * grad_h, grad_t, rows, real, value_width, WIDTH)
            wide = tl.arange(0, WIDTH)[None, :]
            inside = real[:, None] & (wide < value_width)
            outs = tl.load(out + ((first + rows) * HEADS + head)[:, None] * value_width + wide, mask=inside, other=0.0).to(tl.float32)
            deltas = tl.sum(grads * outs, 1)
            if SPARE:
                grads = _mark_parts(grads, value_width, -deltas, WIDTH)
            else:
                tl.store(delta + at + rows, deltas)
            _put(grad_copy + at * WIDTH, rows, grads, WIDTH)


@triton.jit
def _rows(at, rows, length, used, FOLDED: tl.constexpr):
    inside = ((rows >= 0) & (rows < length))[:, None] & used[None, :]
    return tl.load(at + rows[:, None] * FOLDED, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["groups", "per_set"])
def predictive_attention_bwd_fold_kernel(
    prior_query, prior_query_t, prior_query_h, weight, starts, lengths,
    folded_query_grad, folded_key_grad, prior_query_grad, prior_key_grad, weight_parts,
    heads, groups, steps_padded, per_set, prior_scale,
    PRIOR_WIDTH: tl.constexpr, FOLDED: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Block t of sample b: gradients of the prior's query and key, all heads, and that block's part of the weight's."""
    block, sample = place(steps_padded, ROWS)
    sample = sample.to(tl.int64)
    length = tl.load(lengths + sample).to(tl.int32)
    columns = tl.arange(0, CHANNELS)  # channel c of head h at h D + c
    all_heads = heads * PRIOR_WIDTH
    used = columns < all_heads
    other = columns // PRIOR_WIDTH
    channel = columns % PRIOR_WIDTH
    weight_parts += tl.program_id(0).to(tl.int64) * heads * 9 * CHANNELS + columns
    if block * ROWS >= length:
        for part in range(heads * 9):
            tl.store(weight_parts + part * CHANNELS, tl.zeros([CHANNELS], tl.float32))
        return

    weight += sample // per_set * heads * heads * 9
    # The queries that row i of qhat took with the taps x = 0, 1, 2: q'(i - 1), q'(i), q'(i + 1).
    first = tl.load(starts + sample)
    rows = block * ROWS + tl.arange(0, ROWS)
    source = prior_query + first * prior_query_t + (other.to(tl.int64) * prior_query_h + channel)[None, :]
    before = taken(source, prior_query_t, rows - 1, used[None, :], length).to(tl.float32)
    here = taken(source, prior_query_t, rows, used[None, :], length).to(tl.float32)
    after = taken(source, prior_query_t, rows + 1, used[None, :], length).to(tl.float32)
    query_grads = tl.zeros([ROWS, CHANNELS], tl.float32)
    for head in range(heads):
        for y in range(3):  # not unrolled, which would keep all loads in registers at once
            # The gradients of the rows of qhat that took query i with the taps x = 2, 1, 0: i - 1, i, i + 1.
            part = folded_query_grad + (sample * heads + head) * steps_padded * FOLDED + (y * all_heads + columns)[None, :]
            by_last = _rows(part, rows - 1, length, used, FOLDED)
            by_middle = _rows(part, rows, length, used, FOLDED)
            by_first = _rows(part, rows + 1, length, used, FOLDED)
            share = weight + (head * heads + other) * 9 + y
            query_grads += tl.load(share, mask=used, other=0.0).to(tl.float32)[None, :] * by_first
            query_grads += tl.load(share + 3, mask=used, other=0.0).to(tl.float32)[None, :] * by_middle
            query_grads += tl.load(share + 6, mask=used, other=0.0).to(tl.float32)[None, :] * by_last
            target = weight_parts + (head * 9 + y) * CHANNELS
            tl.store(target, tl.sum(by_middle * before, 0) * prior_scale)
            tl.store(target + 3 * CHANNELS, tl.sum(by_middle * here, 0) * prior_scale)
            tl.store(target + 6 * CHANNELS, tl.sum(by_middle * after, 0) * prior_scale)

    key_grads = tl.zeros([ROWS, CHANNELS], tl.float32)
    for group in range(groups):
        part = folded_key_grad + (sample * groups + group) * steps_padded * FOLDED
        for y in range(3):
            key_grads += _rows(part + (y * all_heads + columns)[None, :], rows - (y - 1), length, used, FOLDED)

    at = (first + rows)[:, None] * all_heads + columns[None, :]
    inside = (rows < length)[:, None] & used[None, :]
    tl.store(prior_query_grad + at, (query_grads * prior_scale).to(prior_query_grad.dtype.element_ty), mask=inside)
    tl.store(prior_key_grad + at, key_grads.to(prior_key_grad.dtype.element_ty), mask=inside)
