"""Every prior x likelihood x guide: one line builds the pair, and everything after it works.

By default each class stands in at least two fits; `pytest tests/models/test_swap_matrix.py --full-swap` runs the whole product.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae import priors
from pyrovae.conditionals import ConditionalFlow
from pyrovae.errors import PairError

D, L, N, LEVELS = 4, 3, 24, 5


def unit() -> Tensor:
    return torch.rand(N, D).clamp(0.05, 0.95)


def counts() -> Tensor:
    return torch.poisson(torch.full((N, D), 2.0)).clamp_max(LEVELS)


def codes() -> Tensor:
    return torch.randint(LEVELS, (N, D)).float()


def mixed() -> Tensor:
    return torch.stack(
        [torch.randn(N), torch.rand(N) + 0.1, torch.poisson(torch.full((N,), 2.0)), torch.randint(3, (N,)).float()], -1
    )


COLUMNS = [fam.Normal(()), fam.LogNormal(()), fam.Poisson(()), fam.Categorical((), 3)]
# name: (family, rows)
LIKELIHOODS: dict[str, tuple[Callable[[], fam.Family], Callable[[], Tensor]]] = {
    "Bernoulli": (lambda: fam.Bernoulli(D), lambda: unit().round()),
    "ContinuousBernoulli": (lambda: fam.ContinuousBernoulli(D), unit),
    "Beta": (lambda: fam.Beta(D), unit),
    "Normal": (lambda: fam.Normal(D), lambda: torch.randn(N, D)),
    "Laplace": (lambda: fam.Laplace(D), lambda: torch.randn(N, D)),
    "StudentT": (lambda: fam.StudentT(D), lambda: torch.randn(N, D)),
    "RoundedNormal": (lambda: fam.RoundedNormal(D, step=0.5, low=0.0, offset=0.5), counts),
    "LogNormal": (lambda: fam.LogNormal(D), lambda: torch.randn(N, D).exp()),
    "Gamma": (lambda: fam.Gamma(D), lambda: torch.randn(N, D).exp()),
    "Binomial": (lambda: fam.Binomial(D, LEVELS), counts),
    "BetaBinomial": (lambda: fam.BetaBinomial(D, LEVELS), counts),
    "Categorical": (lambda: fam.Categorical(D, LEVELS), codes),
    "OrderedLogistic": (lambda: fam.OrderedLogistic(D, LEVELS), codes),
    "Poisson": (lambda: fam.Poisson(D), counts),
    "NegativeBinomial": (lambda: fam.NegativeBinomial(D), counts),
    "ZeroInflatedPoisson": (lambda: fam.ZeroInflatedPoisson(D), counts),
    "ZeroInflatedNegativeBinomial": (lambda: fam.ZeroInflatedNegativeBinomial(D), counts),
    "DiscretizedLogistic": (lambda: fam.DiscretizedLogistic(D, LEVELS), codes),
    "DiscretizedLogisticMixture": (
        lambda: fam.DiscretizedLogisticMixture((3, 2, 2), LEVELS, 2),
        lambda: torch.randint(LEVELS, (N, 3, 2, 2)).float(),
    ),
    "Multinomial": (lambda: fam.Multinomial(D, total_count=8), counts),
    "Columns": (lambda: fam.Columns(COLUMNS), mixed),
}
# leaving elements out of these is not their marginal
JOINT = ("Multinomial", "DiscretizedLogisticMixture")


class OwnPrior(nn.Module):
    """As a user would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(L))

    def forward(self) -> Any:
        return dist.Laplace(self.raw, self.raw.exp()).to_event(1)


# name: (encoder, rows) -> prior
PRIORS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "StandardNormal": lambda q, x: priors.StandardNormal(L),
    "Normal": lambda q, x: priors.Normal(L),
    "Laplace": lambda q, x: priors.Laplace(L),
    "StudentT": lambda q, x: priors.StudentT(L),
    "Horseshoe": lambda q, x: priors.Horseshoe(L),
    "MixtureOfNormals": lambda q, x: priors.MixtureOfNormals(L, num_components=3),
    "VampPrior": lambda q, x: priors.VampPrior(q, x[:5]),
    "FlowPrior-maf": lambda q, x: priors.FlowPrior(L, kind="maf", transforms=1, hidden=(8,)),
    "FlowPrior-nsf": lambda q, x: priors.FlowPrior(L, kind="nsf", transforms=1, hidden=(8,)),
    "FlowPrior-coupling": lambda q, x: priors.FlowPrior(L, kind="coupling", transforms=2, hidden=(8,)),
    "a Pyro distribution": lambda q, x: dist.Normal(torch.zeros(L), 2.0).to_event(1),
    "one's own": lambda q, x: OwnPrior(),
}
SPHERE = {"HypersphericalUniform": lambda q, x: priors.HypersphericalUniform(L)}
SIMPLEX = {"LogisticNormal": lambda q, x: priors.LogisticNormal(L)}


class Flat(nn.Module):
    """A perceptron of flattened rows."""

    def __init__(self, event: torch.Size, out_shape: Any, parents: int) -> None:
        super().__init__()
        self.event, self.parents = event, parents
        self.net = pv.nets.MLP((event.numel(),) * parents, out_shape, (16,))
        self.out_shape = self.net.out_shape

    def forward(self, *parents: Tensor) -> Tensor:
        return self.net(*(p.flatten(-len(self.event)) for p in parents))


def net(event: torch.Size, out_shape: Any, masked: bool) -> nn.Module:
    return pv.nets.WithMask(Flat(event, out_shape, 2)) if masked else Flat(event, out_shape, 1)


def conditional(family: fam.Family, event: torch.Size, masked: bool) -> pv.Conditional:
    return pv.Conditional(net(event, family.param_shape, masked), family)


def flow(kind: str) -> Callable[[torch.Size, bool], nn.Module]:
    return lambda event, masked: ConditionalFlow(net(event, 8, masked), L, kind, transforms=1, flow_hidden=(8,))


# name: (shape of a row, whether rows have gaps) -> encoder
GUIDES: dict[str, Callable[[torch.Size, bool], nn.Module]] = {
    "Normal": lambda e, m: conditional(fam.Normal(L), e, m),
    "LowRankNormal": lambda e, m: conditional(fam.LowRankNormal(L, 2), e, m),
    "FullNormal": lambda e, m: conditional(fam.FullNormal(L), e, m),
    "MixtureOfNormals": lambda e, m: conditional(fam.MixtureOfNormals(L, 2), e, m),
    "iaf": flow("iaf"),
    "nsf": flow("nsf"),
    "coupling": flow("coupling"),
}
SPHERE_GUIDES = {"PowerSpherical": lambda e, m: conditional(fam.PowerSpherical(L), e, m)}
SIMPLEX_GUIDES = {"LogisticNormal": lambda e, m: conditional(fam.LogisticNormal(L), e, m)}

ALL_PRIORS, ALL_GUIDES = {**PRIORS, **SPHERE, **SIMPLEX}, {**GUIDES, **SPHERE_GUIDES, **SIMPLEX_GUIDES}
Names = tuple[str, str, str]


def some() -> list[Names]:
    """Each prior, likelihood and guide at least twice."""
    p, x, q = (itertools.cycle(table) for table in (PRIORS, LIKELIHOODS, GUIDES))
    rows = [(next(p), next(x), next(q)) for _ in range(2 * len(LIKELIHOODS))]
    return rows + [
        (prior, likelihood, guide)
        for ps, qs in ((SPHERE, SPHERE_GUIDES), (SIMPLEX, SIMPLEX_GUIDES))
        for prior, likelihood, guide in itertools.product(ps, ("Bernoulli", "Normal"), qs)
    ]


EACH_PART = some()[: len(LIKELIHOODS)] + some()[-4:]  # half of the rows, in which each part stands


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "names" in metafunc.fixturenames:
        rows = some() if "tmp_path" in metafunc.fixturenames else EACH_PART
        if metafunc.config.getoption("--full-swap"):
            rows = list(dict.fromkeys([*itertools.product(PRIORS, LIKELIHOODS, GUIDES), *rows]))
        marks = [[] if i < 4 else [pytest.mark.slow] for i in range(len(rows))]
        metafunc.parametrize("names", [pytest.param(r, id="+".join(r), marks=m) for r, m in zip(rows, marks)])


def built(names: Names, x: Tensor, masked: bool = False) -> pv.VAE:
    """The pair of these names, from one seed."""
    torch.manual_seed(0)
    prior, likelihood, guide = names
    encoder = ALL_GUIDES[guide](x.shape[1:], masked)
    family = LIKELIHOODS[likelihood][0]()
    decoder: nn.Module = pv.mlp(L, family, hidden=(16,))
    pseudo = encoder
    if prior == "VampPrior" and guide in ("iaf", "nsf", "coupling"):
        pseudo = GUIDES["Normal"](x.shape[1:], masked)
    rows = x.nan_to_num(1.0)
    return pv.VAE(ALL_PRIORS[prior](pseudo, rows), pv.observed_only(decoder) if masked else decoder, encoder)


def rows_of(names: Names) -> Tensor:
    torch.manual_seed(1)
    return LIKELIHOODS[names[1]][1]()


def test_every_part_is_swapped() -> None:
    rows = some()
    for i, table in enumerate((ALL_PRIORS, LIKELIHOODS, ALL_GUIDES)):
        assert {row[i] for row in EACH_PART} == set(table)
    for i, table in enumerate((ALL_PRIORS, LIKELIHOODS, ALL_GUIDES)):
        for name in table:
            assert sum(row[i] == name for row in rows) >= 2, f"{name} stands in fewer than two fits"
    families = {f for f in vars(fam).values() if isinstance(f, type) and issubclass(f, fam.Family)}
    codes = {
        f for f in families if f.__module__ == "pyrovae.families.codes"
    }  # one-hot rows: tests/families/test_codes.py
    abstract = {fam.Family, fam.Elementwise, fam.Vector, *codes}
    swapped = {*LIKELIHOODS, *ALL_GUIDES}
    assert {f.__name__ for f in families - abstract} <= swapped


def elbos(names: Names, x: Tensor, engine: str) -> tuple[list[float], pv.Fit]:
    """The ELBO of each of 4 steps."""
    pair = built(names, x)
    fitted = pv.fit(pair, x, epochs=4, batch_size=len(x), learning_rate=1e-3, seed=0, engine=engine, progress=False)
    assert fitted.settings.get("engine_notes", []) == []  # a trace that was refused would be told here
    return [row["elbo"] for row in fitted.history], fitted


@pytest.mark.slow
def test_a_pair_of_any_parts_does_everything(names: Names, tmp_path: Path) -> None:
    x = rows_of(names)
    pv.check_pair(built(names, x), {"x": x})
    eager, fitted = elbos(names, x, "eager")
    if names in EACH_PART:
        traced, fitted = elbos(names, x, "traced")
        torch.testing.assert_close(torch.tensor(traced), torch.tensor(eager), rtol=1e-4, atol=1e-4)
    assert len(set(eager)) == 4  # it trains

    score = pv.log_likelihood(fitted, x, 7, seed=0, proposal="guide")
    assert score.shape == (N,) and score.isfinite().all()
    drawn = pv.generate(fitted, 5, seed=0)
    assert drawn.shape == (5, *x.shape[1:]) and drawn.isfinite().all()
    again = pv.reconstruct(fitted, x)
    assert again.shape == x.shape and again.isfinite().all()
    assert pv.encode(fitted, x).shape == (N, L)

    pv.save(fitted, tmp_path / "run")
    loaded = pv.load(tmp_path / "run", pair=built(names, x))
    assert torch.equal(pv.log_likelihood(loaded, x, 7, seed=0, proposal="guide"), score)
    more = pv.fit(loaded.pair, x, epochs=1, batch_size=len(x), seed=1, engine="eager", progress=False)
    assert more.history[-1]["elbo"] == more.history[-1]["elbo"]


def test_rows_with_gaps_are_scored(names: Names) -> None:
    x = rows_of(names)
    x.view(N, -1)[::2, 0] = torch.nan
    if names[1] in JOINT:
        with pytest.raises(PairError, match="observed_only"):
            pv.fit(built(names, x, masked=True), x, epochs=1, batch_size=N, seed=0, engine="eager", progress=False)
        return
    fitted = pv.fit(built(names, x, masked=True), x, epochs=2, batch_size=N, seed=0, engine="eager", progress=False)
    score = pv.log_likelihood(fitted, x, 7, seed=0, proposal="guide")
    assert score.isfinite().all()
    assert all(p.isfinite().all() for p in fitted.pair.parameters())
