"""`--search`: which recipes are tried, which is kept, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.command import Command

import pyrovae as pv
from pyrovae.app import search
from pyrovae.app.options import Options
from pyrovae.app.run import open_run
from pyrovae.data.load import read
from pyrovae.errors import OptionError

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


@pytest.mark.usefixtures("pyrovae")
def test_a_search_that_cannot_be_is_refused() -> None:
    with pytest.raises(OptionError, match="--search small needs 10 validation rows to judge by, and has 4: raise"):
        recipes(table(3, rows=40), search="small")
    with pytest.raises(OptionError, match="--search small is for --model vae"):
        recipes(table(3), search="small", model="hierarchical")
    with pytest.raises(OptionError, match="--search must be none, small or auto, got large"):
        Options.of("fit", search="large").check("fit")


@pytest.mark.slow
@pytest.mark.parametrize("better", [True, False])
def test_the_recipe_with_the_most_probable_validation_rows_is_kept(
    pyrovae: Command, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    """The run folder is that of the winner, and says what was tried. A recipe that cannot be fitted has lost."""
    prefers = {"mixture": 2.0 if better else float("-inf"), "full-mixture": 1.0}
    monkeypatch.setattr(search, "_score", lambda run: prefers[str(run.options.prior)])
    impossible = {"impossible": {"guide": "vmf"}}
    monkeypatch.setattr(search, "TEN_CODES", {**search.TEN_CODES, **impossible})
    code, _, err = pyrovae("fit", table(13), *QUICK, "--out", "run")
    assert code == 0, err
    found = json.loads(Path("run/run.json").read_text())["info"]
    assert found["options"]["prior"] == ("mixture" if better else "full-mixture")
    assert found["options"]["latent"] == (10 if better else 13) and "log_likelihood" in found["results"]
    assert list(found["search"]) == [search.FIRST, "10 latent dimensions, started at random"]
    assert "It cannot be fitted" in err and (
        "one: 10 latent dimensions" if better else "one: the first model"
    ) in " ".join(err.split())


@pytest.mark.slow
def test_the_judge_is_log_p_of_validation_rows(pyrovae: Command) -> None:
    code, _, err = pyrovae("fit", table(13), *QUICK, "--out", "run")
    assert code == 0, err
    run = open_run(Path("run"))
    exact = pv.log_likelihood(
        run.fitted, run.rows.batch("validation"), search.DRAWS, proposal="guide", seed=search.SEED
    )
    tried = run.fitted.info["search"]
    assert max(tried.values()) == pytest.approx(exact.mean().item() - run.rows.log_abs_det, abs=1e-4)
