"""The network: encoder, decoders, and the variational auto-encoder made of them."""

from vivace.nn.decoders import Decoder, LinearDecoder, MLPDecoder
from vivace.nn.encoder import Encoder, Inference, Posterior
from vivace.nn.freeze import Part, freeze_network, grow_weights, trained_parts, trains_encoder
from vivace.nn.moments import Moments, compute_moments
from vivace.nn.objective import Losses, negative_elbo
from vivace.nn.surgery import Role, Surgery
from vivace.nn.vae import VAE, Dimensions, Rates

__all__ = [
    "VAE",
    "Decoder",
    "Dimensions",
    "Encoder",
    "Inference",
    "LinearDecoder",
    "Losses",
    "MLPDecoder",
    "Moments",
    "Part",
    "Posterior",
    "Rates",
    "Role",
    "Surgery",
    "compute_moments",
    "freeze_network",
    "grow_weights",
    "negative_elbo",
    "trained_parts",
    "trains_encoder",
]
