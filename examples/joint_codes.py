"""A discrete and a continuous code together: which digit it is, and how it is written.

JointVAE on handwritten digits, without labels. Nothing keeps z from encoding the digit as well, and then y is not used. If a
nat of z costs as much as four of y, y encodes what it can, and log p(x) is lower. (Dupont 2018, arXiv:1804.00104, limits both
to capacities that grow.) The pictures have a row for each value of y; along it the dimension of z with the largest variance
goes from -2 to 2, and the others are 0.
"""

import argparse
import math

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

C, L, D = 10, 4, 64


def price(kl: dict[str, Tensor]) -> dict[str, Tensor]:
    """The KL terms of both codes, each of shape (1, N): that of z is multiplied by four."""
    return {**kl, "z": 4.0 * kl["z"]}


def joint_vae() -> pv.JointVAE:
    return pv.JointVAE(
        discrete_prior=pv.priors.Categorical(C),
        prior=pv.priors.StandardNormal(L),
        likelihood=pv.mlp((L, C), fam.BetaBinomial(D, total_count=16), hidden=(100,)),
        encoder=pv.mlp(D, fam.Normal(L), hidden=(100,)),
        classifier=pv.mlp(D, fam.Categorical((), C), hidden=(100,)),
        code=pv.nets.OneHot(C),
    )


def traversals(fitted: pv.Fit, dimension: int, steps: int = 9) -> Tensor:
    """E[x | y, z] for each y, along one dimension of z: (C * steps, D)."""
    z = torch.zeros(C, steps, L)
    z[:, :, dimension] = torch.linspace(-2, 2, steps)
    return pv.decode(fitted, {"y": torch.arange(C).repeat_interleave(steps), "z": z.flatten(0, 1)})


def main(smoke: bool) -> None:
    digits = load_digits()
    order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))
    x, label = torch.tensor(digits.data, dtype=torch.float32)[order], torch.tensor(digits.target)[order]
    x_train, x_test = x[:1437], x[1437:]
    for name, loss in (("even", None), ("dear-z", pv.Trace_ELBO(kl=price))):
        torch.manual_seed(0)
        epochs, schedule = 1 if smoke else 100, pv.schedules.one_cycle(4e-3)
        fitted = pv.fit(joint_vae(), x_train, epochs=epochs, batch_size=100, loss=loss, schedule=schedule, seed=0)
        score = pv.log_likelihood(fitted, x_test, 25 if smoke else 500, seed=0).mean()
        codes = pv.classify(fitted, x_test, num_samples=5 if smoke else 50)
        used = math.log(C) - pv.acquisition.entropy(codes.guide).mean()
        same = adjusted_mutual_info_score(label[1437:].numpy(), codes.guide.argmax(-1).numpy())
        print(
            f"{name:6} log p(x) {score:7.2f}   KL of y {used:.2f} nats   y and the digit: {same:.2f} (0 chance, 1 equal)"
        )
        spread = pv.encode(fitted, x_test, site="z").var(0)
        pictures = traversals(fitted, int(spread.argmax()))
        path = pv.plots.save(pv.plots.images(pictures, (8, 8), columns=9, vmax=16), f"joint-codes-{name}.png")
        print(f"{name:6} variance of E[z|x] {[round(v, 2) for v in spread.tolist()]}; traversals in {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
