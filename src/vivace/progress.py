"""Progress bars for training and for passes over cells, and the notice of compilation."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

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
_COMPILING = "Compiling kernels for this processor, once"

_live: list[Status | Progress] = []  # live displays: rich may refuse a second one


class _TrainingProgress(Progress):
    """A bar that is replaced by a line of text while kernels are compiled."""

    def __init__(self, compilation: Compilation) -> None:
        self._compilation = compilation
        super().__init__(
            TextColumn("Training"),
            BarColumn(bar_width=12),  # the whole line fits 80 columns
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[losses]}"),
            console=Console(stderr=True),
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is shown now."""
        compilation = self._compilation
        if compilation.running:
            yield f"{_COMPILING}: {compilation.kernels} so far, {compilation.seconds:.0f} s"
        else:
            yield from super().get_renderables()


def _make_pass_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]},"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
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

    def __enter__(self) -> Self:
        if self._compilation is not None:
            self._compilation.__enter__()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._compilation is not None:
            self._compilation.__exit__()

    def _start(self) -> None:
        if not _live:
            self._status = Console(stderr=True).status(f"{_COMPILING} ...")
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
        if self._bar is None and self._show and is_long and self._done < self._number:
            self._bar = _make_pass_bar()
            self._task = self._bar.add_task(
                self._what, total=self._number, completed=self._done, unit=self._unit
            )
            self._bar.start()
            _live.append(self._bar)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)


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
        self.compilation = Compilation()
        self._bar = _TrainingProgress(self.compilation) if show else None
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
        if self._bar is None:
            return
        self._bar.stop()
        _live.remove(self._bar)
        kernels, seconds = self.compilation.kernels, self.compilation.seconds
        if kernels:
            number = f"{kernels} kernel{'s' * (kernels != 1)}"
            line = f"Compiled {number} for this processor in {seconds:.1f} s, once"
            self._bar.console.print(line, highlight=False)
        if self._conclusion:
            self._bar.console.print(self._conclusion, highlight=False, soft_wrap=True)

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
        if self._bar is None:
            return
        losses = f"-ELBO {row['elbo_train']:.1f}"
        if row["elbo_validation"] == row["elbo_validation"]:  # not NaN
            losses += f", validation {row['elbo_validation']:.1f}"
        self._bar.update(self._task, epoch=epoch, losses=losses)
