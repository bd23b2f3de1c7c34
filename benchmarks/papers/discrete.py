"""Discrete codes by eight estimators of one gradient: bounds on static MNIST, and bias and variance where all can be summed.

    python benchmarks/papers/discrete.py --data-root DIR
    python benchmarks/papers/discrete.py --data-root DIR --only relaxed,learned --epochs 10 --seeds 0
    python benchmarks/papers/discrete.py --only small

ESTIMATORS, which differ in the guide's family and in the loss, and in nothing else:

relaxed           Gumbel-softmax, temperature 1 to 0.5 over the first half of the fit, the KL in closed form
relaxed-hard      exact draws with the gradient of these (straight-through Gumbel-softmax)
straight-through  exact draws with the gradient of the probabilities
score             the score function with nothing subtracted
rows              less the mean signal of the other rows of the minibatch
learned           less what a perceptron of 100 units predicts from the row, and the mean over rows (NVIL)
draws-5           five draws a row, less the mean signal of the other four
vimco-5           the importance-weighted bound of five draws, with VIMCO's baseline
exact             all values of the codes summed, for the small model only

MNIST: the static binarisation of Larochelle and Murray 2011 (DIR/binarized_mnist/binarized_mnist.npz), 20 codes of 10
categories, 784-200-(20 x 10)-200-784, ReLU, Adam with a one-cycle schedule, minibatches of 100, the same number of steps and
the same rate for all, the last weights. The ELBO is that of 10,000 test rows, ten draws each, the importance-weighted bound of
1,000 draws that of 500 of them. Jang et al. 2017 (arXiv:1611.01144, table 1) give the negative ELBO of such a model as 101.5
for Gumbel-softmax, 110.6 for the score function, 107.0 for MuProp and 110.9 for straight-through, after longer fits.

small: 3 codes of 4 categories (64 values) of scikit-learn's digits, binarised at 8, 64-32-(3 x 4)-32-64. First all are compared
at the same weights, those after --small-epochs epochs of exact summing: the gradient of 50 rows in the guide's parameters,
--draws times. Its bias is that of the mean gradient and its noise the square root of the summed variances, both divided by the
length of the exact gradient; what the noise would make of a mean without bias is subtracted from the bias. For vimco-5, whose
bound is another one, there is no bias to state. Then each estimator fits the pair from one start; log p(x) of the test rows,
all 64 values summed, is what it ends at.

Writes benchmarks/results/discrete-DEVICE.json, fit by fit; what is there is kept unless --again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
import pyro
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import load


class Estimator(NamedTuple):
    family: Callable[[Any], fam.Family]
    loss: Callable[[int], Any]  # for rows of so many columns
    cools: bool = False


def analytic(_: int) -> pv.Trace_ELBO:
    return pv.Trace_ELBO(kl="analytic")


def learned(columns: int) -> pv.Trace_ELBO:
    return pv.Trace_ELBO(baseline=pv.baselines.learned(pv.nets.MLP(columns, 1, hidden=(100,))))


def hard(event: Any) -> fam.Family:
    return fam.RelaxedOneHotCategorical(event, hard=True)


ESTIMATORS = {
    "relaxed": Estimator(fam.RelaxedOneHotCategorical, analytic, cools=True),
    "relaxed-hard": Estimator(hard, analytic, cools=True),
    "straight-through": Estimator(fam.StraightThroughOneHotCategorical, analytic),
    "score": Estimator(fam.OneHotCategorical, lambda _: pv.Trace_ELBO(baseline=None)),
    "rows": Estimator(fam.OneHotCategorical, lambda _: pv.Trace_ELBO()),
    "learned": Estimator(fam.OneHotCategorical, learned),
    "draws-5": Estimator(fam.OneHotCategorical, lambda _: pv.Trace_ELBO(5)),
    "vimco-5": Estimator(fam.OneHotCategorical, lambda _: pv.IWELBO(5)),
}


def build(family: Callable[[Any], fam.Family], columns: int, codes: tuple[int, int], width: int) -> pv.CategoricalVAE:
    return pv.CategoricalVAE(
        prior=pv.priors.OneHotCategorical(codes),
        likelihood=pv.mlp(codes[0] * codes[1], fam.Bernoulli(columns), hidden=(width,)),
        encoder=pv.mlp(columns, family(codes), hidden=(width,)),
    )


def schedule(estimator: Estimator, rate: float, epochs: int) -> list[Any]:
    cooling = [pv.schedules.cooling(1.0, 0.5, epochs=max(1, epochs / 2))] if estimator.cools else []
    return [pv.schedules.one_cycle(rate), *cooling]


def ms_per_step(fitted: pv.Fit) -> float | None:
    """Between the ends of the second and the last epoch: the first one contains the trace."""
    early, last = fitted.history[1 if len(fitted.history) > 2 else 0], fitted.history[-1]
    steps = last["steps"] - early["steps"]
    return round(1000 * (last["seconds"] - early["seconds"]) / steps, 2) if steps else None


# --- MNIST -------------------------------------------------------------------------------------------------------------


def static_mnist(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    if options.smoke:
        return tuple(torch.bernoulli(torch.full((200, 784), 0.3)) for _ in range(2))  # type: ignore[return-value]
    found = np.load(Path(options.data_root) / "binarized_mnist" / "binarized_mnist.npz")
    train, test = (torch.tensor(np.unpackbits(found[part], axis=1), dtype=torch.float32) for part in ("train", "test"))
    return train, test[
        torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    ]  # the file has them by class


def on_mnist(name: str, seed: int, train: Tensor, test: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    estimator = ESTIMATORS[name]
    fitted = harness.fit(
        lambda: build(estimator.family, 784, (20, 10), 200),
        train,
        options,
        seed,
        epochs=options.epochs,
        batch_size=options.batch_size,
        loss=estimator.loss(784),
        schedule=schedule(estimator, options.rate, options.epochs),
    )
    elbo = pv.importance(fitted, test, 10, seed=1, proposal="guide").elbo
    found = harness.scores(pv.importance(fitted, test[:500], options.num_samples, seed=1, proposal="guide"))
    return {
        "negative_elbo": round(-elbo.mean().item(), 2),
        "standard_error_over_rows": round((elbo.std() / len(elbo) ** 0.5).item(), 2),
        "negative_iwae_bound": round(-found["log_likelihood"], 2),
        "negative_elbo_of_the_same_rows": round(-found["elbo"], 2),
        "num_samples": options.num_samples,
        "relaxed_elbo": fitted.history[-1].get("relaxed_elbo"),
        "rate": options.rate,
        "epochs": options.epochs,
        "ms_per_step": ms_per_step(fitted),
        **harness.end(fitted),
        "engine": fitted.settings["engine"],
    }


# --- the small model ---------------------------------------------------------------------------------------------------


def gradient(pair: Any, loss: Any, x: Tensor, encoder: Any) -> Tensor:
    parameters = list(encoder.parameters())
    objective = loss(pair, {"x": x}).objective / len(x)
    return torch.cat([g.flatten() for g in torch.autograd.grad(objective, parameters)]).double()


def summed(pair: pv.CategoricalVAE) -> pv.Pair:
    """The pair with a guide that sums out its codes."""
    return pv.Pair(pair.model, pyro.infer.config_enumerate(pair.guide, "parallel"))


def with_family(pair: pv.CategoricalVAE, family: fam.Family) -> pv.CategoricalVAE:
    encoder = pv.Conditional(pair.encoder.net, family)  # type: ignore[arg-type]
    return pv.CategoricalVAE(pair.prior, pair.likelihood, encoder)


class Small(NamedTuple):
    """The rows of the small model, the pair at which gradients are compared, and the exact one of `rows` there."""

    train: Tensor
    test: Tensor
    rows: Tensor
    pair: pv.CategoricalVAE
    exact: Tensor
    ms_per_step: float | None


SMALL_CODES = (3, 4)


def start() -> pv.CategoricalVAE:
    torch.manual_seed(0)
    return build(fam.OneHotCategorical, 64, SMALL_CODES, 32)


def fit_small(pair: Any, x: Tensor, options: argparse.Namespace, **how: Any) -> pv.Fit:
    more: dict[str, Any] = {"device": "cpu", "engine": options.engine, "progress": False, "seed": 0}
    return pv.fit(pair, x, epochs=options.small_epochs, batch_size=50, **more, **how)


def log_p(pair: pv.CategoricalVAE, data: Small) -> float:
    """log p(x) of test rows, all codes summed."""
    fitted = pv.fit(summed(pair), data.train, epochs=0, progress=False, device="cpu")
    return round(pv.importance(fitted, data.test, 1, proposal="guide").log_likelihood.mean().item(), 2)


def prepare(options: argparse.Namespace) -> Small:
    x = (load("digits").x > 8).float()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    train, test, pair = x[:1400], x[1400:], start()
    fitted = fit_small(summed(pair), train, options, schedule=pv.schedules.one_cycle(options.small_rate))
    exact = gradient(summed(pair), pv.Trace_ELBO(), train[:50], pair.encoder)
    return Small(train, test, train[:50], pair, exact, ms_per_step(fitted))


def noise_and_bias(name: str, data: Small, options: argparse.Namespace) -> dict[str, Any]:
    """By temperature, of the gradient at the weights of `data.pair`, over the length of the exact one."""
    estimator, found = ESTIMATORS[name], {}
    for temperature in (1.0, 0.5, 0.1) if estimator.cools else (None,):
        family: Any = estimator.family(SMALL_CODES)
        if temperature is not None:
            family.current_temperature.fill_(temperature)
        trial, loss = with_family(data.pair, family), estimator.loss(64)
        if name == "learned":  # it is compared once it has learned, with the pair held fixed
            optimizer = torch.optim.Adam(loss.baseline.net.parameters(), 1e-2)
            for _ in range(options.draws):
                optimizer.zero_grad()
                batch = data.train[torch.randperm(len(data.train))[:50]]
                (-loss(trial, {"x": batch}).objective / 50).backward()
                optimizer.step()
        torch.manual_seed(1)
        drawn = torch.stack([gradient(trial, loss, data.rows, trial.encoder) for _ in range(options.draws)])
        noise, length = drawn.var(0).sum(), data.exact.norm()
        entry = {"noise": round((noise.sqrt() / length).item(), 3)}
        if name != "vimco-5":
            bias = ((drawn.mean(0) - data.exact).square().sum() - noise / len(drawn)).clamp_min(0.0).sqrt()
            entry["bias"] = round((bias / length).item(), 4)
            entry["error_of_bias"] = round(((noise / len(drawn)).sqrt() / length).item(), 4)
        found["" if temperature is None else f"{temperature:g}"] = entry
    return found


def on_small(name: str, data: Small, options: argparse.Namespace) -> dict[str, Any]:
    if name == "exact":
        return {"ms_per_step": data.ms_per_step, "log_likelihood": log_p(data.pair, data)}
    estimator, pair = ESTIMATORS[name], start()
    begun = with_family(pair, estimator.family(SMALL_CODES))
    schedules = schedule(estimator, options.small_rate, options.small_epochs)
    fitted = fit_small(begun, data.train, options, loss=estimator.loss(64), schedule=schedules)
    return {
        "at_temperature" if estimator.cools else "gradient": noise_and_bias(name, data, options),
        "ms_per_step": ms_per_step(fitted),
        "log_likelihood": log_p(begun, data),
    }


def main() -> None:
    parser = harness.parser(
        __doc__,
        only=(*ESTIMATORS, "small"),
        engine="traced",
        batch_size=100,
        epochs=100,
        rate=2e-3,
        num_samples=1000,
        seeds=(0,),
    )
    parser.add_argument("--draws", type=int, default=2000, help="gradients of the small model")
    parser.add_argument("--small-epochs", type=int, default=60)
    parser.add_argument("--small-rate", type=float, default=5e-3)
    smoke = {"epochs": 1, "num_samples": 3, "draws": 3, "small_epochs": 1}
    options = harness.parse(parser, needs_files=False, **smoke)
    done = harness.Kept(options, "discrete")
    fits = [name for name in options.only if name != "small"]
    if fits:
        if options.data_root is None and not options.smoke:
            parser.error("the following arguments are required: --data-root")
        train, test = static_mnist(options)
        for name in fits:
            for seed in options.seeds:
                entry = f"{name}, {options.epochs} epochs, seed {seed}"
                done.entry(entry, lambda n=name, s=seed: on_mnist(n, s, train, test, options))
    if "small" in options.only:
        data = prepare(options)
        for name in ("exact", *ESTIMATORS):
            done.entry(f"small, {name}", lambda n=name: on_small(n, data, options))


if __name__ == "__main__":
    main()
