"""The command line; ``main`` is its entry point."""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys

from vivace.cli import commands
from vivace.cli.forwarding import app
from vivace.errors import VivaceError

__all__ = ["app", "commands", "main"]


def main() -> None:
    """Run the command line. An error that vivace raises is one sentence and exit code 2."""
    _limit_spinning()
    atexit.register(_end_at_once)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a console without the letters of a name, such as "µ" in ASCII, is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="vivace")  # the name in messages, even under ``python -c``
    except (VivaceError, OSError) as error:  # OSError: a full disk, a folder without permission
        print(f"vivace: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # before or after the command, which answers it by itself
        raise SystemExit(130) from None


def _end_at_once() -> None:
    """Let Ctrl-C end the process without a traceback while Python shuts down."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _limit_spinning() -> None:
    """Let idle OpenMP threads sleep after a short spin.

    GNU's OpenMP otherwise spins for several milliseconds. That gains nothing on an idle machine,
    and slows a busy one fourfold until the number of threads has adapted. The variable is read
    when torch is imported; a user's OMP_WAIT_POLICY takes precedence.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
