"""Counts whose total differs from row to row, as for single cells or documents: the total is an argument of the graph.

Three likelihoods are fitted to one data set: Poisson, negative binomial, and zero-inflated negative binomial. Only the family
changes; log p(x | library) on held-out rows shows which of them fits best.
"""

import argparse

import pyro
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

GENES = 50


class CountVAE(nn.Module):
    """p(z) p(x | z, library), guide q(z | x). x: (N, genes) counts; library: (N,), the size of each row."""

    def __init__(self, family: fam.Family) -> None:
        super().__init__()
        self.prior = pv.priors.StandardNormal(4)
        self.likelihood = pv.mlp(4, family, hidden=(64,))
        self.encoder = pv.Conditional(pv.nets.Log1p(pv.nets.MLP(GENES, (2, 4), (64,))), fam.Normal(4))

    def model(self, x: Tensor, library: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z, library=library), obs=x)

    def guide(self, x: Tensor, library: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(x))


def cells(rows: int) -> dict[str, Tensor]:
    """Three kinds of cells, sequenced at depths that differ tenfold; counts vary more than a Poisson's."""
    g = torch.Generator().manual_seed(0)
    profiles = torch.randn(3, GENES, generator=g).softmax(-1)
    depth = torch.exp(5 + 0.6 * torch.randn(rows, generator=g))
    mean = profiles[torch.randint(3, (rows,), generator=g)] * depth[:, None]
    torch.manual_seed(0)
    x = torch.poisson(torch.distributions.Gamma(2.0, 2.0 / mean).sample())
    return {"x": x, "library": x.sum(-1).clamp_min(1.0) / GENES}


def main(smoke: bool) -> None:
    data = cells(2400)
    train, test = ({name: part[where] for name, part in data.items()} for where in (slice(0, 2000), slice(2000, None)))
    epochs, num_samples = (2, 25) if smoke else (60, 500)
    for name in ("Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial"):
        torch.manual_seed(0)
        fitted = pv.fit(CountVAE(getattr(fam, name)(GENES)), train, epochs=epochs, batch_size=100, seed=0)
        score = pv.log_likelihood(fitted, test, num_samples, seed=0)
        print(f"{name:28} log p(x) {score.mean():8.2f} ± {score.std() / len(score) ** 0.5:.2f} nats per cell")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
