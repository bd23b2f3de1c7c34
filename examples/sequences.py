"""A deep Markov model: handwritten digits as sequences of eight columns of pixels, some of which end early.

Every column has a code, which depends on the one before it, and the guide has read what is still to come. A third of the
training sequences end after four to seven columns: the rest is NaN, and integrated out. Asked of the model are log p(x) of
whole digits, beside a model whose codes know nothing of one another, and the right half of digits given the left.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

T, D, L, TRAIN = 8, 8, 3, 1400


def chain(transition: nn.Module | None = None) -> pv.DeepMarkovVAE:
    pair = pv.DeepMarkovVAE.of_sequences(fam.BetaBinomial(D, total_count=16), latent=L, hidden=64, width=64)
    if transition is not None:
        pair.transition = transition
    return pair


class Anew(nn.Module):
    """`p(z_t | z_(t-1)) = N(0, I)`: every column has a code of its own."""

    def forward(self, z: Tensor) -> torch.distributions.Distribution:
        return fam.Normal(L)(torch.stack([torch.zeros_like(z), torch.full_like(z, 0.5413)], -2))  # softplus(0.5413) = 1


def main(smoke: bool) -> None:
    torch.manual_seed(0)
    x = torch.as_tensor(load_digits().data).float()
    x = x[torch.randperm(len(x))].reshape(-1, D, T).transpose(1, 2).contiguous()  # (N, T, D), columns from the left
    train, test = x[:TRAIN].clone(), x[TRAIN:]
    length = torch.randint(4, T, (TRAIN // 3,))
    train[: TRAIN // 3][torch.arange(T) >= length[:, None]] = torch.nan
    test = test[: 8 if smoke else 300]

    def fit(pair: pv.DeepMarkovVAE) -> pv.Fit:
        schedule = [pv.schedules.one_cycle(5e-3)]
        return pv.fit(
            pair, train, epochs=1 if smoke else 150, batch_size=100, schedule=schedule, seed=0, progress=False
        )

    draws = 10 if smoke else 300
    for name, transition in {"independent codes": Anew(), "a Markov chain of codes": None}.items():
        fitted = fit(chain(transition))
        found = pv.importance(fitted, test, draws, seed=0)
        print(f"{name:24} log p(x) {found.log_likelihood.mean():8.2f}  ELBO {found.elbo.mean():8.2f}")

    shown = test[:10]
    half = shown.clone()
    half[:, T // 2 :] = torch.nan
    filled = pv.impute(fitted, half, num_samples=20, seed=0)
    rows = [filled.draws[0], filled.draws[1], shown]
    axes = pv.plots.images(torch.cat(rows).transpose(1, 2).flatten(1), (D, T), len(shown))
    axes.set_title("left halves continued, twice; below, the truth", loc="left", fontsize=9)
    print("picture:", pv.plots.save(axes, "sequences.png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
