"""The picture at the top of the README, from two runs of the command line on scikit-learn's handwritten digits.

    python docs/make_pictures.py

Fits what is not yet in runs/pictures (some minutes on a CPU), and writes docs/front.png. Left: E[x | z, y] of a semi-supervised
VAE at draws of its prior, a column for each class. Middle: posterior means of the test rows under a VAE with two latent
dimensions. Right: how well the class probabilities of the semi-supervised model are calibrated on the test rows, after
temperature scaling on the validation rows.
"""

import subprocess
import sys
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae import plots
from pyrovae.app.run import Run, open_run

ROOT = Path(__file__).parents[1]
LABELS = 100
RUNS = {
    "digits-2d": ["--latent", "2", "--num-samples", "25"],
    "digits-m2": ["--model", "m2", "--labelled", str(LABELS)],
}


def run(name: str) -> Run:
    """The run of that name, fitted now if it is not there."""
    folder = ROOT / "runs" / "pictures" / name
    if not (folder / "weights.safetensors").exists():
        command = [sys.executable, "-m", "pyrovae", "fit", "digits", *RUNS[name], "--out", str(folder), "--force"]
        subprocess.run(command, check=True)
    return open_run(folder)


def main(path: Path) -> None:
    plain, labelled = run("digits-2d"), run("digits-m2")
    codes = pv.encode(plain.fitted, plain.rows.test)
    rows, truth, held_out = labelled.rows, labelled.rows.codes["test"], labelled.rows.codes["validation"]
    assert truth is not None and held_out is not None and rows.validation is not None

    columns = torch.arange(9 * 10) % 10
    samples = pv.generate(labelled.fitted, len(columns), given={"y": columns}, mean=True, seed=0)
    found, other = (
        pv.classify(labelled.fitted, {"x": x}, num_samples=100, seed=1).joint for x in (rows.test, rows.validation)
    )
    probabilities = pv.calibration.with_temperature(found, pv.calibration.fit_temperature(other, held_out))
    curve = pv.calibration.reliability(probabilities, truth, num_bins=16, bins="mass")
    right = (probabilities.argmax(-1) == truth).double().mean().item()

    with rc_context(plots.STYLE):
        figure = Figure(figsize=(12.0, 3.7))
        left, middle, last = figure.subplots(1, 3, width_ratios=(3.4, 4.3, 3.6))
        names = [str(name) for name in range(10)]
        plots.images(rows.restore(samples), (8, 8), columns=10, names=names, ax=left)
        left.set_title(f"new digits, a class per column ({LABELS} labels)", pad=18)
        plots.latent(codes, plain.rows.labels, ax=middle)
        middle.set_title(f"latent space: posterior means of {len(codes)} test digits")
        plots.reliability(curve.confidence, curve.accuracy, curve.counts, ax=last)
        last.set_title(f"class probabilities: {right:.1%} correct, calibration error {curve.error:.3f}")
    plots.save(left, path, dpi=110)


if __name__ == "__main__":
    main(Path(__file__).parent / "front.png")
