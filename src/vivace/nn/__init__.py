"""The network: encoder, decoder, and the variational auto-encoder made of them."""

from vivace.nn.decoder import Decoder
from vivace.nn.encoder import Encoder, Posterior
from vivace.nn.vae import VAE, Dimensions, Losses, Rates

__all__ = ["VAE", "Decoder", "Dimensions", "Encoder", "Losses", "Posterior", "Rates"]
