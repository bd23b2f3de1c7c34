"""Two kinds of data of one row, either of which may be missing: the left and the right halves of handwritten digits.

One code explains both halves, and the guide is a product of experts, one for each half. It is fitted twice: to complete rows,
and with half of a row hidden now and then. Complete rows teach the guide its posterior given both halves; that given one of
them it has to learn from rows that have only one. log p(right half | left half) of rows held out is the difference of two
log-likelihoods, for which importance sampling needs no good guide; beside it stands a conditional VAE, which is fitted for this
question alone.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

HALF, L, TRAIN = 32, 8, 1400


def halves(x: Tensor) -> dict[str, Tensor]:
    images = x.reshape(-1, 8, 8)
    return {"x1": images[:, :, :4].flatten(1), "x2": images[:, :, 4:].flatten(1)}


def both() -> pv.MultimodalVAE:
    def family() -> fam.Family:
        return fam.BetaBinomial(HALF, total_count=16)

    return pv.MultimodalVAE(
        prior=pv.priors.StandardNormal(L),
        likelihood1=pv.mlp(L, family(), hidden=(64,)),
        likelihood2=pv.mlp(L, family(), hidden=(64,)),
        encoder1=pv.mlp(HALF, fam.Normal(L), hidden=(64,)),
        encoder2=pv.mlp(HALF, fam.Normal(L), hidden=(64,)),
    )


def given_one() -> pv.CVAE:
    return pv.CVAE(
        condition=torch.nn.Identity(),
        prior=pv.mlp(HALF, fam.Normal(L), hidden=(64,)),
        likelihood=pv.mlp((L, HALF), fam.BetaBinomial(HALF, total_count=16), hidden=(64,)),
        encoder=pv.mlp((HALF, HALF), fam.Normal(L), hidden=(64,)),
    )


def main(smoke: bool) -> None:
    torch.manual_seed(0)
    x = torch.as_tensor(load_digits().data).float()
    x = x[torch.randperm(len(x))]
    train, test = halves(x[:TRAIN]), halves(x[TRAIN:])
    left = {"x1": test["x1"], "x2": torch.full_like(test["x2"], torch.nan)}
    epochs, draws = (2, 30) if smoke else (200, 300)
    test_rows = slice(0, 30 if smoke else None)

    def fit(pair: torch.nn.Module, rows: dict[str, Tensor], transform: object = None) -> pv.Fit:
        options = {"batch_size": 100, "schedule": pv.schedules.one_cycle(3e-3), "transform": transform}
        return pv.fit(pair, rows, epochs=epochs, seed=0, progress=False, **options)

    def log_p(fitted: pv.Fit, rows: dict[str, Tensor], **how: str) -> Tensor:
        rows = {name: values[test_rows] for name, values in rows.items()}
        return pv.log_likelihood(fitted, rows, num_samples=draws, seed=0, **how)

    print("log p(right half | left half), nats a row, and what the guide loses of log p(left half)")
    hide = pv.transforms.HideKinds("x1", "x2")
    for name, transform in {"complete rows only": None, "a half hidden now and then": hide}.items():
        fitted = fit(both(), train, transform)
        conditional = (log_p(fitted, test) - log_p(fitted, left)).mean()
        alone = {name: values[test_rows] for name, values in left.items()}
        found = pv.importance(fitted, alone, draws, seed=0)
        print(f"{name:28} {conditional:8.2f} {(found.log_likelihood - found.elbo).mean():8.2f}")
    conditional = fit(given_one(), {"x": train["x2"], "c": train["x1"]})
    print(f"{'conditional VAE':28} {log_p(conditional, {'x': test['x2'], 'c': test['x1']}).mean():8.2f}")

    filled = pv.impute(fitted, {name: values[:8] for name, values in left.items()}, num_samples=20, seed=0)
    rows = [filled.draws["x2"][0], filled.mean["x2"], test["x2"][:8]]  # a draw, the mean, the truth
    images = [torch.cat([left["x1"][:8].reshape(8, 8, 4), right.reshape(8, 8, 4)], -1) for right in rows]
    axes = pv.plots.images(torch.cat(images).flatten(1), (8, 8), 8)
    axes.set_title("right halves: a draw given the left, the mean given the left, the truth", loc="left", fontsize=9)
    print("picture:", pv.plots.save(axes, "two_kinds.png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
