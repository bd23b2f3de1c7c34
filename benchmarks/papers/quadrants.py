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
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.criticism.prior_as_guide import with_prior_as_guide

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


def binarised_mnist(options: argparse.Namespace) -> tuple[Tensor, ...]:
    """Training, validation and test images, (50000, 784) and (10000, 784) twice, of 0 and 1."""
    parts = [rows.x for rows in harness.mnist(options)]
    images = torch.bernoulli(torch.cat(parts), generator=torch.Generator().manual_seed(0))
    return images.split([len(part) for part in parts])


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


BUILDS: dict[str, Callable[[int], nn.Module]] = {"baseline": baseline, "cvae": cvae}


def main() -> None:
    parser = harness.parser(__doc__, ("1", "2", "3"), rates="1e-3,3e-3", seeds="0", test_rows=10_000, num_samples=1000)
    parser.add_argument(
        "--epochs", type=harness.integers, default="20,40", help="at most, of baseline and conditional VAE"
    )
    parser.add_argument("--patience", type=int, default=8)
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs")
    options = harness.parse(parser, epochs="1,1", rates="1e-3", only=["1"], test_rows=20, num_samples=20, pictures=None)
    pictures = options.pictures or options.out
    done = harness.Kept(options, "quadrants", "parts")
    images = binarised_mnist(options)
    for part in options.only:
        if part not in done:
            done[part] = complete(part, images, pictures / f"quadrants-{part}.png", options)
            done.keep(part)
            print(json.dumps(done[part]["seeds"]), flush=True)
    report(done)


def complete(part: str, images: tuple[Tensor, ...], picture: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What is measured with so many quadrants seen, and a picture of completions."""
    seen = seen_pixels(int(part))
    train, valid, test = (split(some, seen) for some in images)
    few = {name: values[:2000] for name, values in valid.items()}

    def choose(name: str, epochs: int, num_samples: int) -> tuple[dict[str, Any], dict[int, pv.Fit]]:
        """How the learning rate was chosen, and the fit of each seed at the best one."""

        @functools.cache
        def fit(rate: float, seed: int) -> pv.Fit:
            return harness.fit(
                lambda: BUILDS[name](train["c"].shape[1]),
                train,
                options,
                seed,
                epochs=epochs,
                batch_size=256,
                schedule=pv.schedules.one_cycle(rate),
                validation=valid,
                patience=options.patience,
            )

        tried: dict[str, float] = {}
        best = harness.best_rate(
            options.rates,
            lambda rate: pv.log_likelihood(fit(rate, options.seeds[0]), few, num_samples, seed=1).mean().item(),
            tried,
            f"{part} {name}",
        )
        about = {
            "validation_log_likelihood": tried,
            "peak_learning_rate": best,
            "epochs_at_most": epochs,
            "patience": options.patience,
        }
        return about, {seed: fit(best, seed) for seed in options.seeds}

    found: dict[str, Any] = {}
    fits: dict[str, dict[int, pv.Fit]] = {}
    for name, epochs, num_samples in zip(BUILDS, options.epochs, (1, 100)):
        found[name], fits[name] = choose(name, epochs, num_samples)
    test = {name: values[: options.test_rows] for name, values in test.items()}
    found["seeds"] = [score(fits, seed, test, options.num_samples) for seed in options.seeds]
    first = options.seeds[0]
    draw(fits["baseline"][first], fits["cvae"][first], images[2], seen, picture)
    return found


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
        "fit_seconds": harness.end(fitted)["seconds"],
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
