"""What a trained model answers: functions of (network, source, rows), one file a question."""

from vivace.posterior.decode import Observation, decode
from vivace.posterior.latent import latent, latent_mean
from vivace.posterior.likelihood import elbo, reconstruction
from vivace.posterior.marginal import marginal_ll

__all__ = [
    "Observation",
    "decode",
    "elbo",
    "latent",
    "latent_mean",
    "marginal_ll",
    "reconstruction",
]
