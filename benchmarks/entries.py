"""Do p-values of the entries of a table mean what they say? Rows drawn from the model, each entry given the others.

    python benchmarks/entries.py [DIR] [--only wine,ecoli] [--rows 60]

A default fit of scikit-learn's wine, and of ecoli.csv and concrete.csv in DIR, as the UCI repository has them with a header. Of
rows that are drawn from the fitted model, every entry x_d has a probability integral transform among draws of p(x_d | x_-d), by
which `pyrovae check` judges predictive intervals. It is uniform if these draws are right, whatever the model is worth. Printed
and kept in benchmarks/results/entries-cpu.json are the share of entries inside central intervals, the share of two-sided
p-values below 5 and 1 %, and a Kolmogorov-Smirnov test of all entries, whose entries of one row are not independent.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from sklearn.datasets import load_wine

import pyrovae as pv
from pyrovae.app.options import Options
from pyrovae.app.run import fit_run
from pyrovae.criticism.left_out import transforms_without_each
from pyrovae.criticism.population import ROUND_DRAWS
from pyrovae.data.load import read
from pyrovae.fitted.fitted import seeded

RESULTS = Path(__file__).parent / "results" / "entries-cpu.json"
TABLES = ("wine", "ecoli", "concrete")


def measure(path: Path, rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run = fit_run(read(str(path)), Options.of("fit", seed=0), Path(folder) / "run", threads=1, progress=False)
    drawn = torch.as_tensor(pv.generate(run.fitted, rows, seed=1))
    (part,) = run.fitted.parts(drawn)
    columns = torch.ones(drawn.shape[1], dtype=torch.bool)
    start = time.process_time()
    with run.fitted.scope(), seeded(0):
        found = transforms_without_each(run.fitted, part, "x", columns, draws=ROUND_DRAWS, proposal="refined")
    seconds = time.process_time() - start
    u = found[~found.isnan()]
    p = 2 * torch.minimum(u, 1 - u)
    return {
        "entries": len(u),
        "cpu_seconds": seconds,
        **{f"inside_{w:g}": ((u - 0.5).abs() < w / 2).double().mean().item() for w in (0.5, 0.8, 0.95)},
        **{f"p_below_{level:g}": (p < level).double().mean().item() for level in (0.05, 0.01)},
        "kolmogorov_smirnov_p": float(stats.kstest(u.numpy(), "uniform").pvalue),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    parser.add_argument("--only", default=",".join(TABLES), help="tables, separated by commas")
    parser.add_argument("--rows", type=int, default=60)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only.split(","):
            path = given.folder / f"{name}.csv"
            if name == "wine":
                path = Path(folder) / "wine.csv"
                load_wine(as_frame=True).frame.to_csv(path, index=False)
            kept |= {name: measure(path, given.rows), "torch": str(torch.__version__)}
            print(name, json.dumps(kept[name]), flush=True)
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
