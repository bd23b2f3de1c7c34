"""Questions about each row of a table of any size: its code, and how probable it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pyrovae.app.jobs.batch import batch_of, id_column, table_of
from pyrovae.app.jobs.blocks import begun, rows_at_once
from pyrovae.app.jobs.frames import FILE, Block, Table
from pyrovae.app.jobs.images import Folder
from pyrovae.app.jobs.trained import TRAINED_ON, TrainingRows
from pyrovae.app.rows import source_rows
from pyrovae.app.run import Run
from pyrovae.app.scores import EVALUATION_SEED, estimate
from pyrovae.criticism.importance import tell_undefined
from pyrovae.nets import Pose
from pyrovae.pair.batch import Batch
from pyrovae.predict.encode import encode


def codes_of(run: Run, rows: Batch | None = None) -> pd.DataFrame:
    """The codes E[z | x] of rows, in columns z0, z1 and so on, and what the mean pose does, where the model has one.

    These columns are angle, in radians, right and down, in pixels.

    Args:
        rows: by default all rows of the data, with those of a test set at the end.
    """
    rows = source_rows(run.dataset, run.rows) if rows is None else rows
    found = encode(run.fitted, rows, site=run.model.code).flatten(1).cpu().numpy()
    table = pd.DataFrame(found, columns=[f"z{i}" for i in range(found.shape[1])])
    if run.model.has_pose:
        pair: Any = run.fitted.pair
        pose = next(part for part in pair.modules() if isinstance(part, Pose))
        moves = pose.moves(encode(run.fitted, rows, site="pose").cpu())
        table = table.assign(**{name: getattr(moves, name).numpy() for name in ("angle", "right", "down")})
    return table


def encode_table(
    run: Run, source: Path, to: Path, *, force: bool = False, say: Callable[[str], None], rows: int | None = None
) -> int:
    """Write the codes E[z | x] of all rows of a table, or of the images in a folder, as .csv or .parquet; the number of rows.

    Args:
        force: start anew where another job was stopped.
        say: called with messages.
        rows: how many rows are read at once.

    Raises:
        OptionError: the ending of a file is unknown, or a job of another kind was interrupted there.
        DataError: the table cannot be read, or lacks columns of the run.
    """

    def codes(block: Block, number: int) -> list[pd.DataFrame]:
        return [numbered(run, block, codes_of(run, batch_of(run, block)))]

    table = table_of(run, source, rows or rows_at_once(run))
    with begun(run, {"asked": "encode", **table.identity}, table.path, to, force=force, say=say) as job:
        job.answer(named_blocks(run, table), codes)
        job.join()
        return job.rows


def evaluate_table(
    run: Run,
    source: Path,
    to: Path,
    *,
    num_samples: int,
    proposal: str,
    force: bool = False,
    say: Callable[[str], None],
    rows: int | None = None,
) -> dict[str, float]:
    """Write log p(x), its error and diagnostics of all rows of a table, or images; their means and standard errors.

    Each line says, too, whether the row is a training row of the run, and "trained_on" of what is returned how many are; it is
    0 where no more are than would be by chance.

    A row whose density is undefined has none, and a warning tells of it. Each block has random numbers of its own.

    Args:
        num_samples: draws per row.
        proposal: of these draws.
        force, say, rows: as for `encode_table`.
    """

    def scores(block: Block, number: int) -> list[pd.DataFrame]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rows with few draws: k-hat stands in their lines
            batch = batch_of(run, block)
            found = estimate(run, batch, num_samples, proposal, seed=EVALUATION_SEED + number)
        columns = {
            "log_likelihood": (found.log_likelihood - run.rows.log_abs_det).cpu().numpy(),
            "standard_error": found.standard_error.cpu().numpy(),
            "elbo": (found.elbo - run.rows.log_abs_det).cpu().numpy(),
            "ess": found.ess.cpu().numpy(),
            "k_hat": found.k_hat.cpu().numpy(),
            TRAINED_ON: training.among(batch),
        }
        return [numbered(run, block, pd.DataFrame(columns))]

    table = table_of(run, source, rows or rows_at_once(run, num_samples))
    how: dict[str, Any] = {"num_samples": num_samples, "proposal": proposal}
    asked: dict[str, Any] = {"asked": "evaluate", "says": TRAINED_ON, **how, **table.identity}
    training, trained_on = TrainingRows(run), 0
    sums = {"log_likelihood": torch.zeros(3, dtype=torch.float64), "elbo": torch.zeros(3, dtype=torch.float64)}
    undefined: list[Tensor] = []
    with begun(run, asked, table.path, to, force=force, say=say) as job:
        job.answer(named_blocks(run, table), scores)
        for part in job.parts():
            trained_on += int(part[TRAINED_ON].sum())
            for name, total in sums.items():
                values = torch.from_numpy(part[name].to_numpy(dtype="float64", copy=True))
                if name == "log_likelihood":
                    undefined.append(values.isnan())
                values = values[~values.isnan()]
                total += torch.stack([torch.tensor(float(len(values))), values.sum(), values.square().sum()])
        job.join()
        told = {
            "rows": float(job.rows),
            TRAINED_ON: float(trained_on if training.are_told(trained_on, job.rows) else 0),
        }
    tell_undefined(torch.where(torch.cat(undefined), torch.nan, 0.0))
    for name, (count, total, squares) in ((name, values.tolist()) for name, values in sums.items()):
        mean = total / count if count else float("nan")
        variance = max(0.0, squares / max(1.0, count) - mean**2) * count / max(1.0, count - 1)
        told |= {name: mean, f"{name}_se": (variance / max(1.0, count)) ** 0.5}
    return told


def named_blocks(run: Run, table: Table | Folder) -> Generator[Block, None, None]:
    """The rows, block by block, with the names that a column of a text has for them as they are written there: 007 is not 7."""
    name = id_column(run, table.form.names) if isinstance(table, Table) and table.form.named else None
    return table.blocks(() if name is None else [name])


def numbered(run: Run, block: Block, found: pd.DataFrame) -> pd.DataFrame:
    """The answers, with the number of each row in front, and behind it its name, or the path of an image."""
    found.insert(0, number_name(found), range(block.start, block.start + len(block)))
    if block.pixels is not None:
        found.insert(1, FILE, block.frame[FILE].to_numpy())
    elif (name := id_column(run, block.frame)) is not None and "id" not in found:
        cells = (block.frame if block.texts is None else block.texts)[name]
        found.insert(1, "id", ["" if pd.isna(cell) else str(cell) for cell in cells])
    return found


def number_name(found: Iterable[str]) -> str:
    """What the column with the numbers of rows is called beside these."""
    return "row number" if "row" in found else "row"
