"""What a trained model answers: functions of (network, source, rows), one file a question."""

from vivace.posterior.latent import latent, latent_mean
from vivace.posterior.likelihood import elbo, reconstruction

__all__ = ["elbo", "latent", "latent_mean", "reconstruction"]
