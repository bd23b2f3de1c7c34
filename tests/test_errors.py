"""Messages: how they count."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import pyrovae
from pyrovae.batching.splits import Split
from pyrovae.errors import DataError, OptionError, counted
from pyrovae.tables import Column, Schema

PACKAGE = Path(pyrovae.__file__).parent
FOLDERS = ("app", "data", "tables", "batching")  # whose messages are about what a user has in a file
COUNTED = (
    "rows",
    "columns",
    "cells",
    "values",
    "images",
    "labels",
    "entries",
    "files",
    "blocks",
    "epochs",
    "ensembles",
)
AT_LEAST_TWO = {  # or no numbers
    "data/cells.py: {number} columns are",
    "data/frames.py: {path.suffix} files need",
    "data/named.py: {len(y_test)} labels. Use",
    "tables/notes.py: {number} cells are",
    "tables/schema.py: {column.kind} values",
}


@pytest.mark.parametrize("said, number", [("1 row", 1), ("0 rows", 0), ("3 rows", 3)])
def test_one_is_no_plural(said: str, number: int) -> None:
    assert counted(number, "row") == said
    assert counted(number, "entry has", "entries have") == said.replace("rows", "entries have").replace(
        "row", "entry has"
    )


def test_messages_about_one_row_and_one_cell() -> None:
    with pytest.raises((DataError, OptionError), match="^1 row leaves no row for"):
        _ = Split(1, test_fraction=0.2, validation_fraction=0.1, seed=0).test
    schema = Schema((Column("x", "real", high=5.0),))
    with pytest.raises(DataError, match=r"has 1 value above 5,"):
        schema.encode(pd.DataFrame({"x": [1.0, 7.0]}))


def bare_counts(source: str) -> Iterator[str]:
    """Numbers in front of a plural, but for constants and the whole of a part, as in "1 of {n} rows"."""
    for text in ast.walk(ast.parse(source)):
        parts = text.values if isinstance(text, ast.JoinedStr) else []
        for before, number, after in zip([ast.Constant(""), *parts], parts, parts[1:]):
            if not (isinstance(number, ast.FormattedValue) and isinstance(after, ast.Constant)):
                continue
            words, led = str(after.value).split(), str(getattr(before, "value", "")).split()
            if not (str(after.value).startswith(" ") and any(word.strip(",.:;)") in COUNTED for word in words[:2])):
                continue
            if words[0] in ("of", "has", "takes", "needs", "different", "no"):
                continue
            shown = ast.unparse(number.value)
            if led[-1:] not in (["of"], ["all"], ["the"]) and not shown.rpartition(".")[2].isupper():
                yield f"{{{shown}}} {' '.join(words[:2])}"


def test_numbers_in_messages_are_counted() -> None:
    assert list(bare_counts("f'{n} rows of {m} rows, {n} of {m} rows, {MOST} rows, {n}: rows'")) == ["{n} rows of"]
    found = {
        f"{path.relative_to(PACKAGE)}: {text}"
        for folder in FOLDERS
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for text in bare_counts(path.read_text(encoding="utf-8"))
    }
    assert not found - AT_LEAST_TWO, "write counted(number, 'row')"
