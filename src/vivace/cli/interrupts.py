"""Signals that ask the process to end (Ctrl-C, SIGTERM, SIGHUP) are answered in one line."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import typer

from vivace.errors import VivaceError

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_received: list[int] = []  # numbers of the signals since the command began


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turn each signal into a KeyboardInterrupt, and that into one line and an exit code.

    Temporary files are thus removed whatever ends the command. A signal that the parent process
    told us to ignore (nohup) stays ignored.
    """
    _received.clear()
    former = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name, None) for name in _SIGNALS):
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                former[number] = signal.signal(number, _interrupt)
    try:
        yield
    except (typer.Exit, VivaceError):
        raise
    except BaseException as error:  # Numba may have made another error of it
        if not _received and not isinstance(error, KeyboardInterrupt):
            raise
        end_interrupted("Interrupted; nothing is left half written.")
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def was_interrupted_once() -> bool:
    """Whether one signal came; after a second the process should end at once."""
    return len(_received) == 1


def end_interrupted(message: str) -> NoReturn:
    """Print a message and end the command with the exit code of the signal."""
    print(f"vivace: {message}", file=sys.stderr)
    raise typer.Exit(128 + (_received or [signal.SIGINT])[0])


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
    raise KeyboardInterrupt
