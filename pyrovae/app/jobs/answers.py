"""Questions about each row of a table of any size: its code, and how probable it is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.app.jobs.batch import batch_of, id_column, table_of
from pyrovae.app.jobs.blocks import DRAW, begun, check_number, rows_at_once
from pyrovae.app.jobs.frames import FILE, Block, Table
from pyrovae.app.jobs.images import Folder
from pyrovae.app.jobs.trained import TRAINED_ON, TrainingRows
from pyrovae.app.rows import source_rows
from pyrovae.app.run import Run
from pyrovae.app.scores import EVALUATION_SEED, estimate
from pyrovae.criticism.importance import tell_undefined
from pyrovae.criticism.posterior import posterior
from pyrovae.errors import OptionError
from pyrovae.nets import Pose
from pyrovae.pair.batch import Batch, num_rows
from pyrovae.predict.encode import encode

MOST_NUMBERS = 50_000_000  # of codes that are written at once


def codes_of(run: Run, rows: Batch | None = None, *, draws: int = 0, **how: Any) -> pd.DataFrame:
    """The codes of rows, in columns z0, z1 and so on, and what their pose does, where the model has one.

    These columns are angle, in radians, right and down, in pixels. The index has the numbers of rows.

    Args:
        rows: by default all rows of the data, with those of a test set at the end.
        draws: how many draws of p(z | x) each row has, one line each, numbered from 1 on in a column `draw`; 0 for the one
            line of E[z | x], and what the mean pose does.
        how: num_particles, proposal and seed of the draws, see `posterior`.

    Raises:
        OptionError: `draws` cannot be, or all rows of the data have more of them than fit into memory.
    """
    check_number(draws)
    if rows is None:
        rows = source_rows(run.dataset, run.rows)
        if (numbers := draws * num_rows(rows) * _width(run)) > MOST_NUMBERS:
            raise OptionError(
                f"{draws} draws of each row are {numbers:,} numbers, and {MOST_NUMBERS:,} are written at once: give a lower "
                "--draws, or the rows as a TABLE, which is read and answered block by block."
            )
    sites = [run.model.code, *(["pose"] if run.model.has_pose else [])]
    if draws:
        found = _drawn(run, rows, sites, draws, **how)
    else:
        found = {name: values[None] for name, values in encode(run.fitted, rows, site=sites).items()}
    lines = {name: values.transpose(0, 1).flatten(0, 1).cpu() for name, values in found.items()}  # (N draws, *event)
    z = lines[run.model.code].flatten(1).numpy()
    index = np.repeat(np.arange(len(z) // max(1, draws)), max(1, draws))
    table = pd.DataFrame(z, columns=[f"z{i}" for i in range(z.shape[1])], index=index)
    if draws:
        table.insert(0, DRAW, np.tile(np.arange(1, draws + 1), len(z) // draws))
    if run.model.has_pose:
        pair: Any = run.fitted.pair
        pose = next(part for part in pair.modules() if isinstance(part, Pose))
        moves = pose.moves(lines["pose"])
        table = table.assign(**{name: getattr(moves, name).numpy() for name in ("angle", "right", "down")})
    return table


def _width(run: Run) -> int:
    """How many numbers a code has."""
    return math.prod(run.fitted.layout.latent(run.model.code).shape)


def _drawn(run: Run, rows: Batch, sites: list[str], draws: int, **how: Any) -> dict[str, Tensor]:
    """Joint draws of sites given each row, with doubts in the words of the command line."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = posterior(run.fitted, rows, draws, site=sites, **how)
    for one in said:
        words = (
            str(one.message)
            .replace("num_particles", "--num-samples")
            .replace('proposal="refined"', "--proposal refined")
        )
        warnings.warn(words, one.category, stacklevel=2)
    return found


def encode_table(
    run: Run,
    source: Path,
    to: Path,
    *,
    draws: int = 0,
    force: bool = False,
    say: Callable[[str], None],
    rows: int | None = None,
    seed: int = 0,
    **how: Any,
) -> int:
    """Write the codes of all rows of a table, or of the images in a folder, as .csv or .parquet; the number of rows.

    Args:
        draws, how: as for `codes_of`.
        force: start anew where another job was stopped.
        say: called with messages.
        rows: how many rows are read at once.
        seed: of the draws; each block has random numbers of its own.

    Raises:
        OptionError: the ending of a file is unknown, or a job of another kind was interrupted there.
        DataError: the table cannot be read, or lacks columns of the run.
    """

    def codes(block: Block, number: int) -> list[pd.DataFrame]:
        found = codes_of(run, batch_of(run, block), draws=draws, **(how | {"seed": seed + number} if draws else {}))
        return [numbered(run, block, found)]

    check_number(draws)
    table = table_of(run, source, rows or rows_at_once(run, draws * _width(run)))
    asked = {"asked": "encode", "draws": draws, "seed": seed, **how} if draws else {"asked": "encode"}
    with begun(run, {**asked, **table.identity}, table.path, to, force=force, say=say) as job:
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
    """The answers, with the number of each row in front, and behind it its name, or the path of an image.

    Their index has the places of rows in the block, each of which may have several lines.
    """
    place = found.index.to_numpy()
    found.insert(0, number_name(found), block.start + place)
    if block.pixels is not None:
        found.insert(1, FILE, block.frame[FILE].to_numpy()[place])
    elif (name := id_column(run, block.frame)) is not None and "id" not in found:
        cells = (block.frame if block.texts is None else block.texts)[name]
        names = ["" if pd.isna(cell) else str(cell) for cell in cells]
        found.insert(1, "id", [names[one] for one in place])
    return found


def number_name(found: Iterable[str]) -> str:
    """What the column with the numbers of rows is called beside these."""
    return "row number" if "row" in found else "row"
