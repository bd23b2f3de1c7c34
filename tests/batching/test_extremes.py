"""Rows whose log-density is not finite are named before the fit, by row, column and what helps."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam

N = 60
LATE = 47  # a row that is not in the first minibatch
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 16, "progress": False, "engine": "eager", "seed": 0}


def vae(family: Any, size: int = 3) -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, family, hidden=(4,)), pv.mlp(size, fam.Normal(2), hidden=(4,)))


def shares(at: float, row: int = LATE) -> Tensor:
    x = torch.rand(N, 3) * 0.8 + 0.1
    x[row, 1] = at
    return x


EDGES: dict[str, tuple[Any, float, str]] = {
    "1 under Beta": (fam.Beta(3), 1.0, r"1 of \d+ values lie on the edge of the support of Beta.*x\.clamp\("),
    "0 under Beta": (fam.Beta(3), 0.0, "edge of the support of Beta.*x.clamp"),
    "0 under Gamma": (fam.Gamma(3), 0.0, "edge of the support of Gamma.*x.clamp"),
    "0 under LogNormal": (fam.LogNormal(3), 0.0, "edge of the support of LogNormal.*x.clamp"),
}


@pytest.mark.parametrize("row", [2, LATE], ids=["first minibatch", "later"])
@pytest.mark.parametrize("case", EDGES.values(), ids=EDGES.keys())
def test_a_value_on_the_edge_of_a_support_is_named(case: tuple[Any, float, str], row: int) -> None:
    family, at, message = case
    with pytest.raises(pv.DataError, match=rf"{message}.*") as caught:
        pv.fit(vae(family), shares(at, row), **QUICK)
    assert f"the first is {at:g} in row {row}, column 1" in str(caught.value)


def test_large_values_on_an_edge_get_another_cure() -> None:
    with pytest.raises(pv.DataError, match=r"0 in row 47, column 1.*clamp\(min=.*half of the smallest"):
        pv.fit(vae(fam.Gamma(3)), shares(0.0) * 50, **QUICK)


@pytest.mark.parametrize("at", [-0.5, 1.5])
def test_values_beyond_an_edge_are_outside_as_before(at: float) -> None:
    with pytest.raises(pv.DataError, match=r"outside the support of Beta.*in row 47, column 1"):
        pv.fit(vae(fam.Beta(3)), shares(at), **QUICK)


@pytest.mark.parametrize("at", [1e25, -1e25, 1e15, 3e38])
@pytest.mark.parametrize("row", [2, LATE], ids=["first minibatch", "later"])
@pytest.mark.parametrize("which", ["training", "validation", "checked"])
def test_a_row_far_from_the_others_is_named(at: float, row: int, which: str) -> None:
    x = torch.randn(N, 3)
    x[row, 2] = at
    data = {"training": {}, "validation": {"validation": x}, "checked": {"check_also": x}}[which]
    fitted_to = x if which == "training" else torch.randn(N, 3)
    with pytest.raises(pv.DataError, match="far from the others.*Correct it, or drop the row") as caught:
        pv.fit(vae(fam.Normal(3)), fitted_to, **QUICK, **data)
    assert str(caught.value).startswith(f"'x' is {at:g} in row {row}, column 2, far")


class Masked(nn.Module):
    """Leaves missing entries out by a mask, with them filled in first, as it must be, or not."""

    def __init__(self, filled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder, self.filled = nn.Linear(3, 2), nn.Linear(2, 3), filled

    def model(self, x: Tensor) -> None:
        seen = ~x.isnan()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            value = x.nan_to_num(0.0) if self.filled else x
            likelihood = dist.Normal(self.decoder(z), 1.0, validate_args=False).mask(seen).to_event(1)
            pyro.sample("x", likelihood, obs=value)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x.nan_to_num(0.0)), 1.0).to_event(1))


@pytest.mark.parametrize("row", [2, LATE], ids=["first minibatch", "later"])
def test_missing_values_under_a_mask_that_spoil_the_gradient_are_named(row: int) -> None:
    x = torch.randn(N, 3)
    x[row, 1] = float("nan")
    with pytest.raises(
        pv.DataError, match=rf"Site 'x' leaves missing values .* row {row}, column 1, .*x.nan_to_num\(0.0\)"
    ):
        pv.fit(Masked(filled=False), x, **QUICK)
    assert torch.tensor(pv.fit(Masked(filled=True), x, **QUICK).history[-1]["elbo"]).isfinite()


def test_missing_values_that_are_left_out_as_they_should_be_are_taken() -> None:
    x = torch.randn(N, 3)
    x[LATE, 1] = float("nan")
    encoder = pv.Conditional(pv.nets.WithMask(pv.nets.MLP((3, 3), (2, 2), hidden=(4,))), fam.Normal(2))
    pair = pv.VAE(pv.priors.StandardNormal(2), pv.observed_only(pv.mlp(2, fam.Normal(3), hidden=(4,))), encoder)
    pv.fit(pair, x, **QUICK)


class Whole(nn.Module):
    """Observes integers, which its networks see as floating numbers near 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.scale = nn.Linear(3, 2), nn.Parameter(torch.ones(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x", dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3), self.scale.exp()).to_event(1), obs=x
            )

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder((x / 2**24).to(self.scale.dtype)), 1.0).to_event(1))


def test_integers_that_a_density_would_round_are_named() -> None:
    x = torch.randint(0, 2**24, (N, 3))
    pv.fit(Whole(), x, **QUICK)
    x[LATE, 1] = 2**24 + 1
    with pytest.raises(
        pv.DataError, match=r"1 integer is rounded to float32.*16777217 in row 47, column 1.*pair.double"
    ):
        pv.fit(Whole(), x, **QUICK)
    pv.fit(Whole().double(), x, **QUICK)
