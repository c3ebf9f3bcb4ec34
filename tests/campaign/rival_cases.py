"""Two processes on one target: one of the two results is there in full, never a mixture."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from campaign.outcomes import Outcome, check_sentence
from campaign.writing import WritingSetting


class Setting(WritingSetting):
    def run(self, rng: np.random.Generator, folder: Path) -> Outcome:
        writer, existed = self.begin(rng, folder)
        tried = f"{writer} by two processes, existed: {existed}"
        first = self.writing.start(writer, 0, folder)
        time.sleep(rng.uniform(0, 0.05))
        second = self.writing.start(writer, 1, folder)
        answers = [child.wait(120) for child in (first, second)]
        kind = "right"
        for answer in answers:
            if isinstance(answer, Outcome):
                return Outcome("raw", f"{tried}: {answer.detail}")
            code, said = answer
            if code:
                outcome = check_sentence(said.strip().removeprefix("vivace: "), tried)
                if code != 2 or outcome.kind == "raw":
                    return Outcome("raw", f"{tried}: {said}")
                kind = "sentence"
        versions = [v for v, answer in enumerate(answers) if answer[0] == 0]
        if not versions:
            return Outcome("raw", f"{tried}: neither wrote: {answers}")
        found = self.writing.judge_target(writer, folder, tuple(versions))
        left = self.writing.left(writer, folder)
        if found or left:
            return Outcome("silent", f"{tried}: {found or f'{left} are left'}")
        return Outcome(kind)
