"""Triton kernels of the Bi-LSTM's recurrence, forward and backward: a program takes one direction of one sample, step after step.

Forward, with a = driven + U h of the step before, in the order i, f, g, o:

    i, f, o = sigmoid(a)      g = tanh(a)      c = f c + i g      h = o tanh(c)

Backward, from the last step to the first, with dh = grad + U^T da of the step after and dc = dh o (1 - tanh(c)^2) + f dc of the step after:

    di = dc g i (1 - i)      df = dc c' f (1 - f)      dg = dc i (1 - g^2)      do = dh tanh(c) o (1 - o)

where c' is the cell of the step before. The gradient of U is the sum of da h'^T over all steps, one product of matrices after the kernel.

U, h and c stay in registers, in float32. Both kernels read U as four squares whose second index lies on the lanes, so that its product with
a vector is a sum within each lane; of the vector every lane reads all, through shared memory. The numbers of a step are read one step
before they are needed. Nothing is shared between programs: a sample's result does not depend on its company.

Shapes: driven (N, 2, 4, H); weight (G, 2, 4, H, H) for G sets of `per_set` samples each; `starts` and `lengths` (samples,); out (N, 2, H);
states (N, 2, 6, H), float32: i, f, g, o, c and h of the step before. H is `hidden`, padded to WIDTH with zeros.
"""

import triton
import triton.language as tl

MINUS_LOG2_E = tl.constexpr(-1.4426950408889634)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * MINUS_LOG2_E))


@triton.jit
def _tanh(x):
    return 2.0 * _sigmoid(2.0 * x) - 1.0


@triton.jit
def _squares(weight, direction, hidden, per_set, WIDTH: tl.constexpr):
    """The four squares of a program's set and direction."""
    units = tl.arange(0, WIDTH)
    known = (units[:, None] < hidden) & (units[None, :] < hidden)
    size = hidden * hidden
    at = weight + (tl.program_id(0) // per_set * 2 + direction) * 4 * size + units[:, None] * hidden + units[None, :]
    i = tl.load(at, mask=known, other=0.0).to(tl.float32)
    f = tl.load(at + size, mask=known, other=0.0).to(tl.float32)
    g = tl.load(at + 2 * size, mask=known, other=0.0).to(tl.float32)
    o = tl.load(at + 3 * size, mask=known, other=0.0).to(tl.float32)
    return i, f, g, o


@triton.jit
def _four(source, row, direction, width, hidden, inside, WIDTH: tl.constexpr):
    """The first four vectors of a row and direction, of `width` numbers in all; zeros where nothing is."""
    at = source + (row * 2 + direction) * width + tl.arange(0, WIDTH)
    i = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    f = tl.load(at + hidden, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(at + 2 * hidden, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(at + 3 * hidden, mask=inside, other=0.0).to(tl.float32)
    return i, f, g, o


@triton.jit(do_not_specialize=["hidden", "per_set"])
def bilstm_fwd_kernel(driven, weight, starts, lengths, out, states, hidden, per_set, WIDTH: tl.constexpr):
    """Program (sample, direction). Of `weight` each square is transposed."""
    direction = tl.program_id(1)
    length = tl.load(lengths + tl.program_id(0)).to(tl.int32)
    row = tl.load(starts + tl.program_id(0)) + direction * (length - 1)
    move = 1 - 2 * direction
    units = tl.arange(0, WIDTH)
    known = units < hidden
    u_i, u_f, u_g, u_o = _squares(weight, direction, hidden, per_set, WIDTH)
    h = tl.zeros([WIDTH], tl.float32)
    c = tl.zeros([WIDTH], tl.float32)
    i, f, g, o = _four(driven, row, direction, 4 * hidden, hidden, units < tl.where(length > 0, hidden, 0), WIDTH)
    for step in range(length):
        more = units < tl.where(step + 1 < length, hidden, 0)
        next_i, next_f, next_g, next_o = _four(driven, row + move, direction, 4 * hidden, hidden, more, WIDTH)
        saved = states + (row * 2 + direction) * 6 * hidden + units
        tl.store(saved + 5 * hidden, h, mask=known)
        heard = h[:, None]
        i = _sigmoid(i + tl.sum(heard * u_i, 0))
        f = _sigmoid(f + tl.sum(heard * u_f, 0))
        g = _tanh(g + tl.sum(heard * u_g, 0))
        o = _sigmoid(o + tl.sum(heard * u_o, 0))
        c = f * c + i * g
        h = o * _tanh(c)
        tl.store(out + (row * 2 + direction) * hidden + units, h.to(out.dtype.element_ty), mask=known)
        tl.store(saved, i, mask=known)
        tl.store(saved + hidden, f, mask=known)
        tl.store(saved + 2 * hidden, g, mask=known)
        tl.store(saved + 3 * hidden, o, mask=known)
        tl.store(saved + 4 * hidden, c, mask=known)
        row += move
        i = next_i
        f = next_f
        g = next_g
        o = next_o


@triton.jit(do_not_specialize=["hidden", "per_set"])
def bilstm_bwd_kernel(grad, states, weight, starts, lengths, d_driven, hidden, per_set, WIDTH: tl.constexpr):
    """Program (sample, direction). `grad` is that of `out`."""
    direction = tl.program_id(1)
    length = tl.load(lengths + tl.program_id(0)).to(tl.int32)
    row = tl.load(starts + tl.program_id(0)) + (1 - direction) * (length - 1)
    move = 2 * direction - 1
    units = tl.arange(0, WIDTH)
    known = units < hidden
    u_i, u_f, u_g, u_o = _squares(weight, direction, hidden, per_set, WIDTH)
    cells = states + 4 * hidden + units
    grads = grad + units
    dh = tl.zeros([WIDTH], tl.float32)
    dc = tl.zeros([WIDTH], tl.float32)
    here = units < tl.where(length > 0, hidden, 0)
    i, f, g, o = _four(states, row, direction, 6 * hidden, hidden, here, WIDTH)
    c = tl.load(cells + (row * 2 + direction) * 6 * hidden, mask=here, other=0.0)
    before = tl.load(cells + ((row + move) * 2 + direction) * 6 * hidden, mask=units < tl.where(length > 1, hidden, 0), other=0.0)
    given = tl.load(grads + (row * 2 + direction) * hidden, mask=here, other=0.0).to(tl.float32)
    for step in range(length):
        more = units < tl.where(step + 1 < length, hidden, 0)
        then = (row + move) * 2 + direction
        next_i, next_f, next_g, next_o = _four(states, row + move, direction, 6 * hidden, hidden, more, WIDTH)
        next_given = tl.load(grads + then * hidden, mask=more, other=0.0).to(tl.float32)
        # The cell of the step before is needed already now: it is read two steps early.
        last_but_one = units < tl.where(step + 2 < length, hidden, 0)
        next_before = tl.load(cells + (then + 2 * move) * 6 * hidden, mask=last_but_one, other=0.0)
        dh += given
        squashed = _tanh(c)
        dc += dh * o * (1.0 - squashed * squashed)
        d_i = dc * g * i * (1.0 - i)
        d_f = dc * before * f * (1.0 - f)
        d_g = dc * i * (1.0 - g * g)
        d_o = dh * squashed * o * (1.0 - o)
        at = d_driven + (row * 2 + direction) * 4 * hidden + units
        tl.store(at, d_i.to(d_driven.dtype.element_ty), mask=known)
        tl.store(at + hidden, d_f.to(d_driven.dtype.element_ty), mask=known)
        tl.store(at + 2 * hidden, d_g.to(d_driven.dtype.element_ty), mask=known)
        tl.store(at + 3 * hidden, d_o.to(d_driven.dtype.element_ty), mask=known)
        dh = tl.sum(d_i[:, None] * u_i + d_f[:, None] * u_f + d_g[:, None] * u_g + d_o[:, None] * u_o, 0)
        dc *= f
        row += move
        i = next_i
        f = next_f
        g = next_g
        o = next_o
        c = before
        before = next_before
        given = next_given
