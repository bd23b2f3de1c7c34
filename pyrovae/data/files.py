"""Files that are larger than memory: `open` gives their rows to a fit without reading them as a whole."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrovae._foreign import cure_of
from pyrovae._lazily import Lazily
from pyrovae._near import absent, expanded, near_names
from pyrovae.data.arrays import map_array
from pyrovae.errors import DataError, MissingPackageError, OptionError
from pyrovae.pair.stored import Stored

pa = Lazily("pyarrow")
arrow_data = Lazily("pyarrow.dataset")
parquet = Lazily("pyarrow.parquet")
parquets = Lazily("pyrovae.data.parquets")  # which imports pandas

Columns = str | Sequence[str] | Mapping[str, str | Sequence[str]]
RUN_BYTES = 2**22  # of neighbouring rows of an array, which are read at once
PIECE_ROWS = 8192  # of a table, which are decoded at once
ENDINGS = {".parquet": "parquet", ".arrow": "ipc", ".feather": "ipc"}


def open(
    source: str | Path | NDArray[Any] | Mapping[str, NDArray[Any]],
    columns: Columns | None = None,
    *,
    buffer: int | None = None,
    shuffle: bool = True,
) -> Stored:
    """Rows that stay in files, for `pv.fit`: an array in a .npy file, Parquet or Arrow files, memory-mapped arrays.

    A fit reads the rows pass after pass, in runs of neighbours (row groups of Parquet, record batches of Arrow, 4 MiB of an
    array), which come in a random order. It mixes them in a buffer, and reads the next buffer while it works. So rows of one
    kind should not all stand together, unless the buffer holds them all. Where it does, a fit takes the rows in the same order
    as from memory, with the same result. Questions take such rows, too, and load them all.

    Args:
        source: A file (.npy, .parquet, .arrow, .feather), a folder of Parquet or Arrow files, an array, as of
            `numpy.load(..., mmap_mode="r")`, or a dict of arrays by argument.
        columns: Of a table. A name, or a list of names, is the model's first argument: `(N, D)` of several columns, `(N, D)`
            of a column of lists of D numbers, `(N,)` of one name. A dict has such by argument. None takes all.
        buffer: The number of rows that are mixed; None takes as many as fit into 128 MiB. Twice as many are held.
        shuffle: Whether rows are mixed; else they come as they stand.

    Returns:
        The rows; `num_rows` is their number.

    Raises:
        DataError: There is no such file, it cannot be read so, or has other columns.
        OptionError: The ending is unknown, or `buffer` is not positive.
        MissingPackageError: pyarrow is not installed (`pip install 'pyrovae[arrow]'`).

    Example:
        >>> import numpy as np
        >>> from pyrovae.data import open
        >>> np.save("rows.npy", np.random.default_rng(0).random((200, 6)).round())
        >>> rows = open("rows.npy")
        >>> rows.num_rows
        200
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> fitted = pv.fit(vae, rows, epochs=1, batch_size=50, engine="eager", progress=False)
        >>> fitted.settings["num_rows"], fitted.history[0]["steps"]
        (200, 4)
    """
    if buffer is not None and (isinstance(buffer, bool) or not isinstance(buffer, int) or buffer < 1):
        raise OptionError(f"buffer must be a whole number of rows, at least 1, got {buffer!r}.")
    opened: Stored
    if isinstance(source, (str, Path)):
        path = expanded(source)
        if path.suffix.lower() != ".npy":
            opened = _Table(path, columns)
        elif path.is_file():
            opened = _Arrays(path.name, map_array(path))
        else:
            raise _absent(path)
    else:
        opened = _Arrays("the arrays" if isinstance(source, Mapping) else "the array", source)
    if columns is not None and isinstance(opened, _Arrays):
        raise OptionError("columns is for tables, and arrays have none: leave it out.")
    opened.buffer, opened.shuffle = buffer, shuffle
    return opened


class _Arrays(Stored):
    """Arrays on the disk, or anywhere else, that are read by slices of rows."""

    def __init__(self, name: str, source: Any) -> None:
        self.name, self.source = name, source
        self.arrays: list[Any] = list(source.values()) if isinstance(source, Mapping) else [source]
        shapes: list[Any] = [getattr(array, "shape", None) for array in self.arrays]
        for array in self.arrays:
            kind = getattr(array, "dtype", None)
            if isinstance(kind, np.dtype) and (kind.kind not in "biuf" or kind.itemsize > 8):
                raise DataError(
                    f"{name} must hold numbers of at most 64 bits, got {kind}. Convert them, to float32 for example."
                )
            if not (kind is not None and isinstance(getattr(array, "size", None), int)):
                raise DataError(
                    f"{name} must be numpy arrays or like them, such as numpy.load(path, mmap_mode='r'), got "
                    f"{type(array).__name__}. What is in memory already is passed to pv.fit as it is."
                )
        if not shapes or not all(shapes):
            raise DataError(f"{name} must be arrays with a row for each datum, got shapes {shapes}.")
        if any(0 in shape[1:] for shape in shapes):
            raise DataError(f"{name} must have values in each row, and has none: got shapes {shapes}.")
        if len({shape[0] for shape in shapes}) > 1 or not shapes[0][0]:
            raise DataError(f"{name} must have the same number of rows, at least one: got shapes {shapes}.")
        for array in self.arrays:
            if isinstance(array, np.ndarray) and array.ndim > 1 and array.flags.f_contiguous > array.flags.c_contiguous:
                raise DataError(
                    f"{name} lies column by column (Fortran order), so that a row is spread over the whole file: write it with "
                    "numpy.save(path, numpy.ascontiguousarray(x))."
                )
        total = shapes[0][0]
        bytes_of_row = sum(array.dtype.itemsize * max(1, array.size // total) for array in self.arrays)
        self.step = max(1, RUN_BYTES // max(1, bytes_of_row))
        self.runs = [min(self.step, total - start) for start in range(0, total, self.step)]

    def pieces(self, run: int, skip: int = 0) -> Iterator[Any]:
        rows = slice(run * self.step + skip, run * self.step + self.runs[run])
        if isinstance(self.source, Mapping):
            yield {name: array[rows] for name, array in self.source.items()}
        else:
            yield self.source[rows]
        for array in self.arrays:
            forget(array)


def forget(array: Any) -> None:
    """Give the pages of a file that were read back to the system, which counts them as this process's memory."""
    if isinstance(array, np.memmap) and array.mode == "r" and isinstance(array.base, mmap.mmap):
        with suppress(OSError, ValueError, AttributeError):  # not every system can
            array.base.madvise(mmap.MADV_DONTNEED)


def _absent(path: Path) -> DataError:
    endings = (".npy", *ENDINGS)
    near = absent(path, endings, folders=path.suffix.lower() not in endings)
    return DataError(f"{near}. Check the name and the folder.")


class _Table(Stored):
    """Parquet files, by row groups, or Arrow files, by record batches."""

    def __init__(self, path: Path, columns: Columns | None) -> None:
        self.name = path.name
        self.parts: list[tuple[Any, int]] = []  # where each run is: the file, and the number of its group
        self.runs: list[int] = []
        self.schema: Any = None
        self.kinds: dict[str, list[Any]] = {}  # of each column, its type in each file, which need not be one
        suffix = path.suffix.lower()
        if not path.is_dir() and suffix not in ENDINGS:
            if path.is_file() and (cure := cure_of(path)):
                raise OptionError(cure)
            raise OptionError(
                f"{path} must end in .npy, {', '.join(ENDINGS)}, or be a folder of such files. Tables of text (.csv) are read "
                "as a whole by pyrovae.data.load."
            )
        if not (path.is_file() or path.is_dir()):
            raise _absent(path)
        files = (
            [path]
            if path.is_file()
            else sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
        )
        if not files:
            raise DataError(f"there is no file that ends in {', '.join(ENDINGS)} in {path}.")
        try:
            for file in files:
                self._add(file)
        except ImportError as error:
            raise MissingPackageError(
                "Parquet and Arrow files need pyarrow, which is not installed: pip install 'pyrovae[arrow]'."
            ) from error
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise DataError(f"{file} is not a {suffix or 'Parquet or Arrow'} file ({_line(error)}).") from error
        if not self.runs:
            raise DataError(f"{path} has no rows. Add at least one.")
        self.chosen = self._chosen(columns)
        self.columns = {argument: names for argument, names in self.chosen.items() if not isinstance(names, str)}
        self.names = list(dict.fromkeys(name for names in self.chosen.values() for name in _listed(names)))
        try:
            real = {name: [pa.types.is_floating(_innermost(kind)) for kind in self.kinds[name]] for name in self.names}
            whole = [name for name in self.names if not all(real[name])]
            for holder, number in self.parts if whole else ():
                _check_columns(holder, number, whole)
            # pandas writes whole numbers with gaps as real ones, in those files that have gaps
            self.gaps = {name for name in whole if any(real[name])}
            for holder, number in self.parts if len(self.gaps) < len(whole) else ():
                self.gaps |= _with_nulls(holder, number, [name for name in whole if name not in self.gaps])
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise self._unreadable(error) from error

    def _add(self, file: Path) -> None:
        if ENDINGS[file.suffix.lower()] == "parquet":
            parquets.opened(file).close()
            (fragment,) = arrow_data.dataset(str(file), format="parquet").get_fragments()
            found = [(group.id, group.num_rows) for group in fragment.row_groups]
            holder: Any = fragment
            schema = fragment.physical_schema
        else:
            holder = pa.ipc.open_file(pa.memory_map(str(file)))
            found = [(i, holder.get_batch(i).num_rows) for i in range(holder.num_record_batches)]
            schema = holder.schema
        names = schema.names  # which need not be UTF-8
        if twice := sorted(name for name, number in Counter(names).items() if number > 1):
            raise DataError(
                f"{file}: several columns are called {', '.join(map(repr, twice))}. Rename them: names must differ."
            )
        found = [(number, rows) for number, rows in found if rows]
        if not found:  # where nothing is, columns may have no type
            return
        if self.parts and names != self.schema.names:
            raise DataError(f"{file} has the columns {names}, and those before had {self.schema.names}.")
        self.schema = schema
        for field in schema:
            self.kinds.setdefault(field.name, []).append(field.type)
        for number, rows in found:
            self.parts.append((holder, number))
            self.runs.append(rows)

    def _chosen(self, columns: Columns | None) -> dict[str, str | Sequence[str]]:
        """The columns by argument; under no name those of the model's first argument."""
        known = self.schema.names
        chosen = columns if isinstance(columns, Mapping) else {"": known if columns is None else columns}
        for names in chosen.values():
            if (
                isinstance(names, bytes)
                or not isinstance(names, Sequence)
                or not all(isinstance(n, str) for n in names)
            ):
                raise OptionError(
                    f"columns must be a name, a list of names, or a dict of such by argument, got {names!r}."
                )
        there = set(known)
        for name in (name for names in chosen.values() for name in _listed(names)):
            if name not in there:
                raise DataError(
                    f"{self.name} has no column {name!r}{near_names(name, known)}: {', '.join(known[:20])}."
                )
            if others := [kind for kind in self.kinds[name] if not _is_numeric(kind)]:
                raise DataError(
                    f"{self.name}: column {name!r} holds {others[0]}, and the model takes numbers. Name the columns to take, "
                    "columns=[...], or write codes in place of texts and times."
                )
        if not chosen or not all(len(_listed(names)) for names in chosen.values()):
            raise DataError(f"{self.name}: no column was chosen; there are {', '.join(known[:20])}.")
        return dict(chosen)

    def pieces(self, run: int, skip: int = 0) -> Iterator[Any]:
        try:
            yield from self._pieces(run, skip)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"{self.name} cannot be read ({_line(error)}): it has changed or is damaged. Open it again, or write it anew."
        )

    def _pieces(self, run: int, skip: int) -> Iterator[Any]:
        holder, number = self.parts[run]
        if hasattr(holder, "get_batch"):
            whole = holder.get_batch(number)
            batches = (whole.slice(start, PIECE_ROWS) for start in range(0, whole.num_rows, PIECE_ROWS))
        else:
            group = holder.subset(row_group_ids=[number])
            batches = group.to_batches(
                columns=self.names, batch_size=PIECE_ROWS, batch_readahead=2, fragment_readahead=1
            )
        for batch in batches:
            left = min(skip, batch.num_rows)
            skip -= left
            if left < batch.num_rows:
                arrays = {argument: self._array(batch.slice(left), names) for argument, names in self.chosen.items()}
                yield arrays.get("", arrays)

    def _array(self, batch: Any, names: str | Sequence[str]) -> Any:
        if isinstance(names, str):
            column = batch.column(names)
            alone = not hasattr(column.type, "value_type")
            return _values(self.name, names, column, alone, gaps=not alone and names in self.gaps)
        found = [_values(self.name, name, batch.column(name), gaps=name in self.gaps) for name in names]
        return np.concatenate([values.reshape(len(values), -1) for values in found], 1)


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _innermost(kind: Any) -> Any:
    """The type of the values in lists, or in lists of lists."""
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return kind


def _is_numeric(kind: Any) -> bool:
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_numeric(kind.value_type)
    return any(test(kind) for test in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal))


def _check_columns(holder: Any, number: int, names: Sequence[str]) -> None:
    """An error of pyarrow if the description of a column is damaged: of what it is asked next, pyarrow 26 ends the process."""
    if not hasattr(holder, "get_batch"):
        with parquet.ParquetFile(holder.path, metadata=holder.metadata, buffer_size=2**16) as file:
            next(file.iter_batches(1, row_groups=[number], columns=list(names), use_threads=False), None)


def _with_nulls(holder: Any, number: int, names: Sequence[str]) -> set[str]:
    """Which columns may have nulls in a row group of Parquet, whose statistics say so, or in a record batch of Arrow."""
    found = set()
    if hasattr(holder, "get_batch"):
        batch = holder.get_batch(number)
        for name in names:
            column = batch.column(name)
            while not column.null_count and hasattr(column.type, "value_type"):
                column = column.flatten()
            if column.null_count:
                found.add(name)
        return found
    group, schema, wanted = holder.metadata.row_group(number), holder.metadata.schema, set(names)
    for place in range(group.num_columns):
        path = schema.column(place).path  # of a list "name.list.element"; a name may have dots, too
        if here := wanted.intersection((path, *_heads(path))):
            told = group.column(place).statistics
            if told is None or not told.has_null_count or told.null_count:
                found |= here
    return found


def _heads(path: str) -> Iterator[str]:
    """What stands before each of the dots."""
    return (path[:place] for place, mark in enumerate(path) if mark == ".")


def _values(source: str, name: str, column: Any, alone: bool = False, gaps: bool = False) -> Any:
    """The values of a column: `(N,)`, or `(N, D)` of lists of D numbers.

    Nulls are NaN, but of a column `alone`. With `gaps`, whole numbers become real ones also where none is null, so that all
    parts of a file have one dtype.
    """
    kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    if not hasattr(kind, "value_type"):
        if alone and column.null_count and not pa.types.is_floating(column.type):
            return column  # what a gap is among integers depends on the argument
        if pa.types.is_boolean(kind) and (gaps or column.null_count):
            column = column.cast(pa.uint8())
        if gaps and not pa.types.is_floating(column.type):
            column = column.cast(pa.float64())
        return column.to_numpy(zero_copy_only=False)
    if column.null_count:
        raise DataError(f"{source}: column {name!r} lacks the list of a row. Fill it up with NaN, or drop the row.")
    width = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    if width is None:
        lengths = set(np.diff(np.asarray(column.offsets)).tolist())
        if len(lengths) != 1:
            raise DataError(
                f"{source}: column {name!r} has lists of several lengths. Fill them up to one (NaN is missing)."
            )
        width = lengths.pop()
    inner = _values(source, name, column.flatten(), gaps=gaps)
    return inner.reshape(len(column), width, *inner.shape[1:])


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
