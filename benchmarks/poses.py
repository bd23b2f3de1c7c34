"""Images that are turned and shifted: a VAE, a spatial VAE, and pyroVED's iVAE with invariances, by held-out bounds.

    python benchmarks/poses.py --data-root DIR [--seeds 0,1,2]

10,000 images of MNIST's training set, each turned by an angle of N(0, 0.8^2) and shifted by N(0, 2^2) pixels to the right and
down by SciPy, then binarised by one draw, and 300 others, moved in the same way, that are held out. All models have eight
latent dimensions, of which three are the pose where there is one, and are fitted for 20 epochs of steps of 100 rows. Ours: a
convolutional encoder of 16 and 32 channels and 128 units, a decoder of 400 units, one cycle up to 3e-3; once with a KL weight
of 1, and once with one that falls from 5 to 1 in the first 60 % of the fit (which was tried on these images with ten
dimensions of z). pyroVED's as it comes, 128-128 units, tanh, Adam with 1e-3, and the data's scale of shifts. log p(x) of each
is estimated by `pv.importance` with 500 draws from its guide, since pyroVED's pair does not run with several particles at once,
so that no proposal can be refined for it; for ours, 500 draws from refined proposals stand beside it. The correlation is that
of the posterior means of angle and shifts with the true ones; of the angle within each digit.

pyroVED 0.3.0 must be importable, or its row is left out. One thread. Writes benchmarks/results/poses-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

RESULTS = Path(__file__).parent / "results" / "poses-cpu.json"
ANGLE, SHIFT, L, SIDE = 0.8, 2.0, 5, 28
MODELS = ("VAE", "SpatialVAE", "SpatialVAE, KL weight from 5", "pyroVED")


def moved(root: Path, train: int, test: int) -> tuple[Tensor, Tensor, Tensor]:
    """Binary images (N, 28, 28), their angles and shifts to the right and down (N, 3), and digits (N,)."""
    mnist, random = pv.data.load("mnist", data_root=root), np.random.default_rng(0)
    which = random.permutation(60_000)[: train + test]
    moves = random.normal(size=(len(which), 3)) * [ANGLE, SHIFT, SHIFT]
    images = []
    for grey, (angle, right, down) in zip(mnist.x[which].reshape(-1, SIDE, SIDE).numpy(), moves):
        turned = ndimage.rotate(grey, np.degrees(angle), reshape=False, order=1)
        images.append(ndimage.shift(turned, (down, right), order=1))
    grey = np.stack(images) / float(mnist.x.max())
    assert mnist.y is not None
    x = torch.tensor(random.random(grey.shape) < grey, dtype=torch.float32)
    return x, torch.tensor(moves, dtype=torch.float32), mnist.y[which]


def encoder(latent: int) -> pv.Conditional:
    return pv.conv((SIDE, SIDE), fam.Normal(latent), channels=(16, 32), hidden=(128,))


def ours(name: str, pose: pv.nets.Pose) -> Any:
    pixels = fam.Bernoulli((SIDE, SIDE))
    if name == "VAE":
        return pv.VAE(pv.priors.StandardNormal(L + 3), pv.mlp(L + 3, pixels), encoder(L + 3))
    return pv.SpatialVAE(
        prior=pv.priors.StandardNormal(L),
        pose_prior=pv.priors.StandardNormal(pose.size),
        likelihood=pv.Conditional(pv.nets.Posed(pv.nets.MLP(L, pixels.param_shape), pose), pixels),
        pose_encoder=encoder(pose.size),
        encoder=pv.Conditional(pv.nets.Upright(encoder(L).net, pose), fam.Normal(L)),
    )


def dear_at_first(step: pv.schedules.Step) -> dict[str, float]:
    return {"kl": 1 + 4 * max(0.0, 1 - step.progress / 0.6)}


def fit(name: str, train: Tensor, epochs: int, seed: int) -> tuple[Any, Any, float]:
    """What answers questions, the posterior means of angle and shifts as a function of rows, and the seconds of the fit."""
    torch.manual_seed(seed)
    began = time.perf_counter()
    if name == "pyroVED":
        from pyroved.models import iVAE
        from pyroved.trainers import SVItrainer
        from pyroved.utils import init_dataloader

        model = iVAE(
            (SIDE, SIDE),
            latent_dim=L,
            invariances=["r", "t"],
            seed=seed,
            device="cpu",
            dx_prior=SHIFT / (SIDE / 2),
            dy_prior=SHIFT / (SIDE / 2),
        )
        trainer, loader = SVItrainer(model, seed=seed, device="cpu"), init_dataloader(train, batch_size=100)
        for _ in range(epochs):
            trainer.step(loader)
        seconds = time.perf_counter() - began
        asked = pv.fit(pv.Pair(model.model, model.guide), train, epochs=0, batch_size=100)  # fitted by its own trainer
        return asked, lambda x: model.encode(x)[0][:, :3], seconds
    pose = pv.nets.Pose((SIDE, SIDE), rotation=ANGLE, shift=SHIFT / (SIDE / 2))
    schedule: list[Any] = [pv.schedules.one_cycle(3e-3), *([dear_at_first] if "from 5" in name else [])]
    fitted = pv.fit(
        ours(name, pose),
        train,
        epochs=epochs,
        batch_size=100,
        seed=seed,
        schedule=schedule,
        engine="traced",
        progress=False,
    )
    return fitted, lambda x: pv.encode(fitted, x, site="pose"), time.perf_counter() - began


def correlation(a: Tensor, b: Tensor) -> float:
    return abs(float(torch.corrcoef(torch.stack([a.float(), b.float()]))[0, 1]))


def scores(
    name: str, asked: Any, means: Any, x: Tensor, moves: Tensor, digit: Tensor, num_samples: int
) -> dict[str, float]:
    rows = {"x": x}
    found = pv.importance(asked, rows, num_samples=num_samples, proposal="guide", seed=0)
    told = {"log_p": found.log_likelihood.mean().item(), "elbo": found.elbo.mean().item()}
    told["standard_error"] = (found.log_likelihood.std() / len(x) ** 0.5).item()
    if name != "pyroVED":
        told["log_p_refined"] = pv.log_likelihood(asked, rows, num_samples, seed=0).mean().item()
    if name != "VAE":
        pose = means(x).cpu()
        told["angle"] = float(np.mean([correlation(pose[digit == c, 0], moves[digit == c, 0]) for c in range(10)]))
        told["shift"] = float(
            np.mean([max(correlation(pose[:, 1 + i], moves[:, 1 + j]) for j in (0, 1)) for i in (0, 1)])
        )
    return {key: round(float(value), 3) for key, value in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default=";".join(MODELS), help="models, with semicolons between them")
    parser.add_argument("--smoke", action="store_true", help="only show that it runs: few rows, one epoch, no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, epochs, draws = (200, 1, 10) if options.smoke else (10_000, 20, 500)
    test = 60 if options.smoke else 300
    x, moves, digit = moved(options.data_root, train, test)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.only.split(";"):
        if name == "pyroVED" and find_spec("pyroved") is None:
            print("pyroVED is not installed, and left out")
            continue
        for seed in map(int, options.seeds.split(",")):
            asked, means, seconds = fit(name, x[:train], epochs, seed)
            found = scores(name, asked, means, x[train:], moves[train:], digit[train:], draws)
            results.setdefault(name, {})[str(seed)] = {**found, "seconds": round(seconds, 1)}
            print(f"{name}, seed {seed}: {results[name][str(seed)]}", flush=True)
            if not options.smoke:
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
