"""Random streams: one that a model carries, and generators made from a seed.

Nothing in vivace reads or writes the global random state.  A call with
``seed=None`` takes the next number of the model's :class:`SeedStream`; a call
with an integer uses that integer and leaves the stream where it is.
"""

from __future__ import annotations

import numpy as np
import torch

from vivace.errors import ArgumentTypeError


class SeedStream:
    """A reproducible sequence of seeds that can be saved and continued.

    Parameters
    ----------
    root
        Seed of the whole stream.
    used
        How many seeds have been taken so far.

    Examples
    --------
    >>> stream = SeedStream(0)
    >>> first, second = stream.take(), stream.take()
    >>> SeedStream(0, used=1).take() == second
    True
    >>> stream.take(7), stream.used
    (7, 2)
    """

    def __init__(self, root: int, used: int = 0) -> None:
        self.root = root
        self.used = used

    def take(self, seed: int | None = None) -> int:
        """``seed`` itself if it is given, else the next one of the stream."""
        if seed is not None:
            return check_seed(seed)
        state = np.random.SeedSequence(self.root, spawn_key=(self.used,)).generate_state(1)
        self.used += 1
        return int(state[0])


def check_seed(seed: object) -> int:
    """An integer seed from 0 to 2**63 - 1, or a sentence that says so."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise ArgumentTypeError(f"seed must be an integer or None, not {seed!r}.")
    if not 0 <= int(seed) < 2**63:
        raise ArgumentTypeError(f"seed must lie between 0 and 2**63 - 1, not {seed}.")
    return int(seed)


def numpy_generator(seed: int) -> np.random.Generator:
    """A NumPy generator: rows, splits and latent draws that must not depend on the device."""
    return np.random.default_rng(seed)


def torch_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device``: noise inside a training step."""
    return torch.Generator(device=device).manual_seed(seed)
