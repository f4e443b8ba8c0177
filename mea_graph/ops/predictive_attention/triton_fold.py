"""Triton kernels around the attention loops: fold the convolution into queries and keys, and take its gradients apart again.

The loops want every operand aligned, padded with zeros to powers of two, and zero at steps that do not exist. The first kernel writes such
copies; what it never writes (blocks beyond a sample's length) is never read.

The folded width is R = 3 K D: column r of a folded query or key stands for shift y = r // (K D) and, of the heads side by side, channel
r % (K D). With a prior's query q' and key k', both zero at steps that do not exist:

    folded query of head o   qhat_o(i)[y, h, c] = sum_x  weight[o, h, x, y] q'_h(i + x - 1)[c] / sqrt(D)
    folded key of all heads  khat(j)[y, h, c]   = k'_h(j + y - 1)[c]

Names: rows are queries, columns are keys; upper case is known at compile time; `real` says which steps exist.
"""

import triton
import triton.language as tl

BLOCK = 64  # copies are padded to multiples of it, and the attention loops' tiles divide it


@triton.jit
def sample_length(lengths, sample, steps_total, HAS_MASK: tl.constexpr):
    """One more than the last step that exists."""
    if HAS_MASK:
        return tl.load(lengths + sample)
    return steps_total


@triton.jit
def real_steps(mask, sample, steps, length, steps_total, HAS_MASK: tl.constexpr):
    real = (steps >= 0) & (steps < length)
    if HAS_MASK:
        real = real & (tl.load(mask + sample * steps_total + steps, mask=real, other=0) != 0)
    return real


@triton.jit
def _copy(source, at, stride, target, rows, real, width, PADDED: tl.constexpr):
    """Copies `width` columns of rows into `PADDED` columns, with zeros wherever nothing exists; returns them in float32."""
    columns = tl.arange(0, PADDED)
    inside = real[:, None] & (columns[None, :] < width)
    tile = tl.load(source + at + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(target + rows[:, None] * PADDED + columns[None, :], tile.to(target.dtype.element_ty))
    return tile


@triton.jit
def predictive_attention_fold_kernel(
    query, query_b, query_h, query_t,  # a tensor, then its strides over samples, heads and steps; the last dimension is dense
    key, key_b, key_h, key_t,
    value, value_b, value_h, value_t,
    prior_query, prior_query_b, prior_query_h, prior_query_t,
    prior_key, prior_key_b, prior_key_h, prior_key_t,
    weight, mask, lengths,
    out, grad, grad_b, grad_h, grad_t,  # read by the backward pass only
    query_copy, key_copy, value_copy, folded_query, folded_key, grad_copy, delta,
    heads, steps_total, steps_padded, width, value_width, prior_width, prior_scale,
    HAS_MASK: tl.constexpr, BACKWARD: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, FOLDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (t, b (heads + 1) + o): a block of steps of head o; o = heads: of the folded keys, which all heads share."""
    sample = (tl.program_id(1) // (heads + 1)).to(tl.int64)
    head = tl.program_id(1) % (heads + 1)
    length = sample_length(lengths, sample, steps_total, HAS_MASK)
    if tl.program_id(0) * ROWS >= tl.cdiv(length, BLOCK) * BLOCK:
        return
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, FOLDED)
    all_heads = heads * prior_width
    shift = columns // all_heads
    other = columns % all_heads // prior_width
    channel = columns % prior_width
    used = columns < 3 * all_heads

    if head == heads:
        steps = rows[:, None] + shift[None, :] - 1
        real = real_steps(mask, sample, steps, length, steps_total, HAS_MASK) & used[None, :]
        at = sample * prior_key_b + steps.to(tl.int64) * prior_key_t + (other * prior_key_h + channel)[None, :]
        tile = tl.load(prior_key + at, mask=real, other=0.0).to(tl.float32)
        folded_key += sample * steps_padded * FOLDED
        tl.store(folded_key + rows[:, None] * FOLDED + columns[None, :], tile.to(folded_key.dtype.element_ty))
        return

    tile = tl.zeros([ROWS, FOLDED], tl.float32)
    for x in tl.static_range(3):
        steps = rows + x - 1
        real = real_steps(mask, sample, steps, length, steps_total, HAS_MASK)[:, None] & used[None, :]
        at = sample * prior_query_b + steps[:, None].to(tl.int64) * prior_query_t + (other * prior_query_h + channel)[None, :]
        share = tl.load(weight + ((head * heads + other) * 3 + x) * 3 + shift, mask=used, other=0.0).to(tl.float32)
        tile += share[None, :] * tl.load(prior_query + at, mask=real, other=0.0).to(tl.float32)
    at = (sample * heads + head) * steps_padded
    real = real_steps(mask, sample, rows, length, steps_total, HAS_MASK)
    tile = tl.where(real[:, None], tile * prior_scale, 0.0)
    folded_query += at * FOLDED
    tl.store(folded_query + rows[:, None] * FOLDED + columns[None, :], tile.to(folded_query.dtype.element_ty))

    _copy(query, sample * query_b + head * query_h, query_t, query_copy + at * WIDTH, rows, real, width, WIDTH)
    _copy(key, sample * key_b + head * key_h, key_t, key_copy + at * WIDTH, rows, real, width, WIDTH)
    _copy(value, sample * value_b + head * value_h, value_t, value_copy + at * VALUE_WIDTH, rows, real, value_width, VALUE_WIDTH)
    if BACKWARD:
        grads = _copy(grad, sample * grad_b + head * grad_h, grad_t, grad_copy + at * VALUE_WIDTH, rows, real, value_width, VALUE_WIDTH)
        wide = tl.arange(0, VALUE_WIDTH)[None, :]
        inside = real[:, None] & (wide < value_width)
        out += (sample * heads + head) * steps_total * value_width
        outs = tl.load(out + rows[:, None] * value_width + wide, mask=inside, other=0.0).to(tl.float32)
        tl.store(delta + at + rows, tl.sum(grads * outs, 1))


@triton.jit
def _gather(at, stride, steps, used, mask, sample, length, steps_total, HAS_MASK: tl.constexpr):
    """Steps of a prior, all heads side by side; zero where no step exists."""
    inside = real_steps(mask, sample, steps, length, steps_total, HAS_MASK)[:, None] & used[None, :]
    return tl.load(at + steps[:, None].to(tl.int64) * stride, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _rows(at, rows, length, used, FOLDED: tl.constexpr):
    inside = ((rows >= 0) & (rows < length))[:, None] & used[None, :]
    return tl.load(at + rows[:, None] * FOLDED, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def predictive_attention_bwd_fold_kernel(
    prior_query, prior_query_b, prior_query_h, prior_query_t, weight, mask, lengths,
    folded_query_grad, folded_key_grad, prior_query_grad, prior_key_grad, weight_parts,
    heads, groups, steps_total, steps_padded, prior_width, prior_scale,
    HAS_MASK: tl.constexpr, FOLDED: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Program (t, b): gradients of the prior's query and key at a block of steps, all heads, and that block's part of the weight's."""
    sample = tl.program_id(1).to(tl.int64)
    length = sample_length(lengths, sample, steps_total, HAS_MASK)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = real_steps(mask, sample, rows, length, steps_total, HAS_MASK)
    columns = tl.arange(0, CHANNELS)  # channel c of head h at h D + c
    all_heads = heads * prior_width
    used = columns < all_heads
    other = columns // prior_width
    channel = columns % prior_width

    weight_parts += (sample * tl.num_programs(0) + tl.program_id(0)) * heads * 9 * CHANNELS + columns
    at = (sample * heads + other)[None, :] * steps_total + rows[:, None]
    inside = (rows < steps_total)[:, None] & used[None, :]
    prior_query_grad += at * prior_width + channel[None, :]
    prior_key_grad += at * prior_width + channel[None, :]
    if tl.program_id(0) * ROWS >= length:
        nothing = tl.zeros([ROWS, CHANNELS], tl.float32)
        tl.store(prior_query_grad, nothing.to(prior_query_grad.dtype.element_ty), mask=inside)
        tl.store(prior_key_grad, nothing.to(prior_key_grad.dtype.element_ty), mask=inside)
        for part in range(heads * 9):
            tl.store(weight_parts + part * CHANNELS, tl.zeros([CHANNELS], tl.float32))
        return

    # The queries that row i of qhat took with the taps x = 0, 1, 2: q'(i - 1), q'(i), q'(i + 1).
    at = prior_query + sample * prior_query_b + (other * prior_query_h + channel)[None, :]
    before = _gather(at, prior_query_t, rows - 1, used, mask, sample, length, steps_total, HAS_MASK)
    here = _gather(at, prior_query_t, rows, used, mask, sample, length, steps_total, HAS_MASK)
    after = _gather(at, prior_query_t, rows + 1, used, mask, sample, length, steps_total, HAS_MASK)
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

    query_grads = tl.where(real[:, None], query_grads * prior_scale, 0.0)
    tl.store(prior_query_grad, query_grads.to(prior_query_grad.dtype.element_ty), mask=inside)
    key_grads = tl.where(real[:, None], key_grads, 0.0)
    tl.store(prior_key_grad, key_grads.to(prior_key_grad.dtype.element_ty), mask=inside)
