"""KL terms in closed form: which are right, against sums over elements and numerical integrals."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import transforms as maps
from torch.distributions.kl import kl_divergence, register_kl

import pyrovae as pv
from pyrovae.objectives.divergences import closed_kl, drawn_kl

N = 3


def one_site(q: Callable[[], Any], p: Callable[[], Any]) -> pv.Terms:
    """A run of a pair with the site z alone, in the plate of N rows."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", N):
            pyro.sample("z", p())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", N):
            pyro.sample("z", q())

    torch.manual_seed(0)
    return pv.terms(pv.Pair(model, guide), {"x": torch.zeros(N)})


def normal(loc: float, *shape: int) -> Any:
    return dist.Normal(torch.full((N, *shape), loc, dtype=torch.float64), 1.0)


def half(scale: float) -> Tensor:
    return torch.full((N,), scale, dtype=torch.float64)


@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
def test_elements_count_for_the_density_that_does_not_mask_them(outside: bool) -> None:
    shape = (N,) if outside else (N, 4)
    columns = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    mine, its = (c[:N] if outside else c.expand(shape) for c in columns)

    def masked(loc: float, mask: Tensor) -> Any:
        return normal(loc, 4).to_event(1).mask(mask) if outside else normal(loc, 4).mask(mask).to_event(1)

    run = one_site(lambda: masked(0.5, mine), lambda: masked(0.0, its))
    z, found = run.sites["z"], closed_kl(run.sites["z"], run)
    q, p = normal(0.5, 4), normal(0.0, 4)
    exact, log_q, log_p = kl_divergence(q, p), q.log_prob(z.value), p.log_prob(z.value)
    if outside:
        exact, log_q, log_p = exact.sum(-1), log_q.sum(-1), log_p.sum(-1)
    wanted = torch.where(mine & its, exact, mine * log_q - its * log_p)
    assert found is not None
    torch.testing.assert_close(found, wanted if outside else wanted.sum(-1))


@pytest.mark.parametrize("mine, its", [(False, False), (True, False), (False, True), (True, True)])
def test_masks_that_are_no_tensors(mine: bool, its: bool) -> None:
    run = one_site(lambda: normal(0.5).mask(mine), lambda: normal(0.0).mask(its))
    found = closed_kl(run.sites["z"], run)
    assert found is not None
    torch.testing.assert_close(found, half(0.125) if mine and its else drawn_kl(run.sites["z"]), check_dtype=False)


def quadrature(q: Any, p: Any) -> Tensor:
    z = torch.linspace(1e-6, 30.0, 60_001, dtype=torch.float64).unsqueeze(-1)
    log_q, log_p = q.log_prob(z), p.log_prob(z)
    return torch.trapezoid(log_q.exp() * (log_q - log_p), z, dim=0)


def folded(loc: float) -> Any:
    return dist.FoldedDistribution(normal(loc))


KNOWN = {
    "half-normal": (lambda: dist.HalfNormal(half(0.7)), lambda: dist.HalfNormal(half(1.0))),
    "log-normal": (lambda: dist.LogNormal(half(0.3), 0.5), lambda: dist.LogNormal(half(0.0), 1.0)),
    "inverse-gamma": (lambda: dist.InverseGamma(half(9.0), 4.0), lambda: dist.InverseGamma(half(8.0), 3.0)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_images_under_one_map_have_the_divergence_of_what_is_mapped(name: str) -> None:
    q, p = KNOWN[name]
    run = one_site(q, p)
    found = closed_kl(run.sites["z"], run)
    assert found is not None
    torch.testing.assert_close(found, quadrature(q(), p()), rtol=1e-4, atol=1e-5)


def test_a_map_that_joins_two_points_loses_divergence() -> None:
    run = one_site(lambda: folded(0.8), lambda: folded(-0.8))  # the same density
    assert closed_kl(run.sites["z"], run) is None
    assert pv.elbo(run, kl="auto").elbo.abs() < 1e-12


class Shifted(nn.Module):
    """z is an affine image of N(0, 1) on both sides, and the guide's map learns from the prior's on."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(()))

    def model(self, x: Tensor) -> None:
        pyro.module("shifted", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.image(x, torch.zeros(()), torch.ones(())))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.image(x, self.loc, self.scale))

    def image(self, x: Tensor, loc: Tensor, scale: Tensor) -> Any:
        map_ = maps.IndependentTransform(maps.AffineTransform(loc, scale), 0)
        return dist.TransformedDistribution(dist.Normal(x.new_zeros(len(x)), 1.0), [map_])


def test_maps_that_are_learned_are_compared_by_no_value() -> None:
    found, x = [], 1 + torch.randn(20, generator=torch.Generator().manual_seed(0))
    for engine in ("eager", "traced"):
        pair = Shifted()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # the step reads no value
            how: dict[str, Any] = {"epochs": 3, "batch_size": 10, "seed": 0, "progress": False}
            pv.fit(pair, x, loss=pv.Trace_ELBO(kl="auto"), engine=engine, **how)
        found.append(torch.stack([pair.loc, pair.scale]).detach())
    torch.testing.assert_close(*found)
    assert found[0][0] > 0


class Summed(dist.Normal):
    """A Normal whose KL is registered below, summed over what it should not be."""


@register_kl(Summed, dist.Normal)
def _kl_summed(q: Summed, p: dist.Normal) -> Any:
    return Summed.made(kl_divergence(dist.Normal(q.loc, q.scale), p))


@pytest.mark.parametrize("event", [0, 1, 2])
@pytest.mark.parametrize(
    ("made", "got"),
    [
        (lambda kl: kl.sum(), r"shape \(\)"),
        (lambda kl: kl.mean(0, keepdim=True), r"shape \(1,"),
        (lambda kl: 0.5, "float"),
    ],
    ids=["a number", "a row", "no tensor"],
)
def test_a_registered_kl_of_another_shape_is_refused(
    made: Callable[[Tensor], Any], got: str, event: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number would count once for every row, and be right nowhere."""
    monkeypatch.setattr(Summed, "made", staticmethod(made), raising=False)
    shape = (4, 2)[:event]
    scale = torch.ones(N, *shape, dtype=torch.float64)
    run = one_site(lambda: Summed(scale, scale).to_event(event), lambda: normal(0.0, *shape).to_event(event))
    wanted = rf"Site 'z'.*KL of Summed and Normal must return a tensor of shape \({', '.join(map(str, (N, *shape)))},?\).*got"
    with pytest.raises(pv.PairError, match=f"{wanted} {got}"):
        closed_kl(run.sites["z"], run)
    monkeypatch.setattr(Summed, "made", staticmethod(lambda kl: kl))
    found = closed_kl(run.sites["z"], run)
    torch.testing.assert_close(found, torch.full((N,), 0.5 * max(1, scale[0].numel()), dtype=torch.float64))
