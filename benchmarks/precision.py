"""Matrix products in bfloat16 beside float32: does a fit to MNIST reach the same held-out numbers, and how much sooner?

    python benchmarks/precision.py --data-root DIR [--seeds 3] [--epochs 20]

Dynamically binarised, batch 256, Adam with a one-cycle schedule up to 3e-3, compiled; 784-400-20 and 784-500-500-50. For each
seed both precisions have the same start, batches and noise, and their fits take turns. The ELBO is that of all test images,
binarised once, ten draws; log p(x) is that of the first 1,000, 1,000 draws of refined proposals. Told are
means over seeds, and of the differences within a seed the mean and its standard error. Seconds are of the whole fit, with
compiling. Writes benchmarks/results/precision-cpu.json.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import load

SHAPES = {"784-400-20": (20, (400,)), "784-500-500-50": (50, (500, 500))}
PRECISIONS = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="folder with MNIST's files")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "precision-cpu.json")
    options = parser.parse_args()
    data = load("mnist", data_root=options.data_root)
    assert data.x_test is not None
    found: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores {platform.machine()}, {options.threads} threads, torch {torch.__version__}",
        "epochs": options.epochs,
        "seeds": options.seeds,
    }
    for shape in SHAPES:
        fits: dict[str, list[dict[str, float]]] = {name: [] for name in PRECISIONS}
        for seed in range(options.seeds):
            for name in PRECISIONS:
                fits[name].append(one_fit(shape, name, seed, data.x, data.x_test, options))
                print(shape, name, seed, fits[name][-1], flush=True)
        found[shape] = {name: {k: mean([fit[k] for fit in of]) for k in of[0]} for name, of in fits.items()}
        for what in ("elbo", "log_likelihood"):
            apart = [half[what] - full[what] for full, half in zip(*(fits[name] for name in PRECISIONS))]
            error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
            found[shape][f"{what}, bfloat16 minus float32"] = {"mean": mean(apart), "se": round(error, 3)}
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def one_fit(
    shape: str, precision: str, seed: int, x: torch.Tensor, x_test: torch.Tensor, options: argparse.Namespace
) -> dict[str, float]:
    latent, hidden = SHAPES[shape]
    torch.manual_seed(seed)
    vae = pv.VAE(
        pv.priors.StandardNormal(latent),
        pv.mlp(latent, fam.Bernoulli(784), hidden[::-1]),
        pv.mlp(784, fam.Normal(latent), hidden),
    )
    began = time.perf_counter()
    fitted = pv.fit(
        vae,
        x,
        epochs=options.epochs,
        batch_size=256,
        schedule=pv.schedules.one_cycle(3e-3),
        transform=pv.transforms.Binarize(),
        engine="compiled",
        precision=precision,
        threads=options.threads,
        seed=seed,
        progress=False,
    )
    seconds = time.perf_counter() - began
    elbo = pv.importance(fitted, x_test, num_samples=10, proposal="guide", seed=1).summary()["elbo"]
    log_likelihood = pv.importance(fitted, x_test[:1000], num_samples=1000, seed=1).summary()["log_likelihood"]
    return {"seconds": round(seconds, 1), "elbo": round(elbo, 3), "log_likelihood": round(log_likelihood, 3)}


def mean(values: list[float]) -> float:
    return round(statistics.mean(values), 3)


if __name__ == "__main__":
    main()
