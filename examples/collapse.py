"""Posterior collapse: upper levels of a hierarchy that a fit leaves unused, and six ways to fit it.

The model is p(z3) p(z2|z3) p(z1|z2) p(x|z1), the guide q(z1|x) q(z2|z1) q(z3|z2). In a plain fit the upper levels carry almost
no information. Each remedy is an option of the fit and works for any pair: a weight on the KL terms that changes (warm-up,
cycles), other KL terms (free bits, balancing), or more steps for the guide than for the model (lagging). An active level need
not help: compare log p(x). The picture shows the KL of each level and its number of active dimensions.
"""

import argparse

import matplotlib.pyplot as plt
import pyro
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

SIZES = (64, 12, 8, 4)  # x, z1, z2, z3
SITES = ("z1", "z2", "z3")


class Hierarchy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prior = pv.priors.StandardNormal(SIZES[-1])
        self.likelihood = pv.mlp(SIZES[1], fam.BetaBinomial(64, total_count=16), hidden=(100,))
        self.down = nn.ModuleList(pv.mlp(SIZES[i + 1], fam.Normal(SIZES[i]), hidden=(50,)) for i in (1, 2))
        self.up = nn.ModuleList(pv.mlp(SIZES[i], fam.Normal(SIZES[i + 1]), hidden=(100,)) for i in (0, 1, 2))

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            z3 = pyro.sample("z3", self.prior())
            z2 = pyro.sample("z2", self.down[1](z3))
            z1 = pyro.sample("z1", self.down[0](z2))
            return pyro.sample("x", self.likelihood(z1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", self.up[0](x))
            z2 = pyro.sample("z2", self.up[1](z1))
            pyro.sample("z3", self.up[2](z2))


def main(smoke: bool) -> None:
    x = torch.tensor(load_digits().data, dtype=torch.float32)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    epochs, draws = (1, 2) if smoke else (100, 100)
    rate, warmup = pv.schedules.one_cycle(4e-3), pv.schedules.kl_warmup(1 if smoke else 30)
    balance, floors = pv.Trace_ELBO(kl=pv.kl.balanced()), pv.Trace_ELBO(kl=pv.kl.free_bits({"z2": 3.0, "z3": 3.0}))
    remedies = {
        "plain": {"schedule": rate},
        "warm-up": {"schedule": [rate, warmup]},
        "cycles": {"schedule": [rate, pv.schedules.kl_cycles()]},
        "free bits": {"schedule": rate, "loss": floors},
        "balancing": {"schedule": [rate, warmup], "loss": balance},
        "lagging": {"schedule": [rate, pv.schedules.lagging(steps=5, epochs=1 if smoke else 20)]},
    }
    _, axes = plt.subplots(1, len(remedies), figsize=(10, 2.5), sharey=True)
    for ax, (name, options) in zip(axes, remedies.items()):
        torch.manual_seed(0)
        fitted = pv.fit(Hierarchy(), x[:1437], epochs=epochs, batch_size=100, seed=0, **options)
        score = pv.log_likelihood(fitted, x[1437:], 5 * draws, seed=0).mean()
        found = pv.kl_by_site(fitted, x[1437:], draws)
        kl = [found[z].mean().item() for z in SITES]
        active = [int(pv.active_units(pv.encode(fitted, x[1437:], site=z, num_samples=draws)).sum()) for z in SITES]
        levels = "   ".join(f"{z} {k:5.2f} nats, {a:2} active" for z, k, a in zip(SITES, kl, active))
        print(f"{name:9} log p(x) {score:8.2f}   {levels}")
        ax.set_title(name)
        ax.bar_label(ax.bar(SITES, kl), active)
    axes[0].set_ylabel("KL in nats")
    axes[0].margins(y=0.1)
    print(f"a bar a level: {pv.plots.save(axes[0], 'collapse.png')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
