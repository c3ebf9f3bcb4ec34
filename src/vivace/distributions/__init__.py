"""Distributions of counts, as :class:`torch.distributions.Distribution`.

``NegativeBinomial``, ``ZeroInflatedNegativeBinomial`` and ``Poisson`` replace torch's, which
lose precision in float32 where counts or ``theta`` are large; ``Normal`` is torch's own.
Each takes scvi-tools' argument names, stores the normalised expression if it is given, and
samples from a passed generator: ``sample(shape, generator=g)``.
"""

from vivace.distributions.families.negative_binomial import NegativeBinomial
from vivace.distributions.families.normal import Normal
from vivace.distributions.families.poisson import Poisson
from vivace.distributions.families.zero_inflated import ZeroInflatedNegativeBinomial

__all__ = ["NegativeBinomial", "Normal", "Poisson", "ZeroInflatedNegativeBinomial"]
