"""The files that the commands write with --out."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae._files import refuse_leaving, write_file
from pyrovae._near import near_paths
from pyrovae.app.jobs.batch import label_name
from pyrovae.app.jobs.blocks import DRAW
from pyrovae.app.rows import Array, Rows, class_values
from pyrovae.app.run import Run
from pyrovae.criticism.importance import Importance
from pyrovae.errors import OptionError


def check_file(path: Path, force: bool, endings: tuple[str, ...]) -> None:
    """OptionError unless the file may be written."""
    if path.suffix not in endings:
        raise OptionError(f"--out {path}: the ending must be one of {', '.join(endings)}.")
    if os.path.lexists(path) and not force:
        raise OptionError(f"{path} exists: choose another name, or --force.")
    if not path.parent.is_dir():
        raise OptionError(f"--out {path}: there is no folder {path.parent}{near_paths(path.parent, (), folders=True)}.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OptionError(
            f"{path} cannot be written, since its folder is read-only: give the name of a file elsewhere by --out."
        )
    refuse_leaving(path)


def image_shape(rows: Rows, to: Path) -> tuple[int, ...]:
    if rows.image_shape is None:
        raise OptionError(f"--out {to}: these rows are no images; write .csv or .npy.")
    return rows.image_shape


def write_rows(
    to: Path,
    values: Tensor,
    rows: Rows,
    index: Tensor | None = None,
    labels: Mapping[str, Array] | None = None,
    conditions: Tensor | None = None,
) -> None:
    """Write rows in the units of the source, `(N, D)`, as .npy or .csv, those of a table as it has them.

    In a .csv the columns, or the caption, that the model was given, `(N, C)`, come first, and `labels` last, by their names.
    """
    array = values.cpu().numpy()
    if to.suffix == ".npy":
        _write_array(to, array)
    else:
        if rows.schema is not None:
            decoded = rows.schema.written(rows.schema.decode(values))
            whole = [one.name for one in rows.schema.modelled if one.kind == "count" or one.is_class]
            table = _whole(decoded, whole)
        else:
            table = pd.DataFrame(array, columns=rows.columns or [f"x{i}" for i in range(array.shape[1])])
        if conditions is not None and rows.given is not None:
            table = pd.concat([rows.given.table(conditions), table], axis=1)
        for name, values_of in (labels or {}).items():
            table.insert(len(table.columns), name, values_of, allow_duplicates=True)
        if index is None:
            write_file(to, table.to_csv(index=False).encode())
        else:
            _write_table(to, table.set_index(index.numpy()))


def _whole(table: pd.DataFrame, counts: Sequence[str]) -> pd.DataFrame:
    """A table whose counts are written as such: 48, and not 48.0, as the dtype of a column with gaps would have it."""
    floats = [name for name in counts if pd.api.types.is_float_dtype(table[name])]
    whole = [name for name in floats if not (table[name] % 1).any() and not (table[name].abs() > 2**53).any()]
    return table.astype(dict.fromkeys(whole, "Int64"))


def write_codes(to: Path, codes: pd.DataFrame, run: Run) -> None:
    """Write the codes of all rows: of .npy z alone, `(N, L)`; of .csv all columns, with names of rows and labels.

    Of several draws for each row .npy has `(N, draws, L)`, and .csv a line for each.
    """
    rows = int(codes.index[-1]) + 1
    if to.suffix == ".npy":
        z = codes.filter(regex=r"^z\d+$").to_numpy()
        _write_array(to, z.reshape(rows, -1, z.shape[1]) if DRAW in codes else z)
        return
    table, dataset = codes, run.dataset
    if dataset.y is not None:
        y = dataset.y
        if dataset.x_test is not None:
            rest = torch.full((rows - len(y),), -1) if dataset.y_test is None else dataset.y_test
            y = torch.cat([y, rest])
        table.insert(len(table.columns), label_name(run), class_values(dataset, y)[table.index], allow_duplicates=True)
    if dataset.ids is not None and len(dataset.ids) == rows:  # test rows of a file of their own have no names
        table.insert(0, "id", [dataset.ids[row] for row in table.index])
    _write_table(to, table)


def write_scores(to: Path, found: Importance, run: Run) -> None:
    """Write log p(x) and its diagnostics for each test row as .csv, with the names of rows, if there are any."""
    rows, ids = run.rows, run.dataset.ids
    index = rows.test_index[: len(found.elbo)].tolist()
    table = pd.DataFrame(
        {
            "log_likelihood": (found.log_likelihood - rows.log_abs_det).numpy(),
            "standard_error": found.standard_error.numpy(),
            "elbo": (found.elbo - rows.log_abs_det).numpy(),
            "ess": found.ess.numpy(),
            "k_hat": found.k_hat.numpy(),
        }
    )
    if ids is not None and max(index, default=0) < len(ids):
        table.insert(0, "id", [ids[row] for row in index])
    _write_table(to, table.set_index(pd.Index(index)))


def _write_array(to: Path, array: Array) -> None:
    with io.BytesIO() as content:
        np.save(content, array)
        write_file(to, content.getvalue())


def _write_table(to: Path, table: pd.DataFrame) -> None:
    write_file(to, table.to_csv(index_label="row").encode())
