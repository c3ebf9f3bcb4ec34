"""The progress bar of a training run."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vivace.jit import CompileNotice

_EVERY = 20  # minibatches between two moves of the bar: moving it costs as much as a small step


class TrainingBar:
    """A bar over epochs with the latest losses; silent where ``show`` is False."""

    def __init__(self, n_epochs: int, n_steps: int, show: bool) -> None:
        self._bar = Progress(
            TextColumn("Training"),
            BarColumn(bar_width=12),  # the whole line fits 80 columns
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[losses]}"),
            console=Console(stderr=True),
            disable=not show,
        )
        self._notice = CompileNotice(self._compiling)
        self._waiting = 0
        self._verdict = ""
        self._task = self._bar.add_task("", total=n_steps, epoch=0, epochs=n_epochs, losses="")

    def __enter__(self) -> Self:
        self._bar.start()
        self._notice.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._notice.__exit__()
        self._bar.stop()
        if self._verdict and not self._bar.disable:
            self._bar.console.print(f"Training {self._verdict}", highlight=False, soft_wrap=True)

    def _compiling(self) -> None:
        if self._bar.disable:
            return
        self._bar.console.print(
            "Compiling kernels for this processor: some seconds, once.", highlight=False
        )

    def step(self) -> None:
        """One minibatch is done."""
        self._waiting += 1
        if self._waiting == _EVERY:
            self._advance()

    def _advance(self) -> None:
        self._bar.advance(self._task, self._waiting)
        self._waiting = 0

    def back(self, step: int) -> None:
        """An epoch was undone: go back to the step it began with."""
        self._waiting = 0
        self._bar.update(self._task, completed=step)

    def ends(self, n_steps: int) -> None:
        """There will be ``n_steps`` in all."""
        self._bar.update(self._task, total=n_steps)

    def say(self, verdict: str) -> None:
        """The last word, below the bar."""
        self._verdict = verdict

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """So many epochs are done: show the last one's negative ELBO."""
        self._advance()
        losses = f"-ELBO {row['elbo_train']:.1f}"
        if row["elbo_validation"] == row["elbo_validation"]:  # not NaN
            losses += f", validation {row['elbo_validation']:.1f}"
        self._bar.update(self._task, epoch=epoch, losses=losses)
