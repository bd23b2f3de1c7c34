"""What an image shows, apart from its angle and position: handwritten digits that were turned and shifted at random.

A VAE spends its code on angle and place. In a spatial VAE these are a latent variable of their own, the pose: the decoder draws
a digit upright and in the middle, and the pose moves it (`nets.Posed`); the encoder of z sees the image moved back
(`nets.Upright`). Both models have seven latent dimensions. While the KL weight falls from 5 to 1, what z says is dear, and the
pose explains what it can. SciPy moves the digits, and what the pose says is compared with the angles and places it was given;
of the angle within a digit only, since nothing tells which way up a model draws each of them. (Bepler et al. 2019,
arXiv:1909.11663.)
"""

import argparse

import numpy as np
import torch
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

SIDE, L = 20, 4
ANGLE, SHIFT = 0.8, 2.0  # standard deviations, in radians and pixels
LAYERS = {"channels": (16, 32), "hidden": (128,)}


def moved_digits(times: int) -> tuple[Tensor, Tensor, Tensor]:
    """Digits of 16 x 16 pixels in the middle of 20 x 20, moved: (N, 20, 20) counts to 16, (N, 3) moves and (N,) digits."""
    digits, random = load_digits(), np.random.default_rng(0)
    which = np.tile(random.permutation(len(digits.data)), times)
    moves = random.normal(size=(len(which), 3)) * [ANGLE, SHIFT, SHIFT]
    images = []
    for image, (angle, right, down) in zip(digits.data[which].reshape(-1, 8, 8), moves):
        large = np.pad(ndimage.zoom(image, 2, order=1), 2)
        turned = ndimage.rotate(large, np.degrees(angle), reshape=False, order=1)
        images.append(ndimage.shift(turned, (down, right), order=1).round().clip(0, 16))
    rows = torch.tensor(np.stack(images), dtype=torch.float32)
    return rows, torch.tensor(moves, dtype=torch.float32), torch.tensor(digits.target[which])


def conv(family: fam.Family) -> pv.Conditional:
    """An encoder of images with counts to 16."""
    made = pv.conv((SIDE, SIDE), family, **LAYERS)
    return pv.Conditional(pv.nets.Rescaled(made.net, 1 / 16), family)


def vae() -> pv.VAE:
    pixels = fam.BetaBinomial((SIDE, SIDE), total_count=16)
    return pv.VAE(pv.priors.StandardNormal(L + 3), pv.mlp(L + 3, pixels), conv(fam.Normal(L + 3)))


def spatial_vae(pose: pv.nets.Pose) -> pv.SpatialVAE:
    pixels, latent = fam.BetaBinomial((SIDE, SIDE), total_count=16), fam.Normal(L)
    return pv.SpatialVAE(
        prior=pv.priors.StandardNormal(L),
        pose_prior=pv.priors.StandardNormal(pose.size),
        likelihood=pv.Conditional(pv.nets.Posed(pv.nets.MLP(L, pixels.param_shape), pose), pixels),
        pose_encoder=conv(fam.Normal(pose.size)),
        encoder=pv.Conditional(pv.nets.Upright(conv(latent).net, pose), latent),
    )


def dear_at_first(step: pv.schedules.Step) -> dict[str, float]:
    """A KL weight that falls from 5 to 1 in the first 60 % of the fit."""
    return {"kl": 1 + 4 * max(0.0, 1 - step.progress / 0.6)}


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def main(smoke: bool) -> None:
    times = 1 if smoke else 5
    x, moves, digit = moved_digits(times)
    held_out = slice(0, 60 if smoke else 360)
    train = x[360:560] if smoke else torch.cat([part[360:] for part in x.chunk(times)])  # each begins with these digits
    pose = pv.nets.Pose((SIDE, SIDE), rotation=ANGLE, shift=SHIFT / (SIDE / 2))
    for name, pair in (("VAE", vae()), ("spatial VAE", spatial_vae(pose))):
        fitted = pv.fit(
            pair, train, epochs=1 if smoke else 40, batch_size=100, seed=0, progress=False,
            schedule=[pv.schedules.one_cycle(3e-3), *([dear_at_first] if name != "VAE" else [])],
        )  # fmt: skip
        found = pv.importance(fitted, x[held_out], num_samples=20 if smoke else 500, seed=0)
        print(f"{name:11} log p(x) {found.log_likelihood.mean():7.2f}   ELBO {found.elbo.mean():7.2f}")
    told = pose.moves(pv.encode(fitted, x[held_out], site="pose"))
    angle, right, down = moves[held_out].T
    within = [correlation(told.angle[digit[held_out] == c], angle[digit[held_out] == c]) for c in range(10)]
    print(f"correlation with the moves given: angle {np.mean(within):.2f} within a digit", end=", ")
    print(f"right {correlation(told.right, right):.2f}, down {correlation(told.down, down):.2f}")
    z = pv.encode(fitted, x[:12], site="z")
    upright = pv.decode(fitted, {"z": z, "pose": torch.zeros(12, pose.size)})
    rows = torch.cat([x[:12], pv.reconstruct(fitted, x[:12]), upright])
    pv.plots.save(pv.plots.images(rows, (SIDE, SIDE), columns=12, vmax=16), "turned-images.png")
    print("rows, what the model makes of them, and the same upright in turned-images.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
