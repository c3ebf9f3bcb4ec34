"""Plain PyTorch reference, on any device and in any float type.

Each formula is written once, on dense arrays, as it stands in README.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid, softplus

from vivace.ops.count_nll.interface import Activation, CountHeads, CountNLLInputs, NLLGradients
from vivace.ops.runtime.products import linear

LOG_THETA_BOUND = 15.0
_SOFTPLUS_IS_EXP = -37.0  # below it the two are equal to float64 accuracy
_FIRST_DIFFERENTIABLE = 3  # of the inputs' tensors, after the three arrays of the counts


def log_scale(logits_ng: Tensor, activation: Activation) -> Tensor:
    """Log of the expected expression per unit of library, shape (n, g)."""
    if activation == "softmax":
        return log_softmax(logits_ng, dim=-1)
    # far below zero softplus(s) tends to exp(s), which underflows before its log is taken
    safe = logits_ng.clamp(min=_SOFTPLUS_IS_EXP)
    return torch.where(logits_ng < _SOFTPLUS_IS_EXP, logits_ng, softplus(safe).log())


def poisson_nll(x_ng: Tensor, log_mu_ng: Tensor) -> Tensor:
    """Poisson negative log-likelihood per entry, shape (n, g)."""
    return log_mu_ng.exp() - x_ng * log_mu_ng + torch.lgamma(x_ng + 1)


def nb_nll(x_ng: Tensor, log_mu_ng: Tensor, log_theta_g: Tensor) -> Tensor:
    """Negative binomial negative log-likelihood per entry, shape (n, g).

    ``log_theta_g`` is of shape (g,) or (n, g).
    """
    log_theta_g = log_theta_g.clamp(-LOG_THETA_BOUND, LOG_THETA_BOUND)
    theta = log_theta_g.exp()
    log_ratio = log_mu_ng - log_theta_g
    spread = torch.log1p(log_ratio.exp())  # log((theta + mu) / theta)
    rising = torch.lgamma(x_ng + theta) - torch.lgamma(theta).expand_as(x_ng)
    return -(rising - torch.lgamma(x_ng + 1) - theta * spread + x_ng * (log_ratio - spread))


def zinb_nll(x_ng: Tensor, log_mu_ng: Tensor, log_theta_g: Tensor, zi_logits_ng: Tensor) -> Tensor:
    """Zero-inflated negative binomial negative log-likelihood per entry, shape (n, g)."""
    log_nb = -nb_nll(x_ng, log_mu_ng, log_theta_g)
    log_kept = logsigmoid(-zi_logits_ng) + log_nb
    at_zero = torch.logaddexp(logsigmoid(zi_logits_ng), log_kept)
    return -torch.where(x_ng == 0, at_zero, log_kept)


def normal_nll(x_ng: Tensor, log_mu_ng: Tensor, log_sigma_g: Tensor) -> Tensor:
    """Normal negative log-likelihood per entry, shape (n, g)."""
    log_sigma_g = log_sigma_g.clamp(-LOG_THETA_BOUND, LOG_THETA_BOUND)
    residual = (x_ng - log_mu_ng.exp()) * torch.exp(-log_sigma_g)
    return 0.5 * residual.square() + log_sigma_g + 0.5 * math.log(2 * math.pi)


def nll(inputs: CountNLLInputs) -> Tensor:
    """Negative log-likelihood of each cell, nats, shape (n,); differentiable by torch."""
    hidden_nh, heads = inputs.hidden_nh, inputs.heads
    x_ng = inputs.counts.dense(hidden_nh.dtype)
    logits_ng = linear(hidden_nh, heads.scale_hg, heads.scale_g)
    log_mu_ng = log_scale(logits_ng, inputs.activation) + inputs.log_library_n[:, None]
    log_theta = log_dispersion(heads, hidden_nh)
    if inputs.likelihood == "normal":
        assert log_theta is not None
        return normal_nll(x_ng, log_mu_ng, log_theta).sum(-1)
    if log_theta is None:
        return poisson_nll(x_ng, log_mu_ng).sum(-1)
    if heads.dropout_hg is None or heads.dropout_g is None:
        return nb_nll(x_ng, log_mu_ng, log_theta).sum(-1)
    zi_logits_ng = linear(hidden_nh, heads.dropout_hg, heads.dropout_g)
    return zinb_nll(x_ng, log_mu_ng, log_theta, zi_logits_ng).sum(-1)


@torch.enable_grad()
def nll_and_gradients(inputs: CountNLLInputs, weight_n: Tensor) -> NLLGradients:
    """Sum of the cells' losses times their weights, and its gradients by autograd."""
    tensors = [None if t is None else t.detach() for t in inputs.tensors()]
    for tensor in tensors[_FIRST_DIFFERENTIABLE:]:
        if tensor is not None and tensor.is_floating_point():
            tensor.requires_grad_()
    total = (nll(CountNLLInputs.from_tensors(tensors, **inputs.options())) * weight_n).sum()
    total.backward()  # type: ignore[no-untyped-call]
    hidden_nh, *heads, log_library_n = (
        None if t is None else t.grad for t in tensors[_FIRST_DIFFERENTIABLE:]
    )
    return NLLGradients(total.detach(), hidden_nh, CountHeads(*heads), log_library_n)  # type: ignore[arg-type]


def log_dispersion(heads: CountHeads, hidden_nh: Tensor) -> Tensor | None:
    """Log inverse dispersion, shape (g,) or (n, g); None where the likelihood has none."""
    if heads.theta_hg is not None and heads.theta_bias_g is not None:
        return linear(hidden_nh, heads.theta_hg, heads.theta_bias_g)
    if heads.log_theta_g is None or heads.theta_row_n is None:
        return heads.log_theta_g
    return heads.log_theta_g[heads.theta_row_n]
