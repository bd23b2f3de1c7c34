"""Fits to data that do not fit into memory, beside fits to rows in memory: time a step, and the largest memory of a process.

    python benchmarks/streams.py [--gigabytes 2] [--rows 1000000] [--repeats 3]
    python benchmarks/streams.py --only rows --rows 10000000 [--asked encode,evaluate,outliers,impute]

It writes a .npy file of so many GB (rows of 256 numbers) and a Parquet file of so many rows of 20 columns into a temporary
folder, and removes them in the end.

- Steps: fits to rows in memory, to the file and to an iterator take turns in one process. Milliseconds a step are medians
  over 100-step epochs after the first of each fit, by the clock and by the CPU (of all threads, so also of the one that
  reads). The ratio is that of the sums over CPU seconds, which other processes disturb least.
- A pass: one process fits each file from the first row to the last; its largest resident memory is what the system tells.
  "few" is a fit of as large a step to few rows in memory, with which to compare it.
- Rows: `encode`, `evaluate`, `outliers` and `impute` of another Parquet file, of 8 columns in which one cell of a hundred is
  missing, and of one with a tenth of the rows, each command a process: its largest resident memory, and seconds by the clock
  and of the CPU. Draws come from the guide, 10 a row.

Figures that were measured before stay in benchmarks/results/streams-cpu.json with --only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, COLUMNS, BATCH = 256, 20, 128
FEW_COLUMNS, GAPS = 8, 0.01  # of the table that commands are asked about
PASS_BATCH = 4096  # rows a step of a pass, which is about reading
HOW: dict[str, Any] = {"batch_size": BATCH, "seed": 0, "engine": "traced", "progress": False, "threads": 1}
RESULTS = Path(__file__).parent / "results"


def write_array(path: Path, gigabytes: float) -> int:
    """Not by a memory map, whose pages would count as memory of the processes that this one starts, too."""
    rows = int(gigabytes * 1e9 / (4 * WIDTH))
    block = np.random.default_rng(0).normal(size=(20_000, WIDTH)).astype(np.float32)
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, WIDTH)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, len(block)):
            file.write(block[: rows - start].tobytes())
    return rows


def write_table(path: Path, rows: int, columns: int = COLUMNS, gaps: float = 0.0) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(columns)]
    mixing = rng.normal(size=(4, columns))
    schema = pa.schema([(name, pa.float64()) for name in names])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 100_000):
            size = min(100_000, rows - start)
            x = np.round(rng.normal(size=(size, 4)) @ mixing + 0.3 * rng.normal(size=(size, columns)), 3)
            if gaps:
                x[rng.random(x.shape) < gaps] = np.nan
            writer.write_table(pa.table(dict(zip(names, x.T)), schema=schema))


def pair_for(path: Path) -> Any:
    import torch

    import pyrovae as pv
    import pyrovae.families as fam

    width, hidden = (WIDTH, (128,)) if path.suffix == ".npy" else (COLUMNS, (64,))
    torch.manual_seed(0)
    likelihood, encoder = pv.mlp(8, fam.Normal(width), hidden), pv.mlp(width, fam.Normal(8), hidden)
    return pv.VAE(pv.priors.StandardNormal(8), likelihood, encoder)


def one_pass(path: Path, steps: int) -> dict[str, Any]:
    """A fit to all rows of a file, in this process."""
    import pyrovae as pv

    began = time.perf_counter()
    pv.fit(pair_for(path), pv.data.open(path), steps=steps, **(HOW | {"batch_size": PASS_BATCH}))
    return {"seconds": time.perf_counter() - began}


def few_rows(path: Path) -> dict[str, Any]:
    """A fit to few rows in memory: what a process takes without large data."""
    import torch

    import pyrovae as pv

    torch.manual_seed(0)
    x = torch.randn(2 * PASS_BATCH, WIDTH if path.suffix == ".npy" else COLUMNS)
    pv.fit(pair_for(path), x, epochs=2, **(HOW | {"batch_size": PASS_BATCH}))
    return {}


def turns(path: Path, steps: int, repeats: int) -> dict[str, Any]:
    """Milliseconds a step of fits of several kinds, in turns, in this process."""
    import pyarrow.parquet as pq
    import torch

    import pyrovae as pv

    few = BATCH * 100
    if path.suffix == ".npy":
        head = np.array(np.load(path, mmap_mode="r")[:few])
    else:
        columns = next(pq.ParquetFile(path).iter_batches(few)).columns
        head = np.stack([column.to_numpy() for column in columns], 1).astype(np.float32)

    def batches() -> Iterator[np.ndarray]:
        while True:
            for start in range(0, few, BATCH):
                yield head[start : start + BATCH]

    kinds: dict[str, Any] = {
        "memory": lambda: (torch.from_numpy(head), {"epochs": steps // 100}),
        "file": lambda: (pv.data.open(path), {"steps": steps}),
        "iterator": lambda: (batches, {"steps": steps}),
    }
    spent: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, make in kinds.items():
            data, length = make()
            times: list[tuple[float, float]] = []

            def note(fitted: Any, times: list[tuple[float, float]] = times) -> None:
                times.append((time.perf_counter(), time.process_time()))

            pv.fit(pair_for(path), data, callbacks=[note], **length, **HOW)
            spent[kind] += [(10 * (b[0] - a[0]), 10 * (b[1] - a[1])) for a, b in itertools.pairwise(times)]
    found = {}
    for kind, values in spent.items():
        clock, cpu = zip(*values)
        ratio = sum(cpu) / sum(one for _, one in spent["memory"])
        found[kind] = {"ms": statistics.median(clock), "CPU ms": statistics.median(cpu), "ratio": ratio}
    return found


def measured(*command: str) -> tuple[str, float, float, float]:
    """What a process printed, its largest resident memory in MB, and its seconds by the clock and of the CPU."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, *command], stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
        spent = usage.ru_utime + usage.ru_stime
        return out.read(), usage.ru_maxrss / 1024, time.perf_counter() - began, spent


def commands(folder: Path, rows: int, asked: list[str], keep: Callable[[str, dict[str, Any]], None]) -> None:
    """The commands that ask something of all rows of a table, of a run that was fitted to a few of them."""
    import pyarrow.parquet as pq

    tables = {number: folder / f"rows-{number}.parquet" for number in (rows // 10, rows)}
    for number, table in tables.items():
        write_table(table, number, FEW_COLUMNS, GAPS)
    few, run = folder / "few.csv", folder / "run"
    first = next(pq.ParquetFile(tables[rows]).iter_batches(3000))
    first.to_pandas().to_csv(few, index=False)
    measured("-m", "pyrovae", "fit", str(few), "--out", str(run), "--epochs", "5", "--likelihood", "normal")
    draws = ["--num-samples", "10", "--proposal", "guide"]
    for name in asked:
        for number, table in tables.items():
            to = folder / f"{name}.parquet"
            how = ["--out", str(to), "--threads", "1", *([] if name == "encode" else draws)]
            _, megabytes, seconds, spent = measured("-m", "pyrovae", name, str(run), str(table), *how)
            written = pq.ParquetFile(to).metadata.num_rows
            if written != number:
                raise SystemExit(f"{name} wrote {written} of {number} rows")
            to.unlink()
            figures = {"seconds": round(seconds, 1), "CPU seconds": round(spent, 1), "MB": round(megabytes)}
            keep(f"{name}, {number} rows", figures | {"rows a CPU second": round(number / spent)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", choices=["steps", "pass", "few", "rows"])
    parser.add_argument("--asked", default="encode,evaluate,outliers,impute", help="the commands of --only rows")
    parser.add_argument("--child", choices=["turns", "pass", "few"])
    parser.add_argument("--path", type=Path)
    chosen = parser.parse_args()
    if chosen.child == "turns":
        print(json.dumps(turns(chosen.path, chosen.steps, chosen.repeats)))
        return
    if chosen.child == "few":
        print(json.dumps(few_rows(chosen.path)))
        return
    if chosen.child == "pass":
        print(json.dumps(one_pass(chosen.path, chosen.steps)))
        return
    target = RESULTS / "streams-cpu.json"
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}

    def keep(name: str, figures: dict[str, Any]) -> None:
        found[name] = figures
        target.write_text(json.dumps(found, indent=1) + "\n")
        print(name, figures, flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        array, table = folder / "rows.npy", folder / "rows.parquet"
        totals = {}
        if chosen.only != "rows":
            write_table(table, chosen.rows)
            totals = {table: chosen.rows, array: write_array(array, chosen.gigabytes)}
        for path, total in totals.items():
            if chosen.only in (None, "steps"):
                how = ["--steps", str(chosen.steps), "--repeats", str(chosen.repeats)]
                out, *_ = measured(__file__, "--child", "turns", "--path", str(path), *how)
                keep(f"steps, {path.suffix}", json.loads(out.splitlines()[-1]))
            if chosen.only in (None, "few"):
                _, megabytes, *_ = measured(__file__, "--child", "few", "--path", str(path))
                keep(f"{2 * PASS_BATCH} rows in memory, {path.suffix}", {"MB": round(megabytes)})
            if chosen.only in (None, "pass"):
                steps = str(total // PASS_BATCH)
                out, megabytes, *_ = measured(__file__, "--child", "pass", "--path", str(path), "--steps", steps)
                one = {"rows": total, "file MB": round(path.stat().st_size / 1e6), "MB": round(megabytes)}
                seconds = round(json.loads(out.splitlines()[-1])["seconds"], 1)
                keep(f"pass, {path.suffix}", one | {"seconds": seconds})
        if chosen.only in (None, "rows"):
            commands(folder, chosen.rows, chosen.asked.split(","), keep)


if __name__ == "__main__":
    main()
