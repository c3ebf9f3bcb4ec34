"""Plain PyTorch reference, on any device and in any float type.

Each formula is written once, on dense arrays, as it stands in README.md.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid, softplus

from vivace.data.batch import SparseCounts
from vivace.ops.count_nll.likelihoods import Activation, CountHeads

LOG_THETA_BOUND = 15.0
_SOFTPLUS_IS_EXP = -37.0  # below it the two are equal to float64 accuracy


def log_scale(logits_ng: Tensor, activation: Activation) -> Tensor:
    """Log of the expected expression per unit of library, shape (n, g)."""
    if activation == "softmax":
        return log_softmax(logits_ng, dim=-1)
    # softplus(s) tends to exp(s) far below zero, where its log would lose it
    safe = logits_ng.clamp(min=_SOFTPLUS_IS_EXP)
    return torch.where(logits_ng < _SOFTPLUS_IS_EXP, logits_ng, softplus(safe).log())


def poisson_nll(x_ng: Tensor, log_mu_ng: Tensor) -> Tensor:
    """Poisson negative log-likelihood per entry, shape (n, g)."""
    return log_mu_ng.exp() - x_ng * log_mu_ng + torch.lgamma(x_ng + 1)


def nb_nll(x_ng: Tensor, log_mu_ng: Tensor, log_theta_g: Tensor) -> Tensor:
    """Negative binomial negative log-likelihood per entry, shape (n, g)."""
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


def count_nll_reference(
    counts: SparseCounts,
    hidden_nh: Tensor,
    heads: CountHeads,
    log_library_n: Tensor,
    activation: Activation,
) -> Tensor:
    """Negative log-likelihood of each cell, shape (n,)."""
    x_ng = counts.dense(hidden_nh.dtype)
    logits_ng = hidden_nh @ heads.scale_hg + heads.scale_g
    log_mu_ng = log_scale(logits_ng, activation) + log_library_n[:, None]
    if heads.log_theta_g is None:
        return poisson_nll(x_ng, log_mu_ng).sum(-1)
    if heads.dropout_hg is None or heads.dropout_g is None:
        return nb_nll(x_ng, log_mu_ng, heads.log_theta_g).sum(-1)
    zi_logits_ng = hidden_nh @ heads.dropout_hg + heads.dropout_g
    return zinb_nll(x_ng, log_mu_ng, heads.log_theta_g, zi_logits_ng).sum(-1)
