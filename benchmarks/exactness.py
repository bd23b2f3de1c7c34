"""How exact is it? Everything here has a closed form, or a value of Pyro's, to be compared with.

    python benchmarks/exactness.py

prints the figures and writes them to benchmarks/results/exactness.json. Less than a minute on two cores.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the pairs are those of the tests

from support.by_hand import against_by_hand  # noqa: E402
from support.pairs import (  # noqa: E402
    ENUMERATED,
    TABLE,
    LinearGaussian,
    fit_global_mean,
    largest_difference,
    ours,
    pca_comparison,
    pyros,
)

import pyrovae as pv  # noqa: E402
from pyrovae.pair.parameters import param_scope  # noqa: E402


def exact_posterior(rows: int = 100, particles: int = 1000) -> dict[str, float]:
    """Largest |log w - log p(x)| over rows and particles where the guide is the exact posterior, float64."""
    torch.manual_seed(0)
    pair = LinearGaussian(latent=5, columns=20)
    x = pair.marginal().sample((rows,))
    weights = pv.log_weights(pv.terms(pair, {"x": x}, particles))
    return {"largest_deviation": (weights - pair.marginal().log_prob(x)).abs().max().item()}


def against_pyro() -> dict[str, dict[str, dict[str, float]]]:
    """max|a - b| / max|b| of value and gradient (the worst tensor), over 1 and 3 particles, with N/B = 50/7 and
    without, with a KL weight and without. Enumerated pairs without a KL weight, which Pyro's scales cannot say for all, and
    without sites drawn beside enumerated ones, whose surrogates differ (their expectations do not: tests)."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    options: dict[str, Any]
    for row in ENUMERATED:
        if row.score:
            continue
        worst = [0.0, 0.0]
        pair, batch = row.build()
        for particles in (1, 3):
            for num_rows in (None, 50):
                options = {"particles": particles, "num_rows": num_rows}
                pairs = ours(row, pair, batch, **options), pyros(row, pair, batch, **options)
                worst = [max(w, d) for w, d in zip(worst, largest_difference(*pairs))]
        found.setdefault(row.name, {})["TraceEnum_ELBO"] = {"value": worst[0], "gradient": worst[1]}
    for row in TABLE:
        for kl, name in ((None, "Trace_ELBO"), ("analytic", "TraceMeanField_ELBO")):
            if kl is not None and not row.analytic:
                continue
            worst = [0.0, 0.0]
            with param_scope({}):
                pair, batch = row.build()
                for particles in (1, 3):
                    for num_rows in (None, 50):
                        for kl_weight in (None, 0.3):
                            options = {"particles": particles, "num_rows": num_rows, "kl_weight": kl_weight, "kl": kl}
                            pairs = ours(row, pair, batch, **options), pyros(row, pair, batch, **options)
                            worst = [max(w, d) for w, d in zip(worst, largest_difference(*pairs))]
            found.setdefault(row.name, {})[name] = {"value": worst[0], "gradient": worst[1]}
    return found


def sums_over_classes() -> dict[str, dict[str, float]]:
    """max|a - b| / max|b| of M2's loss, and of its gradient (the worst tensor), against the sum over classes by hand."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        for kind, known in (("unlabelled", 0), ("mixed", 15), ("labelled", 40)):
            torch.manual_seed(0)
            apart = [((a - b).abs().max() / b.abs().max()).item() for a, b in against_by_hand(known, dtype)]
            found[f"{kind}, {str(dtype)[6:]}"] = {"value": apart[0], "gradient": max(apart[1:])}
    return found


def main() -> None:
    began = time.monotonic()
    results: dict[str, Any] = {"versions": {"torch": str(torch.__version__), "pyrovae": pv.__version__}}

    results["exact_posterior"] = exact_posterior()
    print(f"exact posterior: largest |log w - log p(x)|  {results['exact_posterior']['largest_deviation']:.1e}")

    results["global_mean"] = {}
    for name, auto in (("guide by hand", False), ("AutoNormal", True)):
        ratio, shift = fit_global_mean(auto)
        results["global_mean"][name] = {"sd_ratio": ratio, "mean_shift_in_sd": shift}
        print(f"global mean, {name}: posterior sd / exact  {ratio:.4f}, mean off by {shift:+.3f} exact sd")

    results["linear_vae"] = {}
    for latent in (2, 10):
        found = pca_comparison(latent)
        results["linear_vae"][f"L={latent}"] = found
        print(
            f"linear VAE, L={latent}: test log p(x)  {found['ours']:.4f}, PCA.score {found['pca_score']:.4f}, "
            f"difference {found['difference']:+.4f}, closed form - importance "
            f"{found['closed_form_minus_importance']:+.5f} (se {found['importance_error']:.5f}) nats per row"
        )

    results["sums_over_classes"] = sums_over_classes()
    print("largest relative difference from M2 by hand    value    gradient")
    for kind, worst in results["sums_over_classes"].items():
        print(f"  {kind:<41} {worst['value']:>9.1e} {worst['gradient']:>9.1e}")

    results["against_pyro"] = against_pyro()
    print("largest relative difference from Pyro          value    gradient")
    for pair, kinds in results["against_pyro"].items():
        for kind, worst in kinds.items():
            print(f"  {pair:<18} {kind:<22} {worst['value']:>9.1e} {worst['gradient']:>9.1e}")
    for part in ("value", "gradient"):
        worst_of_all = max(w[part] for kinds in results["against_pyro"].values() for w in kinds.values())
        results[f"worst_{part}"] = worst_of_all
        print(f"  worst {part}: {worst_of_all:.1e}")

    results["seconds"] = round(time.monotonic() - began, 1)
    out = ROOT / "benchmarks" / "results" / "exactness.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"{results['seconds']} s; written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
