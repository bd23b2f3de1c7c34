"""Two plain Pyro functions as a pair: probabilistic PCA with bare `pyro.param`s, checked against its closed form.

Model and guide use nothing of pyrovae. The model is x = z W + b + noise with z ~ N(0, I), so x is normal, and scikit-learn's
PCA gives the maximum of its log-likelihood.
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import constraints

import pyrovae as pv


def model(x: Tensor) -> None:
    weight = pyro.param("weight", lambda: 0.1 * torch.randn(2, 64))
    bias = pyro.param("bias", lambda: torch.zeros(64))
    noise = pyro.param("noise", lambda: torch.tensor(0.3), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight + bias, noise).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    weight = pyro.param("guide_weight", lambda: 0.1 * torch.randn(64, 2))
    bias = pyro.param("guide_bias", lambda: torch.zeros(2))
    scale = pyro.param("guide_scale", lambda: torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ weight + bias, scale).to_event(1))


def main(smoke: bool) -> None:
    x = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    x_train, x_test = x[:1400], x[1400:]

    pair = pv.Pair(model, guide)
    print(pv.check_pair(pair, x_train[:100]))
    fitted = pv.fit(
        pair,
        x_train,
        epochs=3 if smoke else 214,  # 214 epochs of 14 steps are 2,996 steps
        batch_size=100,
        schedule=pv.schedules.one_cycle(2e-2),
        seed=0,
    )
    ours = pv.log_likelihood(fitted, x_test, num_samples=50 if smoke else 1000, seed=0).mean()
    best = PCA(n_components=2).fit(x_train.numpy()).score(x_test.numpy())
    print(f"log p(x): {ours:.2f} nats per row; probabilistic PCA in closed form: {best:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
