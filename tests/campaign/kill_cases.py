"""Kills at random points: the earlier state or the new one is there in full; the next run works."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from campaign.outcomes import Outcome
from campaign.writing import WRITERS, Writing

_LATER = 3600  # seconds by which what a kill left is made older


@dataclass(frozen=True)
class Setting:
    """What writes, and for how long."""

    writing: Writing
    seconds: dict[str, float]

    @classmethod
    def make(cls, folder: Path) -> Setting:
        writing, seconds = Writing.make(folder), {}
        for writer in WRITERS:
            start = time.monotonic()
            writing.put(writer, 1, folder / "made")
            seconds[writer] = time.monotonic() - start
        return cls(writing, seconds)

    def run(self, rng: np.random.Generator, folder: Path) -> Outcome:
        writer, existed = str(rng.choice(WRITERS)), bool(rng.random() < 0.7)
        if existed:
            self.writing.put(writer, 0, folder)
        child = self.writing.start(writer, 1, folder)
        # most time goes by before the writing, which is the end
        part = rng.uniform(0.0, 1.2) if rng.integers(2) else rng.uniform(0.8, 1.1)
        time.sleep(self.seconds[writer] * part)
        child.kill()
        child.answer.unlink(missing_ok=True)
        tried = f"{writer} killed at {part:.2f} of its time, existed: {existed}"
        found = self.writing.judge_target(writer, folder, (0 if existed else -1, 1))
        if found:
            return Outcome("silent", f"{tried}: the target {found}")
        for left in folder.iterdir():
            if left.name.startswith("."):
                os.utime(left, (time.time() - _LATER,) * 2)
        answer = self.writing.start(writer, 1, folder).wait(120)
        if answer != (0, ""):
            return Outcome("raw", f"{tried}: the next run says {answer}")
        found = self.writing.judge_target(writer, folder, (1,))
        left = self.writing.left(writer, folder)
        left = [name for name in left if not name.startswith((".vivace-", "vivace-"))]
        if found or left:
            return Outcome("silent", f"{tried}: after the next run {found or f'{left} are left'}")
        return Outcome("right")
