"""What the Numba kernels share: how they are compiled, and two hints for LLVM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

_BYTE = ir.IntType(8).as_pointer()
_INT = ir.IntType(32)


@intrinsic
def _prefer_wide_vectors(typingctx: Any) -> Any:
    """Ask LLVM for vectors of 512 bits in the kernel that calls this, where there are any.

    Left alone it takes 256 bits on processors that have both, for fear of a lower
    clock; the matrix products before and after use 512 bits in any case.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # llvmlite's own list of attributes has none with a value; LLVM reads it as text
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
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


# as a kernel calls them
prefer_wide_vectors = cast("Callable[[], None]", _prefer_wide_vectors)
prefetch = cast("Callable[[NDArray[Any], int], None]", _prefetch)
LINE = 64 // np.dtype(np.float32).itemsize  # numbers of 32 bits in a cache line
