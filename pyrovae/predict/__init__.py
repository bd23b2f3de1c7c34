"""Predictions of a fitted pair: codes, reconstructions, samples from the prior, decoded latent values."""
