"""Weights as latent variables: a factor analysis of 60 rows, with one set of loadings, the likeliest, and with a posterior.

The pair is the same in all four fits, and every question averages over the weights that there are: the predictive density
log E_q(w)[p(x | w)] of held-out rows, new rows, and draws of the weights themselves.
"""

import argparse
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

FACTORS = 8


def factor_analysis() -> pv.VAE:
    """z ~ N(0, I), x ~ N(W z + b, diag(s^2)); the posterior of z is Normal, with a linear mean."""
    return pv.VAE(
        prior=pv.priors.StandardNormal(FACTORS),
        likelihood=pv.mlp(FACTORS, fam.Normal(30, scale="column"), hidden=()),
        encoder=pv.mlp(30, fam.Normal(FACTORS, scale="column"), hidden=()),
    )


def fit(around: Callable[[Any], Any], x: Tensor, epochs: int, seed: int = 0) -> pv.Fit:
    torch.manual_seed(seed)
    schedule = pv.schedules.one_cycle(0.02)
    return pv.fit(around(factor_analysis()), x, epochs=epochs, batch_size=len(x), schedule=schedule, seed=seed)


def main(smoke: bool) -> None:
    x = torch.tensor(load_breast_cancer().data, dtype=torch.float32).log1p()  # 30 measurements of 569 tumours
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    train, test = x[:60], x[60:360]
    train, test = ((rows - train.mean(0)) / train.std(0) for rows in (train, test))
    epochs, num_samples, members = (3, 50, 2) if smoke else (2000, 1000, 5)

    weights = "likelihood.net"  # the loadings and the means; the noise s stays a parameter
    prior = dist.Normal(0.0, 0.5)
    fits = {
        "one set of weights": fit(lambda pair: pair, train, epochs),
        "the likeliest (MAP)": fit(lambda pair: pv.map_prior(pair, prior=prior, expose=weights), train, epochs),
        "a posterior (VB)": fit(lambda pair: pv.bayesian(pair, prior=prior, expose=weights), train, epochs),
        "an ensemble": pv.ensemble([fit(lambda pair: pair, train, epochs, seed) for seed in range(members)]),
    }
    scores = {name: pv.log_likelihood(fitted, test, num_samples, seed=0) for name, fitted in fits.items()}
    for name, score in scores.items():
        gain = score - scores["one set of weights"]
        print(f"{name:20} log p(x) {score.mean():7.2f}, {gain.mean():+6.2f} ± {gain.std() / len(gain) ** 0.5:.2f}")

    draws = pv.global_posterior(fits["a posterior (VB)"], 500, seed=0)[
        "w.likelihood.net.first.0.weight"
    ]  # (500, 30, 8)
    certain = (draws.mean(0).abs() > 2 * draws.std(0)).float().mean()
    print(f"loadings whose sign is certain: {certain:.0%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
