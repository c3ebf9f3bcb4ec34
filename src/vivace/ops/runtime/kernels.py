"""How the Numba kernels are compiled, cached and run."""

from __future__ import annotations

import os
from collections.abc import Callable, Set
from functools import cached_property
from types import FunctionType
from typing import Any, TypeVar, cast

import numba

from vivace.ops.runtime.threads import kernel_threads

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


def inlined_kernel(function: F) -> F:
    """Make a function part of the kernels that call it, as if its lines stood there.

    A kernel can then be written in parts without a call, and without a function of its
    own that LLVM would optimise again in every kernel above it. It has the caller's
    options.
    """
    return cast("F", numba.njit(inline="always", error_model="numpy")(function))


def parallel_kernel(*, fastmath: Set[str] = frozenset()) -> Callable[[F], F]:
    """The same for a function with a ``prange``, which is called from Python only.

    It runs on as many threads as torch.  A process that never has more than one
    compiles it without threads, which takes less time.  So does a forked process, and
    stays with it: Numba's threads do not survive ``os.fork``, and would take the
    process with them.
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
        """The same function without threads."""
        return _compiled(specialised(self.function, "serial"), fastmath=self.fastmath)

    def __call__(self, *args: Any) -> Any:
        threads, several = kernel_threads()
        if _forked or not several:
            return self.serial(*args)
        threads = min(threads, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        if threads != numba.get_num_threads():
            numba.set_num_threads(threads)
        return self.threaded(*args)


def specialised(function: FunctionType, name: str, **constants: Any) -> FunctionType:
    """A copy of a function, not compiled yet, to which some globals of its module are constants.

    A kernel compiles only the branches that its constants lead to, and the kernels that those
    call.  The copy's name ends in ``name``, since the cache on disk goes by names.

    Examples
    --------
    >>> specialised(lambda: SIZE + 1, "of_two", SIZE=2)()
    3
    """
    seen = {**function.__globals__, **constants}
    copy = FunctionType(function.__code__, seen, function.__name__, function.__defaults__)
    copy.__qualname__ = f"{function.__qualname__}_{name}"
    copy.__module__, copy.__doc__ = function.__module__, function.__doc__
    return copy


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
