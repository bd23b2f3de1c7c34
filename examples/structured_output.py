"""Completing a digit from one, two or three of its quadrants, or from one column: there are many right answers.

c are the visible pixels and x the hidden ones, black or white. A network with one output for each pixel predicts their mean,
which is blurred where several completions are possible; a conditional VAE draws complete ones. Its log p(x | c) is estimated
with draws from the guide, and with draws from the prior, which needs more of them. Sohn, Lee & Yan 2015; Doersch 2016,
arXiv:1606.05908.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

L, SHOWN = 10, 3


def masks() -> dict[str, Tensor]:
    """Which of the 8 x 8 pixels are seen, (64,) bool."""
    found = {}
    for name, corners in (("1 quadrant", [2]), ("2 quadrants", [0, 2]), ("3 quadrants", [0, 1, 2])):
        quadrant = torch.tensor([[0, 1], [2, 3]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
        found[name] = torch.isin(quadrant, torch.tensor(corners)).flatten()
    found["1 column"] = (torch.arange(64) % 8) == 3
    return found


def regression(seen: int) -> pv.Regression:
    return pv.Regression(nn.Identity(), pv.mlp(seen, fam.Bernoulli(64 - seen), hidden=(200,)))


def cvae(seen: int) -> pv.CVAE:
    return pv.CVAE(
        condition=nn.Identity(),
        prior=pv.mlp(seen, fam.Normal(L), hidden=(200,)),
        likelihood=pv.mlp((L, seen), fam.Bernoulli(64 - seen), hidden=(200,)),
        encoder=pv.mlp((64 - seen, seen), fam.Normal(L), hidden=(200,)),
    )


def main(smoke: bool, out: Path) -> None:
    x = torch.tensor(load_digits().data > 7).float()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    lines: list[Tensor] = []
    for name, seen in masks().items():
        train, valid, test = ({"x": some[:, ~seen], "c": some[:, seen]} for some in x.tensor_split([1237, 1437]))
        fits = []
        for build in (regression, cvae):
            torch.manual_seed(0)
            options = {"validation": valid, "patience": 20, "batch_size": 100, "schedule": pv.schedules.one_cycle(3e-3)}
            fits.append(pv.fit(build(int(seen.sum())), train, epochs=1 if smoke else 100, seed=0, **options))
        plain = pv.log_likelihood(fits[0], test, 1).mean()
        found = pv.importance(fits[1], test, 25 if smoke else 1000, seed=0).summary()
        prior = pv.prior_log_likelihood(fits[1], test, 25 if smoke else 1000, seed=0).mean()
        print(
            f"{name:12} log p(x | c): network {plain:6.2f}, conditional VAE {found['log_likelihood']:6.2f} "
            f"(from the prior {prior:6.2f}, ELBO {found['elbo']:6.2f}), better by {found['log_likelihood'] - plain:5.2f} nats"
        )
        truth = x[-SHOWN:]
        ask = {"num": SHOWN, "given": {"c": truth[:, seen]}, "mean": True}
        guesses = [pv.generate(fits[1], **ask, seed=seed) for seed in range(5)] + [pv.generate(fits[0], **ask)]
        columns = torch.full((8, SHOWN, 64), 0.4)
        columns[:, :, seen] = truth[:, seen]
        columns[1:7, :, ~seen] = torch.stack(guesses).cpu()
        columns[7] = truth
        lines += columns.transpose(0, 1)
    ax = pv.plots.images(torch.cat(lines), (8, 8), columns=8)
    ax.set_title("seen, five completions, the network's mean, the truth", fontsize=8)
    print(f"completions: {pv.plots.save(ax, out)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/structured_output.png"))
    main(**vars(parser.parse_args()))
