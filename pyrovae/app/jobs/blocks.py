"""Jobs on tables that are larger than memory: rows are read, asked about and written block by block.

The answers of each block are files of their own, in a folder beside the one that is to be written, until all are there. So a
job that was stopped goes on with the first block that has no file, if it is the same: the same table, run and options.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pandas as pd

from pyrovae._files import beside, real, refuse_leaving, swap, write_file
from pyrovae._json import of_json
from pyrovae._lazily import Lazily
from pyrovae._near import expanded
from pyrovae._start import advising
from pyrovae.app.run import Run
from pyrovae.errors import DataError, MissingPackageError, OptionError, counted
from pyrovae.fitted.files import digest
from pyrovae.fitted.lock import LOCK, locked

parquet = Lazily("pyarrow.parquet")
arrow = Lazily("pyarrow")

MOST_ROWS, NUMBERS = 50_000, 10_000_000  # of a block: its rows, and the draws or cells of all of them
WRITTEN = (".csv", ".parquet")
MARK = "job.json"
DRAW, MOST_DRAWS = "draw", 100_000  # the column with the numbers of draws, from 1 on, and how many there may be


class Rows(Protocol):
    """Some rows, of which the first is number `start`."""

    @property
    def start(self) -> int: ...

    def __len__(self) -> int: ...


R = TypeVar("R", bound=Rows)


def rows_at_once(run: Run, draws: int = 1) -> int:
    """How many rows make a block, where each has so many draws, or takes as many numbers as the run has columns."""
    return max(1, min(MOST_ROWS, NUMBERS // max(draws, run.rows.test[0].numel())))


def check_number(draws: int) -> None:
    """OptionError for a number of draws that cannot be."""
    if not 0 <= draws <= MOST_DRAWS:
        raise OptionError(f"--draws must be 0 or more, and at most {MOST_DRAWS}, got {draws}.")


@contextmanager
def telling(rows: Rows) -> Iterator[None]:
    """Say in an error of some rows which ones they are."""
    try:
        yield
    except DataError as error:
        raise DataError(f"Rows {rows.start} to {rows.start + len(rows) - 1} of the table: {error}") from error


@contextmanager
def begun(
    run: Run,
    identity: Mapping[str, Any],
    source: Path | None,
    to: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    kept: str | None = None,
    csv: Mapping[str, Any] | None = None,
) -> Iterator[Job]:
    """A job that goes on where it was stopped, while no other process is at work on it. Its answers go when it has ended.

    Args:
        identity: what tells it from others: the question, its options and the table.
        source: the table, if it is a file.
        to: the file that is to be written, .csv or .parquet.
        force: start anew where a job of another kind was stopped.
        say: called where a job goes on.
        kept: the ending of the files of answers; by default that of `to`.
        csv: how `to` is written, if it is .csv: arguments of `DataFrame.to_csv`.

    Raises:
        OptionError: the ending is unknown, or a job of another kind was stopped there.
        CheckpointError: another process is at work on it.
    """
    if to.suffix not in WRITTEN:
        raise OptionError(f"--out {to} must end in {' or '.join(WRITTEN)}, which are written block by block.")
    if source is not None and real(source) == real(expanded(to)):
        raise OptionError(f"--out {to} would replace the table that is asked about: choose another name.")
    refuse_leaving(to)
    weights = digest(json.dumps(run.fitted.checksums, sort_keys=True).encode())
    job = Job({**identity, "weights": weights}, to, kept or to.suffix, csv or {})
    if job.folder.is_symlink() or (job.folder.exists() and not job.folder.is_dir()):
        raise OptionError(job.in_the_way)
    job.folder.mkdir(exist_ok=True)
    with locked(job.folder, "command"), advising(lambda: f"stopped; the same command goes on with {to} where it was"):
        job.begin(force)
        if job.done:
            say(f"{counted(job.done, 'block')} of rows were answered before; going on with the next")
        try:
            yield job
        except BaseException:
            if not job.done:  # nothing to go on with
                shutil.rmtree(job.folder)
            raise
        job.clear()
    with suppress(OSError):  # another process may have begun
        job.folder.rmdir()


class Job:
    """A question about all rows of a table, whose answers become one file.

    Args:
        identity: what tells it from others.
        to: the file that is to be written.
        kept: the ending of the files of answers.
        csv: how a .csv is written.
    """

    def __init__(self, identity: Mapping[str, Any], to: Path, kept: str, csv: Mapping[str, Any]) -> None:
        self.identity, self.to, self.kept, self.csv = dict(identity), to, kept, dict(csv)
        self.folder = to.with_name(f".{to.name}.parts")
        self.done = 0  # blocks
        self.rows = 0  # of the table, as far as it was read

    @property
    def in_the_way(self) -> str:
        return f"{self.folder} is in the way, where answers are kept until all are there: remove it."

    def begin(self, force: bool) -> None:
        """Find the blocks that have been answered. OptionError if the folder of answers is of another job."""
        mark = self.folder / MARK
        if mark.is_file():
            try:
                known = of_json(mark.read_text()) == self.identity
            except (ValueError, OSError, RecursionError):
                known = False
            if known:
                self.done = next(number for number in itertools.count() if not self._part(number).is_file())
                return
            if not force:
                raise OptionError(
                    f"{self.folder} holds answers of a job that was stopped, with another table, run or options: remove that "
                    "folder, or start anew with --force."
                )
            self.clear()
        elif any(path not in (beside(mark), self.folder / LOCK) for path in self.folder.iterdir()):
            raise OptionError(self.in_the_way)
        write_file(mark, json.dumps(self.identity, indent=1).encode())

    def clear(self) -> None:
        """Remove the answers, from the last to the first, and the mark last: the job can begin again wherever it is killed."""
        own = (path for path in self.folder.iterdir() if path.name != LOCK)
        for path in sorted(own, key=lambda path: (path.name != MARK, path.name), reverse=True):
            path.unlink()

    def answer(
        self,
        blocks: Generator[R, None, None],
        ask: Callable[[R, int], Sequence[pd.DataFrame]],
        *,
        look: Callable[[R], None] = lambda rows: None,
    ) -> None:
        """Answer block by block, from the first that has no answer on.

        Args:
            blocks: all rows.
            ask: makes one or several tables of a block and its number.
            look: called with each block, also with those that have been answered.
        """
        with closing(blocks):
            for number, block in enumerate(blocks):
                look(block)
                self.rows = block.start + len(block)
                if number < self.done:
                    continue
                with telling(block):
                    found = ask(block, number)
                for place in reversed(range(len(found))):  # a block is done when its first table is there
                    content = self._content(found[place], header=number == place == 0)
                    write_file(self._part(number, place), content)
                self.done = number + 1

    def parts(self, place: int = 0, **reading: Any) -> Iterator[pd.DataFrame]:
        """The answers of one block after another: the tables at this place; `reading` are arguments of `pandas.read_csv`."""
        names: list[str] | None = None
        for number in range(self.done):
            content = io.BytesIO(self._part(number, place).read_bytes())
            if self.kept == ".parquet":
                yield parquet.read_table(content).to_pandas()
                continue
            table = pd.read_csv(content, header=0 if names is None else None, names=names, **reading)
            names = list(table.columns)
            yield table

    def join(self, tables: int | Iterable[pd.DataFrame] = 1, *, begins: str = "", **csv: Any) -> None:
        """Write all answers into one file.

        Args:
            tables: tables to write one below another; or the number of tables that each block has, which are written as they
                are: the first ones of all blocks, then the second ones, and so on.
            begins: what a .csv begins with, such as the mark by which Excel knows UTF-8.
            csv: how they are written in a .csv.
        """
        refuse_leaving(self.to)
        temporary = beside(self.to)
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            if self.to.suffix == ".parquet":
                self._write_parquet(file, tables)
            elif isinstance(tables, int):
                file.write(begins.encode())
                for path in self._paths(tables):
                    file.write(path.read_bytes())
            else:
                for number, table in enumerate(tables):
                    file.write(self._content(table, header=number == 0, **csv))
            file.flush()
            os.fsync(file.fileno())
        swap(self.to)

    def _write_parquet(self, file: Any, tables: int | Iterable[pd.DataFrame]) -> None:
        whole: Iterable[Any]
        if isinstance(tables, int):
            schema = self._common_schema(tables)
            whole = (parquet.read_table(path).cast(schema, safe=False) for path in self._paths(tables))
        else:
            whole = (arrow.Table.from_pandas(table, preserve_index=False) for table in tables)
        writer: Any = None
        for table in whole:
            writer = writer or parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
        writer.close()

    def _common_schema(self, tables: int) -> Any:
        """The types that hold the columns of all blocks: of whole numbers with gaps in some block, real numbers."""
        schemas = (parquet.read_schema(path).remove_metadata() for path in self._paths(tables))
        first = next(schemas)
        for schema in schemas:
            if schema != first:
                try:
                    first = arrow.unify_schemas([first, schema], promote_options="permissive")
                except arrow.ArrowException as error:
                    raise DataError(
                        f"{self.to}: a column has values of several types ({' '.join(str(error).split())[:200]}). Write .csv."
                    ) from error
        return first

    def _paths(self, tables: int) -> Iterator[Path]:
        return (self._part(number, place) for place in range(tables) for number in range(self.done))

    def _part(self, number: int, place: int = 0) -> Path:
        return self.folder / f"{number:06d}{f'-{place}' if place else ''}{self.kept}"

    def _content(self, table: pd.DataFrame, *, header: bool, **csv: Any) -> bytes:
        if self.kept == ".csv":
            how = {**self.csv, **csv}
            names = how.get("header", True)
            if isinstance(names, Mapping):
                names = [names.get(name, name) for name in table]
            return bytes(table.to_csv(index=False, **how | {"header": header and names}).encode())
        content = io.BytesIO()
        try:
            table.to_parquet(content, index=False)
        except ImportError as error:
            raise MissingPackageError("Parquet files need pyarrow: pip install 'pyrovae[arrow]'.") from error
        except arrow.ArrowException as error:
            raise DataError(
                f"{self.to}: a column has values of several types ({' '.join(str(error).split())[:200]}). Write .csv."
            ) from error
        return content.getvalue()
