"""Classes of grey images by a model of binary ones: which rule to judge them by.

    python benchmarks/papers/grey.py
    python benchmarks/papers/grey.py --only ADGM --seeds 0

M2, with and without dropout in its classifier, and ADGM, 64-128-8, for scikit-learn's digits as grey values from 0 to 1: 1,437
training rows, of which 100 have a label. Pixels are binarised anew at every step (`transforms.Binarize`), 60 epochs. 360
validation rows are judged, K = 100 draws a class, by

    one draw      their binarisation from a fixed seed
    arithmetic    the mean of p(y | x) over 20 binarisations, K / 20 draws of the latent sites at each
    geometric     the normalised geometric mean over the same 20: what `pv.classify` does
    grey          the grey values themselves, for which a Bernoulli's log p(x | z, y) is its mean over binarisations

by the classifier q(y | x) and by Bayes' rule over the joint model, p(y | x): accuracy, log-loss in nats, expected calibration
error. No other rows are looked at, since the rule is chosen by these. Writes benchmarks/results/grey-DEVICE.json, fit by fit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import harness
import labels
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.criticism.calibration import expected_calibration_error
from pyrovae.data import load

D, L, C, DRAWS = 64, 8, 10, 20
GRAPHS = ("M2", "M2 with dropout", "ADGM")
RULES = ("one draw", "arithmetic", "geometric", "grey")


def graph(name: str) -> nn.Module:
    activation: Any = pv.nets.ReLUDropout(0.5) if name.endswith("dropout") else nn.ReLU
    parts: dict[str, Any] = {
        "label_prior": pv.priors.Categorical(C),
        "prior": pv.priors.StandardNormal(L),
        "likelihood": pv.mlp((L, C), labels.GreyBernoulli(D), hidden=(128,)),
        "code": pv.nets.OneHot(C),
        "alpha": 200.0,
    }

    def net(parents: Any, family: Any = None) -> Any:
        return pv.mlp(parents, fam.Normal(L) if family is None else family, hidden=(128,))

    def classifier(parents: Any) -> Any:
        return pv.mlp(parents, fam.Categorical((), C), hidden=(128,), activation=activation)

    if name == "ADGM":
        parts |= {"auxiliary": net((D, L, C)), "auxiliary_encoder": net(D)}
        return pv.ADGM(classifier=classifier((L, D)), encoder=net((L, D, C)), **parts)
    return pv.SSVAE(classifier=classifier(D), encoder=net((D, C)), **parts)


def judged(p: Tensor, y: Tensor) -> dict[str, float]:
    p = p.clamp_min(1e-6) / p.clamp_min(1e-6).sum(-1, keepdim=True)
    return {
        "accuracy": round((p.argmax(-1) == y).double().mean().item(), 4),
        "log_loss": round(-p.gather(1, y[:, None]).log().mean().item(), 4),
        "calibration_error": round(expected_calibration_error(p, y), 4),
    }


def measure(name: str, seed: int, options: Any) -> dict[str, Any]:
    digits = load("digits")
    assert digits.x is not None and digits.y is not None
    order = torch.randperm(len(digits.x), generator=torch.Generator().manual_seed(seed))
    x, truth = digits.x[order].flatten(1) / 16, digits.y[order]
    y = truth.clone()
    y[100:] = -1
    train, valid = slice(0, 1437), slice(1437, None)
    fitted = harness.fit(
        lambda: graph(name), {"x": x[train], "y": y[train]}, options, seed, epochs=options.epochs, batch_size=100,
        group_size={"y": 50}, schedule=pv.schedules.one_cycle(3e-3), transform=pv.transforms.Binarize(), progress=False,
    )  # fmt: skip
    plain = dataclasses.replace(fitted, transform=None, untransformed={})  # which takes rows as they are
    draws = [fitted.parts(x[valid], draw)[0].batch["x"] for draw in range(DRAWS)]
    each = [pv.classify(plain, rows, num_samples=100 // DRAWS, seed=number) for number, rows in enumerate(draws)]
    found: dict[str, Any] = {
        "one draw": pv.classify(fitted, x[valid], transform_draws=1),
        "geometric": pv.classify(fitted, x[valid], transform_draws=DRAWS),
        "grey": pv.classify(plain, x[valid]),
    }
    scores = {}
    for by in ("guide", "joint"):
        p = {rule: getattr(one, by) for rule, one in found.items()}
        p["arithmetic"] = torch.stack([getattr(one, by) for one in each]).mean(0)
        scores |= {f"{by}, {rule}": judged(p[rule], truth[valid]) for rule in RULES}
    return {"graph": name, "seed": seed, **scores}


def main() -> None:
    parser = harness.parser(__doc__, GRAPHS, engine="traced", seeds="0,1,2,3,4", epochs=60)
    options = harness.parse(parser, needs_files=False, seeds="0", epochs=1)
    done = harness.Kept(options, "grey")
    for name in options.only:
        for seed in options.seeds:
            done.entry(f"{name}, seed {seed}", lambda name=name, seed=seed: measure(name, seed, options), ("graph",))
    for name in GRAPHS:
        fits = [entry for entry in done.values() if entry["graph"] == name]
        for by in ("guide", "joint"):
            for rule in RULES if fits else ():
                means = {
                    what: sum(entry[f"{by}, {rule}"][what] for entry in fits) / len(fits)
                    for what in ("accuracy", "log_loss", "calibration_error")
                }
                print(
                    f"{name:16} {by:6} {rule:11} {len(fits)} fits: accuracy {100 * means['accuracy']:.1f} %, log-loss "
                    f"{means['log_loss']:.3f}, calibration error {means['calibration_error']:.3f}"
                )


if __name__ == "__main__":
    main()
