"""One level of latent variables or two: what a second level adds, and how much of it is used.

In p(z2) p(z1|z2) p(x|z1) the second level is a learned prior for the first. The guide is bottom-up, q(z1|x) q(z2|z1). Both
levels are trained together, with the ELBO or with the bound of 10 importance-weighted draws, which penalises an inexact guide
less. A unit is active if its posterior mean varies with x. Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

LEVELS, HIDDEN = (16, 8), (100, 50)


def build(levels: int) -> pv.HierarchicalVAE:
    pixels, activation = fam.BetaBinomial(64, total_count=16), torch.nn.LeakyReLU  # counts up to 16 saturate a tanh
    return pv.HierarchicalVAE.of_levels(pixels, LEVELS[:levels], HIDDEN[:levels], activation=activation)


def active(fitted: pv.Fit, x: Tensor, site: str) -> str:
    """Two estimates of the posterior means, from different draws, so that Monte Carlo noise does not count as activity."""
    one, two = (pv.encode(fitted, x, site=site, seed=seed) for seed in (0, 1))
    return f"{int(pv.active_units(one, again=two).sum())} of {one.shape[1]}"


def main(smoke: bool) -> None:
    x = torch.tensor(load_digits().data, dtype=torch.float32)  # (1797, 64), counts 0..16
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    train, test = x[:1437], x[1437:]
    epochs = 1 if smoke else 150
    for name, loss in (("ELBO", pv.Trace_ELBO()), ("IWELBO of 10 draws", pv.IWELBO(10))):
        for levels in (1, 2):
            torch.manual_seed(0)
            schedule = [pv.schedules.one_cycle(3e-3), pv.schedules.kl_warmup(epochs / 10)]
            schedule = schedule if name == "ELBO" else schedule[:1]
            fitted = pv.fit(
                build(levels),
                train,
                epochs=epochs,
                batch_size=100,
                loss=loss,
                schedule=schedule,
                clip_norm=100.0,
                seed=0,
            )
            found = pv.importance(fitted, test, 25 if smoke else 1000, seed=0).summary()
            units = ", ".join(f"z{level}: {active(fitted, test, f'z{level}')}" for level in range(1, levels + 1))
            print(
                f"{name}, {levels} level(s): log p(x) {found['log_likelihood']:8.2f} ± {found['log_likelihood_se']:.2f} nats "
                f"per row, ELBO {found['elbo']:8.2f}   active units {units}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
