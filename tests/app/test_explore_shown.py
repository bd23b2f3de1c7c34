"""Exploring a fitted model: what it is given, how what it makes is shown, and runs of the command line."""

import base64
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from support.command import Command

import pyrovae as pv
from pyrovae.app import run as runs
from pyrovae.app.given import Given, GivenCaptions
from pyrovae.app.jobs.explore import Explorer
from pyrovae.app.jobs.explore.conditions import OfCaptions, OfClass, OfColumns, check_fields
from pyrovae.app.jobs.explore.shown import Cells, Columns, Pictures
from pyrovae.app.options import Options
from pyrovae.app.rows import of_source
from pyrovae.data import Dataset
from pyrovae.data.load import read
from pyrovae.errors import DataError

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
        ({"age": "old"}, "'age' holds .* no such values"),
        ({"age": 1e300}, "beyond the"),
        ({"age": ""}, "has no age, which the model is given"),
        ({"size": "inf"}, "no such values, for example 'inf'"),
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


def test_a_draw_is_not_told_to_be_a_mean() -> None:
    draw = torch.zeros(1, 2)
    assert Columns(["a", "b"]).show(dist.Normal(draw, 1.0).to_event(1), draw, None)["point"] == "mean"
    shown = Columns(["a", "b"]).show(dist.Cauchy(draw, 1.0).to_event(1), draw, None)
    assert shown["point"] == "mean, or a draw where there is none"


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
    prior = digits.fitted.pair.prior
    for given, code in (("cat", 0), ("dog", 1)):  # the medians of p(z | c) follow c
        with digits.fitted.scope():
            loc = prior(torch.eye(2)[[code]]).mean[0]
        middles = digits.decode({"given": {"c": given}})["middles"]["z"]
        assert list(middles.values()) == pytest.approx(loc.tolist(), abs=0.5)  # six standard errors of 256 draws
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


def test_several_labels_are_shown_by_their_columns_and_classes(pyrovae: Command, tmp_path: Path) -> None:
    lines = [
        "a,b,kind,colour",
        *(f"{i % 7},{i % 5 + 0.5},{('rose', 'tulip')[i % 2]},{('red', '')[i % 3 > 0]}" for i in range(59)),
    ]
    (tmp_path / "flowers.csv").write_text("\n".join([*lines, "1,2.5,rose,white"]))
    code, _, err = pyrovae(
        "fit",
        tmp_path / "flowers.csv",
        "--label",
        "kind,colour",
        "--epochs",
        1,
        "--hidden",
        4,
        "--num-samples",
        2,
        "--out",
        "run",
    )
    assert code == 0, err
    sites = {site["name"]: site for site in Explorer.open(Path("run"), device="cpu").describe()["sites"]}
    assert sites["y1"]["title"] == "kind" and sites["y1"]["options"] == ["rose", "tulip"]
    assert sites["y2"]["title"] == "colour" and sites["y2"]["options"] == ["red", "white"]
    assert sites["z"]["title"] == "z"
