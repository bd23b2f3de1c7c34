"""Explorers of small pairs."""

from typing import Any

import torch

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.app.jobs.explore import Explorer


def explored(pair: Any, data: Any, epochs: int = 0, **how: Any) -> Explorer:
    """An explorer of a pair as it stands, or after a short fit, which can start from any of its rows."""
    fitted = pv.fit(pair, data, epochs=epochs, seed=1, engine="eager", progress=False)
    batch = fitted.batch(data)
    inputs = {name: value for name, value in batch.items() if name != "y"}
    num = len(next(iter(batch.values())))
    return Explorer(fitted, rows=lambda which: {k: v[which] for k, v in inputs.items()}, num_rows=num, **how)


def gaussian(latent: int = 2, prior: Any = None) -> Explorer:
    """A VAE whose decoder is linear with bounded weights, and so known everywhere."""
    torch.manual_seed(0)
    x = torch.randn(40, 6)
    parts = pv.mlp(latent, fam.Normal(6), hidden=()), pv.mlp(6, fam.Normal(latent), hidden=(8,))
    return explored(pv.VAE(prior or pv.priors.StandardNormal(latent), *parts), x)
