"""The compilation of kernels, counted and timed apart from the work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

from numba.core import event


class Compilation(event.Listener):
    """Counts and times the kernels that are compiled in its context.

    A kernel that is loaded from the cache is not compiled.

    Parameters
    ----------
    begins, ends
        Called when compilation begins and when it ends.

    Examples
    --------
    >>> import numba
    >>> with Compilation(begins=lambda: print("compiling")) as compilation:
    ...     numba.njit(lambda: 1)()
    compiling
    1
    >>> compilation.kernels
    1
    """

    def __init__(
        self, begins: Callable[[], None] | None = None, ends: Callable[[], None] | None = None
    ) -> None:
        self.kernels = 0
        self._begins, self._ends = begins, ends
        self._finished = 0.0  # seconds of what has ended
        self._depth = 0  # compiling a kernel compiles those that it calls
        self._since = 0.0  # when the running compilation began

    @property
    def running(self) -> bool:
        """Whether a kernel is being compiled now."""
        return self._depth > 0

    @property
    def seconds(self) -> float:
        """Seconds of compilation so far."""
        return self._finished + (time.perf_counter() - self._since if self.running else 0.0)

    def on_start(self, event: Any) -> None:
        """Note that a function is about to be compiled."""
        self._depth += 1
        if self._depth == 1:
            self._since = time.perf_counter()
            if self._begins is not None:
                self._begins()

    def on_end(self, event: Any) -> None:
        """Note that it has been compiled, or could not be."""
        self.kernels += 1
        self._depth -= 1
        if self._depth == 0:
            self._finished += time.perf_counter() - self._since
            if self._ends is not None:
                self._ends()

    def __enter__(self) -> Self:
        event.register("numba:compile", self)  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_error: object) -> None:
        event.unregister("numba:compile", self)  # type: ignore[no-untyped-call]
