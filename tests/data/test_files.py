"""Rows in files that are larger than memory: each once a pass, in an order that the seed gives, and mixed within a buffer."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.programs import vae
from torch import Tensor

import pyrovae as pv
from pyrovae.app.jobs.frames import Table
from pyrovae.data.tables import load_table
from pyrovae.pair.stored import Stored, mixed

HOW: dict[str, Any] = {"seed": 1, "learning_rate": 0.01, "engine": "eager", "progress": False}
ROWS = 103


def rows() -> Tensor:
    torch.manual_seed(5)
    return torch.bernoulli(torch.full((ROWS, 6), 0.4))


def small() -> pv.VAE:
    torch.manual_seed(0)
    return vae()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows as an array, in columns, and as lists; row groups and batches are smaller than the file."""
    folder = tmp_path_factory.mktemp("files")
    x = rows().double().numpy()
    np.save(folder / "rows.npy", x)
    columns = {f"c{i}": x[:, i] for i in range(6)}
    texts = {"y": np.arange(ROWS) % 3, "text": [str(i) for i in range(ROWS)]}
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=20)
    pq.write_table(pa.table({"x": list(x.tolist()), **texts}), folder / "lists.parquet", row_group_size=40)
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 6), **texts})
    with pa.OSFile(str(folder / "lists.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=30)
    (folder / "parts").mkdir()
    pq.write_table(pa.table(columns).slice(0, 50), folder / "parts" / "a.parquet")
    pq.write_table(pa.table(columns).slice(50), folder / "parts" / "b.parquet", row_group_size=30)
    return folder


class HuggingFace:
    """A data set as Hugging Face's are: lists of numbers by column, a row or several at a time."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.tolist()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, key: int) -> dict[str, Any]:
        return {"x": self.x[key]}


class InBatches(HuggingFace):
    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        return [self[key] for key in keys]


SOURCES: dict[str, Callable[[Path], Any]] = {
    "npy": lambda files: pv.data.open(files / "rows.npy"),
    "mapped": lambda files: pv.data.open({"x": np.load(files / "rows.npy", mmap_mode="r")}),
    "parquet": lambda files: pv.data.open(files / "rows.parquet"),
    "columns": lambda files: pv.data.open(files / "rows.parquet", {"x": [f"c{i}" for i in range(6)]}),
    "a folder": lambda files: pv.data.open(files / "parts"),
    "lists": lambda files: pv.data.open(files / "lists.parquet", "x"),
    "arrow": lambda files: pv.data.open(files / "lists.arrow", {"x": "x"}),
    "hugging face": lambda files: HuggingFace(rows()),
    "hugging face, in batches": lambda files: InBatches(rows()),
}


@pytest.fixture(scope="module")
def resident() -> tuple[pv.Fit, list[Tensor]]:
    pair = small()
    fitted = pv.fit(pair, rows(), epochs=1, batch_size=12, **HOW)
    return fitted, list(pair.state_dict().values())


@pytest.mark.parametrize("name", SOURCES)
def test_files_in_one_buffer_give_the_fit_of_rows_in_memory(
    name: str, files: Path, resident: tuple[pv.Fit, list[Tensor]]
) -> None:
    """Bit for bit, and so do questions about them."""
    pair, source = small(), SOURCES[name](files)
    fitted = pv.fit(pair, source, epochs=1, batch_size=12, **HOW)
    assert all(torch.equal(a, b) for a, b in zip(pair.state_dict().values(), resident[1], strict=True))
    assert [row["elbo"] for row in fitted.history] == [row["elbo"] for row in resident[0].history]
    assert torch.equal(pv.encode(fitted, source), pv.encode(resident[0], rows()))


class Numbers(Stored):
    """The numbers 0, 1, ..., in runs of several sizes; it notes which runs were read."""

    def __init__(self, buffer: int, shuffle: bool = True) -> None:
        self.name, self.runs, self.buffer, self.shuffle = "numbers", [10, 1, 25, 7, 30, 2, 28], buffer, shuffle
        self.read: list[int] = []

    def pieces(self, run: int, skip: int = 0) -> Any:
        self.read.append(run)
        start = sum(self.runs[:run])
        for part in np.array_split(np.arange(start + skip, start + self.runs[run]), 2):
            yield {"x": part}


def bind(piece: Any) -> dict[str, Tensor]:
    return {name: torch.as_tensor(values) for name, values in piece.items()}


def dealt(source: Stored, batches: int, skip: int = 0, seed: int = 3) -> Tensor:
    found = itertools.islice(mixed(source, bind, 12, seed, skip), batches)
    return torch.stack([batch["x"] for batch in found])


@pytest.mark.parametrize("buffer", [12, 17, 40, 103, 500])
def test_each_row_comes_once_a_pass(buffer: int) -> None:
    found = dealt(Numbers(buffer), 103).flatten()  # 12 passes
    passes = found.reshape(12, 103)
    assert torch.equal(passes.sort(1).values, torch.arange(103).expand(12, 103))
    assert not torch.equal(passes[0], passes[1])
    assert not torch.equal(found, dealt(Numbers(buffer), 103, seed=4).flatten())


@pytest.mark.parametrize("buffer", [12, 40, 500])
def test_rows_that_are_not_mixed_come_as_they_stand(buffer: int) -> None:
    assert torch.equal(dealt(Numbers(buffer, shuffle=False), 20).flatten(), torch.arange(240) % 103)


@pytest.mark.parametrize("buffer", [12, 17, 40, 500])
@pytest.mark.parametrize("skip", [1, 3, 8, 9, 26])
def test_the_order_is_wound_forward(buffer: int, skip: int) -> None:
    assert torch.equal(dealt(Numbers(buffer), 12, skip), dealt(Numbers(buffer), 12 + skip)[skip:])


def test_what_was_passed_is_not_read_again() -> None:
    """Rows 48 to 59 of a pass lie in the buffer from row 40 on: the runs of the first 40 rows that end there are left out."""
    whole, late = Numbers(20, shuffle=False), Numbers(20, shuffle=False)
    dealt(whole, 5)
    dealt(late, 1, skip=4)
    assert whole.read[:3] == [0, 1, 2] and late.read[0] == 3


def test_rows_are_mixed_over_the_buffer() -> None:
    """Of two kinds of rows, one after the other in 20 runs each, the first buffer of 10 runs has both (but for 1 in 1,000)."""
    source = Numbers(100)
    source.runs = [10] * 40
    source.pieces = lambda run, skip=0: iter([{"x": np.full(10 - skip, run >= 20)}])  # type: ignore[method-assign]
    share = dealt(source, 8).float().mean()
    assert 0 < share < 1


def test_a_fit_to_files_resumes_bit_for_bit(files: Path, tmp_path: Path) -> None:
    source = pv.data.open(files / "rows.parquet", buffer=30)
    whole, again = small(), small()
    pv.fit(whole, source, epochs=3, batch_size=12, **HOW)
    how: dict[str, Any] = {"epochs": 3, "batch_size": 12, "checkpoint": tmp_path / "run", **HOW}
    pv.fit(small(), source, callbacks=[lambda fitted: len(fitted.history) == 2], **how)
    pv.fit(again, source, resume=True, **how)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    with pytest.raises(pv.CheckpointError, match="other data"):
        pv.fit(small(), pv.data.open(files / "rows.parquet", buffer=31), resume=True, **how)


def test_gaps_and_types_of_columns(tmp_path: Path) -> None:
    table = pa.table(
        {
            "real": pa.array([0.5, None, 2.5]),
            "whole": pa.array([1, None, 3]),
            "yes": pa.array([True, None, False]),
            "money": pa.array([1, 2, 3], pa.decimal128(5, 2)),
            "y": pa.array([0, 2, 1], pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    source = pv.data.open(tmp_path / "t.parquet", {"x": ["real", "whole", "yes", "money"], "y": "y"})
    (piece,) = source.all_pieces([0])
    np.testing.assert_array_equal(piece["x"], [[0.5, 1, 1, 1], [np.nan, np.nan, np.nan, 2], [2.5, 3, 0, 3]])
    assert piece["y"].tolist() == [0, 2, 1] and piece["y"].dtype == np.int8


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
@pytest.mark.parametrize("values", [[1, 2, 3, None], [True, False, True, None], [[1], [2], [3], [None]]])
def test_parts_with_and_without_gaps_have_one_dtype(values: list[Any], ending: str, tmp_path: Path) -> None:
    table, path = pa.table({"a": values, "b": [1, 2, 3, 4]}), tmp_path / f"t{ending}"
    if ending == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    pieces = list(pv.data.open(path).all_pieces([0, 1]))
    assert [piece.dtype for piece in pieces] == [np.float64] * 2 and np.isnan(pieces[1][1, 0])
    assert next(pv.data.open(path, ["b"]).all_pieces([0])).dtype == np.int64  # of a column without gaps


def test_files_of_a_folder_may_differ_in_the_types_of_numbers_and_be_empty(tmp_path: Path) -> None:
    """As pandas writes whole numbers: in a file with gaps, or with none, or without rows."""
    parts = {"a": pa.array([1, 2]), "b": pa.array([0.5, None]), "c": pa.array([3, 4], pa.int32()), "d": pa.nulls(0)}
    for name, column in parts.items():
        pq.write_table(pa.table({"x": column, "v": pa.array([1.5] * len(column))}), tmp_path / f"{name}.parquet")
    pieces = list(pv.data.open(tmp_path).all_pieces([0, 1, 2]))
    assert [piece.dtype for piece in pieces] == [np.float64] * 3
    np.testing.assert_array_equal(np.concatenate(pieces)[:, 0], [1, 2, 0.5, np.nan, 3, 4])
    pq.write_table(pa.table({"x": ["text"], "v": [1.5]}), tmp_path / "0.parquet")  # the first, which is not the last
    with pytest.raises(pv.DataError, match="column 'x' holds string"):
        pv.data.open(tmp_path)


def test_folders_that_are_named_like_tables_are_read_once(tmp_path: Path) -> None:
    for name in ("one.parquet", "two.parquet"):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"a": [1.0, 2.0]}), tmp_path / name / "part-0.parquet")
    assert pv.data.open(tmp_path).num_rows == 4


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"PAR1")])
def test_a_table_that_is_gone_or_damaged_is_told(harm: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0, 2.0]}), tmp_path / "t.parquet")
    source = pv.data.open(tmp_path / "t.parquet")
    harm(tmp_path / "t.parquet")
    with pytest.raises(pv.DataError, match="t.parquet cannot be read"):
        list(source.all_pieces([0]))


class Shrinks(Numbers):
    def pieces(self, run: int, skip: int = 0) -> Any:
        yield {"x": np.arange(3)}


def test_a_file_that_changes_is_told() -> None:
    with pytest.raises(pv.DataError, match="numbers has changed: a part of 10 rows has 3 now"):
        dealt(Shrinks(500), 1)


BAD: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no file": (
        lambda f: pv.data.open(f / "row.npy"),
        pv.DataError,
        r"there is no file .*row.npy \(did you mean rows.npy",
    ),
    "no table": (lambda f: pv.data.open(f / "row.parquet"), pv.DataError, "there is no file"),
    "text table": (lambda f: pv.data.open(f / "rows.csv"), pv.OptionError, "must end in .npy, .parquet, .arrow"),
    "texts": (lambda f: pv.data.open(f / "lists.arrow"), pv.DataError, "column 'text' holds string.*columns="),
    "column": (lambda f: pv.data.open(f / "rows.parquet", ["c7"]), pv.DataError, "no column 'c7'"),
    "no column": (lambda f: pv.data.open(f / "rows.parquet", []), pv.DataError, "no column was chosen"),
    "columns of an array": (lambda f: pv.data.open(f / "rows.npy", ["c"]), pv.OptionError, "arrays have none"),
    "buffer": (lambda f: pv.data.open(f / "rows.npy", buffer=0), pv.OptionError, "buffer must be a whole number"),
    "a tensor": (lambda f: pv.data.open(torch.ones(3, 2)), pv.DataError, "numpy arrays.*got Tensor"),  # type: ignore[arg-type]
    "a list": (lambda f: pv.data.open({"x": [1.0]}), pv.DataError, "numpy arrays.*got list"),  # type: ignore[dict-item]
    "numbers of columns": (
        lambda f: pv.data.open(f / "rows.parquet", [0]),  # type: ignore[list-item]
        pv.OptionError,
        "columns must be a name",
    ),
    "by column": (lambda f: pv.data.open(np.ones((3, 2)).T.copy("F")), pv.DataError, "column by column"),
    "no rows": (lambda f: pv.data.open(np.ones((0, 2))), pv.DataError, "at least one"),
    "a number": (lambda f: pv.data.open(np.float64(3)), pv.DataError, "a row for each datum"),  # type: ignore[arg-type]
    "rows differ": (lambda f: pv.data.open({"x": np.ones(3), "y": np.ones(4)}), pv.DataError, "same number of rows"),
    "a batch": (
        lambda f: pv.fit(small(), pv.data.open(f / "rows.npy"), epochs=1, batch_size=104, **HOW),
        pv.DataError,
        "larger than the 103 rows",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_opened_is_refused(name: str, files: Path) -> None:
    make, kind, match = BAD[name]
    with pytest.raises(kind, match=match):
        make(files)


@pytest.mark.parametrize("ending", [".npy", ".parquet", ".arrow"])
def test_a_damaged_file_is_told(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{ending}"
    path.write_bytes(b"neither numbers nor a table")
    with pytest.raises(pv.DataError, match=f"rows{ending} is not a"):
        pv.data.open(path)


def test_pictures_of_a_data_set_become_arrays() -> None:
    class Picture:
        """As PIL has them: no array, but readable as one."""

        def __init__(self, values: np.ndarray) -> None:
            self.__array_interface__ = values.__array_interface__
            self.values = values

    class Pictures(HuggingFace):
        def __getitem__(self, key: int) -> dict[str, Any]:
            return {"x": Picture(np.asarray(self.x[key], dtype=np.float32))}

    fitted = pv.fit(small(), Pictures(rows()), epochs=1, batch_size=50, **HOW)
    assert fitted.settings["num_rows"] == ROWS


@pytest.mark.parametrize("name", ["a", ""])
@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_columns_of_one_name_are_refused(ending: str, name: str, tmp_path: Path) -> None:
    table, path = pa.table([[1, 2], [3, 4]], names=[name, name]), tmp_path / f"t{ending}"
    if ending == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
    with pytest.raises(pv.DataError, match=f"several columns are called '{name}'|duplicate field names"):
        pv.data.open(path)


def test_a_damaged_footer_of_parquet_does_not_end_the_process(tmp_path: Path) -> None:
    """As pyarrow 26 does where it is asked about the statistics of a column whose description is damaged."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1, 2, None, 4], "b": [1, 2, 3, 4]}), path, row_group_size=2)
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), len(whole) - 8):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            for piece in pv.data.open(path).pieces(0):
                assert len(piece)
        except pv.PyrovaeError:
            refused += 1
    assert refused > 20


def test_lists_longer_than_their_file_get_no_memory(tmp_path: Path) -> None:
    """A million places took 140 MiB before the end of the file was found, and others 670."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": [1.0, 2.0], "b": [3.0, 4.0]}), path)
    raw = path.read_bytes()
    start = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    place = raw.index(b"\x19", start + 2) + 1  # of the list of columns, whose length is half of a byte
    footer = raw[start:place] + b"\xfc\xc0\x84\x3d" + raw[place + 1 : -8]
    path.write_bytes(raw[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    for reads in (
        pv.data.open,
        lambda damaged: load_table(damaged, None),
        lambda damaged: list(Table(damaged, 16).blocks()),
    ):
        with pytest.raises(pv.DataError, match="Exceeded size limit"):
            reads(path)


def test_rows_without_values_are_refused(tmp_path: Path) -> None:
    """A trillion of them take no room in a file, and would be read for ever."""
    np.save(tmp_path / "rows.npy", np.zeros((3, 0), np.float32))
    content = (tmp_path / "rows.npy").read_bytes().replace(b"(3, 0), }" + b" " * 12, b"(1000000000000, 0), }")
    assert b"(1000000000000, 0)" in content
    (tmp_path / "rows.npy").write_bytes(content)
    for rows in (tmp_path / "rows.npy", np.zeros((3, 0)), {"x": np.zeros((3, 2)), "c": np.zeros((3, 2, 0))}):
        with pytest.raises(pv.DataError, match="must have values in each row, and has none"):
            pv.data.open(rows)
