"""Disentanglement: objectives that press the dimensions of a code to be independent, on sprites whose factors are known.

    python benchmarks/papers/disentanglement.py
    python benchmarks/papers/disentanglement.py --epochs 20 --only plain,beta-TCVAE --seeds 0

`pyrovae.data.sprites`: 10,000 training images of 24 x 24 black and white pixels, other 3,000 to score, of 36,864 combinations
of shape (3), scale (6), angle (8), x and y (16 each). p(z) = N(0, I) of ten dimensions, Bernoulli pixels, two hidden layers of
128 ReLU units in either network, Adam with a one-cycle schedule, batches of 64, the last weights.

OBJECTIVES change an option of the fit, never the pair. Their weights are those of the papers' experiments with dSprites where
these name one, and were not tuned here: beta = 6 of the beta-TCVAE, by its "weighted" estimate (Chen et al. 2018,
arXiv:1802.04942), gamma = 35 of the FactorVAE (Kim and Mnih 2018, arXiv:1802.05983; its discriminator here has two hidden
layers of 128 units and the pair's learning rate), lambda = 10 of DIP-VAE-II (Kumar et al. 2018, arXiv:1711.00848), a capacity
of 25 nats that opens over half of the fit (Burgess et al. 2018, arXiv:1804.03599, at gamma = 100 instead of 1000).

Of the 3,000 rows: MIG, DCI, SAP, the scores of FactorVAE and of BetaVAE and InfoMEC of the means of q(z | x); of 1,000 of them
the ELBO, and of 2,000 the KL in its three parts, with q(z) over these rows. Pictures, of the first seed: traversals of the six
dimensions whose means vary most, from -2 to 2, from the first image; one for each objective.

Writes benchmarks/results/disentanglement-DEVICE.json, fit by fit, and disentanglement-OBJECTIVE-DEVICE.png; fits that are there
are kept unless --again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import harness
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import sprites
from pyrovae.fitted.spec import to_spec

SIZE, UNITS, HIDDEN, SHOWN_UNITS, STEPS = 24, 10, (128, 128), 6, 9

OBJECTIVES: dict[str, Callable[[], Any]] = {
    "plain": lambda: None,
    "beta 4": lambda: pv.kl.beta(4.0),
    "beta 16": lambda: pv.kl.beta(16.0),
    "capacity": lambda: pv.kl.capacity(25.0, gamma=100.0),
    "DIP-II": lambda: pv.kl.dip(10.0, 10.0, of="codes"),
    "FactorVAE": lambda: pv.kl.density_ratio(35.0, pv.nets.MLP(UNITS, 1, hidden=(128, 128))),
    "beta-TCVAE": lambda: pv.kl.total_correlation(6.0),
    "beta-TCVAE stratified": lambda: pv.kl.total_correlation(6.0, estimator="stratified"),
}


def build() -> pv.VAE:
    return pv.VAE(
        prior=pv.priors.StandardNormal(UNITS),
        likelihood=pv.mlp(UNITS, fam.Bernoulli(SIZE**2), hidden=HIDDEN, activation=nn.ReLU),
        encoder=pv.mlp(SIZE**2, fam.Normal(UNITS), hidden=HIDDEN, activation=nn.ReLU),
    )


def fit(x: Tensor, name: str, seed: int, options: argparse.Namespace) -> pv.Fit:
    torch.manual_seed(seed)  # of the discriminator
    kl = OBJECTIVES[name]()
    schedule: list[Any] = [pv.schedules.one_cycle(options.rate)]
    if isinstance(kl, pv.kl.capacity):
        schedule.append(pv.schedules.kl_warmup(options.epochs / 2))
    loss = pv.Trace_ELBO(kl="analytic" if kl is None else kl)
    return harness.fit(
        build,
        x,
        options,
        seed,
        epochs=options.epochs,
        batch_size=options.batch_size,
        loss=loss,
        schedule=schedule,
        progress=False,
    )


def scores(fitted: pv.Fit, x: Tensor, factors: Tensor) -> dict[str, Any]:
    codes = pv.encode(fitted, x).cpu()
    dci, mec = pv.disentanglement.dci(codes, factors), pv.disentanglement.infomec(codes, factors)
    parts = pv.kl_parts(fitted, x[:2000], num_samples=1)["z"]
    found = {
        "mig": pv.disentanglement.mig(codes, factors),
        "disentanglement": dci.disentanglement,
        "completeness": dci.completeness,
        "informativeness": dci.informativeness,
        "sap": pv.disentanglement.sap(codes, factors),
        "factor_vae_score": pv.disentanglement.factor_vae_score(codes, factors),
        "beta_vae_score": pv.disentanglement.beta_vae_score(codes, factors),
        "modularity": mec.modularity,
        "explicitness": mec.explicitness,
        "compactness": mec.compactness,
        "elbo": pv.importance(fitted, x[:1000], 20, proposal="guide", seed=1).summary()["elbo"],
        "kl": parts.kl,
        "information": parts.information,
        "total_correlation": parts.total_correlation,
        "dimension_wise": parts.dimension_wise,
    }
    return {name: round(value, 4) for name, value in found.items()}


def traversals(fitted: pv.Fit, x: Tensor) -> Tensor:
    """Images along each of the dimensions whose means vary most, of the first of these rows, as rows of pixels."""
    codes = pv.encode(fitted, x)
    z = codes[0].repeat(SHOWN_UNITS, STEPS, 1)
    for row, unit in enumerate(codes.var(0).argsort(descending=True)[:SHOWN_UNITS].tolist()):
        z[row, :, unit] = torch.linspace(-2, 2, STEPS)
    return pv.decode(fitted, {"z": z.flatten(0, 1)})


SHOWN = ("mig", "disentanglement", "factor_vae_score", "elbo", "information", "total_correlation", "fit_seconds")


def main() -> None:
    parser = harness.parser(
        __doc__, OBJECTIVES, epochs=50, rate=3e-3, batch_size=64, seeds="0,1,2", rows=10_000, test_rows=3_000
    )
    options = harness.parse(parser, needs_files=False, epochs=1, seeds="0", rows=300, test_rows=200)
    done = harness.Kept(options, "disentanglement")
    data = sprites(options.rows + options.test_rows, size=SIZE)
    assert data.factors is not None
    x, rest, factors = data.x[: options.rows], data.x[options.rows :], data.factors[options.rows :]

    def measure(name: str, seed: int) -> dict[str, Any]:
        fitted = fit(x, name, seed, options)
        if seed == options.seeds[0]:
            picture = pv.plots.images(traversals(fitted, rest).cpu(), (SIZE, SIZE), columns=STEPS, vmax=1)
            pv.plots.save(
                picture, options.out / f"disentanglement-{name.replace(' ', '-')}-{options.device}.png", dpi=50
            )
        return {
            "objective": name,
            "kl_function": to_spec(OBJECTIVES[name]()),
            "seed": seed,
            **scores(fitted, rest, factors),
            "training_elbo": harness.end(fitted)["elbo"],
            "epochs": options.epochs,
            "peak_learning_rate": options.rate,
            "training_rows": len(x),
            "scored_rows": len(rest),
            "fit_seconds": harness.end(fitted)["seconds"],
            "engine": fitted.settings["engine"],
        }

    fits = [
        done.entry(f"{name} seed {seed}", lambda name=name, seed=seed: measure(name, seed), SHOWN)
        for seed in options.seeds
        for name in options.only
    ]
    table(fits, options.only)


def table(fits: list[dict[str, Any]], names: list[str]) -> None:
    """A line an objective: means over seeds, and of MIG the least and the greatest."""
    columns = {
        "mig": "MIG",
        "disentanglement": "D",
        "completeness": "C",
        "informativeness": "I",
        "factor_vae_score": "FactorVAE",
        "elbo": "ELBO",
        "information": "I(x; z)",
        "total_correlation": "TC",
        "dimension_wise": "dim. KL",
    }
    print(f"{'':22}" + "".join(f"{title:>{20 if name == 'mig' else 10}}" for name, title in columns.items()))
    for name in names:
        own = [f for f in fits if f["objective"] == name]
        cells = [harness.spread((f["mig"] for f in own), ".3f")]
        cells += [f"{sum(f[column] for f in own) / len(own):.3f}" for column in list(columns)[1:]]
        print(f"{name:22}{cells[0]:>20}" + "".join(f"{cell:>10}" for cell in cells[1:]))


if __name__ == "__main__":
    main()
