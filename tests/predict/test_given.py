"""All functions that predict draw what is asked for given what is given: modalities, global sites, classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.comparisons import BOUND
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam


def fitted(pair: Any, data: dict[str, Tensor], **options: Any) -> pv.Fit:
    """A fit whose weights hardly move from where they stand."""
    return pv.fit(pair, data, epochs=1, learning_rate=1e-9, engine="eager", progress=False, seed=0, **options)


# --- arguments that may be None


class TwoViews(nn.Module):
    """p(z) p(x1 | z) p(x2 | z), x1 near z and x2, three numbers, near -z; each is there where it is known."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def model(self, x1: Tensor | None = None, x2: Tensor | None = None) -> None:
        some = x1 if x1 is not None else x2
        assert some is not None
        with pyro.plate("data", len(some)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if x1 is not None:
                pyro.sample("x1", dist.Normal(z + self.shift, 0.1), obs=x1)
            if x2 is not None:
                pyro.sample("x2", dist.Normal(-z.unsqueeze(-1) * torch.ones(3), 0.1).to_event(1), obs=x2)

    def guide(self, x1: Tensor | None = None, x2: Tensor | None = None) -> None:
        some = x1 if x1 is not None else x2
        assert some is not None
        with pyro.plate("data", len(some)):
            mean = x1 if x1 is not None else -some.mean(-1)
            pyro.sample("z", dist.Normal(mean, 0.1))


def views(without_x1: int, without_x2: int) -> dict[str, Tensor]:
    z = torch.randn(30, generator=torch.Generator().manual_seed(0))
    x1, x2 = z.clone(), -z.unsqueeze(-1) * torch.ones(3)
    x1[:without_x1], x2[30 - without_x2 :] = torch.nan, torch.nan
    return {"x1": x1, "x2": x2}


@pytest.fixture(scope="module", params=[(0, 0), (10, 10), (0, 10), (10, 0)], ids=["all", "some", "x1 all", "x2 all"])
def two_views(request: pytest.FixtureRequest) -> pv.Fit:
    """Fits whose rows lacked x1, x2, either or neither."""
    return fitted(TwoViews(), views(*request.param))


def test_an_optional_modality_is_drawn(two_views: pv.Fit) -> None:
    x2 = pv.generate(two_views, 2000, site="x2", seed=0)
    assert x2.shape == (2000, 3) and abs(x2.var(0) - 1.01).max() < 1.01 * BOUND * (2 / 2000) ** 0.5
    both = pv.generate(two_views, 200, site=["x1", "x2"], seed=0)
    assert list(both) == ["x1", "x2"] and (both["x1"] + both["x2"].mean(-1)).abs().max() < 1  # of one z
    assert {name: value.shape for name, value in pv.simulate(two_views, 4).items()} == {
        "z": (4,),
        "x1": (4,),
        "x2": (4, 3),
    }


@pytest.mark.parametrize("mean", [False, True])
def test_one_modality_is_drawn_given_the_other(two_views: pv.Fit, mean: bool) -> None:
    x1 = torch.linspace(-3, 3, 50)
    x2 = pv.generate(two_views, 50, given={"x1": x1}, site="x2", mean=mean, seed=0)
    assert (x2 + x1.unsqueeze(-1)).abs().max() < 1  # sd 0.14
    unnamed = pv.generate(two_views, 50, given={"x2": x2, "x1": None}, mean=mean, seed=0)
    assert (unnamed - x1).abs().max() < 1.5
    assert (pv.simulate(two_views, 50, given={"x1": x1}, seed=0)["z"] - x1).abs().max() < 1


def test_one_modality_is_reconstructed_from_the_other(two_views: pv.Fit) -> None:
    x1 = torch.linspace(-3, 3, 50)
    x2 = pv.reconstruct(two_views, {"x1": x1}, site="x2")
    assert x2.shape == (50, 3) and (x2 + x1.unsqueeze(-1)).abs().max() < 0.5  # sd 0.1 / sqrt(10)
    assert (pv.reconstruct(two_views, {"x1": x1}) - x1).abs().max() < 0.5
    mixed = views(10, 10)
    both = pv.reconstruct(two_views, mixed, site=["x2", "x1"])
    z = torch.where(mixed["x1"].isnan(), -mixed["x2"].mean(-1), mixed["x1"])  # every row knows one of them
    assert list(both) == ["x2", "x1"]
    assert (both["x1"] - z).abs().max() < 0.5 and (both["x2"] + z.unsqueeze(-1)).abs().max() < 0.5


def test_an_optional_modality_is_decoded(two_views: pv.Fit) -> None:
    z = torch.tensor([1.0, -2.0])
    assert torch.equal(pv.decode(two_views, z, site="x2"), -z.unsqueeze(-1) * torch.ones(3))
    both = pv.decode(two_views, z, site=["x1", "x2"])
    torch.testing.assert_close(both["x1"], z)
    # z is given, so that x1 says no more
    assert torch.equal(pv.decode(two_views, z, given={"x1": torch.zeros(2)}, site="x2")[:, 0], -z)


@pytest.mark.parametrize(
    "ask",
    [
        lambda fit: pv.generate(fit, 3),
        lambda fit: pv.generate(fit, 3, site="x3"),
        lambda fit: pv.generate(fit, 3, site=["x1", "x3"]),
        lambda fit: pv.decode(fit, torch.zeros(3)),
        lambda fit: pv.reconstruct(fit, views(10, 10)),
    ],
)
def test_of_two_modalities_one_is_named(two_views: pv.Fit, ask: Callable[[pv.Fit], Any]) -> None:
    with pytest.raises(pv.PairError, match="Choose one observed site.*'x1'.*'x2'|Choose one observed site.*'x2'.*'x1'"):
        ask(two_views)


def test_no_site_is_no_choice(two_views: pv.Fit) -> None:
    with pytest.raises(pv.OptionError, match="at least one"):
        pv.generate(two_views, 3, site=[])


def test_the_sites_of_all_rows_are_listed() -> None:
    layout = pv.check_pair(TwoViews(), views(10, 10))
    assert str(layout).splitlines() == [
        "z   latent     per row  event ()",
        "x1  observed   per row  event () <- x1, where it is known",
        "x2  observed   per row  event (3,) <- x2, where it is known",
    ]
    assert "where" not in str(pv.check_pair(TwoViews(), views(0, 0)))


class Labelled(nn.Module):
    """p(z) p(a | z) p(c | z), where c, which may be missing, says the sign of z; the guide reads a alone."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def model(self, a: Tensor, c: Tensor | None = None) -> None:
        with pyro.plate("data", len(a)):
            z = pyro.sample("z", dist.Normal(self.shift, 1.0))
            pyro.sample("a", dist.Normal(z, 0.5), obs=a)
            if c is not None:
                pyro.sample("c", dist.Bernoulli(logits=100 * z), obs=c)

    def guide(self, a: Tensor, c: Tensor | None = None) -> None:
        with pyro.plate("data", len(a)):
            pyro.sample("z", dist.Normal(a, 0.1))


@pytest.mark.parametrize("known", [30, 15])
def test_an_optional_argument_beside_a_required_one(known: int) -> None:
    a = torch.randn(30)
    fit = fitted(Labelled(), {"a": a, "c": torch.where(torch.arange(30) < known, (a > 0).float(), torch.nan)})
    far = torch.tensor([-2.0, 2.0]).repeat(50)
    assert torch.equal(pv.generate(fit, 100, given={"a": far}, site="c", seed=0), (far > 0).float())
    assert torch.equal(pv.reconstruct(fit, far, site="c").round(), (far > 0).float())
    assert pv.generate(fit, 5).shape == pv.reconstruct(fit, far[:5]).shape == (5,)  # a, as before
    assert set(pv.generate(fit, 50, site="c", seed=0).tolist()) == {0.0, 1.0}
    # the guide cannot do without a: the model's draws are weighed; a | c = 1 is |z| with noise of variance 0.25
    drawn = pv.generate(fit, 300, given={"c": torch.ones(300)}, seed=0)
    assert abs(drawn.mean() - (2 / torch.pi) ** 0.5) < BOUND * ((1 - 2 / torch.pi + 0.25) / 300) ** 0.5


class Chained(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1), y ~ N(z, 1), all required: x says something of y through z."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + y) / 3, 3**-0.5))


def test_what_is_given_counts_where_the_guide_needs_more() -> None:
    fit = fitted(Chained(), {"x": torch.randn(10), "y": torch.randn(10)})
    y = pv.generate(fit, 500, given={"x": torch.full((500,), 2.0)}, seed=0)  # N(1, 1.5)
    assert abs(y.mean() - 1) < BOUND * (1.5 / 500) ** 0.5 and abs(y.var() / 1.5 - 1) < BOUND * (2 / 500) ** 0.5
    given = {"x": torch.full((9,), 50.0), "z": torch.zeros(9)}  # z is known: x says no more
    assert pv.generate(fit, 9, given=given, seed=0).abs().max() < 5
    with pytest.warns(UserWarning, match="so improbable"):
        pv.generate(fit, 1, given={"x": torch.full((1,), 9.0)}, seed=0)


# --- global latent sites


class Groups(nn.Module):
    """Levels b, for all rows, and m, one a group, both from the guide with a known mean; x = m[group] + b_0 + noise."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.m = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.arange(12.0))

    def model(self, x: Tensor, group: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        with pyro.plate("groups", 12):
            m = pyro.sample("m", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.1))
            pyro.sample("x", dist.Normal(m[..., group] + b[..., 0] + z, 0.1), obs=x)

    def guide(self, x: Tensor, group: Tensor) -> None:
        pyro.sample("b", dist.Normal(self.b, 0.5).to_event(1))
        with pyro.plate("groups", 12):
            pyro.sample("m", dist.Normal(self.m, 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 0.1))


class NestedGroups(Groups):
    """The same with the plate of the groups a dimension further to the left."""

    def model(self, x: Tensor, group: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        with pyro.plate("groups", 12, dim=-2):
            m = pyro.sample("m", dist.Normal(torch.zeros(12, 1), 10.0)).transpose(-1, -2)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 0.1))
            pyro.sample("x", dist.Normal(m[..., group] + b[..., 0] + z, 0.1), obs=x)

    def guide(self, x: Tensor, group: Tensor) -> None:
        pyro.sample("b", dist.Normal(self.b, 0.5).to_event(1))
        with pyro.plate("groups", 12, dim=-2):
            pyro.sample("m", dist.Normal(self.m.unsqueeze(-1), 0.1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 0.1))


ROWS = {"x": torch.zeros(24), "group": torch.arange(24) % 12}


@pytest.fixture(scope="module", params=[Groups, pytest.param(NestedGroups, marks=pytest.mark.slow)])
def groups(request: pytest.FixtureRequest) -> pv.Fit:
    return fitted(request.param(), ROWS)


def test_the_plates_of_a_site_are_listed(groups: pv.Fit) -> None:
    lines = str(pv.check_pair(groups.pair, ROWS)).splitlines()
    assert lines[:3] == [
        "b  latent     global  event (2,)",
        "m  latent     global, groups (12)  event ()",
        "z  latent     per row  event ()",
    ]


def test_draws_and_means_of_global_sites(groups: pv.Fit) -> None:
    b = pv.posterior(groups, ROWS, 500, site="b", seed=0, proposal="guide")
    assert b.shape == (500, 2)
    assert (b.mean(0) - torch.tensor([1.0, 2.0])).abs().max() < BOUND * 0.5 / 500**0.5
    assert (b.std(0) / 0.5 - 1).abs().max() < BOUND / 1000**0.5
    several = pv.posterior(groups, ROWS, 1, site=["z", "m"], num_particles=10, proposal="guide")
    assert {name: value.shape for name, value in several.items()} == {"z": (1, 24), "m": (1, 12)}
    torch.testing.assert_close(pv.encode(groups, ROWS, site="b"), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(pv.encode(groups, ROWS, site="m"), torch.arange(12.0))
    assert pv.encode(groups, ROWS).shape == (24,)  # of the site that each row has
    for ask in (pv.posterior, pv.encode):
        with pytest.raises(pv.PairError, match="'b', 'm', 'z'; got 'q'"):
            ask(groups, ROWS, site="q")


def global_only(x: Tensor) -> None:
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(theta, 1.0), obs=x)


def test_a_global_site_is_named_even_if_it_is_the_only_one() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("theta", dist.Normal(pyro.param("loc", torch.tensor(3.0)), 0.1))

    fit = fitted(pv.Pair(global_only, guide), {"x": torch.zeros(5)})
    assert pv.posterior(fit, torch.zeros(5), 7, site="theta", proposal="guide").shape == (7,)
    assert pv.encode(fit, torch.zeros(5), site="theta").item() == pytest.approx(3.0)
    assert pv.generate(fit, 4, given={"theta": 40.0}).min() > 30
    with pytest.raises(pv.PairError, match="has none of each row, and 'theta' of all rows together"):
        pv.encode(fit, torch.zeros(5))


def test_global_sites_are_given(groups: pv.Fit) -> None:
    group = torch.tensor([0, 0, 3])
    given = {"group": group, "b": [100.0, 0.0], "m": torch.arange(12.0)}
    assert (pv.generate(groups, 3, given=given) - torch.tensor([100.0, 100.0, 103.0])).abs().max() < 1
    assert torch.equal(pv.decode(groups, torch.zeros(3), given=given), torch.tensor([100.0, 100.0, 103.0]))
    drawn = pv.simulate(groups, 3, given={"group": group})
    again = pv.simulate(groups, 3, given={"group": group, "b": drawn["b"], "m": drawn["m"]})
    assert torch.equal(again["b"], drawn["b"]) and torch.equal(again["m"], drawn["m"])
    with pytest.raises(pv.DataError, match=r"'b' is one value for all rows, of shape \(2,\), got \(3, 2\)"):
        pv.generate(groups, 3, given={"group": group, "b": torch.zeros(3, 2)})


@pytest.mark.slow
def test_global_sites_are_drawn_anew_for_each_call_or_row(groups: pv.Fit) -> None:
    calls = torch.stack(
        [pv.generate(groups, 2, given={"group": torch.zeros(2, dtype=torch.int64)}) for _ in range(200)]
    )
    rows = pv.generate(groups, 200, given={"group": torch.zeros(200, dtype=torch.int64)}, each_row=True, seed=0)
    for found in (calls[:, 0], rows):  # sd 0.5 of b, 0.1 of m, z and the noise each
        assert abs(found.var() / 0.28 - 1) < BOUND * (2 / 100) ** 0.5
    assert (calls[:, 0] - calls[:, 1]).abs().max() < 1.5  # within a call there is one b


class OfAllRows(Groups):
    """A guide that reads the rows for what they share."""

    def guide(self, x: Tensor, group: Tensor) -> None:
        pyro.sample("b", dist.Normal(self.b + x.mean(), 0.5).to_event(1))
        with pyro.plate("groups", 12):
            pyro.sample("m", dist.Normal(self.m, 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 0.1))


def test_global_sites_whose_guide_reads_the_rows_are_given() -> None:
    fit, group = fitted(OfAllRows(), ROWS), torch.tensor([0, 1])
    with pytest.raises(pv.PairError, match=r"reads the data for 'b'.*pv.posterior\(fitted, data, site='b'\)"):
        pv.generate(fit, 2, given={"group": group})
    b = pv.posterior(fit, {**ROWS, "x": ROWS["x"] + 50}, 3, site="b", num_particles=10, proposal="guide")
    assert (b[:, 0] - 51).abs().max() < 4
    assert pv.generate(fit, 2, given={"group": group, "b": b[0]}).min() > 40


# --- classes, and other values outside a support


def conditional(code: nn.Module, size: int) -> pv.CVAE:
    return pv.CVAE(
        condition=code,
        prior=pv.mlp(size, fam.Normal(2), hidden=(8,)),
        likelihood=pv.mlp((2, size), fam.Bernoulli(6), hidden=(8,)),
        encoder=pv.mlp((6, size), fam.Normal(2), hidden=(8,)),
    )


class Embedded(nn.Module):
    """A class that a table looks up."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.table, self.out_shape = nn.Embedding(num_classes, 2), torch.Size([2])

    def forward(self, y: Tensor) -> Tensor:
        found: Tensor = self.table(y)
        return found


CODES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "one-hot": (lambda: pv.nets.OneHot(3), 3),
    "thermometer": (lambda: pv.nets.Thermometer(3), 2),
    "embedding": (lambda: Embedded(3), 2),
}


def of_class(c: int) -> dict[str, Tensor]:
    x = torch.bernoulli(torch.full((12, 6), 0.5), generator=torch.Generator().manual_seed(0))
    classes = torch.arange(12) % 3
    classes[7] = c
    return {"x": x, "c": classes}


VERBS: dict[str, Callable[[pv.Fit, dict[str, Tensor]], Any]] = {
    "encode": lambda fit, rows: pv.encode(fit, rows, num_samples=5),
    "reconstruct": pv.reconstruct,
    "importance": lambda fit, rows: pv.importance(fit, rows, 5, proposal="guide"),
    "log_likelihood": lambda fit, rows: pv.log_likelihood(fit, rows, 5, proposal="guide"),
    "prior_log_likelihood": lambda fit, rows: pv.prior_log_likelihood(fit, rows, 5),
    "posterior": lambda fit, rows: pv.posterior(fit, rows, 1, num_particles=5, proposal="guide"),
    "generate": lambda fit, rows: pv.generate(fit, 12, given={"c": rows["c"]}),
    "simulate": lambda fit, rows: pv.simulate(fit, 12, given={"c": rows["c"]}),
    "decode": lambda fit, rows: pv.decode(fit, torch.zeros(12, 2), given={"c": rows["c"]}),
}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("unknown", [3, -1])
def test_an_unknown_class_is_refused(code: str, unknown: int) -> None:
    message = (
        "a value of 'c' is perhaps no class|index out of range" if code == "embedding" else "'c': 1 of 12 values.*row 7"
    )
    make, size = CODES[code]
    for options in ({"data": of_class(unknown)}, {"data": of_class(0), "check_also": of_class(unknown)}):
        with pytest.raises((pv.DataError, pv.PairError), match=message):
            fitted(conditional(make(), size), **options)
    fit = fitted(conditional(make(), size), of_class(0))
    for ask in VERBS.values():
        ask(fit, of_class(2))
        with pytest.raises(pv.DataError, match=message):
            ask(fit, of_class(unknown))


def labelled() -> tuple[pv.Fit, Tensor]:
    x = of_class(0)["x"]
    ssvae = pv.SSVAE(
        label_prior=pv.priors.Categorical(2),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.mlp((2, 2), fam.Bernoulli(6), hidden=(8,)),
        encoder=pv.mlp((6, 2), fam.Normal(2), hidden=(8,)),
        classifier=pv.mlp(6, fam.Categorical((), 2), hidden=(8,)),
        code=pv.nets.OneHot(2),
    )
    y = torch.where(torch.arange(12) < 6, torch.arange(12) % 2, -1)
    return fitted(ssvae, {"x": x, "y": y}), x


def test_a_given_value_is_checked_against_its_site() -> None:
    fit, x = labelled()
    y, z, half = torch.tensor([0, 7]), torch.zeros(2, 2), x[:2] + 0.5
    asked: list[tuple[Callable[[], Any], str]] = [
        (lambda: pv.generate(fit, 2, given={"y": [7, 7]}), "2 of 2 values.*first is 7 in row 0.*8 classes"),
        (lambda: pv.simulate(fit, 2, given={"y": y}), "first is 7 in row 1"),
        (lambda: pv.decode(fit, z, given={"y": y}, latent="z"), "first is 7 in row 1"),
        (lambda: pv.decode(fit, {"y": y, "z": z}), "first is 7 in row 1"),
        (lambda: pv.decode(fit, y, latent="y"), "first is 7 in row 1"),
        (lambda: pv.encode(fit, {"x": x[:2], "y": y}, site="z"), "7 in row 1"),
        (lambda: pv.reconstruct(fit, {"x": x[:2], "y": y}), "7 in row 1"),
        (lambda: pv.encode(fit, half, site="z"), "'x'.*outside the support of Bernoulli"),
        (lambda: pv.reconstruct(fit, half), "'x'.*outside the support of Bernoulli"),
        (lambda: pv.generate(fit, 2, given={"x": half}, site="y"), "'x'.*outside the support of Bernoulli"),
    ]
    for ask, message in asked:
        with pytest.raises(pv.DataError, match=message):
            ask()


def test_a_label_is_drawn_given_its_row() -> None:
    fit, x = labelled()
    with fit.scope():
        q = fit.pair.classifier(x).probs  # type: ignore[attr-defined]
    drawn = pv.generate(fit, 4800, given={"x": x.repeat(400, 1)}, site="y", seed=0).reshape(400, 12).double()
    assert (drawn.mean(0) - q[:, 1]).abs().max() < BOUND * 0.5 / 400**0.5
    assert set(pv.simulate(fit, 5)) == {"y", "z", "x"}  # without what only the objective has
    with pytest.raises(pv.PairError, match=r"latent in rows that lack it.*encode\(fitted, data, site='y'\)"):
        pv.reconstruct(fit, x, site="y")
