"""Three levels of latent variables with a bottom-up guide or a ladder, and a picture of what each level encodes.

Both have the model p(z3) p(z2|z3) p(z1|z2) p(x|z1). A bottom-up guide, q(z1|x) q(z2|z1) q(z3|z2), infers the upper levels from
a draw of z1. The guide of a ladder goes down as the model does, and combines the model's p(z_l|z_l+1) with the evidence of x on
z_l. From column to column of the picture one more level is fixed at values drawn once; what still varies within a column comes
from the levels below. Sonderby et al. 2016, arXiv:1602.02282.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

LEVELS, HIDDEN = (16, 8, 4), (100, 50, 25)
SITES = ("z3", "z2", "z1")


def held(fitted: pv.Fit, rows: int) -> tuple[Tensor, list[str]]:
    """E[x | z1], (rows * 3, 64). Column 1: all levels are drawn; column 2: z3 is fixed; column 3: z3 and z2 are."""
    one = pv.simulate(fitted, 1, seed=2)
    columns = []
    for number in range(len(SITES)):
        given = {site: one[site].expand(rows, -1) for site in SITES[:number]}
        columns.append(pv.generate(fitted, rows, given=given, mean=True, seed=0))
    return torch.stack(columns, 1).flatten(0, 1), ["drawn", "z3", "z3, z2"]


def main(smoke: bool, out: Path) -> None:
    x = torch.tensor(load_digits().data, dtype=torch.float32)  # (1797, 64), counts 0..16
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    train, test = x[:1437], x[1437:]
    epochs = 2 if smoke else 200
    for build in (pv.HierarchicalVAE, pv.LadderVAE):
        torch.manual_seed(0)
        pair = build.of_levels(fam.BetaBinomial(64, total_count=16), LEVELS, HIDDEN, activation=torch.nn.LeakyReLU)
        schedule = [pv.schedules.one_cycle(3e-3), pv.schedules.kl_warmup(epochs / 4)]
        fitted = pv.fit(pair, train, epochs=epochs, batch_size=100, schedule=schedule, clip_norm=100.0, seed=0)
        score = pv.log_likelihood(fitted, test, 25 if smoke else 1000, seed=0).mean()
        kl = ", ".join(f"{site} {kl.mean():.2f}" for site, kl in sorted(pv.kl_by_site(fitted, test).items()))
        print(f"{build.__name__}: log p(x) {score:.2f} nats per row; KL of {kl}")
    pictures, names = held(fitted, rows=8)
    pv.plots.save(pv.plots.images(pictures, (8, 8), len(names), names=names), out / "ladder-levels.png")
    print(f"samples with levels held in {out / 'ladder-levels.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture")
    options = parser.parse_args()
    main(options.smoke, options.out)
