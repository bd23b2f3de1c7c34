"""A real number that some rows lack, and that is a latent site in these, is imputed by draws from its posterior."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.distributions import ObservedOnly

NAN, NOISE = float("nan"), 0.5
MIX = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)  # x is (y + z, y) and noise


class Measured(nn.Module):
    """y, z ~ N(0, 1), x ~ N(MIX (y, z), NOISE^2), with a displaced guide; y may be unknown, and so may elements of x."""

    def __init__(self, vector: bool) -> None:
        super().__init__()
        self.vector = vector
        self.loc = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        zero = self.loc.new_zeros(1) if self.vector else self.loc.new_zeros(())
        with pyro.plate("data", len(x)):
            prior = dist.Normal(zero, 1.0)
            y = pyro.sample("label", prior.to_event(1) if self.vector else prior, obs=y)
            z = pyro.sample("z", dist.Normal(self.loc.new_zeros(()), 1.0))
            both = torch.stack(torch.broadcast_tensors(y.squeeze(-1) if self.vector else y, z), -1)
            of_x = dist.Normal((MIX @ both.unsqueeze(-1)).squeeze(-1), NOISE).to_event(1)
            pyro.sample("x", ObservedOnly(of_x), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        seen = x.nan_to_num(0.0)[:, 1]
        with pyro.plate("data", len(x)):
            if y is None:
                q = dist.Normal((seen + self.loc).unsqueeze(-1) if self.vector else seen + self.loc, 0.8)
                pyro.sample("label", q.to_event(1) if self.vector else q)
            pyro.sample("z", dist.Normal(self.loc.expand(len(x)), 1.0))


def as_it_is(pair: Measured, data: dict[str, Tensor]) -> pv.Fit:
    return pv.fit(pair, data, epochs=0, device="cpu", engine="eager", progress=False)


def posterior(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of y given the elements of one x that are known."""
    known = ~x.isnan()
    precision = torch.eye(2, dtype=torch.float64) + MIX[known].T @ MIX[known] / NOISE**2
    covariance = torch.linalg.inv(precision)
    return (covariance @ MIX[known].T @ x[known])[0] / NOISE**2, covariance[0, 0].sqrt()


@pytest.mark.parametrize("vector", [False, True])
def test_it_is_drawn_from_its_posterior(vector: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 2, dtype=torch.float64)
    x[4, 0] = x[5, 0] = x[5, 1] = NAN
    y = torch.tensor([0.7, NAN, NAN, NAN, NAN, NAN], dtype=torch.float64)
    data = {"x": x, "y": y.unsqueeze(-1) if vector else y}
    before = {name: value.clone() for name, value in data.items()}
    draws = 800
    found = pv.impute(as_it_is(Measured(vector), data), data, draws, num_particles=4000, seed=0)
    assert all(
        torch.equal(
            data[name],
            was,
        )
        or data[name].isnan().any()
        for name, was in before.items()
    )
    of_y = found.draws["y"].reshape(draws, 6)
    assert (of_y[:, 0] == 0.7).all() and found.missing["y"].flatten().tolist() == [False] + [True] * 5
    for row in range(1, 6):
        mean, sd = posterior(x[row])
        assert abs(of_y[:, row].mean() - mean) < 4.5 * sd / draws**0.5 + 0.02, row
        assert abs(of_y[:, row].std() / sd - 1) < 0.15, row
        assert abs(found.mean["y"].flatten()[row] - mean) < 4.5 * sd / draws**0.5 + 0.02, row
    assert found.draws["x"].isfinite().all() and torch.equal(found.draws["x"][0][:4], x[:4])
    # x's own gap is drawn along with y: x_1 - y is noise, whatever y is
    together = torch.stack([of_y[:, 5], found.draws["x"][:, 5, 1]])
    assert torch.corrcoef(together)[0, 1] == pytest.approx(1 / math.sqrt(1 + NOISE**2), abs=0.1)


def test_it_comes_back_in_the_form_in_which_it_was_given() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 2, dtype=torch.float64)
    y = pd.Series([0.5, NAN, 1.5, NAN, 0.0], index=list("abcde"))
    data: dict[str, Any] = {"x": x, "y": y}
    tensors = {"x": x, "y": torch.tensor(y.to_numpy())}
    found = pv.impute(as_it_is(Measured(False), tensors), data, 20, seed=0)
    whole = found.complete(0)["y"]
    assert list(whole.index) == list("abcde") and whole[["a", "c", "e"]].tolist() == [0.5, 1.5, 0.0]
    assert not whole.isna().any() and y.isna().sum() == 2
    low, high = found.interval(0.8)["y"]
    assert (low[[1, 3]] < high[[1, 3]]).all() and found.ess[[1, 3]].isfinite().all() and found.ess[[0]].isnan().all()
    alone = pv.impute(as_it_is(Measured(False), tensors), {"x": x}, 20, seed=0)  # which asks for nothing
    assert not alone.missing.any()
