"""Damaged and crafted files, handed to everything that reads a file: each must give a result or one `PyrovaeError`.

    python benchmarks/fuzz.py --cases 500
    python benchmarks/fuzz.py --only "csv; npz" --cases 2000 --seed 1
    python benchmarks/fuzz.py --only csv --replay 17

Each case changes a whole file by a seeded draw: bits, pieces, numbers and cells of the text, fields of JSON, members of an
archive. Checksums are made right again, so that what is behind them is reached, too. A child process takes thousands of cases
one after another, with files in memory and a limit of its address space; another one goes on where it dies, hangs or grows.
What goes wrong is tried again in a child of its own. Counted are

    result     the reader returned
    refused    it raised a `PyrovaeError`
    other      it raised anything else, or its process died
    slow       it took more than 10 s of the CPU, or waited for ten minutes
    big        it took more memory than 10 times the file and 512 MiB (the largest resident set, less that before the case)
    ran        it started a process, opened a connection, unpickled a class, or ran code from a file

and only the first two are right. Kept are also the places in pyrovae that refused, the slowest case, the largest memory, and
by how much a child had grown. Counts go to benchmarks/results/fuzz-cpu.json; with --only, those of other readers stay
there.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import pandas as pd
import torch
from crafted import (
    STRANGE,
    bomb,
    crafted_array,
    damaged,
    strange_archive,
    strange_json,
    strange_notes,
    strange_png,
    strange_safetensors,
    strange_table,
)
from fuzz_children import WRONG, Copy, outcomes
from fuzz_corpus import FIT, corpus, rows_of_numbers, small_vae

import pyrovae as pv
from pyrovae.app.decide import decide, refuse_missing
from pyrovae.app.jobs.answers import encode_table
from pyrovae.app.jobs.frames import Table
from pyrovae.app.jobs.impute import fill_in
from pyrovae.app.options import Options
from pyrovae.app.rows import make_rows, split_rows
from pyrovae.app.run import open_run, resume_run
from pyrovae.data.images import load_folder
from pyrovae.data.label_studio import read_export
from pyrovae.data.labels import match_labels, read_labels, refuse_labels
from pyrovae.data.load import read
from pyrovae.fitted.files import FILES, SEAL, digest, key_of, sealed
from pyrovae.pair.arrays import as_tensor
from pyrovae.tables.schema import Schema

# --- readers, each with the files that it reads where nothing is wrong

OPENED: dict[str, Any] = {}  # what is whole and is read before the cases: a run that is asked, rows that get labels


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
        recorded = run / "run.json"
        if name == "run.json":
            changed = change(json.loads(recorded.read_text()), draw)
            if isinstance(changed, dict):
                changed |= {key_of(file): digest((run / file).read_bytes()) for file in FILES if (run / file).exists()}
            with contextlib.suppress(Exception):
                recorded.write_bytes(sealed(changed) if isinstance(changed, dict) else json.dumps(changed).encode())
        else:
            before = (run / name).read_bytes()
            after = change(before, draw)
            (run / name).write_bytes(after)
            above = recorded.read_bytes().replace(digest(before).encode(), digest(after).encode()).rpartition(SEAL)[0]
            recorded.write_bytes(above + SEAL + digest(above).encode() + b'"\n}\n')
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


def questions(fitted: pv.Fit) -> Any:
    """What a run that could be opened is asked."""
    x = torch.zeros(3, 4)
    return pv.encode(fitted, x), pv.generate(fitted, 3)


def resumed(folder: Path) -> pv.Fit:
    return pv.fit(small_vae(), rows_of_numbers(), checkpoint=folder, resume=True, **FIT | {"epochs": 3})


def run_json(key: str) -> Callable[[Any, random.Random], Any]:
    def change(recorded: Any, draw: random.Random) -> Any:
        return recorded | {key: strange_json(recorded[key], draw) if draw.random() < 0.9 else draw.choice(STRANGE)}

    return change


def any_bytes_of_run(folder: Path, draw: random.Random | None) -> tuple[Callable[[], Any], int]:
    path = folder / "run" / "run.json"
    if draw is None:
        return (lambda: pv.load(path.parent)), 0
    content, how = damaged(path.read_bytes(), draw), draw.random()
    above = content.rpartition(SEAL)[0]
    if how < 0.4:  # as of version 0.1, without a checksum of its own
        content = re.sub(rb',\s*"(sha256|history_sha256|checkpoint_sha256)": "[0-9a-f]*"', b"", content)
    elif how < 0.8 and above:
        content = above + SEAL + digest(above).encode() + b'"\n}\n'
    path.write_bytes(content)
    return (lambda: pv.load(path.parent)), len(content)


def columns_file(path: Path) -> Any:
    """What the columns are said to be, and rows as they are encoded by that. The table beside is whole, and is read once."""
    if "table" not in OPENED:
        OPENED["table"] = pd.read_csv(path.parent / "table.csv")
    return Schema.read(path).encode(OPENED["table"])


def labels_table(path: Path) -> Any:
    """The labels of rows that are read once."""
    if "rows" not in OPENED:
        OPENED["rows"] = read(str(path.parent / "rows.csv")).ids
    known = read_export(path) if path.suffix == ".json" else read_labels(path)
    found = match_labels(known, OPENED["rows"], len(OPENED["rows"]), path, from_0=path.suffix == ".json")
    refuse_labels(found)
    return found


def strange_export(content: bytes, draw: random.Random) -> bytes:
    """An export of Label Studio with fields that are something else, or bytes that are damaged."""
    if draw.random() < 0.3:
        return damaged(content, draw)
    changed = strange_json({"tasks": json.loads(content)}, draw)
    return json.dumps(changed["tasks"] if isinstance(changed, dict) and "tasks" in changed else changed).encode()


def strange_array(content: bytes, draw: random.Random) -> bytes:
    return crafted_array(draw) if draw.random() < 0.5 else damaged(content, draw)


def stored_rows(path: Path) -> Any:
    """The rows of a file that is larger than memory, as a fit would read them."""
    stored = pv.data.open(path)
    for piece in stored.all_pieces(range(len(stored.runs))):
        as_tensor("x", piece)


def array_by_blocks(path: Path) -> Any:
    return [block.frame.to_numpy(dtype=float).sum() for block in Table(path, 16).blocks()]


def asked_by_blocks(path: Path) -> Any:
    """What commands that take tables of any size do with one: codes, and a copy of it with its gaps filled."""
    if "run" not in OPENED:
        OPENED["run"] = open_run(path.parent / "run", data=path.parent / "mixed.csv")
    to = path.with_name("codes.csv")
    encode_table(OPENED["run"], path, to, say=len, rows=16)
    whole = path.with_name("whole.csv" if path.suffix == ".csv" else "whole.parquet")
    fill_in(OPENED["run"], path, whole, draws=0, num_samples=5, proposal="guide", rows=16)


READERS: dict[str, Any] = {
    "csv": of_file("table.csv", strange_table, read_rows),
    "csv with text": of_file("mixed.csv", strange_table, read_rows),
    "csv, labelled": of_file("table.csv", strange_table, lambda path: read(str(path), label="3")),
    "npy": of_file("rows.npy", strange_array, read_rows),
    "open, npy": of_file("rows.npy", strange_array, stored_rows),
    "open, parquet": of_file("numbers.parquet", damaged, stored_rows),
    "open, arrow": of_file("numbers.arrow", damaged, stored_rows),
    "blocks, csv": of_file("mixed.csv", strange_table, asked_by_blocks),
    "blocks, parquet": of_file("mixed.parquet", damaged, asked_by_blocks),
    "blocks, arrow": of_file("mixed.arrow", damaged, asked_by_blocks),
    "blocks, npy": of_file("rows.npy", strange_array, array_by_blocks),
    "npz": of_file("rows.npz", strange_archive, read_rows),
    "parquet": of_file("table.parquet", damaged, read_rows),
    "xlsx": of_file("table.xlsx", damaged, read_rows),
    "png": of_file("images png/a.png", strange_png, lambda path: load_folder(path.parent, size=8)),
    "jpeg": of_file("images jpg/b.jpg", damaged, lambda path: load_folder(path.parent)),
    "gif": of_file("images gif/c.gif", damaged, lambda path: load_folder(path.parent, size=8)),
    "tiff": of_file("images tif/d.tif", damaged, lambda path: load_folder(path.parent, size=8)),
    "webp": of_file("images webp/e.webp", damaged, lambda path: load_folder(path.parent, size=8)),
    "bmp": of_file("images bmp/f.bmp", damaged, lambda path: load_folder(path.parent, size=8)),
    "labels": of_file("labels.csv", strange_table, labels_table),
    "label studio": of_file("export.json", strange_export, labels_table),
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
    "weights of a codebook": of_run(
        "weights.safetensors", strange_safetensors, lambda folder: pv.generate(pv.load(folder), 3)
    ),
    "run.json of a codebook": of_run("run.json", run_json("pair"), lambda folder: pv.generate(pv.load(folder), 3)),
    "checkpoint": of_run("checkpoint.safetensors", strange_safetensors, resumed),
    "checkpoint, notes": of_run("checkpoint.safetensors", strange_notes, resumed),
}
BLOCKS = ("blocks, csv", "blocks, parquet", "blocks, arrow")
APP = ("run.json, info", "run.json, to resume", *BLOCKS)  # readers of a run of the command line
CODEBOOK = ("weights of a codebook", "run.json of a codebook")


# --- cases


def fuzz(name: str, files: Path, cases: range, seed: int, seconds: float, loud: bool) -> dict[str, Any]:
    """What came of some cases of a reader, with one example of each kind of what is wrong."""
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    slowest, biggest, left = (0.0, 0), (0, 0), 0
    copy = Copy(files / home_of(name), () if home_of(name) else ("python", "app", "codebook"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        READERS[name](copy.folder, None)[0]()  # what is whole is read, and all is imported
    copy.restore()
    began = time.monotonic()
    for found in outcomes(name, READERS[name], copy, cases, seed, began + seconds):
        counts[found.outcome] += 1
        refused.update([found.kind] if found.outcome == "refused" else [])
        slowest, biggest = max(slowest, (found.seconds, found.number)), max(biggest, (found.memory, found.number))
        left = max(left, found.left)
        if loud:
            print(
                f"{found.number}: {found.outcome}, {found.seconds:.2f} s, {found.memory / 2**20:.0f} MiB: {found.said}"
            )
        if found.outcome in WRONG:
            key = f"{found.outcome}: {found.kind or re.sub(r'[0-9]{3,}', 'N', found.said)[:120]}"
            if key not in wrong:
                wrong[key] = f"seed {seed}, case {found.number}: {found.said}"
                print(f"  {name}, case {found.number}: {found.outcome}: {found.said}", flush=True)
    copy.remove()
    return {
        "cases": sum(counts.values()),
        **{outcome: counts[outcome] for outcome in ("result", "refused", *WRONG)},
        "seconds": round(time.monotonic() - began, 1),
        "slowest": {"seconds": round(slowest[0], 2), "case": slowest[1], "seed": seed},
        "largest": {"MiB": round(biggest[0] / 2**20, 1), "case": biggest[1], "seed": seed},
        "grown_MiB": round(left / 2**20, 1),
        "kinds_of_refused": dict(refused.most_common()),
        "kinds_of_wrong": wrong,
    }


def added(before: dict[str, Any], one: dict[str, Any], seed: int) -> dict[str, Any]:
    """The counts of two runs together."""
    seeds = before.get("seeds", {})
    if isinstance(seeds, list):  # as they were noted when each run was of one seed
        seeds = {str(old): before["cases"] for old in seeds}
    numbers = ("cases", "result", "refused", *WRONG, "seconds")
    kinds = Counter(before.get("kinds_of_refused", {})) + Counter(one["kinds_of_refused"])
    earlier = before.get("kinds_of_wrong") or {}
    most = {
        key: max((part[key] for part in (before, one) if key in part), key=lambda part: part[unit])
        for key, unit in (("slowest", "seconds"), ("largest", "MiB"))
    }
    return {
        **{key: round(before.get(key, 0) + one[key], 1) for key in numbers},
        **most,
        "grown_MiB": max(before.get("grown_MiB", 0), one["grown_MiB"]),
        "kinds_of_refused": dict(kinds.most_common()),
        "kinds_of_wrong": (earlier if isinstance(earlier, dict) else {}) | one["kinds_of_wrong"],
        "seeds": seeds | {str(seed): seeds.get(str(seed), 0) + one["cases"]},
        "date": str(datetime.date.today()),
    }


def home_of(name: str) -> str:
    """The folder of the corpus that a reader's files are in."""
    if name in APP:
        return "app"
    if name in CODEBOOK:
        return "codebook"
    return "python" if name == "run.json" or "check" in name or name in RUNS else ""


RUNS = ("history", "weights", *(name for name in READERS if name.startswith("run.json, ") and name not in APP))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers, with semicolons between them")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop with a reader after so long, whatever --cases says"
    )
    parser.add_argument(
        "--add", action="store_true", help="add to the counts so far: other seeds, or more cases of one"
    )
    parser.add_argument("--corpus", type=Path, help="folder that keeps the whole files, made if it is not there")
    parser.add_argument("--replay", type=int, help="this one case, loudly")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fuzz-cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [name.strip() for name in args.only.split(";") if name.strip()] or list(READERS)
    if unknown := [name for name in chosen if name not in READERS]:
        parser.error(f"--only {unknown[0]}: must be among {'; '.join(READERS)}")
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
            arrow = name in ("parquet", *BLOCKS[1:], "open, parquet", "open, arrow")
            if (arrow and not (files / "table.parquet").exists()) or (
                name == "xlsx" and not (files / "table.xlsx").exists()
            ):
                print(f"{name}: the package that reads such files is not installed")
                continue
            before = table.get(name, {}) if args.add else {}
            done = before.get("seeds", {})
            first = done.get(str(args.seed), 0) if isinstance(done, dict) else 0
            cases = range(first, first + args.cases) if args.replay is None else range(args.replay, args.replay + 1)
            one = fuzz(name, files, cases, args.seed, args.seconds, args.replay is not None)
            print(f"{name}: { {key: value for key, value in one.items() if 'kinds' not in key} }", flush=True)
            if args.replay is None:
                table[name] = added(before, one, args.seed)
                about = {name: version(name) for name in ("torch", "numpy", "pandas", "pillow", "safetensors")}
                args.out.write_text(json.dumps({"versions": about, "readers": table}, indent=1) + "\n")
                args.out.with_suffix(".md").write_text(as_markdown(table))
    sys.exit(any(one[outcome] for one in table.values() for outcome in WRONG))


def as_markdown(table: dict[str, Any]) -> str:
    """The counts as a table."""
    names = ("cases", "result", "refused", *WRONG)
    lines = [f"| what is read | {' | '.join(names)} | kinds of errors | slowest, s | largest, MiB |"]
    lines += ["|---|" + "---:|" * (len(names) + 3)]
    for name, one in table.items():
        more = [len(one["kinds_of_refused"]), one["slowest"]["seconds"], one["largest"]["MiB"]]
        lines.append(f"| {name} | {' | '.join(f'{value:,}' for value in [*(one[key] for key in names), *more])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
