"""Two labels, each known of few rows: the species and the sex of animals that have been measured.

Of 600 animals 30 have a species, 30 others a sex, and 20 both. `LabelsVAE` learns from all of them, and sums over what is
unknown. Males are the larger ones in two species and the smaller ones in the third, so that whoever knows the species knows
more about the sex of an animal that has been measured. The data are made here, and their true probabilities are known: how
often these are right is the best that can be done. Beside it stand two models of one label each, which see the same labels of
their kind.
"""

import argparse

import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

D, L, TRAIN, TEST = 4, 1, 600, 1000
SPECIES, SEXES, MALES_ARE = 3, 2, torch.tensor([1.0, 1.0, -1.0])  # larger, larger, smaller
CENTRES = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.5, 0.0, 0.5, 0.0], [0.0, 2.0, 0.0, 0.5]])
BY_SEX, BY_SIZE, NOISE = torch.tensor([0.2, 0.2, 0.9, 0.9]), torch.tensor([0.6, 0.6, 0.3, 0.3]), 0.5


def means(species: Tensor, sex: Tensor) -> Tensor:
    return CENTRES[species] + (MALES_ARE[species] * (2 * sex - 1))[..., None] * BY_SEX


def true_posterior(x: Tensor) -> Tensor:
    """p(species, sex | x), (N, 3, 2)."""
    species, sex = torch.meshgrid(torch.arange(SPECIES), torch.arange(SEXES), indexing="ij")
    covariance = BY_SIZE[:, None] * BY_SIZE + NOISE**2 * torch.eye(D)
    density = torch.distributions.MultivariateNormal(means(species, sex), covariance)
    return density.log_prob(x[:, None, None]).flatten(1).softmax(1).reshape(-1, SPECIES, SEXES)


def one_label(classes: int) -> pv.SSVAE:
    return pv.SSVAE(
        label_prior=pv.priors.Categorical(classes),
        prior=pv.priors.StandardNormal(L),
        likelihood=pv.mlp((L, classes), fam.Normal(D, scale="column"), hidden=(16,)),
        encoder=pv.mlp((D, classes), fam.Normal(L), hidden=(16,)),
        classifier=pv.mlp(D, fam.Categorical((), classes), hidden=(16,)),
        code=pv.nets.OneHot(classes),
        alpha=5.0,
    )


def two_labels() -> pv.LabelsVAE:
    return pv.LabelsVAE(
        label_priors=[pv.priors.Categorical(SPECIES), pv.priors.Categorical(SEXES)],
        prior=pv.priors.StandardNormal(L),
        likelihood=pv.mlp((L, SPECIES, SEXES), fam.Normal(D, scale="column"), hidden=(16,)),
        encoder=pv.mlp((D, SPECIES, SEXES), fam.Normal(L), hidden=(16,)),
        classifiers=[pv.mlp(D, fam.Categorical((), classes), hidden=(16,)) for classes in (SPECIES, SEXES)],
        codes=[pv.nets.OneHot(SPECIES), pv.nets.OneHot(SEXES)],
        alpha=5.0,
    )


def main(smoke: bool) -> None:
    torch.manual_seed(0)
    n = TRAIN + (20 if smoke else TEST)
    species, sex = torch.randint(SPECIES, (n,)), torch.randint(SEXES, (n,))
    x = means(species, sex) + torch.randn(n, 1) * BY_SIZE + NOISE * torch.randn(n, D)
    test, row = slice(TRAIN, None), torch.arange(TRAIN)
    some_species = torch.where(row < 50, species[:TRAIN], -1)
    some_sexes = torch.where((row >= 30) & (row < 80), sex[:TRAIN], -1)

    def fit(pair: nn.Module, **labels: Tensor) -> pv.Fit:
        rate, epochs = pv.schedules.one_cycle(2e-2), 1 if smoke else 80
        rows = {"x": x[:TRAIN], **labels}
        return pv.fit(pair, rows, epochs=epochs, batch_size=200, schedule=rate, seed=0, progress=False)

    both = fit(two_labels(), y1=some_species, y2=some_sexes)
    alone = {"species": fit(one_label(SPECIES), y=some_species), "sex": fit(one_label(SEXES), y=some_sexes)}
    true = true_posterior(x[test])

    def right(found: Tensor, labels: Tensor) -> str:
        return f"{(found.argmax(1) == labels[test]).double().mean():.1%}"

    for name, labels, site, axis in (("species", species, "y1", 2), ("sex", sex, "y2", 1)):
        one, two = pv.classify(alone[name], x[test]).joint, pv.classify(both, x[test], site=site).joint
        told = f"one label {right(one, labels)}, two labels {right(two, labels)}"
        print(f"{name} right: {told}, the true model {right(true.sum(axis), labels)}")
    given = pv.classify(both, {"x": x[test], "y1": species[test]}, site="y2").joint
    best = true[torch.arange(len(true)), species[test]]
    print(f"sex right, given the species: two labels {right(given, sex)}, the true model {right(best, sex)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
