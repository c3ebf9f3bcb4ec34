"""The error budget: how far a kernel may be from the exact result.

Against the float64 reference the kernel may err at most twice as much as the
float32 reference does, array by array.  Both errors are gathered over many
draws, each divided by the largest magnitude of the exact array of its draw, and
compared by their maximum and by their root mean square, so that one lucky
rounding decides nothing.

A float32 result cannot be closer than its own rounding: errors up to ``ULPS``
units in the last place of that largest magnitude are kept in any case.
"""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR = 2.0
ULPS = 2.0
ULP = torch.finfo(torch.float32).eps  # of magnitudes from 1 to 2; the most that one can be


class Budget:
    """Errors of a kernel and of the float32 reference, by name of the array."""

    def __init__(self) -> None:
        self._kernel: dict[str, list[Tensor]] = {}
        self._single: dict[str, list[Tensor]] = {}

    def add(self, name: str, kernel: Tensor, single: Tensor, exact: Tensor) -> None:
        """One draw of one array: from the kernel, the float32 and the float64 reference."""
        assert exact.dtype == torch.float64
        assert kernel.dtype == single.dtype == torch.float32
        assert kernel.shape == single.shape == exact.shape, name
        assert exact.numel() > 0, name
        assert exact.isfinite().all(), f"{name}: the float64 reference is not finite"
        assert kernel.isfinite().all(), f"{name}: the kernel is not finite"
        largest = exact.abs().max()
        if largest == 0:
            assert not kernel.any(), f"{name} must be exactly zero"
            return
        for errors, array in ((self._kernel, kernel), (self._single, single)):
            error = ((array.double() - exact) / largest / ULP).reshape(-1).cpu()
            errors.setdefault(name, []).append(error)

    def broken(self) -> list[str]:
        """What is over budget, one line an array, errors in units in the last place."""
        lines = []
        for name, draws in self._kernel.items():
            kernel, single = torch.cat(draws), torch.cat(self._single[name])
            for measure, by in (("max", _max), ("rms", _rms)):
                allowed = max(FACTOR * by(single), ULPS)
                if not by(kernel) <= allowed:
                    lines.append(f"{name}: {measure} {by(kernel):.2f} ulp, allowed {allowed:.2f}")
        return lines

    def check(self) -> None:
        """Fail with every array that is over budget."""
        assert self._kernel, "nothing was added"
        assert not self.broken(), "; ".join(self.broken())


def _max(errors: Tensor) -> float:
    return errors.abs().max().item()


def _rms(errors: Tensor) -> float:
    return errors.square().mean().sqrt().item()
