"""Vectorisable float64 logarithm, log-gamma and digamma for the Numba kernels.

Calls to libm would prevent LLVM from vectorising the loop around them. These
functions are polynomials with one to three divisions.

The gamma functions shift their argument up by six, where the asymptotic series are exact to
1e-10. They shift back with the product z (z + 1) ... (z + 5) and its derivative, which takes
one logarithm and no loop whose length depends on z.

Source: Abramowitz and Stegun 1964, 6.1.15, 6.1.41, 6.3.5 and 6.3.18.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vivace.ops.runtime.kernels import EXACT, kernel

_LN2_HI = 6.93147180369123816490e-01  # 33 bits: exact when multiplied by an exponent
_LN2_LO = 1.90821492927058770002e-10
_HALF_LOG_2PI = 0.9189385332046727
_SQRT_HALF_BITS = np.uint64(0x3FE6A09E667F3BCD)
_ONE_BITS = np.uint64(0x3FF0000000000000)
_MANTISSA = np.uint64(0x000FFFFFFFFFFFFF)
_TWO_52 = np.uint64(0x4330000000000000)  # the bits of 2**52
_FRACTION_BITS = np.uint64(52)


@intrinsic
def _bits64(typingctx: Any, x: Any) -> Any:
    """Reinterpret a float64 as a uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.uint64(types.float64), codegen


@intrinsic
def _unbits64(typingctx: Any, i: Any) -> Any:
    """Reinterpret a uint64 as a float64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), codegen


@kernel(fastmath=EXACT, inline=True)
def log64(x: float) -> float:
    """Natural log of a positive normal float64, to 1e-15; NaN stays NaN."""
    # adding the distance from sqrt(1/2) to 1 carries into the exponent from sqrt(2) up
    shifted = _bits64(x) + (_ONE_BITS - _SQRT_HALF_BITS)
    mantissa = _unbits64((shifted & _MANTISSA) + _SQRT_HALF_BITS)
    # AVX2 cannot convert 64-bit integers, so the exponent is put behind the bits of 2**52
    exponent = _unbits64((shifted >> _FRACTION_BITS) | _TWO_52) - (4503599627370496.0 + 1023.0)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    z = s * s
    z2 = z * z
    p = ((2.0 / 17.0) * z + 2.0 / 15.0) * z2 + ((2.0 / 13.0) * z + 2.0 / 11.0)
    q = ((2.0 / 9.0) * z + 2.0 / 7.0) * z2 + ((2.0 / 5.0) * z + 2.0 / 3.0)
    y = 2.0 * s + (s * z) * (p * (z2 * z2) + q) + (exponent * _LN2_LO) + exponent * _LN2_HI
    return y + (x - x)  # the bits of NaN alone would give a large number


@kernel(fastmath=EXACT, inline=True)
def log_gamma(z: float) -> float:
    """Log of the gamma function for z > 0, to 1e-10."""
    pairs = z * (z + 5.0)  # (z + 1) (z + 4) and (z + 2) (z + 3) are 4 and 6 more
    product = pairs * ((pairs + 4.0) * (pairs + 6.0))
    y = z + 6.0
    r = 1.0 / y
    r2 = r * r
    series = r * (1.0 / 12 - r2 * (1.0 / 360 - r2 * (1.0 / 1260 - r2 * (1.0 / 1680))))
    return (y - 0.5) * log64(y) - y + _HALF_LOG_2PI + series - log64(product)


@kernel(fastmath=EXACT, inline=True)
def log_gamma_digamma(z: float) -> tuple[float, float]:
    """Log of the gamma function and its derivative for z > 0, to 1e-10."""
    pairs = z * (z + 5.0)
    product = pairs * ((pairs + 4.0) * (pairs + 6.0))
    derivative = (z + z + 5.0) * ((3.0 * pairs + 20.0) * pairs + 24.0)
    y = z + 6.0
    inverse = 1.0 / (y * product)  # one division for both
    r = product * inverse
    r2 = r * r
    log_y = log64(y)
    series = r * (1.0 / 12 - r2 * (1.0 / 360 - r2 * (1.0 / 1260 - r2 * (1.0 / 1680))))
    value = (y - 0.5) * log_y - y + _HALF_LOG_2PI + series - log64(product)
    slope = (
        log_y
        - 0.5 * r
        - r2 * (1.0 / 12 - r2 * (1.0 / 120 - r2 * (1.0 / 252 - r2 * (1.0 / 240))))
        - derivative * (y * inverse)
    )
    return value, slope
