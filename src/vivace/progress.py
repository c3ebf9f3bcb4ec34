"""Progress bars for training and for passes over cells, and the notice of compilation.

Bars need a terminal, or a notebook with ipywidgets. A notebook without it is given a plain line
every few seconds; so is a file, but only of the training.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from importlib.util import find_spec
from types import TracebackType
from typing import Literal, Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.status import Status

from vivace.ops.runtime.compilation import Compilation

_LONG = 2.0  # seconds after which a pass over cells shows a bar
_EVERY = 20  # minibatches per move of the training bar: a move costs as much as a small step
_PAUSE = 10.0  # seconds between plain lines
_COMPILING = "Compiling kernels for this processor, once"

_live: list[Status | Progress] = []  # live displays: rich may refuse a second one


def _open_console() -> tuple[Console, Literal["bars", "lines", "nothing"]]:
    """The error stream, and what to show on it while work goes on."""
    console = Console(stderr=True)
    if console.is_jupyter and not (find_spec("IPython") and find_spec("ipywidgets")):
        return Console(stderr=True, force_jupyter=False), "lines"  # rich would warn
    return console, "bars" if console.is_jupyter or console.is_terminal else "nothing"


class _Lines:
    """Plain lines in place of a bar: one every ten seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._next = time.monotonic() + _PAUSE

    def show(self, line: str, *, at_once: bool = False) -> None:
        """Print the line if it is time for one."""
        now = time.monotonic()
        if at_once or now >= self._next:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            self._next = now + _PAUSE


class _TrainingProgress(Progress):
    """A bar that is replaced by a line of text while kernels are compiled."""

    def __init__(self, compilation: Compilation, console: Console) -> None:
        self._compilation = compilation
        super().__init__(
            TextColumn("Training"),
            BarColumn(bar_width=12),  # the whole line fits 80 columns
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[losses]}"),
            console=console,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is shown now."""
        compilation = self._compilation
        if compilation.running:
            yield f"{_COMPILING}: {compilation.kernels} so far, {compilation.seconds:.0f} s"
        else:
            yield from super().get_renderables()


def _make_pass_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]},"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
    )


class CompilingNotice:
    """A line on the error stream while kernels are compiled in the context.

    Parameters
    ----------
    show
        False for no line. None is shown inside another notice or next to a bar either.
    """

    def __init__(self, show: bool) -> None:
        self._compilation = Compilation(self._start, self._stop) if show else None
        self._status: Status | None = None
        self._told = False

    def __enter__(self) -> Self:
        if self._compilation is not None:
            self._compilation.__enter__()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._compilation is not None:
            self._compilation.__exit__()

    def _start(self) -> None:
        console, shows = _open_console()
        if shows == "lines" and not self._told:
            self._told = True
            _Lines(console).show(f"{_COMPILING} ...", at_once=True)
        if shows == "bars" and not _live:
            self._status = console.status(f"{_COMPILING} ...")
            self._status.start()
            _live.append(self._status)

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            _live.remove(self._status)
            self._status = None


class PassingBar:
    """A bar that appears once a pass over cells takes more than two seconds.

    Parameters
    ----------
    what
        The first words of the line.
    number
        Number of cells, or of other units, in the pass.
    unit
        What is counted.
    show
        False for no bar.
    """

    def __init__(self, what: str, number: int, unit: str, show: bool) -> None:
        self._what = what
        self._number = number
        self._unit = unit
        self._show = show
        self._done = 0
        self._start = time.monotonic()
        self._bar: Progress | None = None
        self._lines: _Lines | None = None
        self._notice = CompilingNotice(show)

    def __enter__(self) -> Self:
        self._notice.__enter__()
        return self

    def __exit__(self, *_error: object) -> None:
        self._notice.__exit__()
        if self._bar is not None:
            self._bar.stop()
            _live.remove(self._bar)

    def done(self, number: int) -> None:
        """Count ``number`` more as done."""
        self._done += number
        is_long = time.monotonic() - self._start > _LONG
        if self._show and is_long and self._done < self._number:
            self._show = False
            self._open()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        if self._lines is not None:
            self._lines.show(f"{self._what} {self._done}/{self._number} {self._unit}")

    def _open(self) -> None:
        console, shows = _open_console()
        if shows == "lines":
            self._lines = _Lines(console)
        if shows == "bars":
            self._bar = _make_pass_bar(console)
            self._task = self._bar.add_task(
                self._what, total=self._number, completed=self._done, unit=self._unit
            )
            self._bar.start()
            _live.append(self._bar)


class TrainingBar:
    """A bar over epochs with the latest losses, and a line below it at the end.

    Parameters
    ----------
    n_epochs, n_steps
        Epochs and minibatches of the training.
    show
        False for no bar.

    Attributes
    ----------
    compilation
        Number and seconds of the kernels that were compiled meanwhile.
    """

    def __init__(self, n_epochs: int, n_steps: int, show: bool) -> None:
        self.compilation = Compilation(self._tell)
        self._bar: _TrainingProgress | None = None
        self._lines: _Lines | None = None
        if show:
            console, shows = _open_console()
            if shows == "bars":
                self._bar = _TrainingProgress(self.compilation, console)
            else:
                self._lines = _Lines(console)
        self._n_epochs = n_epochs
        self._last = ""  # line of the last epoch
        self._told = False
        self._waiting = 0  # minibatches that the bar does not show yet
        self._conclusion = ""
        if self._bar is not None:
            self._task = self._bar.add_task("", total=n_steps, epoch=0, epochs=n_epochs, losses="")

    def __enter__(self) -> Self:
        self.compilation.__enter__()
        if self._bar is not None:
            self._bar.start()
            _live.append(self._bar)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.compilation.__exit__()
        lines = self._lines
        if self._bar is not None:
            self._bar.stop()
            _live.remove(self._bar)
            lines = _Lines(self._bar.console)
        elif lines is not None and self._last:
            lines.show(self._last, at_once=True)
        if lines is None:
            return
        kernels, seconds = self.compilation.kernels, self.compilation.seconds
        if kernels:
            number = f"{kernels} kernel{'s' * (kernels != 1)}"
            line = f"Compiled {number} for this processor in {seconds:.1f} s, once"
            lines.show(line, at_once=True)
        if self._conclusion:
            lines.show(self._conclusion, at_once=True)

    def _tell(self) -> None:
        if self._lines is not None and not self._told:
            self._told = True
            self._lines.show(f"{_COMPILING} ...", at_once=True)

    def advance(self) -> None:
        """Count one more minibatch as done."""
        self._waiting += 1
        if self._waiting == _EVERY:
            self._move()

    def _move(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, self._waiting)
        self._waiting = 0

    def rewind(self, step: int) -> None:
        """Go back to the step at which an undone epoch began."""
        self._waiting = 0
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def shorten(self, n_steps: int) -> None:
        """Let the training end after ``n_steps``."""
        if self._bar is not None:
            self._bar.update(self._task, total=n_steps)

    def conclude(self, sentence: str) -> None:
        """Print a sentence below the bar when it ends."""
        self._conclusion = sentence

    def show_epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Show the number of epochs that are done, and the negative ELBO of the last one."""
        self._move()
        losses = f"-ELBO {row['elbo_train']:.1f}"
        if row["elbo_validation"] == row["elbo_validation"]:  # not NaN
            losses += f", validation {row['elbo_validation']:.1f}"
        if self._bar is not None:
            self._bar.update(self._task, epoch=epoch, losses=losses)
        if self._lines is not None:
            self._last = f"Training epoch {epoch}/{self._n_epochs} {losses}"
            self._lines.show(self._last)
