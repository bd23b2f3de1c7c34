"""One argument swaps the likelihood. Digits are counts from 0 to 16: which distribution of a pixel fits them best?

All of these give probabilities, so their log p(x) can be compared. That of a density, such as the Normal's, cannot: it depends
on the scale of the data. `pyrovae compare` refuses such a comparison; `--dequantise` turns a density of whole numbers into a
bound on a probability.
"""

import argparse

import torch
from sklearn.datasets import load_digits

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.families import Family

LIKELIHOODS = {
    "Binomial": lambda: fam.Binomial(64, total_count=16),
    "BetaBinomial": lambda: fam.BetaBinomial(64, total_count=16),
    "DiscretizedLogistic": lambda: fam.DiscretizedLogistic(64, 17),
    "Categorical": lambda: fam.Categorical(64, num_classes=17),
    "Poisson": lambda: fam.Poisson(64),
}


def fit(likelihood: Family, x: torch.Tensor, epochs: int) -> pv.Fit:
    torch.manual_seed(0)
    vae = pv.VAE(
        prior=pv.priors.StandardNormal(6),
        likelihood=pv.mlp(6, likelihood, hidden=(200,)),
        encoder=pv.mlp(64, fam.Normal(6), hidden=(200,)),
    )
    return pv.fit(vae, x, epochs=epochs, batch_size=100, schedule=pv.schedules.one_cycle(3e-3), seed=0)


def main(smoke: bool) -> None:
    x = torch.tensor(load_digits().data, dtype=torch.float32)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    x_train, x_test = x[:1437], x[1437:]
    epochs, num_samples = (2, 25) if smoke else (150, 1000)

    scores = {}
    for name, family in LIKELIHOODS.items():
        scores[name] = pv.log_likelihood(fit(family(), x_train, epochs), x_test, num_samples, seed=0)
        print(f"{name:20} log p(x) {scores[name].mean():8.2f} nats per row")
    best = max(scores, key=lambda name: scores[name].mean())
    print(f"best on {len(x_test)} held-out rows: {best}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
