"""Gradients of the ELBO have the expectation of a closed form: reparameterised ones, and those of the score function."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.comparisons import BOUND
from support.pairs import (
    normal,
    value_and_gradients,
    weight,
    zeros,
)
from torch import Tensor, nn

import pyrovae as pv


class Amortised(nn.Module):
    """z ~ N(0, I), x | z ~ N(W z + b, 0.7^2 I), q(z | x) = N(x A + c, diag s^2): its ELBO is known."""

    def __init__(self, latent: int = 2, columns: int = 3) -> None:
        super().__init__()
        self.weight, self.bias = weight(columns, latent), weight(columns)
        self.encode, self.offset, self.log_scale = weight(columns, latent), weight(latent), weight(latent)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(zeros(2), 0.0))
            pyro.sample("x", normal(z @ self.weight.T + self.bias, math.log(0.7)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(x @ self.encode + self.offset, self.log_scale))

    def objective(self, x: Tensor, kl_weight: float) -> Tensor:
        loc, scale = x @ self.encode + self.offset, self.log_scale.exp()
        fit = normal(loc @ self.weight.T + self.bias, math.log(0.7)).log_prob(x)
        fit = fit - (self.weight**2 @ scale**2).sum() / (2 * 0.7**2)
        divergence = 0.5 * (loc**2 + scale**2 - 1 - 2 * self.log_scale).sum(-1)
        return (fit - kl_weight * divergence).sum()


class Switches(nn.Module):
    """Two dependent Bernoulli sites a row and a global one, all drawn: 8 values to sum over."""

    def __init__(self) -> None:
        super().__init__()
        self.prior, self.logit, self.encode = weight(3), weight(), weight(3, 2)
        self.loc, self.coupling = weight(3, 3), weight()

    def likelihood(self, g: Tensor, a: Tensor, b: Tensor) -> Any:
        states = torch.stack(torch.broadcast_tensors(g, a, b), -1)
        return normal(states @ self.loc, 0.0)

    def model(self, x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(logits=self.prior[0]))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=self.prior[1]))
            b = pyro.sample("b", dist.Bernoulli(logits=self.prior[2] + self.coupling * a))
            pyro.sample("x", self.likelihood(g, a, b), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("g", dist.Bernoulli(logits=self.logit))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=x @ self.encode[:, 0]))
            pyro.sample("b", dist.Bernoulli(logits=x @ self.encode[:, 1] + self.coupling * a))

    def objective(self, x: Tensor, kl_weight: float, share: float) -> Tensor:
        def log_prob(logits: Tensor, value: Tensor) -> Tensor:
            return dist.Bernoulli(logits=logits).log_prob(value)

        total = zeros()
        values = [torch.tensor(v, dtype=torch.float64) for v in (0.0, 1.0)]
        for g in values:
            log_q = log_prob(self.logit, g)
            rows = zeros()
            for a in values:
                for b in values:
                    log_a = log_prob(x @ self.encode[:, 0], a.expand(len(x)))
                    log_b = log_prob(x @ self.encode[:, 1] + self.coupling * a, b.expand(len(x)))
                    log_p = log_prob(self.prior[1], a) + log_prob(self.prior[2] + self.coupling * a, b)
                    fit = self.likelihood(g, a, b).log_prob(x)
                    rows = rows + ((log_a + log_b).exp() * (fit + kl_weight * (log_p - log_a - log_b))).sum()
            total = total + log_q.exp() * (share * rows + kl_weight * (log_prob(self.prior[0], g) - log_q))
        return total


def mean_gradient(
    pair: nn.Module, x: Tensor, exact: Tensor, draws: int, **options: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The exact value and gradient, their mean over independent draws, and its standard error."""
    kl, particles = options.pop("kl", None), options.pop("particles", 1)
    loss = pv.Trace_ELBO(particles, kl=kl)
    layout = pv.check_pair(pair, x)
    found = [value_and_gradients(loss(pair, {"x": x}, layout=layout, **options).objective, pair) for _ in range(draws)]
    stacked = {name: torch.stack([f[name] for f in found]) for name in found[0]}
    means = {name: value.mean(0) for name, value in stacked.items()}
    errors = {name: value.std(0) / draws**0.5 for name, value in stacked.items()}
    return value_and_gradients(exact, pair), means, errors


def assert_unbiased(exact: dict[str, Tensor], mean: dict[str, Tensor], error: dict[str, Tensor]) -> None:
    for name, wanted in exact.items():
        assert ((mean[name] - wanted).abs() <= BOUND * error[name] + 1e-9).all(), name
    # sharp enough to see a term that is missing
    sharp = {name: (error[name].max() / wanted.abs().max()).item() for name, wanted in exact.items()}
    assert max(sharp.values()) < 0.1, sharp


@pytest.mark.parametrize("kl", [None, "analytic"])
@pytest.mark.parametrize("kl_weight", [1.0, 0.5])
def test_gradient_is_unbiased(kl: str | None, kl_weight: float) -> None:
    # 20 numbers: false alarms 1.4e-4
    pair, x = Amortised(), torch.randn(6, 3, dtype=torch.float64)
    exact = 5 * pair.objective(x, kl_weight)
    options: dict[str, Any] = {"kl": kl, "kl_weight": kl_weight, "num_rows": 30, "particles": 20}
    assert_unbiased(*mean_gradient(pair, x, exact, 100, **options))


@pytest.mark.slow
@pytest.mark.parametrize("kl_weight", [1.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_score_function_gradient_is_unbiased(kl_weight: float) -> None:
    # 21 numbers: false alarms 1.5e-4
    torch.manual_seed(2)  # weights whose gradients are not near 0
    pair, x = Switches(), 2 * torch.randn(4, 3, dtype=torch.float64)
    exact = pair.objective(x, kl_weight, share=3.0)
    options: dict[str, Any] = {"kl_weight": kl_weight, "num_rows": 12, "particles": 4000}
    assert_unbiased(*mean_gradient(pair, x, exact, 100, **options))
