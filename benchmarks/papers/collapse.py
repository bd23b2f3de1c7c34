"""Posterior collapse: a hierarchy of five levels on MNIST, and what each remedy makes of it.

    python benchmarks/papers/collapse.py --data-root DIR
    python benchmarks/papers/collapse.py --data-root DIR --epochs 10 --only plain,balancing

MNIST (DIR/MNIST/raw), 50,000 training rows, 10,000 validation rows, 10,000 test rows, binarised anew at every step.
p(z5) p(z4|z5) ... p(z1|z2) p(x|z1), guide q(z1|x) q(z2|z1) ... q(z5|z4), of 64, 32, 16, 8 and 4 dimensions, each level behind
a hidden layer of 512, 256, 128, 64 and 32 units, ReLU: the VAE of five levels of Sonderby et al. 2016, arXiv:1602.02282,
without batch normalisation and of one hidden layer. Batch 100, Adam with a one-cycle schedule, the last weights.

SETTINGS change an option of the fit, never the pair. The KL weight warms up over the first 40 % of the fit, or rises four
times, each time over half of a cycle; inference leads for the first 20 % (9 of 10 steps). Of held-out rows, binarised once:
the KL of each level, E[log q - log p] in nats (10 draws); active dimensions (Burda et al. 2016, threshold 0.01); the ELBO and
log p(x) of 2,000 test rows (1,000 draws), and log p(x) of 1,000 validation rows (50 draws), to choose a setting by.

Writes benchmarks/results/collapse-DEVICE.json, fit by fit; fits that are there are kept unless --again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import harness
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.fitted.spec import to_spec

LEVELS, HIDDEN = (64, 32, 16, 8, 4), (512, 256, 128, 64, 32)


# For a number of epochs: the schedules in addition to that of the learning rate, and the loss.
SETTINGS: dict[str, Callable[[int], tuple[list[Any], Any]]] = {
    "plain": lambda epochs: ([], None),
    "warm-up": lambda epochs: ([pv.schedules.kl_warmup(0.4 * epochs)], None),
    "cyclical": lambda epochs: ([pv.schedules.kl_cycles(4, 0.5)], None),
    "free bits": lambda epochs: ([], pv.Trace_ELBO(kl=pv.kl.free_bits(2.0))),
    "balancing": lambda epochs: ([pv.schedules.kl_warmup(0.4 * epochs)], pv.Trace_ELBO(kl=pv.kl.balanced())),
    "lagging": lambda epochs: ([pv.schedules.lagging(10, 0.2 * epochs)], None),
}


def fit(x: Tensor, name: str, seed: int, options: argparse.Namespace) -> pv.Fit:
    schedules, loss = SETTINGS[name](options.epochs)
    return harness.fit(
        lambda: pv.HierarchicalVAE.of_levels(fam.Bernoulli(784), LEVELS, HIDDEN, layers=1, activation=nn.ReLU),
        x,
        options,
        seed,
        epochs=options.epochs,
        batch_size=100,
        loss=loss,
        schedule=[pv.schedules.one_cycle(options.rate), *schedules],
        transform=pv.transforms.Binarize(),
        clip_norm=100.0,
        precision=options.precision,
    )


def main() -> None:
    parser = harness.parser(
        __doc__,
        SETTINGS,
        epochs=12,
        rate=3e-3,
        seeds="0,1,2",
        rows=50_000,
        test_rows=2_000,
        num_samples=1_000,
        precision="bfloat16",
    )
    options = harness.parse(parser, epochs=2, seeds="0", rows=200, test_rows=20, num_samples=20)
    done = harness.Kept(options, "collapse")

    generator = torch.Generator().manual_seed(0)
    data = harness.mnist(options, generator=generator, rows=options.rows)
    valid = torch.bernoulli(data.valid.x[:1000], generator=generator)
    test = torch.bernoulli(data.test.x[torch.randperm(len(data.test.x), generator=generator)], generator=generator)
    test = test[: options.test_rows]

    def measure(name: str, seed: int) -> dict[str, Any]:
        fitted = fit(data.train.x, name, seed, options)
        found = pv.importance(fitted, test, options.num_samples, seed=1)
        scored = harness.scores(found)
        schedules, loss = SETTINGS[name](options.epochs)
        kl, active = harness.by_level(fitted, test, kl_samples=10, kl_seed=1, seeds=(1, 2))
        end = harness.end(fitted)
        return {
            "setting": name,
            "schedules": to_spec(schedules),
            "loss": to_spec(loss),
            "seed": seed,
            "kl": kl,
            "active": active,
            "elbo": scored["elbo"],
            "log_likelihood": scored["log_likelihood"],
            "log_likelihood_se": scored["standard_error_over_rows"],
            "k_hat_above_threshold": round(found.summary()["k_hat_above_threshold"], 3),
            "validation_log_likelihood": harness.scores(pv.importance(fitted, valid, 50, seed=1))["log_likelihood"],
            "training_elbo": end["elbo"],
            "epochs": options.epochs,
            "peak_learning_rate": options.rate,
            "training_rows": len(data.train.x),
            "test_rows": options.test_rows,
            "num_samples": options.num_samples,
            "fit_seconds": end["seconds"],
            "engine": fitted.settings["engine"],
            "precision": options.precision,
        }

    fits = [
        done.entry(f"{name} seed {seed}", lambda name=name, seed=seed: measure(name, seed), SHOWN)
        for seed in options.seeds
        for name in options.only
    ]
    table(fits, options.only)


SHOWN = ("kl", "active", "elbo", "log_likelihood", "validation_log_likelihood", "fit_seconds")


def table(fits: list[dict[str, Any]], names: list[str]) -> None:
    """A line a setting: KL and active dimensions of each level, -ELBO and -log p(x) in nats, means over seeds."""
    print(
        f"{'':10} {'KL of z1 to z5':^39} {'active of ' + ', '.join(map(str, LEVELS)):^29} {'-ELBO':>7} {'-log p(x)':>16}"
    )
    sites = [f"z{level}" for level in range(1, len(LEVELS) + 1)]
    for name in names:
        own = [f for f in fits if f["setting"] == name]

        def mean(values: list[float]) -> float:
            return sum(values) / len(values)

        kl = " ".join(f"{mean([f['kl'][z] for f in own]):7.2f}" for z in sites)
        active = " ".join(f"{mean([f['active'][z] for f in own]):5.1f}" for z in sites)
        scores = harness.spread(-f["log_likelihood"] for f in own)
        print(f"{name:10} {kl} {active} {mean([-f['elbo'] for f in own]):7.2f} {scores:>7}")


if __name__ == "__main__":
    main()
