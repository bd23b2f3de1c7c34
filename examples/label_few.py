"""Fifty labels for 1,797 digits: a semi-supervised VAE, which learns from every row, against its classifier trained alone.

The graph is p(y) p(z) p(x|z,y) with guide q(y|x) q(z|x,y). Where a label is unknown (-1) it is summed out: every image shows
the model what digits look like, and the fifty labelled ones say which digit is which.
"""

import argparse

import torch
from pyro import distributions as dist
from sklearn.datasets import load_digits
from torch.nn import functional as F

import pyrovae as pv
from pyrovae import families as fam

C, L = 10, 10  # classes, latent dimensions


def classifier() -> pv.Conditional:
    net = pv.nets.Rescaled(pv.nets.MLP(64, C, (200,), pv.nets.ReLUDropout(0.5)), 1 / 16)
    return pv.Conditional(net, fam.Categorical((), num_classes=C))


def supervised(x: torch.Tensor, y: torch.Tensor, steps: int) -> pv.Conditional:
    """The classifier alone, on the labelled rows."""
    alone = classifier()
    optimizer = torch.optim.Adam(alone.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(alone(x).logits, y).backward()
        optimizer.step()
    return alone.eval()


def main(smoke: bool) -> None:
    steps = 30 if smoke else 1000
    digits = load_digits()
    x, truth = torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target)  # counts 0..16
    torch.manual_seed(0)
    labelled = torch.cat([torch.nonzero(truth == c)[torch.randperm((truth == c).sum())[:5], 0] for c in range(C)])
    y = torch.full_like(truth, -1)  # unknown
    y[labelled] = truth[labelled]

    ssvae = pv.SSVAE(
        label_prior=dist.Categorical(logits=torch.zeros(C)),
        prior=pv.priors.StandardNormal(L),
        likelihood=pv.mlp((L, C), fam.BetaBinomial(64, total_count=16), hidden=(200,)),
        encoder=pv.Conditional(
            pv.nets.Rescaled(pv.nets.MLP((64, C), fam.Normal(L).param_shape, (200,)), 1 / 16), fam.Normal(L)
        ),
        classifier=classifier(),
        code=pv.nets.OneHot(C),
        alpha=200.0,  # how often a labelled row counts for the classifier
    )
    fitted = pv.fit(
        ssvae,
        {"x": x, "y": y},
        epochs=steps * 128 // len(x) + 1,  # an epoch is one pass over the unlabelled rows
        batch_size=128,
        group_size={"y": 50, "": 128},
        schedule=pv.schedules.one_cycle(3e-3),
        seed=0,
    )

    alone = supervised(x[labelled], y[labelled], steps)
    unknown = y < 0
    semi_supervised = pv.classify(fitted, x[unknown], num_samples=1).guide  # q(y | x)
    for name, found in (("classifier alone", alone(x[unknown]).probs), ("semi-supervised ", semi_supervised)):
        right = found.argmax(-1) == truth[unknown]
        print(f"{name}: {right.float().mean():.1%} of {len(right)} unlabelled digits")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
