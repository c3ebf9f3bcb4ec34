"""The network: encoder, decoder, and the variational auto-encoder made of them."""

from vivace.nn.decoder import Decoder, LinearDecoder
from vivace.nn.encoder import Encoder, Posterior
from vivace.nn.surgery import Part, Surgery, grown, operate, trained_parts
from vivace.nn.vae import VAE, Dimensions, Inference, Losses, Rates

__all__ = [
    "VAE",
    "Decoder",
    "Dimensions",
    "Encoder",
    "Inference",
    "LinearDecoder",
    "Losses",
    "Part",
    "Posterior",
    "Rates",
    "Surgery",
    "grown",
    "operate",
    "trained_parts",
]
