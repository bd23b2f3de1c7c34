"""MNIST, dynamically binarised, 784-400-20: time of the fit, test ELBO on all test images, log p(x) on the first 1,000.

    python benchmarks/mnist.py --data-root DIR

The learning rate was chosen on validation rows (--validation 0.1: -100.9, -99.6, -99.2 nats at 3e-3, 6e-3, 1e-2), never on
the test set. Writes benchmarks/results/mnist.json.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="folder with MNIST's files")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-2, help="peak of the one-cycle schedule")
    parser.add_argument("--validation", type=float, default=0.0, help="share of the training rows to hold out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "mnist.json"))
    options = parser.parse_args()

    data = load("mnist", data_root=options.data_root)
    assert data.x_test is not None
    torch.manual_seed(options.seed)
    vae = pv.VAE(pv.priors.StandardNormal(20), pv.mlp(20, fam.Bernoulli(784)), pv.mlp(784, fam.Normal(20)))
    began = time.perf_counter()
    fitted = pv.fit(
        vae,
        data.x,
        epochs=options.epochs,
        batch_size=256,
        validation=options.validation or None,
        schedule=pv.schedules.one_cycle(options.learning_rate),
        transform=pv.transforms.Binarize(),
        seed=options.seed,
        device=options.device,
    )
    seconds = time.perf_counter() - began
    result = {
        "protocol": "dynamic binarisation, test set binarised once, 784-400-20, ReLU, batch 256, Adam, one-cycle",
        "epochs": options.epochs,
        "peak_learning_rate": options.learning_rate,
        "training_rows": fitted.settings["num_rows"],
        "seed": options.seed,
        "fit_seconds": round(seconds, 1),
        "validation_elbo": fitted.history[-1].get("validation_elbo"),
        "machine": f"{os.cpu_count()} cores {platform.machine()}, {fitted.device.type}, torch {torch.__version__}",
    }
    if not options.validation:  # a run that chooses something does not look at the test set
        elbo = pv.importance(fitted, data.x_test, num_samples=10, seed=1).summary()
        began = time.perf_counter()
        found = pv.importance(fitted, data.x_test[:1000], num_samples=1000, seed=1)
        result["log_likelihood_seconds"] = round(time.perf_counter() - began, 1)
        summary = found.summary()
        result |= {
            "test_negative_elbo": round(-elbo["elbo"], 3),
            "test_negative_elbo_se": round(elbo["elbo_se"], 3),
            "log_likelihood_1000_images_K1000": round(summary["log_likelihood"], 3),
            "log_likelihood_se": round(summary["log_likelihood_se"], 3),
            "negative_elbo_same_1000_images": round(-summary["elbo"], 3),
            "k_hat_median": round(found.k_hat.median().item(), 3),
            "k_hat_above_threshold": round(summary["k_hat_above_threshold"], 3),
            "ess_mean": round(summary["ess"], 1),
        }
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
