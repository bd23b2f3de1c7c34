"""Estimators of Kingma and Welling 2014 (arXiv:1312.6114) and of what followed, on scikit-learn's digits.

    python benchmarks/papers/aevb.py
    python benchmarks/papers/aevb.py --only noise

The digits, grey levels of 17 steps, the first 1,400 rows to train on and the other 397 to test on, in scikit-learn's order,
binarised anew at every step; 64-200-D, tanh, Bernoulli, Adam with a one-cycle schedule, batch 100. Test rows are binarised
once.

    noise     the variance of gradients (`pv.gradient_variance`, 100 minibatches) after 2 epochs and after 100, D = 10: SGVB A
              and B, sticking the landing, the score function (the same guide, drawn without reparameterisation), importance
              weights, doubly reparameterised ones and reweighted wake-sleep, for M rows a minibatch and L draws a row; rows are
              binarised once, so that draws are the guide's alone
    marginal  log p(x) of 100 test rows, D = 2, against quadrature: draws of the guide and of the refined proposal, annealed
              importance sampling, and the harmonic estimator of appendix D; errors in nats, coverage of the stated 95 %
              interval, CPU seconds
    guide     reweighted wake-sleep beside the importance-weighted bound for K = 2, 5, 10 and 50 draws, 30 epochs, D = 10: log
              p(x) of 100 test rows (refined proposal, 300 draws), what the guide loses, log p(x) - ELBO, and the effective
              sample size of 1,000 of its draws (Le et al. 2018, arXiv:1805.10469)

Writes benchmarks/results/aevb-cpu.json, entry by entry; entries that are there are kept unless --again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import harness
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import load

TRAINING, HIDDEN = 1400, (200,)
DRAWS = (2, 5, 10, 50)


class Drawn(dist.Normal):  # type: ignore[misc]  # Pyro has no types
    """A Normal whose draws have no gradient."""

    has_rsample = False


class Unreparameterised(nn.Module):
    """The same conditional with such Normals, so that a guide learns by the score function."""

    def __init__(self, conditional: nn.Module) -> None:
        super().__init__()
        self.conditional = conditional

    def forward(self, *parents: Tensor) -> Any:
        normal = self.conditional(*parents).base_dist
        return Drawn(normal.loc, normal.scale).to_event(1)


def vae(latent: int) -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(latent),
        pv.mlp(latent, fam.Bernoulli(64), hidden=HIDDEN, activation=nn.Tanh),
        pv.mlp(64, fam.Normal(latent), hidden=HIDDEN, activation=nn.Tanh),
    )


def rows() -> tuple[Tensor, Tensor]:
    """Training rows between 0 and 1, and test rows that are 0 or 1."""
    x = load("digits").x.float() / 16
    return x[:TRAINING], torch.bernoulli(x[TRAINING:], generator=torch.Generator().manual_seed(0))


def fit(
    x: Tensor, latent: int, options: Any, epochs: int, seed: int = 0, loss: Any = None, rate: float = 3e-3
) -> pv.Fit:
    return harness.fit(
        lambda: vae(latent),
        x,
        options,
        seed,
        epochs=epochs,
        batch_size=100,
        loss=loss,
        schedule=pv.schedules.one_cycle(rate),
        transform=pv.transforms.Binarize(),
        progress=False,
    )


# --- noise -------------------------------------------------------------------------------------------------------------

NOISE: dict[str, Callable[[], Any]] = {
    "A, L = 1": lambda: pv.Trace_ELBO(1),
    "A, L = 5": lambda: pv.Trace_ELBO(5),
    "B, L = 1": lambda: pv.Trace_ELBO(1, kl="analytic"),
    "B, L = 5": lambda: pv.Trace_ELBO(5, kl="analytic"),
    "sticking the landing, L = 1": lambda: pv.Trace_ELBO(1, gradient="sticking_the_landing"),
    "score function, L = 1": lambda: pv.Trace_ELBO(1),
    "IWELBO, K = 5": lambda: pv.IWELBO(5),
    "IWELBO, doubly reparameterised, K = 5": lambda: pv.IWELBO(5, "doubly_reparameterised"),
    "RWS, K = 5": lambda: pv.RWS(5),
}


def noise(x: Tensor, options: Any, epochs: int) -> dict[str, Any]:
    fitted = fit(x, 10, options, epochs)
    found = []
    for size in (10, 100):
        for name, loss in NOISE.items():
            pair: Any = fitted
            if name.startswith("score"):
                own = fitted.pair
                pair = pv.VAE(own.prior, own.likelihood, Unreparameterised(own.encoder))
                pair = pv.fit(pair, x, epochs=0, transform=fitted.transform, device=options.device, progress=False)
            made = pv.gradient_variance(
                pair, x, {name: loss()}, batch_size=size, num_batches=options.num_batches, seed=1
            )
            found += [row._asdict() for row in made.rows]
    return {"rows": found, "num_batches": options.num_batches, "epochs": epochs}


def show_noise(entry: dict[str, Any]) -> None:
    print(
        f"after {entry['epochs']} epochs{'':25} {'M':>4} {'parameters':>10} {'variance':>10} {'of draws':>9} {'|E g|^2':>9}"
    )
    for row in entry["rows"]:
        share = row["of_draws"] / row["variance"]
        print(
            f"{row['loss']:40} {row['batch_size']:>4} {row['parameters']:>10} {row['variance']:>10.3g} {share:>9.0%} "
            f"{row['squared_norm']:>9.3g}"
        )


# --- marginal likelihood -------------------------------------------------------------------------------------------------


def marginal(x: Tensor, test: Tensor, options: Any) -> dict[str, Any]:
    fitted, few = fit(x, 2, options, options.epochs), test[: options.test_rows]
    chains = {"num_temperatures": options.temperatures, "num_chains": 16, "num_leapfrog": 5, "seed": 1}
    estimators: dict[str, Callable[[], Any]] = {
        "guide, K = 1,000": lambda: pv.importance(fitted, few, 1000, proposal="guide", seed=1),
        "refined, K = 1,000": lambda: pv.importance(fitted, few, 1000, seed=1),
        "AIS": lambda: pv.ais(fitted, few, **chains),
        "harmonic": lambda: pv.harmonic(fitted, few, num_samples=1600, **{**chains, "num_temperatures": 100}),
    }
    start = time.process_time()
    exact = pv.quadrature(fitted, few)
    found: dict[str, Any] = {
        "quadrature": {
            "log_likelihood": exact.log_likelihood.mean().item(),
            "largest_error": exact.error.max().item(),
            "cpu_seconds": time.process_time() - start,
        }
    }
    for name, estimate in estimators.items():
        start = time.process_time()
        made = estimate()
        seconds = time.process_time() - start
        apart = made.log_likelihood - exact.log_likelihood
        found[name] = {
            "bias": apart.mean().item(),
            "bias_se": (apart.std() / len(apart) ** 0.5).item(),
            "rmse": apart.square().mean().sqrt().item(),
            "largest": apart.abs().max().item(),
            "coverage": (apart.abs() <= 1.96 * made.standard_error).double().mean().item(),
            "cpu_seconds": seconds,
        }
    return {"estimators": found, "test_rows": len(few), "epochs": options.epochs, "temperatures": options.temperatures}


def show_marginal(entry: dict[str, Any]) -> None:
    print(f"{entry['test_rows']} test rows, D = 2")
    for name, row in entry["estimators"].items():
        print(f"{name:20}", {key: round(value, 4) for key, value in row.items()})


# --- guides --------------------------------------------------------------------------------------------------------------

GUIDES: dict[str, Callable[[int], Any]] = {
    "IWELBO": lambda k: pv.IWELBO(k),
    "doubly reparameterised": lambda k: pv.IWELBO(k, "doubly_reparameterised"),
    "RWS, wake": lambda k: pv.RWS(k),
    "RWS, half asleep": lambda k: pv.RWS(k, sleep=0.5),
}


def guide(x: Tensor, test: Tensor, options: Any, name: str, draws: int, seed: int) -> dict[str, Any]:
    fitted = fit(x, 10, options, options.guide_epochs, seed, GUIDES[name](draws))
    log_p = pv.log_likelihood(fitted, test, num_samples=options.num_samples, seed=1)
    own = pv.importance(fitted, test, 1000, proposal="guide", seed=1)
    return {
        "loss": name,
        "draws": draws,
        "seed": seed,
        "log_likelihood": log_p.mean().item(),
        "gap": (log_p - own.elbo).mean().item(),
        "median_ess": own.ess.median().item(),
        "epochs": options.guide_epochs,
        "fit_seconds": harness.end(fitted)["seconds"],
    }


def show_guides(entries: list[dict[str, Any]]) -> None:
    for measured, form in (("log_likelihood", ".2f"), ("gap", ".2f"), ("median_ess", ".0f")):
        print(f"{measured:24}", *(f"{'K = ' + str(k):>24}" for k in DRAWS))
        for name in GUIDES:
            cells = [[e[measured] for e in entries if (e["loss"], e["draws"]) == (name, k)] for k in DRAWS]
            print(f"{name:24}", *(f"{harness.spread(cell, form):>24}" for cell in cells))


def main() -> None:
    parser = harness.parser(
        __doc__,
        ("noise", "marginal", "guide"),
        epochs=100,
        seeds="0",
        test_rows=100,
        num_samples=300,
        engine="traced",
    )
    parser.add_argument("--num-batches", type=int, default=100)
    parser.add_argument("--temperatures", type=int, default=500)
    parser.add_argument("--guide-epochs", type=int, default=30)
    tiny = {"test_rows": 4, "num_samples": 20, "num_batches": 4, "temperatures": 10, "guide_epochs": 1}
    options = harness.parse(parser, needs_files=False, epochs=3, seeds="0", **tiny)
    done = harness.Kept(options, "aevb", inside="entries")
    x, test = rows()
    if "noise" in options.only:
        once = torch.bernoulli(x, generator=torch.Generator().manual_seed(1))
        for epochs in (2, options.epochs):
            show_noise(done.entry(f"noise after {epochs} epochs", lambda e=epochs: noise(once, options, e), ()))
    if "marginal" in options.only:
        show_marginal(done.entry("marginal", lambda: marginal(x, test, options), ()))
    if "guide" in options.only:
        entries = [
            done.entry(
                f"{name}, K = {k}, seed {seed}",
                lambda n=name, k=k, s=seed: guide(x, test[: options.test_rows], options, n, k, s),
                ("gap",),
            )
            for seed in options.seeds
            for k in DRAWS
            for name in GUIDES
        ]
        show_guides(entries)


if __name__ == "__main__":
    main()
