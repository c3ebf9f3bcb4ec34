"""What the backends of this operation take and give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from vivace.config import GeneLikelihood
from vivace.ops.csr import SparseCounts

Activation = Literal["softmax", "softplus"]


@dataclass(frozen=True)
class CountHeads:
    """Weights that turn the decoder's hidden state into the likelihood's parameters.

    Parameters
    ----------
    scale_hg, scale_g
        Tensor, shapes (h, g) and (g,), head of the expected expression.
    log_theta_g
        Tensor, log of the inverse dispersion ("normal": of the standard deviation): shape (g,), or
        (c, g) where ``theta_row_n`` says which row a cell has; None for "poisson" and where a head
        gives it.
    dropout_hg, dropout_g
        Tensor, shapes (h, g) and (g,), head of the zero-inflation logits; None unless the
        likelihood is "zinb".
    theta_hg, theta_bias_g
        Tensor, shapes (h, g) and (g,), head of the log inverse dispersion of each cell and gene;
        None where ``log_theta_g`` gives it.
    theta_row_n
        Tensor, int64, shape (n,), row of ``log_theta_g`` of each cell; None where all share one.
    """

    scale_hg: Tensor
    scale_g: Tensor
    log_theta_g: Tensor | None = None
    dropout_hg: Tensor | None = None
    dropout_g: Tensor | None = None
    theta_hg: Tensor | None = None
    theta_bias_g: Tensor | None = None
    theta_row_n: Tensor | None = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All weights, in the order of the fields."""
        return (
            self.scale_hg,
            self.scale_g,
            self.log_theta_g,
            self.dropout_hg,
            self.dropout_g,
            self.theta_hg,
            self.theta_bias_g,
            self.theta_row_n,
        )


@dataclass(frozen=True, kw_only=True)
class CountNLLInputs:
    """Everything that the loss of n cells is computed from.

    Parameters
    ----------
    counts
        SparseCounts, n cells x g genes, molecules.
    hidden_nh
        Tensor, shape (n, h), last hidden layer of the decoder.
    heads
        CountHeads.
    log_library_n
        Tensor, shape (n,), natural log of the library size.
    likelihood
        "zinb", "nb", "poisson" or "normal".
    activation
        "softmax" over genes, or "softplus" gene by gene.
    """

    counts: SparseCounts
    hidden_nh: Tensor
    heads: CountHeads
    log_library_n: Tensor
    likelihood: GeneLikelihood
    activation: Activation = "softmax"

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The counts' indptr, genes and values, the hidden state, the heads, the log library."""
        csr = (self.counts.indptr, self.counts.genes, self.counts.values)
        return (*csr, self.hidden_nh, *self.heads.tensors(), self.log_library_n)

    def options(self) -> dict[str, Any]:
        """Everything but the tensors."""
        return {
            "n_genes": self.counts.n_genes,
            "likelihood": self.likelihood,
            "activation": self.activation,
        }

    @classmethod
    def from_tensors(
        cls,
        tensors: Sequence[Any],
        *,
        n_genes: int,
        likelihood: GeneLikelihood,
        activation: Activation,
    ) -> CountNLLInputs:
        """Put what :meth:`tensors` and :meth:`options` give together again."""
        indptr, genes, values, hidden_nh, *heads, log_library_n = tensors
        return cls(
            counts=SparseCounts(indptr, genes, values, n_genes, checked=True),
            hidden_nh=hidden_nh,
            heads=CountHeads(*heads),
            log_library_n=log_library_n,
            likelihood=likelihood,
            activation=activation,
        )


@dataclass(frozen=True)
class NLLGradients:
    """The weighted sum of the losses of n cells, and its gradients.

    Parameters
    ----------
    total
        Tensor, scalar, nats.
    hidden_nh
        Gradient in the hidden state.
    heads
        Gradients in the heads, of their shapes; None for what is absent and for ``theta_row_n``.
    log_library_n
        Gradient in the log library.
    """

    total: Tensor
    hidden_nh: Tensor
    heads: CountHeads
    log_library_n: Tensor


class NLLBackend(Protocol):
    """The two functions of a backend of this operation; a module is one."""

    def nll(self, inputs: CountNLLInputs) -> Tensor:
        """Negative log-likelihood of each cell, nats, shape (n,)."""

    def nll_and_gradients(self, inputs: CountNLLInputs, weight_n: Tensor) -> NLLGradients:
        """Sum of the cells' losses times their weights, and its gradients."""
