"""Float32 matrix products on the CPU, by the library that is faster there.

torch has two, MKL behind ``torch.mm`` and oneDNN.  Where the processor has
AVX-512 but is not Intel's, MKL takes its AVX2 path and oneDNN is about twice as
fast (0.15 against 0.33 ms for 128 x 128 x 2000 on 2 Zen 5 cores).  On Intel's,
MKL is a tenth faster, but for a bias, which it adds in a pass of its own
(2 Emerald Rapids cores, inside a training step: 0.26 against 0.29 ms without a
bias, 0.29 against 0.27 with one).  Where there is only AVX2, MKL is a tenth to a
sixth faster, bias or not (one Zen 3 core: 0.77 against 0.88 ms).  Small products
are MKL's, whose call takes less (128 x 12 x 128 on Zen 5: 5 against 13 us; at 128
x 128 x 128 they are even).

oneDNN is fast when the second operand is a plain or a transposed contiguous
matrix, so the callers keep their weights in that form.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor

_LISTED = Path("/proc/cpuinfo")
_SMALL = 2**20  # multiplications of a product whose call costs more than they do


def _onednn_linear() -> object | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _mkl_is_fast() -> tuple[bool, bool]:
    """Whether MKL is to be preferred without a bias, and with one."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False, False
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        return True, True
    vendor = _LISTED.read_text() if _LISTED.exists() else platform.processor()
    return "GenuineIntel" in vendor, False


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed, up to 62 MB, instead of giving the pages back.

    oneDNN makes a new array for each product.  Pages that come new from the system cost a step of
    128 cells a twentieth, one of 1,024 a fifth.  glibc takes arrays from what it keeps up to the size
    of the largest that has been freed, if that is below 32 MB; so one is, which is never written to.
    """
    torch.empty(31 * 2**18)


_ONEDNN = _onednn_linear()
_MKL, _MKL_WITH_BIAS = _mkl_is_fast()
_keep_freed_memory()


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``a @ b + bias`` for float32 CPU matrices (n, k) and (k, m).

    ``out``, of shape (n, m), may be overwritten and returned, or left alone.
    """
    by_mkl = _MKL_WITH_BIAS if bias is not None else _MKL or a.numel() * b.shape[1] < _SMALL
    if _ONEDNN is not None and a.numel() and b.numel() and not by_mkl:
        return _ONEDNN(a, b.T, bias, "none", [], "")  # type: ignore[operator,no-any-return]
    return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias, a, b, out=out)
