"""Several columns of labels, each known of some rows: `--label a,b`, `classify`, `generate --class a=x,b=y`."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.command import Command

import pyrovae as pv
from pyrovae.app.decide import decide
from pyrovae.app.jobs.answers import numbered
from pyrovae.app.jobs.batch import class_numbers
from pyrovae.app.jobs.classify import label_columns
from pyrovae.app.jobs.frames import Block
from pyrovae.app.jobs.report import reliabilities
from pyrovae.app.models import MODELS
from pyrovae.app.options import Options
from pyrovae.app.rows import split_rows
from pyrovae.app.run import Run, open_run
from pyrovae.data import load, load_again

QUICK = ("--epochs", "4", "--hidden", "8", "--latent", "1", "--proposal", "guide", "--num-samples", "20")
LONGER = ("--epochs", "40", "--learning-rate", "0.02")
SPECIES, SEXES = ["adelie", "chinstrap", "gentoo"], [1, 2]


def animals(rows: int = 160) -> pd.DataFrame:
    """Species are far apart in two columns, sexes in another one; a third of the species and half of the sexes are unknown."""
    random = np.random.default_rng(0)
    species, sex = np.arange(rows) % 3, random.integers(0, 2, rows)
    found = pd.DataFrame(
        {
            "length": (6 * (species == 1) + random.normal(size=rows)).round(2),
            "depth": (6 * (species == 2) + random.normal(size=rows)).round(2),
            "species": [SPECIES[one] for one in species],
            "mass": (6 * sex + random.normal(size=rows)).round(2),
            "sex": [float(SEXES[one]) for one in sex],
        }
    )
    found.loc[random.random(rows) < 1 / 3, "species"] = None
    found.loc[random.random(rows) < 1 / 2, "sex"] = np.nan
    return found


@pytest.fixture
def table(tmp_path: Path) -> Path:
    animals().to_csv(tmp_path / "animals.csv", index=False)
    return tmp_path / "animals.csv"


def test_every_question_to_a_run_with_several_columns_of_labels(pyrovae: Command, table: Path) -> None:
    code, out, err = pyrovae("fit", table, "--label", "species,sex", *QUICK[2:], *LONGER, "--out", "run")
    assert code == 0, err
    said = " ".join(err.split())
    assert "model labels of species (y1, 3 classes, " in said and "model p(y1) p(y2) p(z) p(x | y1, y2, z)" in said
    assert "where y1 and y2 are known" in said and "length real" in said and "species category" not in said
    for words in ("right species by the guide", "right sex by the joint model", "right sex given the other labels"):
        assert words in " ".join(out.split()), out
    results = json.loads(Path("run/run.json").read_text())["info"]["results"]
    assert [one["column"] for one in results["labels"]] == ["species", "sex"]
    assert all(
        one["rows"] > 5 and one["guide"] > 0.8 and one["joint"] > 0.6 for one in results["labels"]
    )  # they are 6 sd apart
    code, again, err = pyrovae("evaluate", "run", "--num-samples", 20)
    assert code == 0 and f"{results['log_likelihood']:.2f}" in again and "right species" in again, err

    code, out, err = pyrovae("classify", "run", "--num-samples", 5)
    assert code == 0 and "160 rows" in out, err
    found, given = pd.read_csv("run/classes.csv", index_col="row"), animals()
    assert len(found) == 160
    for name, classes in (("species", SPECIES), ("sex", SEXES)):
        p = found[[f"p({name}={one})" for one in classes]].to_numpy()
        np.testing.assert_allclose(p.sum(1), 1.0, atol=1e-6)
        assert [str(c) for c in found[f"{name} predicted"]] == [str(classes[i]) for i in p.argmax(1)]
        np.testing.assert_allclose(found[f"{name} probability"], p.max(1))
        assert found[name].isna().tolist() == given[name].isna().tolist()
        assert f"{name}" in out and str(int(given[name].isna().sum())) in out

    code, _, err = pyrovae("generate", "run", "-n", 7, "--out", "new.csv")
    new = pd.read_csv("new.csv")
    assert code == 0 and list(new.columns) == ["length", "depth", "mass", "species", "sex"], err
    turns = list(itertools.product(SPECIES, SEXES))
    assert list(zip(new["species"], new["sex"])) == [*turns, turns[0]]
    code, _, err = pyrovae("generate", "run", "-n", 4, "--class", "species=gentoo", "--out", "some.csv")
    some = pd.read_csv("some.csv")
    assert code == 0 and some["species"].tolist() == ["gentoo"] * 4 and some["sex"].tolist() == [1, 2, 1, 2], err
    words = "sex=2, species=chinstrap"
    code, _, err = pyrovae("generate", "run", "-n", 5, "--class", words, "--seed", 3, "--out", "one.csv")
    assert code == 0, err
    run, ones = open_run(Path("run")), torch.ones(5, dtype=torch.int64)
    made = reliabilities(run, 20)  # of the report
    assert {name: axes.get_title("left") for name, axes in made.items()} == {
        f"reliability of {name}": f"reliability of {name}" for name in ("species", "sex")
    }
    drawn = pv.generate(run.fitted, 5, given={"y1": ones, "y2": ones}, seed=3)
    assert run.rows.schema is not None
    wanted = run.rows.schema.decode(run.rows.restore(drawn)).assign(species="chinstrap", sex=2)
    pd.testing.assert_frame_equal(pd.read_csv("one.csv"), wanted, check_dtype=False, atol=1e-4)
    for words, told in (
        ("gentoo", "write each column once, as in species=CLASS"),
        ("species=dodo", "'dodo' is not known; known: adelie, chinstrap, gentoo"),
        ("kind=gentoo", "'kind' is not known; known: species, sex"),
        ("sex=1,sex=2", "write each column once"),
    ):
        code, _, err = pyrovae("generate", "run", "--class", words)
        assert code == 2 and told in " ".join(err.split()), err
    assert pyrovae("encode", "run")[0] == 0
    _tables(pyrovae, run)


def _tables(pyrovae: Command, run: Run) -> None:
    """Classes of the rows of other tables: with labels, with some, and with none."""
    whole = animals(24)
    whole["species"] = [SPECIES[i % 3] for i in range(24)]
    whole[["mass", "length", "depth", "species"]].to_csv("species.csv", index=False)
    whole[["mass", "length", "depth"]].assign(sex=None).to_csv("none.csv", index=False)  # a column without a cell
    code, out, err = pyrovae("classify", "run", "species.csv", "--out", "with.csv", "--num-samples", 5)
    assert code == 0 and "24 rows" in out and "known ones that are right" in " ".join(out.split()), err
    code, out, err = pyrovae("classify", "run", "none.csv", "--out", "without.csv", "--num-samples", 5)
    assert code == 0 and "right" not in out, err
    one, other = pd.read_csv("with.csv"), pd.read_csv("without.csv")
    species, sex = [f"p(species={name})" for name in SPECIES], [f"p(sex={number})" for number in SEXES]
    assert "species" not in other and one["species"].tolist() == whole["species"].tolist()
    np.testing.assert_allclose(one[species], other[species], atol=1e-6)  # a label is not inferred from itself
    assert np.abs(one[sex].to_numpy() - other[sex].to_numpy()).max() > 1e-4  # and serves to infer the other one
    # what Python says of the same rows
    assert run.rows.schema is not None
    y1 = torch.arange(24) % 3
    wanted = pv.classify(run.fitted, {"x": run.rows.schema.encode(whole), "y1": y1}, site="y2", num_samples=5, seed=1)
    np.testing.assert_allclose(one[sex], wanted.joint, atol=1e-6)

    whole.assign(species="dodo").to_csv("wrong.csv", index=False)
    whole.drop(columns="mass").to_csv("narrow.csv", index=False)
    for name, told in (
        ("wrong.csv", "species is 'dodo' in row 0 of 24 (counted from 0), and the run knows adelie, chinstrap, gentoo"),
        ("narrow.csv", "'mass'"),
        ("gone.csv", "there is no file"),
    ):
        code, _, err = pyrovae("classify", "run", name, "--out", "failed.csv")
        assert code == 2 and told in " ".join(err.split()), err
        assert not Path("failed.csv").exists()


def test_the_same_labels_come_back(table: Path) -> None:
    data = load(str(table), label="sex, species")
    assert data.y is None and data.columns == ("length", "depth", "mass")
    assert [(one.name, one.classes) for one in data.labels] == [("sex", (1, 2)), ("species", tuple(SPECIES))]
    known = animals()["species"].map({name: code for code, name in enumerate(SPECIES)}).fillna(-1)
    assert data.labels[1].y.tolist() == known.tolist()
    again = load_again(json.loads(json.dumps(data.source)))
    assert torch.equal(again.labels[0].y, data.labels[0].y) and torch.equal(again.x, data.x)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--label", "species,sexes"), "no column 'sexes'"),
        (("--label", "species,sex,species"), "species is named twice"),
        (
            ("--label", "species,sex", "--model", "m2"),
            "--model m2 does not take several columns of labels (species, sex)",
        ),
        (("--label", "species", "--model", "labels"), "--model labels needs several columns of labels"),
        (("--model", "labels"), "--model labels needs several columns of labels"),
        (("--label", "species,sex", "--condition", "mass"), "--condition does not go with several columns of labels"),
        (("--label", "species,sex", "--labelled", "20"), "--labelled 20 does not go with --model labels"),
        (("--label", "species,sex", "--drop", "sex"), "sex is the label, and cannot be the id or left out"),
        (("--label", "species,mass"), "labels are classes, got the numbers"),
        (("--label", "species,sex,length,depth,mass"), "no column besides"),
    ],
)
def test_a_mistake_gets_one_clear_error(pyrovae: Command, table: Path, words: tuple[str, ...], told: str) -> None:
    code, _, err = pyrovae("fit", table, *words, *QUICK)
    assert code == 2 and told in " ".join(err.split()), err
    assert not Path("runs").exists()


def _of_classes(tmp_path: Path, *sizes: int) -> Any:
    rows = np.arange(120)
    labels = {f"l{place}": [f"c{row % size}" for row in rows] for place, size in enumerate(sizes)}
    path = tmp_path / "wide.csv"
    pd.DataFrame({"a": rows % 7 + 0.5, "b": rows % 5 + 0.25, **labels}).to_csv(path, index=False)
    return load(str(path), label=",".join(labels))


def test_columns_are_as_many_as_can_be_summed_out(tmp_path: Path) -> None:
    assert decide(Options.of("fit"), _of_classes(tmp_path, 2, 2, 2, 2), 100).model == "labels"
    with pytest.raises(pv.OptionError, match="names 5 columns, and at most 4"):
        decide(Options.of("fit"), _of_classes(tmp_path, 2, 2, 2, 2, 2), 100)
    with pytest.raises(pv.OptionError, match="40 x 30 = 1200 combinations of classes.*at most 1000"):
        decide(Options.of("fit"), _of_classes(tmp_path, 40, 30), 100)
    for cells, told in (("c0", "one class only, 'c0'"), ("", "no label")):
        (tmp_path / "one.csv").write_text("a,k,m\n" + "".join(f"{row}.5,{cells},c{row % 2}\n" for row in range(9)))
        with pytest.raises(pv.DataError, match=f"Column 'k' of .*{told}"):
            load(str(tmp_path / "one.csv"), label="k,m")


def test_a_run_of_one_label_answers_too(pyrovae: Command, table: Path) -> None:
    """`classify` is for all models that infer a class."""
    code, _, err = pyrovae("fit", table, "--model", "m2", "--label", "species", "--drop", "sex", *QUICK, "--out", "run")
    assert code == 0, err
    assert pyrovae("classify", "run", "--num-samples", 2)[0] == 0
    found = pd.read_csv("run/classes.csv")
    assert {"species", "species predicted", "p(species=gentoo)"} <= {*found} and "p(sex=1)" not in found
    animals(9).drop(columns=["species", "sex"]).to_csv("new.csv", index=False)
    assert pyrovae("classify", "run", "new.csv", "--out", "new.parquet", "--num-samples", 2)[0] == 0
    assert len(pd.read_parquet("new.parquet")) == 9
    code, out, err = pyrovae("classify", "run", table, "--out", "same.csv", "--num-samples", 2)
    found, run = pd.read_csv("same.csv"), open_run(Path("run"))
    train = split_rows(run.dataset, run.options).train
    assert run.dataset.y is not None
    seen = train[run.dataset.y[train] >= 0]
    assert found["row"][found["species trained on"]].tolist() == seen.sort().values.tolist()
    known = int(found["species"].notna().sum())
    assert f"trained on {len(seen)} of the {known} rows with a label in column species" in " ".join(out.split()), err


def test_a_run_without_classes_is_told() -> None:
    run: Any = SimpleNamespace(model=MODELS["vae"], options=Options.of("fit"), rows=SimpleNamespace(several=()))
    with pytest.raises(pv.OptionError, match="--model vae infers no class"):
        label_columns(run)


@pytest.mark.parametrize(
    ("classes", "cells", "codes"),
    [
        ((0, 1), [True, False], [1, 0]),  # as truth values are read of the run's own table
        ((0, 1), [True, None], [1, -1]),
        ((False, True), [True, None, "False"], [1, -1, 0]),  # and where it has gaps
        ((1, 3), [3.0, np.nan, 1.0], [1, -1, 0]),
        ((1, 3), ["3", "", "-1", " 1 "], [1, -1, -1, 0]),
        (("01", "1", "none"), ["1", "01", "none", None], [1, 0, 2, -1]),
    ],
)
def test_cells_are_the_classes_that_they_were_in_the_fit(
    classes: tuple[Any, ...], cells: list[Any], codes: list[int]
) -> None:
    found, unknown = class_numbers(pd.Series(cells), classes)
    assert found.tolist() == codes and not unknown
    assert class_numbers(pd.Series(["dodo", *cells]), classes)[1] == {0: "dodo"}


def test_the_numbers_of_rows_stay_beside_labels_that_are_called_row() -> None:
    run: Any = SimpleNamespace(dataset=SimpleNamespace(source={}, columns=None))
    answers = numbered(run, Block(7, pd.DataFrame(index=range(2))), pd.DataFrame({"row": ["a", "b"]}))
    assert answers.to_dict("list") == {"row number": [7, 8], "row": ["a", "b"]}
