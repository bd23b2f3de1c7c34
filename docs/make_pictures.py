"""The picture at the top of the README, from two fits of scikit-learn's handwritten digits; a minute or two on a CPU.

    python docs/make_pictures.py

Writes docs/front.png. Left: E[x | z, y] of a semi-supervised VAE at draws of its prior, a column a class. Middle: posterior
means of held-out rows under a VAE with two latent dimensions. Right: how well the class probabilities of the semi-supervised
model are calibrated on those rows, after a fit with 100 labels and temperature scaling on 50 more.
"""

from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae import plots

TRAIN, LABELLED, FOR_TEMPERATURE, CLASSES = 1200, 100, 50, 10


def pixels(parents: int | tuple[int, ...]) -> nn.Module:
    return pv.mlp(parents, fam.BetaBinomial(64, total_count=16), hidden=(128,))


def main(path: Path) -> None:
    torch.manual_seed(0)
    x, truth = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(x))
    x, truth = x[order].float(), truth[order]
    tempering, test = slice(TRAIN, TRAIN + FOR_TEMPERATURE), slice(TRAIN + FOR_TEMPERATURE, None)
    known = truth[:TRAIN].clone()
    known[LABELLED:] = -1  # unknown

    vae = pv.VAE(pv.priors.StandardNormal(2), pixels(2), pv.mlp(64, fam.Normal(2), hidden=(128,)))
    ssvae = pv.SSVAE(
        label_prior=pv.priors.Categorical(CLASSES),
        prior=pv.priors.StandardNormal(8),
        likelihood=pixels((8, CLASSES)),
        encoder=pv.mlp((64, CLASSES), fam.Normal(8), hidden=(128,)),
        classifier=pv.mlp(64, fam.Categorical((), CLASSES), hidden=(128,)),
        code=pv.nets.OneHot(CLASSES),
        alpha=200.0,
    )
    settings = {"batch_size": 100, "schedule": pv.schedules.one_cycle(3e-3), "seed": 0, "device": "cpu"}
    plain = pv.fit(vae, x[:TRAIN], epochs=200, **settings)
    labelled = pv.fit(ssvae, {"x": x[:TRAIN], "y": known}, epochs=80, **settings)

    columns = torch.arange(8 * CLASSES) % CLASSES
    samples = pv.generate(labelled, len(columns), given={"y": columns}, mean=True, seed=0)
    codes = pv.encode(plain, x[test])
    found = pv.classify(labelled, {"x": x[TRAIN:]}, num_samples=50, seed=0).joint
    temperature = pv.calibration.fit_temperature(found[:FOR_TEMPERATURE], truth[tempering])
    probabilities = pv.calibration.with_temperature(found[FOR_TEMPERATURE:], temperature)
    curve = pv.calibration.reliability(probabilities, truth[test], num_bins=10)
    right = (probabilities.argmax(-1) == truth[test]).double().mean().item()

    with rc_context(plots.STYLE):
        figure = Figure(figsize=(12.0, 3.7))
        left, middle, last = figure.subplots(1, 3, width_ratios=(3.4, 4.3, 3.6))
        plots.images(samples, (8, 8), columns=CLASSES, names=[str(c) for c in range(CLASSES)], ax=left)
        left.set_title(f"new digits, one class a column ({LABELLED} labels)", pad=18)
        plots.latent(codes, truth[test], ax=middle)
        middle.set_title(f"latent space: posterior means of {len(codes)} held-out digits")
        plots.reliability(curve.confidence, curve.accuracy, curve.counts, ax=last)
        last.set_title(f"class probabilities: {right:.1%} correct, calibration error {curve.error:.3f}")
    plots.save(left, path, dpi=110)


if __name__ == "__main__":
    main(Path(__file__).parent / "front.png")
