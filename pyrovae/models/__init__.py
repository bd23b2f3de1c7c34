"""One file per graph, model and guide in full."""

from pyrovae.models.vae import VAE

__all__ = ["VAE"]
