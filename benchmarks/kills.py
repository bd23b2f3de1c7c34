"""Commands that are killed at random moments (SIGKILL), and given again: do they end with the files of one that was not?

    python benchmarks/kills.py [--only fit,sweep,label,rounds,encode,classify,evaluate,outliers,impute] [--kills 50] [--seed 0]
        [--add]
    python benchmarks/kills.py --signal TERM --only fit --kills 20

Each repetition starts a command in a process of its own, kills it once it has used so much time of the CPU, drawn uniformly
from what it takes undisturbed, and gives it again: `fit` by --resume where there is a state to go on from, the others as they
were. Every second repetition kills the second attempt as well. The state of a fit is written after each epoch
(--checkpoint-every 0), so that many kills come in the middle of that. Processes are forked from one that has imported
everything, so that no kill is spent on imports, which leave nothing behind. With --signal INT or TERM, which a process
answers itself, it starts from nothing instead, and the moments are of its whole life, imports included, but for the tens of
milliseconds in which Python itself starts. It must end within a minute, with exit code 130 or 143 and one line. As all is
imported anew there, `impute` makes three draws from the guide, and `rounds` two rounds.

Compared, bit for bit: weights, history, log and results of runs (without their times), and the tables that were written. After
each kill, a table of results must be absent or whole, and the command that is given again must end well. Counted are kills that
came before the end, those that left a file half written (which must be one that nobody reads), and repetitions that ended as
they should. Tables are read in blocks of 40 rows, so that there are six. Figures go to benchmarks/results/kills-cpu.json; with
--add, they are added to those that are there, which are of other moments.
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
import subprocess
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
TABLES = ("encode", "classify", "evaluate", "outliers", "impute")  # commands that read a table and write one
ALL = ("fit", "sweep", "label", "rounds", *TABLES)  # rounds: label with more ensembles
COUNTS = (
    "repetitions",
    "right",
    "kills",
    "ended_before_the_kill",
    "kills_that_left_half_a_file",
    "wrong",
)  # that are added
# The size of blocks is set once the command line is imported, since signals are answered from the start of `main` on.
ANEW = """
import importlib, sys, types
from pyrovae import _start

def import_module(name):
    made = importlib.import_module(name)
    importlib.import_module("pyrovae.app.jobs.blocks").MOST_ROWS = {rows}
    return made

sys.argv = {argv!r}
print({begun!r}, file=sys.stderr, flush=True)
_start.importlib = types.SimpleNamespace(import_module=import_module)
_start.program()
"""
BEGUN = "begun"  # what it says once Python has started, which no program can answer for
ROWS = 240  # of the table
PAUSE = 0.002  # seconds between two looks at a process
CODES = {"INT": 130, "TERM": 143}
COMMON = ("--threads", "1", "--engine", "traced")
SMALL = ("--hidden", "32", "--num-samples", "20", "--checkpoint-every", "0", *COMMON)


class Job:
    """A command in a folder of its own: how it is given, given again, and what it leaves."""

    def __init__(self, name: str, data: Path, light: bool = False) -> None:
        self.name, self.data, self.light = name, data, light

    def command(self, home: Path, again: bool) -> Sequence[str]:
        run = home / "run"
        if self.name == "fit":
            if again and (run / "checkpoint.safetensors").exists():
                return ("fit", "--resume", str(run))
            return ("fit", "digits", "--epochs", "40", *SMALL, "--out", str(run))
        if self.name == "sweep":
            return ("sweep", "digits", "--prior", "normal,mixture", "--epochs", "20", *SMALL, "--out", str(run))
        if self.name in ("label", "rounds"):
            how = ("--steps", "150", "--hidden", "32", "--holdout", "0", *COMMON)
            if self.name == "rounds":
                how = ("--rounds", "2" if self.light else "4", "--threads", "1")
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
            "classify": (),
            "evaluate": ("--num-samples", "100"),
            "outliers": ("--num-samples", "100", "--proposal", "guide"),
            "impute": ("--draws", "3", "--num-samples", "20", "--proposal", "guide")
            if self.light
            else ("--draws", "10", "--num-samples", "100"),
        }[self.name]
        run, table = ("labelled", "classes.csv") if self.name == "classify" else ("run", "rows.csv")
        asked = (self.name, str(self.data / run), str(self.data / table), "--out", str(home / "table.csv"))
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
                    "results": without_times(results),
                }
            elif path.name == "history.csv":
                with path.open() as file:
                    found[str(path.relative_to(home))] = [without_times(row) for row in csv.DictReader(file)]
            elif path.suffix == ".jsonl":
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                found[str(path.relative_to(home))] = [without_times(line) for line in lines]
            elif path.name == "weights.safetensors" or (
                self.name == "rounds" and path.name == "checkpoint.safetensors"
            ):
                tensors = load_file(path)
                found[str(path.relative_to(home))] = {k: digest(v.numpy().tobytes()) for k, v in tensors.items()}
            elif path.suffix == ".csv" and path.name != "runs.csv":
                found[str(path.relative_to(home))] = digest(path.read_bytes())
        return found

    def tables(self, home: Path) -> list[Path]:
        return [path for path in (home / "table.csv", home / "run" / "labels.csv") if path.exists()]


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers and texts by name, at any depth, but for those in which two equal fits differ."""
    return {k: without_times(v) if isinstance(v, dict) else v for k, v in values.items() if k not in TIMES}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def start(command: Sequence[str], log: Path, anew: bool = False) -> int:
    """Run a command in a forked process, or in one that starts `anew`, and return its number."""
    if anew:
        code = ANEW.format(argv=["pyrovae", *command], rows=blocks.MOST_ROWS, begun=BEGUN)
        with log.open("ab") as file:
            return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=file).pid
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


def wait(child: int, seconds: float = 600, cpu: float = float("inf"), log: Path | None = None) -> int | None:
    """The exit code of a process, None if it is still there after some seconds, or has begun and used so many of the CPU."""
    # counted in pauses, and not by a clock, which goes on while all processes of a machine are stopped
    for _ in range(int(seconds / PAUSE) + 1):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if cpu < float("inf") and used(child) >= cpu and (log is None or BEGUN in log.read_text(errors="replace")):
            return None
        time.sleep(PAUSE)
    return None


def used(child: int) -> float:
    """Seconds of the CPU that a process, which is this one's child, and its own have used."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def repetition(
    job: Job, home: Path, whole: dict[str, Any], takes: float, rng: random.Random, twice: bool, by: str
) -> dict[str, Any]:
    """One command killed, or stopped by another signal, given again and compared."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    log = home.parent / "log.txt"
    log.write_text("")
    found: dict[str, Any] = {"kills": 0, "early": 0, "half_files": 0, "wrong": []}
    for again in range(2 if twice else 1):
        child = start(job.command(home, bool(again)), log, anew=by != "KILL")
        ended = wait(child, cpu=rng.uniform(0, takes), log=None if by == "KILL" else log)
        if ended is not None:
            found["early"] += 1
            break
        if by == "KILL":
            os.killpg(child, signal.SIGKILL) if os.getpgid(child) == child else os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        elif trouble := stopped(child, by, log):
            found["wrong"].append(trouble)
        found["kills"] += 1
        found["half_files"] += sum(1 for path in home.rglob(".*.new") if path.is_file())
        for table in job.tables(home):
            content = table.read_bytes()
            wanted = whole.get(str(table.relative_to(home)))
            # of rounds it is any of the answers that replace each other, with a line for each row
            right = content.count(b"\n") == ROWS + 1 if job.name == "rounds" else digest(content) == wanted
            if not right:
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


def stopped(child: int, by: str, log: Path) -> str:
    """Send a signal to a process: what is wrong with how it ends, "" if nothing."""
    before = len(log.read_bytes())
    os.kill(child, getattr(signal, f"SIG{by}"))
    code = wait(child, 60)
    if code is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return f"SIG{by} did not end it within a minute"
    said = log.read_bytes()[before:].decode(errors="replace")
    errors = [line for line in said.splitlines() if line.startswith(("Error:", "Traceback"))]
    if code not in (CODES[by], 0) or (code and (len(errors) != 1 or "Traceback" in said)):
        return f"SIG{by} ended it with {code}: {said[-500:]!r}"
    return ""


def prepare(data: Path) -> None:
    """A table with gaps, labels of some of its rows, and runs that were fitted to it and to rows with a class."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, ROWS)
    rows = rng.normal(size=(ROWS, 5)) + 2 * np.eye(5)[kind]
    rows[rng.random(rows.shape) < 0.1] = np.nan
    with (data / "rows.csv").open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["id", *"abcde"])
        write.writerows([[f"r{i}", *("" if np.isnan(v) else f"{v:.4f}" for v in row)] for i, row in enumerate(rows)])
    with (data / "labels.csv").open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["id", "label"])
        write.writerows([[f"r{i}", "xyz"[kind[i]]] for i in range(0, ROWS, 6)])
    with (data / "classes.csv").open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow([*"abcde", "kind"])
        write.writerows(
            [[*(f"{v:.4f}" for v in np.nan_to_num(row)), "xyz"[kind[i]] if i % 3 else ""] for i, row in enumerate(rows)]
        )
    command = ("fit", str(data / "classes.csv"), "--label", "kind", "--epochs", "20", *SMALL, "--search", "none")
    if wait(start((*command, "--model", "m2", "--out", str(data / "labelled")), data / "log.txt")) != 0:
        raise SystemExit((data / "log.txt").read_text())
    command = ("fit", str(data / "rows.csv"), "--epochs", "20", *SMALL, "--search", "none", "--out", str(data / "run"))
    if wait(start(command, data / "log.txt")) != 0:
        raise SystemExit((data / "log.txt").read_text())


def measure(job: Job, home: Path, numbers: range, seed: int, by: str) -> dict[str, Any]:
    took = []
    wholes = []
    # twice, since what differs between two undisturbed commands cannot be compared; which does not depend on the signal
    for _ in range(2 if by == "KILL" else 1):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        before = os.times()
        ended = wait(start(job.command(home, False), home.parent / "log.txt", anew=by != "KILL"))
        took.append(os.times().children_user + os.times().children_system - sum(before[2:4]))
        if ended != 0:
            raise SystemExit((home.parent / "log.txt").read_text())
        wholes.append(job.left(home))
    assert wholes[0] == wholes[-1], "two undisturbed commands differ"
    done = []
    for number in numbers:
        rng = random.Random(f"{job.name} {seed} {number}")
        done.append(repetition(job, home, wholes[0], min(took), rng, bool(number % 2) and by == "KILL", by))
        if done[-1]["wrong"]:
            print(job.name, number, done[-1]["wrong"], flush=True)
    return {
        "repetitions": len(done),
        "right": sum(not one["wrong"] for one in done),
        "kills": sum(one["kills"] for one in done),
        "ended_before_the_kill": sum(one["early"] for one in done),
        "kills_that_left_half_a_file": sum(one["half_files"] > 0 for one in done),
        "CPU_seconds_undisturbed": round(min(took), 2),
        "files_compared": len(wholes[0]),
        "wrong": [what for one in done for what in one["wrong"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ALL))
    parser.add_argument("--kills", type=int, default=50, help="repetitions of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", action="store_true", help="add to the figures that are there")
    parser.add_argument("--signal", default="KILL", choices=("KILL", *CODES))
    given = parser.parse_args()
    if unknown := [name for name in given.only.split(",") if name not in ALL]:
        parser.error(f"--only {unknown[0]}: must be among {','.join(ALL)}")
    blocks.MOST_ROWS = 40
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell has its background jobs ignore it, and theirs too
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        prepare(data)
        for name in given.only.split(","):
            job = Job(name, data, light=given.signal != "KILL")
            key = name if given.signal == "KILL" else f"{name}, SIG{given.signal}"
            before: dict[str, Any] = kept.get(key, {}) if given.add else {}
            first = before.get("repetitions", 0)
            numbers = range(first, first + given.kills)
            found = measure(job, Path(folder) / name / "home", numbers, given.seed, given.signal)
            for count in before.keys() & set(COUNTS):
                found[count] += before[count]
            print(key, {count: value for count, value in found.items() if count != "wrong"}, flush=True)
            kept |= {key: found, "torch": str(torch.__version__)}
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
