"""How long a user waits for a first answer: the start of Python, of torch, of commands, and a whole fit of 300 rows.

    python benchmarks/first_answers.py [--rounds 5] [--only "pyrovae fit"] [--beside DIR]

Every command is a process of its own, in turn; round 0, which fills the caches of the system, does not count. Times are seconds
of the clock: fastest and median. The table is 300 rows of scikit-learn's breast cancer data, 30 columns and a label. Run it on
a machine that does nothing else. Figures go to benchmarks/results/first-answers-cpu.json.

With --beside each command is given to the pyrovae of this checkout and to that of another one, DIR, in turns, and what counts
are seconds of the CPU, in which both suffer alike from what else a machine does: the median of the ratios of neighbours. These
figures are added to the same file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sklearn.datasets import load_breast_cancer

HERE = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "first-answers-cpu.json"
PYROVAE = [sys.executable, "-m", "pyrovae"]
COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import pyro": [sys.executable, "-c", "import pyro"],
    "import pyrovae": [sys.executable, "-c", "import pyrovae"],
    "import pyrovae, and name pv.fit and pv.VAE": [sys.executable, "-c", "import pyrovae as pv; pv.fit, pv.VAE"],
    "pyrovae --help": [*PYROVAE, "--help"],
    "pyrovae list": [*PYROVAE, "list"],
    "pyrovae fit table.csv, 300 rows": [*PYROVAE, "fit", "table.csv", "--label", "target", "--force"],
    "pyrovae evaluate, 300 rows": [*PYROVAE, "evaluate", "runs/table"],
}


def cpu_seconds(command: list[str], folder: str, checkout: Path) -> float:
    """What a command takes of the CPU, user and system, with the pyrovae of a checkout."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def beside(commands: dict[str, list[str]], folder: str, rounds: int, other: Path) -> dict[str, Any]:
    """CPU seconds of commands with this checkout and another one, and their ratios, round by round."""
    found = {}
    for name, command in commands.items():
        both = [[cpu_seconds(command, folder, one) for one in (other, HERE)] for _ in range(rounds)]
        found[name] = {
            "before": [round(pair[0], 2) for pair in both],
            "now": [round(pair[1], 2) for pair in both],
            "ratio": round(statistics.median(pair[1] / pair[0] for pair in both), 3),
        }
        print(name, found[name])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="the beginning of the names of the commands that are measured")
    parser.add_argument("--beside", type=Path, help="another checkout")
    options = parser.parse_args()
    commands = {name: command for name, command in COMMANDS.items() if name.startswith(options.only)}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"seconds": {}}
    with tempfile.TemporaryDirectory() as folder:
        load_breast_cancer(as_frame=True).frame[:300].to_csv(Path(folder) / "table.csv", index=False)
        if options.beside is not None:
            found["cpu_seconds"] = beside(commands, folder, options.rounds, options.beside.resolve())
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
            return
        for number in range(options.rounds + 1):
            for name, command in commands.items():
                began = time.perf_counter()
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
                if number:
                    taken[name].append(time.perf_counter() - began)
    seconds = {
        name: {"fastest": round(min(times), 2), "median": round(statistics.median(times), 2)}
        for name, times in taken.items()
    }
    found |= {"torch": version("torch"), "rounds": options.rounds, "seconds": found["seconds"] | seconds}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for name, one in seconds.items():
        print(f"{name:45} fastest {one['fastest']:6.2f} s, median {one['median']:6.2f} s")


if __name__ == "__main__":
    main()
