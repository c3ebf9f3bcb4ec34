"""What the rest of a user's session has set in NumPy and torch, kept out of vivace's calls."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import anndata
import numpy as np
import torch


@contextmanager
def usual_session() -> Iterator[None]:
    """Run with the initial settings of NumPy and torch in the context.

    ``np.seterr``, ``torch.set_grad_enabled``, ``torch.inference_mode``, ``torch.autocast``,
    ``torch.set_default_device`` and, on the CPU, ``torch.set_float32_matmul_precision`` have no
    effect in it. torch's default type is not among them, because it cannot be set for one thread:
    a type is given wherever a tensor is made.

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
        stack.enter_context(_full_precision)
        yield


class _FullPrecision:
    """oneDNN multiplies float32 as float32, not as bfloat16, while any thread is in the context.

    The setting belongs to the process: the first thread changes it, and the last one restores
    it. torch before 2.9 has no setting for oneDNN alone, and is left as it is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._setting = getattr(torch.backends.mkldnn, "matmul", None)

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1 and self._setting is not None:
                self._before = self._setting.fp32_precision
                self._setting.fp32_precision = "ieee"

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._setting is not None:
                self._setting.fp32_precision = self._before


_full_precision = _FullPrecision()


@contextmanager
def strings_as_written() -> Iterator[None]:
    """Let anndata write pandas' own type of strings, which an option makes of every text."""
    with anndata.settings.override(allow_write_nullable_strings=True):
        yield


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Hide torch's warnings about its own use of ``torch.jit``.

    torch 2.13 gives them when Lightning Fabric or the rules of forward differentiation are first
    imported. For a context that is entered once per call: it makes Python repeat warnings that
    it shows once.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*", DeprecationWarning)
        yield
