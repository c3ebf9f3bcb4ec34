"""The error budget: how far the result of a kernel may be from the exact one.

Against the float64 reference the error of the kernel may be at most twice that of the float32
reference, for each array. Both errors are collected over many random problems, each divided by the
largest magnitude of the exact array in that problem (or in the median problem, if that is larger: a
number that happens to cancel is not informative), and compared by maximum and by root mean square.

A float32 result cannot be closer than its own rounding error plus that of the last sum: errors up
to ``MAX_ULPS`` units in the last place of that largest magnitude, and a root mean square up to
``RMS_ULPS``, are always within budget.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

FACTOR = 2.0
MAX_ULPS = 6.0
RMS_ULPS = 1.0
ULP = torch.finfo(torch.float32).eps  # of magnitudes from 1 to 2; the most that one can be


class Budget:
    """Errors of a kernel and of the float32 reference, by name of the array."""

    def __init__(self) -> None:
        self._problems: dict[str, list[tuple[Tensor, Tensor, float]]] = {}
        self._added = False

    def add(self, name: str, kernel: Tensor, single: Tensor, exact: Tensor) -> None:
        """Add one array of one problem: from the kernel, the float32 and the float64 reference."""
        assert exact.dtype == torch.float64, name
        assert kernel.dtype == single.dtype == torch.float32, name
        assert kernel.shape == single.shape == exact.shape, name
        assert exact.numel() > 0, name
        assert exact.isfinite().all(), f"{name}: the float64 reference is not finite"
        assert kernel.isfinite().all(), f"{name}: the kernel is not finite"
        self._added = True
        largest = exact.abs().max().item()
        if largest == 0:
            assert not kernel.any(), f"{name} must be exactly zero"
            return
        errors = ((a.double() - exact).cpu().flatten() / ULP for a in (kernel, single))
        self._problems.setdefault(name, []).append((*errors, largest))

    def broken(self) -> list[str]:
        """What is over budget, one line per array, with errors in units in the last place."""
        lines = []
        for name, problems in self._problems.items():
            median = statistics.median(largest for *_, largest in problems)
            kernel, single = (
                torch.cat([problem[i] / max(problem[2], median) for problem in problems])
                for i in (0, 1)
            )
            for measure, by, floor in (("max", _max, MAX_ULPS), ("rms", _rms, RMS_ULPS)):
                allowed = max(FACTOR * by(single), floor)
                if not by(kernel) <= allowed:
                    lines.append(f"{name}: {measure} {by(kernel):.2f} ulp, allowed {allowed:.2f}")
        return lines

    def check(self) -> None:
        """Fail if any array is over budget, and list them all."""
        assert self._added, "nothing was added"
        assert not self.broken(), "; ".join(self.broken())

    def check_typical(self) -> None:
        """The same for the root mean square of the median problem.

        For results of many steps. Near the kink of a ReLU, or with a small denominator of Adam, a
        rounding error grows a hundredfold in a few problems, and which implementation this happens
        to is random. The largest error over all problems is then not informative, but that of the
        median problem is.
        """
        assert self._added, "nothing was added"
        for name, problems in self._problems.items():
            kernel, single = (
                statistics.median(_rms(problem[i] / problem[2]) for problem in problems)
                for i in (0, 1)
            )
            allowed = max(FACTOR * single, RMS_ULPS)
            assert kernel <= allowed, f"{name}: {kernel:.2f} ulp, allowed {allowed:.2f}"


def _max(errors: Tensor) -> float:
    return errors.abs().max().item()


def _rms(errors: Tensor) -> float:
    return errors.square().mean().sqrt().item()
