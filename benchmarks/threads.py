"""Commands with one thread, by the rule for threads, and by the rule beside a busy process: one table, and whether it holds.

    python benchmarks/threads.py
    python benchmarks/threads.py --only fit --rounds 5

It holds if no command is slower by the rule than with one thread (a tenth is left to noise), and none takes more than 2.5
times as long beside one process that is busy all the time, computing with as many threads as torch takes. Run it on a machine
that does nothing else. Times are medians over rounds, in seconds of the clock, start-up of Python included. All are written to
benchmarks/results/threads-cpu.json; with --only, those of other commands stay there.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

SLOWER, BESIDE = 1.1, 2.5
BUSY = "import torch\nx = torch.rand(600, 600)\nwhile True:\n    x = torch.softmax(x @ x, -1)"


def commands(folder: Path) -> dict[str, list[str]]:
    """Arguments of the command line by name; RUN stands for a new folder."""
    rng = np.random.default_rng(0)
    wide, few = folder / "wide.npz", folder / "few.csv"
    np.savez(wide, x=(rng.random((2_000, 784)) < 0.3).astype(np.float32))
    classes = np.arange(178) % 3
    table = {f"c{i}": rng.normal(size=178) + classes for i in range(13)}
    table["label"] = [str(c) if row < 24 else "" for row, c in enumerate(classes)]
    pd.DataFrame(table).to_csv(few, index=False)
    numbers = pd.DataFrame(table).drop(columns="label")
    numbers.mask(rng.random(numbers.shape) < 0.05).to_csv(folder / "holes.csv", index=False)
    seen, holes, known = (str(folder / name) for name in ("seen", "holes.csv", "known"))
    return {
        "fit digits": ["fit", "digits", "--epochs", "20", "--out", "RUN"],
        "fit wide, 784-600-600": [
            "fit",
            str(wide),
            "--hidden",
            "600,600",
            "--batch-size",
            "500",
            "--epochs",
            "5",
            "--out",
            "RUN",
        ],
        "fit digits, compiled": ["fit", "digits", "--epochs", "20", "--engine", "compiled", "--out", "RUN"],
        "label 178 x 13": ["label", str(few), "--steps", "300", "--run", "RUN"],
        "evaluate": ["evaluate", seen],
        "generate": ["generate", seen],
        "encode": ["encode", seen],
        "reconstruct": ["reconstruct", seen],
        "compare": ["compare", seen, str(folder / "other")],
        "check": ["check", seen],
        "fit table, 178 x 13": ["fit", holes, "--out", "RUN"],
        "impute": ["impute", known, holes],
        "outliers": ["outliers", known, holes],
        "sweep": ["sweep", "digits", "--prior", "normal,vamp", "--epochs", "10", "--out", "RUN"],
    }


def run(arguments: list[str], folder: Path, threads: int | None) -> float:
    """Seconds that a command takes; RuntimeError with its last lines if it fails."""
    new = Path(tempfile.mkdtemp(dir=folder)) / "run"
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    words = [word.replace("RUN", str(new)) for word in arguments]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pyrovae", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode > (words[0] == "check"):  # which ends with 1 where a fit is bad
        raise RuntimeError(f"{' '.join(words)} failed:\n{(done.stderr or done.stdout)[-500:]}")
    return time.perf_counter() - began


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Another process computes all the time."""
    neighbour = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        time.sleep(3)
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="commands whose names contain one of these, by commas")
    options = parser.parse_args()
    failed = []
    out = Path(__file__).parent / "results" / "threads-cpu.json"
    found = json.loads(out.read_text()) if options.only and out.is_file() else {}
    found["machine"] = {"cores": os.cpu_count(), "torch": version("torch"), "date": datetime.date.today().isoformat()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for new in ("seen", "other"):
            run(["fit", "digits", "--epochs", "5", "--out", str(folder / new)], folder, None)
        print(f"{'':24} {'one thread':>10} {'rule':>10} {'beside':>10}   rule/one  beside/rule")
        asked = commands(folder)
        run(["fit", str(folder / "holes.csv"), "--epochs", "20", "--out", str(folder / "known")], folder, None)
        for what, arguments in asked.items():
            if not any(part in what for part in options.only.split(",")):
                continue
            one, rule, beside = [], [], []
            run(arguments, folder, None)  # what is compiled is compiled now
            for _ in range(options.rounds):
                one.append(run(arguments, folder, 1))
                rule.append(run(arguments, folder, None))
                with busy():
                    beside.append(run(arguments, folder, None))
            times = [statistics.median(seconds) for seconds in (one, rule, beside)]
            ratios = (times[1] / times[0], times[2] / times[1])
            holds = ratios[0] <= SLOWER and ratios[1] <= BESIDE
            failed += [] if holds else [what]
            found[what] = {"seconds": [one, rule, beside], "rule / one thread": ratios[0], "beside / rule": ratios[1]}
            out.write_text(json.dumps(found, indent=1) + "\n")
            row = " ".join(f"{seconds:10.1f}" for seconds in times)
            print(
                f"{what:24} {row} {ratios[0]:10.2f} {ratios[1]:12.2f}{'' if holds else '  does not hold'}", flush=True
            )
    if failed:
        raise SystemExit(f"It does not hold for: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
