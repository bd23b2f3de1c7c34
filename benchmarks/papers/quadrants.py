"""Completing MNIST digits from 1, 2 or 3 of their quadrants: a conditional VAE against the plain network, in nats an image.

    python benchmarks/papers/quadrants.py --data-root DIR

Seen: bottom left; the left half; all but bottom right. c are the seen pixels and x the hidden ones, as vectors. All 70,000
images (DIR/MNIST) are binarised once, pixel ~ Bernoulli(intensity) from seed 0; the first 50,000 train, the other 10,000 of the
training file validate, the official 10,000 test. The baseline is p(x|c) of independent pixels by an MLP of 500-500 units,
ReLU; the conditional VAE has p(z|c), p(x|z,c) and q(z|x,c) of such an MLP each and 50 latents. Both: Adam, batch 256,
one-cycle, early stopping on the validation rows' ELBO. Each is fitted at every peak rate of --rates with the first seed; the
best on validation rows (log p(x|c); K = 100, 2,000 rows) is fitted with every seed of --seeds; only then are test rows scored.

Four numbers that published tables mix up, apart: the baseline's log p(x|c), which is exact; the ELBO of the conditional VAE;
the prior Monte Carlo estimate log (1/K) sum_k p(x|z_k,c), z_k ~ p(z|c); the importance-sampled log p(x|c) with the guide as
proposal. The latter three are lower bounds in expectation. Sohn, Lee & Yan 2015; Pyro's tutorial "Conditional VAE".

Writes benchmarks/results/quadrants-DEVICE.json, part by part, and docs/quadrants-N.png; parts that are there are kept unless
--again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kept import Kept
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import data
from pyrovae import families as fam
from pyrovae.criticism.prior_monte_carlo import with_prior_as_guide

L, HIDDEN = 50, (500, 500)
ROOT = Path(__file__).parents[2]
Rows = dict[str, Tensor]


def seen_pixels(quadrants: int) -> Tensor:
    """Which of the 28 x 28 pixels are seen, (784,) bool: bottom left, then top left, then top right."""
    seen = torch.zeros(28, 28, dtype=torch.bool)
    seen[14:, :14] = True
    seen[:14, :14] = quadrants > 1
    seen[:14, 14:] = quadrants > 2
    return seen.flatten()


def binarised_mnist(root: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test images, (50000, 784) and (10000, 784) twice, of 0 and 1."""
    found = data.load("mnist", data_root=root)
    assert found.x_test is not None
    images = torch.cat([found.x, found.x_test])
    images = torch.bernoulli(images, generator=torch.Generator().manual_seed(0))
    return images[:50_000], images[50_000:60_000], images[60_000:]


def split(images: Tensor, seen: Tensor) -> Rows:
    return {"x": images[:, ~seen], "c": images[:, seen]}


def baseline(seen: int) -> pv.Regression:
    return pv.Regression(nn.Identity(), pv.mlp(seen, fam.Bernoulli(784 - seen), hidden=HIDDEN))


def cvae(seen: int) -> pv.CVAE:
    return pv.CVAE(
        condition=nn.Identity(),
        prior=pv.mlp(seen, fam.Normal(L), hidden=HIDDEN),
        likelihood=pv.mlp((L, seen), fam.Bernoulli(784 - seen), hidden=HIDDEN),
        encoder=pv.mlp((784 - seen, seen), fam.Normal(L), hidden=HIDDEN),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--epochs", default="20,40", help="at most, of baseline and conditional VAE")
    parser.add_argument("--patience", type=int, default=8)
    parser.add_argument("--rates", default="1e-3,3e-3", help="peaks, by commas")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--test-rows", type=int, default=10_000)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--only", default="1,2,3", help="numbers of quadrants, by commas")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", default="compiled")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs")
    options = parser.parse_args()

    epochs = dict(zip(("baseline", "cvae"), map(int, options.epochs.split(","))))
    rates = [float(rate) for rate in options.rates.split(",")]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    images = binarised_mnist(options.data_root)
    device = pv.pair.find_device(options.device).type
    path = options.out / f"quadrants-{device}.json"
    done = Kept(path, device, "parts", again=options.again)

    def fit(name: str, build: Callable[[int], nn.Module], rows: tuple[Rows, ...], rate: float, seed: int) -> pv.Fit:
        torch.manual_seed(seed)
        return pv.fit(
            build(rows[0]["c"].shape[1]),
            rows[0],
            epochs=epochs[name],
            batch_size=256,
            schedule=pv.schedules.one_cycle(rate),
            validation=rows[1],
            patience=options.patience,
            seed=seed,
            device=options.device,
            engine=options.engine,
        )

    for part in options.only.split(","):
        if part in done:
            continue
        seen = seen_pixels(int(part))
        rows = tuple(split(some, seen) for some in images)
        test = {name: values[: options.test_rows] for name, values in rows[2].items()}
        valid = {name: values[:2000] for name, values in rows[1].items()}
        chosen: dict[str, dict[int, pv.Fit]] = {}
        found: dict[str, Any] = {}
        for name, build in (("baseline", baseline), ("cvae", cvae)):
            tried, fits = {}, {}
            for rate in rates:
                fits[rate] = fit(name, build, rows, rate, seeds[0])
                num_samples = 1 if name == "baseline" else 100
                tried[rate] = pv.log_likelihood(fits[rate], valid, num_samples, seed=1).mean().item()
                print(
                    f"{part} {name} at {rate:g}: validation log p(x|c) {tried[rate]:.2f}, "
                    f"epoch {best_epoch(fits[rate])} of {len(fits[rate].history)}, {fits[rate].history[-1]['seconds']:.0f} s",
                    flush=True,
                )
            best = max(tried, key=lambda rate: tried[rate])
            chosen[name] = {s: fits[best] if s == seeds[0] else fit(name, build, rows, best, s) for s in seeds}
            found[name] = {
                "validation_log_likelihood": {f"{rate:g}": round(value, 3) for rate, value in tried.items()},
                "peak_learning_rate": best,
                "epochs_at_most": epochs[name],
                "patience": options.patience,
            }
        found["seeds"] = [score(chosen, seed, test, options.num_samples) for seed in seeds]
        picture = options.pictures / f"quadrants-{part}.png"
        draw(chosen["baseline"][seeds[0]], chosen["cvae"][seeds[0]], images[2], seen, picture)
        done[part] = found
        done.keep(part)
        print(json.dumps(found["seeds"]), flush=True)
    report(done)


def score(chosen: dict[str, dict[int, pv.Fit]], seed: int, test: Rows, num_samples: int) -> dict[str, Any]:
    """Test rows under the baseline and the conditional VAE of one seed, nats an image; the gain row by row."""
    began = time.perf_counter()
    plain, fitted = chosen["baseline"][seed], chosen["cvae"][seed]
    exact = pv.log_likelihood(plain, test, 1)
    guided = pv.importance(fitted, test, num_samples, seed=1)
    prior = pv.importance(with_prior_as_guide(fitted), test, num_samples, seed=1)

    def mean(values: Tensor) -> float:
        return round(values.mean().item(), 3)

    gain = guided.log_likelihood - exact
    return {
        "seed": seed,
        "baseline_log_likelihood": mean(exact),
        "elbo": mean(guided.elbo),
        "prior_monte_carlo": mean(prior.log_likelihood),
        "prior_monte_carlo_ess": mean(prior.ess),
        "importance_log_likelihood": mean(guided.log_likelihood),
        "importance_ess": mean(guided.ess),
        "k_hat_above_0.7": mean((guided.k_hat > 0.7).double()),
        "standard_error_over_rows": round(guided.summary()["log_likelihood_se"], 3),
        "gain": mean(gain),
        "gain_standard_error": round(gain.std().item() / len(gain) ** 0.5, 3),
        "gain_of_elbo": mean(guided.elbo - exact),
        "gain_of_prior_monte_carlo": mean(prior.log_likelihood - exact),
        "baseline_best_epoch": best_epoch(plain),
        "cvae_best_epoch": best_epoch(fitted),
        "fit_seconds": round(fitted.history[-1]["seconds"], 1),
        "evaluation_seconds": round(time.perf_counter() - began, 1),
        "engine": fitted.settings["engine"],
        "test_rows": len(exact),
        "num_samples": num_samples,
    }


def best_epoch(fitted: pv.Fit) -> int:
    """The epoch whose weights were kept."""
    return int(max(fitted.history, key=lambda epoch: epoch["validation_elbo"])["epoch"])


def draw(plain: pv.Fit, fitted: pv.Fit, images: Tensor, seen: Tensor, path: Path, number: int = 8) -> None:
    """A line an image: what is seen, five completions E[x|z,c] of z ~ p(z|c), the baseline's mean, the truth."""
    truth = images[:number]
    c = truth[:, seen]

    def whole(hidden: Tensor | float) -> Tensor:
        made = torch.full_like(truth, 0.4)
        made[:, seen] = c
        made[:, ~seen] = torch.as_tensor(hidden)
        return made

    completions = [pv.generate(fitted, number, given={"c": c}, mean=True, seed=s).cpu() for s in range(5)]
    mean = pv.generate(plain, number, given={"c": c}, mean=True, seed=0).cpu()
    columns = [whole(0.4), *map(whole, completions), whole(mean), truth]
    lines = torch.stack(columns, 1).flatten(0, 1)
    ax = pv.plots.images(lines, (28, 28), columns=len(columns))
    names = ["seen", *(f"draw {k}" for k in range(1, 6)), "baseline's\nmean", "truth"]
    ax.set_xticks([29 * column + 13.5 for column in range(len(names))], names)
    ax.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    pv.plots.save(ax, path, dpi=120)


def report(done: dict[str, Any]) -> None:
    for part, found in sorted(done.items()):
        for entry in found["seeds"]:
            print(
                f"{part} seen, seed {entry['seed']}: baseline {entry['baseline_log_likelihood']:8.2f}   "
                f"ELBO {entry['elbo']:8.2f}   prior Monte Carlo {entry['prior_monte_carlo']:8.2f}   "
                f"importance {entry['importance_log_likelihood']:8.2f} ± {entry['standard_error_over_rows']:.2f}   "
                f"gain {entry['gain']:6.2f} ± {entry['gain_standard_error']:.2f}"
            )


if __name__ == "__main__":
    main()
