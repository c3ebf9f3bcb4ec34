"""How a case may end, and the process with limits in which it runs."""

from __future__ import annotations

import os
import pickle
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import resource

import vivace
from vivace.cli import main
from vivace.errors import VivaceError

_SOURCE = str(Path(vivace.__file__).parent)
GIB = 1 << 30
_SECOND_SENTENCE = re.compile(r"[.?!] [A-Z]")
_MOST = 700  # characters of a message


@dataclass(frozen=True)
class Outcome:
    """The end of a case.

    Parameters
    ----------
    kind
        "right": the answer is right, or the earlier state is there.
        "sentence": an error of vivace in one sentence.
        "raw": any other error, a crash, an endless run or memory without bound.
        "silent": an answer that is wrong, or input that was taken for something else.
        "unmade": another library refused to make the input.
    detail
        What was tried, and what happened.
    """

    kind: str
    detail: str = ""


@dataclass
class Tally:
    """Counts of outcomes, and the cases that must not occur."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[int, Outcome] = field(default_factory=dict)

    def add(self, number: int, outcome: Outcome) -> None:
        self.counts[outcome.kind] += 1
        if outcome.kind in ("raw", "silent"):
            self.faults[number] = outcome


def check_sentence(message: str, tried: object = "") -> Outcome:
    """Whether a message is one short sentence on one line."""
    good = (
        "\n" not in message
        and len(message) < _MOST
        and message.endswith((".", "?"))
        and not _SECOND_SENTENCE.search(message)
    )
    return Outcome("sentence" if good else "raw", f"{tried}: {message[:_MOST]}")


def judge(case: Callable[[], Outcome], tried: object = "") -> Outcome:
    """Run a case here; an error is judged by its message."""
    try:
        return case()
    except VivaceError as error:
        return check_sentence(str(error), tried)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if _SOURCE in f.filename]
        if not ours:
            return Outcome("unmade", f"{tried}: {error!r}")
        place = ours[-1]
        return Outcome("raw", f"{tried}: {type(error).__name__} at {place}: {str(error)[:300]}")


@dataclass
class Child:
    """A forked process, with its answer in a file once it has ended."""

    pid: int
    answer: Path

    def wait(self, seconds: float) -> Any:
        """Its answer; an Outcome "raw" if it crashed or did not end in time."""
        end = time.monotonic() + seconds
        while (ended := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > end:
                self.kill()
                return Outcome("raw", f"did not end in {seconds:.0f} seconds")
            time.sleep(0.002)
        if self.answer.exists():
            answer = pickle.loads(self.answer.read_bytes())
            self.answer.unlink()
            return answer
        return Outcome("raw", f"the process ended with status {ended[1]}")

    def kill(self) -> None:
        """Kill the process by SIGKILL; one that has ended is left alone."""
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def fork(
    work: Callable[[], Any], folder: Path, *, memory: int = 2 * GIB, file_size: int | None = None
) -> Child:
    """Start ``work`` in a forked process.

    Parameters
    ----------
    work
        What to run; it returns something that can be pickled.
    folder
        The working folder, also for temporary files.
    memory
        Bytes of address space beyond what the process has.
    file_size
        The largest file that it can write, as on a full disk; None for any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = time.monotonic_ns()
    answer = folder.parent / f"answer-{number}"
    pid = _fork()
    if pid:
        return Child(pid, answer)
    try:
        os.chdir(folder)
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(null, stream)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
        warnings.simplefilter("ignore")
        value = work()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        partial = answer.with_suffix(".partial")
        partial.write_bytes(pickle.dumps(value))
        partial.rename(answer)
        os._exit(0)
    except BaseException:
        os._exit(70)


def _fork() -> int:
    """``os.fork``, which a busy machine may refuse for a while."""
    for attempt in range(100):
        with suppress(BlockingIOError):
            return os.fork()
        time.sleep(0.02 * attempt)
    return os.fork()


def isolated(case: Callable[[], Outcome], folder: Path, tried: object, **limits: Any) -> Outcome:
    """The outcome of a case in a forked process; it may last a minute."""
    outcome = fork(lambda: judge(case, tried), folder, **limits).wait(60)
    if outcome.kind == "raw" and not outcome.detail.startswith(str(tried)):
        return Outcome("raw", f"{tried}: {outcome.detail}")
    return outcome


def run_command(arguments: list[object]) -> tuple[int, str]:
    """Run the command line in this process, which ends then; exit code and standard error."""
    sys.argv = ["vivace", *map(str, arguments)]
    sys.stdout, sys.stderr = StringIO(), StringIO()
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0), sys.stderr.getvalue()
    except BaseException as error:
        return 1, f"{type(error).__name__}: {error}"
    return 0, sys.stderr.getvalue()
