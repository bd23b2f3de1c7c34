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


def refuse_parquet(path: Path) -> None:
    """DataError for a table of columns without end, or of one name, or that is far larger than its file.

    A value that is repeated takes no room in the file: a kilobyte of it may be gigabytes of text.
    """
    about = parquet.read_metadata(path)
    refuse_wide(path, about.num_columns)
    names = about.schema.to_arrow_schema().names
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"{path}: several columns are called {', '.join(twice)}. Rename them: names must differ.")
    most = TIMES * path.stat().st_size + MORE
    numbers, texts, repeated = 0, 0, set()
    for group in range(about.num_row_groups):
        for place in range(about.num_columns):
            column = about.row_group(group).column(place)
            if column.physical_type != TEXT:
                numbers += column.num_values * BYTES.get(column.physical_type, 8)
            elif column.has_dictionary_page:
                texts += column.num_values * column.total_uncompressed_size  # at most
                repeated.add(column.path_in_schema)
            else:
                texts += column.total_uncompressed_size
    if numbers <= most < numbers + texts:
        texts = _size_of(path, sorted(repeated), most)
    if numbers + texts > most:
        raise DataError(
            f"{path} holds more than {most / 2**20:.0f} MiB in {path.stat().st_size / 2**20:.1f} MiB, up to which it is read, "
            "since a file can be made to fill all memory. If it is right, write it with "
            "frame.to_parquet(name, compression=None, use_dictionary=False)."
        )


def _size_of(path: Path, columns: Sequence[str], most: int) -> int:
    """Bytes of the texts in some columns, as far as these are more than `most`."""
    size = 0
    with parquet.ParquetFile(path, read_dictionary=list(columns)) as file:
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
