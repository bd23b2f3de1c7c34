"""What the scripts of this folder share: options, data, fits from a seed, choices on validation rows, and results in JSON.

A script names the options that it has (`parser`), takes rows from `mnist`, fits with `fit`, chooses with `best_rate`, and
keeps what it measures in `Kept`, so that a run can be stopped and continued. Every script has these options, too:

    --data-root DIR   the folder of the data sets
    --device, --engine, --precision   as in `pyrovae.fit`
    --again           measures anew what the file of results has already
    --out DIR         the folder of that file
    --smoke           everything once with next to no rows, to see that the script runs; its numbers mean nothing
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

import pyrovae as pv
from pyrovae.data import load
from pyrovae.pair.parameters import find_device

RESULTS = Path(__file__).parents[1] / "results"
FAILED = -1e30  # the score of a fit that was not finite: worse than any other, and JSON has it


# --- options -----------------------------------------------------------------------------------------------------------


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def floats(text: str) -> tuple[float, ...]:
    return tuple(float(n) for n in text.split(","))


OPTIONS: dict[str, dict[str, Any]] = {
    "batch_size": {"type": int},
    "epochs": {"type": int},
    "num_samples": {"type": int, "help": "draws a row for log p(x) of test rows"},
    "precision": {},
    "rate": {"type": float, "help": "peak learning rate"},
    "rates": {"type": floats, "help": "peak learning rates to choose from, by commas"},
    "rows": {"type": int, "help": "training rows"},
    "seeds": {"type": integers, "help": "by commas"},
    "test_rows": {"type": int},
}


def parser(doc: str | None, only: Iterable[str] = (), separator: str = ",", **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the options of every script, those of OPTIONS that `defaults` names, and --only of the names `only`."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data-root", type=Path)
    names = list(only)

    def chosen(text: str) -> list[str]:
        found = text.split(separator) if text else names
        if unknown := set(found) - set(names):
            raise argparse.ArgumentTypeError(
                f"unknown: {separator.join(sorted(unknown))}; known: {separator.join(names)}"
            )
        return found

    if names:
        made.add_argument("--only", type=chosen, default=names, help=f"some of {separator.join(names)}")
    engine = defaults.pop("engine", "compiled")
    for name, default in defaults.items():
        made.add_argument(f"--{name.replace('_', '-')}", default=default, **OPTIONS[name])
    made.add_argument("--device", default="auto")
    made.add_argument("--engine", default=engine)
    made.add_argument("--again", action="store_true", help="measure anew what the file of results has")
    made.add_argument("--out", type=Path, default=RESULTS)
    made.add_argument("--smoke", action="store_true", help="everything once, tiny; writes to a temporary folder")
    return made


def parse(made: argparse.ArgumentParser, needs_files: bool = True, **smoke: Any) -> argparse.Namespace:
    """The options that were given; with --smoke, `smoke` are the defaults. Data that need files need --data-root."""
    if "--smoke" in sys.argv[1:]:
        out = Path(tempfile.mkdtemp(prefix="pyrovae-smoke-"))
        made.set_defaults(engine="eager", out=out, **smoke)
    options = made.parse_args()
    if options.data_root is None and needs_files and not options.smoke:
        made.error("the following arguments are required: --data-root")
    options.device = find_device(options.device).type
    return options


# --- data --------------------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    x: Tensor  # (N, 784), between 0 and 1
    y: Tensor  # (N,), the digits


class Parts(NamedTuple):
    train: Rows
    valid: Rows
    test: Rows


def mnist(
    options: argparse.Namespace,
    held_out: int = 10_000,
    generator: torch.Generator | None = None,
    rows: int | None = None,
) -> Parts:
    """MNIST. The last `held_out` of its 60,000 training images are for validation; test images are the official 10,000.

    With a generator the 60,000 are shuffled first. `rows` keeps the first training rows only. With --smoke the images are
    scikit-learn's digits in the size of MNIST's.
    """
    found = load("digits") if options.smoke else load("mnist", data_root=options.data_root)
    x, y = found.x, found.y
    assert x is not None and y is not None
    if options.smoke:
        x = interpolate(x.reshape(-1, 1, 8, 8) / 16, (28, 28), mode="bilinear").flatten(1)
        (x, x_test), (y, y_test), held_out = x.split(len(x) - 100), y.split(len(y) - 100), 100
    else:
        assert found.x_test is not None and found.y_test is not None
        x_test, y_test = found.x_test, found.y_test
    if generator is not None:
        order = torch.randperm(len(x), generator=generator)
        x, y = x[order], y[order]
    train, valid = (Rows(x[part], y[part]) for part in (slice(-held_out), slice(-held_out, None)))
    return Parts(Rows(train.x[:rows], train.y[:rows]), valid, Rows(x_test, y_test))


# --- fits --------------------------------------------------------------------------------------------------------------


def fit(build: Callable[[], nn.Module], data: Any, options: argparse.Namespace, seed: int, **more: Any) -> pv.Fit:
    """The pair that `build` makes, fitted on the device and engine of the options; weights and fit from one seed."""
    torch.manual_seed(seed)
    return pv.fit(build(), data, seed=seed, device=options.device, engine=options.engine, **more)


def best_rate(
    rates: Sequence[float],
    score: Callable[[float], float],
    tried: dict[str, float],
    name: str,
    keep: Callable[[], None] = lambda: None,
) -> float:
    """The rate with the best score on validation rows. Scores are added to `tried`, and not computed where it has them."""
    for rate in rates:
        if f"{rate:g}" in tried:
            continue
        try:
            found = score(rate)
        except pv.NotFiniteError as error:
            print(name, rate, error, flush=True)
            found = FAILED
        tried[f"{rate:g}"] = round(found, 3)
        print(f"{name} at {rate:g}: validation log-likelihood {found:.2f}", flush=True)
        keep()
    return float(max(tried, key=lambda rate: tried[rate]))


def end(fitted: pv.Fit) -> dict[str, Any]:
    """The ELBO of the last epoch, and what the fit took."""
    last = fitted.history[-1]
    return {"elbo": round(last["elbo"], 3), "steps": int(last["steps"]), "seconds": round(last["seconds"], 1)}


def scores(found: pv.Importance) -> dict[str, float]:
    """Means over rows in nats."""
    summary = found.summary()
    return {
        "log_likelihood": round(summary["log_likelihood"], 3),
        "standard_error_over_rows": round(summary["log_likelihood_se"], 3),
        "elbo": round(summary["elbo"], 3),
    }


def by_level(
    fitted: pv.Fit, x: Tensor, kl_samples: int, kl_seed: int, seeds: tuple[int, int]
) -> tuple[dict[str, float], dict[str, int]]:
    """Of each level, from the data upwards: its mean KL in nats per row, and how many of its units are active.

    A unit is active if the covariance over rows of two averages of E_q[z_l | x], each over 50 draws from one of `seeds`, is
    above 0.01.
    """
    kl = pv.kl_by_site(fitted, {"x": x}, kl_samples, seed=kl_seed)
    batch = fitted.evaluation_batch({"x": x})
    active = {}
    for site in sorted(kl):
        one, two = (pv.encode(fitted, batch, site=site, num_samples=50, seed=seed).cpu() for seed in seeds)
        active[site] = int(pv.active_units(one, again=two).sum())
    return {site: round(kl[site].mean().item(), 3) for site in sorted(kl)}, active


# --- results -----------------------------------------------------------------------------------------------------------


class Kept(dict[str, Any]):
    """The entries of one file of results, those of earlier runs included unless --again.

    The file is OUT/NAME-DEVICE.json: the machine, what `about` says, and the entries by name in `inside`.
    """

    def __init__(self, options: argparse.Namespace, name: str, inside: str = "fits", **about: Any) -> None:
        self.path, self.inside = options.out / f"{name}-{options.device}.json", inside
        threads = f"{torch.get_num_threads()} threads, {platform.machine()}"
        machine = f"{os.cpu_count()} cores, {threads}, {options.device}, torch {torch.__version__}"
        self.about = {"machine": machine, **about}
        super().__init__({} if options.again else self.on_disk())

    def on_disk(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text())[self.inside] if self.path.is_file() else {}
        return found

    def keep(self, name: str) -> None:
        """Write one entry."""
        # Read again: another run may have added its own since.
        entries = self.on_disk() | {name: self[name]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({**self.about, self.inside: entries}, indent=1) + "\n")

    def entry(self, name: str, measure: Callable[[], Any], show: Iterable[str] | None = None) -> Any:
        """The entry of a name, measured and written if it is not there; `show` are the values to print, or all but lists."""
        if name not in self:
            self[name] = measure()
            self.keep(name)
            found = self[name]
            print(name, {k: found[k] for k in show or found if show or not isinstance(found[k], list)}, flush=True)
        return self[name]


def spread(values: Iterable[float], form: str = ".2f") -> str:
    """The mean, and in brackets the least and the greatest of several values."""
    found = list(values)
    mean = f"{sum(found) / len(found):{form}}"
    return f"{mean} ({min(found):{form}} to {max(found):{form}})" if len(found) > 1 else mean
