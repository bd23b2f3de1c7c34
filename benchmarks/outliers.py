"""Are strange rows found? One digit against nine, tables with outliers, clothes against digits, and what is called in vain.

    python benchmarks/outliers.py tables --tables DIR [--splits 3]
    python benchmarks/outliers.py digits --data-root DIR
    python benchmarks/outliers.py clothes --data-root DIR
    python benchmarks/outliers.py alarms [--splits 3]

`tables`: five tables of ADBench (Han et al. 2022, arXiv:2206.09426), as its repository has them under
adbench/datasets/Classical; DIR holds those .npz files. `VAEOutlierDetector` with its default settings is fitted to 70 % of the
rows, outliers included and no label used, and scores the other 30 %; beside it are scikit-learn's detectors and, where it is
installed, PyOD's with their default settings, on columns with mean 0 and standard deviation 1.

`digits`: one class of MNIST, the mean over the ten of the area under the ROC curve. Everything is fitted to the training
images of one digit, grey values from 0 to 1, and scores all 10,000 test images. Ours is a VAE, 784-256-L with a Normal
likelihood of one noise scale, a tenth of its images held out to find the best epoch, and -log p(x) from 20 draws of the guide;
"typicality" is its distance from the mean of the images held out. OneClassSVM has nu = 0.1; IsolationForest and PyOD's ECOD
and VAE have their default settings. Those of the others, ours among them, were chosen on digits 2 and 8, by fits to the first
50,000 of the shuffled training images and scores of the others: the likelihood among Bernoulli of binarised rows, continuous
Bernoulli and Normal, L, and the numbers of components and neighbours.

`clothes`: Fashion-MNIST under a model of MNIST, and the other way round, by all scores of `pv.anomaly_score`; and what
`pv.conformal_p_values` and `pv.benjamini_hochberg` call outliers at a rate of 10 %, over 2,000 random splits of the scores
into 1,000 to compare with and 500 in question.

`alarms`: the share of ordinary rows that are called outliers. Detectors are fitted to 70 % of the rows of tables that
scikit-learn brings, without outliers, and judge the other 30 %, and as many spoilt rows: each of their entries comes from a
training row of its own, so that columns are as ever and independent. `VAEOutlierDetector` by default, and with the threshold of
contamination=0.1, in the same fit; IsolationForest and LocalOutlierFactor by default, the latter on standardised columns.

Figures go to benchmarks/results/outliers-cpu.json; what has figures there is not done again.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import load
from pyrovae.sklearn import VAEOutlierDetector

RESULTS = Path(__file__).parent / "results" / "outliers-cpu.json"
TABLES = {"breastw": 4, "pima": 29, "cardio": 6, "vowels": 40, "thyroid": 38}  # ADBench's numbers of them
FILES = {name: f"{number}_{'Pima' if name == 'pima' else name}.npz" for name, number in TABLES.items()}
LATENT, HIDDEN, EPOCHS, RATE, FLOOR = 20, 256, 30, 3e-3, 0.02  # of the VAE of images
DRAWS = 20  # of the guide
TRAINING, REFINED = 10_000, 250  # rows of the models of clothes and digits, and those of each kind that are scored
COMPONENTS, PARTS = 50, 8  # principal components of one digit, and parts of their mixture
NEIGHBOURS = 1
READ = {"wine": load_wine, "iris": load_iris, "breast cancer": load_breast_cancer, "digits": load_digits}
MIXTURE = (1, 2, 4, 8)  # components of the Gaussian mixture, of which BIC chooses

Array = NDArray[np.float64]


class MixtureOnComponents:
    """A Gaussian mixture with full covariances, components by BIC, of the first principal components."""

    def __init__(self, components: float, seed: int, sizes: tuple[int, ...] = MIXTURE) -> None:
        self.components, self.seed, self.sizes = components, seed, sizes

    def fit(self, x: Array) -> MixtureOnComponents:
        self.pca = PCA(self.components, random_state=self.seed).fit(x)
        codes = self.pca.transform(x)
        fits = [GaussianMixture(k, reg_covar=1e-3, random_state=self.seed).fit(codes) for k in self.sizes]
        self.mixture = min(fits, key=lambda one: one.bic(codes))
        return self

    def score_samples(self, x: Array) -> Array:
        found: Array = self.mixture.score_samples(self.pca.transform(x))
        return found


class ByPyOD:
    """A detector of PyOD, whose scores are the higher, the stranger."""

    def __init__(self, module: str, name: str, **options: Any) -> None:
        self.detector = getattr(importlib.import_module(f"pyod.models.{module}"), name)(**options)

    def fit(self, x: Array) -> ByPyOD:
        self.detector.fit(x)
        return self

    def score_samples(self, x: Array) -> Array:
        return -np.asarray(self.detector.decision_function(x), dtype=np.float64)


def rivals(seed: int) -> dict[str, Callable[[], Any]]:
    theirs: dict[str, Callable[[], Any]] = {
        "OneClassSVM": OneClassSVM,
        "IsolationForest": lambda: IsolationForest(random_state=seed),
        "GaussianMixture on PCA": lambda: MixtureOnComponents(0.95, seed),
    }
    if importlib.util.find_spec("pyod"):
        theirs |= {
            "PyOD ECOD": lambda: ByPyOD("ecod", "ECOD"),
            "PyOD KNN": lambda: ByPyOD("knn", "KNN"),
            "PyOD VAE": lambda: ByPyOD("vae", "VAE", random_state=seed, verbose=0),
        }
    return theirs


def areas(score: Array, strange: Array) -> dict[str, float]:
    return {"auroc": float(roc_auc_score(strange, score)), "ap": float(average_precision_score(strange, score))}


def tables(folder: Path, splits: int) -> None:
    for split in range(splits):
        for name, file in FILES.items():
            data = np.load(folder / file)
            train, test, _, strange = train_test_split(
                data["X"], data["y"], test_size=0.3, stratify=data["y"], random_state=split
            )
            scaling = StandardScaler().fit(train)
            ours: dict[str, Callable[[], Any]] = {"VAEOutlierDetector": partial(VAEOutlierDetector, random_state=split)}
            for who, make in {**ours, **rivals(split)}.items():
                if done("tables", name, who, str(split)):
                    continue
                start = time.process_time()
                detector = make().fit(scaling.transform(train))
                score = -detector.score_samples(scaling.transform(test))
                found = areas(score, strange) | {"cpu_seconds": time.process_time() - start}
                keep(found, "tables", name, who, str(split))


def alarms(splits: int) -> None:
    for split, (name, read) in itertools.product(range(splits), READ.items()):
        if done("alarms", name, str(split)):
            continue
        train, new = train_test_split(read().data, test_size=0.3, random_state=split)
        rng = np.random.default_rng(split)
        spoilt = np.stack([rng.choice(column, len(new)) for column in train.T], axis=1)
        start = time.process_time()
        ours = VAEOutlierDetector(random_state=split).fit(train)
        seconds = time.process_time() - start
        of_new, of_spoilt = ours.score_samples(new), ours.score_samples(spoilt)
        by_training_rows = np.percentile(ours.score_samples(train), 10)
        found: dict[str, Any] = {
            "VAEOutlierDetector": called(of_new < ours.offset_, of_spoilt < ours.offset_),
            "VAEOutlierDetector, contamination=0.1": called(of_new < by_training_rows, of_spoilt < by_training_rows),
        }
        found["VAEOutlierDetector"] |= {
            "auroc": float(roc_auc_score(np.repeat([False, True], len(new)), -np.r_[of_new, of_spoilt])),
            "cpu_seconds_of_fit": seconds,
        }
        scaled = make_pipeline(StandardScaler(), LocalOutlierFactor(novelty=True))
        for who, detector in {
            "IsolationForest": IsolationForest(random_state=split),
            "LocalOutlierFactor": scaled,
        }.items():
            detector.fit(train)
            found[who] = called(detector.predict(new) < 0, detector.predict(spoilt) < 0)
        keep(found, "alarms", name, str(split))
    for name in READ:
        each = list(read_results()["alarms"][name].values())
        mean = {who: {key: float(np.mean([one[who][key] for one in each])) for key in each[0][who]} for who in each[0]}
        keep(mean, "alarms, mean", name)


def called(new: NDArray[np.bool_], spoilt: NDArray[np.bool_]) -> dict[str, float]:
    return {"ordinary": float(new.mean()), "spoilt": float(spoilt.mean())}


def vae(latent: int = LATENT) -> pv.VAE:
    likelihood = pv.mlp(latent, fam.Normal(784, scale="shared", floor=FLOOR), hidden=(HIDDEN,))
    return pv.VAE(pv.priors.StandardNormal(latent), likelihood, pv.mlp(784, fam.Normal(latent), hidden=(HIDDEN,)))


def fit(train: Tensor, validation: Tensor, epochs: int = EPOCHS, transform: Any = None) -> pv.Fit:
    torch.manual_seed(0)
    how: dict[str, Any] = {"schedule": pv.schedules.one_cycle(RATE), "seed": 0, "progress": False, "threads": 1}
    fitted = pv.fit(vae(), train, epochs=epochs, batch_size=128, validation=validation, transform=transform, **how)
    fitted.transform = None
    return fitted


def score(fitted: pv.Fit, x: Tensor) -> Tensor:
    return pv.anomaly_score(fitted, x, num_samples=DRAWS, proposal="guide", seed=0).score


def detectors_of_digits() -> dict[str, Callable[[], Any]]:
    theirs: dict[str, Callable[[], Any]] = {}
    if importlib.util.find_spec("pyod"):
        theirs["PyOD KNN"] = lambda: ByPyOD("knn", "KNN", n_neighbors=NEIGHBOURS, algorithm="brute")
    theirs |= {
        "GaussianMixture on PCA": lambda: MixtureOnComponents(COMPONENTS, 0, (PARTS,)),
        "IsolationForest": lambda: IsolationForest(random_state=0),
        "OneClassSVM": lambda: OneClassSVM(nu=0.1),
    }
    if importlib.util.find_spec("pyod"):
        theirs["PyOD ECOD"] = lambda: ByPyOD("ecod", "ECOD")
        theirs["PyOD VAE"] = lambda: ByPyOD("vae", "VAE", random_state=0, verbose=0)
    return theirs


def digits(root: Path) -> None:
    data = load("mnist", data_root=root)
    assert data.x_test is not None
    test, labels = data.x_test, data.y_test
    strange = [(labels != digit).numpy() for digit in range(10)]
    for digit in range(10):
        if done("digits", "VAE", str(digit)):
            continue
        start, own = time.process_time(), data.x[data.y == digit]
        tenth = len(own) // 10
        fitted = fit(own[tenth:], own[:tenth])
        found, usual = score(fitted, test), score(fitted, own[:tenth]).mean()
        seconds = time.process_time() - start
        keep(areas(found.numpy(), strange[digit]) | {"cpu_seconds": seconds}, "digits", "VAE", str(digit))
        keep(areas((found - usual).abs().numpy(), strange[digit]), "digits", "VAE, typicality", str(digit))
    for name, make in detectors_of_digits().items():
        for digit in range(10):
            if done("digits", name, str(digit)):
                continue
            start = time.process_time()
            detector = make().fit(data.x[data.y == digit].numpy())
            found = areas(-detector.score_samples(test.numpy()), strange[digit])
            keep(found | {"cpu_seconds": time.process_time() - start}, "digits", name, str(digit))
        means = {
            who: float(np.mean([one["auroc"] for one in each.values()]))
            for who, each in read_results()["digits"].items()
            if len(each) == 10
        }
        keep(means, "mean over digits")


class Perturbed:
    """A tenth of the pixels replaced by random grey values: the background of Ren et al. 2019, arXiv:1906.02845."""

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = batch["x"]
        return {**batch, "x": torch.where(torch.rand_like(x) < 0.1, torch.rand_like(x), x)}


def clothes(root: Path) -> None:
    rows = {name: load(name, data_root=root) for name in ("mnist", "fashion-mnist")}
    for inside, outside in (("mnist", "fashion-mnist"), ("fashion-mnist", "mnist")):
        own, other = rows[inside], rows[outside].x_test
        assert own.x_test is not None and other is not None
        train, validation = own.x[:TRAINING], own.x[TRAINING : TRAINING + 1000]
        start = time.process_time()
        fitted = fit(train, validation, 20)
        background = fit(train, validation, 20, Perturbed())
        few = torch.cat([own.x_test[:REFINED], other[:REFINED]])
        strange = np.repeat([False, True], REFINED)
        found = {
            name: areas(each.numpy(), strange) for name, each in scores(fitted, background, few, validation).items()
        }
        keep(found | {"cpu_seconds": time.process_time() - start}, "clothes", f"{outside} under a model of {inside}")
        if inside == "mnist":
            keep(false_alarms(score(fitted, own.x_test[:4000]), score(fitted, other[:1000])), "conformal")


def scores(fitted: pv.Fit, background: pv.Fit, x: Tensor, validation: Tensor) -> dict[str, Tensor]:
    """All scores, those that need a refined q from one refinement."""
    by_guide, usual = score(fitted, x), score(fitted, validation).mean()
    refined, ordinary = (pv.refine(fitted, rows, 200, seed=0) for rows in (x, validation[:100]))
    return {
        "log_likelihood, guide": by_guide,
        "log_likelihood, refined": -refined.log_likelihood,
        "regret": refined.amortisation_gap,
        "typicality, guide": (by_guide - usual).abs(),
        "typicality, refined": (ordinary.log_likelihood.mean() - refined.log_likelihood).abs(),
        "ratio, guide": by_guide - score(background, x),
    }


def false_alarms(ordinary: Tensor, strange: Tensor, splits: int = 2000) -> dict[str, Any]:
    """The share of ordinary rows among those that are called, and other rates, over random splits of the scores."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for num_strange in (0, 25, 100):
        for _ in range(splits):
            order = torch.randperm(len(ordinary), generator=generator)
            usual, new = ordinary[order[:1000]], ordinary[order[1000 : 1500 - num_strange]]
            odd = strange[torch.randperm(len(strange), generator=generator)[:num_strange]]
            p = pv.conformal_p_values(usual, torch.cat([new, odd]))
            called = pv.benjamini_hochberg(p, 0.1)
            in_vain = int(called[: len(new)].sum())
            add(f"false discoveries, {num_strange} of 500 strange", in_vain / max(int(called.sum()), 1))
            if num_strange:
                add(f"found, {num_strange} of 500 strange", called[len(new) :].double().mean().item())
            else:
                add("p at most 0.05, none strange", (p <= 0.05).double().mean().item())
    return {
        name: {"mean": float(np.mean(each)), "se": float(np.std(each) / len(each) ** 0.5), "splits": len(each)}
        for name, each in found.items()
    }


def read_results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def done(*names: str) -> bool:
    at: Any = read_results()
    for name in names:
        at = at.get(name, {})
    return bool(at)


def keep(found: Any, *names: str) -> None:
    """Put figures at their place in the file, and print them."""
    kept = read_results() | {"torch": str(torch.__version__)}
    at = kept
    for name in names[:-1]:
        at = at.setdefault(name, {})
    at[names[-1]] = found
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(*names, json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("tables", "digits", "clothes", "alarms"))
    parser.add_argument("--data-root", type=Path, help="the folder with the files of MNIST and Fashion-MNIST")
    parser.add_argument("--tables", type=Path, help="the folder with ADBench's tables")
    parser.add_argument("--splits", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.part == "tables":
        tables(given.tables, given.splits)
    elif given.part == "alarms":
        alarms(given.splits)
    else:
        {"digits": digits, "clothes": clothes}[given.part](given.data_root)


if __name__ == "__main__":
    main()
