"""Vectorisable float32 ``exp``, ``log`` and ``log1p`` for the Numba kernels.

LLVM cannot vectorise a call into libm, and ``np.exp`` inside Numba is such a call. These
functions are short polynomials on the bits of the number instead, without a branch, table
or call, and a loop over them becomes SIMD code. Their terms are added in pairs rather than
one after the other: a loop waits for its longest chain of dependent operations (on Zen 3
that took half of the time of ``log32``).

Accuracy over the ranges that the kernels use (``tests/ops/math/test_fastmath.py``): within
2 units in the last place of the exact value.

Integers are cast back to int32 after every operation, because Numba would widen them to
int64 and halve the number of lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vivace.ops.runtime.kernels import EXACT, inner_kernel, kernel
from vivace.types import F32

_LN2_HI = np.float32(0.693359375)  # 9 bits: exact when multiplied by an exponent
_LN2_LO = np.float32(-2.12194440e-4)
_LOG2E = np.float32(1.44269504088896341)
_ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds to an integer
_EXP_MIN = np.float32(-87.3)  # above log(smallest normal float32)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)


@intrinsic
def _bits(typingctx: Any, x: Any) -> Any:
    """Reinterpret a float32 as an int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def _unbits(typingctx: Any, i: Any) -> Any:
    """Reinterpret an int32 as a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@kernel(fastmath=EXACT)
def exp32(x: float) -> float:
    """``exp(x)`` for x up to 88.3; below -87.3 it is exp(-87.3), and NaN stays NaN."""
    x = _EXP_MIN if x < _EXP_MIN else x
    shifted = x * _LOG2E + _ROUND
    k = shifted - _ROUND
    r = (x - k * _LN2_HI) - k * _LN2_LO
    r2 = r * r
    high = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    middle = np.float32(8.3334519073e-3) * r + np.float32(4.1665795894e-2)
    low = np.float32(1.6666665459e-1) * r + np.float32(5.0000001201e-1)
    y = ((high * r2 + middle) * r2 + low) * r2 + (r + np.float32(1.0))
    exponent = np.int32(_bits(shifted) - _bits(_ROUND))
    return np.float32(y * _unbits(np.int32(np.int32(exponent + np.int32(127)) << np.int32(23))))


@inner_kernel(fastmath=EXACT)
def _log_reduced(f: float) -> float:
    """``log(1 + f)`` for ``1 + f`` between sqrt(1/2) and sqrt(2)."""
    z = f * f
    z2 = z * z
    p = np.float32(7.0376836292e-2) * z
    p += np.float32(-1.1514610310e-1) * f + np.float32(1.1676998740e-1)
    q = np.float32(-1.2420140846e-1) * f + np.float32(1.4249322787e-1)
    q = q * z + (np.float32(-1.6668057665e-1) * f + np.float32(2.0000714765e-1))
    p = (p * z2 + q) * z + (np.float32(-2.4999993993e-1) * f + np.float32(3.3333331174e-1))
    return np.float32(f + (p * (f * z) - np.float32(0.5) * z))


@kernel(fastmath=EXACT)
def log32(x: float) -> float:
    """Natural log of a positive normal float32; NaN stays NaN."""
    i = _bits(np.float32(x))
    e = np.int32(np.int32(i - _SQRT_HALF_BITS) >> np.int32(23))
    m = _unbits(np.int32(i - np.int32(e << np.int32(23))))
    k = np.float32(e)
    y = np.float32((_log_reduced(m - np.float32(1.0)) + k * _LN2_LO) + k * _LN2_HI)
    return np.float32(y + (x - x))  # the bits of NaN alone would give a large number


@inner_kernel(fastmath=EXACT)
def log1p_share32(u: float) -> tuple[float, float]:
    """``log(1 + u)`` and ``u / (1 + u)`` for u >= 0, to full relative accuracy near zero.

    The two share their one division.
    """
    inverse = np.float32(1.0) / (np.float32(1.0) + u)
    return log1p_given32(u, inverse), np.float32(u * inverse)


@inner_kernel(fastmath=EXACT)
def log1p_given32(u: float, inverse: float) -> float:
    """``log(1 + u)`` for finite u >= 0 from u and ``1 / (1 + u)``."""
    w = np.float32(1.0) + u
    i = _bits(np.float32(w))
    e = np.int32(np.int32(i - _SQRT_HALF_BITS) >> np.int32(23))
    m = _unbits(np.int32(i - np.int32(e << np.int32(23))))
    k = np.float32(e)
    lost = u - (w - np.float32(1.0))  # what rounding 1 + u dropped, when u < 1
    f = m - np.float32(1.0)
    return np.float32((_log_reduced(f) + (k * _LN2_LO + lost * inverse)) + k * _LN2_HI)


@kernel(fastmath=EXACT)
def log1p32(u: float) -> float:
    """``log(1 + u)`` for u >= 0, to full relative accuracy near zero."""
    return log1p_share32(u)[0]


@inner_kernel(fastmath=EXACT)
def _ordered(i: int) -> int:
    """Map the bits of float32 numbers to int32 numbers in the same order, or back."""
    return np.int32(i ^ np.int32(np.int32(i >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@kernel(fastmath=EXACT)
def largest32(x: F32) -> float:
    """Largest of the values, NaN if one of them is a positive NaN; x must not be empty.

    They are compared as integers, because LLVM does not vectorise a maximum of floats. That
    would be the slowest loop of the softmax (0.47 against 0.03 ns per element).
    """
    top = _ordered(_bits(x[0]))
    for j in range(x.size):
        top = max(top, _ordered(_bits(x[j])))
    return _unbits(_ordered(top))


@kernel(fastmath=EXACT)
def smallest32(x: F32) -> float:
    """Smallest of the values, NaN if one of them is a negative NaN; x must not be empty."""
    bottom = _ordered(_bits(x[0]))
    for j in range(x.size):
        bottom = min(bottom, _ordered(_bits(x[j])))
    return _unbits(_ordered(bottom))
