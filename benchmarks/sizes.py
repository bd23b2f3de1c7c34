"""Totals of rows drawn from a model of counts, with a size factor and without: `pyrovae fit`, on simulated cells.

    python benchmarks/sizes.py [--seeds 3]

1,500 cells of three kinds and 300 genes; depths are log-normal, counts negative binomial. Printed are log p(x) of the test
rows, nats a row, and mean and quantiles of the totals of 2,000 rows that are drawn.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.app.options import Options
from pyrovae.app.run import fit_run
from pyrovae.data.load import read


def cells(seed: int, rows: int = 1500, genes: int = 300) -> np.ndarray:
    """Counts, `(rows, genes)`."""
    random = np.random.default_rng(seed)
    shares = np.exp(random.normal(0, 1.5, (3, genes)))
    shares /= shares.sum(1, keepdims=True)
    depth = np.exp(np.log(1500) + 0.6 * random.normal(size=rows))
    mean = shares[random.integers(0, 3, rows)] * depth[:, None]
    return random.poisson(random.gamma(3, mean / 3))


def shown(totals: Tensor) -> str:
    low, middle, high = totals.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    return f"totals {totals.mean():.0f} in the mean, 5, 50 and 95 %: {low:.0f}, {middle:.0f}, {high:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cells.csv"
            names = ",".join(f"g{i}" for i in range(300))
            np.savetxt(path, cells(seed), fmt="%d", delimiter=",", header=names, comments="")
            dataset = read(str(path))
            print(f"seed {seed}, data:    {shown(dataset.x.sum(1))}", flush=True)
            for size in ("none", "latent"):
                options = Options.of("fit", seed=seed, size_factor=size)
                run = fit_run(dataset, options, Path(folder) / size, device="cpu", threads=1, progress=False)
                log_p = pv.log_likelihood(run.fitted, run.rows.batch("test"), 300, seed=0)
                drawn = shown(pv.generate(run.fitted, 2000, seed=0).sum(1))
                print(f"seed {seed}, {size:7}: {drawn}; log p(x) {log_p.mean():.2f}", flush=True)


if __name__ == "__main__":
    main()
