"""How much does a proposal that is refined for each row add? log p(x), k-hat, ESS and CPU time, beside the guide's.

    python benchmarks/proposals.py [--only plain,m2,...] [--epochs 100]

fits the digits with several models, estimates log p(x) of their test rows with 1,000 draws of each proposal, on one thread, and
adds the figures to benchmarks/results/proposals-cpu.json. The coverage is of linear-Gaussian pairs, whose log p(x) is known,
under a displaced guide: the share of rows within 1.96 stated standard errors. Five minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.pairs import linear_gaussian  # noqa: E402

import pyrovae as pv  # noqa: E402
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="runs, separated by commas; coverage is one, too")
    parser.add_argument("--epochs", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.only.split(",") if given.only else [*RUNS, "coverage"]
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names:
        if name == "coverage":
            kept[name] = coverage()
        else:
            options = Options.of("fit", epochs=given.epochs, **RUNS[name])
            with tempfile.TemporaryDirectory() as folder:
                run = fit_run(load("digits"), options, Path(folder) / "run", progress=False)
                kept[name] = {**measure(run), "epochs": given.epochs}
        kept["torch"] = str(torch.__version__)
        print(name, json.dumps(kept[name], indent=1), flush=True)
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
