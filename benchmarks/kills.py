"""Commands that are killed at random moments (SIGKILL), and given again: do they end with the files of one that was not?

    python benchmarks/kills.py [--only fit,sweep,label,encode,evaluate,outliers,impute] [--kills 50] [--seed 0]

Each repetition starts a command in a process of its own, kills it at a moment drawn uniformly from the time that it takes
undisturbed, and gives it again: `fit` by --resume where there is a state to go on from, the others as they were. Every second
repetition kills the second attempt as well. The state of a fit is written after each epoch (--checkpoint-every 0), so that many
kills come in the middle of that. Processes are forked from one that has imported everything, so that no kill is spent on
imports, which leave nothing behind.

Compared, bit for bit: weights, history and results of runs (without their times), and the tables that were written. After each
kill, a table of results must be absent or whole, and a run that has been written must open. Counted are kills that came before
the end, those that left a file half written (which must be one that nobody reads), repetitions that ended as they should, and
the epochs that were taken again. Tables are read in blocks of 40 rows, so that there are six. Figures go to
benchmarks/results/kills-cpu.json.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
import torch
from safetensors.torch import load_file

from pyrovae.app import cli
from pyrovae.app.jobs import blocks

RESULTS = Path(__file__).parent / "results" / "kills-cpu.json"
TIMES = ("seconds", "fit_seconds")  # what two equal fits differ in
TABLES = ("encode", "evaluate", "outliers", "impute")  # commands that read a table and write one
COMMON = ("--threads", "1", "--engine", "traced")
SMALL = ("--hidden", "32", "--num-samples", "20", "--checkpoint-every", "0", *COMMON)


class Job:
    """A command in a folder of its own: how it is given, given again, and what it leaves."""

    def __init__(self, name: str, data: Path) -> None:
        self.name, self.data = name, data

    def command(self, home: Path, again: bool) -> Sequence[str]:
        run = home / "run"
        if self.name == "fit":
            if again and (run / "checkpoint.safetensors").exists():
                return ("fit", "--resume", str(run))
            return ("fit", "digits", "--epochs", "40", *SMALL, "--out", str(run))
        if self.name == "sweep":
            return ("sweep", "digits", "--prior", "normal,mixture", "--epochs", "20", *SMALL, "--out", str(run))
        if self.name == "label":
            how = ("--steps", "150", "--hidden", "32", "--holdout", "0", *COMMON)
            return (
                "label",
                str(self.data / "rows.csv"),
                "--labels",
                str(self.data / "labels.csv"),
                "--run",
                str(run),
                *how,
            )
        how = {
            "encode": (),
            "evaluate": ("--num-samples", "100"),
            "outliers": ("--num-samples", "100", "--proposal", "guide"),
            "impute": ("--draws", "10", "--num-samples", "100"),
        }[self.name]
        asked = (self.name, str(self.data / "run"), str(self.data / "rows.csv"), "--out", str(home / "table.csv"))
        return (*asked, "--threads", "1", *how)

    def left(self, home: Path) -> dict[str, Any]:
        """What is to be the same, by file."""
        found: dict[str, Any] = {}
        for path in sorted(home.rglob("*")):
            if path.name == "run.json":
                run = json.loads(path.read_text())
                results = run["info"].get("results", {})
                found[str(path.relative_to(home))] = {
                    "status": run["status"],
                    "results": {key: value for key, value in results.items() if key not in TIMES},
                }
            elif path.name == "history.csv":
                with path.open() as file:
                    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
                found[str(path.relative_to(home))] = rows
            elif path.name == "weights.safetensors":
                tensors = load_file(path)
                found[str(path.relative_to(home))] = {k: digest(v.numpy().tobytes()) for k, v in tensors.items()}
            elif path.suffix == ".csv" and path.name != "runs.csv":
                found[str(path.relative_to(home))] = digest(path.read_bytes())
        return found

    def tables(self, home: Path) -> list[Path]:
        return [path for path in (home / "table.csv", home / "run" / "labels.csv") if path.exists()]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def start(command: Sequence[str], log: Path) -> int:
    """Run a command in a forked process, and return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = ["pyrovae", *command]
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)
    raise AssertionError


def wait(child: int, seconds: float | None = None) -> int | None:
    """The exit code of a process, None if it is still there after some seconds."""
    until = time.monotonic() + (seconds if seconds is not None else 600)
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def epochs_of(home: Path) -> int:
    """Epochs in the state of a run that is under way."""
    path = home / "run" / "history.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def repetition(
    job: Job, home: Path, whole: dict[str, Any], takes: float, rng: random.Random, twice: bool
) -> dict[str, Any]:
    """One command killed, given again and compared."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    log = home.parent / "log.txt"
    log.write_text("")
    found: dict[str, Any] = {"kills": 0, "early": 0, "half_files": 0, "wrong": []}
    for again in range(2 if twice else 1):
        child = start(job.command(home, bool(again)), log)
        ended = wait(child, rng.uniform(0, takes))
        if ended is not None:
            found["early"] += 1
            break
        os.killpg(child, signal.SIGKILL) if os.getpgid(child) == child else os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found["kills"] += 1
        found["half_files"] += sum(1 for path in home.rglob(".*.new") if path.is_file())
        for table in job.tables(home):
            if digest(table.read_bytes()) != whole.get(str(table.relative_to(home))):
                found["wrong"].append(f"{table.name} is there, and not whole")
    if job.name in TABLES and job.tables(home) and not found["wrong"]:  # its table is whole, and would not be replaced
        return found
    ended = wait(start(job.command(home, True), log))
    if ended != 0:
        found["wrong"].append(f"given again, it ended with {ended}: {log.read_text()[-500:]}")
    else:
        left = job.left(home)
        found["wrong"] += [
            f"{name} differs" for name in sorted(left.keys() | whole.keys()) if left.get(name) != whole.get(name)
        ]
    return found


def prepare(data: Path) -> None:
    """A table with gaps, labels of some of its rows, and a run that was fitted to it."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 240)
    rows = rng.normal(size=(240, 5)) + 2 * np.eye(5)[kind]
    rows[rng.random(rows.shape) < 0.1] = np.nan
    with (data / "rows.csv").open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["id", *"abcde"])
        write.writerows([[f"r{i}", *("" if np.isnan(v) else f"{v:.4f}" for v in row)] for i, row in enumerate(rows)])
    with (data / "labels.csv").open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["id", "label"])
        write.writerows([[f"r{i}", "xyz"[kind[i]]] for i in range(0, 240, 6)])
    command = ("fit", str(data / "rows.csv"), "--epochs", "20", *SMALL, "--search", "none", "--out", str(data / "run"))
    if wait(start(command, data / "log.txt")) != 0:
        raise SystemExit((data / "log.txt").read_text())


def measure(job: Job, home: Path, kills: int, seed: int) -> dict[str, Any]:
    took = []
    wholes = []
    for _ in range(2):  # twice, since what differs between two undisturbed commands cannot be compared
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        began = time.monotonic()
        ended = wait(start(job.command(home, False), home.parent / "log.txt"))
        took.append(time.monotonic() - began)
        if ended != 0:
            raise SystemExit((home.parent / "log.txt").read_text())
        wholes.append(job.left(home))
    assert wholes[0] == wholes[1], "two undisturbed commands differ"
    rng = random.Random(f"{job.name} {seed}")
    done = []
    for number in range(kills):
        done.append(repetition(job, home, wholes[0], min(took), rng, bool(number % 2)))
        if done[-1]["wrong"]:
            print(job.name, number, done[-1]["wrong"], flush=True)
    return {
        "repetitions": kills,
        "right": sum(not one["wrong"] for one in done),
        "kills": sum(one["kills"] for one in done),
        "ended_before_the_kill": sum(one["early"] for one in done),
        "kills_that_left_half_a_file": sum(one["half_files"] > 0 for one in done),
        "seconds_undisturbed": round(min(took), 2),
        "files_compared": len(wholes[0]),
        "wrong": [what for one in done for what in one["wrong"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="fit,sweep,label,encode,evaluate,outliers,impute")
    parser.add_argument("--kills", type=int, default=50, help="repetitions of each command")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    blocks.MOST_ROWS = 40
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        prepare(data)
        for name in given.only.split(","):
            job = Job(name, data)
            found = measure(job, Path(folder) / name / "home", given.kills, given.seed)
            print(name, {key: value for key, value in found.items() if key != "wrong"}, flush=True)
            kept |= {name: found, "torch": str(torch.__version__)}
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
