"""The two functions of a backend with kernels as torch operations with gradients.

``weighted_nll`` is the sum of the losses, with all its gradients from the same pass over
the cells. ``cell_nll`` gives the loss of each cell, and its gradient is a weighted pass of
its own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vivace.ops.count_nll.interface import CountNLLInputs, NLLBackend, NLLGradients


def weighted_nll(kernels: NLLBackend, inputs: CountNLLInputs, weight_n: Tensor) -> Tensor:
    """Sum of the cells' losses times their weights, which have no gradient."""
    total: Tensor = _WeightedNLL.apply(kernels, inputs, weight_n, *inputs.tensors())  # type: ignore[no-untyped-call]
    return total


def cell_nll(kernels: NLLBackend, inputs: CountNLLInputs) -> Tensor:
    """Loss of each cell, shape (n,)."""
    nll_n: Tensor = _CellNLL.apply(kernels, inputs, *inputs.tensors())  # type: ignore[no-untyped-call]
    return nll_n


class _WeightedNLL(Function):
    """The total, whose gradients are computed before they are asked for.

    They wait in the context, not among the saved tensors, and autograd takes them over
    without a copy. A second backward pass has nothing left to give.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernels: NLLBackend,
        inputs: CountNLLInputs,
        weight_n: Tensor,
        *_tensors: Tensor | None,  # the inputs' own, for autograd
    ) -> Tensor:
        gradients = kernels.nll_and_gradients(inputs, weight_n)
        ctx.gradients = _in_order(gradients)
        return gradients.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("The gradient of count_nll can be taken once; compute it again.")
        gradients, ctx.gradients = ctx.gradients, None
        upstream = grad_total.item()
        if upstream != 1.0:
            gradients = [None if g is None else g.mul_(upstream) for g in gradients]
        return None, None, None, *gradients


class _CellNLL(Function):
    """The loss of each cell.

    The upstream gradient, one number per cell, is not known in the forward pass. The
    backward pass takes it as the cells' weights and computes the heads again.
    """

    @staticmethod
    def forward(
        ctx: Any, kernels: NLLBackend, inputs: CountNLLInputs, *tensors: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.kernels, ctx.options = kernels, inputs.options()
        return kernels.nll(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, ...]:
        inputs = CountNLLInputs.from_tensors(ctx.saved_tensors, **ctx.options)
        gradients = ctx.kernels.nll_and_gradients(inputs, grad_n)
        return None, None, *_in_order(gradients)


def _in_order(gradients: NLLGradients) -> list[Tensor | None]:
    """In the order of ``CountNLLInputs.tensors()``; the three arrays of the counts have none."""
    heads = gradients.heads.tensors()
    return [None, None, None, gradients.hidden_nh, *heads, gradients.log_library_n]
