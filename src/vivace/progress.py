"""Progress bars: of a training run, and of a question that takes long."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vivace.ops.runtime.compilation import Compilation

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.status import Status

_LONG = 2.0  # seconds after which a question shows a bar
_EVERY = 20  # minibatches between two moves of the bar: moving it costs as much as a small step


_live: list[Status | Progress] = []  # what is shown: an old rich refuses a second
_COMPILING = "Compiling kernels for this processor, once"


def _error_console() -> Console:
    from rich.console import Console  # a terminal library: only those who see a bar wait for it

    return Console(stderr=True)


def _training_bar(compilation: Compilation) -> Progress:
    from collections.abc import Iterable

    from rich.console import RenderableType
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    class TrainingProgress(Progress):
        """Says what the wait is for while kernels are compiled."""

        def get_renderables(self) -> Iterable[RenderableType]:
            if compilation.running:
                yield f"{_COMPILING}: {compilation.kernels} so far, {compilation.seconds:.0f} s"
            else:
                yield from super().get_renderables()

    return TrainingProgress(
        TextColumn("Training"),
        BarColumn(bar_width=12),  # the whole line fits 80 columns
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[losses]}"),
        console=_error_console(),
    )


def _passing_bar() -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]},"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=_error_console(),
        transient=True,
    )


class CompilingNotice:
    """A line on the error stream for as long as kernels are compiled inside.

    Parameters
    ----------
    show
        False for none; neither is there one inside another, or beside a bar.
    """

    def __init__(self, show: bool) -> None:
        self._compilation = Compilation(self._begins, self._ends) if show else None
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if self._compilation is not None:
            self._compilation.__enter__()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._compilation is not None:
            self._compilation.__exit__()

    def _begins(self) -> None:
        if not _live:
            self._status = _error_console().status(f"{_COMPILING} ...")
            self._status.start()
            _live.append(self._status)

    def _ends(self) -> None:
        if self._status is not None:
            self._status.stop()
            _live.remove(self._status)
            self._status = None


class PassingBar:
    """A bar that appears where a pass over cells has taken two seconds and is not done.

    Parameters
    ----------
    what
        The first word of the line.
    number
        Of cells, or of what else is counted, in all.
    unit
        What is counted.
    show
        False for none.
    """

    def __init__(self, what: str, number: int, unit: str, show: bool) -> None:
        self._what = what
        self._number = number
        self._unit = unit
        self._show = show
        self._done = 0
        self._begun = time.monotonic()
        self._bar: Progress | None = None
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
        """So many more are done."""
        self._done += number
        waited = time.monotonic() - self._begun > _LONG
        if self._bar is None and self._show and waited and self._done < self._number:
            self._bar = _passing_bar()
            self._task = self._bar.add_task(
                self._what, total=self._number, completed=self._done, unit=self._unit
            )
            self._bar.start()
            _live.append(self._bar)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)


class TrainingBar:
    """A bar over epochs with the latest losses; silent where ``show`` is False.

    While kernels are compiled it says so instead; ``compilation`` has how long that took.
    """

    def __init__(self, n_epochs: int, n_steps: int, show: bool) -> None:
        self.compilation = Compilation()
        self._bar = _training_bar(self.compilation) if show else None
        self._waiting = 0
        self._verdict = ""
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
        if self._bar is None:
            return
        self._bar.stop()
        _live.remove(self._bar)
        kernels, seconds = self.compilation.kernels, self.compilation.seconds
        if kernels:
            number = f"{kernels} kernel{'s' * (kernels != 1)}"
            said = f"Compiled {number} for this processor in {seconds:.1f} s, once"
            self._bar.console.print(said, highlight=False)
        if self._verdict:
            self._bar.console.print(f"Training {self._verdict}", highlight=False, soft_wrap=True)

    def step(self) -> None:
        """One minibatch is done."""
        self._waiting += 1
        if self._waiting == _EVERY:
            self._advance()

    def _advance(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, self._waiting)
        self._waiting = 0

    def back(self, step: int) -> None:
        """An epoch was undone: go back to the step it began with."""
        self._waiting = 0
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def ends(self, n_steps: int) -> None:
        """There will be ``n_steps`` in all."""
        if self._bar is not None:
            self._bar.update(self._task, total=n_steps)

    def say(self, verdict: str) -> None:
        """The last word, below the bar."""
        self._verdict = verdict

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """So many epochs are done: show the last one's negative ELBO."""
        self._advance()
        if self._bar is None:
            return
        losses = f"-ELBO {row['elbo_train']:.1f}"
        if row["elbo_validation"] == row["elbo_validation"]:  # not NaN
            losses += f", validation {row['elbo_validation']:.1f}"
        self._bar.update(self._task, epoch=epoch, losses=losses)
