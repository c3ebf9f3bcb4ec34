"""Quantiles of counts, fast where most of them are zero; derivation in README.md."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from vivace.distributions.base import working_type
from vivace.distributions.checks import check_fit, refuse_parameter
from vivace.types import F64

_ROUNDING = 8.0  # float units by which P(0) may be off
_STEPS = 64  # counts that are tried one by one
_LAST = 1.0 - 1e-12  # nearer to 1 SciPy's search takes up to minutes, at theta = 1e-4
_POISSON = 1e8  # theta / mu from which on counts are Poisson, to 1e-8, and 1 - probs loses digits


@torch.no_grad()
def quantile(owner: Distribution, value: Tensor, *parameters: Tensor) -> Tensor:
    """Smallest count whose cdf is at least ``value``; computed on the CPU.

    Parameters
    ----------
    owner
        Distribution, which messages name.
    value
        Tensor, any shape that broadcasts with the parameters, probabilities.
    parameters
        Mu; mu and theta; or mu, theta and zi_logits.

    Returns
    -------
    Tensor, broadcast shape, of the type and on the device of the parameters

    Raises
    ------
    OptionError
        If a value is not from 0 to 1, and ``validate_args`` is on.
    """
    value = check_fit(owner, value)
    if owner._validate_args and value.numel():
        least, most = value.aminmax()  # NaN if there is one
        if not (least >= 0 and most <= 1):
            good, must = (value >= 0) & (value <= 1), "a probability, between 0 and 1"
            refuse_parameter(type(owner).__name__, "The value given to icdf", value, good, must)
    work = working_type(parameters[0].dtype)
    tensors = [value.detach().cpu(), *(t.detach().cpu().to(work) for t in parameters)]
    tensors = torch.broadcast_tensors(*tensors)  # type: ignore[no-untyped-call]
    found, margin = torch.zeros(tensors[0].shape, dtype=work), _ROUNDING * torch.finfo(work).eps
    # P(0) >= exp(-mu) >= 1 - mu, which settles most entries without an exponential
    at = _unless_below(tensors[0].to(work) + tensors[1], 1.0 - margin)
    seen = [t.flatten().index_select(0, at) for t in tensors]
    on = _unless_below(seen[0].to(work), (_at_zero(*seen[1:]) - margin).numpy())
    counts = _counts(*(t.index_select(0, on).double().numpy() for t in seen))
    found.view(-1)[at[on]] = torch.from_numpy(counts).to(work)
    return found.to(parameters[0])


def _unless_below(value: Tensor, bound: F64 | float) -> Tensor:
    """Where ``value``, flattened, is not below the bound; NaN is not."""
    return torch.from_numpy(np.flatnonzero(~(value.numpy() < bound)))


def _at_zero(mu: Tensor, theta: Tensor | None = None, zi_logits: Tensor | None = None) -> Tensor:
    """P(0)."""
    p0 = torch.exp(-mu if theta is None else -theta * torch.log1p(mu / theta))
    return p0 if zi_logits is None else torch.lerp(p0, torch.ones_like(p0), zi_logits.sigmoid())


def _counts(u: F64, mu: F64, theta: F64 | None = None, zi_logits: F64 | None = None) -> F64:
    """Quantiles of u, entry by entry, in float64."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        never = (u >= 1.0) & (mu > 0)  # no count's cdf is 1, unless all are zero
        if zi_logits is not None:
            never &= zi_logits < np.inf
            u = _of_kept(u, zi_logits)
        u = np.where(never, 0.0, np.minimum(u, _LAST))
        ratio = np.zeros_like(mu) if theta is None else mu / theta
        p0 = np.exp(-mu if theta is None else -theta * np.log1p(ratio))
        found = _by_steps(u, p0, mu / (1.0 + ratio), ratio / (1.0 + ratio))
        far = np.flatnonzero(found == _STEPS)
        if len(far):
            found[far] = _by_scipy(u[far], mu[far], None if theta is None else theta[far])
    found[never] = np.inf
    return found


def _of_kept(u: F64, zi_logits: F64) -> F64:
    """The quantile that u is among counts that are not lost; negative where it is a lost one."""
    odds = np.exp(-np.abs(zi_logits))
    larger = 1.0 / (1.0 + odds)
    smaller = odds * larger
    # neither subtracts a number that was rounded near 1
    found = np.where(zi_logits > 0, 1.0 - (1.0 - u) / smaller, (u - smaller) / larger)
    found[zi_logits == np.inf] = 0.0  # 0 / 0 at u = 1
    return found


def _by_steps(u: F64, p: F64, start: F64, slope: F64) -> F64:
    """Quantiles below ``_STEPS``, else ``_STEPS``; P(0) = p, P(k + 1) / P(k) as in README.md."""
    found, at, left = np.zeros_like(u), np.arange(len(u)), u
    for k in range(_STEPS):
        left = left - p  # of u, when the probabilities of 0 to k are taken off
        on = np.flatnonzero(~(left <= 0))
        if len(on) < len(at):
            at = at.take(on)
            left, p, start, slope = (x.take(on) for x in (left, p, start, slope))
        found[at] = k + 1
        p = p * ((start + slope * k) / (k + 1))
    return found


def _by_scipy(u: F64, mu: F64, theta: F64 | None) -> F64:
    """Quantiles of any size, some microseconds each."""
    from scipy import stats  # takes a second, and small counts do without

    poisson = np.ones(len(u), dtype=bool) if theta is None else theta > _POISSON * mu
    found = np.empty_like(u)
    found[poisson] = stats.poisson.ppf(u[poisson], mu[poisson])
    if theta is not None:
        u, mu, theta = u[~poisson], mu[~poisson], theta[~poisson]
        found[~poisson] = stats.nbinom.ppf(u, theta, 1.0 / (1.0 + mu / theta))
    return found
