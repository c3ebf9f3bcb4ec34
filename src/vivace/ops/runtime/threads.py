"""How many threads run: the number that was set, or what the load of the machine allows.

Threads that share a product or kernel wait for each other at its end, and they wait by
spinning. That is fast while each has a core to itself. It is very slow when another process
takes the core of one of them, because the others wait until it comes back, dozens of times
per training step. So the number of threads follows the load while vivace works:

* A number that was set (``vivace.settings.num_threads``, ``--threads``) is used as it is.
* Otherwise it is at most torch's number (``OMP_NUM_THREADS``, ``MKL_NUM_THREADS``,
  ``torch.set_num_threads``; by default the cores), at most the cores that this process may
  use (its affinity mask, its cgroup's quota), and at most the cores that no other process
  uses.
* That number and its successive halves are tried, and the one with which a unit of work (a
  training step, a minibatch of cells) takes the least time is used. They are tried again
  every few seconds, and as soon as units become slow.

Results do not depend on the number: every product and kernel gives the same bits on any
number of threads.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

from vivace.config import settings
from vivace.ops.runtime.cores import FreeCores, allowed_cores

_LEEWAY = 0.3  # of a core; others may use that much of the threads' cores
_TRIES = 3  # units by which a number of threads is judged
_LONG = 0.03  # seconds; above it one unit is enough
_GAIN = 0.9  # fewer threads must take less than this share of the time
_WORSE = 1.3  # times the best number's time: not worth another unit
_HOPELESS = 2.0  # times the usual time before the trial: not worth another unit either
_SLOW = 1.5  # times the usual time
_PATIENCE = 3  # slow units in a row after which all numbers are tried again
_AGAIN = 5.0  # seconds after which they are tried again in any case,
_SHARE = 50  # or this many times as long as the last trial took, if that is longer


class Tuner:
    """Finds the number of threads with which units of one kind of work take the least time.

    It tries all threads, half of them, a quarter and so on until that takes longer.

    Examples
    --------
    >>> tuner, seconds = Tuner(), {4: 0.3, 2: 0.2, 1: 0.4}
    >>> for i in range(10):
    ...     tuner.took(seconds[tuner.threads(4)], now=float(i))
    >>> tuner.threads(4)
    2
    """

    def __init__(self) -> None:
        self._halvings = 0  # of the number that may run
        self._most = 0  # threads that may run
        self._usual: float | None = None  # seconds per unit with the chosen number
        self._warm = False  # false until the first unit, which may load kernels, is over
        self._slow = 0  # slow units in a row
        self._next_trial = 0.0
        self._begin_trial()

    def _begin_trial(self) -> None:
        self._trying = True
        self._spent = 0.0  # seconds
        self._halvings = 0
        self._times: list[float] = []  # of the number that is being tried
        self._best: tuple[float, int] | None = None  # seconds per unit, halvings

    def renew(self) -> None:
        """Begin other work of the same kind: keep the chosen number, forget the usual time."""
        self._usual, self._slow = None, 0
        if self._trying:
            self._begin_trial()

    def threads(self, most: int) -> int:
        """Number of threads for the next unit, where ``most`` may run."""
        if not 0.8 * self._most <= most <= 1.25 * self._most:
            self._most = most
            self._begin_trial()
        return max(1, most >> self._halvings)

    def took(self, seconds: float, now: float) -> None:
        """Note how long a unit took with the number that was given, and when it ended."""
        if not self._warm:
            self._warm = True
        elif self._trying:
            self._try(seconds, now)
        else:
            self._watch(seconds, now)

    def _try(self, seconds: float, now: float) -> None:
        self._times.append(seconds)
        self._spent += seconds
        tries = _TRIES if seconds < _LONG else 1
        if self._best is not None:
            hopeless = seconds > _WORSE * self._best[0]
        else:
            hopeless = self._usual is not None and seconds > _HOPELESS * self._usual
        if len(self._times) < tries and not hopeless:
            return
        typical = median(self._times)
        if self._best is None or typical < _GAIN * self._best[0]:
            self._best = typical, self._halvings
        if typical <= _WORSE * self._best[0] and self._most >> self._halvings > 1:
            self._halvings += 1  # half as many may be faster still
            self._times = []
            return
        self._usual, self._halvings = self._best
        self._trying, self._slow = False, 0
        self._next_trial = now + max(_AGAIN, _SHARE * self._spent)

    def _watch(self, seconds: float, now: float) -> None:
        if self._usual is None:
            self._usual = seconds
        self._slow = self._slow + 1 if seconds > _SLOW * self._usual else 0
        if self._most > 1 and (self._slow >= _PATIENCE or now > self._next_trial):
            self._begin_trial()


class _Scope(threading.local):
    """The state of :func:`adapted_threads` in this Python thread."""

    ceiling = 0  # threads at most, whatever the load; 0 outside of adapted_threads
    fixed = False  # whether the user has set the number


_scope = _Scope()
_cores = FreeCores()
_tuners: dict[tuple[Hashable, ...], Tuner] = {}


@contextmanager
def adapted_threads() -> Iterator[None]:
    """Let the number of threads follow the load in the context; restore it afterwards.

    A nested context does nothing.
    """
    if _scope.ceiling:
        yield
        return
    before, fixed = torch.get_num_threads(), settings.fixed_threads
    _scope.ceiling = min(before, allowed_cores()) if fixed is None else fixed
    _scope.fixed = fixed is not None
    try:
        torch.set_num_threads(_available())
        yield
    finally:
        _scope.ceiling = 0
        torch.set_num_threads(before if fixed else settings.restored_threads(before))


def _available() -> int:
    """Number of threads that can each have a core."""
    if settings.fixed_threads is not None:  # a callback may have set it meanwhile
        return settings.fixed_threads
    if _scope.ceiling == 1:
        return 1
    free = _cores.look()
    return _scope.ceiling if free is None else max(1, min(_scope.ceiling, int(free + _LEEWAY)))


class Pace:
    """Times the units of one kind of work, and sets the number of threads for each.

    It does nothing outside of :func:`adapted_threads`, or where the user has set the number.

    Parameters
    ----------
    kind
        Key of the work; units of paces with the same key take similar times.

    Examples
    --------
    >>> with adapted_threads():
    ...     pace = Pace("sums", 128)
    ...     for _ in range(3):
    ...         pace.begin()
    ...         total = torch.ones(128, 128).sum()
    ...         pace.end()
    """

    def __init__(self, *kind: Hashable) -> None:
        self._follows = _scope.ceiling > 1 and not _scope.fixed
        if self._follows:
            self._tuner = _tuners.setdefault(kind, Tuner())
            self._tuner.renew()
            self._set()

    def begin(self) -> None:
        """Note that a unit begins."""
        if self._follows and torch.get_num_threads() != self._threads:
            self._set()  # another pace has set it in between
        self._begun = time.perf_counter()

    def end(self, *, judge: bool = True) -> None:
        """Note that the unit has ended, and set the number of threads for the next.

        Parameters
        ----------
        judge
            False for a unit that was smaller than the others.
        """
        if self._follows:
            now = time.perf_counter()
            if judge:
                self._tuner.took(now - self._begun, now)
            self._set()

    def _set(self) -> None:
        if not _scope.ceiling:  # used by a generator that outlives adapted_threads
            self._follows = False
            return
        most = _available()
        self._threads = most if settings.fixed_threads else self._tuner.threads(most)
        torch.set_num_threads(self._threads)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Run torch's operations on one thread inside: for those whose bits depend on the number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def kernel_threads() -> tuple[int, bool]:
    """Threads for a kernel at this moment, and whether this process ever uses several."""
    threads = torch.get_num_threads()
    return threads, threads > 1 or _scope.ceiling > 1


def _note_fork() -> None:
    """Limit a forked process to one thread; the others did not survive the fork."""
    _scope.ceiling = min(_scope.ceiling, 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
