"""One VAE of discrete codes, trained by five estimators of the same gradient.

A row has 3 codes of 4 categories, so that all 64 values can be listed: log p(x) is exact whatever the estimator was, and
summing out the codes is one of the five. The others do what is done where there are too many codes to list: relaxed draws
(Gumbel-softmax), exact draws with a borrowed gradient (straight-through), and the score function, with a network as baseline
(NVIL) or with several draws a row, the others each one's baseline (VIMCO). Model and prior are the same for all; only the
family of the guide or the loss is another. The data are 8 x 8 digits, black or white. Jang et al. 2017, arXiv:1611.01144; Mnih
and Gregor 2014, arXiv:1402.0030; Mnih and Rezende 2016, arXiv:1602.06725.
"""

import argparse
from typing import Any

import pyro
import torch
from sklearn.datasets import load_digits

import pyrovae as pv
from pyrovae import families as fam

CODES = (3, 4)


def build(family: fam.Family) -> pv.CategoricalVAE:
    torch.manual_seed(0)
    return pv.CategoricalVAE(
        prior=pv.priors.OneHotCategorical(CODES),
        likelihood=pv.mlp(12, fam.Bernoulli(64), hidden=(64,)),
        encoder=pv.mlp(64, family, hidden=(64,)),
    )


def summed_out(pair: pv.CategoricalVAE) -> pv.Pair:
    """The same pair, with the codes summed out under the guide."""
    return pv.Pair(pair.model, pyro.infer.config_enumerate(pair.guide, "parallel"))


def main(smoke: bool, epochs: int) -> None:
    x = (torch.tensor(load_digits().data, dtype=torch.float32) > 8).float()
    torch.manual_seed(0)
    x = x[torch.randperm(len(x))]
    x_train, x_test = x[:1437], x[1437:]
    epochs = 1 if smoke else epochs
    exact, relaxed, hard = fam.OneHotCategorical, fam.RelaxedOneHotCategorical, fam.StraightThroughOneHotCategorical
    cooling = [pv.schedules.cooling(1.0, 0.5, epochs=epochs / 2)]
    baseline = pv.baselines.learned(pv.nets.MLP(64, 1, hidden=(64,)))
    ways: dict[str, tuple[Any, Any, list[Any]]] = {
        "summed out": (exact(CODES), pv.Trace_ELBO(), []),
        "relaxed": (relaxed(CODES), pv.Trace_ELBO(kl="analytic"), cooling),
        "straight-through": (hard(CODES), pv.Trace_ELBO(kl="analytic"), []),
        "score, NVIL": (exact(CODES), pv.Trace_ELBO(baseline=baseline), []),
        "score, VIMCO": (exact(CODES), pv.IWELBO(5), []),
    }
    for name, (family, loss, schedules) in ways.items():
        pair = build(family)
        fitted = pv.fit(
            summed_out(pair) if name == "summed out" else pair,
            x_train,
            epochs=epochs,
            loss=loss,
            schedule=[pv.schedules.one_cycle(3e-3), *schedules],
            seed=0,
        )
        relaxed_bound = fitted.history[-1].get("relaxed_elbo")
        by_sum = pv.importance(pv.fit(summed_out(pair), x_train, epochs=0), x_test, 1, proposal="guide")
        print(
            f"{name:17s} log p(x) {by_sum.log_likelihood.mean():.2f}, ELBO {by_sum.elbo.mean():.2f}"
            + (f"; the relaxed bound of training rows was {relaxed_bound:.2f}" if relaxed_bound else "")
        )
    most = pv.encode(fitted, x_test[:5]).argmax(-1)
    print(f"codes of five digits: {most.tolist()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    parser.add_argument("--epochs", type=int, default=60)
    main(**vars(parser.parse_args()))
