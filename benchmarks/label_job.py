"""Is `pyrovae label` what a user should take? Eight data sets with few labels, against scikit-learn; and what to label next.

    python benchmarks/label_job.py sets --data-root DIR --tables DIR [--only digits,iris] [--draws 10] [--model]
    python benchmarks/label_job.py active [--draws 5]
    python benchmarks/label_job.py mnist --data-root DIR [--draws 1]
    python benchmarks/label_job.py report

`sets`: the rows of each set, of which few keep their label: one of each class at random, and the others at random. Ours is the
function that `pyrovae label` calls, with its default settings, on files as a user has them; with `--model` also with those that
it has where an option asks for the model. The rivals are scikit-learn's, on pixels in [0, 1] or standardised columns, with
settings chosen by three-fold cross-validation on the few labels: once by accuracy, which gives the accuracy, and once by
log-loss, which gives the log-loss and the calibration error. Only SelfTrainingClassifier has its SVC's settings and its own
default threshold. All are judged on the rows without a label; the expected calibration error has ten bins of equal width. MNIST
and Fashion-MNIST are 1,500 of their training images, letters 1,000 rows, each by seed 0. DIR of `--data-root` holds MNIST/raw,
FashionMNIST/raw, and tabular/yeast.data and tabular/wdbc.data; DIR of `--tables` the file letter-recognition.data of UCI.

`active`: digits, 20 labels, two of each class, then 10 more at a time up to 80: those that `pyrovae label` ranks first, those
with the largest entropy of their classes, or at random. `mnist`: the images of `sets` with 100 labels, then the 50 that are
ranked first.

Figures go to benchmarks/results/label-job-cpu.json; what has figures there is not done again. One thread. `--smoke` only shows
that a part runs: one draw, five training steps, one set, two rounds of labels, and no figures are kept.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from sklearn.svm import SVC

import pyrovae as pv
from pyrovae import plots
from pyrovae.app.jobs.label import Job, label_rows, read_job
from pyrovae.app.options import Options

RESULTS = Path(__file__).parent / "results" / "label-job-cpu.json"
OURS, WITH = "pyrovae label", "pyrovae label, with the model"
OF_MODEL: dict[str, dict[str, Any]] = {OURS: {}, WITH: {"passes": 21}}  # any option of the model lets it be fitted
FOLDS = 3
FIRST, STEP, LAST = 20, 10, 80  # labels of `active`
LEAST = 1e-6  # a probability in a log-loss
GIVEN: dict[str, Any] = {}  # options of ours other than the default ones

Array = NDArray[Any]
Rows = tuple[Array, Array]


@dataclass(frozen=True)
class Few:
    """A data set: how it is read, how many labels are known, and what pixels are divided by; None for columns."""

    load: Callable[[argparse.Namespace], Rows]
    labels: int
    divisor: float | None = None


def idx(options: argparse.Namespace, name: str, num: int = 1500) -> Rows:
    """Training images of MNIST or Fashion-MNIST, `(num, 28, 28)`."""
    start = options.data_root / name / "raw" / "train-"
    pixels, labels = (
        np.frombuffer(gzip.decompress(Path(f"{start}{kind}-ubyte.gz").read_bytes()), np.uint8, offset=skip)
        for kind, skip in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return some(pixels.reshape(-1, 28, 28), labels.astype(np.int64), num)


def some(x: Array, y: Array, num: int) -> Rows:
    chosen = np.random.RandomState(0).permutation(len(y))[:num]
    return x[chosen], y[chosen]


def table(path: Path, label: int, skip: tuple[int, ...] = (), sep: str = ",") -> Rows:
    read = pd.read_csv(path, sep=sep, header=None)
    y = pd.factorize(read.iloc[:, label], sort=True)[0]
    columns = [c for c in range(read.shape[1]) if c not in (label % read.shape[1], *skip)]
    return read.iloc[:, columns].to_numpy(float), y


SETS: dict[str, Few] = {
    "iris": Few(lambda options: load_iris(return_X_y=True), 20),
    "wine": Few(lambda options: load_wine(return_X_y=True), 20),
    "breast cancer": Few(lambda options: table(options.data_root / "tabular" / "wdbc.data", 1, (0,)), 20),
    "yeast": Few(lambda options: table(options.data_root / "tabular" / "yeast.data", -1, (0,), sep=r"\s+"), 200),
    "letters": Few(lambda options: some(*table(options.tables / "letter-recognition.data", 0), 1000), 200),
    "digits": Few(lambda options: load_digits(return_X_y=True), 50, 16.0),
    "MNIST": Few(partial(idx, name="MNIST"), 100, 255.0),
    "Fashion-MNIST": Few(partial(idx, name="FashionMNIST"), 100, 255.0),
}


def draw(y: Array, num: int, seed: int, each: int = 1) -> Array:
    """The known labels, -1 elsewhere: of `each` rows of each class, and of others at random."""
    order = np.random.RandomState(seed).permutation(len(y))
    first = [int(row) for c in np.unique(y) for row in np.flatnonzero(y[order] == c)[:each]]
    chosen = order[list(dict.fromkeys([*first, *range(len(y))]))[:num]]
    few = np.full(len(y), -1)
    few[chosen] = y[chosen]
    return few


def judged(p: Array, y: Array) -> dict[str, float]:
    """Accuracy, log-loss in nats, and expected calibration error."""
    p = np.clip(np.nan_to_num(p, nan=1 / p.shape[1]), LEAST, 1)
    p /= p.sum(1, keepdims=True)
    error = pv.calibration.expected_calibration_error(torch.from_numpy(p), torch.from_numpy(y), num_bins=10)
    return {
        "accuracy": float((p.argmax(1) == y).mean()),
        "log_loss": float(-np.log(p[np.arange(len(y)), y]).mean()),
        "calibration_error": float(error),
    }


# --- ours


class Ours:
    """`pyrovae label` for rows of which labels become known: the files that it is given, and its run folder."""

    def __init__(self, name: str, x: Array, folder: Path) -> None:
        self.name, self.x, self.folder = name, x, folder

    def read(self, few: Array) -> Job:
        """The job, read from files as a user has them."""
        known, labels = np.flatnonzero(few >= 0), self.folder / "known.csv"
        pd.DataFrame({"row": known, "label": [f"{c:02d}" for c in few[known]]}).to_csv(labels, index=False)
        if self.name == "digits":
            return read_job("digits", labels)
        if self.x.ndim > 2:
            source = self.folder / "rows.npz"
            np.savez(source, x=self.x)
        else:
            source = self.folder / "rows.csv"
            columns = [f"c{number}" for number in range(self.x.shape[1])]
            pd.DataFrame(self.x, columns=columns).to_csv(source, index=False)
        return read_job(str(source), labels)

    def __call__(self, few: Array, seed: int, **given: Any) -> tuple[Array, pd.DataFrame]:
        """The probabilities of all rows, `(N, C)`, and the table that is written."""
        options = Options.of("label", seed=seed, **GIVEN, **given)
        answer = label_rows(self.read(few), options, self.folder / "run", progress=False, threads=1)
        return answer.probabilities.numpy(), answer.table


# --- scikit-learn


def contenders(x: Array) -> dict[str, dict[str, Callable[[], Any]]]:
    """By method, its settings."""
    width = 1 / (x.shape[1] * x.var())  # gamma="scale"
    return {
        "LogisticRegression": {f"C={c}": partial(LogisticRegression, C=c, max_iter=1000) for c in (0.1, 1, 10, 100)},
        "SVC": {
            f"C={c} gamma={g} x scale": partial(SVC, C=c, gamma=g * width, probability=True, random_state=0)
            for c in (1, 10, 100)
            for g in (0.3, 1)
        },
        "LabelSpreading, neighbours": {
            f"k={k} alpha={a}": partial(LabelSpreading, "knn", n_neighbors=k, alpha=a)
            for k in (5, 10)
            for a in (0.2, 0.8)
        },
        "LabelSpreading, RBF": {
            f"gamma={g} x scale alpha={a}": partial(LabelSpreading, "rbf", gamma=g * width, alpha=a)
            for g in (3, 10, 30)
            for a in (0.2, 0.8)
        },
    }


def fitted(make: Callable[[], Any], x: Array, few: Array, num_classes: int) -> Array:
    """Probabilities of all rows and classes by a method, `(N, C)`."""
    known = few >= 0
    model = make()
    if isinstance(model, LogisticRegression | SVC):
        model.fit(x[known], few[known])
    else:
        model.fit(x, few)
    p = np.zeros((len(x), num_classes))
    p[:, model.classes_] = model.predict_proba(x)
    return p


def rivals(x: Array, few: Array, num_classes: int) -> Iterator[tuple[str, dict[str, Any], Array, Array]]:
    """By method: what was chosen, and the probabilities by the settings of best accuracy and of best log-loss."""
    known = np.flatnonzero(few >= 0)
    part = np.empty(len(known), dtype=np.int64)
    part[few[known].argsort(kind="stable")] = np.arange(len(known)) % FOLDS
    best: dict[str, Callable[[], Any]] = {}
    for name, settings in contenders(x).items():
        tried = {}
        for setting, make in settings.items():
            p = np.zeros((len(known), num_classes))
            for fold in range(FOLDS):
                left = few.copy()
                left[known[part == fold]] = -1
                p[part == fold] = fitted(make, x, left, num_classes)[known[part == fold]]
            tried[setting] = judged(p, few[known])
        by_accuracy = min(tried, key=lambda s: (-tried[s]["accuracy"], tried[s]["log_loss"]))
        by_score = min(tried, key=lambda s: tried[s]["log_loss"])
        best = {by: settings[s] for by, s in (("accuracy", by_accuracy), ("score", by_score))}
        found = {s: fitted(settings[s], x, few, num_classes) for s in {by_accuracy, by_score}}
        yield name, {"by_accuracy": by_accuracy, "by_log_loss": by_score}, found[by_accuracy], found[by_score]
        if name == "SVC":
            taught = {by: fitted(partial(self_training, make), x, few, num_classes) for by, make in best.items()}
            yield "SelfTrainingClassifier(SVC)", {}, taught["accuracy"], taught["score"]


def self_training(make: Callable[[], Any]) -> SelfTrainingClassifier:
    return SelfTrainingClassifier(make())


# --- what is done


def sets(options: argparse.Namespace) -> None:
    ours = [partial(of_ours, method=method) for method in ((OURS, WITH) if options.model else (OURS,))]
    for work in (of_rivals, *ours):
        for seed in range(options.draws):
            for name, few_of in SETS.items():
                if not options.only or name in options.only.split(","):
                    x, y = few_of.load(options)
                    work(name, x, y, draw(y, few_of.labels, seed), seed)


def of_ours(name: str, x: Array, y: Array, few: Array, seed: int, method: str) -> None:
    if done("sets", name, method, seed):
        return
    with tempfile.TemporaryDirectory() as folder:
        ours, start = Ours(name, x, Path(folder)), time.process_time()
        p, _ = ours(few, seed, **OF_MODEL[method])
        seconds = time.process_time() - start
    keep(judged(p[few < 0], y[few < 0]) | {"cpu_seconds": seconds}, "sets", name, method, seed)


def of_rivals(name: str, x: Array, y: Array, few: Array, seed: int) -> None:
    if done("sets", name, "LabelSpreading, RBF", seed):
        return
    rows, divisor = x.reshape(len(x), -1).astype(float), SETS[name].divisor
    rows = rows / divisor if divisor else (rows - rows.mean(0)) / np.maximum(rows.std(0), 1e-8)
    start = time.process_time()
    for method, chosen, by_accuracy, by_score in rivals(rows, few, int(y.max()) + 1):
        now = time.process_time()
        entry: dict[str, Any] = judged(by_score[few < 0], y[few < 0]) | {"chosen": chosen}
        entry["accuracy"] = judged(by_accuracy[few < 0], y[few < 0])["accuracy"]
        keep(entry | {"cpu_seconds": now - start}, "sets", name, method, seed)
        start = now


def choose(how: str, p: Array, listed: pd.DataFrame, few: Array, rng: np.random.RandomState, num: int) -> Array:
    """The rows to label next."""
    unknown = np.flatnonzero(few < 0)
    if how == "at random":
        return rng.permutation(unknown)[:num]
    if how == "by rank":
        return np.asarray(listed["rank"].dropna().astype(int).nsmallest(num).index)
    entropy = -(p[unknown] * np.log(np.maximum(p[unknown], LEAST))).sum(1)
    return unknown[(-entropy).argsort(kind="stable")[:num]]


def active(options: argparse.Namespace) -> None:
    x, y = load_digits(return_X_y=True)
    for seed in range(options.draws):
        for how in ("by rank", "by entropy", "at random"):
            if done("active", "digits", how, seed):
                continue
            few, rng = draw(y, FIRST, seed, each=2), np.random.RandomState(seed + 1000)
            found = {}
            with tempfile.TemporaryDirectory() as folder:
                job = Ours("digits", x, Path(folder))
                for number in range(FIRST, LAST + 1, STEP):
                    p, listed = job(few, seed, holdout=0.0)
                    found[str(number)] = judged(p[few < 0], y[few < 0])
                    chosen = choose(how, p, listed, few, rng, STEP)
                    few[chosen] = y[chosen]
            keep(found, "active", "digits", how, seed)


def mnist(options: argparse.Namespace) -> None:
    x, y = SETS["MNIST"].load(options)
    for seed in range(options.draws):
        if done("mnist", "MNIST", "by rank", seed):
            continue
        few, found = draw(y, 100, seed), {}
        with tempfile.TemporaryDirectory() as folder:
            job = Ours("MNIST", x, Path(folder))
            for number in (100, 150):
                start = time.process_time()
                p, listed = job(few, seed)
                seconds = time.process_time() - start
                found[str(number)] = judged(p[few < 0], y[few < 0]) | {"cpu_seconds": seconds}
                chosen = choose("by rank", p, listed, few, np.random.RandomState(0), 50)
                few[chosen] = y[chosen]
        keep(found, "mnist", "MNIST", "by rank", seed)


# --- figures


def read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def done(part: str, name: str, method: str, seed: int) -> bool:
    return str(seed) in read().get(part, {}).get(name, {}).get(method, {})


def keep(entry: dict[str, Any], part: str, name: str, method: str, seed: int) -> None:
    found = read()
    found.setdefault(part, {}).setdefault(name, {}).setdefault(method, {})[str(seed)] = entry
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(part, name, method, seed, {key: value for key, value in entry.items() if key != "chosen"}, flush=True)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return float(np.mean(values)), error


def report(options: argparse.Namespace) -> None:
    """Means, and paired differences from the best of the others, over the draws that all have."""
    found = read()
    for name, methods in found.get("sets", {}).items():
        seeds = sorted(set.intersection(*(set(runs) for runs in methods.values())), key=int)
        print(f"{name}: {SETS[name].labels} labels, {len(seeds)} draws")
        for method, runs in methods.items():
            said = []
            for key in ("accuracy", "log_loss", "calibration_error", "cpu_seconds"):
                mean, error = mean_and_error([runs[seed][key] for seed in seeds])
                said.append(f"{mean:.3f} ± {error:.3f}")
            print(f"  {method:28}", *said)
        ours_of = [method for method in (OURS, WITH) if method in methods]
        for ours, (key, sign) in product(ours_of, (("accuracy", -1), ("log_loss", 1))):
            others = {
                m: sign * float(np.mean([methods[m][s][key] for s in seeds])) for m in methods if m not in ours_of
            }
            best = min(others, key=others.__getitem__)
            mean, error = mean_and_error([methods[ours][seed][key] - methods[best][seed][key] for seed in seeds])
            print(f"  {ours}, {key}: {mean:+.3f} ± {error:.3f} from {best}")
    for how, runs in found.get("active", {}).get("digits", {}).items():
        for number in next(iter(runs.values())):
            mean, error = mean_and_error([run[number]["accuracy"] for run in runs.values()])
            print(f"active, {how}, {number} labels: {mean:.3f} ± {error:.3f}, {len(runs)} draws")
    for seed, run in found.get("mnist", {}).get("MNIST", {}).get("by rank", {}).items():
        for number, entry in run.items():
            print(f"mnist, draw {seed}, {number} labels:", *(f"{key} {value:.3f}" for key, value in entry.items()))
    if "active" in found:
        picture(found["active"]["digits"])


def picture(found: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(5, 3.4))
    for how, runs in found.items():
        numbers = [int(number) for number in next(iter(runs.values()))]
        points = [mean_and_error([run[str(n)]["accuracy"] for run in runs.values()]) for n in numbers]
        axes.errorbar(numbers, [mean for mean, _ in points], [error for _, error in points], capsize=2, label=how)
    axes.set_xlabel("labels")
    axes.set_ylabel("accuracy on the other digits")
    axes.legend(frameon=False)
    plots.save(axes, RESULTS.with_name("label-next-cpu.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sets", "active", "mnist", "report"))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--only", default="", help="names of sets, with commas between them")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--model", action="store_true", help="ours with its model, too")
    parser.add_argument("--smoke", action="store_true", help="only show that a part runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    work = {"sets": sets, "active": active, "mnist": mnist, "report": report}[options.what]
    if options.smoke:
        smoke(work, options)
    else:
        work(options)


def smoke(work: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> None:
    """The least of a part, and the report of it, with figures in a folder that goes."""
    global RESULTS, LAST
    with tempfile.TemporaryDirectory() as folder:
        RESULTS, LAST = Path(folder) / RESULTS.name, FIRST + STEP
        GIVEN["steps"] = 5
        options.draws, options.only = 1, options.only or "iris"
        work(options)
        report(options)


if __name__ == "__main__":
    main()
