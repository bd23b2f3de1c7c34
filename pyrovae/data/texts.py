"""Tables whose rows are texts, such as reviews, as a `Dataset` of which words each row has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyrovae._lazily import Lazily
from pyrovae.data.dataset import Dataset, make_dataset
from pyrovae.data.frames import read_frame, read_text
from pyrovae.data.ids import NO_IDS, look_for_ids, row_names
from pyrovae.data.tables import column_name, several
from pyrovae.errors import DataError, counted

# pandas and scikit-learn take seconds to import
if TYPE_CHECKING:
    import pandas as pd
else:
    pd = Lazily("pandas")
text = Lazily("sklearn.feature_extraction.text")

MOST_WORDS = 1_000  # those that occur in the most rows
WORDS = 3  # that a cell of a column of texts has on average, or more


def load_texts(
    path: Path,
    label: str | None = None,
    *,
    ids: str | None = None,
    header: bool | None = None,
    drop: str | Sequence[str] = (),
) -> Dataset | None:
    """The rows of a table whose columns are all texts: which words each row has; None for another table.

    A column is one of texts if its cells have three words or more on average, and most of them differ. Words are counted once a
    row, in lower case; of those that at least two rows have, the 1,000 most frequent are kept.

    Args:
        path: The table.
        label: The column with the labels, which are text.
        ids: The column that names the rows; "none" for none, None finds out.
        header: Whether the first line names the columns; None finds out.
        drop: Columns to leave out; a text may have several, with commas between them.

    Returns:
        A `Dataset` of kind "binary" whose `columns` are the words.

    Raises:
        DataError: No word occurs in two rows, or the file is no table.

    Example:
        >>> import pathlib
        >>> from pyrovae.data.texts import load_texts
        >>> lines = ["id,note", "1,a red car", "2,the red house", "3,this old house"]
        >>> _ = pathlib.Path("notes.csv").write_text("\\n".join(lines))
        >>> notes = load_texts(pathlib.Path("notes.csv"), ids="id")
        >>> notes.columns, notes.x.tolist()
        (('house', 'red'), [[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    """
    frame, form = read_frame(path, header)
    every = list(frame)
    hidden = [None if name in (None, NO_IDS) else column_name(path, every, name) for name in (ids, label)]
    out = {column_name(path, every, name) for name in several(drop, every)}
    out |= {name for name in every if frame[name].isna().all()} - set(hidden)
    if ids is None:
        hidden[0], more = look_for_ids(frame, form, [c for c in every if c not in out and c not in hidden], None, None)
        out |= set(more)
    named, y = hidden
    kept = [name for name in every if name not in hidden and name not in out]
    if not kept or any(pd.api.types.is_numeric_dtype(frame[name]) for name in kept):
        return None
    cells = read_text(path, form, kept, frame)
    if not all(_are_texts(cells[name]) for name in kept):
        return None
    try:
        counter = text.CountVectorizer(binary=True, min_df=2, max_features=MOST_WORDS, dtype=np.uint8)
        x = counter.fit_transform([" ".join(row) for row in cells.itertuples(index=False)]).toarray()
    except ValueError as error:
        raise DataError(f"{path}: no word occurs in two rows, so that nothing can be learned. Add rows.") from error
    others = read_text(path, form, [name for name in hidden if name is not None], frame)
    dataset = make_dataset(
        path,
        x,
        y=None if y is None else others[y].to_numpy(),
        label=y,
        columns=tuple(counter.get_feature_names_out()),
        ids=None if named is None else row_names(path, others[named]),
        kind="binary",
        one_class=True,
    )
    dataset.source.update({"header": form.header, "ids": named, "drop": list(out), "texts": kept})
    columns = f"column{'s' if len(kept) > 1 else ''} {', '.join(kept)}"
    notes = [f"Rows are texts: what is learned from is which of {counted(x.shape[1], 'word')} each has in {columns}."]
    if named is not None and ids is None:
        notes.append(f"Column {named} names the rows, and is left out.")
    return replace(dataset, notes=(*dataset.notes, *notes))


def _are_texts(cells: pd.Series) -> bool:
    known = cells[cells != ""]
    return len(known) > 0 and known.str.split().str.len().mean() >= WORDS and known.nunique() > len(known) / 2
