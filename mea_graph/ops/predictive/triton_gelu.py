"""GELU and its slope in Triton, as exact as the precision around them can tell and no more: the special functions are the busiest unit."""

import triton
import triton.language as tl


@triton.jit
def _normal_tail(t):
    """Probability that a standard normal variable exceeds t >= 0, as 2^polynomial(t), which needs one exponential and no branch.

    Fitted on [0, 5.5] to the least error of GELU, which is below float32's rounding; beyond, both are zero to rounding. The leading
    coefficients are negative, so that it falls to zero.
    """
    power = -2.2759882085665595e-06 * t + 3.296929207863286e-05
    power = power * t - 0.00015728428843431175
    power = power * t - 0.00020246696658432484
    power = power * t + 0.007142767775803804
    power = power * t - 0.052546426653862
    power = power * t - 0.45919305086135864
    power = power * t - 1.1511069536209106
    power = power * t - 0.9999999403953552
    return tl.exp2(power)


@triton.jit
def _normal_below(u, COARSE: tl.constexpr):
    """Probability that a standard normal variable is below u, to what half precision can tell.

    1/2 and an odd polynomial of u, cut to [0, 1], which the last multiplication does in passing. No exponential: the special functions are
    busier than anything else. Its error, and u times its error, are at most 3e-4 and 1.6e-4; for bfloat16 (COARSE) two terms fewer give
    5.2e-4 and 1.7e-3. Fitted on [0, 6] and [0, 3.3]; the leading coefficients are positive, so that it is cut from there on.
    """
    square = u * u
    if COARSE:
        slope = 1.4178147347166736e-05 * square - 0.0005070217255280427
        slope = slope * square + 0.007509288199996841
        slope = slope * square - 0.0625059455888305
        slope = slope * square + 0.39707374729814354
    else:
        slope = 2.4822015710283333e-08 * square - 1.7001516636034004e-06
        slope = slope * square + 4.9914199607209305e-05
        slope = slope * square - 0.0008324013898456859
        slope = slope * square + 0.008858485845936138
        slope = slope * square - 0.06475532844454031
        slope = slope * square + 0.3980088812772806
    return tl.minimum(tl.maximum(slope * u + 0.5, 0.0), 1.0)


@triton.jit
def gelu(u, EXACT: tl.constexpr, COARSE: tl.constexpr):
    """EXACT for float32; COARSE for bfloat16."""
    if EXACT:
        t = tl.abs(u)
        return tl.maximum(u, 0.0) - t * _normal_tail(t)
    return u * _normal_below(u, COARSE)


@triton.jit
def gelu_and_slope(u, EXACT: tl.constexpr, COARSE: tl.constexpr):
    density = tl.exp2(u * u * -0.7213475204444817 - 1.325748064736159)  # log2(e) / 2, log2(sqrt(2 pi))
    if EXACT:
        t = tl.abs(u)
        tail = _normal_tail(t)
        return tl.maximum(u, 0.0) - t * tail, tl.where(u >= 0.0, 1.0 - tail, tail) + u * density
    below = _normal_below(u, COARSE)
    return u * below, below + u * density
