"""Tables of any size as DataFrames of some rows each: text, Parquet, Arrow, .npy, and as a whole what cannot be read so."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrovae._foreign import cure_of
from pyrovae._lazily import Lazily
from pyrovae._near import absent, expanded
from pyrovae._sources import ARROW
from pyrovae.data.arrays import map_array
from pyrovae.data.cells import COLUMNS_LOOKED_AT, Form, find_form
from pyrovae.data.files import forget
from pyrovae.data.frames import check_texts, index_names, read_frame, reading, short_integers, tidy
from pyrovae.data.parquets import opened
from pyrovae.errors import DataError, MissingPackageError, OptionError, PyrovaeError

arrow = Lazily("pyarrow")

TEXTS = (".csv", ".tsv", ".data", ".txt")
BY_BLOCKS = (*TEXTS, ".parquet", *ARROW, ".npy")
SHEETS = (".xlsx", ".xls")  # which no reader takes in part
FILE = "file"  # the column with the paths of images
LEAST_CELLS = 1_000_000  # of a block of a text with more than a thousand columns
PIECE_ROWS = 10_000  # of Parquet and Arrow files, which are decoded at once


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows of a table.

    Args:
        start: the number of the first one, from 0.
        frame: the rows, with a new index.
        texts: the same cells as they are written, if they were asked for and the table is a text.
        pixels: of images, whose paths are the column `FILE` of the frame, `(N, D)` in [0, 1].
    """

    start: int
    frame: pd.DataFrame
    texts: pd.DataFrame | None = None
    pixels: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.frame)


class Table:
    """A table in a file.

    Args:
        source: the file.
        rows: how many rows of it are read at once; of a text with very many columns more, if these are few.
        header: whether the first line of a text names the columns; None finds out.
        texts: columns whose cells are texts in all blocks, also in one where all look like numbers.

    Raises:
        OptionError: the ending is unknown.
        DataError: there is no such file, or it is no table.
    """

    def __init__(self, source: Path, rows: int, header: bool | None = None, texts: Sequence[str] = ()) -> None:
        self.path, self.rows = expanded(source).absolute(), rows
        self.suffix = self.path.suffix.lower()
        if self.suffix not in (*BY_BLOCKS, *SHEETS):
            if self.path.is_file() and (cure := cure_of(self.path)):
                raise OptionError(cure)
            raise OptionError(
                f"{source} must end in {', '.join(BY_BLOCKS)}, which are read block by block, or in {', '.join(SHEETS)}."
            )
        if not self.path.is_file():
            raise DataError(f"{absent(source, (*BY_BLOCKS, *SHEETS))}. Check the name and the folder.")
        self.form = Form(",", ".", (), True, self.suffix != ".npy", ())
        if self.suffix in TEXTS:
            with reading(self.path):
                self.form = find_form(self.path, header)
            if (columns := len(self.form.names)) > COLUMNS_LOOKED_AT:  # for each of which pandas takes a time a block
                self.rows = max(rows, LEAST_CELLS // columns)
        self.text_types = {name: str for name in texts if name in self.form.names}

    @property
    def identity(self) -> dict[str, Any]:
        """What tells the table from others, and from what it was before."""
        state = self.path.stat()
        return {"table": str(self.path), "size": state.st_size, "changed": state.st_mtime_ns, "rows": self.rows}

    def blocks(self, texts: Sequence[str] | None = ()) -> Generator[Block, None, None]:
        """The rows, block by block. DataError where they cannot be read, or there is none.

        Args:
            texts: the columns of a text that are wanted as they are written, too; None for all.
        """
        start = 0
        as_written = self.suffix in TEXTS and (texts is None or texts)
        with closing(self._written(texts) if as_written else self._frames()) as frames:
            for frame, written in frames:
                yield Block(start, frame, written)
                start += len(frame)
        if not start:
            raise DataError(f"{self.path} has no rows. Add at least one.")

    def _frames(self) -> Generator[tuple[pd.DataFrame, None], None, None]:
        read: dict[str, Callable[[], Iterator[pd.DataFrame]]] = {".parquet": self._parquet, ".npy": self._array}
        read |= (
            dict.fromkeys(TEXTS, self._text) | dict.fromkeys(ARROW, self._arrow) | dict.fromkeys(SHEETS, self._sheet)
        )
        for frame in read[self.suffix]():
            frame.columns = [str(name) for name in frame.columns]
            if twice := sorted(set(frame.columns[frame.columns.duplicated()])):
                raise DataError(
                    f"{self.path}: several columns are called {', '.join(twice)}. Rename them: names must differ."
                )
            yield frame.reset_index(drop=True), None

    def _written(self, texts: Sequence[str] | None) -> Generator[tuple[pd.DataFrame, pd.DataFrame], None, None]:
        """Each block as pandas reads it, and columns of it as they are written: the file is read twice, in step."""
        how = {"dtype": str, "na_filter": False, "usecols": texts}
        with closing(self._text()) as frames, closing(self._chunks(**how)) as written:
            for frame in frames:
                yield frame, tidy(next(written)[list(frame.columns if texts is None else texts)])

    def _text(self) -> Generator[pd.DataFrame, None, None]:
        last = self.form.names[-1]
        unnamed = last == f"column {len(self.form.names) - 1}"  # as where lines end in a separator
        ended: bool | None = None
        start = 0
        for frame in self._chunks(dtype=self.text_types):
            empty = unnamed and bool(frame[last].isna().all())
            ended = empty if ended is None else ended
            if ended and not empty:
                raise DataError(
                    f"{self.path}: {last} has no name, is empty at first, and is not in rows {start} to "
                    f"{start + len(frame) - 1}. Name the column, or drop it."
                )
            start += len(frame)
            yield short_integers(frame.iloc[:, :-1] if ended else frame)

    def _chunks(self, **options: Any) -> Generator[pd.DataFrame, None, None]:
        how = {"chunksize": self.rows, **self.form.options, **options}
        with reading(self.path), self.form.source(self.path) as rows, pd.read_csv(rows, **how) as frames:
            for frame in frames:
                if len(frame):
                    yield frame.reset_index(drop=True)

    def _parquet(self) -> Iterator[pd.DataFrame]:
        with _opening(self.path):
            file = opened(self.path)
        with file, _opening(self.path, "damaged"):
            yield from self._regrouped(file.iter_batches(batch_size=min(self.rows, PIECE_ROWS)))

    def _arrow(self) -> Iterator[pd.DataFrame]:
        with _opening(self.path):
            file = arrow.ipc.open_file(arrow.memory_map(str(self.path)))
        with _opening(self.path, "damaged"):
            yield from self._regrouped(self._pieces(file))

    @staticmethod
    def _pieces(file: Any) -> Iterator[Any]:
        for number in range(file.num_record_batches):
            whole = file.get_batch(number)
            whole.validate(full=True)  # or memory of others is read where a text of a damaged file ends behind it
            yield from (whole.slice(at, PIECE_ROWS) for at in range(0, whole.num_rows, PIECE_ROWS))

    def _regrouped(self, batches: Iterable[Any]) -> Iterator[pd.DataFrame]:
        """Row groups need not have `rows` rows: what is left of one goes into the next block."""
        left: list[Any] = []
        have = 0
        for batch in batches:
            left.append(batch)
            have += batch.num_rows
            while have >= self.rows:
                whole = arrow.Table.from_batches(left)
                yield _as_frame(whole.slice(0, self.rows))
                left = whole.slice(self.rows).to_batches()
                have -= self.rows
        if have:
            yield _as_frame(arrow.Table.from_batches(left))

    def _array(self) -> Iterator[pd.DataFrame]:
        array = map_array(self.path)
        if array.ndim != 2 or not array.size or array.dtype.kind not in "biuf":
            raise DataError(
                f"{self.path} must be an array of numbers of the shape (rows, columns), got {array.shape} and {array.dtype}. "
                "Reshape it, or write it as .csv."
            )
        names = [f"column {i}" for i in range(array.shape[1])]
        for at in range(0, len(array), self.rows):
            yield pd.DataFrame(np.array(array[at : at + self.rows]), columns=names)
            forget(array)

    def _sheet(self) -> Iterator[pd.DataFrame]:
        whole = read_frame(self.path)[0]
        for at in range(0, len(whole), self.rows):
            yield whole.iloc[at : at + self.rows]


def _as_frame(table: Any) -> pd.DataFrame:
    """Whole numbers with gaps stay whole numbers, of which pandas would make real ones, and so round those beyond 2^53."""
    whole, gaps = arrow.types.is_integer, (column.null_count for column in table.columns)
    some = any(number and whole(field.type) for number, field in zip(gaps, table.schema))
    mapper = (lambda kind: _with_gaps(str(kind)) if whole(kind) else None) if some else None
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True, types_mapper=mapper)
    check_texts(frame)
    return frame.rename(columns=index_names(list(map(str, frame.columns))))


def _with_gaps(kind: str) -> Any:
    """The integers of pandas that have gaps, by the name of Arrow's integers."""
    return pd.api.types.pandas_dtype(kind.replace("i", "I", 1).replace("u", "U", 1))


@contextmanager
def _opening(path: Path, what: str = "not a table") -> Iterator[None]:
    """Turns what pyarrow raises of a file into one clear error."""
    try:
        yield
    except ImportError as error:
        raise MissingPackageError("Parquet and Arrow files need pyarrow: pip install 'pyrovae[arrow]'.") from error
    except PyrovaeError:
        raise
    except MemoryError as error:
        if not isinstance(error, arrow.ArrowException):
            raise
        raise DataError(  # a record batch is read as a whole, so that smaller blocks would not help
            f"{path} has a part that needs more memory than there is ({error}), or is damaged. Write it anew, in smaller parts."
        ) from error
    except Exception as error:  # of damaged files, pyarrow and pandas raise whatever they come upon
        raise DataError(
            f"{path} is {what} ({' '.join(str(error).split())[:200]}). Write it anew, or save it as .csv."
        ) from error
