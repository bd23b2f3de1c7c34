"""Few labels: M2, M1+M2, ADGM and SDGM on MNIST, beside a network that sees the labelled rows only.

    python benchmarks/papers/labels.py --data-root DIR
    python benchmarks/papers/labels.py --data-root DIR --only M2 --labels 100 --seeds 0 --epochs 20

50,000 training rows, 10,000 validation rows (the last of the training set), 10,000 test rows; labels of as many training rows
of each class. Pixels are binarised anew at every step, and once, from a fixed seed, for evaluation. 784-500-50, ReLU, Adam
with a one-cycle schedule, 100 unlabelled rows a step and up to 50 labelled ones, reweighted; half of the classifier's hidden
units are left out at random in training. The KL weight falls from 5 to 1 over the first nine tenths of 60 epochs: while what z
says is dear, the decoder tells its rows apart by y. M1+M2, whose z1 is to say all of x, has 100 epochs and weight 1 (`OWN`).
M1+M2 in stages: M1 is a VAE of grey values, 784-600-600-50, softplus, fitted once without labels, 150 epochs of 250 rows a
step, whose KL weight rises from 0.1 to 1 in the first quarter; M2 has its codes as data, of the dimensions in use, drawn anew
at every step, and for evaluation their means; KL terms are in closed form. `--m1 FOLDER` keeps the fit of M1 for further calls.
Settings were chosen by the accuracy on 2,000 validation rows at 100 labels and seed 0 (`SETTINGS`), hold for all numbers of
labels, and those of M2 for ADGM.

ADGM and SDGM as published follow the authors' code: a and z of 100 dimensions, networks 500-500 with batch normalisation, 100
labelled and 100 unlabelled rows a step that count alike (`group_weight`), alpha = 0.1 N / N_l, a prior N(0, 1) of weights,
gradients clipped at norm 5, KL weight 1. The authors take 1,000 epochs at a rate of 3e-4, times 0.75 every 200 epochs, and one
or more draws of a; here it is 100 epochs, a one-cycle schedule up to 1e-3, and one draw.
Rows are judged at ten binarisations.

Test rows are scored at the end of a fit, unless --no-test leaves them out while settings are being chosen: by q(y|x), and by
Bayes' rule over the joint model, p(y|x), K = 10 draws a class, with the expected calibration error of both.

Published: Kingma et al. 2014, arXiv:1406.5298, table 1 (M2 88.03 % at 100 labels, M1+M2 96.67 %); Maaloe et al. 2016,
arXiv:1602.05473 (ADGM 99.04 %, SDGM 98.68 %). Writes benchmarks/results/labels-DEVICE.json, fit by
fit; fits that are there are kept unless --again.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.criticism.calibration import expected_calibration_error
from pyrovae.distributions.bernoulli import Bernoulli

D, L, C, H = 784, 50, 10, (500,)
MODELS = ("network", "M2", "M1+M2", "M1+M2 in stages", "ADGM", "ADGM as published", "SDGM as published")
# alpha is 0.1 for all rows together
PUBLISHED: dict[str, Any] = {
    "epochs": 100, "kl_from": 1.0, "alpha": None, "rate": 1e-3, "labelled_size": 100, "transform_draws": 10
}  # fmt: skip
DEFAULTS: dict[str, Any] = {
    "epochs": 60,
    "kl_from": 5.0,
    "alpha": 470.0,
    "batch_size": 100,
    "rate": 3e-3,
    "labelled_size": 50,
    "transform_draws": 1,
    "kl": "draws",
    "latent": L,
    "m1": None,
}
OWN: dict[str, dict[str, Any]] = {
    "M1+M2": {"epochs": 100, "kl_from": 1.0},
    "M1+M2 in stages": {
        "epochs": 120, "kl_from": 1.0, "alpha": 50.0, "batch_size": 98, "rate": 2e-3, "labelled_size": 2, "m1_epochs": 150,
        "kl": "analytic", "latent": 10,
    },
    "ADGM as published": PUBLISHED,
    "SDGM as published": PUBLISHED,
}  # fmt: skip
KEPT = (  # with each fit
    *("epochs", "batch_size", "rate", "alpha", "kl_from", "kl_until", "pixel_dropout", "precision"),
    *("transform_draws", "kl", "latent", "labelled_size"),
)
# At 100 labels, seed 0, bfloat16: the accuracy of q(y|x) on 2,000 validation rows at the end of each fit that was tried.
SETTINGS = {
    "M2": {
        "40 epochs, 200 rows a step, rate 1e-3, alpha 50": 0.4875,
        "40 epochs, 200 rows a step, rate 1e-3, alpha 470": 0.8045,
        "30 epochs, 200 rows a step, rate 1e-3, alpha 470, KL weight from 4 until half": 0.794,
        "30 epochs, 200 rows a step, rate 1e-3, alpha 470, KL weight from 2 until half": 0.8405,
        "30 epochs, 200 rows a step, rate 1e-3, alpha 470, KL weight from 2 until 0.7, dropout 0.5": 0.855,
        "30 epochs, 200 rows a step, rate 3e-3, alpha 470, KL weight from 2 until 0.9": 0.887,
        "30 epochs, 200 rows a step, rate 3e-3, alpha 470, KL weight from 2 until 0.9, dropout 0.5": 0.8925,
        "60 epochs, 200 rows a step, rate 3e-3, alpha 470, KL weight from 2 until 0.9, dropout 0.5": 0.9145,
        "30 epochs, 100 rows a step, rate 3e-3, alpha 470, KL weight from 2 until 0.9, dropout 0.5": 0.904,
        "30 epochs, 100 rows a step, rate 6e-3, alpha 470, KL weight from 2 until 0.9, dropout 0.5": 0.897,
        "30 epochs, 100 rows a step, rate 3e-3, alpha 470, KL weight from 3 until 0.9, dropout 0.5": 0.9225,
        "30 epochs, 100 rows a step, rate 3e-3, alpha 470, KL weight from 5 until 0.9, dropout 0.5": 0.924,
        "30 epochs, 100 rows a step, rate 3e-3, alpha 470, KL weight from 8 until 0.9, dropout 0.5": 0.881,
        "60 epochs, 100 rows a step, rate 3e-3, alpha 470, KL weight from 5 until 0.9, dropout 0.5": 0.9375,
        "the same, and 0.2 of the pixels left out before the classifier": 0.9295,
    },
    "M1+M2": {
        "60 epochs, 100 rows a step, rate 3e-3, alpha 470, KL weight from 5 until 0.9, dropout 0.5": 0.8675,
        "40 epochs, 100 rows a step, rate 3e-3, alpha 470, KL weight 1, dropout 0.5": 0.9395,
        "100 epochs, 100 rows a step, rate 3e-3, alpha 470, KL weight 1, dropout 0.5": 0.9395,
        "30 of 60 epochs, 100 rows a step, rate 3e-3, alpha 470, KL weight from 2 until 0.9, dropout 0.5": 0.904,
    },
    # of 10,000 validation rows, shortly before the end; one M1 for all
    "M1+M2 in stages": {
        "23 epochs, 100 rows a step, rate 2e-3, alpha 50, KL at the draws, 50 dimensions": 0.865,
        "the same, KL weight from 0.3 until half": 0.879,
        "the same, KL weight 1, alpha 500, dropout 0.5": 0.911,
        "the same, KL weight from 2 until half, alpha 500": 0.814,
        "39 epochs, alpha 500, dropout 0.5, KL at the draws": 0.914,
        "39 epochs, alpha 500, dropout 0.5, KL in closed form": 0.956,
        "the same, 10 dimensions": 0.961,
        "the same, 5 dimensions": 0.953,
        "the same, 10 dimensions, alpha 50, no dropout": 0.963,
        "the same, 10 dimensions, alpha 500, dropout 0.5, two hidden layers": 0.962,
        "the same, one hidden layer, classifier of two": 0.958,
        "the same, classifier of one, KL weight from 0.3 until 0.3": 0.952,
        "the same, KL weight 1, alpha 2000": 0.948,
        "118 epochs, alpha 500, dropout 0.5, KL in closed form, 10 dimensions": 0.966,
        "118 epochs, alpha 50, no dropout, KL in closed form, 10 dimensions": 0.971,
    },
}


def rows(mnist: harness.Parts, labelled: int, seed: int) -> dict[str, dict[str, Tensor]]:
    """Training rows with -1 where the label is hidden, validation and test rows."""
    x, y = mnist.train
    hidden = torch.full_like(y, -1)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    for c in range(C):
        chosen = order[y[order] == c][: labelled // C]
        hidden[chosen] = c
    return {
        "train": {"x": x, "y": hidden},
        "validation": mnist.valid._asdict(),
        "test": mnist.test._asdict(),
    }


def classifier(parents: Any = D, dropout: float = 0.0) -> nn.Module:
    head = pv.mlp(parents, fam.Categorical((), C), hidden=H, activation=pv.nets.ReLUDropout(0.5))
    return pv.Conditional(nn.Sequential(nn.Dropout(dropout), head.net), head.family) if dropout else head


def m2(alpha: float, dropout: float) -> nn.Module:
    return pv.SSVAE(
        label_prior=pv.priors.Categorical(C),
        prior=pv.priors.StandardNormal(L),
        likelihood=pv.mlp((L, C), fam.Bernoulli(D), hidden=H),
        encoder=pv.mlp((D, C), fam.Normal(L), hidden=H),
        classifier=classifier(dropout=dropout),
        code=pv.nets.OneHot(C),
        alpha=alpha,
    )


def m1m2(alpha: float, m1: pv.VAE) -> nn.Module:
    return pv.StackedSSVAE(
        label_prior=pv.priors.Categorical(C),
        prior=pv.priors.StandardNormal(L),
        lower=pv.mlp((L, C), fam.Normal(L), hidden=H),
        likelihood=m1.likelihood,
        encoder=m1.encoder,
        classifier=classifier(L),
        upper_encoder=pv.mlp((L, C), fam.Normal(L), hidden=H),
        code=pv.nets.OneHot(C),
        alpha=alpha,
    )


class Grey(Bernoulli):
    """A Bernoulli whose log-density is also taken at grey values: the mean of that of pixels drawn from them."""

    support = torch.distributions.constraints.unit_interval
    has_enumerate_support = False


class GreyBernoulli(fam.Bernoulli):
    def link(self, logits: Tensor) -> Any:
        return Grey(logits)


@functools.cache
def m1(
    x: Tensor, epochs: int, folder: Path | None, engine: str, device: str, precision: str | None
) -> tuple[pv.VAE, pv.Fit]:
    """A VAE of grey values without labels, and of its latent dimensions those in use; one for all numbers of labels."""
    torch.manual_seed(0)
    rate = 2e-3

    def kl(step: pv.schedules.Step) -> dict[str, float]:
        return {"kl": min(1.0, 0.1 + 3.6 * step.progress)}

    wide: dict[str, Any] = {"hidden": (600, 600), "activation": nn.Softplus}
    whole = pv.VAE(pv.priors.StandardNormal(L), pv.mlp(L, GreyBernoulli(D), **wide), pv.mlp(D, fam.Normal(L), **wide))
    fitted = pv.fit(
        whole, x, epochs=epochs, batch_size=min(250, len(x)), loss=pv.Trace_ELBO(kl="analytic"), seed=0,
        schedule=[pv.schedules.one_cycle(rate, warmup=0.1), kl], engine=engine, device=device, precision=precision,
        optimizer=lambda leaves: torch.optim.Adam(leaves, lr=rate, weight_decay=1 / len(x), fused=True),
        checkpoint=folder, resume=folder is not None and folder.exists(),
    )  # fmt: skip
    kept = pv.active_units(pv.encode(fitted, x))
    kept |= ~kept.any()  # of a smoke run none may be in use
    print(f"M1: ELBO {fitted.history[-1]['elbo']:.2f}, {int(kept.sum())} of {L} dimensions in use", flush=True)
    encoder = pv.Marginal(pv.frozen(whole.encoder), kept)
    likelihood = pv.Padded(pv.frozen(whole.likelihood), kept, size=L)
    return pv.VAE(pv.priors.StandardNormal(len(encoder.dims)), likelihood, encoder), fitted


def codes(below: pv.VAE, x: Tensor, *, drawn: bool) -> Tensor:
    """Means and standard deviations of q(z1|x), (N, 2, D); without `drawn` 0 for these, so that z1 is its mean."""
    device = next(below.parameters()).device
    with torch.no_grad():
        found = [below.encoder(rows.to(device)) for rows in x.split(10_000)]
    return torch.cat([torch.stack([q.mean, q.stddev * drawn], 1).cpu() for q in found])


def m2_of_codes(alpha: float, size: int, latent: int) -> pv.SSVAE:
    return pv.SSVAE(
        label_prior=pv.priors.Categorical(C),
        prior=pv.priors.StandardNormal(latent),
        likelihood=pv.mlp((latent, C), fam.Normal(size), hidden=(300,)),
        encoder=pv.mlp((size, C), fam.Normal(latent), hidden=(300,)),
        classifier=pv.mlp(size, fam.Categorical((), C), hidden=(300,)),
        code=pv.nets.OneHot(C),
        alpha=alpha,
    )


def adgm(alpha: float, _: float) -> nn.Module:
    return pv.ADGM(
        label_prior=pv.priors.Categorical(C),
        prior=pv.priors.StandardNormal(L),
        likelihood=pv.mlp((L, C), fam.Bernoulli(D), hidden=H),
        auxiliary=pv.mlp((D, L, C), fam.Normal(L), hidden=H),
        auxiliary_encoder=pv.mlp(D, fam.Normal(L), hidden=H),
        classifier=classifier((L, D)),
        encoder=pv.mlp((L, D, C), fam.Normal(L), hidden=H),
        code=pv.nets.OneHot(C),
        alpha=alpha,
    )


def as_published(name: str, alpha: float) -> nn.Module:
    """ADGM or SDGM of the sizes in the authors' code."""
    size: Any = 100
    how: dict[str, Any] = {"hidden": (500, 500), "activation": pv.nets.BatchNormed()}
    parts: dict[str, Any] = {
        "label_prior": pv.priors.Categorical(C),
        "prior": pv.priors.StandardNormal(size),
        "auxiliary_encoder": pv.mlp(D, fam.Normal(size), **how),
        "classifier": pv.mlp((size, D), fam.Categorical((), C), **how),
        "encoder": pv.mlp((size, D, C), fam.Normal(size), **how),
        "code": pv.nets.OneHot(C),
        "alpha": alpha,
    }
    if name.startswith("ADGM"):
        likelihood, auxiliary = (
            pv.mlp((size, C), fam.Bernoulli(D), **how),
            pv.mlp((D, size, C), fam.Normal(size), **how),
        )
        return pv.ADGM(likelihood=likelihood, auxiliary=auxiliary, **parts)
    likelihood, auxiliary = pv.mlp((size, size, C), fam.Bernoulli(D), **how), pv.mlp((size, C), fam.Normal(size), **how)
    return pv.SDGM(likelihood=likelihood, auxiliary=auxiliary, **parts)


def weight_prior(pair: Any) -> Tensor:
    """-log N(w; 0, 1) of the weights of linear layers, without its constant."""
    return 0.5 * sum((p.square().sum() for p in pair.parameters() if p.dim() > 1), torch.zeros(()))


def fit(name: str, data: dict[str, dict[str, Tensor]], options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One fit, its curve over time, and its scores."""
    torch.manual_seed(seed)  # the one that the models' weights come from
    known = data["train"]["y"] >= 0
    labelled = {n: v[known] for n, v in data["train"].items()}
    shared: dict[str, Any] = {"seed": seed, "device": options.device, "engine": options.engine}

    def kl(step: pv.schedules.Step) -> dict[str, float]:
        return {"kl": options.kl_from + (1 - options.kl_from) * min(1.0, step.progress / options.kl_until)}

    curve: list[dict[str, float]] = []
    watched = {"x": data["validation"]["x"][:2000]}
    truth = data["validation"]["y"][:2000]
    began = time.perf_counter()

    def look(fitted: pv.Fit) -> None:
        if len(fitted.history) % options.every == 0:
            right = pv.encode(fitted, watched, site="y", num_samples=5).cpu() == truth
            found = {
                "epoch": len(fitted.history),
                "seconds": round(time.perf_counter() - began, 1),
                "elbo": round(fitted.history[-1]["elbo"], 3),
                "validation_accuracy": round(right.double().mean().item(), 4),
            }
            curve.append(found)
            print(name, found, flush=True)

    if name == "network":
        return network(labelled, data, options, shared)
    transform: Any = pv.transforms.Binarize()
    more: dict[str, Any] = {"clip_norm": 100.0}
    most = min(options.labelled_size, options.batch_size // 2)
    if name == "M1+M2 in stages":
        how = (options.engine, options.device, options.precision)
        below, _ = m1(data["train"]["x"], options.m1_epochs, options.m1, *how)
        data = {
            part: {"x": codes(below, rows["x"], drawn=part == "train"), "y": rows["y"]} for part, rows in data.items()
        }
        watched["x"] = data["validation"]["x"][:2000]
        pair, transform = (
            m2_of_codes(options.alpha, data["train"]["x"].shape[-1], options.latent),
            pv.transforms.DrawNormal(),
        )
    elif name == "M1+M2":
        vae = pv.VAE(
            pv.priors.StandardNormal(L), pv.mlp(L, fam.Bernoulli(D), hidden=H), pv.mlp(D, fam.Normal(L), hidden=H)
        )
        pv.fit(
            vae, data["train"]["x"], epochs=options.epochs, batch_size=options.batch_size, transform=pv.transforms.Binarize(),
            schedule=pv.schedules.one_cycle(options.rate), **shared,
        )  # fmt: skip
        pair = m1m2(options.alpha, vae)
    elif name.endswith("as published"):
        few, all_rows = int(known.sum()), len(known)
        pair = as_published(name, options.alpha)
        more = {"penalty": weight_prior, "clip_norm": 5.0, "group_weight": {"y": (all_rows - few) / few}}
        most = options.labelled_size
    else:
        pair = {"M2": m2, "ADGM": adgm}[name](options.alpha, options.pixel_dropout)
    fitted = pv.fit(
        pair,
        data["train"],
        epochs=options.epochs,
        batch_size=options.batch_size,
        group_size={"": options.batch_size, "y": min(most, int(known.sum()))},
        schedule=[pv.schedules.one_cycle(options.rate), kl],
        transform=transform,
        loss=pv.Trace_ELBO(kl=None if options.kl == "draws" else options.kl),
        callbacks=[look],
        precision=options.precision,
        **more,
        **shared,
    )
    seconds = round(time.perf_counter() - began, 1)
    scores: dict[str, Any] = {}
    for part, few in (("validation", 2000), ("test", 10_000))[: 1 + options.test]:
        found = pv.classify(
            fitted, {"x": data[part]["x"][:few]}, num_samples=10, transform_draws=options.transform_draws
        )
        scores |= {
            f"{part}_{by}_{what}": round(value, 4)
            for by in ("guide", "joint")
            for what, value in judged(getattr(found, by), data[part]["y"][:few]).items()
        }
    return {"seconds": seconds, "steps": int(fitted.history[-1]["steps"]), **scores, "curve": curve}


def network(
    labelled: dict[str, Tensor], data: dict[str, dict[str, Tensor]], options: argparse.Namespace, shared: dict[str, Any]
) -> dict[str, Any]:
    """p(y|x) alone, fitted to the labelled rows: what the unlabelled ones are worth is the difference."""
    pair = pv.Regression(nn.Identity(), classifier(dropout=options.pixel_dropout))
    fitted = pv.fit(
        pair,
        {"x": labelled["y"], "c": labelled["x"]},
        epochs=max(20, len(data["train"]["x"]) // len(labelled["y"])),
        batch_size=min(100, len(labelled["y"])),
        schedule=pv.schedules.one_cycle(1e-3),
        transform=pv.transforms.Binarize("c"),
        **shared,
    )
    scores: dict[str, Any] = {}
    for part in ("validation", "test")[: 1 + options.test]:
        with fitted.scope():
            c = fitted.evaluation_batch({"x": data[part]["y"], "c": data[part]["x"]})["c"]
            found = pair.likelihood(c).probs.cpu()
        scores |= {f"{part}_guide_{what}": round(v, 4) for what, v in judged(found, data[part]["y"]).items()}
    return {"steps": int(fitted.history[-1]["steps"]), **scores}


def judged(probabilities: Tensor, y: Tensor) -> dict[str, float]:
    return {
        "accuracy": (probabilities.argmax(-1) == y).double().mean().item(),
        "calibration_error": expected_calibration_error(probabilities, y),
        "log_loss": -probabilities[torch.arange(len(y)), y].clamp_min(1e-12).log().mean().item(),
    }


def main() -> None:
    parser = harness.parser(
        __doc__, MODELS, seeds="0,1,2", epochs=None, batch_size=None, rate=None, precision="bfloat16"
    )
    parser.add_argument("--labels", type=harness.integers, default="100,600,1000,3000", help="by commas")
    parser.add_argument("--alpha", type=float)
    parser.add_argument("--labelled-size", type=int, help="labelled rows a step, at most half of the others")
    parser.add_argument("--m1-epochs", type=int, help="of the first of two stages")
    parser.add_argument("--m1", type=Path, help="folder in which the first of two stages is kept")
    parser.add_argument("--kl", choices=("draws", "auto", "analytic"), help="KL terms at the draws or in closed form")
    parser.add_argument("--latent", type=int, help="dimensions of z2 of M1+M2 in stages")
    parser.add_argument("--kl-from", type=float, help="KL weight at the start, from where it goes to 1")
    parser.add_argument("--kl-until", type=float, default=0.9, help="share of the fit after which the KL weight is 1")
    parser.add_argument(
        "--pixel-dropout", type=float, default=0.0, help="share of pixels left out before the classifier"
    )
    parser.add_argument("--no-test", dest="test", action="store_false", help="score validation rows only")
    parser.add_argument("--every", type=int, default=5, help="epochs between points of the curve")
    options = harness.parse(parser, seeds="0", epochs=1, labels="200", batch_size=400, every=1, m1_epochs=3)
    done = harness.Kept(options, "labels", settings=SETTINGS)
    mnist = harness.mnist(options)

    def measure(name: str, labelled: int, seed: int) -> dict[str, Any]:
        given = {n: v for n, v in vars(options).items() if v is not None}
        chosen = argparse.Namespace(**DEFAULTS | OWN.get(name, {}) | given)
        if chosen.alpha is None:
            chosen.alpha = 0.1 * len(mnist.train.y) / labelled
        found = fit(name, rows(mnist, labelled, seed), chosen, seed)
        return {"model": name, "labels": labelled, "seed": seed, **{n: getattr(chosen, n) for n in KEPT}, **found}

    for name in options.only:
        for labelled in options.labels:
            for seed in options.seeds:
                key = f"{name}, {labelled} labels, seed {seed}"
                done.entry(key, lambda name=name, labelled=labelled, seed=seed: measure(name, labelled, seed))
    report(done)


def report(done: dict[str, Any]) -> None:
    """Test accuracy in per cent, mean over seeds and their spread."""
    for name in MODELS:
        for labelled in sorted({entry["labels"] for entry in done.values()}):
            fits = [e for e in done.values() if (e["model"], e["labels"]) == (name, labelled)]
            if not fits:
                continue
            line = f"{name:8} {labelled:5} labels, {len(fits)} seeds:"
            for by in ("guide", "joint"):
                if f"test_{by}_accuracy" in fits[0]:
                    reached = 100 * torch.tensor([e[f"test_{by}_accuracy"] for e in fits])
                    error = torch.tensor([e[f"test_{by}_calibration_error"] for e in fits])
                    spread = f" (sd {reached.std():.2f})" if len(fits) > 1 else ""
                    line += f"  {by} {reached.mean():.2f} %{spread}, calibration error {error.mean():.3f}"
            print(line)


if __name__ == "__main__":
    main()
