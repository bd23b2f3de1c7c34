"""Damaged and crafted files, handed to everything that reads a file: each must give a result or one `PyrovaeError`.

    python benchmarks/fuzz.py --cases 500
    python benchmarks/fuzz.py --only csv,npz --cases 2000 --seed 1
    python benchmarks/fuzz.py --only csv --replay 17

Each case changes a whole file by a seeded draw: bits, pieces, numbers and cells of the text, fields of JSON, members of an
archive. Checksums are made right again, so that what is behind them is reached, too. A case is run in a child process of its
own, with a limit of its time and of its address space. Counted are

    result     the reader returned
    refused    it raised a `PyrovaeError`
    other      it raised anything else
    slow       it took more than 10 s
    big        it took more memory than 10 times the file and 512 MiB (the largest resident set, less that of an idle child)
    ran        it started a process, opened a connection, unpickled a class, or ran code from a file

and only the first two are right. The counts go to benchmarks/results/fuzz-cpu.json; with --only, those of other readers stay
there.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
import pandas as pd
import torch
from PIL import Image

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.app.decide import decide, refuse_missing
from pyrovae.app.jobs.label.reading import read_job
from pyrovae.app.options import Options
from pyrovae.app.rows import make_rows, split_rows
from pyrovae.app.run import fit_run, open_run, resume_run
from pyrovae.data.images import load_folder
from pyrovae.data.load import read
from pyrovae.fitted.files import FILES, key_of, sealed

SECONDS, TIMES, CONSTANT = (
    10,
    10,
    512 * 2**20,
)  # the limits: of time, and of memory as a multiple of the file and a constant
SPACE = 6 * 2**30  # of addresses that a child may have besides those that it starts with
WRONG = ("other", "slow", "big", "ran")
NUMBERS = (
    b"0",
    b"-1",
    b"1e9",
    b"1000000000000",
    b"9" * 40,
    b"1e999",
    b"-1e-400",
    b"nan",
    b"inf",
    b"0x10",
    b"1_0",
    b"99999999999999999999",
)
CELLS = (
    *(
        "",
        " ",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "9" * 30,
        "-" + "9" * 400,
        "True",
        "False",
        "true",
        "2020-01-01",
        "20:15",
    ),
    *(
        "0001-01-01",
        "31.12.9999",
        "1,5",
        "1.234,5",
        "?",
        "NA",
        "é",
        "\u202e",
        "\x00",
        "\x1b[31m",
        '"',
        '""',
        "'",
        "=1+1",
    ),
    *(
        "x" * 200_000,
        "0" * 5000 + "1",
        "1" * 5000,
        "#",
        ";",
        "\t",
        "[]",
        "{}",
        "None",
        "0b1",
        "1j",
        "\ufeff",
        "\r",
        "-0",
        "1e-320",
    ),
)
STRANGE: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        0.5,
        1,
        10**30,
        10**12,
        10**9,
        200_000,
        1e300,
        1e9,
        float("nan"),
        float("inf"),
        "x",
        "",
    ),
    *([], {}, [1, "x"], {"x": 1}, {"class": 3, "args": 4}, [10**12], [1] * 1000, "\x1b[31m", "../../etc/passwd"),
    *(
        {"same_as": ".pair"},
        {"external": "os.system"},
        {"tensor": [[1], [1, 2]], "dtype": "float32"},
        {"parameter": [10**12], "dtype": "float32"},
    ),
    *(
        {"tuple": [1] * 100},
        {"dict": {}},
        {"type": "torch.nn.modules.activation.ReLU"},
        {"class": "torch.distributions.normal.Normal", "args": {}},
    ),
)


# --- changes


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes with one to six changes of some of their bits, pieces or numbers."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        size = len(changed)
        at, more = draw.randrange(size + 1), draw.randrange(1, 1 + min(64, size + 1))
        kind = draw.randrange(8)
        if kind == 0 and size:
            changed[at % size] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at : at + more] = draw.randbytes(more)
        elif kind == 2:
            del changed[at : at + more]
        elif kind == 3:
            changed[at:at] = changed[at : at + more] * draw.choice((1, 2, 50))
        elif kind == 4:
            del changed[at:]
        elif kind == 5 and size:  # of a field of four or eight bytes
            wide = draw.choice((2, 4, 8))
            number = draw.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 10**12, 255, 65536))
            changed[at : at + wide] = (number % 2 ** (8 * wide)).to_bytes(wide, draw.choice(("little", "big")))
        elif kind == 6:
            numbers = list(re.finditer(rb"[0-9]+(\.[0-9]+)?", bytes(changed[:20_000])))
            if numbers:
                found = draw.choice(numbers)
                changed[found.start() : found.end()] = draw.choice(NUMBERS)
        else:
            other = draw.randrange(size + 1)
            changed[at : at + more] = changed[other : other + more]
    return bytes(changed)


def strange_table(content: bytes, draw: random.Random) -> bytes:
    """A table with some cells that are unlikely, or a column of them."""
    if draw.random() < 0.4:
        return damaged(content, draw)
    lines = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(draw.choice((1, 2, 5))):
        column, kind = draw.randrange(1 + len(lines[0])), draw.randrange(5)
        rows = range(1, len(lines)) if kind == 0 else [draw.randrange(len(lines))]
        cell = draw.choice(CELLS)
        for row in rows:
            if column < len(lines[row]):
                lines[row][column] = cell if kind < 3 else draw.choice(CELLS)
        if kind == 4:
            lines[draw.randrange(len(lines))] *= draw.choice((0, 2, 1000))
    return "\n".join(",".join(line) for line in lines).encode("utf-8", "surrogatepass")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, one in items for inner in places(one, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def strange_json(value: Any, draw: random.Random) -> Any:
    """A JSON value with one or two fields that are something else, are gone, or stand elsewhere."""
    for _ in range(draw.choice((1, 1, 2))):
        path = draw.choice(places(value)[1:])
        new = draw.choice(STRANGE)
        kind = draw.randrange(6)
        if kind == 0:
            here = value
            for key in draw.choice(places(value)[1:]):
                here = here[key]
            new = here
        elif kind == 1:
            for _ in range(draw.choice((3, 100, 600))):
                new = [new] if draw.random() < 0.5 else {"tuple": [new]}
            return put(value, path, new)
        value = put(value, path, new)
    return value


def strange_archive(content: bytes, draw: random.Random) -> bytes:
    """A .npz file with a member that is damaged, crafted, or compressed a thousandfold."""
    if draw.random() < 0.3:
        return damaged(content, draw)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(members))
    kind = draw.randrange(5)
    if kind < 2:
        members[name] = damaged(members[name], draw)
    elif kind == 2:
        members[name] = crafted_array(draw)
    elif kind == 3:
        members[draw.choice(("x.npy", "y.npy", "x_test.npy", "y_test.npy", "../z.npy", "x"))] = crafted_array(draw)
    elif draw.random() < 0.3:
        return bomb()
    else:
        members[name] = header({"descr": "<f4", "fortran_order": False, "shape": (2**18, 2**10)}) + bytes(2**20)
    how = draw.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    with io.BytesIO() as made:
        with zipfile.ZipFile(made, "w", how) as archive:
            for member, inside in members.items():
                archive.writestr(member, inside)
        return made.getvalue()


@functools.cache
def bomb() -> bytes:
    """A small .npz file of half a gigabyte of zeros."""
    with io.BytesIO() as made:
        with (
            zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("x.npy", "w") as member,
        ):
            member.write(header({"descr": "<f4", "fortran_order": False, "shape": (2**17, 2**10)}))
            for _ in range(2**9):
                member.write(bytes(2**20))
        return made.getvalue()


def header(fields: Any) -> bytes:
    text = repr(fields).encode() if not isinstance(fields, bytes) else fields
    return b"\x93NUMPY\x01\x00" + (len(text) % 65536).to_bytes(2, "little") + text[:65535]


def crafted_array(draw: random.Random) -> bytes:
    """A .npy file whose header says something unlikely, or that holds an unlikely dtype."""
    if draw.random() < 0.5:
        shape = draw.choice(
            (
                (10, 3),
                (10,),
                (),
                (0, 3),
                (10**12, 3),
                (10, 10**12),
                (-1, 3),
                (2,) * 40,
                (10, 1, 3, 2),
                (True, 3),
                (1.5, 3),
            )
        )
        dtype = draw.choice(
            (
                "<f4",
                "<f8",
                ">f2",
                "<i8",
                "<u8",
                "|b1",
                "<M8[D]",
                "<m8[s]",
                "|V8",
                "<U5",
                "|S3",
                "|O",
                "<c8",
                "<f16",
                [("a", "<f4"), ("b", "<i4")],
                "x",
                5,
                None,
            )
        )
        fields: Any = {"descr": dtype, "fortran_order": draw.choice((False, True, 1, "x")), "shape": shape}
        if draw.random() < 0.3:
            fields = draw.choice(
                (
                    b"{",
                    b"(" * 200,
                    b"{'descr': '<f4'}",
                    b"\xff" * 30,
                    b"[" * 5000,
                    b"{'descr': '<f4', 'fortran_order': False, 'shape': (9" + b"9" * 5000 + b",)}",
                )
            )
        return header(fields) + draw.randbytes(draw.choice((0, 10, 120, 240, 480)))
    rows = draw.choice((1, 10, 30))
    arrays = (
        np.array(["2020-01-01"] * rows, dtype="M8[D]"),
        np.zeros(rows, dtype=[("a", "f4"), ("b", "i4")]),
        np.zeros(rows, dtype="V8"),
        np.full(rows, np.inf),
        np.array([np.nan, *[2.0**70] * (rows - 1)]),
        np.array(["a", *["\x1b[31m"] * (rows - 1)]),
        np.zeros(rows, dtype="c8"),
        np.full((rows, 3), 2**63, dtype="u8"),
        np.zeros((rows, 3, 2), dtype="f2"),
        np.zeros((rows, 3), dtype=bool),
        np.full((rows, 3), 1e308),
        np.arange(rows, dtype="u8") * 2**60,
        np.array([b"\xff"] * rows),
        np.full((rows, 3), np.longdouble(10) ** 4000),
        np.full(rows, np.datetime64("NaT")),
    )
    with io.BytesIO() as made:
        np.save(made, draw.choice(arrays))
        return made.getvalue()


# --- readers, each with the files that it reads where nothing is wrong


def of_file(name: str, change: Callable[[bytes, random.Random], bytes], reads: Callable[[Path], Any]) -> Any:
    """A case: the named file of a copy of the corpus is changed, and the folder of the copy is read."""

    def case(folder: Path, draw: random.Random | None) -> tuple[Callable[[], Any], int]:
        path = folder / name
        content = path.read_bytes()
        if draw is not None:
            content = change(content, draw)
            path.write_bytes(content)
        return (lambda: reads(path)), len(content)

    return case


def of_run(name: str, change: Callable[[Any, random.Random], Any], reads: Callable[[Path], Any]) -> Any:
    """A case: a file of a run is changed, and the checksums are those of the changed files."""

    def case(folder: Path, draw: random.Random | None) -> tuple[Callable[[], Any], int]:
        run = folder / "run"
        if draw is None:
            return (lambda: reads(run)), 0
        recorded = json.loads((run / "run.json").read_text())
        if name == "run.json":
            recorded = change(recorded, draw)
        else:
            (run / name).write_bytes(change((run / name).read_bytes(), draw))
        if isinstance(recorded, dict):
            recorded |= {
                key_of(file): hashlib.sha256((run / file).read_bytes()).hexdigest()
                for file in FILES
                if (run / file).exists()
            }
        with contextlib.suppress(Exception):
            (run / "run.json").write_bytes(
                sealed(recorded) if isinstance(recorded, dict) else json.dumps(recorded).encode()
            )
        size = sum(file.stat().st_size for file in run.iterdir())
        return (lambda: reads(run)), size

    return case


def read_rows(path: Path) -> Any:
    """The rows of a file as a fit would take them."""
    dataset = read(str(path))
    refuse_missing(dataset)
    options = Options.of("fit")
    split = split_rows(dataset, options)
    return make_rows(dataset, split, decide(options, dataset, len(split.train)))


def strange_safetensors(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file, damaged, or with another header."""
    if draw.random() < 0.4:
        return damaged(content, draw)
    size = int.from_bytes(content[:8], "little")
    changed = strange_json(json.loads(content[8 : 8 + size]), draw)
    if isinstance(changed, dict) and "__metadata__" in changed and draw.random() < 0.3:
        with contextlib.suppress(Exception):
            notes = strange_json(json.loads(changed["__metadata__"]["notes"]), draw)
            changed = put(changed, ("__metadata__", "notes"), json.dumps(notes))
    text = json.dumps(changed).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def strange_notes(content: bytes, draw: random.Random) -> bytes:
    """A checkpoint with other notes, that is otherwise whole."""
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    head["__metadata__"]["notes"] = json.dumps(strange_json(json.loads(head["__metadata__"]["notes"]), draw))
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def questions(fitted: pv.Fit) -> Any:
    """What a run that could be opened is asked."""
    x = torch.zeros(3, 4)
    return pv.encode(fitted, x), pv.generate(fitted, 3)


def resumed(folder: Path) -> pv.Fit:
    return pv.fit(small_vae(), rows_of_numbers(), checkpoint=folder, resume=True, **FIT | {"epochs": 3})


FIT: dict[str, Any] = {"epochs": 2, "batch_size": 20, "seed": 0, "device": "cpu", "progress": False, "engine": "eager"}


def small_vae() -> Any:
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.MixtureOfNormals(2, num_components=3), pv.mlp(2, fam.Normal(4), (8,)), pv.mlp(4, fam.Normal(2), (8,))
    )


def rows_of_numbers() -> torch.Tensor:
    return torch.randn(60, 4, generator=torch.Generator().manual_seed(0))


def run_json(key: str) -> Callable[[Any, random.Random], Any]:
    def change(recorded: Any, draw: random.Random) -> Any:
        return recorded | {key: strange_json(recorded[key], draw) if draw.random() < 0.9 else draw.choice(STRANGE)}

    return change


def any_bytes_of_run(folder: Path, draw: random.Random | None) -> tuple[Callable[[], Any], int]:
    path = folder / "run" / "run.json"
    if draw is None:
        return (lambda: pv.load(path.parent)), 0
    content = damaged(path.read_bytes(), draw)
    if draw.random() < 0.5:  # as of version 0.1, without a checksum of its own
        content = re.sub(rb'"(sha256|history_sha256|checkpoint_sha256)": "[0-9a-f]*",?', b"", content)
    path.write_bytes(content)
    return (lambda: pv.load(path.parent)), len(content)


def columns_file(path: Path) -> Any:
    return read(str(path.parent / "table.csv"), columns=path)


def labels_table(path: Path) -> Any:
    return read_job(str(path.parent / "rows.csv"), path)


READERS: dict[str, Any] = {
    "csv": of_file("table.csv", strange_table, read_rows),
    "csv with text": of_file("mixed.csv", strange_table, read_rows),
    "csv, labelled": of_file("table.csv", strange_table, lambda path: read(str(path), label="3")),
    "npy": of_file(
        "rows.npy",
        lambda content, draw: crafted_array(draw) if draw.random() < 0.5 else damaged(content, draw),
        read_rows,
    ),
    "npz": of_file("rows.npz", strange_archive, read_rows),
    "parquet": of_file("table.parquet", damaged, read_rows),
    "xlsx": of_file("table.xlsx", damaged, read_rows),
    "png": of_file("images/a.png", damaged, lambda path: load_folder(path.parent, size=8)),
    "jpeg": of_file("images/b.jpg", damaged, lambda path: load_folder(path.parent)),
    "gif": of_file("images/c.gif", damaged, lambda path: load_folder(path.parent, size=8)),
    "tiff": of_file("images/d.tif", damaged, lambda path: load_folder(path.parent, size=8)),
    "webp": of_file("images/e.webp", damaged, lambda path: load_folder(path.parent, size=8)),
    "bmp": of_file("images/f.bmp", damaged, lambda path: load_folder(path.parent, size=8)),
    "labels": of_file("labels.csv", strange_table, labels_table),
    "columns.yaml": of_file("columns.yaml", strange_table, columns_file),
    "run.json": any_bytes_of_run,
    "run.json, pair": of_run("run.json", run_json("pair"), lambda folder: questions(pv.load(folder))),
    "run.json, layout": of_run("run.json", run_json("layout"), lambda folder: questions(pv.load(folder))),
    "run.json, anything": of_run("run.json", strange_json, lambda folder: questions(pv.load(folder))),
    "run.json, info": of_run(
        "run.json", run_json("info"), lambda folder: open_run(folder, data=folder.parent / "mixed.csv")
    ),
    "run.json, to resume": of_run(
        "run.json",
        run_json("info"),
        lambda folder: resume_run(folder, data=folder.parent / "mixed.csv", progress=False),
    ),
    "history": of_run("history.csv", strange_table, pv.load),
    "weights": of_run("weights.safetensors", strange_safetensors, pv.load),
    "checkpoint": of_run("checkpoint.safetensors", strange_safetensors, resumed),
    "checkpoint, notes": of_run("checkpoint.safetensors", strange_notes, resumed),
}
APP = ("run.json, info", "run.json, to resume")  # readers of a run of the command line


def corpus(folder: Path) -> None:
    """The whole files."""
    draw = np.random.default_rng(0)
    table = pd.DataFrame(draw.normal(size=(40, 4)).round(3))
    table[3] = draw.integers(0, 3, 40)
    table.to_csv(folder / "table.csv", index=False)
    mixed = table.rename(columns=str).assign(
        day=pd.date_range("2020-01-01", periods=40).astype(str), city=["Oslo", "Rome"] * 20
    )
    mixed["sure"] = [True, False, None, True] * 10
    mixed.to_csv(folder / "mixed.csv", index=False)
    with contextlib.suppress(ImportError):
        mixed.to_parquet(folder / "table.parquet")
    with contextlib.suppress(ImportError):
        mixed.to_excel(folder / "table.xlsx", index=False)
    np.save(folder / "rows.npy", draw.normal(size=(30, 3)).astype("f4"))
    np.savez(folder / "rows.npz", x=draw.integers(0, 9, (30, 3)), y=draw.integers(0, 2, 30))
    (folder / "images").mkdir()
    for name in ("a.png", "b.jpg", "c.gif", "d.tif", "e.webp", "f.bmp"):
        Image.fromarray(draw.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(folder / "images" / name)
    (folder / "rows.csv").write_text("id,a,b\n" + "".join(f"r{n},{n % 7},{n * 0.37:.2f}\n" for n in range(30)))
    (folder / "labels.csv").write_text("id,label\n" + "".join(f"r{n},{'ab'[n % 2]}\n" for n in range(12)))
    pv.tables.infer(pd.read_csv(folder / "table.csv")).write(folder / "columns.yaml")
    (folder / "python").mkdir()
    pv.fit(small_vae(), rows_of_numbers(), checkpoint=folder / "python" / "run", **FIT)
    (folder / "app").mkdir()
    shutil.copy(folder / "mixed.csv", folder / "app" / "mixed.csv")
    options = Options.of("fit", epochs=2, hidden=(8,), latent=2, search="none")
    fit_run(
        read(str(folder / "app" / "mixed.csv"), label="city"),
        options,
        folder / "app" / "run",
        progress=False,
        engine="eager",
    )


# --- children


def in_child(work: Callable[[], tuple[Callable[[], Any], int]], report: Path) -> tuple[str, str]:
    """What comes of a case in a child process: one of the outcomes, and where it came from."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = _case(work, report)
        except BaseException:
            report.write_text("0\n" + traceback.format_exc())
        finally:
            os._exit(code)
    began = time.monotonic()
    while True:
        found, status, used = os.wait4(child, os.WNOHANG)
        if found:
            break
        if time.monotonic() - began > SECONDS + 5:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return "slow", "killed"
        time.sleep(0.002)
    size, _, said = report.read_text(errors="replace").partition("\n") if report.exists() else ("0", "", "")
    code = os.waitstatus_to_exitcode(status)
    memory = used.ru_maxrss * 1024
    if code not in (0, 1, 3):
        return "other", said or f"exit code {code}"
    if code == 3:
        return "ran", said
    if time.monotonic() - began > SECONDS:
        return "slow", said
    if memory - IDLE["memory"] > TIMES * int(size) + CONSTANT:
        return "big", f"{(memory - IDLE['memory']) / 2**20:.0f} MiB: {said}"
    return ("result", "") if code == 0 else ("refused", said)


IDLE = {"memory": 0}  # the resident set of a child that reads nothing


def _case(work: Callable[[], tuple[Callable[[], Any], int]], report: Path) -> int:
    reads, size = work()
    report.write_text(f"{size}\n")
    ran: list[str] = []

    def watch(event: str, arguments: Any) -> None:
        if event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "socket.connect",
            "pickle.find_class",
            "marshal.loads",
        ):
            if not (event == "marshal.loads"):
                ran.append(f"{event} {str(arguments)[:100]}")
        elif event == "exec" and "fuzzing" in str(getattr(arguments[0], "co_filename", "")):
            ran.append(f"{event} {arguments[0]}")

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + SPACE, now + SPACE))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.addaudithook(watch)
    code, said = 0, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reads()
    except pv.PyrovaeError as error:
        code, said = 1, f"{type(error).__name__}: {error}"
        if "\x1b" in said or len(said) > 5_000:
            code, said = 2, f"a message of {len(said)} characters: {said[:200]!r}"
    except BaseException as error:
        code = 2
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/pyrovae/" in frame.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        said = f"{type(error).__name__} at {where}: {str(error)[:200]}"
    if ran:
        code, said = 3, ran[0]
    report.write_text(f"{size}\n{said}")
    return code


def fuzz(name: str, files: Path, cases: range, seed: int, loud: bool) -> dict[str, Any]:
    """The outcomes of some cases of a reader, and one example of each kind of what is wrong."""
    counts: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    began = time.monotonic()
    home = files / (
        "app"
        if name in APP
        else "python"
        if READERS[name] is any_bytes_of_run or "check" in name or name in RUNS
        else ""
    )
    with tempfile.TemporaryDirectory(prefix="fuzzing") as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        READERS[name](copied(files, home, Path(temporary) / "files"), None)[
            0
        ]()  # what is whole is read, and all is imported
    IDLE["memory"] = idle_memory()
    for number in cases:
        with tempfile.TemporaryDirectory(prefix="fuzzing") as temporary:
            folder = copied(files, home, Path(temporary) / "files")
            draw = random.Random(f"{name} {seed} {number}")
            outcome, said = in_child(lambda: READERS[name](folder, draw), Path(temporary) / "report")
        counts[outcome] += 1
        if loud:
            print(f"{number}: {outcome}: {said}")
        if outcome in WRONG:
            key = f"{outcome}: {re.sub(r'[0-9]{3,}', 'N', said.partition(chr(10))[0])[:120]}"
            if key not in wrong:
                wrong[key] = f"case {number}: {said[:300]}"
                print(f"  {name}, case {number}: {outcome}: {said[-600:]}", flush=True)
    return {
        "cases": len(cases),
        **{outcome: counts[outcome] for outcome in ("result", "refused", *WRONG)},
        "kinds_of_wrong": len(wrong),
        "seconds": round(time.monotonic() - began, 1),
    }


def copied(files: Path, home: Path, folder: Path) -> Path:
    """A copy of the files that a case may change."""
    return Path(
        shutil.copytree(home, folder, ignore=shutil.ignore_patterns("python", "app") if home == files else None)
    )


RUNS = tuple(name for name in READERS if name.startswith("run.json, ") and name not in APP) + ("history", "weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers, with semicolons between them")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop with the reader under way after so long"
    )
    parser.add_argument("--corpus", type=Path, help="folder that keeps the whole files, made if it is not there")
    parser.add_argument("--replay", type=int, help="this one case, loudly")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fuzz-cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [name.strip() for name in args.only.split(";") if name.strip()] or list(READERS)
    cases = range(args.cases) if args.replay is None else range(args.replay, args.replay + 1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzzing") as temporary:
        files = args.corpus or Path(temporary) / "corpus"
        if not files.is_dir():
            files.mkdir()
            corpus(files)
        found = json.loads(args.out.read_text()) if args.out.exists() else {}
        table: dict[str, Any] = found.get("readers", {})
        for name in chosen:
            if name == "npz":
                bomb()
            if (name == "parquet" and not (files / "table.parquet").exists()) or (
                name == "xlsx" and not (files / "table.xlsx").exists()
            ):
                print(f"{name}: the package that reads such files is not installed")
                continue
            if time.monotonic() - began > args.seconds:
                print("out of time before", name)
                break
            one = fuzz(name, files, cases, args.seed, args.replay is not None)
            print(f"{name}: {one}", flush=True)
            table[name] = one | {"seed": args.seed, "date": str(datetime.date.today())}
    if args.replay is None:
        about = {name: version(name) for name in ("torch", "numpy", "pandas", "pillow", "safetensors")}
        args.out.write_text(json.dumps({"versions": about, "readers": table}, indent=1) + "\n")
    sys.exit(any(one[outcome] for one in table.values() for outcome in WRONG))


def idle_memory() -> int:
    """The largest resident set of a child that reads nothing, in bytes."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    return int(os.wait4(child, 0)[2].ru_maxrss) * 1024


if __name__ == "__main__":
    main()
