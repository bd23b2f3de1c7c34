"""A label that few rows have: M2, M1+M2, ADGM and SDGM, against a network trained on the labelled rows only.

Of 1,437 handwritten digits for training 50 are labelled; unknown labels are -1, as in scikit-learn. Accuracy on held-out rows
is given for the guide's classifier q(y|x) and for Bayes' rule in the joint model, p(y|x).
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

D, L, C, HIDDEN = 64, 8, 10, (128,)
CODE, ALPHA = pv.nets.OneHot(C), 200.0  # the weight of a labelled row in the classifier's own loss


def pixels(parents: int | tuple[int, ...]) -> nn.Module:
    return pv.mlp(parents, fam.BetaBinomial(D, total_count=16), hidden=HIDDEN)


def normal(parents: int | tuple[int, ...]) -> nn.Module:
    return pv.mlp(parents, fam.Normal(L), hidden=HIDDEN)


def classes(parents: int | tuple[int, ...]) -> nn.Module:
    return pv.mlp(parents, fam.Categorical((), C), hidden=HIDDEN)


def graphs() -> dict[str, nn.Module]:
    y, z = pv.priors.Categorical(C), pv.priors.StandardNormal(L)
    return {
        "M2": pv.SSVAE(y, z, pixels((L, C)), normal((D, C)), classes(D), CODE, ALPHA),
        "M1+M2": pv.StackedSSVAE(y, z, normal((L, C)), pixels(L), normal(D), classes(L), normal((L, C)), CODE, ALPHA),
        "ADGM": pv.ADGM(
            y, z, pixels((L, C)), normal((D, L, C)), normal(D), classes((L, D)), normal((L, D, C)), CODE, ALPHA
        ),
        "SDGM": pv.SDGM(
            y, z, normal((L, C)), pixels((L, L, C)), normal(D), classes((L, D)), normal((L, D, C)), CODE, ALPHA
        ),
    }


def main(smoke: bool) -> None:
    torch.manual_seed(0)
    x, truth = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(x))
    x, truth = x[order].float(), truth[order]
    y = truth.clone()
    y[50:] = -1  # unknown
    train, test = slice(0, 1437), slice(1437, None)
    epochs = 1 if smoke else 150

    def accuracy(found: Tensor) -> str:
        return f"{(found == truth[test]).double().mean():.1%}"

    network = pv.Regression(nn.Identity(), classes(D))
    fitted = pv.fit(network, {"x": y[:50], "c": x[:50]}, epochs=4 * epochs, batch_size=50, learning_rate=3e-3, seed=0)
    probabilities = network.likelihood(x[test].to(fitted.device)).probs
    print(f"network  q(y|x) {accuracy(probabilities.argmax(-1).cpu())}")
    for name, pair in graphs().items():
        fitted = pv.fit(
            pair,
            {"x": x[train], "y": y[train]},
            epochs=epochs,
            batch_size=100,
            schedule=pv.schedules.one_cycle(3e-3),
            seed=0,
        )
        found = pv.classify(fitted, {"x": x[test]}, num_samples=20)
        print(f"{name:8} q(y|x) {accuracy(found.guide.argmax(-1))}, p(y|x) {accuracy(found.predicted)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
