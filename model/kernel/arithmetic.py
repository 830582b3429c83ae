"""Functions of numbers or lanes, from operations that every processor rounds alike: no C library is asked."""

import math
from typing import Any

from numba import types
from numba.extending import overload

from dnc_serve.model.kernel.lanes import INLINED, LanesType, at_least, at_most, fma, inlined, like, power_of_two


def exp(x: Any) -> Any:
    """e to the power of x; never infinite, and never zero."""
    raise NotImplementedError("for compiled code")


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    raise NotImplementedError("for compiled code")


@overload(exp, jit_options=INLINED)
def _exp(x: Any) -> Any:
    return _exp_float32 if _number(x) == types.float32 else _exp_float64


@overload(tanh, jit_options=INLINED)
def _tanh(x: Any) -> Any:
    return _tanh_float32 if _number(x) == types.float32 else _tanh_float64


def _number(x: Any) -> Any:
    return x.number if isinstance(x, LanesType) else x


LOG2_E = math.log2(math.e)


def _exp_float32(x: Any) -> Any:
    """2^n e^r with |r| <= ln 2 / 2, found in two steps so that it is exact; after Cephes, relative error 8e-8."""
    x = at_most(at_least(x, like(x, -87.33654)), like(x, 88.3762626))
    shifted = fma(x, like(x, LOG2_E), like(x, 3 * 2.0**22))
    n = shifted - like(x, 3 * 2.0**22)
    r = fma(n, like(x, 2.12194440e-4), fma(n, like(x, -0.693359375), x))
    y = fma(like(x, 1.9875691500e-4), r, like(x, 1.3981999507e-3))
    y = fma(fma(fma(y, r, like(x, 8.3334519073e-3)), r, like(x, 4.1665795894e-2)), r, like(x, 1.6666665459e-1))
    y = fma(fma(y, r, like(x, 5.0000001201e-1)), r * r, r) + like(x, 1.0)
    return y * power_of_two(shifted)


def _tanh_float32(x: Any) -> Any:
    """An odd polynomial over an even one; after Eigen, relative error 2.6e-7, also near zero."""
    x = at_most(at_least(x, like(x, -7.90531110763549805)), like(x, 7.90531110763549805))
    q = x * x
    odd = fma(like(x, -2.76076847742355e-16), q, like(x, 2.00018790482477e-13))
    odd = fma(fma(odd, q, like(x, -8.60467152213735e-11)), q, like(x, 5.12229709037114e-08))
    odd = fma(fma(odd, q, like(x, 1.48572235717979e-05)), q, like(x, 6.37261928875436e-04))
    odd = fma(odd, q, like(x, 4.89352455891786e-03))
    even = fma(like(x, 1.19825839466702e-06), q, like(x, 1.18534705686654e-04))
    even = fma(fma(even, q, like(x, 2.26843463243900e-03)), q, like(x, 4.89352518554385e-03))
    return x * odd / even


LN2_HIGH, LN2_LOW = 0.693145751953125, 1.42860682030941723e-6


def _exp_float64(x: Any) -> Any:
    x = at_most(at_least(x, like(x, -708.0)), like(x, 709.0))
    shifted = fma(x, like(x, LOG2_E), like(x, 3 * 2.0**51))
    n = shifted - like(x, 3 * 2.0**51)
    r = fma(n, like(x, -LN2_LOW), fma(n, like(x, -LN2_HIGH), x))
    y = like(x, 1.0)
    for term in range(14, 0, -1):  # Σ r^k / k!
        y = fma(y * like(x, 1.0 / term), r, like(x, 1.0))
    return y * power_of_two(shifted)


def _tanh_float64(x: Any) -> Any:
    one = like(x, 1.0)
    return one - like(x, 2.0) / (exp(x + x) + one)


@inlined
def sigmoid(x):
    """1 / (1 + e^-x)"""
    one = like(x, 1.0)
    return one / (one + exp(like(x, 0.0) - x))


@inlined
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log(1 + z) with z = e^-|x|; log(1 + z) = 2 artanh(s), s = z / (2 + z) <= 1/3."""
    zero = like(x, 0.0)
    z = exp(at_most(x, zero - x))
    s = z / (like(x, 2.0) + z)
    q = s * s
    series = like(x, 1 / 33)
    for odd in range(31, 0, -2):  # artanh(s) = s + s^3/3 + s^5/5 + …
        series = fma(series, q, like(x, 1.0 / odd))
    return fma(s + s, series, at_least(x, zero))


@inlined
def clamped(x, limit):
    """x, but not beyond ±limit; what is not a number stays so."""
    return at_most(at_least(x, like(x, -limit)), like(x, limit))
