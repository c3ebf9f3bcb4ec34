"""Distributions of counts, as :class:`torch.distributions.Distribution`.

``NegativeBinomial``, ``ZeroInflatedNegativeBinomial`` and ``Poisson`` are written
here, because torch's lose their digits in float32 where counts or ``theta`` are
large; ``Normal`` is torch's own.  Each takes scvi-tools' argument names, carries
the normalised expression along if it is given one, and draws from a passed
generator: ``sample(shape, generator=g)``.
"""

from vivace.distributions.negative_binomial import NegativeBinomial
from vivace.distributions.normal import Normal
from vivace.distributions.poisson import Poisson
from vivace.distributions.zero_inflated import ZeroInflatedNegativeBinomial

__all__ = ["NegativeBinomial", "Normal", "Poisson", "ZeroInflatedNegativeBinomial"]
