"""Does an encoder that saw parts of rows in training tell classes apart better? A logistic regression on codes, few labels.

    python benchmarks/masked_training.py [--splits 10] [--data-root DIR] [--choose]

The same VAE is fitted twice to rows without labels: as it is, and with `pv.nets.RandomMask` before its encoder, so that in
training each row loses a share of its entries, drawn uniformly from 0 to `MOST`. The means of q(z | x) of whole rows, brought
to standard deviation 1, are the inputs of a logistic regression on five and on ten labelled rows a class; beside it, one on
the entries themselves. Its penalty is chosen by cross-validation on the labelled rows. Digits: 360 rows held out.
MNIST, pixels cut at 1/2: 10,000 training images and the 10,000 test images, two splits; only with --data-root. log p(x) of 200
test rows says what the fit as a model pays. `--choose` tries other values of `MOST` first, on digits with seeds 100 and 101,
and goes on with the one of the highest accuracy. Figures go to benchmarks/results/masked-training-cpu.json; what is in it is
not done again.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import train_test_split
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import load

RESULTS = Path(__file__).parent / "results" / "masked-training-cpu.json"
MOST = 0.5
TRIED = (0.0, 0.5, 1.0)
EACH = (5, 10)
LATENT = {"digits": 20, "mnist": 40}
MNIST_SPLITS = 2
CHOOSING = range(100, 102)


def rows(name: str, root: str | None, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training rows, their labels, test rows, their labels."""
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        x, x_test, y, y_test = train_test_split(x, y, test_size=360, stratify=y, random_state=seed)
        return (*map(torch.as_tensor, (x.astype(np.float32), y, x_test.astype(np.float32), y_test)),)
    data = load("mnist", data_root=root)
    some = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(seed))[:10_000]
    assert data.x_test is not None and data.y is not None and data.y_test is not None
    return (data.x[some] > 0.5).float(), data.y[some], (data.x_test > 0.5).float(), data.y_test


def fit(name: str, x: Tensor, most: float, seed: int) -> pv.Fit:
    torch.manual_seed(seed)
    size, latent, hidden = x.shape[1], LATENT[name], (200,) if name == "digits" else (400,)
    q = fam.Normal(latent)
    net: torch.nn.Module = pv.nets.WithMask(pv.nets.MLP((size, size), q.param_shape, hidden))
    net = pv.nets.Rescaled(net, 1 / 16) if name == "digits" else net
    net = pv.nets.RandomMask(net, most) if most else net
    family = fam.BetaBinomial(size, total_count=16) if name == "digits" else fam.Bernoulli(size)
    vae = pv.VAE(pv.priors.StandardNormal(latent), pv.mlp(latent, family, hidden=hidden), pv.Conditional(net, q))
    how: dict[str, Any] = {"schedule": pv.schedules.one_cycle(3e-3), "seed": seed, "threads": 1, "progress": False}
    return pv.fit(vae, x, epochs=100 if name == "digits" else 30, batch_size=128, **how)


def accuracies(inputs: Tensor, labels: Tensor, test_inputs: Tensor, test_labels: Tensor, seed: int) -> dict[str, float]:
    """Of a logistic regression, by the number of labelled rows of each class."""
    found = {}
    mean, sd = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
    inputs, test_inputs = (inputs - mean) / sd, (test_inputs - mean) / sd
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for each in EACH:
        few = torch.cat([order[labels[order] == c][:each] for c in range(10)])
        probe = LogisticRegressionCV(Cs=np.logspace(-3, 1, 5), cv=5, max_iter=2000, scoring="neg_log_loss")
        probe.fit(inputs[few].numpy(), labels[few].numpy())
        found[str(each)] = float((probe.predict(test_inputs.numpy()) == test_labels.numpy()).mean())
    return found


def measure(name: str, root: str | None, most: float, seed: int) -> dict[str, Any]:
    x, y, x_test, y_test = rows(name, root, seed)
    start = time.process_time()
    fitted = fit(name, x, most, seed)
    seconds = time.process_time() - start
    codes = accuracies(pv.encode(fitted, x), y, pv.encode(fitted, x_test), y_test, seed)
    log_p = pv.importance(fitted, x_test[:200], 500, seed=0).log_likelihood.mean().item()
    return {"accuracy": codes, "log_p": log_p, "fit_cpu_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="the folder with MNIST's files")
    parser.add_argument("--splits", type=int, default=10, help="of the digits")
    parser.add_argument("--choose", action="store_true", help="choose the largest share on other splits first")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result["torch"] = str(torch.__version__)

    def measured(part: str, name: str, seeds: range, shares: tuple[float, ...]) -> dict[str, dict[str, Any]]:
        for seed in seeds:
            kept = result.setdefault(part, {}).setdefault(str(seed), {})
            for most in shares:
                if str(most) not in kept:
                    kept[str(most)] = measure(name, given.data_root, most, seed)
            if "entries" not in kept:
                x, y, x_test, y_test = rows(name, given.data_root, seed)
                kept["entries"] = {"accuracy": accuracies(x, y, x_test, y_test, seed)}
            RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        report(part, result[part])
        return dict(result[part])

    most = MOST
    if given.choose:
        tried = measured("chosen on", "digits", CHOOSING, TRIED)
        most = max(TRIED[1:], key=lambda m: sum(sum(found[str(m)]["accuracy"].values()) for found in tried.values()))
    result["most"] = most
    measured("digits", "digits", range(given.splits), (0.0, most))
    if given.data_root is not None:
        measured("mnist", "mnist", range(MNIST_SPLITS), (0.0, most))


def report(name: str, by_seed: dict[str, dict[str, Any]]) -> None:
    for way in next(iter(by_seed.values())):
        said = []
        for each in map(str, EACH):
            values = np.array([found[way]["accuracy"][each] for found in by_seed.values()])
            gain = values - [found["0.0"]["accuracy"][each] for found in by_seed.values()]
            error = gain.std(ddof=1) / len(gain) ** 0.5
            said.append(f"{each} labels a class {values.mean():.4f} (gain {gain.mean():+.4f} ± {error:.4f})")
        log_p = [found[way].get("log_p", np.nan) for found in by_seed.values()]
        print(f"{name:10} {way:8} {'; '.join(said)}; log p(x) {np.mean(log_p):.2f}", flush=True)


if __name__ == "__main__":
    main()
