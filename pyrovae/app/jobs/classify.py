"""Classes: for each row of a table, and each column of labels, the probability of each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pyrovae._files import write_file
from pyrovae.app.jobs.answers import named_blocks, number_name, numbered
from pyrovae.app.jobs.batch import batch_of, class_numbers, label_name, plain, table_of
from pyrovae.app.jobs.blocks import begun, rows_at_once
from pyrovae.app.jobs.frames import Block
from pyrovae.app.jobs.trained import TrainingRows
from pyrovae.app.rows import Labels, names_of, source_rows
from pyrovae.app.run import Run
from pyrovae.app.scores import EVALUATION_SEED
from pyrovae.criticism.classification import classify
from pyrovae.errors import DataError, OptionError

PREDICTED, PROBABILITY, SEEN = "predicted", "probability", "trained on"  # what is added to the name of a column


@dataclass
class Told:
    """What was found in a column of labels: of how many rows the label was unknown, and of how many others it was right.

    `seen` are the labelled rows that are training rows with a label, if they are more than would be by chance.
    """

    name: str
    unknown: int = 0
    known: int = 0
    right: int = 0
    seen: int = 0


def label_columns(run: Run) -> tuple[Labels, ...]:
    """The columns of labels that a run's model infers. OptionError for a model without."""
    rows = run.rows
    if rows.several:
        return rows.several
    if run.model.infers_labels or run.model.clusters:
        codes = {part: codes for part, codes in rows.codes.items() if codes is not None}
        name = "cluster" if run.model.clusters else label_name(run)
        return (Labels("y", name, rows.classes or (), {} if run.model.clusters else codes),)
    raise OptionError(
        f"--model {run.options.model} infers no class. Fit m2, or labels where there are several columns of them."
    )


def classify_rows(run: Run, to: Path, *, num_samples: int) -> list[Told]:
    """Write the classes of all rows of a run's data as .csv, in their order: what is known of each, and what the model says."""
    columns, dataset = label_columns(run), run.dataset
    known: dict[str, Tensor] = {one.argument: column.y for one, column in zip(columns, dataset.labels)}
    batch = source_rows(dataset, run.rows)
    if not known and dataset.y is not None and not run.model.clusters:
        rest = dataset.y_test if dataset.y_test is not None else torch.full((len(batch["x"]) - len(dataset.y),), -1)
        known = {"y": torch.cat([dataset.y, rest])}
    table, told = _answers(run, columns, batch, known, num_samples, EVALUATION_SEED)
    write_file(to, table.to_csv(index_label=number_name(table)).encode())
    return told


def classify_table(
    run: Run,
    source: Path,
    to: Path,
    *,
    num_samples: int,
    force: bool = False,
    say: Callable[[str], None] = lambda message: None,
    rows: int | None = None,
) -> list[Told]:
    """Write the classes of all rows of a table, block by block, as .csv or .parquet.

    Columns of labels that the table has are known where they have a cell. Each label is inferred from the other columns, and
    from the other labels where they are known, and never from itself. Each line says, too, whether the row is one that the
    model was trained on with its label.

    Raises:
        OptionError: The model infers no class, or the ending of a file is none that is read or written block by block.
        DataError: The table lacks a column of the run, or has a class that the run does not know.
    """
    columns = label_columns(run)
    training = {one.name: TrainingRows(run, one.codes["train"] >= 0) for one in columns if "train" in one.codes}

    def answer(block: Block, number: int) -> list[pd.DataFrame]:
        there = [one for one in columns if one.name in block.frame and not run.model.clusters]
        known = {one.argument: _codes(block.frame[one.name], one) for one in there}
        batch = batch_of(run, block)
        found, _ = _answers(run, columns, batch, known, num_samples, EVALUATION_SEED + number)
        seen = {f"{name} {SEEN}": labelled.among(batch) for name, labelled in training.items()}
        return [numbered(run, block, found.assign(**seen))]

    told = [Told(one.name) for one in columns]
    table = table_of(run, source, rows or rows_at_once(run, num_samples))
    asked: dict[str, Any] = {"asked": "classify", "says": SEEN, "num_samples": num_samples, **table.identity}
    with begun(run, asked, table.path, to, force=force, say=say) as job:
        job.answer(named_blocks(run, table), answer)
        for part in job.parts(dtype=str, keep_default_na=False):
            _count(part, told)
        job.join()
    for one in told:
        if one.seen and not training[one.name].are_told(one.seen, one.known):
            one.seen = 0
    return told


def _count(part: pd.DataFrame, told: Sequence[Told]) -> None:
    """Add the answers for some rows to what was told of each column."""
    for one in told:
        known = part[one.name].astype(object) if one.name in part else pd.Series([None] * len(part), dtype=object)
        there = known.notna() & (known.map(plain) != "")
        one.unknown += int((~there).sum())
        one.known += int(there.sum())
        if f"{one.name} {SEEN}" in part:
            one.seen += int((part[f"{one.name} {SEEN}"][there] == "True").sum())
        one.right += int((known[there].map(plain) == part[f"{one.name} {PREDICTED}"][there].map(plain)).sum())


def _answers(
    run: Run,
    columns: Sequence[Labels],
    batch: Mapping[str, Tensor],
    known: Mapping[str, Tensor],
    num_samples: int,
    seed: int,
) -> tuple[pd.DataFrame, list[Told]]:
    """What is known of the labels of some rows, and the probabilities of their classes."""
    answers: dict[str, Any] = {}
    told = []
    for one in columns:
        others = {name: codes for name, codes in known.items() if name != one.argument}
        found = classify(run.fitted, {**batch, **others}, site=one.argument, num_samples=num_samples, seed=seed)
        own = known.get(one.argument)
        if own is not None:
            answers[one.name] = names_of(one.classes, own)
        answers[f"{one.name} {PREDICTED}"] = names_of(one.classes, found.predicted)
        answers[f"{one.name} {PROBABILITY}"] = found.joint.amax(1).numpy()
        for place, name in enumerate(one.classes):
            answers[f"p({one.name}={name})"] = found.joint[:, place].numpy()
        there = torch.zeros(len(found.joint), dtype=torch.bool) if own is None else own >= 0
        right = 0 if own is None else int((found.predicted == own)[there].sum())
        told.append(Told(one.name, int((~there).sum()), int(there.sum()), right))
    return pd.DataFrame(answers), told


def _codes(cells: pd.Series, column: Labels) -> Tensor:
    """The class numbers of cells, -1 where there is none. DataError for a class that the run does not know."""
    codes, unknown = class_numbers(cells, column.classes)
    if unknown:
        row, text = next(iter(unknown.items()))
        raise DataError(
            f"{column.name} is {text!r} in row {row} of {len(cells)} (counted from 0), and the "
            f"run knows {', '.join(map(str, column.classes[:20]))}. Correct it, or leave the cell empty."
        )
    return codes
