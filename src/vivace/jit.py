"""How the Numba kernels are compiled, cached and run, and hints for LLVM in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Set
from functools import cached_property
from types import FunctionType
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import event
from numba.extending import intrinsic
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
EXACT = {"contract"}  # fused multiply-add, and nothing else
SUMS = {"contract", "reassoc", "nsz"}  # a sum may be split over lanes


def kernel(*, fastmath: Set[str] = frozenset(), inline: bool = False) -> Callable[[F], F]:
    """Compile a function with Numba when it is first called, without the GIL, cached on disk."""

    def decorate(function: F) -> F:
        return cast("F", _compiled(function, fastmath=set(fastmath), forceinline=inline))

    return decorate


def inner_kernel(*, fastmath: Set[str] = frozenset()) -> Callable[[F], F]:
    """The same for a function that only kernels call: without a way in from Python.

    The way in takes as long to compile as a short loop does, and there are dozens of them.
    Called from Python it raises a TypeError.
    """

    def decorate(function: F) -> F:
        no_entry = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        compiled = _compiled(function, fastmath=set(fastmath), **no_entry)

        def refuse(*_args: object, **_named: object) -> None:
            raise TypeError(f"{function.__qualname__} can be called by kernels only.")

        compiled._insert = lambda *_overload: None  # what was compiled is not offered to Python
        compiled._compile_for_args = refuse
        return cast("F", compiled)

    return decorate


def parallel_kernel(*, fastmath: Set[str] = frozenset()) -> Callable[[F], F]:
    """The same for a function with a ``prange``, which is called from Python only.

    It runs on as many threads as torch (``vivace.settings.num_threads``); in a
    forked process that is one, and stays one: Numba's threads do not survive
    ``os.fork``, and would take the process with them.
    """

    def decorate(function: F) -> F:
        return cast("F", _ParallelKernel(cast("FunctionType", function), set(fastmath)))

    return decorate


class _ParallelKernel:
    def __init__(self, function: FunctionType, fastmath: set[str]) -> None:
        self.function = function
        self.fastmath = fastmath
        self.__doc__ = function.__doc__

    @cached_property
    def threaded(self) -> Any:
        return _compiled(self.function, fastmath=self.fastmath, parallel=True)

    @cached_property
    def serial(self) -> Any:
        """The same function; under a name of its own, since the cache goes by names."""
        old = self.function
        twin = FunctionType(old.__code__, old.__globals__, old.__name__, old.__defaults__)
        twin.__qualname__ = f"{old.__qualname__}_serial"
        twin.__module__ = old.__module__
        return _compiled(twin, fastmath=self.fastmath)

    def __call__(self, *args: Any) -> Any:
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        if threads == 1 or _forked:
            return self.serial(*args)
        if threads != numba.get_num_threads():
            numba.set_num_threads(threads)
        return self.threaded(*args)


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    options |= {"error_model": "numpy", "nogil": True}
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that can be written: compiled in every process
        return numba.njit(**options)(function)
    cache = compiled._cache
    for method in ("load_overload", "save_overload"):  # a disk that is full, a folder that is gone
        setattr(cache, method, _or_without(getattr(cache, method)))
    return compiled


def _or_without(method: Callable[..., Any]) -> Callable[..., Any]:
    def forgiving(*args: Any) -> Any:
        try:
            return method(*args)
        except OSError:
            return None

    return forgiving


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class CompileNotice(event.Listener):
    """Calls ``say`` once, before the first kernel is compiled (not where it is in the cache).

    Examples
    --------
    >>> notice = CompileNotice(lambda: print("compiling"))
    >>> with notice:
    ...     numba.njit(lambda: 1)()
    compiling
    1
    """

    def __init__(self, say: Callable[[], None]) -> None:
        self._say = say
        self._said = False

    def on_start(self, event: Any) -> None:
        """A function is about to be compiled."""
        if not self._said:
            self._said = True
            self._say()

    def on_end(self, event: Any) -> None:
        """It has been."""

    def __enter__(self) -> None:
        event.register("numba:compile", self)  # type: ignore[no-untyped-call]

    def __exit__(self, *_error: object) -> None:
        event.unregister("numba:compile", self)  # type: ignore[no-untyped-call]


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
