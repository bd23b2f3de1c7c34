"""Hierarchies of latent variables, a ladder, and importance-weighted bounds on MNIST: log p(x) and the units that are used.

    python benchmarks/papers/hierarchies.py --data-root DIR
    python benchmarks/papers/hierarchies.py --data-root DIR --only five,ladder --rates 2e-3 --picture docs/levels.png

MNIST (DIR/MNIST/raw), the first 50,000 training rows to train on and the last 10,000 to choose by, binarised anew at every step
and once, from a fixed seed, at evaluation. NETS:

one, two    784-200-200-50, and 784-200-200-100-100-100-50, of Burda et al. 2016 (arXiv:1509.00519), bottom-up guides, leaky
            rectifiers: theirs are tanh, with which 30 epochs at 2e-3, without warm-up, left two levels
            at -120 and one at -96
five        z1 to z5 of 64-32-16-8-4 dimensions behind perceptrons of 512-256-128-64-32, two layers each, bottom up
ladder      the same model with the ladder's guide. Sonderby et al. 2016 (arXiv:1602.02282), layer for batch normalisation
five-b, ladder-b  the same two with balanced KL terms while the KL weight warms up (pv.kl.balanced)
ladder-n    the ladder with batch normalisation of hidden layers, and of the locations and scales of evidence and levels, as
            in the paper's code; KL terms in closed form; statistics are recomputed from 10,000 training rows after the fit
ladder-g    the same, but of the heads the locations alone, with a fixed factor of 0.5 (Zhu et al. 2020, arXiv:2004.12585)
iw-5, iw-50 net "one", trained with the bound of K = 5 and 50 draws; that of one draw is the ELBO, and the fit is "one"

Adam with a one-cycle schedule, the same number of epochs for all, the last weights; the KL weight rises from 0 to 1 over
--warmup epochs. Every net is fitted at every rate of --rates with the first seed; the rate with the best log p(x)
of 1,000 validation rows (200 draws) is fitted with every seed, and only then are test rows scored: with --device cuda all
10,000 with K = 5,000 draws, else 2,000 with 1,000. A unit is active if the covariance over rows of two averages of
E_q[z_l | x], each over draws of the levels before it, is above 0.01; the KL of a level is E_q[log q - log p], nats per row.

Writes benchmarks/results/hierarchies-DEVICE.json, fit by fit; what is there is kept unless --again. --picture is samples of a
ladder, and samples with its upper levels held.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import harness
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam


class Net(NamedTuple):
    build: Callable[[], pv.HierarchicalVAE | pv.LadderVAE]
    draws: int = 1  # of the bound that trains it
    balanced: bool = False
    kl: str | None = None
    recomputed: bool = False


LEVELS, HIDDEN = (64, 32, 16, 8, 4), (512, 256, 128, 64, 32)
NORMED = pv.nets.LayerNormed(nn.LeakyReLU)
X = fam.Bernoulli(784)


def one() -> pv.HierarchicalVAE:
    return pv.HierarchicalVAE.of_levels(X, (50,), (200,), activation=nn.LeakyReLU)


def five() -> pv.HierarchicalVAE:
    return pv.HierarchicalVAE.of_levels(X, LEVELS, HIDDEN, activation=NORMED)


def ladder() -> pv.LadderVAE:
    return pv.LadderVAE.of_levels(X, LEVELS, HIDDEN, activation=NORMED)


def normed_ladder(gamma: float | None = None) -> pv.LadderVAE:
    activation, head = pv.nets.BatchNormed(nn.LeakyReLU), functools.partial(pv.batch_normed, gamma=gamma)
    return pv.LadderVAE.of_levels(X, LEVELS, HIDDEN, activation=activation, head=head)


NETS = {
    "one": Net(one),
    "two": Net(lambda: pv.HierarchicalVAE.of_levels(X, (100, 50), (200, 100), activation=nn.LeakyReLU)),
    "five": Net(five),
    "ladder": Net(ladder),
    "five-b": Net(five, balanced=True),
    "ladder-b": Net(ladder, balanced=True),
    "ladder-n": Net(normed_ladder, kl="analytic", recomputed=True),
    "ladder-g": Net(functools.partial(normed_ladder, 0.5), kl="analytic", recomputed=True),
    "iw-5": Net(one, draws=5),
    "iw-50": Net(one, draws=50),
}


def fit(name: str, x: Tensor, rate: float, seed: int, options: argparse.Namespace) -> pv.Fit:
    net = NETS[name]
    schedule: list[Callable[..., Any]] = [pv.schedules.one_cycle(rate)]
    if options.warmup:
        schedule.append(pv.schedules.kl_warmup(options.warmup))
    fitted = harness.fit(
        net.build,
        x,
        options,
        seed,
        epochs=options.epochs,
        batch_size=options.batch_size,
        loss=pv.IWELBO(net.draws) if net.draws > 1 else pv.Trace_ELBO(kl=pv.kl.balanced() if net.balanced else net.kl),
        schedule=schedule,
        transform=pv.transforms.Binarize(),
        clip_norm=100.0,
        precision=options.precision,
    )
    if net.recomputed:
        pv.recompute_statistics(fitted, x[:10_000], seed=0)
    return fitted


def score(fitted: pv.Fit, x: Tensor, num_samples: int) -> dict[str, Any]:
    began = time.perf_counter()
    found = pv.importance(fitted, x, num_samples, seed=1)
    kl, active = harness.by_level(fitted, x, kl_samples=50, kl_seed=0, seeds=(0, 1))
    end = harness.end(fitted)
    history = fitted.history
    last = history[-2:] if len(history) > 1 else [{"seconds": 0.0, "steps": 0}, history[-1]]
    step = (last[1]["seconds"] - last[0]["seconds"]) / (last[1]["steps"] - last[0]["steps"])
    return {
        **harness.scores(found),
        "k_hat_above_threshold": round(found.summary()["k_hat_above_threshold"], 3),
        "active_units": list(active.values()),
        "kl": list(kl.values()),
        "training_bound": end["elbo"],
        "test_rows": len(x),
        "num_samples": num_samples,
        "epochs": len(history),
        "steps": end["steps"],
        "ms_per_step": round(1000 * step, 3),
        "fit_seconds": end["seconds"],
        "evaluation_seconds": round(time.perf_counter() - began, 1),
        "engine": fitted.settings["engine"],
        "precision": fitted.settings["precision"],
        "batch_size": fitted.settings["batch_size"],
    }


def picture(fitted: pv.Fit, path: Path) -> None:
    """Samples; and, a column each, samples with no level held, with the top one, the top two, ..., at one draw of all."""
    _, axes = plt.subplots(1, 2, figsize=(8, 5), gridspec_kw={"width_ratios": [8, len(LEVELS)]}, layout="constrained")
    samples = pv.generate(fitted, 64, mean=True, seed=0)
    pv.plots.images(samples, (28, 28), 8, ax=axes[0])
    top_down = [f"z{level}" for level in range(len(LEVELS), 0, -1)]
    drawn = pv.simulate(fitted, 1, seed=1)
    columns = [
        pv.generate(fitted, 8, given={s: drawn[s].expand(8, -1) for s in top_down[:held]}, mean=True, seed=0)
        for held in range(len(LEVELS))
    ]
    names = ["none", top_down[0], *(f"{top_down[0]}-{site[1:]}" for site in top_down[1:-1])]
    pv.plots.images(torch.stack(columns, 1).flatten(0, 1), (28, 28), len(LEVELS), ax=axes[1], names=names)
    axes[0].set_title("samples", fontsize=9)
    axes[1].set_title("samples, these levels held", fontsize=9)
    pv.plots.save(list(axes), path)


def main() -> None:
    parser = harness.parser(
        __doc__,
        NETS,
        epochs=30,
        batch_size=50,
        rates="5e-3,2e-3",
        seeds="0,1,2",
        rows=50_000,
        test_rows=None,
        num_samples=None,
        precision="float32",
    )
    parser.add_argument("--warmup", type=float, default=10.0, help="epochs; 0 for none")
    parser.add_argument("--picture", type=Path, help="of the ladder, a file to write")
    options = harness.parse(
        parser, epochs=2, rates="2e-3", seeds="0", rows=100, test_rows=20, num_samples=20, warmup=1.0
    )
    done = harness.Kept(options, "hierarchies", "nets")

    data = harness.mnist(options, rows=options.rows)
    valid = data.valid.x[:1000]
    test = data.test.x[: options.test_rows or (10_000 if options.device == "cuda" else 2000)]
    num_samples = options.num_samples or (5000 if options.device == "cuda" else 1000)

    def measure(name: str) -> None:
        """Complete what the file has of a net."""

        @functools.cache
        def fitted(rate: float, seed: int) -> pv.Fit:
            return fit(name, data.train.x, rate, seed, options)

        entry = done.setdefault(name, {"validation_log_likelihood": {}, "fits": {}})
        tried = entry["validation_log_likelihood"]
        best = harness.best_rate(
            options.rates,
            lambda rate: pv.log_likelihood(fitted(rate, options.seeds[0]), valid, 200, seed=1).mean().item(),
            tried,
            name,
            keep=lambda: done.keep(name),
        )
        if entry.get("peak_learning_rate", best) != best:  # another rate is better: these were of the former best
            entry["fits"] = {}
        entry |= {"peak_learning_rate": best, "settings_tried": len(tried), "warmup": options.warmup}
        for seed in options.seeds:
            if str(seed) not in entry["fits"]:
                entry["fits"][str(seed)] = score(fitted(best, seed), test, num_samples)
                done.keep(name)
        if name.startswith("ladder") and options.picture:
            picture(fitted(best, options.seeds[0]), options.picture)

    for name in options.only:
        measure(name)
        report(name, done[name])


def report(name: str, entry: dict[str, Any]) -> None:
    fits = list(entry["fits"].values())
    reached = harness.spread(-f["log_likelihood"] for f in fits)
    elbo = torch.tensor([f["elbo"] for f in fits])
    last = fits[0]
    print(
        f"{name:7} NLL {reached} over {len(fits)} seeds, "
        f"± {last['standard_error_over_rows']:.2f} over rows   -ELBO {-elbo.mean():7.2f}   active units "
        f"{' + '.join(str(n) for n in last['active_units'])}   KL {' + '.join(f'{k:.1f}' for k in last['kl'])}   peak rate "
        f"{entry['peak_learning_rate']:g} of {entry['settings_tried']}   {last['ms_per_step']:.2f} ms a step, "
        f"{last['fit_seconds']:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
