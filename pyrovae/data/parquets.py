"""What a Parquet file says of itself, before memory is taken for its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyrovae._lazily import Lazily
from pyrovae.data.arrays import MORE, TIMES
from pyrovae.data.cells import refuse_wide
from pyrovae.errors import DataError

parquet, compute, arrow = Lazily("pyarrow.parquet"), Lazily("pyarrow.compute"), Lazily("pyarrow")

BYTES = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4}  # of a value by its physical type; 8 of others
TEXT = "BYTE_ARRAY"
PIECE_ROWS = 10_000  # whose texts are counted together


def opened(path: Path, **how: Any) -> Any:
    """A `ParquetFile`. A damaged list in its description gets no more places than the file has bytes, and not 670 MiB."""
    most = min(max(1, path.stat().st_size), 2**31 - 1)
    return parquet.ParquetFile(path, thrift_string_size_limit=most, thrift_container_size_limit=most, **how)


def refuse_parquet(path: Path) -> None:
    """DataError for a table of columns without end, or of one name, or that is far larger than its file.

    A value that is repeated takes no room in the file: a kilobyte of it may be gigabytes of text.
    """
    with opened(path) as file:
        about = file.metadata
    refuse_wide(path, about.num_columns)
    names = about.schema.to_arrow_schema().names
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"{path}: several columns are called {', '.join(twice)}. Rename them: names must differ.")
    most = TIMES * path.stat().st_size + MORE
    # not `row_group(...).column(...)`, which ends the process where that part of a file is damaged
    columns = [about.schema.column(place) for place in range(about.num_columns)]
    numbers = about.num_rows * sum(BYTES.get(one.physical_type, 8) for one in columns if one.physical_type != TEXT)
    written = [one.path for one in columns if one.physical_type == TEXT]
    groups = map(about.row_group, range(about.num_row_groups))
    texts = sum(group.num_rows * group.total_byte_size for group in groups) if written else 0  # at most
    if numbers <= most < numbers + texts:
        texts = _size_of(path, written, most)
    if numbers + texts > most:
        raise DataError(
            f"{path} holds more than {most / 2**20:.0f} MiB in {path.stat().st_size / 2**20:.1f} MiB, up to which it is read, "
            "since a file can be made to fill all memory. If it is right, write it with "
            "frame.to_parquet(name, compression=None, use_dictionary=False)."
        )


def _size_of(path: Path, columns: Sequence[str], most: int) -> int:
    """Bytes of the texts in some columns, as far as these are more than `most`."""
    size = 0
    with opened(path, read_dictionary=list(columns)) as file:
        for batch in file.iter_batches(batch_size=PIECE_ROWS, columns=list(columns)):
            size += sum(map(_bytes_of, batch.columns))
            if size > most:
                break
    return size


def _bytes_of(column: Any) -> int:
    if not arrow.types.is_dictionary(column.type):
        return int(column.nbytes)
    lengths = compute.binary_length(column.dictionary)
    return int(compute.sum(compute.take(lengths, column.indices)).as_py() or 0)
