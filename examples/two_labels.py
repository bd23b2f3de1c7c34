"""Two labels, each known of few rows: which digit it is, and whether it leans to the right.

Of 1,400 images 60 have a digit, 60 others a leaning, and 20 both. `TwoLabelVAE` learns from all of them, and sums over what is
unknown. Beside it stand two models of one label each, which see the same labels of that kind. The slant is measured in the
images; those lean to the right that have more of it than half of the training images.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import slant

D, L, C, TRAIN = 64, 8, 10, 1400


def mlp(parents: int | tuple[int, ...], family: fam.Family) -> pv.Conditional:
    return pv.mlp(parents, family, hidden=(64,))


def one_label(classes: int) -> pv.SSVAE:
    return pv.SSVAE(
        label_prior=pv.priors.Categorical(classes),
        prior=pv.priors.StandardNormal(L),
        likelihood=mlp((L, classes), fam.BetaBinomial(D, total_count=16)),
        encoder=mlp((D, classes), fam.Normal(L)),
        classifier=mlp(D, fam.Categorical((), classes)),
        code=pv.nets.OneHot(classes),
    )


def two_labels() -> pv.TwoLabelVAE:
    return pv.TwoLabelVAE(
        label_prior1=pv.priors.Categorical(C),
        label_prior2=pv.priors.Categorical(2),
        prior=pv.priors.StandardNormal(L),
        likelihood=mlp((L, C, 2), fam.BetaBinomial(D, total_count=16)),
        encoder=mlp((D, C, 2), fam.Normal(L)),
        classifier1=mlp(D, fam.Categorical((), C)),
        classifier2=mlp(D, fam.Categorical((), 2)),
        code1=pv.nets.OneHot(C),
        code2=pv.nets.OneHot(2),
    )


def main(smoke: bool) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x, y1 = torch.as_tensor(digits.data).float(), torch.as_tensor(digits.target)
    order = torch.randperm(len(x))
    x, y1 = x[order], y1[order]
    lean = slant(x.reshape(-1, 8, 8))
    y2 = (lean > lean[:TRAIN].median()).long()
    row = torch.arange(TRAIN)
    some1 = torch.where(row < 80, y1[:TRAIN], -1)
    some2 = torch.where((row >= 60) & (row < 140), y2[:TRAIN], -1)
    test, about = slice(TRAIN, TRAIN + 20 if smoke else None), {"num_samples": 10}

    def fit(pair: nn.Module, **labels: Tensor) -> pv.Fit:
        rate = pv.schedules.one_cycle(1e-2)
        rows = {"x": x[:TRAIN], **labels}
        return pv.fit(pair, rows, epochs=1 if smoke else 15, batch_size=100, schedule=rate, seed=0, progress=False)

    both = fit(two_labels(), y1=some1, y2=some2)
    alone = {"digit": fit(one_label(C), y=some1), "leaning": fit(one_label(2), y=some2)}
    truth = {"digit": y1[test], "leaning": y2[test]}
    for (name, wanted), site, other in zip(truth.items(), ("y1", "y2"), ("y2", "y1")):
        found = {
            "one label": pv.classify(alone[name], x[test], **about),
            "two labels": pv.classify(both, x[test], site=site, **about),
            "the other one given": pv.classify(
                both, {"x": x[test], other: (y1, y2)[other == "y2"][test]}, site=site, **about
            ),
        }
        right = ", ".join(f"{how} {(p.predicted == wanted).double().mean():.1%}" for how, p in found.items())
        print(f"{name + ':':9} right of {len(wanted)} by {right}")

    given = {"y1": torch.arange(C).repeat(2), "y2": torch.arange(2).repeat_interleave(C)}
    z = torch.zeros(2 * C, L)  # the same style for all
    axes = pv.plots.images(pv.generate(both, 2 * C, given={**given, "z": z}, mean=True), (8, 8), C)
    axes.set_title("each digit, upright and leaning, in one style", loc="left", fontsize=9)
    print("picture:", pv.plots.save(axes, "two_labels.png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
