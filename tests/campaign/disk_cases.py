"""Full disks, by a limit on the size of files: one sentence, and the earlier state stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from campaign.outcomes import Outcome, check_sentence
from campaign.writing import WritingSetting


class Setting(WritingSetting):
    def run(self, rng: np.random.Generator, folder: Path) -> Outcome:
        writer, existed = self.begin(rng, folder)
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
        left = self.writing.left(writer, folder)
        if left:
            return Outcome("silent", f"{tried}: {left} are left")
        if not code:
            return Outcome("right")
        lines = said.strip().removeprefix("vivace: ")
        return check_sentence(lines, tried) if code == 2 else Outcome("raw", f"{tried}: {said}")
