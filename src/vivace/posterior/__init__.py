"""What a trained model answers: functions of :class:`Cells`, one file a question."""

from vivace.posterior.abundance import aggregated_posterior, log_density, mixture_of
from vivace.posterior.check import posterior_predictive_check
from vivace.posterior.correlation import Correlation, feature_correlation
from vivace.posterior.decode import Observation, decode
from vivace.posterior.expression import Library, expression, expression_at
from vivace.posterior.importance import group_draws, importance_weights
from vivace.posterior.latent import (
    draws,
    latent,
    latent_mean,
    library,
    moments,
)
from vivace.posterior.likelihood import elbo, reconstruction
from vivace.posterior.marginal import marginal_ll
from vivace.posterior.parameters import likelihood_parameters
from vivace.posterior.programs import GenePrograms, gene_effects, standard_moves
from vivace.posterior.sample import samples, sparse_counts

__all__ = [
    "Correlation",
    "GenePrograms",
    "Library",
    "Observation",
    "aggregated_posterior",
    "decode",
    "draws",
    "elbo",
    "expression",
    "expression_at",
    "feature_correlation",
    "gene_effects",
    "group_draws",
    "importance_weights",
    "latent",
    "latent_mean",
    "library",
    "likelihood_parameters",
    "log_density",
    "marginal_ll",
    "mixture_of",
    "moments",
    "posterior_predictive_check",
    "reconstruction",
    "samples",
    "sparse_counts",
    "standard_moves",
]
