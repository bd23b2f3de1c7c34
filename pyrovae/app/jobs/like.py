"""Another data set read as a run's own was read, as arguments of its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae._near import expanded
from pyrovae._sources import TABLES
from pyrovae.app.catalogue import CONDITION
from pyrovae.app.decide import class_names
from pyrovae.app.given import GivenCaptions
from pyrovae.app.run import Run
from pyrovae.data.captioned import captioned
from pyrovae.data.dataset import Dataset
from pyrovae.data.frames import table_columns
from pyrovae.data.ids import NO_IDS
from pyrovae.data.load import read
from pyrovae.errors import DataError, counted


def read_like(run: Run, source: str, data_root: Path | None = None) -> Dataset:
    """Read a table as the run's own was read. DataError where it lacks a column; others are left out."""
    known: Mapping[str, Any] = run.dataset.source
    label, table = known.get("label"), {}
    path = expanded(source)
    if path.suffix.lower() in TABLES and "header" in known:
        names = table_columns(path, known["header"])
        label = label if label in names else None
        own = {*(run.dataset.columns or ()), label}
        others = [name for name in names if name not in own]
        ids = known["ids"] if known["ids"] in others else next((n for n in others if n.lower().endswith("id")), None)
        drop = [name for name in others if name != ids] if run.dataset.columns else ()
        table = {"header": known["header"], "ids": ids or NO_IDS, "drop": drop, "look": False}
        if run.rows.schema is not None:
            table |= {"columns": run.rows.schema.to_json(), "coded": True}
        table |= {name: known[name] for name in ("conditions", "condition_columns") if name in known}
    dataset = read(source, data_root=data_root, label=label, **table)
    if run.dataset.captions is not None:
        same = dataset.classes == run.dataset.classes  # else captions leave the class out
        told = captioned(dataset if same else replace(dataset, y=None, y_test=None), run.dataset.captions)
        dataset = replace(dataset, c=told.c, c_test=told.c_test)
    wanted, got = run.rows.columns, dataset.columns
    if wanted is not None and got is not None:
        place = {name: number for number, name in enumerate(got)}
        missing = [name for name in wanted if name not in place]
        if missing:
            raise DataError(
                f"{source} has no column {', '.join(map(repr, missing[:5]))}{', ...' if len(missing) > 5 else ''}, and the run "
                f"was fitted to {counted(len(wanted), 'column')}: {', '.join(wanted[:8])}{', ...' if len(wanted) > 8 else ''}."
            )
        places = torch.tensor([place[name] for name in wanted])
        x = dataset.x[:, places]
    else:
        x = dataset.x
    num = run.rows.test[0].numel()
    if x.shape[1] != num:
        raise DataError(f"{source} has {counted(x.shape[1], 'column')}, and the run was fitted to {num}.")
    ratio = dataset.source.get("divided_by", 1) / run.dataset.source.get("divided_by", 1)  # pixels of 8 bits
    return replace(dataset, x=x * ratio, columns=wanted)


def batch_like(run: Run, dataset: Dataset) -> dict[str, Tensor]:
    """All rows of another data set as the arguments of the run's model."""
    rows = run.rows
    x = dataset.x if dataset.x_test is None else torch.cat([dataset.x, dataset.x_test])
    scaled = x if rows.scaler is None else rows.scaler.apply(x)
    batch = {"x": scaled.reshape(len(x), *rows.test.shape[1:])}
    if isinstance(rows.given, GivenCaptions):
        batch |= rows.given.argument(torch.cat([c for c in (dataset.c, dataset.c_test) if c is not None]))
    elif rows.given is not None:
        if dataset.c is None or dataset.x_test is not None:
            raise DataError("The model is given columns of a table: give a table that has them.")
        batch |= rows.given.argument(dataset.c)
    elif rows.argument == CONDITION:
        names, own = class_names(dataset), [str(name) for name in class_names(run.dataset)]
        if dataset.y is None or dataset.x_test is not None:
            raise DataError(
                f"The model is given the class of each row: the table needs the column {run.dataset.source['label']}."
            )
        unknown = sorted({str(name) for name in names} - set(own))
        if unknown or bool((dataset.y < 0).any()):
            which = f"the classes {', '.join(unknown)}" if unknown else "rows without a class"
            raise DataError(
                f"The model is given the class of each row, and the table has {which}; known are {', '.join(own)}."
            )
        batch[CONDITION] = torch.tensor([own.index(str(names[code])) for code in dataset.y.tolist()])
    return batch
