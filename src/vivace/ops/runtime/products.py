"""Float32 matrix products on the CPU whose bits do not depend on the number of threads.

The number of threads follows the load of the machine while a model trains
(``vivace.ops.runtime.threads``), so a product must give the same bits on any number of
them. torch has two libraries:

* MKL, behind ``torch.mm``, splits some products differently on two threads than on one,
  and many on three or more.
* oneDNN does not: 40,000 products of the shapes that occur in vivace were the same on 1 to
  32 threads, with AVX-512 and with AVX2. The exception is an inner axis of more than 2**14
  with AVX-512; such an axis is split into pieces in this module.

oneDNN therefore computes every large product, on all threads. MKL computes small ones on
one thread, because its call takes less time (128 x 12 x 128 on Zen 5: 5 us, oneDNN 13 us)
and a second thread gains nothing. Where torch has no oneDNN, ``torch.mm`` computes all
products on one thread.

On processors with AVX-512 that are not Intel's, oneDNN is about twice as fast as MKL; on
others it is a tenth to a sixth slower (``benchmarks/LOG.md``).

oneDNN is fast when the second operand is a contiguous matrix or the transpose of one, so
the callers keep their weights in that form.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SMALL = 2**20  # multiplications up to which MKL's shorter call is worth more
_LONGEST = 2**14  # inner axis up to which oneDNN adds in the same order on any threads


def _onednn_linear() -> object | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory, up to 62 MB, instead of returning its pages.

    oneDNN makes a new array for each product. Fresh pages from the system cost a step of 128
    cells 5 % of its time, a step of 1,024 cells 20 %. glibc keeps arrays up to the size of
    the largest that has been freed, if that is below 32 MB. So one of nearly that size is
    made and freed here; it is never written to.
    """
    torch.empty(31 * 2**18, dtype=torch.float32)


# whether a torch.func transform is active; assumed if a torch version cannot tell
_transformed = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_ONEDNN = _onednn_linear()
_keep_freed_memory()


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``a @ b + bias`` for float32 CPU matrices (n, k) and (k, m), without autograd.

    The result is either ``out``, of shape (n, m), or a new tensor; then ``out`` is unchanged.
    """
    if _ONEDNN is None or a.numel() * b.shape[1] <= _SMALL:
        return _multiply_single_threaded(a, b, bias, out)
    a = a if a.is_contiguous() or a.T.is_contiguous() else a.contiguous()
    b = b if b.is_contiguous() or b.T.is_contiguous() else b.contiguous()
    bias = None if bias is None else bias.contiguous()  # oneDNN ignores its stride
    if a.shape[1] > _LONGEST:
        return _multiply_pieces(a, b, bias)
    return _ONEDNN(a, b.T, bias, "none", [], "")  # type: ignore[operator,no-any-return]


def _multiply_single_threaded(
    a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor | None
) -> Tensor:
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)  # takes a tenth of a microsecond
    try:
        return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias, a, b, out=out)
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def _multiply_pieces(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Add the products of even pieces of a long inner axis."""
    length = a.shape[1]
    size = math.ceil(length / math.ceil(length / _LONGEST))
    total: Tensor | None = None
    for start in range(0, length, size):
        rows = b[start : start + size]
        if not rows.is_contiguous():  # for which oneDNN takes a thousand times as long
            rows = rows.T.contiguous().T
        piece: Tensor = _ONEDNN(  # type: ignore[operator]
            a[:, start : start + size], rows.T, bias if total is None else None, "none", [], ""
        )
        total = piece if total is None else total.add_(piece)
    assert total is not None
    return total


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight + bias`` for any type and device; differentiable once.

    :func:`product` computes float32 on the CPU, and its gradients.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return x @ weight if bias is None else torch.addmm(bias, x, weight)
    if not torch.is_grad_enabled() and not _transformed():
        return product(x, weight, bias)  # autograd's function takes 45 us more
    out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    """:func:`product` with reverse-mode and forward-mode derivatives."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad_out, weight.T) if needs_x else None,
            product(x.T, grad_out) if needs_weight else None,
            grad_out.sum(0) if needs_bias else None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        x_tangent, weight_tangent, bias_tangent = tangents
        out: Tensor = x.new_zeros(len(x), weight.shape[1])
        if x_tangent is not None:
            out = out + product(x_tangent, weight)
        if weight_tangent is not None:
            out = out + product(x, weight_tangent)
        return out if bias_tangent is None else out + bias_tangent
