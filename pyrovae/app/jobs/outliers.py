"""Outliers: which rows of a new table are strange to a run, how surely, and in which columns."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae._near import expanded
from pyrovae._sources import NAMES
from pyrovae.app.given import GivenCaptions
from pyrovae.app.jobs.batch import batch_of, id_column, is_folder, table_of
from pyrovae.app.jobs.blocks import begun, rows_at_once, telling
from pyrovae.app.jobs.frames import BY_BLOCKS, FILE, TEXTS
from pyrovae.app.jobs.like import batch_like, read_like
from pyrovae.app.jobs.ranking import Ranking
from pyrovae.app.jobs.trained import TRAINED_ON, TrainingRows
from pyrovae.app.rows import Array
from pyrovae.app.run import Run
from pyrovae.criticism.entries import leave_one_out
from pyrovae.criticism.outliers import Anomaly, anomaly_score, conformal_p_values, typicality
from pyrovae.errors import OptionError, PairError, counted
from pyrovae.pair.batch import take_rows

IMPOSSIBLE = "impossible"  # columns whose values they cannot have
METHODS = ("log_likelihood", "regret", "typicality")
COLUMNS_NAMED = 3  # of each row
MOST_CALIBRATION, MOST_FOR_COLUMNS = 1000, 250  # rows with which scores, and entries, are compared
# The columns are named of the rows that are called outliers, and of as many of the strangest as this.
LEAST_EXPLAINED, MOST_EXPLAINED = 50, 500
MOST_SHOWN = 10  # rows, the strangest
# For each entry: draws of a round, see `pv.entry_densities`, or, where rows may lack none, as many of so many posterior draws.
ENTRY_DRAWS, CHOSEN_FROM = 200, 1000


@dataclass(frozen=True, eq=False)
class Outliers:
    """What the job found.

    Args:
        rows: how many rows there are.
        called: how many of them are called outliers.
        worst: the strangest rows, strangest first: name, rank, score and error, p-value, the rate at which it is called an
            outlier, whether it is, and the columns in which it is strangest, with their p-values.
        rate: the false discovery rate.
        notes: what a reader should know.
    """

    rows: int
    called: int
    worst: pd.DataFrame
    rate: float
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Part:
    """Some rows as the run's model takes them, with their names, if they have any, and what these are called.

    And which cells hold a value that their column cannot have, `(N, D)`; these are missing in the rows.
    """

    start: int
    batch: dict[str, Tensor]
    names: Sequence[str] | None
    called: str = "id"
    impossible: Array | None = None

    def __len__(self) -> int:
        return len(self.batch["x"])


def find_outliers(
    run: Run,
    source: str,
    to: Path,
    *,
    method: str,
    rate: float,
    num_samples: int,
    proposal: str,
    seed: int = 0,
    data_root: Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda message: None,
    rows: int | None = None,
) -> Outliers:
    """Score the rows of a table under a run, compare them with the run's test rows, which its fit has not seen, and write that.

    There is a line for each row, in the order of the source, which says, too, whether it is a training row. Tables that are
    read block by block are read twice: for the scores, which are kept on the disk, and for the columns of the strangest rows.
    Ranks and rates are those among all rows; for them 8 bytes a row are held. Each block has random numbers of its own.

    Args:
        source: a table with the columns of the run, a folder of images, or a name as for `fit`.
        to: the file to write, .csv or .parquet.
        method: of `pv.anomaly_score`; "typicality" takes the mean of the test rows.
        rate: the share of ordinary rows that is tolerated among those that are called outliers, by Benjamini and Hochberg.
        num_samples: draws per row.
        proposal: of these draws.
        force: start anew where another job was stopped.
        say: called with what is being done.
        rows: how many rows are read at once.

    Raises:
        OptionError: the method or the rate is impossible, or the ending of a file unknown.
        DataError: the table has other columns than the run, or values that its likelihood does not take.
    """
    if method not in METHODS:
        raise OptionError(f"--method must be one of {', '.join(METHODS)}, got {method}.")
    if not 0 < rate < 1:
        raise OptionError(f"--rate must be between 0 and 1, got {rate:g}.")
    identity, path, parts = _source(run, source, rows or rows_at_once(run, num_samples), data_root)
    with closing(parts()) as first_ones:
        next(first_ones)  # a mistake in the table is told before anything is scored
    how: dict[str, Any] = {"num_samples": num_samples, "proposal": proposal}
    asked = {"asked": "outliers", "method": method, "seed": seed, "says": [TRAINED_ON, IMPOSSIBLE], **how, **identity}
    summary = _Summary()
    with (
        warnings.catch_warnings(),  # of the guide as the proposal, and of rows with few draws: they are the strange ones
        begun(run, asked, path, to, force=force, say=say, kept=".csv", csv={"na_rep": "nan"}) as job,
    ):
        warnings.simplefilter("ignore")
        ordinary = take_rows(run.rows.batch("test"), slice(0, MOST_CALIBRATION))
        say(f"scores of {counted(len(ordinary['x']), 'test row')}, to compare with")
        scorer = _Scorer.of(run, ordinary, method, seed, how)
        say("scores of the rows")
        job.answer(parts(), scorer)
        ranking = Ranking(job.rows, len(scorer.usual), MOST_EXPLAINED)
        for kept in job.parts(**_EXACTLY):
            ranking.add(kept["score"].to_numpy(), kept["p_value"].to_numpy())
        first = ranking.first[: max(LEAST_EXPLAINED, ranking.called(rate))]
        say(f"which columns are strange in {len(first)} of {job.rows} rows")
        strangest, explained = scorer.explain(parts, np.sort(first))

        def lines() -> Iterator[pd.DataFrame]:
            start = 0
            for kept in job.parts(**_EXACTLY):
                yield summary.add(_table(run, kept, ranking, rate, start, strangest, explained), kept[IMPOSSIBLE])
                start += len(kept)

        job.join(lines(), float_format="%.6g", na_rep="")
    notes = _notes(run, len(scorer.usual), job.rows, rate, explained is None, summary)
    if scorer.training.are_told(summary.trained_on, job.rows):
        notes.append(
            f"{summary.trained_on} of {job.rows} rows are training rows of the run ({TRAINED_ON}), which look less strange to "
            "it than new rows would: their p-values are rather too large, so that fewer of them are called outliers than "
            "of new rows as strange. To judge them, fit without them, such as to each half of a table for the other one."
        )
    return Outliers(job.rows, summary.called, pd.concat(summary.worst).sort_values("rank"), rate, tuple(notes))


@dataclass(frozen=True, eq=False)
class _Scorer:
    """How rows are scored under a run, and compared with its test rows.

    Args:
        run: the run.
        ordinary: its test rows, as arguments of its model.
        method: of `pv.anomaly_score`.
        seed: of the draws; those of the test rows and of each block differ.
        how: `num_samples` and `proposal` of `pv.anomaly_score`.
        first: the scores of the test rows, from which "typicality" takes its mean.
        usual: what other rows are compared with, `(n,)`.
        training: the training rows, to tell which rows are among them.
    """

    run: Run
    ordinary: dict[str, Tensor]
    method: str
    seed: int
    how: Mapping[str, Any]
    first: Anomaly
    usual: Tensor
    training: TrainingRows

    @classmethod
    def of(cls, run: Run, ordinary: dict[str, Tensor], method: str, seed: int, how: Mapping[str, Any]) -> _Scorer:
        """With the scores of the test rows."""
        first = anomaly_score(run.fitted, ordinary, _scored(method), seed=seed, **how)
        usual = typicality(first, first) if method == "typicality" else first
        return cls(run, ordinary, method, seed, how, first, usual.score, TrainingRows(run))

    def __call__(self, part: _Part, number: int) -> list[pd.DataFrame]:
        """The scores of a block of rows, the one of this number, and their p-values, a line for each."""
        found = anomaly_score(
            self.run.fitted, part.batch, _scored(self.method), seed=self.seed + 1 + number, **self.how
        )
        if self.method == "typicality":
            found = typicality(found, self.first)
        score, where = found.score, [""] * len(part)
        if part.impossible is not None:
            score = torch.where(torch.from_numpy(part.impossible.any(1)), math.inf, score)
            where = [" ".join(map(str, np.flatnonzero(row))) for row in part.impossible]
        p = conformal_p_values(self.usual, score)
        names = range(part.start, part.start + len(part)) if part.names is None else part.names
        columns = {"score": score, "error": found.error, "k_hat": found.k_hat, "p_value": p}
        told: dict[str, Any] = {name: values.numpy() for name, values in columns.items()}
        told |= {TRAINED_ON: self.training.among(part.batch), IMPOSSIBLE: where}
        return [pd.DataFrame({"row" if part.names is None else part.called: list(names), **told})]

    def explain(
        self, parts: Callable[[], Generator[_Part, None, None]], strangest: Array
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """The rows, by their ascending numbers, whose columns are compared, and what `_strange_columns` says of them.

        Test rows whose density is 0 or overflows have none given their other columns; without others no column is compared.
        """
        judged = take_rows(self.ordinary, self.usual.isfinite().nonzero().flatten()[:MOST_FOR_COLUMNS])
        if not len(strangest) or not len(judged["x"]):
            return strangest[:0], (np.empty((0, 0), dtype=np.int64), np.empty((0, 0)))
        proposal = self.how["proposal"]
        return strangest, _strange_columns(self.run, _rows_of(parts(), strangest), judged, proposal, self.seed)


def _scored(method: str) -> str:
    return "regret" if method == "regret" else "log_likelihood"


class _Summary:
    """What is said of the lines for all rows, which need not all be in memory."""

    def __init__(self) -> None:
        self.called, self.infinite, self.impossible, self.trained_on, self.worst = 0, 0, 0, 0, list[pd.DataFrame]()
        self.where = Counter[int]()  # the columns of impossible values

    def add(self, table: pd.DataFrame, impossible: Iterable[str]) -> pd.DataFrame:
        """Count the lines of a block, which are given back; and, by their numbers, the columns of impossible values."""
        self.where.update(int(number) for row in impossible for number in row.split())
        self.called += int(table["outlier"].sum())
        hit = table[IMPOSSIBLE].notna()
        self.impossible += int(hit.sum())
        self.infinite += int((np.isinf(table["score"]) & ~hit).sum())
        self.trained_on += int(table[TRAINED_ON].sum())
        if len(strange := table[table["rank"] <= MOST_SHOWN]):
            self.worst.append(strange)
        return table


# how the kept scores are read again: to the last bit, as not all versions of pandas do, and names as they are written
_EXACTLY: dict[str, Any] = {
    "converters": dict.fromkeys(("score", "error", "k_hat", "p_value"), float),
    "keep_default_na": False,
    "dtype": {"id": str, FILE: str, IMPOSSIBLE: str},
}


def _source(
    run: Run, source: str, rows: int, data_root: Path | None
) -> tuple[dict[str, Any], Path | None, Callable[[], Generator[_Part, None, None]]]:
    """What tells a source from others, its file, and its rows, block by block: from the file, or else from memory."""
    path = expanded(source)
    suffix = path.suffix.lower()
    images = run.rows.image_shape is not None or isinstance(run.rows.given, GivenCaptions)
    # without names of its columns, all of a table must be seen to find out which of them names the rows
    unnamed = run.dataset.columns is None and run.rows.schema is None
    whole = suffix not in BY_BLOCKS or images or (unnamed and suffix in (*TEXTS, ".parquet"))
    folder = source not in NAMES and is_folder(path)
    if source not in NAMES and (folder or not whole):
        table = table_of(run, path, rows)
        called = FILE if folder else "id"
        of_text = FILE if folder else id_column(run, table.form.names) if table.form.named else None

        def read_blocks() -> Generator[_Part, None, None]:
            with closing(table.blocks(() if of_text is None else [of_text])) as blocks:
                for block in blocks:
                    name = FILE if folder else id_column(run, block.frame) if table.form.named else None
                    cells = block.frame if block.texts is None else block.texts
                    names = None if name is None else ["" if pd.isna(cell) else str(cell) for cell in cells[name]]
                    modelled = 0 if run.rows.schema is None else len(run.rows.schema.names)
                    impossible = np.zeros((len(block.frame), modelled), dtype=bool) if modelled else None
                    with telling(block):
                        batch = batch_of(run, block, impossible)
                    yield _Part(block.start, batch, names, called, impossible)

        return table.identity, table.path, read_blocks
    dataset = read_like(run, source, data_root)
    batch = batch_like(run, dataset)

    def in_memory() -> Generator[_Part, None, None]:
        for start in range(0, len(batch["x"]), rows):
            some = slice(start, start + rows)
            yield _Part(start, take_rows(batch, some), None if dataset.ids is None else dataset.ids[some])

    same = {"table": source, "checksum": dataset.source["checksum"], "rows": rows}
    return same, None if source in NAMES else path.absolute(), in_memory


def _rows_of(parts: Generator[_Part, None, None], numbers: Array) -> dict[str, Tensor]:
    """The rows with these numbers, which ascend."""
    found: list[dict[str, Tensor]] = []
    with closing(parts):
        for part in parts:
            first, last = np.searchsorted(numbers, [part.start, part.start + len(part)])
            if first < last:
                found.append(take_rows(part.batch, torch.from_numpy(numbers[first:last] - part.start)))
            if last == len(numbers):
                break
    return {name: torch.cat([some[name] for some in found]) for name in found[0]}


def _strange_columns(
    run: Run, new: dict[str, Tensor], ordinary: dict[str, Tensor], proposal: str, seed: int
) -> tuple[Array, Array] | None:
    """For each row the columns in which it is strangest, and the p-values of all; None for a joint density.

    `(N, 3)` positions, and `(N, D)` conformal p-values of the density of each entry given the other columns.
    """
    how: dict[str, Any] = {"site": "x", "num_samples": ENTRY_DRAWS, "num_particles": CHOSEN_FROM, "proposal": proposal}
    try:
        usual = leave_one_out(run.fitted, ordinary, seed=seed, **how).flatten(1)
        found = leave_one_out(run.fitted, new, seed=seed + 1, **how).flatten(1)
    except PairError:
        return None
    order, p_values = strangest_first(found, usual)
    return order[:, :COLUMNS_NAMED].numpy(), p_values.numpy()


def strangest_first(found: Tensor, usual: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of each row, the strangest first, and the conformal p-value of each, `(N, D)` both.

    No p-value is below 1 / (n + 1) with n ordinary values, and columns with gaps have fewer. So columns whose entry is stranger
    than all ordinary ones come first, by how many nats it is below the least probable of them, and then the others by p.

    Args:
        found: Log-densities of the entries of N rows, `(N, D)`; NaN is missing.
        usual: Those of n ordinary rows, `(n, D)`.
    """
    p_values, keys = torch.ones_like(found, dtype=torch.float64), torch.ones_like(found, dtype=torch.float64)
    for column, (own, theirs) in enumerate(zip(found.T, usual.T)):
        known, there = ~own.isnan(), ~theirs.isnan()
        if bool(there.any()):
            p_values[known, column] = conformal_p_values(-theirs[there], -own[known])
            below = own[known].double() - theirs[there].double().min()
            keys[known, column] = torch.where(below < 0, below, p_values[known, column])
    return keys.argsort(stable=True, dim=1), p_values


def _table(
    run: Run,
    kept: pd.DataFrame,
    ranking: Ranking,
    rate: float,
    start: int,
    strangest: Array,
    explained: tuple[Array, Array] | None,
) -> pd.DataFrame:
    """The lines of a block of rows, of which the first is number `start`."""
    names, p = kept.columns[0], kept["p_value"].to_numpy()
    adjusted = ranking.adjusted(p)
    table = pd.DataFrame(
        {
            names: kept[names] if names == "row" else kept[names].astype("string"),
            "rank": ranking.ranks(kept["score"].to_numpy()),
            **{name: kept[name] for name in ("score", "error", "k_hat", "p_value")},
            "adjusted_p": adjusted,
            "outlier": (adjusted <= rate) | (kept[IMPOSSIBLE] != "").to_numpy(),
            TRAINED_ON: kept[TRAINED_ON],
        }
    )
    if explained is not None:
        first, last = np.searchsorted(strangest, [start, start + len(table)])
        here, (places, columns) = strangest[first:last] - start, explained
        called = np.array(run.rows.columns or [f"x{i}" for i in range(columns.shape[1])], dtype=object)
        # as many in each block, also where no row is compared, since values that cannot be are named there, too
        schema = run.rows.schema
        for number in range(places.shape[1] or min(COLUMNS_NAMED, 0 if schema is None else len(schema.names))):
            name, p_value = np.full(len(table), None, dtype=object), np.full(len(table), np.nan)
            if len(here):
                which = places[first:last, number]
                name[here], p_value[here] = called[which], columns[np.arange(first, last), which]
            table[f"column_{number + 1}"] = pd.array(name, dtype="string")
            table[f"p_column_{number + 1}"] = p_value
    called = np.array(run.rows.columns or [], dtype=object)
    where = {row: list(called[[int(c) for c in text.split()]]) for row, text in enumerate(kept[IMPOSSIBLE]) if text}
    for row, columns_of_row in where.items():
        for number, name in enumerate(columns_of_row[:COLUMNS_NAMED] if explained is not None else []):
            table.loc[row, [f"column_{number + 1}", f"p_column_{number + 1}"]] = name, 0.0
    told = [", ".join(where[row]) if row in where else None for row in range(len(table))]
    table[IMPOSSIBLE] = pd.array(told, dtype="string")
    return table


def _notes(run: Run, calibration: int, rows: int, rate: float, joint: bool, summary: _Summary) -> list[str]:
    notes = [
        f"p-values compare with {counted(calibration, 'test row')} of the run, which its fit has not seen: of ordinary "
        "rows, a share of "
        f"at most a has a p-value below a. Of the rows called outliers, on average at most {rate:.0%} are ordinary ones."
    ]
    least = 1 / (calibration + 1)
    if least * rows > rate:
        needed, together = math.ceil(rows / rate) - 1, math.ceil(rows * least / rate)
        notes.append(
            f"No p-value can be below {least:.2g} with {counted(calibration, 'test row')}, so that at a rate of {rate:g} "
            "a single outlier "
            f"among {counted(rows, 'row')} cannot be called one, but only {together} or more together. Look at the ranks, "
            "or fit with a "
            f"larger --test-fraction: {counted(needed, 'test row')} would do."
        )
    if joint:
        notes.append("The likelihood is a joint density of all columns, so that no single column can be named.")
    if summary.impossible:
        names = run.rows.columns or ()
        where = [f"{names[number]} ({count})" for number, count in summary.where.most_common(5)]
        notes.append(
            f"{summary.impossible} of {rows} rows hold values that their columns cannot have in this run, numbers that are "
            f"infinite or beyond a bound, or unknown categories: {', '.join(where)}"
            f"{', ...' if len(summary.where) > 5 else ''}. They are called outliers at any rate, and the column {IMPOSSIBLE} "
            "says where. If they are many, the column may be in other units, or coded otherwise, than the run's."
        )
    if summary.infinite:
        notes.append(
            f"The score of {summary.infinite} of {rows} rows is infinite, since their density is 0 or overflows: they are "
            "stranger than all others."
        )
    return notes
