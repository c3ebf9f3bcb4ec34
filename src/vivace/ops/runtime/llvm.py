"""Hints for LLVM inside kernels, and memory that kernels are given by its address."""

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
    """Mark a kernel that is one loop over long arrays: wide vectors, and never inlined.

    Left alone LLVM takes vectors of 256 bits on processors that have 512 too, for
    fear of a lower clock; the matrix products around take 512 in any case.  A copy
    of the loop in every caller would be optimised, and compiled, again.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        # llvmlite's own list of attributes has none with a value; LLVM reads it as text
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def _never_inline(typingctx: Any) -> Any:
    """Keep the kernel that calls this a function of its own, so that it is compiled once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def _prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the item of a contiguous array to be on its way to the cache."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), _BYTE)
        kind = ir.FunctionType(ir.VoidType(), [_BYTE, _INT, _INT, _INT])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE], kind)
        builder.call(hint, [address, _INT(0), _INT(3), _INT(1)])  # to read, soon, data
        return context.get_dummy_value()

    return types.none(array, index), codegen


@intrinsic
def _floats_at(typingctx: Any, address: Any) -> Any:
    """The pointer to float32 numbers that ``Tensor.data_ptr()`` gives as an integer."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.intp), codegen  # type: ignore[no-untyped-call]


# as a kernel calls them
vector_loop = cast("Callable[[], None]", _vector_loop)
never_inline = cast("Callable[[], None]", _never_inline)
prefetch = cast("Callable[[NDArray[Any], int], None]", _prefetch)
floats_at = cast("Callable[[int], Any]", _floats_at)
as_array = cast("Callable[[Any, int], NDArray[Any]]", numba.carray)  # type: ignore[attr-defined]
LINE = 64 // np.dtype(np.float32).itemsize  # numbers of 32 bits in a cache line
