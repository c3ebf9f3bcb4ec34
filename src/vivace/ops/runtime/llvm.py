"""Hints for LLVM inside kernels, and arrays made from an address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

_BYTE = ir.IntType(8).as_pointer()
_INT = ir.IntType(32)


@intrinsic
def _vector_loop(typingctx: Any) -> Any:
    """Mark a kernel that loops over long arrays: wide vectors, and never inlined.

    By default LLVM uses vectors of 256 bits on processors that also have 512, because those
    may lower the clock; the matrix products around the kernels use 512 in any case. If the
    kernel were inlined, its loop would be compiled again in every caller.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        # llvmlite's class allows no attribute with a value; LLVM reads this one from the text
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def _never_inline(typingctx: Any) -> Any:
    """Keep the kernel that calls this a function of its own, which is compiled once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def _prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Start to load an item of a contiguous array into the cache."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), _BYTE)
        kind = ir.FunctionType(ir.VoidType(), [_BYTE, _INT, _INT, _INT])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE], kind)
        # for reading, into all levels of the cache, data
        builder.call(hint, [address, _INT(0), _INT(3), _INT(1)])
        return context.get_dummy_value()

    return types.none(array, index), codegen


@intrinsic
def _floats_at(typingctx: Any, address: Any) -> Any:
    """Turn the integer of ``Tensor.data_ptr()`` into a pointer to float32 numbers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.intp), codegen  # type: ignore[no-untyped-call]


# with the types that the kernels' callers see
vector_loop = cast("Callable[[], None]", _vector_loop)
never_inline = cast("Callable[[], None]", _never_inline)
prefetch = cast("Callable[[NDArray[Any], int], None]", _prefetch)
floats_at = cast("Callable[[int], Any]", _floats_at)
as_array = cast("Callable[[Any, int], NDArray[Any]]", numba.carray)  # type: ignore[attr-defined]
LINE = 64 // np.dtype(np.float32).itemsize  # 32-bit numbers in a cache line
