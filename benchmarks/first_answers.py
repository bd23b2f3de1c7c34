"""How long a user waits for a first answer: the start of Python, of torch, of commands, and a whole fit of 300 rows.

    python benchmarks/first_answers.py [--rounds 5]

Every command is a process of its own, in turn; round 0, which fills the caches of the system, does not count. Times are seconds
of the clock: fastest and median. The table is 300 rows of scikit-learn's breast cancer data, 30 columns and a label. Run it on
a machine that does nothing else. Figures go to benchmarks/results/first-answers-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from sklearn.datasets import load_breast_cancer

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        load_breast_cancer(as_frame=True).frame[:300].to_csv(Path(folder) / "table.csv", index=False)
        for number in range(options.rounds + 1):
            for name, command in COMMANDS.items():
                began = time.perf_counter()
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
                if number:
                    taken[name].append(time.perf_counter() - began)
    seconds = {
        name: {"fastest": round(min(times), 2), "median": round(statistics.median(times), 2)}
        for name, times in taken.items()
    }
    RESULTS.write_text(
        json.dumps({"torch": version("torch"), "rounds": options.rounds, "seconds": seconds}, indent=1) + "\n"
    )
    for name, found in seconds.items():
        print(f"{name:45} fastest {found['fastest']:6.2f} s, median {found['median']:6.2f} s")


if __name__ == "__main__":
    main()
