"""When does dropout pay? log p(x) of rows held out, for VAEs of few rows, with and without.

    python benchmarks/dropout.py --data-root DIR [--only digits,MNIST] [--shares 0,0.1,0.2] [--seeds 2]

Of each set a few rows are drawn for training, an eighth as many for validation, and 359 for testing. The model is the default
of `pyrovae fit`: N(0, I) of 10 dimensions, perceptrons of 400 hidden units, some 3,000 steps of 128 rows at a one-cycle rate
up to 3e-3, and the weights of the epoch with the best validation ELBO. The share is that of hidden units left out, of decoder
and encoder. `counts` are MNIST's images at half the size with grey values from 0 to 16, `greys` those of Fashion-MNIST with
some noise, standardised; the pixels of MNIST and Fashion-MNIST are drawn once as 0 or 1. Without --data-root there are
scikit-learn's digits only.

Figures go to benchmarks/results/dropout-cpu.json, fit by fit; fits that are there are kept.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import load

RESULTS = Path(__file__).parent / "results" / "dropout-cpu.json"
CASES = (
    *(("digits", 400), ("digits", 1258), ("counts", 1258), ("MNIST", 1258), ("Fashion-MNIST", 1258)),
    *(("greys", 1258), ("MNIST", 2000), ("MNIST", 4000)),
)
TEST, LATENT, BATCH, STEPS = 359, 10, 128, 3000


def rows(name: str, number: int, seed: int, data_root: str | None) -> tuple[Tensor, Tensor, Tensor, fam.Family]:
    """Training, validation and test rows, and the family of their likelihood."""
    generator = torch.Generator().manual_seed(seed)
    family: fam.Family
    if name == "digits":
        x, family = torch.as_tensor(load_digits().data, dtype=torch.float32), fam.BetaBinomial(64, total_count=16)
    else:
        x = load("fashion-mnist" if name in ("Fashion-MNIST", "greys") else "mnist", data_root=data_root).x
    several = number + number // 8 + TEST
    x = x[torch.randperm(len(x), generator=generator)[:several]]
    if name == "counts":
        x = (16 * x.reshape(-1, 14, 2, 14, 2).mean((2, 4))).round().reshape(len(x), -1)
        family = fam.BetaBinomial(196, total_count=16)
    elif name == "greys":
        x = x.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(len(x), -1) + 0.05 * torch.randn(
            len(x), 196, generator=generator
        )
        x, family = (x - x[:number].mean(0)) / x[:number].std(0), fam.Normal(196, scale="column")
    elif name != "digits":
        x, family = torch.bernoulli(x.reshape(len(x), -1), generator=generator), fam.Bernoulli(784)
    return x[:number], x[number:-TEST], x[-TEST:], family


def one_fit(name: str, number: int, share: float, seed: int, data_root: str | None) -> dict[str, float]:
    train, validation, test, family = rows(name, number, seed, data_root)
    began = time.process_time()
    torch.manual_seed(seed)
    how: dict[str, Any] = {"activation": pv.nets.ReLUDropout(share)} if share else {}
    vae = pv.VAE(
        pv.priors.StandardNormal(LATENT),
        pv.mlp(LATENT, family, **how),
        encoder=pv.mlp(train.shape[1], fam.Normal(LATENT), **how),
    )
    fitted = pv.fit(
        vae, train, epochs=max(20, min(500, math.ceil(STEPS * BATCH / number))), batch_size=BATCH, validation=validation,
        keep_best=True, schedule=pv.schedules.one_cycle(3e-3), seed=seed, engine="traced", threads=1, progress=False,
    )  # fmt: skip
    held, seen = (pv.importance(fitted, x, num_samples=200, seed=0).summary() for x in (test, train[:TEST]))
    return {
        "log_likelihood": round(held["log_likelihood"], 3),
        "elbo": round(held["elbo"], 3),
        "of_training_rows": round(seen["log_likelihood"], 3),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def report(found: dict[str, dict[str, dict[str, dict[str, float]]]]) -> None:
    """Means over seeds, and the mean difference from no dropout within a seed."""
    for case, shares in found.items():
        for share, fits in shares.items():
            mean = {key: statistics.mean(fit[key] for fit in fits.values()) for key in next(iter(fits.values()))}
            line = f"{case}, {share}: log p(x) {mean['log_likelihood']:.2f}, ELBO {mean['elbo']:.2f}"
            both = [seed for seed in fits if seed in shares.get("0.0", {})]
            if share != "0.0" and both:
                for key in ("log_likelihood", "elbo"):
                    apart = [fits[seed][key] - shares["0.0"][seed][key] for seed in both]
                    line += f", {key} {statistics.mean(apart):+.2f} ({', '.join(f'{one:+.2f}' for one in apart)})"
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="folder with the files of MNIST and Fashion-MNIST")
    parser.add_argument("--only", default="", help="sets, by commas")
    parser.add_argument("--shares", default="0,0.2", help="of hidden units left out, by commas")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    only = options.only.split(",") if options.only else ["digits"] if options.data_root is None else None
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for seed in map(str, range(options.seeds)):
        for name, number in CASES:
            for share in map(float, options.shares.split(",")):
                fits = found.setdefault(f"{name}, {number} rows", {}).setdefault(str(share), {})
                if seed in fits or (only is not None and name not in only):
                    continue
                fits[seed] = one_fit(name, number, share, int(seed), options.data_root)
                print(name, number, share, seed, fits[seed], flush=True)
                options.out.write_text(json.dumps(found, indent=1) + "\n")
    report(found)


if __name__ == "__main__":
    main()
