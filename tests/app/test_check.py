"""`pyrovae check`: a table, a page and JSON, and an exit code for scripts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.command import Command
from support.pages import whole_page

import pyrovae as pv
from pyrovae.app import run as runs
from pyrovae.app.jobs import check as checking
from pyrovae.criticism import report as reporting

QUICK = ("--num-samples", 30, "--rows", 20)


@pytest.fixture
def run(pyrovae: Command, finished_run: Path) -> Path:
    """A run of `fit digits` of two epochs, for this test alone."""
    return Path(shutil.copytree(finished_run, "runs/digits"))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_reports")
def test_a_check_ends_with_a_table_a_page_and_json(pyrovae: Command, run: Path) -> None:
    code, out, err = pyrovae("check", run, *QUICK)
    told = json.loads((run / "check.json").read_text())
    assert code == (1 if told["verdict"] == "bad" else 0), err
    assert "copies" in err  # what is being asked
    for found in told["findings"]:
        assert found["name"].split()[0] in out
        assert found["verdict"] == "ok" or found["advice"]
    assert told["about"]["rows"] == 20 and "20 of 60 test rows, 30 draws a row" in out
    assert {found["part"] for found in told["findings"]} == {"bounds", "predictions", "latent variables", "guide"}

    page = whole_page((run / "check.html").read_text())
    assert len(page.sources) >= 8
    assert {link.removeprefix("#") for link in page.links} == set(page.names)


def test_the_page_may_stand_elsewhere_and_is_not_replaced_unasked(pyrovae: Command, run: Path) -> None:
    Path("other.html").write_text("mine")
    code, _, err = pyrovae("check", run, *QUICK, "--out", "other.html")
    assert code == 2 and "other.html exists" in err and Path("other.html").read_text() == "mine"
    code, _, err = pyrovae("check", run, *QUICK, "--out", "other.txt")
    assert code == 2 and ".html" in err
    code, _, err = pyrovae("check", run, "--rows", 0)
    assert code == 2 and "--rows must be at least 2" in err
    code, _, err = pyrovae("check", "nowhere")
    assert code == 2 and "not a run folder" in err


@pytest.mark.slow
def test_a_table_stands_beside_densities_without_a_latent_variable(pyrovae: Command) -> None:
    """Three tight clusters, and a model of one epoch: the mixture is far better, and the report says by how much."""
    pull = np.random.default_rng(0)
    rows = pull.integers(0, 3, 150)[:, None] * np.array([8.0, -3.0]) + 0.1 * pull.normal(size=(150, 2))
    pd.DataFrame(rows, columns=["a", "b"]).to_csv("clusters.csv", index=False)
    plain = ("--hidden", 8, "--prior", "normal", "--engine", "eager", "--epochs", 1)
    code, _, err = pyrovae("fit", "clusters.csv", *plain, "--proposal", "guide", "--num-samples", 20, "--out", "run")
    assert code == 0, err
    opened = runs.open_run(Path("run"))
    how = {"num_rows": 200, "num_samples": 20, "proposal": "guide", "seed": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "QUESTIONS", {})
        patch.setattr(checking, "FITTED", ("pca", "gaussian mixture"))  # the others take seconds
        report = checking.check_run(opened, **how)
    (found,) = report.findings
    assert (found.name, found.part, found.verdict) == ("other densities", "bounds", "bad")
    assert "below that by the best of scikit-learn's densities, gaussian mixture" in found.says
    assert "gaussian mixture is the better density" in found.advice
    test, schema = opened.rows.test, opened.rows.schema
    assert schema is not None
    known = torch.cat([part for part in (opened.rows.train, opened.rows.validation) if part is not None])
    mixture = pv.tables.baselines(schema, known, test, seed=3)["gaussian mixture"]
    model = pv.log_likelihood(opened.fitted, opened.rows.batch("test"), 20, proposal="guide", seed=3)
    assert found.values["above_best"] == pytest.approx((model - mixture).mean().item(), abs=1e-6)


@pytest.mark.slow
def test_rows_that_are_no_table_have_no_densities_beside_them(run: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "QUESTIONS", {})
        assert checking.check_run(runs.open_run(run), num_rows=9, num_samples=5, proposal="guide").findings == ()
