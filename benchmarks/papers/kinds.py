"""The right halves of MNIST's digits given the left ones, by one code for both and by a conditional VAE, in nats an image.

    python benchmarks/papers/kinds.py --data-root DIR

All images are binarised once, as in quadrants.py; 50,000 train, 10,000 validate and choose the epoch, and the first --test-rows
of the official test images are scored. Networks of 500-500 units, ReLU, and codes of 50 dimensions; Adam with a one-cycle
schedule up to --rate, batches of 256. Fits:

    complete     `pv.MultimodalVAE`: p(z) p(left | z) p(right | z), whose guide is a product of experts, of complete rows
    hidden       the same, with the left or the right half of a row hidden now and then (`pv.transforms.HideKinds`)
    conditional  `pv.CVAE`: p(z | left) p(right | z, left), fitted for this question alone

log p(right | left) is, for the first two, log p(left, right) - log p(left), each by importance sampling from a proposal that is
refined for each row; beside it stands what the guide, given the left half alone, loses of log p(left). Wu & Goodman 2018,
arXiv:1802.05335; Sohn, Lee & Yan 2015.

Writes benchmarks/results/kinds-DEVICE.json, fit by fit; what is there is kept unless --again.
"""

from __future__ import annotations

import argparse
from typing import Any

import harness
import quadrants
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

HALF, L, HIDDEN = 392, quadrants.L, quadrants.HIDDEN


def both() -> pv.MultimodalVAE:
    return pv.MultimodalVAE(
        prior=pv.priors.StandardNormal(L),
        likelihood1=pv.mlp(L, fam.Bernoulli(HALF), hidden=HIDDEN),
        likelihood2=pv.mlp(L, fam.Bernoulli(HALF), hidden=HIDDEN),
        encoder1=pv.mlp(HALF, fam.Normal(L), hidden=HIDDEN),
        encoder2=pv.mlp(HALF, fam.Normal(L), hidden=HIDDEN),
    )


def measure(name: str, parts: list[quadrants.Rows], options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One fit, and its scores of test rows; `parts` are rows of right halves x and left ones c."""
    how: dict[str, Any] = {
        "epochs": options.epochs,
        "batch_size": 256,
        "schedule": pv.schedules.one_cycle(options.rate),
    }
    how |= {"keep_best": True, "progress": False}
    if name == "conditional":
        train, valid, test = parts
        fitted = harness.fit(lambda: quadrants.cvae(HALF), train, options, seed, validation=valid, **how)
    else:
        train, valid, test = ({"x1": part["c"], "x2": part["x"]} for part in parts)
        how["transform"] = pv.transforms.HideKinds("x1", "x2") if name == "hidden" else None
        fitted = harness.fit(both, train, options, seed, validation=valid, **how)
    whole = pv.importance(fitted, test, options.num_samples, seed=1)
    found: dict[str, Any] = {"fit": harness.end(fitted), "whole": harness.scores(whole)}
    gain = whole.log_likelihood
    if name != "conditional":
        left = {"x1": test["x1"], "x2": torch.full_like(test["x2"], torch.nan)}
        alone = pv.importance(fitted, left, options.num_samples, seed=1)
        found |= {"left": harness.scores(alone), "lost_of_left": mean(alone.log_likelihood - alone.elbo)}
        gain = gain - alone.log_likelihood
    error = (gain.std() / len(gain) ** 0.5).item()
    return found | {"right_given_left": mean(gain), "standard_error_over_rows": round(error, 3)}


def mean(values: Tensor) -> float:
    return round(values.mean().item(), 3)


def main() -> None:
    names = ("complete", "hidden", "conditional")
    parser = harness.parser(__doc__, names, epochs=20, rate=1e-3, seeds="0", test_rows=1000, num_samples=500)
    options = harness.parse(parser, epochs=1, test_rows=10, num_samples=20)
    done = harness.Kept(options, "kinds", epochs=options.epochs, rate=options.rate, test_rows=options.test_rows)
    images, seen = quadrants.binarised_mnist(options), quadrants.seen_pixels(2)
    parts = [quadrants.split(some, seen) for some in images]
    parts[2] = {name: values[: options.test_rows] for name, values in parts[2].items()}
    for seed in options.seeds:
        for name in options.only:
            key = f"{name}, seed {seed}"
            done.entry(key, lambda name=name, seed=seed: measure(name, parts, options, seed))


if __name__ == "__main__":
    main()
