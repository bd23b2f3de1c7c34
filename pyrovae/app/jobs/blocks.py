"""Questions about tables that are larger than memory: rows are read, asked about and written block by block.

The answers of each block are a file of their own, in a folder beside the one that is to be written, until all are there. So a
job that was stopped goes on with the first block that has no file, if it is the same: the same table, run and options.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pyrovae._files import beside, refuse_leaving, swap, write_file
from pyrovae._lazily import Lazily
from pyrovae.app.jobs.impute import batch_of
from pyrovae.app.run import Run
from pyrovae.app.scores import EVALUATION_SEED, estimate
from pyrovae.data.cells import find_form
from pyrovae.data.tables import reading
from pyrovae.errors import DataError, MissingPackageError, OptionError
from pyrovae.fitted.files import digest
from pyrovae.predict.encode import encode

parquet = Lazily("pyarrow.parquet")
arrow = Lazily("pyarrow")

MOST_ROWS, DRAWS = 50_000, 10_000_000  # of a block
TEXTS = (".csv", ".tsv", ".data", ".txt")
WRITTEN = (".csv", ".parquet")
MARK = "job.json"
Frames = Generator["pd.DataFrame", None, None]
Answer = Callable[[pd.DataFrame, int], pd.DataFrame]


def encode_table(
    run: Run, source: Path, to: Path, *, force: bool = False, say: Callable[[str], None], rows: int = MOST_ROWS
) -> int:
    """Write the codes E[z | x] of all rows of a table, as .csv or .parquet; the number of rows.

    Raises:
        OptionError: The ending of a file is none of these, or a job of another kind was interrupted there.
        DataError: The table cannot be read, or lacks columns of the run.
    """

    def codes(frame: pd.DataFrame, number: int) -> pd.DataFrame:
        found = encode(run.fitted, batch_of(run, frame), site=run.model.code).flatten(1).cpu().numpy()
        return pd.DataFrame(found, columns=[f"z{i}" for i in range(found.shape[1])])

    job = Job(run, source, to, {"asked": "encode"}, rows)
    return job.do(codes, force=force, say=say)


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
    """Write log p(x), its error and diagnostics of all rows of a table, as .csv or .parquet; their means and standard errors.

    Each block has random numbers of its own.
    """

    def scores(frame: pd.DataFrame, number: int) -> pd.DataFrame:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rows with few draws: k-hat stands in their lines
            found = estimate(run, batch_of(run, frame), num_samples, proposal, seed=EVALUATION_SEED + number)
        return pd.DataFrame(
            {
                "log_likelihood": (found.log_likelihood - run.rows.log_abs_det).cpu().numpy(),
                "standard_error": found.standard_error.cpu().numpy(),
                "elbo": (found.elbo - run.rows.log_abs_det).cpu().numpy(),
                "ess": found.ess.cpu().numpy(),
                "k_hat": found.k_hat.cpu().numpy(),
            }
        )

    rows = min(MOST_ROWS, max(1, DRAWS // num_samples)) if rows is None else rows
    asked = {"asked": "evaluate", "num_samples": num_samples, "proposal": proposal}
    sums = {"log_likelihood": torch.zeros(3, dtype=torch.float64), "elbo": torch.zeros(3, dtype=torch.float64)}

    def add(part: pd.DataFrame) -> None:
        for name, total in sums.items():
            values = torch.from_numpy(part[name].to_numpy(dtype="float64", copy=True))
            total += torch.stack([torch.tensor(float(len(values))), values.sum(), values.square().sum()])

    number = Job(run, source, to, asked, rows).do(scores, force=force, say=say, each=add)
    found = {"rows": float(number)}
    for name, (count, total, squares) in ((name, values.tolist()) for name, values in sums.items()):
        mean = total / count
        variance = max(0.0, squares / count - mean**2) * count / max(1.0, count - 1)
        found |= {name: mean, f"{name}_se": (variance / count) ** 0.5}
    return found


class Job:
    """A question about all rows of a table, whose answers become one file."""

    def __init__(self, run: Run, source: Path, to: Path, asked: Mapping[str, Any], rows: int) -> None:
        self.source, self.to, self.rows = source.expanduser().absolute(), to, rows
        if self.source.suffix.lower() not in (*TEXTS, ".parquet"):
            raise OptionError(f"{source} must end in {', '.join(TEXTS)} or .parquet, which are read block by block.")
        if to.suffix not in WRITTEN:
            raise OptionError(f"--out {to} must end in {' or '.join(WRITTEN)}, which are written block by block.")
        if not self.source.is_file():
            raise DataError(f"there is no file {source}. Check the name and the folder.")
        if self.source.resolve() == to.expanduser().resolve():
            raise OptionError(f"--out {to} would replace the table that is asked about: choose another name.")
        state = self.source.stat()
        weights = digest(json.dumps(run.fitted.checksums, sort_keys=True).encode())
        table = {"table": str(self.source), "size": state.st_size, "changed": state.st_mtime_ns}
        self.identity = {**asked, **table, "weights": weights, "rows": rows}
        self.parts = to.with_name(f".{to.name}.parts")

    def do(
        self,
        answer: Answer,
        *,
        force: bool,
        say: Callable[[str], None],
        each: Callable[[pd.DataFrame], None] = lambda part: None,
    ) -> int:
        """Answer block by block, from the first that has no answer on, and join the answers; the number of rows."""
        refuse_leaving(self.to)
        done = self._begin(force)
        if done:
            say(f"{done} blocks of {self.rows} rows were answered before; going on with row {done * self.rows}")
        start = done * self.rows
        try:
            with closing(_blocks(self.source, self.rows, done)) as blocks:
                for number, frame in enumerate(blocks, done):
                    try:
                        found = answer(frame, number)
                    except DataError as error:
                        raise DataError(
                            f"Rows {start} to {start + len(frame) - 1} of {self.source.name}: {error}"
                        ) from error
                    found.insert(0, "row", range(start, start + len(frame)), allow_duplicates=True)
                    start += len(frame)
                    write_file(self._part(number), _written(found, self.to.suffix))
        except BaseException:
            if not self._part(0).exists():  # nothing to go on with
                shutil.rmtree(self.parts)
            raise
        total = self._join(each)
        self._clear()
        return total

    def _begin(self, force: bool) -> int:
        """The number of blocks that have been answered. OptionError if the folder of answers is of another job."""
        mark = self.parts / MARK
        if self.parts.is_symlink() or (self.parts.exists() and not self.parts.is_dir()):
            raise OptionError(f"{self.parts} is in the way, where answers are kept until all are there: remove it.")
        if mark.is_file():
            try:
                known = json.loads(mark.read_text()) == self.identity
            except (ValueError, OSError):
                known = False
            if known:
                done = 0
                while self._part(done).is_file():
                    done += 1
                return done
            if not force:
                raise OptionError(
                    f"{self.parts} holds answers of a job that was stopped, with another table, run or options: remove that "
                    "folder, or start anew with --force."
                )
            shutil.rmtree(self.parts)
        elif self.parts.exists() and any(path != beside(mark) for path in self.parts.iterdir()):
            raise OptionError(f"{self.parts} is in the way, where answers are kept until all are there: remove it.")
        self.parts.mkdir(exist_ok=True)
        write_file(mark, json.dumps(self.identity, indent=1).encode())
        return 0

    def _clear(self) -> None:
        """Remove the folder of answers, its mark last, so that the same job can begin again wherever it is killed."""
        for path in sorted(self.parts.iterdir(), key=lambda path: (path.name != MARK, path.name), reverse=True):
            path.unlink()
        self.parts.rmdir()

    def _part(self, number: int) -> Path:
        return self.parts / f"{number:06d}{self.to.suffix}"

    def _join(self, each: Callable[[pd.DataFrame], None]) -> int:
        """Write all answers into the file, part by part."""
        refuse_leaving(self.to)
        temporary, total, number = beside(self.to), 0, 0
        temporary.unlink(missing_ok=True)
        writer: Any = None
        with temporary.open("xb") as file:
            while self._part(number).is_file():
                content = self._part(number).read_bytes()
                if self.to.suffix == ".csv":
                    part = pd.read_csv(io.BytesIO(content))
                    file.write(content if number == 0 else content.partition(b"\n")[2])
                else:
                    table = parquet.read_table(io.BytesIO(content))
                    part = table.to_pandas()
                    writer = writer or parquet.ParquetWriter(file, table.schema)
                    writer.write_table(table)
                each(part)
                total, number = total + len(part), number + 1
            if writer is not None:
                writer.close()
        swap(self.to)
        return total


def _written(table: pd.DataFrame, suffix: str) -> bytes:
    if suffix == ".csv":
        return bytes(table.to_csv(index=False).encode())
    content = io.BytesIO()
    try:
        table.to_parquet(content, index=False)
    except ImportError as error:
        raise MissingPackageError("Parquet files need pyarrow: pip install 'pyrovae[arrow]'.") from error
    return content.getvalue()


def _blocks(path: Path, rows: int, skip: int) -> Frames:
    """The table in blocks of so many rows, but for the first `skip`. DataError where it cannot be read, or has no row."""
    number = -1
    read = _parquet_blocks if path.suffix.lower() == ".parquet" else _text_blocks
    with closing(read(path, rows)) as frames:
        for number, frame in enumerate(frames):
            if number >= skip:
                yield frame
    if number < 0:
        raise DataError(f"{path} has no rows. Add at least one.")


def _text_blocks(path: Path, rows: int) -> Frames:
    with reading(path):
        form = find_form(path)
        with pd.read_csv(path, chunksize=rows, **form.options) as frames:
            for frame in frames:
                if form.names[-1] == f"column {len(form.names) - 1}" and frame.iloc[:, -1].isna().all():
                    frame = frame.iloc[:, :-1]  # lines end in a separator
                if len(frame):
                    yield frame.reset_index(drop=True)


def _parquet_blocks(path: Path, rows: int) -> Frames:
    """Row groups need not have `rows` rows: what is left of one goes into the next block."""
    try:
        file = parquet.ParquetFile(path)
    except ImportError as error:
        raise MissingPackageError("Parquet files need pyarrow: pip install 'pyrovae[arrow]'.") from error
    except (arrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a table ({str(error)[:200]}). Save it as .csv.") from error
    left: list[Any] = []
    have = 0
    try:
        with file:
            for batch in file.iter_batches(batch_size=min(rows, 10_000)):
                left.append(batch)
                have += batch.num_rows
                while have >= rows:
                    whole = arrow.Table.from_batches(left)
                    yield whole.slice(0, rows).to_pandas()
                    left = whole.slice(rows).to_batches()
                    have -= rows
            if have:
                yield arrow.Table.from_batches(left).to_pandas()
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged ({' '.join(str(error).split())[:200]}). Write it anew.") from error
