"""How the Numba kernels are compiled, cached and run."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from functools import cached_property, wraps
from types import FunctionType
from typing import Any, TypeVar, cast

import numba

from vivace.ops.runtime.threads import kernel_threads

F = TypeVar("F", bound=Callable[..., Any])
EXACT = {"contract"}  # allows fused multiply-add, nothing else
SUMS = {"contract", "reassoc", "nsz"}  # also allows a sum to be split over vector lanes


def kernel(*, fastmath: Set[str] = frozenset(), inline: bool = False) -> Callable[[F], F]:
    """Compile a function with Numba when it is first called; it releases the GIL.

    The compiled code is cached on disk.

    Parameters
    ----------
    fastmath
        What LLVM may do to float operations: :data:`EXACT` or :data:`SUMS`.
    inline
        Whether LLVM must inline the function in every kernel that calls it.
    """

    def decorate(function: F) -> F:
        return cast("F", _compiled(function, fastmath=set(fastmath), forceinline=inline))

    return decorate


def inner_kernel(*, fastmath: Set[str] = frozenset()) -> Callable[[F], F]:
    """Compile a function that only kernels call, without an entry for Python.

    The entry would take as long to compile as a short loop, and there are dozens of these
    functions. A call from Python raises a TypeError.
    """

    def decorate(function: F) -> F:
        no_entry = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        compiled = _compiled(function, fastmath=set(fastmath), **no_entry)

        def refuse(*_args: object, **_named: object) -> None:
            raise TypeError(f"{function.__qualname__} can be called by kernels only.")

        compiled._insert = lambda *_overload: None  # hides what was compiled from Python
        compiled._compile_for_args = refuse
        return cast("F", compiled)

    return decorate


def inlined_kernel(function: F) -> F:
    """Copy the lines of a function into the kernels that call it.

    A long kernel can then be written in parts. As functions of their own they would take
    longer to compile, because LLVM optimises a function again in each kernel above it.
    The caller's options apply.
    """
    return cast("F", _njit(function, inline="always", error_model="numpy"))


def parallel_kernel(*, fastmath: Set[str] = frozenset()) -> Callable[[F], F]:
    """Compile a function with a ``prange``, which is called from Python only.

    It runs on as many threads as torch. A process that never has more than one thread
    compiles it without threads, which takes less time. A forked process does the same:
    Numba's threads do not survive ``os.fork``, and using them would end the process.
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
        """The function compiled without threads."""
        return _compiled(specialised(self.function, "serial"), fastmath=self.fastmath)

    def __call__(self, *args: Any) -> Any:
        threads, several = kernel_threads()
        if _forked or not several:
            return self.serial(*args)
        threads = min(threads, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        if threads != numba.get_num_threads():
            numba.set_num_threads(threads)
        if numba.threading_layer() == "workqueue":  # type: ignore[attr-defined]
            with _workqueue:
                return self.threaded(*args)
        return self.threaded(*args)


# Numba's threads where OpenMP and TBB are missing; two callers at once would end the process
_workqueue = threading.Lock()


def specialised(function: FunctionType, name: str, **constants: Any) -> FunctionType:
    """Copy a function that is not compiled yet, with other values for some of its globals.

    Numba takes globals as constants: it compiles only the branches that they lead to, and
    only the kernels that those call. The copy's name ends in ``name``, because the cache on
    disk tells functions apart by name.

    Examples
    --------
    >>> specialised(lambda: SIZE + 1, "two", SIZE=2)()
    3
    """
    namespace = {**function.__globals__, **constants}
    copy = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__)
    copy.__qualname__ = f"{function.__qualname__}_{name}"
    copy.__module__, copy.__doc__ = function.__module__, function.__doc__
    return copy


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    options |= {"error_model": "numpy", "nogil": True}
    try:
        compiled = _njit(function, cache=True, **options)
    except RuntimeError:  # no writable folder: every process compiles
        compiled = _njit(function, **options)
    else:
        cache = compiled._cache
        cache.load_overload = _load_or_compile(cache.load_overload, cache.flush)
        cache.save_overload = _ignore_os_errors(cache.save_overload)
    compiled.compile = _without_collector(compiled.compile)
    return compiled


@contextmanager
def _compiler() -> Iterator[None]:
    """Let Numba compile, also where NUMBA_DISABLE_JIT is set for the functions of others.

    Kernels that only other kernels can call, and those that read memory by its address, do not run
    as plain Python.
    """
    config: Any = numba.config
    disabled, config.DISABLE_JIT = config.DISABLE_JIT, 0
    try:
        yield
    finally:
        config.DISABLE_JIT = disabled


def _njit(function: Callable[..., Any], **options: Any) -> Any:
    with _compiler():
        return numba.njit(**options)(function)


def _without_collector(method: Callable[..., Any]) -> Callable[..., Any]:
    """Pause Python's garbage collector while a kernel is compiled.

    The compiler makes millions of objects, and nearly all of them live until it has
    finished. The collector would walk over them and over every imported module repeatedly,
    which takes a tenth of the time.
    """

    @wraps(method)
    def compile_kernel(*args: Any) -> Any:
        if not gc.isenabled():  # the compilation of a caller has paused it, or the user has
            with _compiler():
                return method(*args)
        gc.disable()
        try:
            with _compiler():
                return method(*args)
        except SystemError as error:
            _raise_interrupt(error)
            raise
        finally:
            gc.enable()

    return compile_kernel


def _raise_interrupt(error: SystemError) -> None:
    """Raise the Ctrl-C that C code turned into another error, if there was one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        cause = cause.__cause__ or cause.__context__


def _load_or_compile(load: Callable[..., Any], flush: Callable[[], None]) -> Callable[..., Any]:
    """Compile again if a file in the cache is damaged, whatever its contents raise."""

    def attempt(*args: Any) -> Any:
        try:
            return load(*args)
        except OSError:  # the folder is gone
            return None
        except Exception as error:
            if isinstance(error, SystemError):
                _raise_interrupt(error)
            with suppress(OSError):
                flush()  # an index that cannot be read cannot be added to either
            return None

    return attempt


def _ignore_os_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    """Do not save if the disk is full or the folder is gone."""

    def attempt(*args: Any) -> Any:
        try:
            return method(*args)
        except OSError:
            return None

    return attempt


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
