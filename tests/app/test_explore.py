"""Exploring a fitted model: what values of latent sites mean, what the server answers to whom, and what the command refuses."""

import base64
import io
import json
import math
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from support.command import Command
from support.programs import ROWS, Row, hierarchy
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.app import run as runs
from pyrovae.app.given import Given, GivenCaptions
from pyrovae.app.jobs.explore import Explorer
from pyrovae.app.jobs.explore.conditions import OfCaptions, OfClass, OfColumns, check_fields
from pyrovae.app.jobs.explore.latents import Latent
from pyrovae.app.jobs.explore.shown import Cells, Columns, Pictures
from pyrovae.app.options import Options
from pyrovae.app.pages import explore as page
from pyrovae.app.pages import serve
from pyrovae.app.rows import of_source
from pyrovae.data import Dataset
from pyrovae.data.load import read
from pyrovae.errors import DataError, OptionError, PairError
from pyrovae.pair.layout import Site


def explored(pair: Any, data: Any, epochs: int = 0, **how: Any) -> Explorer:
    """An explorer of a pair as it stands, or after a short fit, which can start from any of its rows."""
    fitted = pv.fit(pair, data, epochs=epochs, seed=1, engine="eager", progress=False)
    batch = fitted.batch(data)
    inputs = {name: value for name, value in batch.items() if name != "y"}
    num = len(next(iter(batch.values())))
    return Explorer(fitted, rows=lambda which: {k: v[which] for k, v in inputs.items()}, num_rows=num, **how)


def gaussian(latent: int = 2, prior: Any = None) -> Explorer:
    """A VAE whose decoder is linear with bounded weights, and so known everywhere."""
    torch.manual_seed(0)
    x = torch.randn(40, 6)
    parts = pv.mlp(latent, fam.Normal(6), hidden=()), pv.mlp(6, fam.Normal(latent), hidden=(8,))
    return explored(pv.VAE(prior or pv.priors.StandardNormal(latent), *parts), x)


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
    below = levels.decode({"seed": 1})["values"]
    held = levels.decode({"held": {name: below[name] for name in ("z1", "z2")}, "seed": 2})
    assert held["values"]["z1"] == below["z1"] and held["values"]["z3"] != below["z3"]
    assert held["shown"]["x"]["lines"][0]["mean"] == levels.decode({"seed": 1})["shown"]["x"]["lines"][0]["mean"]


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
    site = explored(pair, torch.randn(200, 6)).describe()["sites"][0]
    activity = [dim["activity"] for dim in site["dims"]]
    assert activity == sorted(activity, reverse=True) and activity[-1] < 0.1 * activity[0]
    assert sorted(dim["index"] for dim in site["dims"]) == list(range(12)) and site["dims"][-1]["index"] == 0
    for dim in site["dims"]:
        assert dim["low"] < -2 < dim["middle"] < 2 < dim["high"] and dim["name"] == str(dim["index"])


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
    assert found["even"] and found["less_dense"] == 0.5 and found["total"] == pytest.approx(-2 * math.log(3))


# --- what the model is given -----------------------------------------------------------------------------------------


def test_a_class_is_given_by_its_name() -> None:
    of = OfClass(("cat", "dog"), torch.tensor([1, 0]))
    assert of.read({"c": "dog"})["c"].tolist() == [1] and of.of_row(0) == {"c": "dog"} and of.start == {"c": "cat"}
    with pytest.raises(DataError, match="c has no value 'cow'; known: cat, dog"):
        of.read(check_fields(of, {"c": "cow"}))
    for wrong in ({"d": "cat"}, ["cat"], "cat", {"c": ["cat"]}, {"c": True}, {"c": "c" * 2000}, {"c": math.inf}):
        with pytest.raises(DataError):
            check_fields(of, wrong)


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    random = np.random.default_rng(0)
    kind = random.integers(0, 3, 60)
    table = pd.DataFrame(
        {
            "age": random.integers(20, 80, 60),
            "kind": np.array(["rose", "tulip", "7"], dtype=object)[kind],
            "seen": pd.date_range("2024-01-01", periods=60).astype(str),
            "size": (kind + random.normal(0, 0.3, 60)).round(2),
        }
    )
    return table


def test_columns_are_given_as_they_are_typed(people: pd.DataFrame) -> None:
    schema = pv.tables.infer(people)
    encoded = schema.encode(people)
    of = OfColumns(Given(schema, {"train": encoded}), encoded)
    assert [field["name"] for field in of.fields] == ["age", "kind", "seen", "size"]
    assert of.of_row(4) == {name: str(people[name][4]) for name in people}
    for row in (0, 4, 59):
        assert of.read(of.of_row(row))["c"].equal(of.given.argument(encoded[row : row + 1])["c"])
    for sent, says in (
        ({"kind": "oak"}, "kind has no value 'oak'"),
        ({"age": "old"}, "'age' holds .* none"),
        ({"age": 1e300}, "beyond the"),
        ({"age": ""}, "has no age, which the model is given"),
        ({"size": "inf"}, "none, such as 'inf'"),
        ({"age": math.nan}, "finite"),
    ):
        with pytest.raises(DataError, match=says):
            of.read(check_fields(of, sent))


@pytest.mark.digits(30)
def test_captions_are_given_in_words() -> None:
    data = pv.data.load("digits", conditions="captions")
    assert data.captions is not None and data.c is not None
    of = OfCaptions(GivenCaptions(data.captions, {"train": data.c}), data.c)
    assert of.read(of.start)["c"].shape == (1, data.c.shape[1]) and of.read(of.of_row(3))["c"].equal(data.c[3:4])
    assert int((of.read({"c": ""})["c"] != 0).sum()) == 0  # a caption may say nothing
    with pytest.raises(DataError, match="'sevn' .did you mean seven"):
        of.read(check_fields(of, {"c": "a sevn"}))


# --- how it is shown -------------------------------------------------------------------------------------------------


def pixels(picture: str) -> Any:
    kind, _, content = picture.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_pictures_have_the_grey_values_of_the_data() -> None:
    fn = dist.Bernoulli(torch.tensor([[[0.0, 0.25], [0.5, 1.0]]])).to_event(2)
    row = torch.tensor([[[0.2, math.nan], [1.0, 0.0]]])
    found = Pictures((2, 2), 0.0, 1.0).show(fn, torch.ones(1, 2, 2), row)
    assert pixels(found["mean"]).tolist() == [[0, 64], [128, 255]] and pixels(found["draw"]).tolist() == [[255] * 2] * 2
    assert pixels(found["row"]).tolist() == [[51, 0], [255, 0]] and (found["width"], found["height"]) == (2, 2)
    levels = torch.tensor([[[-2.0, 0.0, 2.0, 6.0]]])
    own = Pictures((1, 4)).show(dist.Normal(levels, 1.0).to_event(2), levels, None)
    assert pixels(own["mean"]).tolist() == [[0, 64, 128, 255]] and own["row"] is None
    colours = torch.rand(1, 3, 1, 2)
    shown = Pictures((3, 1, 2), 0.0, 1.0).show(dist.Delta(colours).to_event(3), colours, None)
    np.testing.assert_array_equal(pixels(shown["mean"])[0].T, np.rint(colours[0, :, 0].numpy() * 255))
    with pytest.raises(DataError, match="no finite numbers"):
        Pictures((1, 4)).show(dist.Normal(levels, 1.0).to_event(2), levels * math.inf, None)


def test_classes_without_an_order_are_shown_by_the_most_probable() -> None:
    fn = dist.Categorical(logits=torch.tensor([[[0.0, 3.0, 1.0], [2.0, 0.0, 0.0]]])).to_event(1)
    lines = Columns(["a", "b"]).show(fn, torch.tensor([[2, 2]]), torch.tensor([[0, 1]]))["lines"]
    assert [(line["mean"], line["draw"], line["row"]) for line in lines] == [("1", "2", "0"), ("0", "2", "1")]
    assert Columns(["a", "b"]).show(fn, torch.tensor([[2, 2]]), None)["point"] == "most probable"


def test_cells_of_a_table_are_written_as_the_table_writes_them(people: pd.DataFrame) -> None:
    schema = pv.tables.infer(people)
    rows = schema.encode(people)
    torch.manual_seed(0)
    family = schema.family(rows)
    fn = family(torch.randn(1, *family.param_shape))
    row = rows[4:5].clone()
    row[0, schema.names.index("size")] = math.nan
    lines = {line["name"]: line for line in Cells(schema).show(fn, rows[9:10], row)["lines"]}
    assert list(lines) == ["age", "kind", "seen", "size"]
    assert {name: line["draw"] for name, line in lines.items()} == {name: str(people[name][9]) for name in people}
    assert lines["kind"]["row"] == people["kind"][4] and lines["size"]["row"] == ""
    shares = dict(lines["kind"]["shares"])
    kind = schema.names.index("kind")
    exact = next(block.probs[0, 0] for block in fn.blocks if hasattr(block, "probs")) if kind else None
    assert exact is not None and sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert shares == pytest.approx({str(c): float(p) for c, p in zip(schema.classes[0].categories, exact)}, abs=1e-4)
    assert lines["kind"]["mean"] == max(shares, key=lambda name: shares[name])
    for name in ("age", "size"):
        assert float(lines[name]["low"]) <= float(lines[name]["high"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", lines["seen"]["mean"])


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Explorer:
    """Of a conditional run of images."""
    torch.manual_seed(0)
    x = torch.rand(40, 16).round(decimals=3)
    y = torch.arange(40) % 2
    data = Dataset(
        "few", x, "unit", {"name": "few", "checksum": "none"}, y=y, classes=("cat", "dog"), image_shape=(4, 4)
    )
    options = Options.of("fit", model="cvae", epochs=1, hidden=(8,), latent=2)
    folder = tmp_path_factory.mktemp("explore") / "few"
    return Explorer.of(runs.fit_run(data, options, folder, engine="eager", progress=False))


def test_a_run_is_explored_with_its_classes_pictures_and_rows(digits: Explorer) -> None:
    found = digits.describe()
    assert found["name"] == "few" and found["rows"] == 40 and found["parents"] == {"x": ["z", "c"]}
    assert found["conditions"] == [{"name": "c", "kind": "choice", "options": ["cat", "dog"]}]
    (site,) = found["sites"]
    assert site["density"] == "p(z | c)" and len(site["points"]) == 40 and set(site["labels"]) == {"cat", "dog"}
    row = digits.start_from({"row": 5})
    assert row["given"] == {"c": "dog"}
    assert digits.rows is not None
    shown = digits.rows(torch.tensor([5]))["x"].reshape(4, 4).numpy()
    np.testing.assert_array_equal(pixels(row["shown"]["x"]["row"]), np.rint(shown * 255))
    cat = digits.decode({"held": row["values"], "given": {"c": "cat"}})
    assert cat["shown"]["x"]["mean"] != row["shown"]["x"]["mean"] and cat["total"] != row["total"]


@pytest.mark.parametrize("model", ["vae", "cvae"])
def test_a_table_is_explored_in_its_own_cells(people: pd.DataFrame, tmp_path: Path, model: str) -> None:
    people.to_csv(tmp_path / "people.csv", index=False)
    more = {"condition": "kind,seen"} if model == "cvae" else {}
    options = Options.of("fit", model=model, epochs=1, hidden=(8,), latent=3, **more)
    data = read(str(tmp_path / "people.csv"), **options.table)
    explorer = Explorer.of(runs.fit_run(data, options, tmp_path / "run", engine="eager", progress=False))
    row = explorer.start_from({"row": 6})
    modelled = [name for name in people if name not in ("kind", "seen") or model == "vae"]
    assert {line["name"]: line["row"] for line in row["shown"]["x"]["lines"]} == {
        n: str(people[n][6]) for n in modelled
    }
    assert row["given"] == ({} if model == "vae" else {name: str(people[name][6]) for name in ("kind", "seen")})


def test_rows_of_a_test_set_come_last() -> None:
    first, rest, which = torch.arange(5), 10 + torch.arange(3), torch.tensor([7, 0, 5, 4])
    assert of_source(first, rest).tolist() == [0, 1, 2, 3, 4, 10, 11, 12]
    assert of_source(first, rest, which).tolist() == [12, 0, 10, 4] and first.tolist() == [0, 1, 2, 3, 4]
    assert of_source(first, None, which[1:2]).tolist() == [0]


# --- the server ------------------------------------------------------------------------------------------------------

TOKEN = "secret"


@pytest.fixture
def client(plain: Explorer) -> Iterator[TestClient]:
    app = page.explore_app(plain, TOKEN)
    with TestClient(app, base_url="http://127.0.0.1:8765", raise_server_exceptions=False) as found:
        yield found


def test_the_page_holds_all_that_it_needs_and_may_load_nothing_else(client: TestClient) -> None:
    answer = client.get(f"/{TOKEN}/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert "http:" not in re.sub(r'"http://www.w3.org/2000/svg"', "", answer.text) and "https:" not in answer.text
    assert " style=" not in answer.text and "innerHTML" not in answer.text and not re.search(r"\son\w+=", answer.text)
    for name, value in serve.HEADERS.items():
        assert client.get(f"/{TOKEN}/state").headers[name] == value


def test_only_this_machine_s_own_page_is_answered(client: TestClient) -> None:
    sent: dict[str, Any] = {"held": {"z": [0.0, 0.0]}}
    assert client.post(f"/{TOKEN}/decode", json=sent).status_code == 200
    for path in ("/decode", "/wrong/decode", "/secre/decode", "/"):
        assert client.post(path, json=sent).status_code == 403
    for headers in (
        {"host": "evil.com"},
        {"host": "127.0.0.1.evil.com"},
        {"origin": "http://evil.com"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        answer = client.post(f"/{TOKEN}/decode", json=sent, headers=headers)
        assert answer.status_code == 403 and set(answer.json()) == {"error"}
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post(f"/{TOKEN}/decode", content=json.dumps(sent), headers={"content-type": kind})
        assert answer.status_code == 415
    for method, path in (("GET", "decode"), ("GET", "row"), ("POST", "state"), ("DELETE", "state"), ("OPTIONS", "row")):
        assert (
            client.request(method, f"/{TOKEN}/{path}", headers={"content-type": "application/json"}).status_code == 405
        )
    for path in ("run.json", "../run.json", "%2e%2e/etc/passwd", "state/", "static/x"):
        assert client.get(f"/{TOKEN}/{path}").status_code in (403, 404)


def test_what_is_no_question_is_refused_in_one_line(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    for wrong in (b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 50_000, b'{"seed": ' + b"9" * 5_000 + b"}"):
        for path in ("decode", "row"):
            answer = client.post(f"/{TOKEN}/{path}", content=wrong, headers=headers)
            assert answer.status_code == 400 and "\n" not in answer.json()["error"]
    huge = client.post(f"/{TOKEN}/decode", content=b" " * (page.MOST_BYTES + 1), headers=headers)
    assert huge.status_code == 413
    for text in (
        '{"held": {"z": [NaN, 0]}}',
        '{"held": {"z": [Infinity, 0]}}',
        '{"held": {"z": [1e999, 0]}}',
        '{"held": {"z": [0]}}',
        '{"held": {"y": [0]}}',
        '{"held": null}',
        '{"given": {"c": "seven"}}',
        '{"seed": 1e999}',
        '{"seed": NaN}',
    ):
        answer = client.post(f"/{TOKEN}/decode", content=text, headers=headers)
        assert answer.status_code == 400 and answer.json()["error"], text
    for row in ("NaN", "-1", "40", '"1"', "null", "[]", "1e30"):
        assert client.post(f"/{TOKEN}/row", content=f'{{"row": {row}}}', headers=headers).status_code == 400


def test_numbers_that_json_does_not_have_are_null(
    client: TestClient, plain: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "decode", lambda sent: {"total": -math.inf, "less_dense": math.nan})
    app = page.explore_app(plain, TOKEN)
    with TestClient(app, base_url="http://localhost") as other:
        assert other.post(f"/{TOKEN}/decode", json={}).json() == {"total": None, "less_dense": None}


def test_a_fault_is_an_answer(plain: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "decode", lambda sent: [][0])
    with TestClient(
        page.explore_app(plain, TOKEN), base_url="http://localhost", raise_server_exceptions=False
    ) as other:
        answer = other.post(f"/{TOKEN}/decode", json={})
    assert answer.status_code == 500 and "please report it (IndexError" in answer.json()["error"]


def test_questions_at_once_have_the_answers_that_they_have_one_by_one(client: TestClient, plain: Explorer) -> None:
    asked = [{"seed": seed, "held": {"z": [seed / 4, 0.0]} if seed % 2 else {}} for seed in range(8)]
    expected = [plain.decode(sent) for sent in asked]
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = client.post(f"/{TOKEN}/decode", json=asked[number]).json()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(asked))] == expected


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_serves_a_run_until_it_is_stopped(
    pyrovae: Command, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def once(app: Any, listening: socket.socket) -> None:
        seen["address"] = listening.getsockname()[0]
        with TestClient(app, base_url="http://localhost") as client:
            seen["refused"] = client.get("/").status_code

    monkeypatch.setattr("pyrovae.app.pages.explore.serve", once)
    code, out, err = pyrovae("explore", finished_run)
    assert code == 0, err
    assert seen == {"address": "127.0.0.1", "refused": 403}
    assert re.fullmatch(r"Open http://127\.0\.0\.1:\d+/[\w-]{32}/ \(Ctrl-C ends it\)", out.strip())


def test_a_pair_that_was_saved_in_python_is_explored_without_data(
    pyrovae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrovae.app.pages.explore.serve", lambda app, listening: None)
    row = ROWS["multimodal"]
    torch.manual_seed(0)
    pv.save(pv.fit(row.build(), row.data(), epochs=0, engine="eager", progress=False), tmp_path / "two")
    code, out, err = pyrovae("explore", tmp_path / "two")
    assert code == 0 and out.startswith("Open http"), err
    found = Explorer.open(tmp_path / "two", device="cpu").describe()
    assert found["rows"] == 0 and found["outputs"] == ["x1", "x2"] and "points" not in found["sites"][0]
    row = ROWS["regression"]
    pv.save(pv.fit(row.build(), row.data(), epochs=0, engine="eager", progress=False), tmp_path / "none")
    code, out, err = pyrovae("explore", tmp_path / "none")
    assert code == 2 and not out and "There is nothing to explore" in err and err.count("\n") == 1


def test_mistakes_of_the_command_are_told_before_anything_is_served(
    pyrovae: Command, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrovae.app.pages.explore.serve", lambda app, listening: pytest.fail("it is served"))
    code, _, err = pyrovae("explore", tmp_path)
    assert code == 2 and "not a run folder" in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = pyrovae("explore", finished_run, "--port", port)
        assert code == 2 and f"--port {port} is taken" in err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = pyrovae("explore", finished_run)
    assert code == 2 and "pip install 'pyrovae[page]'" in " ".join(err.split())
