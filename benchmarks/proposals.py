"""How much does a proposal that is refined for each row add? log p(x), k-hat, ESS and CPU time, beside the guide's.

    python benchmarks/proposals.py [--only plain,m2,...] [--epochs 100] [--data-root DIR]

fits the digits with several models, estimates log p(x) of their test rows with 1,000 draws of each proposal, on one thread, and
adds the figures to benchmarks/results/proposals-cpu.json. Five minutes on one core. Four more runs say whether the estimates
are right:

    coverage    share of rows within 1.96 stated standard errors of log p(x), of linear-Gaussian pairs under displaced guides
    quadrature  the same of a VAE of the digits with two latent dimensions, 500 rows, log p(x) by quadrature
    ais         the demo's VAE: 120 test rows against annealed importance sampling, and its gap on simulated rows
    mnist       784-400-20, 5 epochs: k-hat of 500 test images, 50 of them against annealed importance sampling (--data-root)
    deep, wide  the same of two levels of 100 and 50 dimensions, and of one of 200, 20 images against annealing
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.pairs import linear_gaussian  # noqa: E402

import pyrovae as pv  # noqa: E402
from pyrovae import families as fam  # noqa: E402
from pyrovae.app.options import Options  # noqa: E402
from pyrovae.app.run import Run, fit_run  # noqa: E402
from pyrovae.data import load  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "proposals-cpu.json"
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "iaf": {"guide": "iaf"},
    "m2": {"model": "m2", "labelled": 100},
    "hierarchical": {"model": "hierarchical", "levels": (10, 5)},
    "poisson": {"likelihood": "poisson"},
    "mixture prior": {"prior": "mixture"},
}


NONLINEAR = ("quadrature", "ais")
ANNEALING = {"num_temperatures": 1000, "num_leapfrog": 2, "num_chains": 8}


def measure(run: Run, num_samples: int = 1000) -> dict[str, Any]:
    found: dict[str, Any] = {}
    batch = run.rows.batch("test")
    for proposal in ("guide", "refined"):
        start = time.process_time()
        result = pv.importance(run.fitted, batch, num_samples, proposal=proposal, seed=1)
        found[proposal] = {
            "cpu_seconds": time.process_time() - start,
            "log_likelihood": result.log_likelihood.mean().item(),
            "k_hat_above_0.7": (result.k_hat > 0.7).double().mean().item(),
            "ess_median": result.ess.median().item(),
            "standard_error_median": result.standard_error.median().item(),
        }
    return found


def coverage(rows: int = 500) -> dict[str, Any]:
    """Of the stated 95 % interval of a row's log p(x), which is known, under guides moved by so many posterior sds."""
    found = {}
    for shift, spread in ((0.0, 1.0), (1.0, 1.0), (2.0, 0.5)):
        pair, x, fitted = linear_gaussian(rows, shift=shift, spread=spread, latent=5, columns=20)
        exact = pair.marginal().log_prob(x)
        for proposal in ("guide", "refined"):
            result = pv.importance(fitted, x, 1000, proposal=proposal, seed=1)
            error = (result.log_likelihood - exact).abs()
            inside = error < 1.96 * result.standard_error + 1e-9
            found[f"shift {shift}, spread {spread}, {proposal}"] = {
                "coverage": inside.double().mean().item(),
                "mean_error": (result.log_likelihood - exact).mean().item(),
            }
    return found


def by_proposal(fitted: pv.Fit, rows: Any, exact: Tensor, error: Tensor | float = 0.0) -> dict[str, Any]:
    """Estimates with 1,000 draws of each proposal beside log p(x), which is known up to an error of its own."""
    found = {}
    for proposal in ("guide", "refined"):
        result = pv.importance(fitted, rows, 1000, proposal=proposal, seed=1)
        apart = result.log_likelihood - exact
        stated = (result.standard_error.square() + torch.as_tensor(error).square()).sqrt()
        found[proposal] = {
            "mean_difference": apart.mean().item(),
            "mean_difference_se": apart.std().item() / len(apart) ** 0.5,
            "coverage_of_95": (apart.abs() < 1.96 * stated).double().mean().item(),
            "standard_error_median": result.standard_error.median().item(),
            "k_hat_above_0.667": share_above(result.k_hat),
        }
    return found


def share_above(k_hat: Tensor, num_samples: int = 1000) -> float:
    """The share of rows whose k-hat is above the threshold for so many draws."""
    return (k_hat > min(1 - 1 / math.log10(num_samples), 0.7)).double().mean().item()


def against_quadrature(run: Run, rows: int = 500) -> dict[str, Any]:
    """Rows of the data set in its order, test rows first: the encoder has seen the others."""
    x = torch.cat([run.rows.batch(part)["x"] for part in ("test", "train")])[:rows]
    start = time.process_time()
    exact = pv.quadrature(run.fitted, x, num_points=129)
    found = {"rows": rows, "largest_error": exact.error.max().item(), "cpu_seconds": time.process_time() - start}
    return {**found, **by_proposal(run.fitted, x, exact.log_likelihood)}


def against_ais(run: Run, rows: int = 120, simulated: int = 40) -> dict[str, Any]:
    x = run.rows.batch("test")["x"][:rows]
    start = time.process_time()
    chains = pv.ais(run.fitted, x, **ANNEALING, seed=2)
    found: dict[str, Any] = {"rows": rows, **ANNEALING, "cpu_seconds": time.process_time() - start}
    found["ais_log_likelihood"] = chains.log_likelihood.mean().item()
    found["ais_monte_carlo_se"] = chains.summary()["monte_carlo_se"]
    start = time.process_time()
    found["bdmc"] = pv.bdmc(run.fitted, x[:simulated], **ANNEALING, seed=3).summary()
    found["bdmc"] |= {"rows": simulated, "cpu_seconds": time.process_time() - start}
    return {**found, **by_proposal(run.fitted, x, chains.log_likelihood, chains.standard_error)}


def fit_mnist(data: Any, epochs: int) -> pv.Fit:
    """784-400-20 after a short fit, dynamically binarised: the training of benchmarks/mnist.py, with fewer epochs."""
    torch.manual_seed(0)
    vae = pv.VAE(pv.priors.StandardNormal(20), pv.mlp(20, fam.Bernoulli(784)), pv.mlp(784, fam.Normal(20)))
    return pv.fit(
        vae,
        data.x,
        epochs=epochs,
        batch_size=256,
        schedule=pv.schedules.one_cycle(1e-2),
        transform=pv.transforms.Binarize(),
        seed=0,
        progress=False,
    )


# models of many dimensions, as `pyrovae fit mnist` makes them
LARGE: dict[str, dict[str, Any]] = {
    "deep": {"model": "hierarchical", "levels": (100, 50)},
    "wide": {"latent": 200},
}


def mnist(data_root: str, name: str, epochs: int = 5, rows: int = 500) -> dict[str, Any]:
    data = load("mnist", data_root=data_root)
    assert data.x_test is not None
    if name == "mnist":
        fitted, annealed = fit_mnist(data, epochs), 50
    else:
        with tempfile.TemporaryDirectory() as folder:
            options = Options.of("fit", epochs=epochs, **LARGE[name])
            fitted = fit_run(data, options, Path(folder) / "run", progress=False).fitted
        annealed = 20
    found: dict[str, Any] = {"epochs": epochs, "rows": rows}
    for proposal in ("guide", "refined"):
        start = time.process_time()
        result = pv.importance(fitted, data.x_test[:rows], 1000, proposal=proposal, seed=1)
        found[proposal] = {
            "cpu_seconds": time.process_time() - start,
            "log_likelihood": result.log_likelihood.mean().item(),
            "k_hat_above_0.667": share_above(result.k_hat),
            "k_hat_above_0.7": (result.k_hat > 0.7).double().mean().item(),
            "ess_median": result.ess.median().item(),
        }
    options = {"num_temperatures": 800, "num_leapfrog": 2, "num_chains": 6}
    x = data.x_test[:annealed]
    start = time.process_time()
    chains = pv.ais(fitted, x, **options, seed=2)
    found["ais"] = {"rows": annealed, **options, "cpu_seconds": time.process_time() - start}
    found["ais"] |= by_proposal(fitted, x, chains.log_likelihood, chains.standard_error)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="runs, separated by commas; coverage is one, too")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--data-root", help="folder with MNIST's files")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.only.split(",") if given.only else [*RUNS, "coverage", *NONLINEAR]
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names:
        if name == "coverage":
            kept[name] = coverage()
        elif name == "mnist" or name in LARGE:
            kept[name] = mnist(given.data_root, name)
        else:
            more = {"latent": 2} if name == "quadrature" else RUNS.get(name, {})
            ask = {"quadrature": against_quadrature, "ais": against_ais}.get(name, measure)
            options = Options.of("fit", epochs=given.epochs, **more)
            with tempfile.TemporaryDirectory() as folder:
                run = fit_run(load("digits"), options, Path(folder) / "run", progress=False)
                kept[name] = {**ask(run), "epochs": given.epochs}
        kept["torch"] = str(torch.__version__)
        print(name, json.dumps(kept[name], indent=1), flush=True)
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
