"""Your own likelihood in four lines, and what works with it at once: fit, log p(x), draws, missing entries, save and load.

Waiting times, rainfall and sums of money are positive and skewed. Here each element of a row has a Weibull distribution whose
scale and shape come from the network. One in ten training entries is missing.
"""

import argparse
import tempfile
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional as F

import pyrovae as pv
from pyrovae import families as fam


class Weibull(fam.Elementwise):
    num_params = 2

    def link(self, log_scale: Tensor, raw: Tensor) -> dist.TorchDistribution:
        return dist.Weibull(log_scale.clamp(-20, 20).exp(), F.softplus(raw) + 0.1)


def waiting_times(rows: int) -> Tensor:
    """Twelve waiting times in each row, which two hidden causes make longer or shorter."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.randn(rows, 2, generator=generator)
    effects = 0.5 * torch.randn(2, 12, generator=generator)
    return (causes @ effects).exp() * torch.rand(rows, 12, generator=generator).clamp_min(1e-6).log().neg() ** 0.5


def pair() -> pv.VAE:
    encoder = pv.Conditional(pv.nets.WithMask(pv.nets.MLP((12, 12), fam.Normal(2).param_shape, (100,))), fam.Normal(2))
    likelihood = pv.observed_only(pv.mlp(2, Weibull(12), hidden=(100,)))
    return pv.VAE(pv.priors.StandardNormal(2), likelihood, encoder)


def main(smoke: bool) -> None:
    x = waiting_times(2000)
    epochs, num_samples = (2, 25) if smoke else (60, 500)
    torch.manual_seed(0)
    gaps = torch.rand(1500, 12, generator=torch.Generator().manual_seed(1)) < 0.1
    fitted = pv.fit(pair(), x[:1500].masked_fill(gaps, torch.nan), epochs=epochs, batch_size=100, seed=0)
    score = pv.log_likelihood(fitted, x[1500:], num_samples, seed=0)
    print(f"log p(x) of 500 held-out rows: {score.mean():.2f} ± {score.std() / 500**0.5:.2f} nats per row")
    print(f"a drawn row: {[round(v, 2) for v in pv.generate(fitted, 1, seed=0)[0, :5].tolist()]} ...")
    with tempfile.TemporaryDirectory() as folder:
        pv.save(fitted, Path(folder) / "run")
        loaded = pv.load(Path(folder) / "run", pair=pair(), device=fitted.device)  # the class is defined here
        again = pv.log_likelihood(loaded, x[1500:], num_samples, seed=0)
    print(f"saved and loaded, the largest difference is {(again - score).abs().max():.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
