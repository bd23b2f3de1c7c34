"""Mean-field posteriors without an encoder: each row's own optimum, for any support, and only the rows of a step move."""

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from support.pairs import LinearGaussian
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam


def test_the_bound_of_a_linear_gaussian_row_is_its_mean_field_value() -> None:
    """q* = N(m, diag(1/P_ii)) of a posterior N(m, P^-1), and log p(x) - ELBO = (sum_i log P_ii - log det P) / 2."""
    torch.manual_seed(0)
    known = LinearGaussian(columns=2)
    x = known.marginal().sample((6,))
    pair = pv.per_row(known, x)
    pv.fit(
        pair,
        pair.indexed(x),
        epochs=80,
        loss=pv.Trace_ELBO(20),
        schedule=pv.schedules.one_cycle(0.2),
        engine="eager",
        progress=False,
        seed=0,
    )
    exact = known.posterior(x)
    precision = torch.linalg.inv(exact.covariance_matrix)
    with torch.no_grad():
        q = dist.MultivariateNormal(pair.loc, scale_tril=pair.log_scale.exp().diag_embed())
        lost = torch.distributions.kl_divergence(q, exact)
    least = 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - precision.logdet())
    assert least.max() > 0.05  # a full covariance would lose nothing
    assert ((lost - least > -1e-9) & (lost - least < 0.03)).all()


def test_only_the_rows_of_a_step_move() -> None:
    x = torch.randn(10, 4)
    likelihood = pv.mlp(2, fam.Normal(4), hidden=())
    pair = pv.per_row(pv.VAE(pv.priors.StandardNormal(2), likelihood, pv.mlp(4, fam.Normal(2))), x)
    before = pair.loc.detach().clone()
    loss = pv.Trace_ELBO()(pair, {"x": x[:3], "index": torch.tensor([7, 0, 2])}, num_rows=10)
    (-loss.objective).backward()
    assert pair.loc.grad is not None
    moved = (pair.loc.grad.abs().sum(1) > 0).nonzero()[:, 0]
    assert moved.tolist() == [0, 2, 7] and torch.equal(before, pair.loc)


class Sizes(torch.nn.Module):
    """A size z > 0 of each row, and its logarithm as read from two instruments, in rows at dimension -2."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.LogNormal(x.new_zeros(1, 1), 1.0))
            with pyro.plate("instruments", 2, dim=-1):
                pyro.sample("x", dist.Normal(z.log() + 0 * self.bias, 0.5), obs=x)


def test_a_positive_site_is_a_normal_of_its_logarithm() -> None:
    """log z ~ N(0, 1) and two readings with sd 1/2: its posterior is N(8 m / 9, 1/9), which the family contains."""
    torch.manual_seed(0)
    x = torch.randn(5, 2)
    pair = pv.per_row(Sizes().model, x)
    assert pair.sites == {"z": ()}
    fitted = pv.fit(
        pair,
        pair.indexed(x),
        epochs=150,
        loss=pv.Trace_ELBO(5, gradient="sticking_the_landing"),
        schedule=pv.schedules.one_cycle(0.1),
        engine="eager",
        progress=False,
        seed=0,
    )
    exact = dist.Normal(8 / 9 * x.mean(1), 1 / 3)
    q = dist.Normal(pair.loc.detach()[:, 0], pair.log_scale.detach()[:, 0].exp())
    assert torch.distributions.kl_divergence(q, exact).max() < 0.03  # that of the prior is more than one
    assert torch.distributions.kl_divergence(dist.Normal(torch.zeros(5), 1.0), exact).min() > 1
    assert pv.encode(fitted, pair.indexed(x)).shape[0] == 5


def test_a_run_is_read_again(tmp_path: Path) -> None:
    x = torch.rand(12, 4).round()
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
    pair: Any = pv.per_row(vae, x)
    fitted = pv.fit(pair, pair.indexed(x), epochs=1, engine="eager", progress=False)
    pv.save(fitted, tmp_path / "run")
    read = pv.load(tmp_path / "run")
    assert isinstance(read.pair, pv.guides.PerRow)
    assert torch.equal(pv.encode(read, pair.indexed(x)), pair.loc.detach())
    assert not any(parameter.requires_grad for parameter in vae.encoder.parameters())
