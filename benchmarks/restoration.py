"""How near to the truth are digits restored from noise, from a quarter of their pixels, and from 7 x 7 means?

    python benchmarks/restoration.py --data-root DIR [--images 200] [--only noise missing means]

MNIST's grey values from 0 to 1. One VAE, 784-500-32 with a Normal likelihood of one noise scale, is fitted to 50,000 training
images as they are; no corruption is seen in training. The first test images are corrupted: by noise of standard deviation 0.3,
by 75 % of their pixels missing, each at random, and by means of 4 x 4 pixels with noise of standard deviation 0.01.
`pv.restore` asks for the mean given what is left. Beside it: a median filter, or a cubic interpolation (SciPy); the mean of
the nearest training images, by what is seen; the conditional mean of a Gaussian that has the mean and the covariance of the
training images; and the mean of each pixel. All are cut off at 0 and 1. Figures are peak signal-to-noise ratios, 10 log10(1 /
mean squared error), averaged over images; of missing pixels over these alone. The log-density of the missing pixels given the
others is log p(x) - log p(x_seen), of the Gaussian also with 0.01 added to its diagonal, a noise of standard deviation 0.1.

The number of neighbours, the width of the filter, and what is added to the diagonal of the covariance, have the highest ratio
on 100 training images that the fit has not seen. Figures go to benchmarks/results/restoration-cpu.json, and the first eight
images to restoration-cpu.png beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import load

RESULTS = Path(__file__).parent / "results" / "restoration-cpu.json"
LATENT = 32
NEIGHBOURS = (1, 3, 5, 10, 20)
WIDTHS = (3, 5)
RIDGES = (1e-4, 1e-3, 1e-2)
EPOCHS, RATE, TRAINING = 20, 3e-3, 50_000
SIDE, FACTOR = 28, 4
NAMES = ("noise", "missing", "means")


def means(x: Tensor) -> Tensor:
    """The means of squares of 4 x 4 pixels, `(*batch, 49)` from `(*batch, 784)`."""
    small = SIDE // FACTOR
    return x.reshape(*x.shape[:-1], small, FACTOR, small, FACTOR).mean((-3, -1)).flatten(-2)


def corruptions(num: int, seed: int) -> dict[str, pv.corruptions.Corruption]:
    hidden = torch.rand(num, SIDE**2, generator=torch.Generator().manual_seed(seed)) < 0.75
    return {
        "noise": pv.corruptions.Noise(0.3),
        "missing": pv.corruptions.Mask(hidden),
        "means": pv.corruptions.Corruption(means, sd=0.01, linear=True),
    }


class ZeroFilled(nn.Module):
    """An encoder that takes a pixel that is not seen for background; a refined proposal starts from what it says."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x.nan_to_num(0.0))


def fit(train: Tensor, validation: Tensor, latent: int = LATENT) -> pv.Fit:
    torch.manual_seed(0)
    family, q = fam.Normal(SIDE**2, scale="shared", floor=0.02), fam.Normal(latent)
    vae = pv.VAE(
        pv.priors.StandardNormal(latent),
        pv.observed_only(pv.mlp(latent, family, hidden=(500,))),
        pv.Conditional(ZeroFilled(pv.nets.MLP(SIDE**2, q.param_shape, (500,))), q),
    )
    how: dict[str, Any] = {"schedule": pv.schedules.one_cycle(RATE), "seed": 0, "progress": False, "threads": 1}
    return pv.fit(vae, train, epochs=EPOCHS, batch_size=256, validation=validation, **how)


def as_images(rows: Tensor) -> Any:
    side = math.isqrt(rows.shape[-1])
    return rows.reshape(-1, side, side).numpy()


def median(width: int) -> Callable[[Tensor], Tensor]:
    return lambda seen: torch.from_numpy(ndimage.median_filter(as_images(seen), (1, width, width))).flatten(1)


def interpolated(seen: Tensor) -> Tensor:
    """Of 7 x 7 means, each at the middle of its square."""
    wide = ndimage.zoom(as_images(seen), (1, FACTOR, FACTOR), order=3, mode="nearest", grid_mode=True)
    return torch.from_numpy(wide).flatten(1)


def filter_of_seen(seen: Tensor) -> Tensor:
    """The median of the pixels that are seen among 5 x 5; 0 where there are none."""
    found = ndimage.generic_filter(as_images(seen), _median_of_seen, size=(1, 5, 5), mode="constant", cval=np.nan)
    return torch.from_numpy(found).flatten(1)


def _median_of_seen(window: Any) -> float:
    there = window[~np.isnan(window)]
    return float(np.median(there)) if len(there) else 0.0


def nearest(train: Tensor, corruption: pv.corruptions.Corruption, num: int) -> Callable[[Tensor], Tensor]:
    """The mean of the training images whose corrupted version, without noise, is nearest in what is seen."""
    plain = train if isinstance(corruption, pv.corruptions.Mask) else corruption.function(train)

    def restored(seen: Tensor) -> Tensor:
        there = (~seen.isnan()).float()
        squared = plain.square() @ there.T - 2 * plain @ seen.nan_to_num(0.0).T  # plus what is the same for all images
        return train[squared.topk(num, 0, largest=False).indices.T].mean(1)

    return restored


class Gaussian:
    """x ~ N(m, C), with the mean and the covariance of the training images, and something added to its diagonal."""

    def __init__(self, train: Tensor, ridge: float) -> None:
        self.mean = train.double().mean(0)
        self.covariance = train.double().T.cov() + ridge * torch.eye(train.shape[1], dtype=torch.float64)

    def restored(self, seen: Tensor, corruption: pv.corruptions.Corruption) -> Tensor:
        if isinstance(corruption, pv.corruptions.Mask):
            return torch.stack([self._filled(row) for row in seen.double()]).float()
        a = corruption.function(torch.eye(len(self.mean), dtype=torch.float64)).T
        sd = torch.as_tensor(corruption.sd).double()
        seen_covariance = a @ self.covariance @ a.T + sd.square() * torch.eye(len(a), dtype=torch.float64)
        gain = torch.linalg.solve(seen_covariance, a @ self.covariance)
        return (self.mean + (seen.double() - self.mean @ a.T) @ gain).float()

    def _filled(self, row: Tensor) -> Tensor:
        there = ~row.isnan()
        gain = torch.linalg.solve(self.covariance[there][:, there], self.covariance[there])
        return torch.where(there, row, self.mean + (row - self.mean)[there] @ gain)

    def log_conditional(self, x: Tensor, seen: Tensor) -> Tensor:
        """The log-density of the missing pixels given the others, `(N,)`."""
        return torch.stack([self._log_p(row) - self._log_p(part) for row, part in zip(x.double(), seen.double())])

    def _log_p(self, row: Tensor) -> Tensor:
        there = ~row.isnan()
        covariance = self.covariance[there][:, there]
        return torch.distributions.MultivariateNormal(self.mean[there], covariance).log_prob(row[there])


def ratio(restored: Tensor, x: Tensor, seen: Tensor) -> Tensor:
    """Peak signal-to-noise ratios, in dB, `(N,)`; of the missing pixels where some are."""
    error = (restored.clamp(0, 1) - x).square()
    if seen.shape == x.shape and bool(seen.isnan().any()):
        error = torch.where(seen.isnan(), error, torch.nan)
    return -10 * error.nanmean(1).log10()


def best(ways: Mapping[Any, Callable[[Tensor], Tensor]], x: Tensor, seen: Tensor) -> Any:
    return max(ways, key=lambda name: ratio(ways[name](seen), x, seen).mean().item())


def with_error(values: Tensor) -> list[float]:
    return [values.mean().item(), (values.std() / len(values) ** 0.5).item()]


def measure(
    fitted: pv.Fit, name: str, train: Tensor, validation: Tensor, x: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Figures of one corruption, and images by what they are."""
    torch.manual_seed(1)
    tried = corruptions(len(validation), seed=1)[name](validation)
    corruption = corruptions(len(x), seed=0)[name]
    seen = corruption(x)
    local: dict[Any, Callable[[Tensor], Tensor]] = {"cubic": interpolated}
    if name == "noise":
        local = {width: median(width) for width in WIDTHS}
    elif name == "missing":
        local = {5: filter_of_seen}
    near = {num: nearest(train, corruption, num) for num in NEIGHBOURS}
    gaussians = {ridge: Gaussian(train, ridge) for ridge in RIDGES}
    linear = {ridge: partial(one.restored, corruption=corruption) for ridge, one in gaussians.items()}
    rivals = {"filter": local, "nearest images": near, "gaussian": linear}
    chosen = {rival: best(ways, validation, tried) for rival, ways in rivals.items()}
    start = time.process_time()
    restored = pv.restore(fitted, seen, corruption, num_samples=100, seed=0)
    seconds = time.process_time() - start
    low, high = restored.draws.quantile(0.05, 0), restored.draws.quantile(0.95, 0)
    inside = (low <= x) & (x <= high)
    lost = seen.isnan() if name == "missing" else torch.ones_like(inside)
    images = {"pv.restore": restored.mean}
    images |= {rival: ways[chosen[rival]](seen) for rival, ways in rivals.items()}
    images["mean of each pixel"] = train.mean(0).expand_as(x)
    if name == "noise":
        images["as seen"] = seen
    found: dict[str, Any] = {
        **{way: with_error(ratio(image, x, seen)) for way, image in images.items()},
        "better than nearest images": (ratio(restored.mean, x, seen) > ratio(images["nearest images"], x, seen))
        .double()
        .mean()
        .item(),
        "chosen": chosen,
        "k_hat_above_threshold": (restored.k_hat > pv.k_hat_threshold(1000)).double().mean().item(),
        "ess": restored.ess.median().item(),
        "inside_90": inside[lost].double().mean().item(),
        "inside_90_of_ink": inside[lost & (x > 0)].double().mean().item(),
        "cpu_seconds": seconds,
    }
    if name == "missing":
        whole, part = (pv.importance(fitted, rows, 1000, seed=0) for rows in (x, seen))
        pixels = seen.isnan().sum(1)
        found["log_p_per_missing_pixel"] = {
            "VAE": with_error((whole.log_likelihood - part.log_likelihood) / pixels),
            **{
                f"gaussian, {ridge}": with_error(gaussians[ridge].log_conditional(x, seen) / pixels)
                for ridge in (chosen["gaussian"], max(RIDGES))
            },
        }
        found["log_p_k_hat_above_threshold"] = [
            (one.k_hat > pv.k_hat_threshold(1000)).double().mean().item() for one in (whole, part)
        ]
    return found, {"truth": x, "seen": seen, "a draw": restored.draws[0], "sd": restored.sd, **images}


def picture(shown: Mapping[str, Mapping[str, Tensor]]) -> None:
    """A row for each kind of image, eight images of each; one block for each corruption."""
    skipped = ("mean of each pixel", "as seen")
    kinds = {name: [kind for kind in images if kind not in skipped] for name, images in shown.items()}
    figure, axes = plt.subplots(
        max(map(len, kinds.values())), len(shown), figsize=(15, 6), squeeze=False, layout="constrained"
    )
    for column, (name, images) in zip(axes.T, shown.items()):
        for axis, kind in zip(column, kinds[name]):
            tiles = as_images(images[kind][:8])
            axis.imshow(np.concatenate(list(tiles), 1), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[], ylabel=kind)
            axis.yaxis.label.set(rotation=0, ha="right", va="center")
        column[0].set_title(name)
    figure.savefig(RESULTS.with_suffix(".png"), dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="the folder with MNIST's files")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, help="corruptions; figures of others are kept"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data = load("mnist", data_root=given.data_root)
    assert data.x_test is not None
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(0))
    train, others = data.x[order[:TRAINING]], data.x[order[TRAINING:]]
    start = time.process_time()
    fitted = fit(train, others[100:1100])
    result = {
        "images": given.images,
        "validation_elbo": fitted.history[-1]["validation_elbo"],
        "fit_cpu_seconds": time.process_time() - start,
        "torch": str(torch.__version__),
    }
    print(json.dumps(result), flush=True)
    shown = {}
    for name in given.only:
        x = data.x_test[: given.images]
        found, shown[name] = measure(fitted, name, train, others[:100], x)
        print(name, json.dumps(found), flush=True)
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(kept | {name: result | found}, indent=1) + "\n")
    if len(shown) == len(NAMES):
        picture(shown)


if __name__ == "__main__":
    main()
