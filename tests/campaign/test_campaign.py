"""A few random cases of each part; ``make campaign`` runs as many as are wanted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vivace

PARTS = ["data", "arguments", "folders", "kills", "disks", "rivals", "threads"]
_PATHS = [str(Path(vivace.__file__).parents[1]), str(Path(__file__).parents[1])]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and limits of Linux")


def run_campaign(folder: Path, *options: object) -> dict[str, dict[str, int]]:
    """The counts of each part; the test fails with the cases that are raw or silent."""
    counts = folder / "counts.json"
    done = subprocess.run(
        [sys.executable, "-m", "campaign", "--folder", folder / "work", "--json", counts]
        + [str(option) for option in options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(_PATHS)},
        capture_output=True,
        text=True,
        timeout=1_800,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2_000:]
    return json.loads(counts.read_text())


def test_a_sample_ends_in_answers_and_sentences(tmp_path):
    counts = run_campaign(tmp_path, "--seed", 0, "--size", 30)
    assert list(counts) == PARTS
    for part, outcomes in counts.items():
        assert outcomes.keys() <= {"right", "sentence", "unmade"}, part
        assert outcomes.get("right") or outcomes.get("sentence"), part


def test_a_fault_is_counted_and_ends_with_an_error(tmp_path):
    """Silent, raw, crashed and endless cases are told apart from good ones."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import os, signal, sys, time
from pathlib import Path
from campaign.outcomes import Outcome, check_sentence, fork, isolated, judge
from vivace import SCVI
from vivace.errors import OptionError

folder = Path(sys.argv[1])

def raises(error):
    raise error

def run(case):
    return isolated(case, folder, "tried").kind

assert run(lambda: Outcome("right")) == "right"
assert run(lambda: raises(OptionError("One sentence; a fix."))) == "sentence"
assert run(lambda: raises(OptionError("One. Two."))) == "raw"
assert run(lambda: raises(OptionError("No full stop"))) == "raw"
assert run(lambda: SCVI.load(None).foo) == "sentence"
assert run(lambda: raises(ValueError("of another library"))) == "unmade"
assert run(lambda: os.kill(os.getpid(), signal.SIGSEGV)) == "raw"
assert run(lambda: len(bytes(4 << 30)) and Outcome("right")) != "right"
assert fork(lambda: time.sleep(100), folder).wait(0.2).kind == "raw"
"""
    )
    done = subprocess.run(
        [sys.executable, script, tmp_path / "work"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(_PATHS)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
