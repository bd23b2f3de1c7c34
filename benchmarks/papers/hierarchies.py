"""Hierarchies of latent variables, a ladder, and importance-weighted bounds on MNIST: log p(x) and the units that are used.

    python benchmarks/papers/hierarchies.py --data-root DIR
    python benchmarks/papers/hierarchies.py --data-root DIR --only five,ladder --rates 2e-3 --picture docs/levels.png

MNIST (DIR/MNIST/raw), the first 50,000 training rows to train on and the last 10,000 to choose by, binarised anew at every step
and once, from a fixed seed, at evaluation. NETS:

one, two    784-200-200-50, and 784-200-200-100-100-100-50, of Burda et al. 2016 (arXiv:1509.00519), bottom-up guides, leaky
            rectifiers: theirs are tanh, with which 30 epochs at 2e-3, without warm-up, left two levels
            at -120 and one at -96
five        z1 to z5 of 64-32-16-8-4 dimensions behind perceptrons of 512-256-128-64-32, two layers each, bottom up
ladder      the same model with the ladder's guide. Sonderby et al. 2016 (arXiv:1602.02282), layer for batch normalisation
five-b, ladder-b  the same two with balanced KL terms while the KL weight warms up (pv.kl.balanced)
iw-5, iw-50 net "one", trained with the bound of K = 5 and 50 draws; that of one draw is the ELBO, and the fit is "one"

Adam with a one-cycle schedule, the same number of epochs for all, the last weights; the KL weight rises from 0 to 1 over
--warmup epochs. Every net is fitted at every rate of --rates with the first seed; the rate with the best log p(x)
of 1,000 validation rows (200 draws) is fitted with every seed, and only then are test rows scored: with --device cuda all
10,000 with K = 5,000 draws, else 2,000 with 1,000. A unit is active if the covariance over rows of two averages of
E_q[z_l | x], each over draws of the levels before it, is above 0.01; the KL of a level is E_q[log q - log p], nats per row.

Writes benchmarks/results/hierarchies-DEVICE.json, fit by fit; what is there is kept unless --again. --picture is samples of a
ladder, and samples with its upper levels held.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from kept import Kept
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data.load import load


class Net(NamedTuple):
    build: Callable[[], pv.HierarchicalVAE | pv.LadderVAE]
    draws: int = 1  # of the bound that trains it
    balanced: bool = False


LEVELS, HIDDEN = (64, 32, 16, 8, 4), (512, 256, 128, 64, 32)
NORMED = pv.nets.LayerNormed(nn.LeakyReLU)
X = fam.Bernoulli(784)


def one() -> pv.HierarchicalVAE:
    return pv.HierarchicalVAE.of_levels(X, (50,), (200,), activation=nn.LeakyReLU)


def five() -> pv.HierarchicalVAE:
    return pv.HierarchicalVAE.of_levels(X, LEVELS, HIDDEN, activation=NORMED)


def ladder() -> pv.LadderVAE:
    return pv.LadderVAE.of_levels(X, LEVELS, HIDDEN, activation=NORMED)


NETS = {
    "one": Net(one),
    "two": Net(lambda: pv.HierarchicalVAE.of_levels(X, (100, 50), (200, 100), activation=nn.LeakyReLU)),
    "five": Net(five),
    "ladder": Net(ladder),
    "five-b": Net(five, balanced=True),
    "ladder-b": Net(ladder, balanced=True),
    "iw-5": Net(one, draws=5),
    "iw-50": Net(one, draws=50),
}


def fit(name: str, x: Tensor, rate: float, seed: int, options: argparse.Namespace) -> pv.Fit:
    torch.manual_seed(seed)
    net = NETS[name]
    schedule: list[Callable[..., Any]] = [pv.schedules.one_cycle(rate)]
    if options.warmup:
        schedule.append(pv.schedules.kl_warmup(options.warmup))
    return pv.fit(
        net.build(),
        x,
        epochs=options.epochs,
        batch_size=options.batch_size,
        loss=pv.IWELBO(net.draws) if net.draws > 1 else pv.Trace_ELBO(kl=pv.kl.balanced() if net.balanced else None),
        schedule=schedule,
        transform=pv.transforms.Binarize(),
        clip_norm=100.0,
        seed=seed,
        device=options.device,
        engine=options.engine,
        precision=options.precision,
    )


def by_level(fitted: pv.Fit, x: Tensor, draws: int = 50) -> dict[str, Any]:
    """Active units and KL of each level, from the data upwards."""
    batch = fitted.evaluation_batch({"x": x})
    kl = pv.kl_by_site(fitted, {"x": x}, draws)
    active = []
    for site in sorted(kl):
        first, second = (pv.encode(fitted, batch, site=site, num_samples=draws, seed=seed).cpu() for seed in (0, 1))
        active.append(int(pv.active_units(first, again=second).sum()))
    return {"active_units": active, "kl": [round(kl[site].mean().item(), 3) for site in sorted(kl)]}


def score(fitted: pv.Fit, x: Tensor, num_samples: int) -> dict[str, Any]:
    began = time.perf_counter()
    summary = pv.importance(fitted, x, num_samples, seed=1).summary()
    history = fitted.history
    last = history[-2:] if len(history) > 1 else [{"seconds": 0.0, "steps": 0}, history[-1]]
    step = (last[1]["seconds"] - last[0]["seconds"]) / (last[1]["steps"] - last[0]["steps"])
    return {
        "log_likelihood": round(summary["log_likelihood"], 3),
        "standard_error_over_rows": round(summary["log_likelihood_se"], 3),
        "elbo": round(summary["elbo"], 3),
        "k_hat_above_0.7": round(summary["k_hat_above_0.7"], 3),
        **by_level(fitted, x),
        "training_bound": round(history[-1]["elbo"], 3),
        "test_rows": len(x),
        "num_samples": num_samples,
        "epochs": len(history),
        "steps": int(history[-1]["steps"]),
        "ms_per_step": round(1000 * step, 3),
        "fit_seconds": round(history[-1]["seconds"], 1),
        "evaluation_seconds": round(time.perf_counter() - began, 1),
        "engine": fitted.settings["engine"],
        "precision": fitted.settings["precision"],
        "batch_size": fitted.settings["batch_size"],
    }


def picture(fitted: pv.Fit, path: Path) -> None:
    """Samples; and, a column each, samples with no level held, with the top one, the top two, ..., at one draw of all."""
    _, axes = plt.subplots(1, 2, figsize=(8, 5), gridspec_kw={"width_ratios": [8, len(LEVELS)]}, layout="constrained")
    samples = pv.generate(fitted, 64, mean=True, seed=0)
    pv.plots.images(samples, (28, 28), 8, ax=axes[0])
    top_down = [f"z{level}" for level in range(len(LEVELS), 0, -1)]
    drawn = pv.simulate(fitted, 1, seed=1)
    columns = [
        pv.generate(fitted, 8, given={s: drawn[s].expand(8, -1) for s in top_down[:held]}, mean=True, seed=0)
        for held in range(len(LEVELS))
    ]
    names = ["none", top_down[0], *(f"{top_down[0]}-{site[1:]}" for site in top_down[1:-1])]
    pv.plots.images(torch.stack(columns, 1).flatten(0, 1), (28, 28), len(LEVELS), ax=axes[1], names=names)
    axes[0].set_title("samples", fontsize=9)
    axes[1].set_title("samples, these levels held", fontsize=9)
    pv.plots.save(list(axes), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--only", default="", help=f"nets, by commas: {', '.join(NETS)}")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--rates", default="5e-3,2e-3", help="peaks, by commas")
    parser.add_argument("--warmup", type=float, default=10.0, help="epochs; 0 for none")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", type=int, default=50_000, help="training rows")
    parser.add_argument("--test-rows", type=int)
    parser.add_argument("--num-samples", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", default="compiled")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--picture", type=Path, help="of the ladder, a file to write")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args()

    device = pv.pair.find_device(options.device).type
    data = load("mnist", data_root=options.data_root)
    assert data.x_test is not None
    train, valid = data.x[:50_000][: options.rows], data.x[50_000:][:1000]
    test = data.x_test[: options.test_rows or (10_000 if device == "cuda" else 2000)]
    num_samples = options.num_samples or (5000 if device == "cuda" else 1000)
    rates, seeds = [float(r) for r in options.rates.split(",")], [int(s) for s in options.seeds.split(",")]
    path = options.out / f"hierarchies-{device}.json"
    done = Kept(path, device, "nets", again=options.again)
    kept: dict[tuple[str, float, int], pv.Fit] = {}

    def fitted(name: str, rate: float, seed: int) -> pv.Fit:
        if (name, rate, seed) not in kept:
            kept[name, rate, seed] = fit(name, train, rate, seed, options)
        return kept[name, rate, seed]

    for name in options.only.split(",") if options.only else NETS:
        entry = done.setdefault(name, {"validation_log_likelihood": {}, "fits": {}})
        tried = entry["validation_log_likelihood"]
        for rate in rates:
            if f"{rate:g}" in tried:
                continue
            try:
                found = pv.log_likelihood(fitted(name, rate, seeds[0]), valid, 200, seed=1).mean().item()
            except pv.NotFiniteError as error:
                print(name, rate, error, flush=True)
                found = -1e30  # worse than any, and JSON
            tried[f"{rate:g}"] = round(found, 3)
            print(f"{name} at {rate:g}: validation log p(x) {found:.2f}", flush=True)
            done.keep(name)
        best = float(max(tried, key=lambda rate: tried[rate]))
        if entry.get("peak_learning_rate", best) != best:  # another rate is better: these were of the former best
            entry["fits"] = {}
        entry |= {"peak_learning_rate": best, "settings_tried": len(tried)}
        entry["warmup"] = options.warmup
        for seed in seeds:
            if str(seed) not in entry["fits"]:
                entry["fits"][str(seed)] = score(fitted(name, best, seed), test, num_samples)
                done.keep(name)
        if name.startswith("ladder") and options.picture:
            picture(fitted(name, best, seeds[0]), options.picture)
        kept.clear()
        report(name, entry)


def report(name: str, entry: dict[str, Any]) -> None:
    fits = list(entry["fits"].values())
    reached = torch.tensor([f["log_likelihood"] for f in fits])
    elbo = torch.tensor([f["elbo"] for f in fits])
    last = fits[0]
    print(
        f"{name:7} NLL {-reached.mean():7.2f} ({-reached.max():.2f} to {-reached.min():.2f}) over {len(fits)} seeds, "
        f"± {last['standard_error_over_rows']:.2f} over rows   -ELBO {-elbo.mean():7.2f}   active units "
        f"{' + '.join(str(n) for n in last['active_units'])}   KL {' + '.join(f'{k:.1f}' for k in last['kl'])}   peak rate "
        f"{entry['peak_learning_rate']:g} of {entry['settings_tried']}   {last['ms_per_step']:.2f} ms a step, "
        f"{last['fit_seconds']:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
