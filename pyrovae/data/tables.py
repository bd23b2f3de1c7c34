"""Readers of .npz, .npy and table files, and what the columns of a table are: values, labels, or names of the rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyrovae._lazily import Lazily
from pyrovae._near import near_names
from pyrovae.data.arrays import read_arrays
from pyrovae.data.cells import Form
from pyrovae.data.dataset import Array, Dataset, label_column, make_dataset
from pyrovae.data.frames import first_text, of_objects, read_frame, read_text
from pyrovae.data.ids import ENOUGH_ROWS, NO_IDS, counts_rows, look_for_ids, row_names
from pyrovae.errors import DataError, OptionError, counted
from pyrovae.tables.infer import infer
from pyrovae.tables.schema import Schema

# pandas takes seconds to import
if TYPE_CHECKING:
    import pandas as pd
else:
    pd = Lazily("pandas")

# Names of the arrays in a .npz file, in order of preference.
X_NAMES, X_TEST_NAMES = ("x", "x_train", "data", "images"), ("x_test",)
Y_NAMES, Y_TEST_NAMES = ("y", "y_train", "labels"), ("y_test", "labels_test")

MARKED = re.compile(r"[+-]?\d{1,3}([.,' ]\d{3})*[.,]?\d*|[+-]?\d+[.,]\d+")  # a number with whatever marks


def load_arrays(path: Path, label: str | None, columns: Sequence[Mapping[str, Any]] | bool | None = True) -> Dataset:
    """The arrays of a .npz or .npy file; `label` names the array of labels.

    Args:
        columns: what the columns were at the fit; True finds out.
    """
    wanted = {*X_NAMES, *X_TEST_NAMES, *Y_NAMES, *Y_TEST_NAMES, label}
    names, arrays = read_arrays(path, wanted)
    if {"format", "data", "shape"} <= set(names):  # as scipy.sparse.save_npz writes every kind of them
        raise DataError(
            f"{path} is a sparse matrix of SciPy, and rows are read from dense arrays: write "
            "numpy.save(name, scipy.sparse.load_npz(file).toarray())."
        )

    def first(candidates: tuple[str, ...]) -> Array | None:
        return next((arrays[name] for name in candidates if name in arrays), None)

    x = first(X_NAMES) if len(names) != 1 else arrays[names[0]]
    if x is None:
        raise DataError(
            f"{path} needs an array named {' or '.join(X_NAMES)}; found {names}. Rename the array of the rows."
        )
    if label is not None and (label not in arrays or label in (*X_NAMES, *X_TEST_NAMES) or len(names) == 1):
        raise OptionError(f"{path.name} has no array of labels {label!r}{near_names(label, names)}; found {names}.")
    y = first(Y_NAMES) if label is None else arrays[label]
    dataset = make_dataset(path, x, first(X_TEST_NAMES), y, first(Y_TEST_NAMES), label=label)
    pixels = x.dtype == np.uint8 and dataset.kind == "unit"
    schema = None if pixels else _schema_of_array(x, first(X_TEST_NAMES), columns)
    if schema is None:
        return dataset
    return _with(dataset, {"columns": schema.to_json()}, (), schema, schema.encode(_frame_of(x)))


MOST_COLUMNS = 64  # of an array that is looked at as a table
MOST_ODD = 5  # rows that are no rows, such as a second line of a header


def _schema_of_array(
    x: Array, x_test: Array | None, recorded: Sequence[Mapping[str, Any]] | bool | None
) -> Schema | None:
    """What the columns of an array of numbers are, unless it is one of images, or has a test set of its own.

    Args:
        recorded: what they were at the fit; True finds out, False does not look.
    """
    if (
        x.ndim != 2
        or x.dtype.kind not in "fiu"
        or x_test is not None
        or not 0 < x.shape[1] <= MOST_COLUMNS
        or not len(x)
    ):
        return None
    if not isinstance(recorded, bool) and recorded is not None:
        return Schema.from_json(recorded)
    return _inferred(_frame_of(x)) if recorded else None


def _frame_of(x: Array) -> pd.DataFrame:
    return pd.DataFrame(x, columns=[f"column {i}" for i in range(x.shape[1])])


def load_table(
    path: Path,
    label: str | None,
    *,
    ids: str | None = None,
    header: bool | None = None,
    drop: str | Sequence[str] = (),
    text_labels: bool = False,
    look: bool = True,
    columns: str | Path | Sequence[Mapping[str, Any]] | None = None,
    coded: bool = False,
    conditions: str | Sequence[str] = (),
    condition_columns: Sequence[Mapping[str, Any]] | None = None,
    index: bool = True,
) -> Dataset:
    """The rows of a table, without the columns of labels and ids, and those to drop.

    Args:
        look: whether to look for what nobody named: a header of numbers, ids, and columns that hold nothing.
        columns: what the columns are: the path of a YAML file, or what `Schema.to_json` gave; by default it is found out.
        coded: whether the rows are those that the schema encodes, even if all columns are numbers.
        conditions: columns that a model is given with every row.
        condition_columns: what they are, as `columns`.
        index: whether an index with a name is a column of a Parquet file, as of no run of version 0.3.0 and before.
    """
    frame, form = read_frame(path, header, numbers_name=look, index=index)
    roles = _roles_of(path, frame, form, label=label, ids=ids, drop=drop, conditions=conditions, look=look)
    labelled, named, given, kept = roles.labels, roles.ids, roles.given, roles.values
    y = labelled[0] if len(labelled) == 1 else None
    notes = [*form.notes, *(f"Column {name} is left out: {why}." for name, why in roles.out.items() if why)]
    texts = read_text(path, form, [name for name in (named, y if text_labels else None) if name is not None], frame)
    names = None
    if named is not None:
        names = row_names(path, texts[named])
        if ids is None:
            notes.append(
                f"Column {named} names the rows, and is left out; --id none makes it a column like the others."
            )
    labels = None if y is None else (texts[y] if text_labels else frame[y]).to_numpy()
    # one column by its name, which other tables have it by, too, where "last" may be another one
    of_rows: dict[str, Any] = {"y": labels, "label": label if y is None else y, "ids": names, "one_class": text_labels}
    how: dict[str, Any] = {"header": form.header, "ids": named, "drop": list(roles.out)}
    how |= {"index": True} if index and path.suffix.lower() == ".parquet" else {}
    rows, schema = (
        of_objects(frame[kept], truths_as_numbers),
        _schema_of(path, frame[kept], columns, look, set(frame.columns) - set(kept)),
    )
    beside: dict[str, Any] = {}
    if len(labelled) > 1:
        beside["labels"] = tuple(label_column(path, name, frame[name].to_numpy()) for name in labelled)
    if given:
        known = _conditions_of(path, frame[given], columns if condition_columns is None else condition_columns)
        how |= {"conditions": given, "condition_columns": known.to_json()}
        beside |= {"conditions": known, "c": known.encode(frame[given])}
    text = [name for name, dtype in zip(kept, rows.dtypes) if not pd.api.types.is_numeric_dtype(dtype)]
    if schema is not None and look and columns is None:
        notes += [*_codes(form.zeros, kept), *_odd_rows(frame[kept], schema)]
        texts_of = set(text)
        why = {one.name: one.why for one in schema.columns if one.name in texts_of and one.kind == "none"}
        if len(why) == len(text):  # texts of which nothing is modelled do not make a table of counts another one
            how["drop"] += text
            notes += [f"Column {name} is left out: {reason}." for name, reason in why.items()]
            schema = Schema(tuple(column for column in schema.columns if column.name not in why))
            kept, rows, text = [name for name in kept if name not in why], rows.drop(columns=text), []
    if schema is not None:
        how["columns"] = schema.to_json()
    if schema is not None and (text or coded or isinstance(columns, str | Path)):
        encoded, modelled = schema.encode(frame[kept]), schema.names
        dataset = make_dataset(path, encoded.numpy(), columns=modelled, kind="table", **of_rows)
        return replace(_with(dataset, how, notes, schema, encoded), **beside)
    if text:
        examples = [f"{name} ({first_text(rows[name])!r})" for name in text[:8]] + ["..."] * (len(text) > 8)
        raise DataError(
            f"{path}: {len(text)} of {len(kept)} columns are not numbers: {', '.join(examples)}. {_cure(rows[text], label)}"
        )
    x = rows.to_numpy(dtype=np.float64)
    _refuse_long_integers(path, rows, x)
    notes += _remarks(rows, x) if look else []
    dataset = make_dataset(path, x, columns=tuple(kept) if form.named else None, **of_rows)
    return replace(_with(dataset, how, notes, schema, None if schema is None else schema.encode(frame[kept])), **beside)


@dataclass(frozen=True)
class Roles:
    """What each column of a table is for.

    Args:
        labels: columns of labels.
        ids: the column that names the rows.
        given: conditions, which a model is given with every row.
        out: columns that are left out, with the reason, "" where the user gave it or none is needed.
        values: all others, which are modelled.
    """

    labels: list[str]
    ids: str | None
    given: list[str]
    out: dict[str, str]
    values: list[str]


def _roles_of(
    path: Path,
    frame: pd.DataFrame,
    form: Form,
    *,
    label: str | None,
    ids: str | None,
    drop: str | Sequence[str],
    conditions: str | Sequence[str],
    look: bool,
) -> Roles:
    """The roles of columns, as `load_table` is told them, and, with `look`, those that nobody named.

    Raises:
        OptionError: a column has two roles, or there is no such column.
        DataError: no column is left to be modelled.
    """
    every = frame.columns  # in which each name is found at once, unlike in a list
    out = {column_name(path, every, name): "" for name in several(drop, every)}
    labels = [] if label is None else [column_name(path, every, name) for name in several(label, every)]
    if len(set(labels)) < len(labels):
        twice = next(name for name, number in Counter(labels).items() if number > 1)
        raise OptionError(f"{path.name}: {twice} is named twice among the labels. Name each column once.")
    named: str | None = None
    if ids not in (None, NO_IDS):
        called = [name for name in every if name.lower() == ids.lower()]
        named = called[0] if called else column_name(path, every, ids)
    if both := [name for name in labels if name in (*out, named)]:
        raise OptionError(f"{path.name}: {both[0]} is the label, and cannot be the id or left out as well.")
    if look:
        others = list(every.difference([*out, *labels], sort=False))
        named, more = look_for_ids(frame, form, others, named, ids)
        out |= more
        empty = every[frame.isna().all().to_numpy()].difference([*out, *labels, named], sort=False)
        out |= dict.fromkeys(empty, "it is empty")
    elif ids is None and "column 0" in every and form.named and counts_rows(frame["column 0"]):
        out["column 0"] = ""
    given = list(dict.fromkeys(column_name(path, every, name) for name in several(conditions, every)))
    answers = [name for name in (*labels, named) if name is not None]
    if taken := [name for name in given if name in answers]:
        what = "id" if taken[0] == named else "label"
        raise OptionError(f"{path.name}: {taken[0]} is the {what}, and cannot be a condition as well.")
    for name in given:
        out.pop(name, None)
    values = list(every.difference([*out, *answers, *given], sort=False))
    if not values:
        raise DataError(f"{path} has no column besides the label and those left out. A row needs at least one.")
    return Roles(labels, named, given, out, values)


def _conditions_of(path: Path, cells: pd.DataFrame, given: str | Path | Sequence[Mapping[str, Any]] | None) -> Schema:
    """What the columns of conditions are: as was said, or found out. DataError for one that cannot be given to a network."""
    found = infer(cells) if given is None else _schema_of(path, cells, given, False, ())
    assert found is not None
    found = Schema(tuple(column for column in found.columns if column.name in cells.columns))
    if out := [column for column in found.columns if not (column.is_number or column.is_class)]:
        raise DataError(
            f"{path}: the condition {out[0].name!r} has nothing to give to a model ({out[0]}). Leave it out."
        )
    return found


def _with(
    dataset: Dataset, how: Mapping[str, Any], notes: Sequence[str], schema: Schema | None, encoded: Tensor | None
) -> Dataset:
    source = {**dataset.source, **how}
    return replace(dataset, source=source, notes=(*notes, *dataset.notes), schema=schema, encoded=encoded)


def _schema_of(
    path: Path,
    cells: pd.DataFrame,
    given: str | Path | Sequence[Mapping[str, Any]] | None,
    look: bool,
    others: Collection[str],
) -> Schema | None:
    """What the columns are: as was said, or found out; None for an earlier version's run, and where all are constant.

    Args:
        others: columns that are no values, such as the label, of which the schema may speak, too.
    """
    if given is None:
        return _inferred(cells) if look else None
    schema = Schema.read(given) if isinstance(given, str | Path) else Schema.from_json(given)
    schema = Schema(tuple(column for column in schema.columns if column.name not in others))
    known = {column.name for column in schema.columns}
    if new := [name for name in cells.columns if name not in known]:
        raise DataError(
            f"{path}: nothing is said of column {new[0]!r}{near_names(new[0], sorted(known))}. Add it to the columns' file, "
            "with kind: none if it is to be left out."
        )
    return schema


def _inferred(cells: pd.DataFrame) -> Schema | None:
    """The schema of some cells; None if they are only constants, names, or infinite, about which there are other messages."""
    numbers = cells.select_dtypes("number")
    if np.isinf(numbers.to_numpy(dtype=np.float64, na_value=np.nan)).any():
        return None
    try:
        return infer(cells)
    except DataError:
        return None


def several(names: str | Sequence[str], columns: Collection[str]) -> Sequence[str]:
    """The names in a list, or in a text with commas between them, unless that is the name of a column."""
    if not isinstance(names, str):
        return names
    return [names] if names in columns else [name.strip() for name in names.split(",") if name.strip()]


def truths_as_numbers(column: pd.Series) -> pd.Series:
    """True and False with gaps, which pandas reads as objects, as numbers; other columns of objects as they are."""
    if column.dropna().map(lambda cell: isinstance(cell, bool)).all():
        return column.astype(np.float64)
    return column


def _codes(zeros: Mapping[str, str], modelled: Collection[str]) -> list[str]:
    """What to say of columns of numbers in which some had a 0 in front."""
    found = [f"{name} (such as {cell})" for name, cell in zeros.items() if name in modelled]
    if not found:
        return []
    which = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    return [f"Cells begin with 0, as codes do, and are read as numbers: {which}. --drop leaves such columns out."]


def _odd_rows(cells: pd.DataFrame, schema: Schema) -> list[str]:
    """What to say of a few rows whose cells are no values in most columns of numbers, as of a header of several lines."""
    strange: Counter[int] = Counter()
    columns = [column for column in schema.modelled if column.why.endswith("as missing") and column.name in cells]
    for column in columns[:MOST_COLUMNS]:
        lost = np.isnan(column.codes(cells[column.name])[0]) & ~column.gaps(cells[column.name])
        strange.update(np.flatnonzero(lost).tolist())
    odd = sorted(row for row, number in strange.items() if number > max(1, len(columns) / 2))
    if not odd or len(odd) > MOST_ODD:
        return []
    which = f"Row {odd[0]} (counted from 0) has" if len(odd) == 1 else f"Rows {', '.join(map(str, odd))} (from 0) have"
    first = str(cells[columns[0].name].iloc[odd[0]])[:40]
    in_columns = counted(len(columns), "column")
    return [
        f"{which} no values in {in_columns}, such as {first!r} in {columns[0].name}: another line of a header, or a "
        "total? Such rows are modelled as rows with gaps: remove them."
    ]


def _remarks(rows: pd.DataFrame, x: Array) -> list[str]:
    """What a look at the columns that are modelled shows, of which `x` has the numbers."""
    found = []
    first = rows.iloc[:, 0]
    if (
        len(rows) >= ENOUGH_ROWS
        and pd.api.types.is_integer_dtype(first)
        and first.is_unique
        and first.min() > len(rows)
    ):
        name = rows.columns[0]
        found.append(f"{name} is another whole number in each row: if these are the rows' names, say --id {name}.")
    constant = np.flatnonzero((x == x[0]).all(0)) if len(x) > 1 else ()
    if len(constant):
        which = ", ".join(rows.columns[constant[:5]]) + (", ..." if len(constant) > 5 else "")
        found.append(f"Every row has the same value of {which}: nothing can be learned from it; --drop leaves it out.")
    return found


def _refuse_long_integers(path: Path, rows: pd.DataFrame, x: Array) -> None:
    """DataError for whole numbers that float64, as which the cells are handed on in `x`, cannot hold."""
    for name in rows.columns[(np.abs(x) >= 2**53).any(0)]:
        if pd.api.types.is_integer_dtype(rows[name]) and (rows[name].abs() > 2**53).any():
            raise DataError(
                f"{path}: {name} holds whole numbers beyond 2^53, which would be rounded. If they are the rows' names, say "
                f"--id {name} (ids={name!r}); otherwise subtract an offset, or leave it out by --drop {name}."
            )


def _cure(text: pd.DataFrame, label: str | None) -> str:
    """What helps against columns of text."""
    cells = [str(cell) for name in text for cell in text[name].dropna().head(1000)]
    wrong = [cell for cell in cells if MARKED.fullmatch(cell.strip())]
    if wrong:
        return (
            f"{wrong[0]!r} is not read as a number: write all numbers with the same decimal mark, and nothing between "
            "thousands."
        )
    others = f"leave {'others' if label is None else 'them'} out by --drop, or encode them as numbers."
    return (
        f"Name the class column with --label (label={text.columns[-1]!r}); {others}"
        if label is None
        else others.capitalize()
    )


def column_name(path: Path, columns: Sequence[str] | pd.Index, label: str) -> str:
    """The name of the column that `label` means: a name, a number from 0, or "last"."""
    if label in columns:
        return label
    if label == "last":
        return str(columns[-1])
    if label.isdecimal() and int(label) < len(columns):
        return str(columns[int(label)])
    raise OptionError(
        f"{path.name} has no column {label!r}{near_names(label, columns)}; it has {len(columns)}: "
        f'{", ".join(columns[:20])}{", ..." if len(columns) > 20 else ""}. Give a name, a number from 0, or "last".'
    )
