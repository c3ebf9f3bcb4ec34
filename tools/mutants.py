"""Break the kernels one line at a time and count how many of the broken ones the tests notice.

Usage: python tools/mutants.py [--tree DIR] [--only WORDS ...]

Each mutant is one textual change to a copy of the tree in a scratch folder, where the tests that
should notice it run until the first failure. A pattern may have alternatives, so that the same
mutants can be run on versions in which names differ.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# what is wrong; pattern; replacement; folders or files of tests that should fail
MUTANTS: list[tuple[str, str, str, str]] = [
    ("exp32: a coefficient", r"1\.6666665459e-1", "1.6676665459e-1", "ops"),
    ("log1p32: the rounding of 1 + u", r" \+ lost \* inverse\)", ")", "ops"),
    ("digamma: the second term", r"- 0\.5 \* r\n", "- 0.4999 * r\n", "ops"),
    ("log x!: the table", r"math\.lgamma\(i \+ 1\)", "math.lgamma(i + 2)", "ops"),
    ("NB(0): the sign", r"value\[j\] = -theta\[j\] \*", "value[j] = theta[j] *", "ops"),
    ("ZINB(0): the odds", r"\(p \* \(_ONE - t\)\)", "(p * (_ONE + t))", "ops"),
    ("NB: gradient in mu", r"/ \(1\.0 \+ ratio\[i\]\)", "/ (1.001 + ratio[i])", "ops"),
    ("NB: gradient in theta", r"\* \(digamma_z - spread\)", "* (digamma_z + spread)", "ops"),
    ("theta: gradient beyond its bounds", r"_ZERO if abs\((\w+)\[j\]\) > _BOUND", r"_ZERO if abs(\1[j]) < -_BOUND", "ops"),
    ("softmax: gradient", r"e\[j\] \* factor - (\w+)\[j\]", r"e[j] * factor + \1[j]", "ops"),
    ("large NB: the cancelling logarithm", r"large = u > 1\.0", "large = u > 1e300", "ops"),
    ("sparse product: the last column", r"for j in range\(c, h\):\n(\s+)out_h", r"for j in range(c, h - 1):\n\1out_h", "ops"),
    ("sparse gradient: later genes", r"if first > 0:", "if first > 256:", "ops"),
    ("log1p of counts: of -1", r"_NAN if x < _MINUS_ONE else -_INFINITY", "_NAN", "ops"),
    ("gather: gene of an entry", r"= genes\[first \+ k\]", "= genes[first]", "data"),
    ("batch norm: unbiased variance", r"/ \(n - 1\)", "/ n", "step"),
    ("batch norm: mean in the gradient", r"(shifts?|\w*shift\w*)\[c\] / n\n", r"\1[c] / (n + 1)\n", "step"),
    ("KL: the mean", r"0\.5 \* kl / n", "0.5 * kl / (n + 1)", "step"),
    ("one-hot: the column", r"column \+ code\]", "column]", "step"),
    ("Adam: bias correction", r"1\.0 - beta1\*\*self\.steps", "1.0 - beta1", "train"),
    ("Adam: decay", r"\+ decay \* w", "- decay * w", "train"),
    ("fold change: place in a bin", r"= 0\.5 - shift", "= 0.4 - shift", "de"),
    ("fold change: the least", r"- largest\), max", "- least), max", "de"),
    ("sums of counts: stored zeros", r"\+= value != 0", "+= value >= 0", "de"),
]  # fmt: skip
TESTS = {
    "ops": ["tests/ops"],
    "data": ["tests/data"],
    "step": ["tests/train/step", "tests/nn/test_by_hand.py"],
    "train": ["tests/train/test_adam.py"],
    "de": ["tests/de"],
}


def find(tree: Path, pattern: str) -> Path | None:
    """The kernel file that the pattern is in."""
    for path in sorted((tree / "src").rglob("*.py")):
        text = path.read_text()
        if ("kernel" in text or "vector_loop" in text) and re.search(pattern, text):
            return path
    return None


def is_killed(tree: Path, path: Path, pattern: str, replacement: str, tests: list[str]) -> bool:
    """Whether the tests fail once the change is made in a copy of the tree."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "tree"
        ignore = shutil.ignore_patterns(".git", ".venv", "__pycache__", "results", ".*_cache")
        shutil.copytree(tree, copy, ignore=ignore)
        file = copy / path.relative_to(tree)
        file.write_text(re.sub(pattern, replacement, file.read_text(), count=1))
        there = [t for t in tests if (copy / t).exists()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *there]
        environment = os.environ | {"PYTHONPATH": str(copy / "src")}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        if done.returncode not in (0, 1):
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        return done.returncode == 1


def main() -> None:
    """Run the mutants and print how many the tests killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--only", nargs="*", default=[""])
    args = parser.parse_args()
    killed = run = 0
    for name, pattern, replacement, kind in MUTANTS:
        if not any(word in name for word in args.only):
            continue
        path = find(args.tree, pattern)
        if path is None:
            print(f"not found  {name}")
            continue
        begun = time.perf_counter()
        dead = is_killed(args.tree, path, pattern, replacement, TESTS[kind])
        run, killed = run + 1, killed + dead
        seconds = time.perf_counter() - begun
        print(
            f"{'killed' if dead else 'SURVIVED'}  {name} ({path.name}, {seconds:.0f} s)", flush=True
        )
    print(f"{killed} of {run} killed")


if __name__ == "__main__":
    main()
