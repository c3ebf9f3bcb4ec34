"""Random seeds: the stream of a model, and generators made from a seed.

Nothing in vivace reads or writes the global random state. A call with ``seed=None`` takes the
next seed of the model's :class:`SeedStream`; a call with an integer uses that integer and does
not advance the stream.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from vivace.errors import ArgumentTypeError, OptionError, brief

_RANDOM = {"normal_", "uniform_", "randn", "rand"}  # that layers call as they are made


class SeedStream:
    """A reproducible sequence of seeds that can be saved and continued.

    Parameters
    ----------
    root
        Seed of the stream.
    used
        Number of seeds taken so far.

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
        """``seed`` if it is given, otherwise the next seed of the stream."""
        if seed is not None:
            return check_seed(seed)
        state = np.random.SeedSequence(self.root, spawn_key=(self.used,)).generate_state(1)
        self.used += 1
        return int(state[0])


def check_seed(seed: object, name: str = "seed") -> int:
    """Return ``seed``, an integer from 0 to 2**63 - 1; ``name`` is its name in messages."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise ArgumentTypeError(f"{name} must be an integer, not {brief(seed)}.")
    if not 0 <= int(seed) < 2**63:
        raise OptionError(f"{name} must lie between 0 and 2**63 - 1, not {brief(int(seed))}.")
    return int(seed)


def numpy_generator(seed: int) -> np.random.Generator:
    """A NumPy generator, for rows, splits and latent samples that must not depend on the device."""
    return np.random.default_rng(seed)


class ThreadSeed(TorchFunctionMode):
    """In the context, random tensors of this thread that are given no generator are seeded here.

    torch's global generator, which other threads may be using, is not read or moved.

    Examples
    --------
    >>> with ThreadSeed(3):
    ...     first = torch.randn(2)
    >>> with ThreadSeed(3):
    ...     torch.equal(torch.randn(2), first)
    True
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch_generator(seed)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") in _RANDOM and kwargs.get("generator") is None:
            kwargs["generator"] = self._generator
        return func(*args, **kwargs)


def torch_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device``, for noise in a training step."""
    return torch.Generator(device=device).manual_seed(seed)
