"""Tables are read by the places of their columns, so that those of another order are refused, and not taken for others."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch
from support.programs import vae

import pyrovae as pv

NAMES = list("abcdef")


def frame(rows: int = 20) -> pd.DataFrame:
    numbers = torch.bernoulli(torch.full((rows, 6), 0.4), generator=torch.Generator().manual_seed(0))
    return pd.DataFrame(numbers.numpy(), columns=NAMES)


def fit(data: Any, **options: Any) -> pv.Fit:
    return pv.fit(vae(), data, epochs=1, seed=0, engine="eager", progress=False, **options)


OTHERS = {
    "another order": (frame().iloc[:, ::-1], r"in another order: 'f', 'e', 'd', 'c', 'b', \.\.\. in place of 'a', 'b'"),
    "one less": (frame().drop(columns="c"), r"lacks 'c'\. Give table\[fitted\.columns\['x'\]\], or"),
    "one more": (frame().assign(g=0.0), "has 'g' besides"),
    "one renamed": (frame().rename(columns={"c": "C"}), "lacks 'c' and has 'C' besides"),
    "one twice": (frame()[[*NAMES, "a"]], "has some twice"),
    "of Arrow": (pa.Table.from_pandas(frame().iloc[:, ::-1]), "in another order"),
    "by argument": ({"x": frame().iloc[:, ::-1]}, "'x' has the columns of the fit in another order"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_question_refuses_other_columns(name: str) -> None:
    fitted, (other, message) = fit(frame()), OTHERS[name]
    for ask in (pv.log_likelihood, pv.encode, pv.reconstruct):
        with pytest.raises(pv.DataError, match=message):
            ask(fitted, other)
    with pytest.raises(pv.DataError, match=message):
        pv.gradient_variance(fitted, other, [pv.Trace_ELBO()], num_batches=4, batch_size=2)


def test_the_cure_is_the_right_one() -> None:
    fitted, table = fit(frame()), frame()
    assert torch.equal(
        pv.encode(fitted, table.iloc[:, ::-1].assign(g=1.0)[fitted.columns["x"]]), pv.encode(fitted, table)
    )


@pytest.mark.parametrize(
    "nameless", [lambda t: t.to_numpy(), lambda t: t.set_axis(range(6), axis=1)], ids=["array", "numbered"]
)
def test_what_has_no_such_names_is_read_by_places(nameless: Any) -> None:
    fitted, table = fit(frame()), frame()
    assert torch.equal(pv.encode(fitted, nameless(table)), pv.encode(fitted, table))
    unnamed = fit(nameless(table))
    assert torch.equal(pv.encode(unnamed, table), pv.encode(unnamed, nameless(table)))


def test_tables_in_files_have_names_too(tmp_path: Path) -> None:
    table = frame()
    table.to_parquet(tmp_path / "rows.parquet")
    table.iloc[:, ::-1].to_parquet(tmp_path / "other.parquet")
    fitted = fit(pv.data.open(tmp_path / "rows.parquet"))
    assert fitted.columns == {"x": NAMES}
    other = tmp_path / "other.parquet"
    for wrong in (pv.data.open(other), table.iloc[:, ::-1]):
        with pytest.raises(pv.DataError, match="in another order"):
            pv.encode(fitted, wrong)
    again = pv.data.open(other, columns={"x": fitted.columns["x"]})
    assert torch.equal(pv.encode(fitted, again), pv.encode(fitted, table))


def test_validation_rows_have_the_columns_of_the_training_rows() -> None:
    with pytest.raises(pv.DataError, match="columns of the training rows in another order"):
        fit(frame(), validation=frame(5).iloc[:, ::-1])
    assert fit(frame(), validation=frame(5)).history[-1]["epoch"] == 1


def test_a_pair_that_names_its_columns_is_fitted_to_these() -> None:
    pair = vae()
    pair.column_names = {"x": NAMES}
    with pytest.raises(pv.DataError, match=r"in another order.*Give the rows that its schema makes, schema\.encode"):
        pv.fit(pair, frame().iloc[:, ::-1], epochs=1, progress=False)


def test_a_scaling_has_the_columns_of_its_training_rows() -> None:
    table = frame()
    units = pv.data.Standardize.fit(table)
    again = pv.data.Standardize.from_json(units.to_json())
    for scaling in (units, again):
        assert torch.equal(scaling.apply(table), scaling.apply(table.to_numpy()))
        with pytest.raises(pv.DataError, match="in another order"):
            scaling.apply(table.iloc[:, ::-1])
    unnamed = pv.data.Standardize.fit(table.to_numpy())
    assert "columns" not in unnamed.to_json()
    assert torch.equal(unnamed.apply(table), units.apply(table))
    with pytest.raises(pv.CheckpointError, match="a name for each column"):
        pv.data.Standardize.from_json({**unnamed.to_json(), "columns": ["a"]})
