"""Exploring a fitted model: which pairs can be, what values of latent sites mean, and which cannot be."""

import json
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from support.exploring import explored, gaussian
from support.programs import ROWS, Row, hierarchy
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.app.jobs.explore import Explorer
from pyrovae.app.jobs.explore.latents import Latent
from pyrovae.errors import DataError, OptionError, PairError
from pyrovae.pair.layout import Site


@pytest.fixture(scope="module")
def plain() -> Explorer:
    return gaussian()


@pytest.fixture(scope="module")
def levels() -> Explorer:
    torch.manual_seed(0)
    return explored(hierarchy(pv.HierarchicalVAE), torch.bernoulli(torch.full((40, 6), 0.4)))


# --- any pair --------------------------------------------------------------------------------------------------------

WITHOUT = ("regression", "auto-normal", "auto-diagonal-normal")  # latent variables of rows
ALIKE = (  # the model of another row, or one whose runs are explored in test_cli_models.py
    *("vae-plain-distribution-prior", "vae-shared-scale", "classes-to-encode", "joint-vae-classes-to-encode"),
    "spatial-pose-to-encode",
    *("ssvae-none-labelled", "hierarchical-vae-top-to-encode", "categorical-relaxed", "auto-diagonal-normal"),
    *("nvae", "ladder-vae", "adgm", "sdgm", "joint-vae", "vqvae"),
)


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ALIKE])
def test_every_pair_is_explored_or_refused_in_one_line(name: str) -> None:
    row: Row = ROWS[name]
    pyro.set_rng_seed(0)
    data = row.data()
    if name in WITHOUT:
        with pytest.raises(PairError, match=r"^There is nothing to explore: .* no latent variable of rows\.$"):
            explored(row.build(), data)
        return
    explorer = explored(row.build(), data, epochs=int(name == "vqvae-codebook"))  # whose codes are those of rows
    found = explorer.describe()
    start = found["start"]
    assert start["held"] == [] and list(start["values"]) == [site["name"] for site in found["sites"]]
    assert set(start["shown"]) == {"x1", "x2"} if name == "multimodal" else {"x"}
    assert start["total"] == pytest.approx(sum(start["log_p"].values()))
    again = explorer.decode({"held": start["values"], "given": start["given"]})  # what was drawn, held
    assert again["values"] == start["values"]
    for site, log_p in start["log_p"].items():
        assert again["log_p"][site] == pytest.approx(log_p, rel=1e-4, abs=1e-4)
    assert explorer.decode({"seed": 1})["values"] != start["values"]
    json.dumps(found, allow_nan=False)
    if not found["conditions"]:  # of numbers of a pair that nobody knows more of, no row is known
        from_row = explorer.start_from({"row": 3})
        assert from_row["held"] == list(start["values"]) and from_row["row"] == 3


def test_a_model_that_reads_what_it_generates_is_refused_in_one_line() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 2)

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.net(x) + z, 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.net(x), 1.0).to_event(1))

    with pytest.raises(PairError, match="nothing to explore, since this model does not decode: .* reads an argument"):
        explored(Reads(), torch.randn(20, 2))


# --- what is decoded -------------------------------------------------------------------------------------------------


def test_what_is_held_is_decoded_and_has_the_density_of_the_prior(plain: Explorer) -> None:
    z = [0.5, -1.25]
    found = plain.decode({"held": {"z": z}, "seed": 3})
    assert found["values"] == {"z": z} and found["held"] == ["z"]
    assert found["total"] == pytest.approx(-math.log(2 * math.pi) - (0.25 + 1.5625) / 2, abs=1e-5)
    mean = pv.decode(plain.fitted, torch.tensor([z]))[0].tolist()
    assert [line["mean"] for line in found["shown"]["x"]["lines"]] == [f"{value:.4g}" for value in mean]
    # p(z') < p(z) where |z'| > |z|, of which the probability is exp(-|z|^2 / 2); five standard errors, one alarm in 10^6
    exact = math.exp(-(0.25 + 1.5625) / 2)
    assert found["less_dense"] == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 256))
    assert plain.decode({"held": {"z": [9.0, 9.0]}})["less_dense"] == 0.0
    assert plain.decode({"held": {"z": [0.0, 0.0]}})["less_dense"] == 1.0
    assert plain.decode({"seed": 3}) == plain.decode({"seed": 3}) != plain.decode({"seed": 4})


def test_intervals_and_draws_follow_the_likelihood(plain: Explorer) -> None:
    found = plain.decode({"held": {"z": [0.5, -1.25]}})
    with plain.fitted.scope():
        fn = plain.fitted.pair.likelihood(torch.tensor([[0.5, -1.25]])).base_dist
    for line, loc, scale in zip(found["shown"]["x"]["lines"], fn.loc[0].tolist(), fn.scale[0].tolist()):
        # a quantile q of n draws is within 5 sqrt(q (1 - q) / n) of its share: for 0.05 and 400 draws from 0 to 0.105
        low, high = ((float(line[end]) - loc) / scale for end in ("low", "high"))
        assert -3.9 < low < -1.25 and 1.25 < high < 3.9
        assert abs(float(line["draw"]) - loc) < 5.5 * scale


def test_a_level_is_drawn_given_the_held_one_above_with_the_noise_of_the_seed(levels: Explorer) -> None:
    pair: Any = levels.fitted.pair

    def noise(top: list[float], seed: int) -> Tensor:
        found = levels.decode({"held": {"z3": top}, "seed": seed})
        assert found["values"]["z3"] == top
        with levels.fitted.scope():
            fn = pair.lower[-1](torch.tensor([top])).base_dist
        return (torch.tensor(found["values"]["z2"]) - fn.loc[0]) / fn.scale[0]

    width = levels.latents["z3"].size
    one, moved = noise([0.3] * width, 5), noise([-1.5] * width, 5)
    assert torch.allclose(one, moved, atol=1e-3) and not torch.allclose(one, noise([0.3] * width, 6), atol=1e-3)
    drawn = levels.decode({"seed": 5})
    for name in drawn["values"]:  # to hold what was drawn changes nothing
        again = levels.decode({"held": {name: drawn["values"][name]}, "seed": 5})
        for one, other in zip(again["values"].values(), drawn["values"].values()):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    below = levels.decode({"seed": 1})["values"]
    held = levels.decode({"held": {name: below[name] for name in ("z1", "z2")}, "seed": 2})
    assert held["values"]["z1"] == below["z1"] and held["values"]["z3"] != below["z3"]
    assert held["shown"]["x"]["lines"][0]["mean"] == levels.decode({"seed": 1})["shown"]["x"]["lines"][0]["mean"]


class Below(nn.Module):
    """p(z) p(y | z) p(x | z, y): a label that depends on a latent variable."""

    def __init__(self, least: float = -math.inf) -> None:
        super().__init__()
        self.label, self.likelihood, self.encoder = nn.Linear(2, 3), nn.Linear(5, 6), nn.Linear(6, 2)
        self.least = least

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            if bool((z < self.least).any()):
                raise ValueError("a rule of its own")
            y = pyro.sample("y", dist.Categorical(logits=self.label(z)), obs=y)
            code = torch.cat([z, nn.functional.one_hot(y, 3).float()], -1)
            pyro.sample("x", dist.Normal(self.likelihood(code), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))
            if y is None:
                pyro.sample("y", dist.Categorical(logits=x[..., :3]))


def test_a_label_that_is_held_says_nothing_about_what_is_above_it() -> None:
    torch.manual_seed(0)
    explorer = explored(Below(), {"x": torch.randn(40, 6), "y": torch.arange(40) % 3 - (torch.arange(40) % 2)})
    drawn, held = explorer.decode({"seed": 3}), explorer.decode({"held": {"y": [2]}, "seed": 3})
    assert held["values"] == {"z": drawn["values"]["z"], "y": [2]}
    z = torch.tensor(held["values"]["z"])
    assert held["log_p"]["z"] == pytest.approx(float(dist.Normal(0.0, 1.0).log_prob(z).sum()), abs=1e-4)
    with explorer.fitted.scope():
        assert held["log_p"]["y"] == pytest.approx(float(explorer.fitted.pair.label(z).log_softmax(-1)[2]), abs=1e-4)


def test_a_model_that_fails_says_how_it_does() -> None:
    torch.manual_seed(0)
    explorer = explored(Below(least=-10.0), {"x": torch.randn(40, 6), "y": torch.arange(40) % 3 - 1})
    with pytest.raises(DataError, match=r"the model fails here \(a rule of its own\): go back"):
        explorer.decode({"held": {"z": [-20.0, 0.0]}})


def test_a_row_starts_at_its_posterior_means(plain: Explorer) -> None:
    assert plain.rows is not None
    row = plain.rows(torch.tensor([7]))
    found = plain.start_from({"row": 7, "seed": 4})
    np.testing.assert_allclose(found["values"]["z"], pv.encode(plain.fitted, row)[0], rtol=1e-5)
    assert [line["row"] for line in found["shown"]["x"]["lines"]] == [f"{value:.4g}" for value in row["x"][0].tolist()]
    assert plain.decode({"held": found["values"], "row": 7, "seed": 4}) == found


def test_active_dimensions_come_first() -> None:
    torch.manual_seed(0)
    encoder = pv.mlp(6, fam.Normal(12), hidden=())
    with torch.no_grad():
        layer: Any = next(module for module in encoder.modules() if isinstance(module, nn.Linear))
        layer.weight[:12] *= torch.arange(12.0).unsqueeze(1)
    pair = pv.VAE(pv.priors.StandardNormal(12), pv.mlp(12, fam.Normal(6), hidden=(8,)), encoder)
    explorer = explored(pair, torch.randn(200, 6))
    site, middles = explorer.describe()["sites"][0], explorer.decode({})["middles"]["z"]
    activity = [dim["activity"] for dim in site["dims"]]
    assert activity == sorted(activity, reverse=True) and activity[-1] < 0.1 * activity[0]
    assert sorted(dim["index"] for dim in site["dims"]) == list(range(12)) and site["dims"][-1]["index"] == 0
    for dim in site["dims"]:
        assert dim["low"] < -2 < middles[str(dim["index"])] < 2 < dim["high"] and dim["name"] == str(dim["index"])


def test_of_very_many_dimensions_only_the_most_active_have_sliders() -> None:
    explorer = gaussian(70)
    found = explorer.describe()
    assert len(found["sites"][0]["dims"]) == 64 and found["sites"][0]["others"] == 6
    assert len(found["start"]["values"]["z"]) == 70


@pytest.mark.parametrize(
    "held",
    [
        {"z": [1.0]},
        {"z": [1.0, 2.0, 3.0]},
        {"z": []},
        {"z": 1.0},
        {"z": "12"},
        {"z": {"0": 1}},
        {"z": None},
        {"z": [True, 1.0]},
        {"z": ["1", 1.0]},
        {"z": [None, 1.0]},
        {"z": [[1.0], [2.0]]},
        {"z": [math.nan, 0.0]},
        {"z": [math.inf, 0.0]},
        {"z": [-math.inf, 0.0]},
        {"z": [1e300, 0.0]},
        {"z": [10**400, 0.0]},
        {"y": [1]},
        {"": []},
        {"z\x00": [0.0, 0.0]},
        [1.0, 2.0],
        "z",
    ],
)
def test_values_that_cannot_be_held(plain: Explorer, held: Any) -> None:
    with pytest.raises(DataError):
        plain.decode({"held": held})


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        ({"seed": math.nan}, OptionError),
        ({"seed": 1.5}, OptionError),
        ({"seed": True}, OptionError),
        ({"seed": 2**63}, OptionError),
        ({"seed": "1"}, OptionError),
        ({"row": 40}, DataError),
        ({"row": -1}, DataError),
        ({"row": 1.0}, DataError),
        ({"row": True}, DataError),
        ({"row": "1"}, DataError),
        ({"row": 10**30}, DataError),
        ({"given": {"c": "1"}}, DataError),
        ({"given": [1]}, DataError),
        ({"moved": "z"}, DataError),
        ({"moved": ["z", 2], "held": {"z": [0, 0]}}, DataError),
        ({"moved": ["z", -1], "held": {"z": [0, 0]}}, DataError),
        ({"moved": ["z", None, 0]}, DataError),
    ],
)
def test_what_else_cannot_be(plain: Explorer, sent: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        plain.decode(sent)


def test_a_row_has_to_be_there(plain: Explorer) -> None:
    for sent in ({}, {"row": None}, {"row": 40}, {"row": [1]}):
        with pytest.raises(DataError, match="numbered from 0 to 39"):
            plain.start_from(sent)
    with pytest.raises(DataError, match="no data"):
        Explorer(plain.fitted).start_from({"row": 0})


def test_where_the_decoder_overflows_it_is_said_and_nothing_is_lost() -> None:
    torch.manual_seed(0)
    x = torch.rand(40, 6).exp()
    parts = pv.mlp(2, fam.LogNormal(6), hidden=()), pv.mlp(6, fam.Normal(2), hidden=(8,))
    explorer = explored(pv.VAE(pv.priors.StandardNormal(2), *parts), x)
    with pytest.raises(DataError, match="no finite numbers here"):
        explorer.decode({"held": {"z": [1e6, 1e6]}})
    assert explorer.decode({"held": {"z": [1.0, 1.0]}})["total"] < 0


# --- kinds of sites --------------------------------------------------------------------------------------------------


def latent_of(fn: Any, event_dims: int = 1, rows: int = 30) -> Latent:
    wide = fn.expand([rows])
    draws = wide.sample()
    event = tuple(draws.shape[1:])
    assert len(event) == event_dims
    return Latent(Site("s", "latent", True, event, None, False, None), wide, draws)


def test_what_a_point_on_a_sphere_keeps_is_what_was_moved() -> None:
    latent = latent_of(pv.priors.HypersphericalUniform(3)())
    assert latent.kind == "sphere" and latent.moves
    value = latent.read([0.6, 3.0, 4.0], 0)[0]
    assert torch.allclose(value, torch.tensor([0.6, 0.48, 0.64])) and value.norm() == pytest.approx(1)
    assert torch.allclose(latent.read([0.0, 3.0, 4.0])[0], torch.tensor([0.0, 0.6, 0.8]))
    assert torch.allclose(latent.read([2.0, 1.0, 0.0], 0)[0], torch.tensor([1.0, 0.0, 0.0]))
    assert latent.read([0.6, 0.0, 0.0], 0).norm() == pytest.approx(1)  # the others start from nothing
    with pytest.raises(DataError, match="all of its numbers are 0"):
        latent.read([0.0, 0.0, 0.0])


def test_what_shares_keep_is_what_was_moved() -> None:
    latent = latent_of(dist.Dirichlet(torch.ones(3)))
    assert latent.kind == "shares"
    assert torch.allclose(latent.read([0.5, 0.2, 0.6], 0)[0], torch.tensor([0.5, 0.125, 0.375]))
    assert torch.allclose(latent.read([1.0, 1.0, 2.0])[0], torch.tensor([0.25, 0.25, 0.5]))
    edge = latent.read([1.0, 0.0, 0.0], 0)[0]
    assert bool((edge > 0).all()) and edge.sum() == pytest.approx(1) and edge[0] > 0.999
    for wrong in ([-0.1, 0.5, 0.6], [0.0, 0.0, 0.0]):
        with pytest.raises(DataError):
            latent.read(wrong)


@pytest.mark.parametrize(
    ("fn", "dims", "kind", "numbers", "wrong"),
    [
        (dist.Categorical(logits=torch.zeros(4)), 0, "whole numbers", [3], [4]),
        (dist.Bernoulli(torch.full((3,), 0.5)).to_event(1), 1, "whole numbers", [0, 1, 1], [0, 1, 2]),
        (dist.Poisson(torch.full((2,), 3.0)).to_event(1), 1, "whole numbers", [7, 0], [-1, 0]),
        (dist.OneHotCategorical(logits=torch.zeros(2, 3)).to_event(1), 2, "one-hot", [2, 0], [3, 0]),
    ],
)
def test_whole_numbers_of_all_kinds(fn: Any, dims: int, kind: str, numbers: list[int], wrong: list[int]) -> None:
    latent = latent_of(fn, dims)
    assert latent.kind == kind and not latent.moves
    value = latent.read(numbers)
    assert latent.write(value) == numbers and bool(torch.isfinite(fn.log_prob(value)).all())
    assert latent.read([float(number) for number in numbers]).equal(value)
    for bad in (wrong, [number + 0.5 for number in numbers]):
        with pytest.raises(DataError, match="whole numbers"):
            latent.read(bad)
    assert latent.describe()["options"] == (
        None if latent.highest is None else [str(i) for i in range(latent.highest + 1)]
    )


@pytest.mark.parametrize("codes", [pv.nets.FSQ((5, 3), (2, 2)), pv.nets.FSQ((3, 4), 3)])
def test_codes_are_written_by_their_numbers(codes: Any) -> None:
    prior = pv.priors.Categorical(codes.num_codes, event_shape=codes.index_shape)()
    fn = pv.distributions.Codes(prior, codes)
    latent = latent_of(fn, len(codes.event_shape))
    numbers = list(range(math.prod(codes.index_shape)))
    value = latent.read([number % codes.num_codes for number in numbers])
    assert latent.kind == "codes" and latent.write(value) == [number % codes.num_codes for number in numbers]
    assert bool(fn.support.check(value).all()) and latent.shape == tuple(codes.index_shape)
    with pytest.raises(DataError, match=f"whole numbers from 0 to {codes.num_codes - 1}"):
        latent.read([codes.num_codes, *numbers[1:]])


def test_codes_stay_as_they_were_typed_where_others_stand_for_the_same_value() -> None:
    torch.manual_seed(0)
    codes = pv.nets.ResidualVQ(4, 3, 2, depth=2)  # before its first step all vectors are alike
    pair = pv.VQVAE(
        pv.priors.Categorical(4, event_shape=codes.index_shape),
        pv.Conditional(pv.nets.Behind(pv.nets.Flat((3, 2)), pv.nets.MLP(6, (1, 6))), fam.Bernoulli(6)),
        pv.nets.MLP(6, (3, 2)),
        codes,
    )
    found = explored(pair, torch.bernoulli(torch.full((40, 6), 0.4))).decode({"held": {"z": [3, 1, 2, 0]}})
    assert found["values"] == {"z": [3, 1, 2, 0]}


@pytest.mark.parametrize("fn", [dist.Dirichlet(torch.ones(2, 3)), pv.priors.HypersphericalUniform(3)().expand((2,))])
def test_groups_of_shares_and_points_move_apart(fn: Any) -> None:
    torch.manual_seed(0)
    latent = latent_of(fn.to_event(1), 2)
    drawn = fn.sample()[None]
    assert torch.allclose(latent.read(latent.write(drawn)), drawn, atol=1e-4)
    moved = latent.read([*drawn[0, 0].tolist(), 0.25, *drawn[0, 1, 1:].tolist()], 3)
    assert torch.allclose(moved[0, 0], drawn[0, 0], atol=1e-4) and moved[0, 1, 0] == pytest.approx(0.25, abs=1e-4)
    norm = moved.sum(-1) if latent.kind == "shares" else moved.norm(dim=-1)
    assert torch.allclose(norm, torch.ones(1, 2))


@pytest.mark.parametrize(
    ("fn", "low", "high"),
    [
        (dist.Beta(torch.ones(2), 1.0), 0.0, 1.0),
        (dist.LogNormal(torch.zeros(2), 1.0), 1e-4, math.inf),
        (dist.Uniform(torch.zeros(2), 1.0 + torch.rand(30, 1)), 0.0, 2.0),  # as wide as another site says
    ],
)
def test_sliders_stay_inside_of_the_support(fn: Any, low: float, high: float) -> None:
    latent = latent_of(fn.to_event(1))
    for dim in latent.describe()["dims"]:
        assert low <= dim["low"] < 0.1 and 0.5 < dim["high"] <= high
    assert latent.read([dim["low"] for dim in latent.describe()["dims"]]).isfinite().all()
    for value in latent._draws[:5]:
        assert torch.allclose(latent.read(latent.write(value[None])), value[None], rtol=1e-4)


def test_what_a_prior_draws_can_be_held_however_large_it_is() -> None:
    latent = latent_of(dist.Normal(torch.zeros(2), 1e9).to_event(1))
    value = latent._draws[latent._draws.abs().sum(1).argmax()][None]
    assert torch.allclose(latent.read(latent.write(value)), value, rtol=1e-5)
    with pytest.raises(DataError, match="takes numbers between"):
        latent.read([1e12, 0.0])


def test_a_value_outside_of_a_support_is_refused() -> None:
    latent = latent_of(dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    assert latent.read([0.5, 2.0]).tolist() == [[0.5, 2.0]]
    with pytest.raises(DataError, match="no such value"):
        latent.read([0.5, -2.0])


def test_a_prior_without_a_preference_says_so() -> None:
    torch.manual_seed(0)
    pair = pv.CategoricalVAE(
        pv.priors.OneHotCategorical((2, 3)), pv.mlp(6, fam.Bernoulli(6)), pv.mlp(6, fam.OneHotCategorical((2, 3)))
    )
    found = explored(pair, torch.bernoulli(torch.full((40, 6), 0.4))).decode({"held": {"z": [1, 2]}})
    assert not gaussian().decode({"held": {"z": [1e5, 1e5]}})["even"]  # however far the point is
    assert found["even"] and found["less_dense"] == 0.5 and found["total"] == pytest.approx(-2 * math.log(3))
