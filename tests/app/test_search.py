"""`--search`: which recipes are tried, which is kept, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.command import Command

import pyrovae as pv
from pyrovae.app import search
from pyrovae.app.options import Options
from pyrovae.app.run import Run, fit_run, open_run
from pyrovae.data.load import read
from pyrovae.errors import OptionError
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.parameters import named_tensors
from pyrovae.tables import starts

QUICK = ("--epochs", 1, "--engine", "eager", "--proposal", "guide", "--num-samples", 20, "--validation-fraction", 0.2)


def table(columns: int, rows: int = 100) -> str:
    values = np.random.default_rng(0).normal(size=(rows, columns)).round(3)
    pd.DataFrame(values, columns=[f"c{i}" for i in range(columns)]).to_csv("rows.csv", index=False)
    return "rows.csv"


def recipes(source: str, **options: object) -> list[str]:
    return list(search.recipes_for(Options.of("fit", **options), read(source)))


@pytest.mark.usefixtures("pyrovae")
def test_recipes_leave_what_is_given_as_it_is() -> None:
    wide = table(13)
    assert recipes(wide) == list(search.TEN_CODES)
    assert recipes(wide, search="none") == recipes(wide, latent=4) == recipes(wide, prior="normal") == []
    assert recipes(wide, search="small") == list(search.OF_TABLES)
    assert recipes(wide, search="small", hidden=(8,)) == [
        "a mixture as prior, without a flow",
        "a mixture and a flow as prior",
    ]
    assert recipes(wide, search="small", likelihood="normal") == list(search.OF_OTHERS)
    assert recipes(wide, model="hierarchical") == recipes(table(12)) == []
    assert recipes(table(13, rows=40)) == []  # 4 validation rows
    some_hundred = table(4, rows=500)
    assert recipes(some_hundred) == list(search.WITHOUT_FLOW)
    assert recipes(some_hundred, prior="mixture") == recipes(some_hundred, likelihood="normal") == []
    assert recipes(table(13, rows=500)) == [*search.WITHOUT_FLOW, *search.TEN_CODES]
    assert recipes(table(4, rows=2100)) == []


def survey(columns: int, rows: int = 100) -> str:
    values = np.random.default_rng(0).integers(1, 6, size=(rows, columns))
    pd.DataFrame(values, columns=[f"q{i}" for i in range(columns)]).to_csv("survey.csv", index=False)
    return "survey.csv"


@pytest.mark.usefixtures("pyrovae")
def test_an_order_is_compared_with_free_probabilities() -> None:
    free = list(search.FREE)
    assert recipes(survey(4)) == free
    assert recipes("survey.csv", search="small") == [*search.OF_TABLES, *free]
    assert recipes("survey.csv", search="none") == recipes("survey.csv", likelihood="ordered-columns") == []
    assert recipes("survey.csv", likelihood="columns") == recipes(survey(4, rows=40)) == []
    assert recipes(survey(13)) == [*search.TEN_CODES, *free]


@pytest.mark.parametrize(("prior", "likelihood"), [("full-mixture", "columns"), ("mixture", "ordered-columns")])
def test_free_probabilities_are_tried_with_the_better_start(
    pyrovae: Command, monkeypatch: pytest.MonkeyPatch, prior: str, likelihood: str
) -> None:
    monkeypatch.setattr(starts, "FAR_BEHIND", math.inf)
    tried = []

    def scores(run: Run) -> torch.Tensor:
        tried.append((run.options.prior, run.options.likelihood))
        return torch.full((4,), float(run.options.prior == prior) + float(run.options.likelihood == likelihood))

    monkeypatch.setattr(search, "_scores", scores)
    code, _, err = pyrovae("fit", survey(13), *QUICK, "--out", "run")
    assert code == 0, err
    both = [("full-mixture", "ordered-columns"), ("mixture", "ordered-columns")]
    assert tried == [*both, (prior, "columns")]
    kept = open_run(Path("run"))
    assert (kept.options.prior, kept.options.likelihood) == (prior, likelihood)
    assert any(isinstance(m, pv.families.OrderedLogistic) for m in kept.fitted.pair.modules()) == (
        likelihood == "ordered-columns"
    )


@pytest.mark.parametrize(("leads", "kept"), [((2.0, -1.0), "ordered-columns"), ((2.0, 1.0), "columns")])
def test_an_order_is_given_up_for_no_lead_by_chance(
    pyrovae: Command, monkeypatch: pytest.MonkeyPatch, leads: tuple[float, float], kept: str
) -> None:
    """Two rows by which free probabilities lead by 0.5 +- 1.5, and by 1.5 +- 0.5 nats."""
    scores = {"ordered-columns": torch.zeros(2), "columns": torch.tensor(leads)}
    monkeypatch.setattr(search, "_scores", lambda run: scores[str(run.options.likelihood)])
    monkeypatch.setattr(starts, "FAR_BEHIND", math.inf)
    code, _, err = pyrovae("fit", survey(3), *QUICK, "--out", "run")
    assert code == 0, err
    assert open_run(Path("run")).options.likelihood == kept
    chance = "since the lead of the other is within its standard error: the first model"
    told = "as the higher one: a probability" if kept == "columns" else chance
    assert f"Kept, {told}" in " ".join(err.split())


@pytest.mark.usefixtures("pyrovae")
def test_a_search_that_cannot_be_is_refused() -> None:
    with pytest.raises(OptionError, match="--search small needs 10 validation rows to judge by, and has 4: raise"):
        recipes(table(3, rows=40), search="small")
    with pytest.raises(OptionError, match="--search small is for --model vae"):
        recipes(table(3), search="small", model="hierarchical")
    with pytest.raises(OptionError, match="--search must be none, small or auto, got large"):
        Options.of("fit", search="large").check("fit")


def parameters(run: Run) -> list[torch.Tensor]:
    return list(named_tensors(run.fitted.pair, buffers=True).values())


@pytest.mark.slow
@pytest.mark.parametrize("better", [True, False])
def test_the_recipe_with_the_most_probable_validation_rows_is_kept(
    pyrovae: Command, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    """The run folder is that of the winner, and says what was tried. A recipe that cannot be fitted has lost."""
    prefers = {"mixture": 2.0 if better else float("-inf"), "full-mixture": 1.0}
    monkeypatch.setattr(search, "_scores", lambda run: torch.tensor([prefers[str(run.options.prior)]]))
    monkeypatch.setattr(starts, "FAR_BEHIND", math.inf)
    impossible = {"impossible": {"guide": "vmf"}}
    monkeypatch.setattr(search, "TEN_CODES", {**search.TEN_CODES, **impossible})
    fitted: list[Run] = []

    def fit_one(*given: Any, **how: Any) -> Run:
        fitted.append(fit_run(*given, **how))
        return fitted[-1]

    monkeypatch.setattr(search, "fit_run", fit_one)
    code, _, err = pyrovae("fit", table(13), *QUICK, "--out", "run", "--track", "json:elsewhere.jsonl")
    assert code == 0, err
    found = json.loads(Path("run/run.json").read_text())["info"]
    assert found["folder"] == str(Path("run").absolute())
    opened, kept = open_run(Path("run")), fitted[better]
    assert len(fitted) == 2 and opened.fitted.history == kept.fitted.history  # nothing is fitted twice
    assert all(torch.equal(a, b) for a, b in zip(parameters(opened), parameters(kept), strict=True))
    assert "z" in Path("run/graph.gv").read_text() and Path("run/columns.yaml").exists()
    *epochs, results = map(json.loads, Path("elsewhere.jsonl").read_text().splitlines())
    assert [one["elbo"] for one in epochs] == [one["elbo"] for one in kept.fitted.history]
    assert results["results"]["log_likelihood"] == found["results"]["log_likelihood"]
    assert found["options"]["prior"] == ("mixture" if better else "full-mixture")
    assert found["options"]["latent"] == (10 if better else 13) and "log_likelihood" in found["results"]
    assert list(found["search"]) == [search.FIRST, "10 latent dimensions, started at random"]
    assert "It cannot be fitted" in err and (
        "one: 10 latent dimensions" if better else "one: the first model"
    ) in " ".join(err.split())


@pytest.mark.slow
def test_the_judge_is_log_p_of_validation_rows(pyrovae: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "FAR_BEHIND", math.inf)
    code, _, err = pyrovae("fit", table(13), *QUICK, "--out", "run")
    assert code == 0, err
    run = open_run(Path("run"))
    exact = pv.log_likelihood(
        run.fitted, run.rows.batch("validation"), starts.DRAWS, proposal="guide", seed=search.SEED
    )
    tried = run.fitted.info["search"]
    assert max(tried.values()) == pytest.approx(exact.mean().item() - run.rows.log_abs_det, abs=1e-4)


def with_history(*elbos: float | None, epochs: int = 10) -> Fit:
    """A fit of so many epochs, not all of which were validated."""
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, pv.families.Normal(3)), pv.mlp(3, pv.families.Normal(2)))
    fitted = pv.fit(vae, torch.zeros(4, 3), epochs=0, progress=False)
    fitted.settings["epochs"] = epochs
    fitted.history += [{"epoch": 1.0} if elbo is None else {"validation_elbo": elbo} for elbo in elbos]
    return fitted


def test_of_some_hundred_rows_a_prior_without_a_flow_is_tried(pyrovae: Command) -> None:
    code, out, err = pyrovae("fit", table(2, rows=600), *QUICK, "--out", "run")
    assert code == 0, err
    assert "Fitting another model to compare: a mixture as prior, without a flow." in " ".join((out + err).split())
    found = json.loads(Path("run/run.json").read_text())["info"]["search"]
    assert list(found) == [search.FIRST, *search.WITHOUT_FLOW]


def test_a_race_is_lost_only_by_far_and_not_at_once() -> None:
    race = starts.Race(-10.0)
    race(with_history(-99.0, -98.0, None))  # the first three of ten epochs
    race(with_history(-99.0, -12.9, -20.0, None))  # the best of them counts
    with pytest.raises(starts.Behind, match=r"is 3.5 nats per row lower after 4 epochs"):
        race(with_history(-99.0, -98.0, -13.5, None))
    with pytest.raises(starts.Behind):
        race(with_history(None, None, None, None))
    assert starts.best_elbo(with_history(-3.0, -1.0, None, -2.0)) == -1.0


@pytest.mark.slow
def test_a_model_that_is_far_behind_is_left(pyrovae: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one is kept as it is, and judged by nothing else; a search that was asked for tries each to its end."""
    monkeypatch.setattr(starts, "best_elbo", lambda fitted: float("first" in fitted.info["folder"]))
    monkeypatch.setattr(starts, "FAR_BEHIND", 0.5)
    judged: list[Run] = []

    def scores(run: Run) -> torch.Tensor:
        judged.append(run)
        return torch.zeros(2)

    monkeypatch.setattr(search, "_scores", scores)
    code, _, err = pyrovae("fit", table(13), *QUICK, "--out", "first")
    told = " ".join(err.split())
    assert (
        code == 0 and "Left, since its validation ELBO is 1.0 nats per row lower after 1 epoch. Kept: the first" in told
    )
    found = json.loads(Path("first/run.json").read_text())
    assert found["info"]["options"]["latent"] == 13 and "log_likelihood" in found["info"]["results"]
    assert found["status"] == "finished" and "search" not in found["info"] and judged == []
    assert list(found["info"]["search_left"]) == list(search.TEN_CODES)
    code, _, err = pyrovae("fit", "rows.csv", *QUICK, "--out", "first", "--force", "--search", "small")
    assert code == 0 and "Left" not in err and len(judged) == 4  # of which one is the first
