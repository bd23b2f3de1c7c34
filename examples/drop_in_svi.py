"""A plain Pyro program, trained by pyro.infer.SVI and by pyrovae.SVI: one line changes, the losses stay, the time does not.

The program is a VAE of handwritten digits in the style of Pyro's tutorials, and uses no part of pyrovae.
"""

import argparse
import time
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.optim import Adam
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyrovae as pv


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        self.decoder = nn.Sequential(nn.Linear(5, 100), nn.ReLU(), nn.Linear(100, 64))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 5), 1.0).to_event(1))
            pyro.sample("x", dist.Binomial(16, logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x / 16).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def train(kind: Any, x: Tensor, epochs: int) -> list[float]:
    """The loss of each epoch in nats per row, for a new VAE from the same seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    vae = VAE()
    svi = kind(vae.model, vae.guide, Adam({"lr": 3e-3}), Trace_ELBO())
    began, losses = time.process_time(), []
    for _ in range(epochs):
        losses.append(sum(svi.step(batch) for batch in x.split(100)) / len(x))
    print(f"{kind.__module__:22} {losses[-1]:.3f} nats per row after {time.process_time() - began:.2f} s of CPU time")
    return losses


def main(smoke: bool) -> None:
    x = torch.tensor(load_digits().data[:1700], dtype=torch.float32)
    epochs = 2 if smoke else 100
    pyros, ours = train(pyro.infer.SVI, x, epochs), train(pv.SVI, x, epochs)
    difference = max(abs(a - b) / abs(b) for a, b in zip(ours, pyros))
    print(f"largest relative difference of an epoch's loss: {difference:.1e}")
    pyro.clear_param_store()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
