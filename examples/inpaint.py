"""Inpaint, denoise, deblur and enlarge digits: one fitted VAE, one question, four corruptions.

The VAE is fitted to clean digits and knows of no corruption. What a corruption does is a likelihood on top of its graph, so
that a digit is drawn given what is seen of it. The picture has, from top to bottom, the digits, what is seen, the mean of the
draws, their standard deviation (dark is certain), and one draw.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

LATENT, SHOWN = 10, 12
HELD = 297  # digits that the fit does not see, the first hundred of which are restored


def corruptions() -> dict[str, pv.corruptions.Corruption]:
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[2:, 2:6] = True
    return {
        "hole": pv.corruptions.Mask(hole),
        "noise": pv.corruptions.Noise(0.3),
        "blur": pv.corruptions.Blur(1.0, sd=0.05),
        "down-sampled": pv.corruptions.Downsample(4, sd=0.02),
    }


def guess(seen: Tensor, clean: Tensor) -> Tensor:
    """What one would do without a model: the mean digit in a hole, and pixels as they are, repeated where they are few."""
    wide = seen.repeat_interleave(8 // seen.shape[-1], -1).repeat_interleave(8 // seen.shape[-1], -2)
    return torch.where(wide.isnan(), clean.mean(0), wide)


def main(smoke: bool) -> None:
    x = torch.tensor(load_digits().data, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = x[order[:-HELD]], x[order[-HELD:][: SHOWN if smoke else 100]]
    torch.manual_seed(0)
    vae = pv.VAE(
        prior=pv.priors.StandardNormal(LATENT),
        likelihood=pv.mlp(LATENT, fam.Normal((1, 8, 8), scale="column", floor=0.02), hidden=(200,)),
        encoder=pv.Conditional(pv.nets.ConvEncoder((1, 8, 8), (2, LATENT), hidden=(200,)), fam.Normal(LATENT)),
    )
    fitted = pv.fit(vae, train, epochs=2 if smoke else 200, schedule=pv.schedules.one_cycle(2e-3), seed=0)
    pictures = []
    for name, corruption in corruptions().items():
        seen = corruption(test)
        restored = pv.restore(fitted, seen, corruption, num_samples=20, seed=0)
        errors = [(image - test).square().mean().sqrt().item() for image in (guess(seen, train), restored.mean)]
        print(f"{name:12} RMSE {errors[0]:.3f} as seen, {errors[1]:.3f} restored")
        rows = (test, guess(seen, torch.zeros_like(train)), restored.mean, 3 * restored.sd, restored.draws[0])
        pictures.append(torch.cat([row[:SHOWN] for row in rows]).squeeze(1))
    path = pv.plots.save(pv.plots.images(torch.cat(pictures).clamp(0, 1), (8, 8), SHOWN), "inpaint.png")
    print(f"what may have been there, for each corruption: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
