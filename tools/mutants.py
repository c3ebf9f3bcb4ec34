"""Check that the tests detect broken kernels.

Changes one line of the kernels at a time in a copy of a source tree, runs the tests of that
operation there, and prints whether they fail.

Usage: python tools/mutants.py [--tree FOLDER] [--only NAME ...] [--baseline]

A mutant is killed if a test fails, and survives if all pass. A line is found by its text, in any
file of ``src/vivace``, so the script also works on older trees. A mutant takes minutes, because all
kernels are recompiled: Numba's cache does not notice a change in an imported kernel.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

COUNT_NLL = ("ops/test_count_nll*.py", "ops/count_nll/test_*.py")
SPARSE = ("ops/test_sparse_linear.py", "ops/sparse_linear/test_*.py")
STEP = ("nn/test_by_hand.py", "train/step/test_*.py")
ADAM = ("train/test_adam.py",)
DATA = ("data/test_source.py",)
DE = ("de/test_kernels.py", "de/test_histograms.py", "de/test_count*.py")
MATH = ("ops/test_fastmath.py", "ops/test_gamma.py", "ops/math/test_*.py")


@dataclass(frozen=True)
class Mutant:
    """A changed line of a kernel.

    Parameters
    ----------
    name
        The name of the defect.
    before, after
        Text that occurs once in ``src/vivace``, and its replacement.
    tests
        Patterns of the test files, relative to ``tests``.
    """

    name: str
    before: str
    after: str
    tests: tuple[str, ...]


MUTANTS = [
    Mutant("softmax-sign", "(e[j] * factor - ", "(e[j] * factor + ", COUNT_NLL),
    Mutant(
        "factorial-table-end",
        "last = np.float32(_LOG_FACTORIAL.size - 1)\n    others",
        "last = np.float32(_LOG_FACTORIAL.size)\n    others",
        COUNT_NLL,
    ),
    Mutant("share-of-nb", "kept *= whole * inverse", "kept *= inverse", COUNT_NLL),
    Mutant(
        "vanishing-zeros", "_VANISHING = np.float32(-28)", "_VANISHING = np.float32(-90)", COUNT_NLL
    ),
    Mutant("theta-bound", "out[j] = _ZERO if abs(", "out[j] = _ZERO if 0.5 * abs(", COUNT_NLL),
    Mutant("stored-zero", "value[i] = 0.0", "value[i] += 0.0", COUNT_NLL),
    Mutant("softplus-tail", "_SOFTPLUS_IS_EXP = -20.0", "_SOFTPLUS_IS_EXP = -200.0", COUNT_NLL),
    Mutant("large-ratio", "large = u > 1.0", "large = u > 1e30", COUNT_NLL),
    Mutant("theta-gradient", "(digamma_z - spread)", "(digamma_z + spread)", COUNT_NLL),
    Mutant("library-weight", "np.float32(-w * ", "np.float32(-", COUNT_NLL),
    Mutant(
        "gene-after-stretch",
        "np.uint32(genes[stop] - first) < number",
        "np.uint32(genes[stop] - first) < number - 1",
        SPARSE,
    ),
    Mutant("genes-that-descend", "grad_nh) < entries:", "grad_nh) < 0:", SPARSE),
    Mutant("last-columns", "out_h[c:] = np.float32(0)", "out_h[c:] += np.float32(0)", SPARSE),
    Mutant("log1p-of-minus-one", "else -_INFINITY)", "else _INFINITY)", SPARSE),
    Mutant("log1p-rounding", "lost = u - (w - np.float32(1.0))", "lost = u - u", MATH),
    Mutant("exp-coefficient", "np.float32(1.6666665459e-1)", "np.float32(1.666e-1)", MATH),
    Mutant("digamma", "derivative = (z + z + 5.0)", "derivative = (z + 5.0)", MATH),
    Mutant("gathered-gene", "genes[first + k]", "genes[first]", DATA),
    Mutant("unbiased-variance", "squares[c] / (n - 1)", "squares[c] / n", STEP),
    Mutant("batch-variance", "gap * gap", "abs(gap)", STEP),
    Mutant("mean-divergence", "0.5 * kl / n", "0.5 * kl / (n + 1)", STEP),
    Mutant("one-hot-column", "column + code]", "column]", STEP),
    Mutant("adam-bias", "1.0 - beta1**self.steps", "1.0 - beta1", ADAM),
    Mutant("adam-decay", "+ decay * w", "- decay * w", ADAM),
    Mutant("place-in-a-bin", "= 0.5 - shift", "= 0.4 - shift", DE),
    Mutant("stored-zeros", "+= value != 0", "+= value >= 0", DE),
]


def find_file(tree: Path, text: str) -> Path:
    """Find the file whose kernels contain the text, which must occur once."""
    files = (tree / "src/vivace").rglob("*.py")
    counts = {path: path.read_text().count(text) for path in files}
    counts = {path: count for path, count in counts.items() if count}
    if sum(counts.values()) != 1:
        raise SystemExit(f"{text!r} occurs {sum(counts.values())} times in {tree}, not once.")
    return next(iter(counts))


def copy_tree(tree: Path, scratch: Path) -> None:
    """Copy the files that the tests need, without compiled kernels."""
    ignore = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")
    for folder in ("src", "tests"):
        shutil.copytree(tree / folder, scratch / folder, ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(tree / name, scratch / name)


def run_tests(scratch: Path, patterns: tuple[str, ...]) -> int:
    """Run the test files up to the first failure; the exit status of pytest."""
    files = [str(f) for p in patterns for f in sorted((scratch / "tests").glob(p))]
    if not files:
        raise SystemExit(f"no test files match {patterns} in {scratch}")
    environment = os.environ | {"PYTHONPATH": str(scratch / "src")}
    environment.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1:]
    print("   ", *last, *(done.stderr.strip().splitlines()[-1:] if not last else []), flush=True)
    return done.returncode


def verdict(status: int) -> str:
    """Translate an exit status of pytest into a verdict on the mutant."""
    if status == 0:
        return "survived"
    # 1: a test failed; negative: the process crashed; else pytest could not run the tests
    return "killed" if status == 1 or status < 0 else f"pytest ended with status {status}"


def main() -> None:
    """Run the mutants."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--only", nargs="*", help="run only the mutants with these names")
    parser.add_argument(
        "--baseline", action="store_true", help="also run the tests on the unchanged tree"
    )
    args = parser.parse_args()
    mutants = [m for m in MUTANTS if not args.only or m.name in args.only]
    for mutant in mutants:  # check all before the first, which takes minutes
        find_file(args.tree, mutant.before)
    verdicts = []
    with tempfile.TemporaryDirectory() as folder:
        if args.baseline:
            scratch = Path(folder) / "baseline"
            copy_tree(args.tree, scratch)
            tests = tuple(dict.fromkeys(p for m in mutants for p in m.tests))
            if run_tests(scratch, tests) != 0:
                raise SystemExit("The tests fail on the tree as it is.")
        for mutant in mutants:
            scratch = Path(folder) / mutant.name
            copy_tree(args.tree, scratch)
            path = find_file(scratch, mutant.before)
            path.write_text(path.read_text().replace(mutant.before, mutant.after))
            begun = time.perf_counter()
            verdicts.append(verdict(run_tests(scratch, mutant.tests)))
            seconds = time.perf_counter() - begun
            print(f"{mutant.name:22} {verdicts[-1]:10} {seconds:5.0f} s", flush=True)
            shutil.rmtree(scratch)
    print(f"{verdicts.count('killed')} of {len(verdicts)} killed")


if __name__ == "__main__":
    main()
