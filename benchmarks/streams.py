"""Fits to data that do not fit into memory, beside fits to rows in memory: time a step, and the largest memory of a process.

    python benchmarks/streams.py [--gigabytes 2] [--rows 1000000] [--repeats 3]

It writes a .npy file of so many GB (rows of 256 numbers) and a Parquet file of so many rows of 20 columns into a temporary folder, and
removes them in the end. Each fit is a process of its own, whose largest resident memory the system tells. Time a step is the median
over 100-step epochs after the first two, of fits that take turns; the number beside it is the ratio to rows in memory. What a run of
the commands on the Parquet file takes is measured in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, COLUMNS, BATCH = 256, 20, 128
RESULTS = Path(__file__).parent / "results"


def write_array(path: Path, gigabytes: float) -> int:
    rows = int(gigabytes * 1e9 / (4 * WIDTH))
    made = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, WIDTH))
    block = np.random.default_rng(0).normal(size=(20_000, WIDTH)).astype(np.float32)
    for start in range(0, rows, len(block)):
        part = made[start : start + len(block)]
        part[:] = block[: len(part)]
    made.flush()
    return rows


def write_table(path: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(COLUMNS)]
    mixing = rng.normal(size=(4, COLUMNS))
    schema = pa.schema([(name, pa.float64()) for name in names])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 100_000):
            size = min(100_000, rows - start)
            x = np.round(rng.normal(size=(size, 4)) @ mixing + 0.3 * rng.normal(size=(size, COLUMNS)), 3)
            writer.write_table(pa.table(dict(zip(names, x.T)), schema=schema))


def child(kind: str, path: Path, steps: int) -> dict[str, Any]:
    """One fit, in this process: what it measured."""
    import torch

    import pyrovae as pv
    import pyrovae.families as fam

    width = WIDTH if path.suffix == ".npy" else COLUMNS
    torch.manual_seed(0)
    hidden = (128,) if width == WIDTH else (64,)
    pair = pv.VAE(
        pv.priors.StandardNormal(8), pv.mlp(8, fam.Normal(width), hidden), pv.mlp(width, fam.Normal(8), hidden)
    )
    few = BATCH * 100
    if path.suffix == ".npy":
        head = np.array(np.load(path, mmap_mode="r")[:few])
    else:
        import pyarrow.parquet as pq

        batch = next(pq.ParquetFile(path).iter_batches(few))
        head = np.stack([column.to_numpy() for column in batch.columns], 1).astype(np.float32)
    how: dict[str, Any] = {"batch_size": BATCH, "seed": 0, "engine": "traced", "progress": False, "threads": 1}

    def batches() -> Iterator[np.ndarray]:
        while True:
            for start in range(0, few, BATCH):
                yield head[start : start + BATCH]

    began = time.perf_counter()
    if kind == "memory":
        fitted = pv.fit(pair, torch.from_numpy(head), epochs=steps // 100, **how)
    elif kind == "iterator":
        fitted = pv.fit(pair, batches, steps=steps, **how)
    else:
        del head
        fitted = pv.fit(pair, pv.data.open(path), steps=steps, **how)
    seconds = [row["seconds"] for row in fitted.history]
    spent = [1e3 * (b - a) / 100 for a, b in zip(seconds[1:], seconds[2:])]
    return {"ms": spent, "seconds": time.perf_counter() - began, "steps": fitted.history[-1]["steps"]}


def measured(*command: str) -> tuple[str, float, float]:
    """What a process printed, its largest resident memory in MB, and its seconds."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, *command], stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
        return out.read(), usage.ru_maxrss / 1024, time.perf_counter() - began


def fits(path: Path, kinds: list[str], steps: int, repeats: int) -> dict[str, Any]:
    """The fits of several kinds in turns."""
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory: dict[str, float] = {}
    for _ in range(repeats):
        for kind in kinds:
            out, megabytes, _ = measured(__file__, "--child", kind, "--path", str(path), "--steps", str(steps))
            times[kind] += json.loads(out.splitlines()[-1])["ms"]
            memory[kind] = max(memory.get(kind, 0.0), megabytes)
    found = {kind: {"ms": statistics.median(times[kind]), "MB": round(memory[kind])} for kind in kinds}
    for kind in kinds:
        found[kind]["ratio"] = round(found[kind]["ms"] / found["memory"]["ms"], 3)
        print(path.suffix, kind, found[kind], flush=True)
    return found


def commands(table: Path, folder: Path, rows: int) -> dict[str, Any]:
    """The commands that ask something of all rows of the table, of a run that was fitted to a few of them."""
    import pyarrow.parquet as pq

    few = folder / "few.csv"
    pq.ParquetFile(table).read_row_group(0).slice(0, 3000).to_pandas().to_csv(few, index=False)
    run = folder / "run"
    measured("-m", "pyrovae", "fit", str(few), "--out", str(run), "--epochs", "5", "--likelihood", "normal")
    found = {}
    for name, more in {"encode": [], "evaluate": ["--num-samples", "50", "--proposal", "guide"]}.items():
        to = folder / f"{name}.parquet"
        _, megabytes, seconds = measured("-m", "pyrovae", name, str(run), str(table), "--out", str(to), *more)
        written = pq.ParquetFile(to).metadata.num_rows
        if written != rows:
            raise SystemExit(f"{name} wrote {written} of {rows} rows")
        found[name] = {"rows": rows, "seconds": round(seconds, 1), "MB": round(megabytes)}
        print(name, found[name], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", choices=["fits", "pass", "commands"])
    parser.add_argument("--child")
    parser.add_argument("--path", type=Path)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(child(chosen.child, chosen.path, chosen.steps)))
        return
    target = RESULTS / "streams-cpu.json"
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        array, table = folder / "rows.npy", folder / "rows.parquet"
        write_table(table, chosen.rows)
        if chosen.only != "commands":
            rows = write_array(array, chosen.gigabytes)
        if chosen.only in (None, "fits"):
            kinds = ["memory", "stored", "iterator"]
            found["npy"] = fits(array, kinds, chosen.steps, chosen.repeats)
            found["parquet"] = fits(table, kinds, chosen.steps, chosen.repeats)
        if chosen.only in (None, "pass"):
            for path, total in ((array, rows), (table, chosen.rows)):
                steps = str(total // BATCH)
                out, megabytes, _ = measured(__file__, "--child", "stored", "--path", str(path), "--steps", steps)
                size = path.stat().st_size / 1e6
                seconds = json.loads(out.splitlines()[-1])["seconds"]
                one = {"rows": total, "file MB": round(size), "MB": round(megabytes), "seconds": round(seconds, 1)}
                found[f"a pass over {path.name}"] = one
                print(path.name, one, flush=True)
        if chosen.only in (None, "commands"):
            found["commands"] = commands(table, folder, chosen.rows)
    target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
