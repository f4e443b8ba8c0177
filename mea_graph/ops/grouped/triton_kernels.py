"""Triton kernels of the grouped ops: a layer normalisation and a linear map for each group of rows, forward and backward.

With the rows of x in ranges of `rows` each, and `shared` groups that read the same range, group g has

    n_g = (x - mean) / deviation * a_g + c_g      y_g = n_g W_g^T + b_g + onto_g

Backward, with h = (x - mean) / deviation and M_g = dy_g^T h, a sum over rows:

    dh = sum over the groups of a range of (dy_g W_g) a_g      dx = (dh - mean(dh) - h mean(dh h)) / deviation
    db_g = sum of dy_g      dW_g = M_g a_g + db_g c_g^T      da_g = sum over C' of W_g M_g      dc_g = W_g^T db_g

Sums over rows are cut into `SPLITS` parts, which a kernel after it adds in order: so a map with few channels keeps all multiprocessors
busy, and the bits do not depend on which program is first. Nothing is copied to stand together: the kernels find the parameters of a group
by `addresses`, (4, G): weights, biases, scales and shifts, all of the dtype that `like` points to.

Shapes: x (N, C) with N = ranges times rows; onto, out and grad (G rows, C'); moments (N, 2): mean and inverse deviation; parts
(SPLITS, G, C' C + C'): M_g, then db_g. C is `channels`, C' is `width`; sums are float32.
"""

import triton
import triton.language as tl


@triton.jit
def _product(a, b, sums, COMPUTE: tl.constexpr):
    """sums + a b, with factors rounded to COMPUTE; float32 takes three products in TF32."""
    if COMPUTE == "float32":
        return tl.dot(a, b, sums, input_precision="tf32x3")
    elif COMPUTE == "bfloat16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), sums)
    else:
        return tl.dot(a.to(tl.float16), b.to(tl.float16), sums)


@triton.jit
def _parameter(addresses, like, kind, g, groups):
    """Where a parameter of a group lies."""
    return tl.load(addresses + kind * groups + g).to(like.dtype)


@triton.jit
def _vector(at, channel, channels):
    return tl.load(at + channel, mask=channel < channels, other=0.0).to(tl.float32)


@triton.jit
def _at(source, row, stride):
    """Where a row begins. Within a tile, places are int32."""
    return source + row.to(tl.int64) * stride


@triton.jit
def _tile(at, stride, row, inside, channel, channels):
    """Rows and channels of a matrix, in float32; zeros where nothing is."""
    known = inside[:, None] & (channel < channels)[None, :]
    return tl.load(at + row[:, None] * stride + channel[None, :], mask=known, other=0.0).to(tl.float32)


@triton.jit
def _store(at, values, stride, row, inside, channel, channels):
    known = inside[:, None] & (channel < channels)[None, :]
    tl.store(at + row[:, None] * stride + channel[None, :], values.to(at.dtype.element_ty), mask=known)


@triton.jit
def _normal(x, mean, deviation, channel, channels):
    """Zeros in the channels that are none."""
    return tl.where((channel < channels)[None, :], (x - mean[:, None]) * deviation[:, None], 0.0)


@triton.jit
def _find_moments(x, channel, channels, eps):
    mean = tl.sum(x, 1) / channels
    apart = tl.where((channel < channels)[None, :], x - mean[:, None], 0.0)
    return mean, 1.0 / tl.sqrt_rn(tl.sum(apart * apart, 1) / channels + eps)


@triton.jit
def _moments_of(moments, first, row, inside):
    at = _at(moments, first, 2) + row * 2
    return tl.load(at, mask=inside, other=0.0), tl.load(at + 1, mask=inside, other=0.0)


@triton.jit
def _save(moments, first, row, inside, mean, deviation):
    at = _at(moments, first, 2) + row * 2
    tl.store(at, mean, mask=inside)
    tl.store(at + 1, deviation, mask=inside)


@triton.jit
def _through_norm(sums, normal, deviation, channels):
    """dx of dh."""
    along = tl.sum(sums * normal, 1) / channels
    return (sums - (tl.sum(sums, 1) / channels)[:, None] - normal * along[:, None]) * deviation[:, None]


@triton.jit(do_not_specialize=["rows", "shared", "groups"])
def grouped_linear_fwd_kernel(
    x, x_stride, addresses, like, onto, out, moments, rows, shared, groups, channels, width, eps,
    HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ONTO: tl.constexpr, SAVES: tl.constexpr, COMPUTE: tl.constexpr,
    CHANNELS: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (tile of rows and of C', group). CHANNELS holds all of C where rows are normalised."""
    blocks = tl.cdiv(width, COLUMNS)
    block = tl.program_id(0) % blocks
    begin = tl.program_id(0) // blocks * ROWS
    g = tl.program_id(1)
    row = tl.arange(0, ROWS)
    inside = begin + row < rows
    first = g // shared * rows + begin
    x_at = _at(x, first, x_stride)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    if HAS_NORM:
        all_channels = tl.arange(0, CHANNELS)
        whole = _tile(x_at, x_stride, row, inside, all_channels, channels)
        mean, deviation = _find_moments(whole, all_channels, channels, eps)
        if SAVES:  # noqa: SIM102 - one is known when the kernel is compiled
            if (block == 0) & (g % shared == 0):
                _save(moments, first, row, inside, mean, deviation)
        scale = _parameter(addresses, like, 2, g, groups)
        shift = _parameter(addresses, like, 3, g, groups)
    weight = _parameter(addresses, like, 0, g, groups)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in range(0, channels, CHUNK):
        channel = k + tl.arange(0, CHUNK)
        values = _tile(x_at, x_stride, row, inside, channel, channels)
        if HAS_NORM:
            values = _normal(values, mean, deviation, channel, channels) * _vector(scale, channel, channels)[None, :]
            values += _vector(shift, channel, channels)[None, :]
        matrix = _tile(weight, channels, column, column < width, channel, channels)
        sums = _product(values, tl.trans(matrix), sums, COMPUTE)
    if HAS_BIAS:
        sums += _vector(_parameter(addresses, like, 1, g, groups), column, width)[None, :]
    if HAS_ONTO:
        sums += _tile(_at(onto, g * rows + begin, width), width, row, inside, column, width)
    _store(_at(out, g * rows + begin, width), sums, width, row, inside, column, width)


@triton.jit
def _input_gradient(
    block, tile, range_of_rows, grad, grad_stride, addresses, like, x, x_stride, moments, d_x, rows, shared, groups, channels, width,
    HAS_NORM: tl.constexpr, COMPUTE: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dx of a tile of rows of a range, and of a block of C: all of it where rows are normalised."""
    begin = tile * ROWS
    row = tl.arange(0, ROWS)
    inside = begin + row < rows
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    sums = tl.zeros([ROWS, CHANNELS], tl.float32)
    for j in range(shared):
        g = range_of_rows * shared + j
        weight = _parameter(addresses, like, 0, g, groups)
        grad_at = _at(grad, g * rows + begin, grad_stride)
        part = tl.zeros([ROWS, CHANNELS], tl.float32)
        for k in range(0, width, CHUNK):
            column = k + tl.arange(0, CHUNK)
            given = _tile(grad_at, grad_stride, row, inside, column, width)
            matrix = _tile(weight, channels, column, column < width, channel, channels)
            part = _product(given, matrix, part, COMPUTE)
        if HAS_NORM:
            part *= _vector(_parameter(addresses, like, 2, g, groups), channel, channels)[None, :]
        sums += part
    first = range_of_rows * rows + begin
    if HAS_NORM:
        mean, deviation = _moments_of(moments, first, row, inside)
        values = _tile(_at(x, first, x_stride), x_stride, row, inside, channel, channels)
        sums = _through_norm(sums, _normal(values, mean, deviation, channel, channels), deviation, channels)
    _store(_at(d_x, first, channels), sums, channels, row, inside, channel, channels)


@triton.jit
def _weight_gradient(
    block, tile, g, split, grad, grad_stride, x, x_stride, moments, parts, rows, shared, groups, channels, width, per_split,
    HAS_NORM: tl.constexpr, COMPUTE: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """M_g and db_g of a split of the rows, for a tile of C' and a block of C."""
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.arange(0, ROWS)
    sums = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    bias = tl.zeros([COLUMNS], tl.float32)
    end = tl.minimum(rows, (split + 1) * per_split)
    for begin in range(split * per_split, end, ROWS):
        inside = begin + row < end
        first = g // shared * rows + begin
        given = _tile(_at(grad, g * rows + begin, grad_stride), grad_stride, row, inside, column, width)
        values = _tile(_at(x, first, x_stride), x_stride, row, inside, channel, channels)
        if HAS_NORM:
            mean, deviation = _moments_of(moments, first, row, inside)
            values = _normal(values, mean, deviation, channel, channels)
        sums = _product(tl.trans(given), values, sums, COMPUTE)
        bias += tl.sum(given, 0)
    at = _at(parts, split * groups + g, width * channels + width)
    _store(at, sums, channels, column, column < width, channel, channels)
    if block == 0:
        tl.store(at + width * channels + column, bias, mask=column < width)


@triton.jit(do_not_specialize=["rows", "shared", "groups", "per_split"])
def grouped_linear_bwd_kernel(
    grad, grad_stride, addresses, like, x, x_stride, moments, d_x, parts, rows, shared, groups, channels, width, per_split,
    HAS_NORM: tl.constexpr, COMPUTE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
    STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The first programs take a tile of rows and of C of a range each, the others a tile of C' and of C of a split of a group's rows.

    CHANNELS holds all of C where rows are normalised, else it is BLOCK, that of the others. STEP terms of a sum are added at once.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, CHANNELS)
    tiles = tl.cdiv(rows, ROWS)
    of_input = blocks * tiles * (groups // shared)
    if program < of_input:
        _input_gradient(
            program % blocks, program // blocks % tiles, program // (blocks * tiles),
            grad, grad_stride, addresses, like, x, x_stride, moments, d_x, rows, shared, groups, channels, width,
            HAS_NORM, COMPUTE, CHANNELS, STEP, ROWS,
        )  # fmt: skip
    else:
        program -= of_input
        blocks = tl.cdiv(channels, BLOCK)
        tiles = tl.cdiv(width, COLUMNS)
        rest = program // (blocks * tiles)
        _weight_gradient(
            program % blocks, program // blocks % tiles, rest % groups, rest // groups,
            grad, grad_stride, x, x_stride, moments, parts, rows, shared, groups, channels, width, per_split,
            HAS_NORM, COMPUTE, BLOCK, COLUMNS, STEP,
        )  # fmt: skip


@triton.jit(do_not_specialize=["groups"])
def grouped_linear_bwd_sum_kernel(
    parts, addresses, like, d_weight, d_bias, d_scale, d_shift, groups, channels, width,
    HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, SPLITS: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (tile of C, group, tile of C'): adds the splits. Where rows are normalised one program goes through all of C'."""
    g = tl.program_id(1)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    size = width * channels + width
    begin = tl.program_id(2) * COLUMNS
    end = begin + COLUMNS
    if HAS_NORM:
        end = width
        weight = _parameter(addresses, like, 0, g, groups)
        scale = _vector(_parameter(addresses, like, 2, g, groups), channel, channels)
        shift = _vector(_parameter(addresses, like, 3, g, groups), channel, channels)
        of_scale = tl.zeros([CHANNELS], tl.float32)
        of_shift = tl.zeros([CHANNELS], tl.float32)
    for k in range(begin, end, COLUMNS):
        column = k + tl.arange(0, COLUMNS)
        known = column < width
        sums = tl.zeros([COLUMNS, CHANNELS], tl.float32)
        bias = tl.zeros([COLUMNS], tl.float32)
        for split in tl.static_range(SPLITS):
            at = _at(parts, split * groups + g, size)
            sums += _tile(at, channels, column, known, channel, channels)
            bias += _vector(at + width * channels, column, width)
        if HAS_NORM:
            matrix = _tile(weight, channels, column, known, channel, channels)
            of_scale += tl.sum(matrix * sums, 0)
            of_shift += tl.sum(matrix * bias[:, None], 0)
            sums = sums * scale[None, :] + bias[:, None] * shift[None, :]
        _store(_at(d_weight, g, width * channels), sums, channels, column, known, channel, channels)
        if HAS_BIAS:  # noqa: SIM102 - as above
            if tl.program_id(0) == 0:
                tl.store(d_bias + g * width + column, bias.to(d_bias.dtype.element_ty), mask=known)
    if HAS_NORM:
        tl.store(d_scale + g * channels + channel, of_scale.to(d_scale.dtype.element_ty), mask=channel < channels)
        tl.store(d_shift + g * channels + channel, of_shift.to(d_shift.dtype.element_ty), mask=channel < channels)


@triton.jit(do_not_specialize=["rows", "shared", "groups"])
def grouped_layer_norm_fwd_kernel(
    x, x_stride, addresses, like, out, moments, rows, shared, groups, channels, eps,
    SAVES: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Program (tile of rows, range). Of `addresses` the two kinds are scales and shifts."""
    begin = tl.program_id(0) * ROWS
    row = tl.arange(0, ROWS)
    inside = begin + row < rows
    first = tl.program_id(1) * rows + begin
    channel = tl.arange(0, CHANNELS)
    values = _tile(_at(x, first, x_stride), x_stride, row, inside, channel, channels)
    mean, deviation = _find_moments(values, channel, channels, eps)
    if SAVES:
        _save(moments, first, row, inside, mean, deviation)
    values = _normal(values, mean, deviation, channel, channels)
    for j in range(shared):
        g = tl.program_id(1) * shared + j
        scale = _vector(_parameter(addresses, like, 0, g, groups), channel, channels)
        shift = _vector(_parameter(addresses, like, 1, g, groups), channel, channels)
        result = values * scale[None, :] + shift[None, :]
        _store(_at(out, g * rows + begin, channels), result, channels, row, inside, channel, channels)


@triton.jit(do_not_specialize=["rows", "shared", "groups"])
def grouped_layer_norm_bwd_kernel(
    grad, grad_stride, addresses, like, x, x_stride, moments, d_x, parts, rows, shared, groups, channels,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Program (tile of rows, range). `parts`, (tiles, 2, G, C): the gradients of scales and shifts that are of a tile."""
    begin = tl.program_id(0) * ROWS
    row = tl.arange(0, ROWS)
    inside = begin + row < rows
    first = tl.program_id(1) * rows + begin
    channel = tl.arange(0, CHANNELS)
    mean, deviation = _moments_of(moments, first, row, inside)
    values = _tile(_at(x, first, x_stride), x_stride, row, inside, channel, channels)
    normal = _normal(values, mean, deviation, channel, channels)
    sums = tl.zeros([ROWS, CHANNELS], tl.float32)
    for j in range(shared):
        g = tl.program_id(1) * shared + j
        given = _tile(_at(grad, g * rows + begin, grad_stride), grad_stride, row, inside, channel, channels)
        at = _at(parts, tl.program_id(0) * 2 * groups + g, channels) + channel
        tl.store(at, tl.sum(given * normal, 0), mask=channel < channels)
        tl.store(at + groups * channels, tl.sum(given, 0), mask=channel < channels)
        sums += given * _vector(_parameter(addresses, like, 0, g, groups), channel, channels)[None, :]
    sums = _through_norm(sums, normal, deviation, channels)
    _store(_at(d_x, first, channels), sums, channels, row, inside, channel, channels)
