"""What the rest of a user's session has set in NumPy and torch, kept out of vivace's calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def usual_session() -> Iterator[None]:
    """Run with the initial settings of NumPy and torch in the context.

    ``np.seterr``, ``torch.set_grad_enabled``, ``torch.inference_mode``, ``torch.autocast`` and
    ``torch.set_default_device`` then have no effect in it. All are settings of a thread; torch's
    default type is not, so a type is given wherever a tensor is made.

    Examples
    --------
    >>> with np.errstate(all="raise"), torch.inference_mode(), usual_session():
    ...     float(np.exp(np.float32(-200.0))), torch.is_grad_enabled()
    (0.0, True)
    """
    with ExitStack() as stack:
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        stack.enter_context(torch.inference_mode(False))  # turns gradients on, too
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
