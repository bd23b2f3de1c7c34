"""Columns that a model is given, and sizes of rows of counts: `--condition`, `--size-factor`, `generate --given`."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.command import Command

import pyrovae as pv
from pyrovae.app.options import Options
from pyrovae.app.run import fit_run, open_run
from pyrovae.data import load, load_again
from pyrovae.errors import DataError, OptionError

QUICK = ("--epochs", "2", "--proposal", "guide", "--num-samples", "5")


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """height depends on age and site; age has gaps."""
    random = np.random.default_rng(0)
    site, age = random.choice(["north", "south"], 80), random.integers(20, 80, 80).astype(float)
    height = np.round(np.where(site == "north", 5.0, 0.0) + 0.1 * age + random.normal(size=80), 1)
    age[::10] = np.nan
    table = pd.DataFrame(
        {
            "site": site,
            "age": age,
            "height": height,
            "kind": np.where(height > 6, "tall", "small"),
            "weight": 2 * height,
        }
    )
    table.loc[3::7, "weight"] = np.nan
    table.to_csv(tmp_path / "patients.csv", index=False)
    return tmp_path / "patients.csv"


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    """24 columns of counts, whose rows differ tenfold in size, with a column that says how large they are."""
    random = np.random.default_rng(0)
    depth = np.exp(5 + 0.8 * random.normal(size=90))
    x = random.poisson(random.dirichlet(np.ones(24)) * depth[:, None])
    table = pd.DataFrame(x, columns=[f"g{i}" for i in range(24)])
    table["depth"] = depth.round(2)
    table.to_csv(tmp_path / "counts.csv", index=False)
    return tmp_path / "counts.csv"


@pytest.mark.slow
def test_every_question_to_a_run_with_columns_that_are_given(pyrovae: Command, patients: Path) -> None:
    code, out, err = pyrovae("fit", patients, "--condition", "site,age", *QUICK, "--out", "run")
    assert code == 0, err
    assert "given site, age" in " ".join(err.split()).replace("age, site", "site, age")
    assert "model  p(z | c) p(x | z, c)" in err and "log p(x | c), nats per row" in out
    assert "Rows drawn from the model" in " ".join(out.split())
    before = json.loads(Path("run/run.json").read_text())["info"]["results"]["log_likelihood"]
    code, out, _ = pyrovae("evaluate", "run", "--num-samples", 5, "--proposal", "guide")
    assert code == 0 and f"{before:.2f}" in out

    pd.DataFrame({"age": [30, None], "site": ["south", "north"], "more": [1, 2]}).to_csv("wanted.csv", index=False)
    assert pyrovae("generate", "run", "--given", "wanted.csv", "--out", "new.csv")[0] == 0
    new = pd.read_csv("new.csv")
    assert new["site"].tolist() == ["south", "north"] and new["age"].isna().tolist() == [False, True]
    assert (
        list(new.columns) == ["site", "age", "height", "kind", "weight"] and new["kind"].isin(["tall", "small"]).all()
    )
    assert pyrovae("generate", "run", "-n", 30, "--out", "more.csv")[0] == 0
    assert set(pd.read_csv("more.csv")["site"]) == {"north", "south"}

    for words in (("encode", "run"), ("reconstruct", "run", "--out", "again.csv"), ("outliers", "run", patients)):
        code, _, err = pyrovae(*words)
        assert code == 0, err
    code, _, err = pyrovae("impute", "run", patients, "--out", "whole.csv")
    assert code == 0, err
    whole = pd.read_csv("whole.csv")
    assert whole["weight"].notna().all() and whole["age"].isna().sum() == 8  # what is given stays as it is
    assert (
        pyrovae("fit", patients, "--condition", "site", "--columns", "run/columns.yaml", *QUICK, "--out", "other")[0]
        == 0
    )
    code, _, err = pyrovae("compare", "run", "other", "--num-samples", 5)
    assert code == 2 and "different things" in " ".join(err.split())


def test_the_same_rows_come_back(patients: Path) -> None:
    data = load(str(patients), conditions=("age", "site"))
    assert data.columns == ("height", "weight", "kind") and data.conditions is not None
    assert data.conditions.names == ("age", "site") and data.c is not None and data.c.shape == (80, 2)
    again = load_again(json.loads(json.dumps(data.source)))
    assert torch.equal(again.x.nan_to_num(-1), data.x.nan_to_num(-1)) and again.c is not None
    assert torch.equal(again.c.nan_to_num(-1), data.c.nan_to_num(-1)) and again.conditions == data.conditions


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--condition", "sight"), "no column 'sight'"),
        (("--condition", "site", "--label", "kind"), "takes the place of --label"),
        (("--condition", "kind", "--label", "kind"), "is the label"),
        (("--condition", "site", "--model", "gmvae"), "does not go with --model gmvae"),
        (("--condition", "site,age,height,kind,weight"), "no column besides"),
        (("--size-factor", "age"), "counts without an upper bound"),
        (("--size-factor", "latent"), "counts without an upper bound"),
        (("--condition", " , "), "--condition names a column"),
        (("--size-factor", ""), "--size-factor names a column"),
    ],
)
def test_a_mistake_gets_one_clear_error(pyrovae: Command, patients: Path, words: tuple[str, ...], told: str) -> None:
    code, _, err = pyrovae("fit", patients, *words, *QUICK)
    assert code == 2 and told in " ".join(err.split()), err
    assert not Path("runs").exists()


def test_images_have_no_columns_to_give(pyrovae: Command) -> None:
    code, _, err = pyrovae("fit", "digits", "--condition", "3")
    assert code == 2 and "--condition: for tables" in err


@pytest.mark.slow
def test_what_a_run_is_not_given_is_refused(pyrovae: Command, patients: Path) -> None:
    assert pyrovae("fit", patients, "--condition", "site", *QUICK, "--out", "run")[0] == 0
    pd.DataFrame({"age": [30]}).to_csv("without.csv", index=False)
    pd.DataFrame({"site": ["west"]}).to_csv("unknown.csv", index=False)
    pd.DataFrame({"site": ["north", None]}).to_csv("gap.csv", index=False)
    for name, told in (
        ("without.csv", "no column 'site'"),
        ("unknown.csv", "'west'"),
        ("gap.csv", "Row 1 (counted from 0) has no site"),
        ("gone.csv", "no file"),
    ):
        code, _, err = pyrovae("generate", "run", "--given", name)
        assert code == 2 and told in " ".join(err.split()), err
    code, _, err = pyrovae("generate", "run", "--class", "north")
    assert code == 2 and "--given FILE" in err
    assert pyrovae("fit", patients, *QUICK, "--out", "plain")[0] == 0
    code, _, err = pyrovae("generate", "plain", "--given", "gap.csv")
    assert code == 2 and "--condition" in err


def test_totals_of_rows_drawn_from_a_model_are_those_of_the_data_from_the_start(counts: Path, tmp_path: Path) -> None:
    """A latent size starts with the totals' log-normal: median and quartiles within 30 %, of 400 draws after one epoch."""
    data = load(str(counts), drop="depth")
    run = fit_run(data, Options.of("fit", epochs=1, learning_rate=1e-5), tmp_path / "run", progress=False)
    assert run.options.size_factor == "latent"
    drawn = pv.generate(run.fitted, 400, seed=0).sum(1).quantile(torch.tensor([0.25, 0.5, 0.75]))
    assert (drawn / data.x.sum(1).quantile(torch.tensor([0.25, 0.5, 0.75]))).log().abs().max() < 0.3
    codes = pv.encode(run.fitted, run.rows.batch("test"))[:, 0]
    assert torch.corrcoef(torch.stack([codes, run.rows.test.sum(1).log()]))[0, 1] > 0.9
    opened = open_run(tmp_path / "run")
    assert torch.equal(pv.generate(opened.fitted, 5, seed=0), pv.generate(run.fitted, 5, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cvae", "m2", "gmvae", "vade", "jointvae", "hierarchical"])
def test_a_size_goes_with_other_models(counts: Path, tmp_path: Path, model: str) -> None:
    table = pd.read_csv(counts).drop(columns="depth")
    table["class"] = np.arange(len(table)) % 3
    table.to_csv(tmp_path / "labelled.csv", index=False)
    data = load(str(tmp_path / "labelled.csv"), label="class" if model in ("cvae", "m2") else None)
    run = fit_run(data, Options.of("fit", model=model, epochs=1), tmp_path / "run", progress=False)
    assert run.options.size_factor == "latent"
    given = {"c": torch.arange(4) % 3} if model == "cvae" else None
    assert pv.generate(run.fitted, 4, given=given, seed=0).isfinite().all()


def test_a_prior_that_all_batches_share(pyrovae: Command, counts: Path) -> None:
    table = pd.read_csv(counts).drop(columns="depth")
    batch = np.arange(len(table)) % 2
    table.iloc[:, ::2] *= 1 + 3 * batch[:, None]  # of all those columns, not of the codes
    table.assign(batch=np.array(["a", "b"])[batch]).to_csv("batches.csv", index=False)
    words = ("fit", "batches.csv", "--condition", "batch", "--latent", 2, *QUICK)
    code, _, err = pyrovae(*words, "--shared-prior", "--prior", "mixture", "--out", "shared")
    assert code == 0 and "model  p(z) p(x | z, c)" in err, err
    prior = open_run(Path("shared")).fitted.pair.prior.prior
    assert type(prior) is pv.priors.MixtureOfNormals
    assert pyrovae(*words, "--out", "own")[0] == 0  # the two compare
    assert pyrovae("compare", "shared", "own", "--num-samples", 5, "--proposal", "guide")[0] == 0
    code, _, err = pyrovae(*words, "--prior", "mixture", "--out", "wrong")
    assert code != 0 and "add --shared-prior" in " ".join(err.split())
    code, _, err = pyrovae("fit", counts, "--shared-prior", "--out", "wrong")
    assert code != 0 and "it is for cvae" in " ".join(err.split())


def test_columns_of_a_table_do_not_start_as_codes_under_a_shared_prior(patients: Path, tmp_path: Path) -> None:
    dataset = load(patients, conditions="site")
    for shared in (True, False):
        options = Options(epochs=1, proposal="guide", num_samples=5, shared_prior=shared)
        run = fit_run(dataset, options, tmp_path / f"run{shared}", progress=False)
        assert any(isinstance(part, pv.nets.Skip) for part in run.fitted.pair.modules()) == (not shared)


def test_a_column_gives_the_sizes(counts: Path, tmp_path: Path) -> None:
    options = Options.of("fit", epochs=1, size_factor="depth", learning_rate=1e-5)
    data = load(str(counts), **options.table)
    run = fit_run(data, options, tmp_path / "run", progress=False)
    assert run.options.model == "cvae" and run.rows.given is not None
    few, many = (run.rows.given.argument(torch.tensor([[depth]] * 200)) for depth in (50.0, 500.0))
    totals = [pv.generate(run.fitted, 200, given=given, seed=0).sum(1).mean() for given in (few, many)]
    assert 8 < totals[1] / totals[0] < 12  # of ten times the size
    with pytest.raises(DataError, match=r"depth is nan in row 0|has no depth"):
        run.rows.given.argument(torch.tensor([[float("nan")]]))


def test_sizes_that_were_not_loaded_are_refused(counts: Path, tmp_path: Path) -> None:
    data = load(str(counts), conditions="24")  # the depth, by its number
    for dataset, told in ((data, "one of depth"), (load(str(counts), drop="depth"), "among their conditions")):
        with pytest.raises(OptionError, match=told):
            fit_run(dataset, Options.of("fit", epochs=1, size_factor="24"), tmp_path / "run", progress=False)


def test_a_run_of_before_has_no_sizes() -> None:
    recorded = Options.of("fit", size_factor="latent").to_json("fit")
    del recorded["size_factor"]
    assert Options.from_json(recorded, "fit").size_factor == "none"
