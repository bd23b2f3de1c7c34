"""NVAE on dynamically binarised MNIST within a budget of minutes: log p(x), nats an image.

    python benchmarks/papers/nvae.py --data-root DIR
    python benchmarks/papers/nvae.py --data-root DIR --minutes 2 --channels 16,32 --groups 1,2 --validation-only

MNIST (DIR/MNIST/raw), 55,000 training rows, 5,000 validation rows, 10,000 test rows; binarised anew at every step, and once,
from a fixed seed, for validation and test. Adam with a one-cycle schedule, the KL weight from 0 to 1 over the first 30 % of the
epochs, KL in closed form, spectral penalty 0.01 an image, gradients clipped, the last weights. A few steps of the same size are
timed first, compilation left out, and as many whole epochs are fitted as go into --minutes. Sizes are compared on validation
rows, with --validation-only. log p(x) is estimated by importance sampling, K = --num-samples draws of the guide a row, which
is a lower bound in expectation. Vahdat & Kautz 2020, arXiv:2007.03898, report 78.01 with 15 groups, on GPUs.

Writes benchmarks/results/nvae-DEVICE.json, fit by fit, and the fits to --runs; what is there is kept unless --again.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

PILOT_STEPS, PILOT_EPOCHS = 8, 3


def build(options: argparse.Namespace) -> pv.NVAE:
    return pv.NVAE(
        fam.Bernoulli((28, 28)),
        channels=options.channels,
        groups=options.groups,
        latent_channels=options.latent_channels,
        cells=options.cells,
        expansion=options.expansion,
    )


def fit(x: Tensor, epochs: int, options: argparse.Namespace) -> pv.Fit:
    def late(fitted: pv.Fit) -> bool:
        return options.epochs is None and fitted.history[-1]["seconds"] > 1.2 * 60 * options.minutes

    return harness.fit(
        lambda: build(options),
        x,
        options,
        options.seed,
        epochs=epochs,
        batch_size=options.batch_size,
        loss=pv.Trace_ELBO(kl="analytic"),
        schedule=[pv.schedules.one_cycle(options.rate, warmup=0.15), pv.schedules.kl_warmup(max(0.5, 0.3 * epochs))],
        transform=pv.transforms.Binarize(),
        penalty=pv.penalties.spectral_norm(options.spectral * len(x)) if options.spectral else None,
        clip_norm=200.0,
        precision=options.precision,
        callbacks=[late],
    )


def seconds_a_step(x: Tensor, options: argparse.Namespace) -> float:
    """The fastest epoch but the first, which compiles."""
    history = fit(x[: PILOT_STEPS * options.batch_size], PILOT_EPOCHS, options).history
    times = [h["seconds"] for h in history]
    return min(later - sooner for sooner, later in pairwise(times)) / PILOT_STEPS


def scores(fitted: pv.Fit, x: Tensor, num_samples: int) -> dict[str, Any]:
    found = harness.scores(pv.importance(fitted, x, num_samples, seed=1))
    return {**found, "rows": len(x), "num_samples": num_samples}


def main() -> None:
    parser = harness.parser(
        __doc__, epochs=None, batch_size=100, rate=5e-3, num_samples=200, test_rows=2000, precision="bfloat16"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, unless --epochs is given")
    parser.add_argument("--channels", type=harness.integers, default=(16, 32, 64))
    parser.add_argument("--groups", type=harness.integers, default=(2, 2))
    parser.add_argument("--latent-channels", type=int, default=4)
    parser.add_argument("--cells", type=int, default=1)
    parser.add_argument("--expansion", type=int, default=0)
    parser.add_argument("--spectral", type=float, default=0.01, help="weight of the spectral penalty, per image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation-only", action="store_true", help="leave the test rows alone")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "nvae")
    options = harness.parse(
        parser, epochs=1, channels=(2, 4), groups=(1,), batch_size=400, num_samples=3, test_rows=5, runs=None
    )
    runs = options.runs or options.out / "runs"
    done = harness.Kept(options, "nvae")

    data = harness.mnist(options, held_out=5_000, generator=torch.Generator().manual_seed(0))
    train, valid, test = (rows.x.reshape(-1, 28, 28) for rows in data)

    chosen = (
        "channels",
        "groups",
        "latent_channels",
        "cells",
        "expansion",
        "batch_size",
        "rate",
        "spectral",
        "minutes",
        "seed",
    )
    size = {name: getattr(options, name) for name in chosen}
    if options.epochs is not None:  # then no budget of minutes was kept
        size["minutes"] = None
    key = ", ".join(f"{name}={value}" for name, value in size.items()).replace("(", "").replace(")", "")

    def keep() -> None:
        done.keep(key)
        print(key, done[key], flush=True)

    folder = runs / key.replace(", ", "-").replace(",", ".")
    if key in done and folder.is_dir():
        fitted = pv.load(folder)
    else:
        step = seconds_a_step(train, options)
        epochs = options.epochs or max(1, int(60 * options.minutes / (step * len(train) / options.batch_size)))
        print(f"{1000 * step:.0f} ms a step of {options.batch_size} rows: {epochs} epochs", flush=True)
        began = time.process_time()
        fitted = fit(train, epochs, options)
        end = harness.end(fitted)
        done[key] = {
            **size,
            "parameters": sum(p.numel() for p in fitted.pair.parameters()),
            "milliseconds_a_step_beforehand": round(1000 * step, 1),
            "epochs": len(fitted.history),
            "planned_epochs": epochs,
            "steps": end["steps"],
            "fit_seconds": end["seconds"],
            "fit_cpu_seconds": round(time.process_time() - began, 1),  # of all threads
            "training_elbo": end["elbo"],
            "engine": fitted.settings["engine"],
            "precision": fitted.settings["precision"],
            "threads": torch.get_num_threads(),
        }
        pv.save(fitted, folder, force=True)
        keep()
    if "validation" not in done[key]:
        done[key]["validation"] = scores(fitted, valid[:500], 50)
        keep()
    if "test" not in done[key] and not options.validation_only:
        done[key]["test"] = scores(fitted, test[: options.test_rows], options.num_samples)
        keep()


if __name__ == "__main__":
    main()
