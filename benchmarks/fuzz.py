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
    slow       it took more than 10 s of the CPU, or did not end within a minute
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
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
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
    strange_safetensors,
    strange_table,
)
from PIL import Image

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.app.decide import decide, refuse_missing
from pyrovae.app.jobs.answers import encode_table
from pyrovae.app.jobs.frames import Table
from pyrovae.app.jobs.impute import fill_in
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
RUNNING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")


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


def small_vqvae() -> Any:
    codes = pv.nets.FSQ((5, 3), grid=2)
    return pv.VQVAE(
        prior=pv.priors.Categorical(codes.num_codes, event_shape=codes.index_shape),
        likelihood=pv.Conditional(pv.nets.Behind(pv.nets.Flat((2, 2)), pv.nets.MLP(4, (1, 4))), fam.Bernoulli(4)),
        encoder=pv.nets.MLP(4, (codes.width, *codes.grid)),
        codes=codes,
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
        torch.as_tensor(np.array(piece), dtype=torch.float32)


def array_by_blocks(path: Path) -> Any:
    return [block.frame.to_numpy(dtype=float).sum() for block in Table(path, 16).blocks()]


OPENED: dict[str, Any] = {}  # the run that is asked about tables, opened before the cases


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
    "png": of_file("images/a.png", damaged, lambda path: load_folder(path.parent, size=8)),
    "jpeg": of_file("images/b.jpg", damaged, lambda path: load_folder(path.parent)),
    "gif": of_file("images/c.gif", damaged, lambda path: load_folder(path.parent, size=8)),
    "tiff": of_file("images/d.tif", damaged, lambda path: load_folder(path.parent, size=8)),
    "webp": of_file("images/e.webp", damaged, lambda path: load_folder(path.parent, size=8)),
    "bmp": of_file("images/f.bmp", damaged, lambda path: load_folder(path.parent, size=8)),
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
        numbers = table.rename(columns=str)
        numbers.to_parquet(folder / "numbers.parquet", row_group_size=15)
        numbers.to_feather(folder / "numbers.arrow")
    with contextlib.suppress(ImportError):
        mixed.to_excel(folder / "table.xlsx", index=False)
    np.save(folder / "rows.npy", draw.normal(size=(30, 3)).astype("f4"))
    np.savez(folder / "rows.npz", x=draw.integers(0, 9, (30, 3)), y=draw.integers(0, 2, 30))
    (folder / "images").mkdir()
    for name in ("a.png", "b.jpg", "c.gif", "d.tif", "e.webp", "f.bmp"):
        Image.fromarray(draw.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(folder / "images" / name)
    (folder / "rows.csv").write_text("id,a,b\n" + "".join(f"r{n},{n % 7},{n * 0.37:.2f}\n" for n in range(30)))
    (folder / "labels.csv").write_text("id,label\n" + "".join(f"r{n},{'ab'[n % 2]}\n" for n in range(12)))
    choices = [{"type": "choices", "from_name": "label", "value": {"choices": [name]}} for name in "ab"]
    tasks = [
        {"id": n, "data": {"pyrovae_row": f"r{n}"}, "annotations": [{"result": [choices[n % 2]]}]} for n in range(12)
    ]
    (folder / "export.json").write_text(json.dumps(tasks))
    pv.tables.infer(pd.read_csv(folder / "table.csv")).write(folder / "columns.yaml")
    (folder / "python").mkdir()
    pv.fit(small_vae(), rows_of_numbers(), checkpoint=folder / "python" / "run", **FIT)
    (folder / "codebook").mkdir()
    pv.fit(small_vqvae(), (rows_of_numbers() > 0).float(), checkpoint=folder / "codebook" / "run", **FIT)
    (folder / "app").mkdir()
    with contextlib.suppress(ImportError):
        mixed.to_parquet(folder / "app" / "mixed.parquet", row_group_size=15)
        mixed.to_feather(folder / "app" / "mixed.arrow")
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
        if time.monotonic() - began > 6 * SECONDS:  # other processes may be at work, too
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
    if used.ru_utime + used.ru_stime > SECONDS:
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
        if event in RUNNING:
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


def fuzz(name: str, files: Path, cases: range, seed: int, seconds: float, loud: bool) -> dict[str, Any]:
    """The outcomes of some cases of a reader, and one example of each kind of what is wrong."""
    counts: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    began = time.monotonic()
    home = files / (
        "app"
        if name in APP
        else "codebook"
        if name in CODEBOOK
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
    began = time.monotonic()
    for number in cases:
        if time.monotonic() - began > seconds:
            break
        with tempfile.TemporaryDirectory(prefix="fuzzing") as temporary:
            folder = copied(files, home, Path(temporary) / "files")
            draw = random.Random(f"{name} {seed} {number}")
            outcome, said = in_child(functools.partial(READERS[name], folder, draw), Path(temporary) / "report")
        counts[outcome] += 1
        if loud:
            print(f"{number}: {outcome}: {said}")
        if outcome in WRONG:
            key = f"{outcome}: {re.sub(r'[0-9]{3,}', 'N', said.partition(chr(10))[0])[:120]}"
            if key not in wrong:
                wrong[key] = f"case {number}: {said[:300]}"
                print(f"  {name}, case {number}: {outcome}: {said[-600:]}", flush=True)
    return {
        "cases": sum(counts.values()),
        **{outcome: counts[outcome] for outcome in ("result", "refused", *WRONG)},
        "kinds_of_wrong": len(wrong),
        "seconds": round(time.monotonic() - began, 1),
    }


def copied(files: Path, home: Path, folder: Path) -> Path:
    """A copy of the files that a case may change."""
    return Path(
        shutil.copytree(
            home, folder, ignore=shutil.ignore_patterns("python", "app", "codebook") if home == files else None
        )
    )


RUNS = ("history", "weights", *(name for name in READERS if name.startswith("run.json, ") and name not in APP))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers, with semicolons between them")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop with a reader after so long, whatever --cases says"
    )
    parser.add_argument("--add", action="store_true", help="add the counts to those of earlier seeds")
    parser.add_argument("--corpus", type=Path, help="folder that keeps the whole files, made if it is not there")
    parser.add_argument("--replay", type=int, help="this one case, loudly")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fuzz-cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [name.strip() for name in args.only.split(";") if name.strip()] or list(READERS)
    cases = range(args.cases) if args.replay is None else range(args.replay, args.replay + 1)
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
            one = fuzz(name, files, cases, args.seed, args.seconds, args.replay is not None)
            print(f"{name}: {one}", flush=True)
            before = table.get(name, {}) if args.add else {}
            seeds = sorted({*before.get("seeds", ()), args.seed})
            added = {key: round(value + before.get(key, 0), 1) for key, value in one.items()}
            table[name] = added | {"seeds": seeds, "date": str(datetime.date.today())}
    if args.replay is None:
        args.out.with_suffix(".md").write_text(as_markdown(table))
        about = {name: version(name) for name in ("torch", "numpy", "pandas", "pillow", "safetensors")}
        args.out.write_text(json.dumps({"versions": about, "readers": table}, indent=1) + "\n")
    sys.exit(any(one[outcome] for one in table.values() for outcome in WRONG))


def as_markdown(table: dict[str, Any]) -> str:
    """The counts as a table."""
    names = ("cases", "result", "refused", *WRONG)
    lines = [f"| what is read | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    lines += [f"| {name} | {' | '.join(str(one[key]) for key in names)} |" for name, one in table.items()]
    return "\n".join(lines) + "\n"


def idle_memory() -> int:
    """The largest resident set of a child that reads nothing, in bytes."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    return int(os.wait4(child, 0)[2].ru_maxrss) * 1024


if __name__ == "__main__":
    main()
