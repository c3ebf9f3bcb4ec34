"""Quantiles of counts, fast if most of them are zero; derivation in README.md."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from vivace.distributions.families.base import working_type
from vivace.distributions.parameter_checks import check_parameter, check_shape
from vivace.types import F64

_ROUNDING = 8.0  # error of P(0), in float units
_STEPS = 64  # counts tried one by one
_LAST = 1.0 - 1e-12  # closer to 1 SciPy's search takes minutes at theta = 1e-4
_POISSON = 1e8  # theta / mu above which counts are Poisson to 1e-8, and 1 - probs loses digits


@torch.no_grad()
def quantile(owner: Distribution, value: Tensor, *parameters: Tensor) -> Tensor:
    """Smallest count whose cdf is at least ``value``; computed on the CPU.

    Parameters
    ----------
    owner
        Distribution named in messages.
    value
        Tensor of probabilities, any shape that broadcasts with the parameters.
    parameters
        Either mu; mu and theta; or mu, theta and zi_logits.

    Returns
    -------
    Tensor, broadcast shape, of the type and on the device of the parameters.

    Raises
    ------
    OptionError
        If a value is not between 0 and 1, and ``validate_args`` is on.
    """
    value = check_shape(owner, value)
    if owner._validate_args and value.numel():
        least, most = value.aminmax()  # NaN if there is one
        if not (least >= 0 and most <= 1):
            good, must = (value >= 0) & (value <= 1), "a probability, between 0 and 1"
            check_parameter(type(owner).__name__, "The value given to icdf", value, good, must)
    work = working_type(parameters[0].dtype)
    tensors = [value.detach().cpu(), *(t.detach().cpu().to(work) for t in parameters)]
    tensors = torch.broadcast_tensors(*tensors)  # type: ignore[no-untyped-call]
    result = torch.zeros(tensors[0].shape, dtype=work, device="cpu")
    margin = _ROUNDING * torch.finfo(work).eps
    # the quantile is 0 where u <= P(0); P(0) >= exp(-mu) >= 1 - mu settles most entries
    # without an exponential
    maybe = _find_not_below(tensors[0].to(work) + tensors[1], 1.0 - margin)
    left = [t.flatten().index_select(0, maybe) for t in tensors]
    above = _find_not_below(left[0].to(work), (_probability_of_zero(*left[1:]) - margin).numpy())
    counts = _count_quantiles(*(t.index_select(0, above).double().numpy() for t in left))
    result.view(-1)[maybe[above]] = torch.from_numpy(counts).to(work)
    return result.to(parameters[0])


def _find_not_below(value: Tensor, bound: F64 | float) -> Tensor:
    """Places of the flattened ``value`` that are not below the bound; NaN is not below it."""
    return torch.from_numpy(np.flatnonzero(~(value.numpy() < bound)))


def _probability_of_zero(
    mu: Tensor, theta: Tensor | None = None, zi_logits: Tensor | None = None
) -> Tensor:
    """The probability of a zero, P(0)."""
    p0 = torch.exp(-mu if theta is None else -theta * torch.log1p(mu / theta))
    return p0 if zi_logits is None else torch.lerp(p0, torch.ones_like(p0), zi_logits.sigmoid())


def _count_quantiles(
    u: F64, mu: F64, theta: F64 | None = None, zi_logits: F64 | None = None
) -> F64:
    """Quantiles of u, entry by entry, in float64."""
    with np.errstate(all="ignore"):
        never = (u >= 1.0) & (mu > 0)  # no count's cdf is 1, unless all are zero
        if zi_logits is not None:
            never &= zi_logits < np.inf
            u = _quantile_of_kept(u, zi_logits)
        u = np.where(never, 0.0, np.minimum(u, _LAST))
        ratio = np.zeros_like(mu) if theta is None else mu / theta
        p0 = np.exp(-mu if theta is None else -theta * np.log1p(ratio))
        result = _step_quantiles(u, p0, mu / (1.0 + ratio), ratio / (1.0 + ratio))
        far = np.flatnonzero(result == _STEPS)
        if len(far):
            result[far] = _scipy_quantiles(u[far], mu[far], None if theta is None else theta[far])
    result[never] = np.inf
    return result


def _quantile_of_kept(u: F64, zi_logits: F64) -> F64:
    """The quantile ``u`` among the counts that are kept; negative for a lost one."""
    odds = np.exp(-np.abs(zi_logits))
    larger = 1.0 / (1.0 + odds)
    smaller = odds * larger
    # neither branch subtracts a number that was rounded near 1
    kept = np.where(zi_logits > 0, 1.0 - (1.0 - u) / smaller, (u - smaller) / larger)
    kept[zi_logits == np.inf] = 0.0  # 0 / 0 at u = 1
    return kept


def _step_quantiles(u: F64, p: F64, start: F64, slope: F64) -> F64:
    """Quantiles below ``_STEPS``, else ``_STEPS``; p is P(0), P(k + 1) / P(k) is in README.md."""
    result, places, left = np.zeros_like(u), np.arange(len(u)), u
    for k in range(_STEPS):
        left = left - p  # u minus the probabilities of 0 to k
        above = np.flatnonzero(~(left <= 0))
        if len(above) < len(places):
            places = places.take(above)
            left, p, start, slope = (x.take(above) for x in (left, p, start, slope))
        result[places] = k + 1
        p = p * ((start + slope * k) / (k + 1))
    return result


def _scipy_quantiles(u: F64, mu: F64, theta: F64 | None) -> F64:
    """Quantiles of any size, some microseconds each."""
    # lazy: importing scipy.stats takes a second, and small counts do not need it
    from scipy import stats

    poisson = np.ones(len(u), dtype=bool) if theta is None else theta > _POISSON * mu
    result = np.empty_like(u)
    result[poisson] = stats.poisson.ppf(u[poisson], mu[poisson])
    if theta is not None:
        u, mu, theta = u[~poisson], mu[~poisson], theta[~poisson]
        result[~poisson] = stats.nbinom.ppf(u, theta, 1.0 / (1.0 + mu / theta))
    return result
