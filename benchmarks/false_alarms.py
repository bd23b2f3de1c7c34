"""How often does a report find something wrong with a healthy fit? 200 fits of a small model, whose guide is exact.

    python benchmarks/false_alarms.py [--fits 200]

Each fit is that of probabilistic principal components to 1,000 new rows of 6 columns, in closed form (Tipping & Bishop 1999),
with the exact posterior as its guide; `pv.criticise` then looks at 200 rows held out and 200 training rows. The stated rate: if
the parameters were the true ones, at most 1 % of the reports would have a verdict that rests on a test and is not "ok". What is
measured includes verdicts that rest on no test, and the error of estimated parameters. Five minutes on one core; the figures go
to benchmarks/results/false-alarms-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.pairs import LinearGaussian, unfitted  # noqa: E402

import pyrovae as pv  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "false-alarms-cpu.json"
COLUMNS, LATENT, TRAINING, HELD_OUT = 6, 2, 1000, 200


def principal_components(x: Tensor) -> LinearGaussian:
    """The maximum-likelihood fit of x = W z + b + noise, with its exact posterior."""
    pair = LinearGaussian(LATENT, COLUMNS)
    values, vectors = torch.linalg.eigh(x.T.cov(correction=0))
    noise = values[:-LATENT].mean()
    pair.weight[:] = vectors[:, -LATENT:] * (values[-LATENT:] - noise).sqrt()
    pair.bias[:] = x.mean(0)
    pair.noise = noise.sqrt().item()
    return pair


def report(seed: int) -> pv.Report:
    torch.manual_seed(seed)
    x = LinearGaussian(LATENT, COLUMNS).marginal().sample((TRAINING + HELD_OUT,))
    fitted = unfitted(principal_components(x[:TRAINING]), x[:2])
    how: dict[str, Any] = {"num_rows": HELD_OUT, "num_samples": 200, "proposal": "guide", "seed": seed}
    return pv.criticise(fitted, x[TRAINING:], train=x[:TRAINING], **how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    alarms: list[dict[str, Any]] = []
    p_values: dict[str, list[float]] = {}
    for seed in range(given.fits):
        found = report(seed)
        for finding in found.findings:
            if finding.p_value is not None:
                p_values.setdefault(finding.name, []).append(finding.p_value)
        wrong = found.of("look", "bad", "none")
        alarms += [{"seed": seed, "finding": f.name, "verdict": f.verdict, "says": f.says} for f in wrong]
    seeds = {alarm["seed"] for alarm in alarms}
    low, high = pv.calibration.share_interval(len(seeds) / given.fits, given.fits)
    result = {
        "fits": given.fits,
        "reports_with_an_alarm": len(seeds),
        "share": len(seeds) / given.fits,
        "interval_95": [low, high],
        "stated": 0.01,
        "alarms": alarms,
        "share_of_p_below_0.05": {name: sum(v < 0.05 for v in p) / len(p) for name, p in p_values.items()},
        "tests_in_a_report": len(p_values),
        "cpu_seconds": time.process_time() - start,
        "torch": str(torch.__version__),
    }
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
