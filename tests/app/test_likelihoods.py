"""Which likelihood a table has by default: by its columns, and by the order of answers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.command import Command

from pyrovae.app.likelihoods import choose_likelihood
from pyrovae.app.options import Options
from pyrovae.data.load import read
from pyrovae.errors import OptionError

N = 120
RANDOM = np.random.default_rng(0)
ANSWERS = RANDOM.integers(1, 6, size=(N, 24)).astype(float)
REALS = RANDOM.normal(size=(N, 5)).round(3)
WORDS = RANDOM.poisson(RANDOM.uniform(0.3, 4.0, size=24), size=(N, 24)).astype(float)
SOME_GAPS = np.where(RANDOM.random((N, 24)) < 0.1, np.nan, ANSWERS)

TABLES = {
    "few items": (ANSWERS[:, :5], "ordered-columns"),
    "many items": (ANSWERS, "ordered-columns"),
    "many items with gaps": (SOME_GAPS, "ordered-columns"),
    "many items, some turned round or of yes and no": (
        np.column_stack([ANSWERS[:, :20], RANDOM.integers(0, 2, size=(N, 4))]),
        "ordered-columns",
    ),
    "many items on several scales": (
        np.column_stack([RANDOM.integers(0, most + 1, size=N) for most in (1, 1, 2, 3, 4, 6, 10) * 3]).astype(float),
        "ordered-columns",
    ),
    "words": (WORDS, "negative-binomial"),
    "rare words": (RANDOM.poisson(RANDOM.uniform(0.02, 0.5, size=24), size=(N, 24)).astype(float), "negative-binomial"),
    "genes": (RANDOM.negative_binomial(0.5, 0.2, size=(N, 24)).astype(float), "negative-binomial"),
    "numbers": (REALS, "columns"),
    "items beside fewer numbers": (np.column_stack([ANSWERS[:, :6], REALS]), "ordered-columns"),
    "items beside as many numbers": (np.column_stack([ANSWERS[:, :5], REALS]), "columns"),
}


def chosen(values: np.ndarray, tmp_path: Path, **options: object) -> str:
    path = tmp_path / "rows.csv"
    pd.DataFrame(values, columns=[f"q{i}" for i in range(values.shape[1])]).to_csv(path, index=False)
    return choose_likelihood(Options.of("fit", **options), read(str(path)))[0]


@pytest.mark.parametrize(("values", "wanted"), TABLES.values(), ids=TABLES)
def test_answers_in_an_order_get_a_likelihood_that_uses_it(values: np.ndarray, wanted: str, tmp_path: Path) -> None:
    assert chosen(values, tmp_path) == wanted


def test_other_models_and_what_is_asked_for(tmp_path: Path) -> None:
    assert chosen(ANSWERS, tmp_path, likelihood="columns") == "columns"
    assert chosen(REALS, tmp_path, likelihood="ordered-columns") == "ordered-columns"  # no column of which is ordinal
    assert chosen(ANSWERS, tmp_path, model="gmvae") == "columns"
    assert (
        chosen(np.tile(ANSWERS[:, :3], (42, 1)), tmp_path) == "columns"
    )  # 5,040 rows, which no other model is compared by
    with pytest.raises(OptionError, match="--likelihood ordered-columns is for tables, and digits is none"):
        choose_likelihood(Options.of("fit", likelihood="ordered-columns"), read("digits"))


def test_a_class_that_no_answer_has_is_pointed_out(pyrovae: Command) -> None:
    pd.DataFrame(ANSWERS[:, :4].astype(int), columns=list("abcd")).to_csv("survey.csv", index=False)
    quick = ("--epochs", 1, "--engine", "eager", "--proposal", "guide", "--num-samples", 5, "--search", "none")
    code, _, err = pyrovae("fit", "survey.csv", "--likelihood", "ordinal", "--total-count", 5, *quick)
    told = " ".join(err.split())
    assert (
        code == 0 and "has a class 0, which no row has: --likelihood ordered-columns takes answers as they are." in told
    )
    code, _, err = pyrovae("fit", "survey.csv", "--out", "other", *quick)
    assert code == 0 and "class 0" not in err
