"""A table with columns of different types and missing entries: each column has its own family.

The columns: a positive and a real number, a count, yes or no, one of four kinds, a grade from 0 to 4. Missing entries are left
out of the likelihood. They are predicted from the others: infer z from the observed entries, then decode the whole row.
"""

import argparse

import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

NAMES = ("income", "age", "visits", "member", "kind", "grade")
FAMILIES = [
    fam.LogNormal(()),
    fam.Normal((), scale="column"),
    fam.Poisson(()),
    fam.Bernoulli(()),
    fam.Categorical((), num_classes=4),
    fam.OrderedLogistic((), num_classes=5),
]


def people(rows: int) -> Tensor:
    """Six columns that depend on two hidden traits."""
    torch.manual_seed(0)
    a, b = torch.randn(2, rows)
    columns = [
        (0.8 * a + 0.2 * torch.randn(rows)).exp(),
        b + 0.3 * torch.randn(rows),
        torch.poisson((0.5 + 0.7 * a - 0.3 * b).exp()),
        torch.bernoulli(torch.sigmoid(2 * b)),
        torch.distributions.Categorical(logits=torch.stack([2 * a, 2 * b, -2 * a, -2 * b], -1)).sample().float(),
        ((a + b + 0.3 * torch.randn(rows)) + 2.5).floor().clamp(0, 4),
    ]
    return torch.stack(columns, -1)


def main(smoke: bool) -> None:
    whole = people(3000)
    gaps = torch.rand(whole.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    x = whole.masked_fill(gaps, torch.nan)
    epochs = 2 if smoke else 100
    torch.manual_seed(0)
    net = pv.nets.WithMask(pv.nets.MLP((6, 6), (2, 2), (100,)))
    vae = pv.VAE(
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.observed_only(pv.mlp(2, fam.Columns(FAMILIES), hidden=(100,))),
        encoder=pv.Conditional(net, fam.Normal(2)),
    )
    fitted = pv.fit(vae, x[:2500], epochs=epochs, batch_size=100, schedule=pv.schedules.one_cycle(3e-3), seed=0)
    score = pv.log_likelihood(fitted, x[2500:], 25 if smoke else 500, seed=0)
    print(f"log p of the observed entries: {score.mean():.2f} ± {score.std() / len(score) ** 0.5:.2f} nats per row")

    filled, true, gap = pv.reconstruct(fitted, x[2500:]).cpu(), whole[2500:], gaps[2500:]
    for i in (3, 4):
        guess = filled[:, i].round()
        share = (guess == true[:, i])[gap[:, i]].float().mean()
        base = (true[:, i] == whole[:2500, i].mode().values)[gap[:, i]].float().mean()
        print(f"missing {NAMES[i]:7} guessed right: {share:.0%} (the most frequent one: {base:.0%})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
