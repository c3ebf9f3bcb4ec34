"""Full disks, by a limit on the size of files: one sentence, and the earlier state stays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from campaign.outcomes import Outcome, check_sentence
from campaign.writing import WRITERS, Writing


@dataclass(frozen=True)
class Setting:
    """What writes."""

    writing: Writing

    @classmethod
    def make(cls, folder: Path) -> Setting:
        return cls(Writing.make(folder))

    def run(self, rng: np.random.Generator, folder: Path) -> Outcome:
        writer, existed = str(rng.choice(WRITERS)), bool(rng.integers(2))
        if existed:
            self.writing.put(writer, 0, folder)
        limit = int(self.writing.sizes[writer] * rng.uniform(0, 1.1))
        tried = f"{writer} with files of at most {limit} bytes, existed: {existed}"
        answer = self.writing.start(writer, 1, folder, file_size=limit).wait(120)
        if isinstance(answer, Outcome):
            return Outcome("raw", f"{tried}: {answer.detail}")
        code, said = answer
        before = 0 if existed else -1
        found = self.writing.judge_target(writer, folder, (before,) if code else (1,))
        if found:
            return Outcome("silent", f"{tried}: exit {code}, and the target {found}")
        target = self.writing.target(writer, folder)
        left = [p.name for p in folder.iterdir() if p != target]
        if left:
            return Outcome("silent", f"{tried}: {left} are left")
        if not code:
            return Outcome("right")
        lines = said.strip().removeprefix("vivace: ")
        return check_sentence(lines, tried) if code == 2 else Outcome("raw", f"{tried}: {said}")
