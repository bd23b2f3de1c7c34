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
from pathlib import Path
from typing import Any

import torch
from kept import Kept
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data.load import load
from pyrovae.fitted.spec import to_spec

LEVELS, HIDDEN = (64, 32, 16, 8, 4), (512, 256, 128, 64, 32)


# Of how many epochs: the schedules beside that of the rate, and the loss.
SETTINGS: dict[str, Callable[[int], tuple[list[Any], Any]]] = {
    "plain": lambda epochs: ([], None),
    "warm-up": lambda epochs: ([pv.schedules.kl_warmup(0.4 * epochs)], None),
    "cyclical": lambda epochs: ([pv.schedules.kl_cycles(4, 0.5)], None),
    "free bits": lambda epochs: ([], pv.Trace_ELBO(kl=pv.kl.free_bits(2.0))),
    "balancing": lambda epochs: ([pv.schedules.kl_warmup(0.4 * epochs)], pv.Trace_ELBO(kl=pv.kl.balanced())),
    "lagging": lambda epochs: ([pv.schedules.lagging(10, 0.2 * epochs)], None),
}


def fit(x: Tensor, name: str, seed: int, options: argparse.Namespace) -> pv.Fit:
    torch.manual_seed(seed)
    schedules, loss = SETTINGS[name](options.epochs)
    return pv.fit(
        pv.HierarchicalVAE.of_levels(fam.Bernoulli(784), LEVELS, HIDDEN, layers=1, activation=nn.ReLU),
        x,
        epochs=options.epochs,
        batch_size=100,
        loss=loss,
        schedule=[pv.schedules.one_cycle(options.rate), *schedules],
        transform=pv.transforms.Binarize(),
        clip_norm=100.0,
        precision=options.precision,
        seed=seed,
        device=options.device,
        engine=options.engine,
    )


def levels(fitted: pv.Fit, x: Tensor) -> dict[str, Any]:
    """The mean KL of each level, and how many of its dimensions move with the data."""
    kl = pv.kl_by_site(fitted, x, seed=1)
    means = {z: [pv.encode(fitted, x, site=z, num_samples=50, seed=seed) for seed in (1, 2)] for z in sorted(kl)}
    active = {z: int(pv.active_units(one, again=two).sum()) for z, (one, two) in means.items()}
    return {"kl": {z: round(kl[z].mean().item(), 3) for z in sorted(kl)}, "active": active}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="settings, by commas")
    parser.add_argument("--rows", type=int, default=50_000, help="training rows")
    parser.add_argument("--test-rows", type=int, default=2_000)
    parser.add_argument("--num-samples", type=int, default=1_000, help="draws for log p(x) of test rows")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", default="compiled")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args()

    data = load("mnist", data_root=options.data_root)
    assert data.x_test is not None
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(60_000, generator=generator)
    x = data.x[order[:50_000][: options.rows]]
    valid = torch.bernoulli(data.x[order[50_000:][:1000]], generator=generator)
    test = torch.bernoulli(data.x_test[torch.randperm(10_000, generator=generator)], generator=generator)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    names = options.only.split(",") if options.only else list(SETTINGS)

    device = pv.pair.find_device(options.device).type
    path = options.out / f"collapse-{device}.json"
    done = Kept(path, device, again=options.again)
    for seed in seeds:
        for name in names:
            key = f"{name} seed {seed}"
            if key in done:
                continue
            fitted = fit(x, name, seed, options)
            scored = pv.importance(fitted, test[: options.test_rows], options.num_samples, seed=1).summary()
            held_out = pv.importance(fitted, valid, 50, seed=1).summary()
            schedules, loss = SETTINGS[name](options.epochs)
            done[key] = {
                "setting": name,
                "schedules": to_spec(schedules),
                "loss": to_spec(loss),
                "seed": seed,
                **levels(fitted, test[: options.test_rows]),
                "elbo": round(scored["elbo"], 3),
                "log_likelihood": round(scored["log_likelihood"], 3),
                "log_likelihood_se": round(scored["log_likelihood_se"], 3),
                "validation_log_likelihood": round(held_out["log_likelihood"], 3),
                "training_elbo": round(fitted.history[-1]["elbo"], 3),
                "epochs": options.epochs,
                "peak_learning_rate": options.rate,
                "training_rows": len(x),
                "test_rows": options.test_rows,
                "num_samples": options.num_samples,
                "fit_seconds": round(fitted.history[-1]["seconds"], 1),
                "engine": fitted.settings["engine"],
                "precision": options.precision,
            }
            done.keep(key)
            print(key, {k: done[key][k] for k in SHOWN}, flush=True)
    table([done[f"{name} seed {seed}"] for name in names for seed in seeds], names)


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
        scores = [-f["log_likelihood"] for f in own]
        spread = f"({min(scores):.2f} to {max(scores):.2f})" if len(own) > 1 else ""
        print(f"{name:10} {kl} {active} {mean([-f['elbo'] for f in own]):7.2f} {mean(scores):7.2f} {spread}")


if __name__ == "__main__":
    main()
