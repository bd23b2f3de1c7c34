"""Proposals of hierarchies: refined in the values of the levels, and in the noise from which the guide draws them.

    python benchmarks/papers/levels.py --data-root DIR
    python benchmarks/papers/levels.py --data-root DIR --only ladder-b --epochs 14 --name ladder-b-14

Nets of hierarchies.py with five levels, fitted as there with a peak learning rate of 3e-3, but for fewer epochs, of which a
third warms the KL weight up; then log p(x) of the first test rows by 1,000 draws of each proposal, on one thread:

guide    the guide
values   a Normal of the values of all levels together, as it is refined for guides whose draws do not depend on one another
laplace  Laplace's approximation, in the noise
refined  a Normal of the noise of all levels together, as pv.importance refines it

Writes benchmarks/results/levels-DEVICE.json; --runs DIR keeps the fits, and takes those that are there.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import harness
import hierarchies
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.criticism import weighing

RATE = 3e-3
PROPOSALS = {"guide": "guide", "values": "refined", "laplace": "laplace", "refined": "refined"}


@contextmanager
def in_values() -> Iterator[None]:
    """Inside, proposals are refined in the values of sites whatever the guide."""
    kept = weighing.adapted
    weighing.adapted = functools.partial(kept, noise=False)  # type: ignore[assignment]
    try:
        yield
    finally:
        weighing.adapted = kept


def fit(name: str, options: argparse.Namespace) -> pv.Fit:
    folder: Path | None = options.runs and options.runs / f"{name}-{options.epochs}"
    if folder and folder.exists():
        return pv.load(folder)
    options.warmup = max(1.0, options.epochs / 3)
    fitted = hierarchies.fit(name, harness.mnist(options, rows=options.rows).train.x, RATE, 0, options)
    if folder:
        pv.save(fitted, folder)
    return fitted


def score(fitted: pv.Fit, x: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"epochs": options.epochs, "test_rows": len(x), "num_samples": options.num_samples}
    for name, proposal in PROPOSALS.items():
        began = time.process_time()
        with in_values() if name == "values" else nullcontext():
            result = pv.importance(fitted, x, options.num_samples, proposal=proposal, seed=1)
        summary = result.summary()
        found[name] = {
            "log_likelihood": round(summary["log_likelihood"], 3),
            "k_hat_above_threshold": round(summary["k_hat_above_threshold"], 3),
            "k_hat_median": round(result.k_hat.median().item(), 3),
            "ess_median": round(result.ess.median().item(), 1),
            "cpu_seconds_a_row": round((time.process_time() - began) / len(x), 4),
        }
    found["elbo"] = round(summary["elbo"], 3)
    found["kl"] = [round(each.mean().item(), 2) for each in pv.kl_by_site(fitted, x, 20, seed=0).values()]
    return found


def main() -> None:
    parser = harness.parser(
        __doc__,
        ["ladder", "ladder-b", "five-b"],
        epochs=6,
        batch_size=50,
        rows=50_000,
        test_rows=60,
        num_samples=1000,
        precision="float32",
    )
    parser.add_argument("--runs", type=Path, help="a folder of fits")
    parser.add_argument("--name", help="of the entry in the file, if there is one net")
    options = harness.parse(parser, epochs=1, rows=100, test_rows=4, num_samples=20)
    torch.set_num_threads(1)
    done = harness.Kept(options, "levels")
    x = torch.bernoulli(harness.mnist(options).test.x[: options.test_rows], generator=torch.Generator().manual_seed(0))
    for net in options.only:
        done.entry(options.name or net, lambda net=net: score(fit(net, options), x, options))


if __name__ == "__main__":
    main()
