"""Proposals in the noise of the guide's draws, against closed forms and quadrature, where its draws depend on one another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.comparisons import BOUND
from support.pairs import unfitted
from torch import Tensor
from torch.distributions import transforms

import pyrovae as pv
from pyrovae.criticism.coordinates import Coordinates
from pyrovae.criticism.noise import from_noise, noise_shape, of_noise, to_noise
from pyrovae.criticism.proposals import adapted
from pyrovae.criticism.psis import pareto_k
from pyrovae.criticism.refined import Refined, log_joint, looked_at
from pyrovae.criticism.weighing import _weigh as weigh
from pyrovae.criticism.weighing import mixed
from pyrovae.objectives.terms import terms
from pyrovae.pair.common import common_draws

N = 6


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pair_of(model: Callable[[Tensor], Any], guide: Callable[[Tensor], Any]) -> pv.Pair:
    def in_plate(program: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
        def inside(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                program(x)

        return inside

    return pv.Pair(in_plate(model), in_plate(guide))


def normal(loc: Tensor, scale: float | Tensor) -> Any:
    return dist.Normal(loc, scale).to_event(1)


def coordinates_of(fitted: pv.Fit, x: Tensor) -> Coordinates:
    """The coordinates in which proposals are refined."""
    layout = fitted.layouts[0]
    values, noise = looked_at(fitted, {"x": x}, layout)
    return values.by_noise(terms(fitted.pair, {"x": x}, 2, layout=layout)) if noise else values


# --- one draw ------------------------------------------------------------------------------------------------------------

torch.manual_seed(0)
LOC, SCALE = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64) + 0.1
TRIL = torch.randn(5, 3, 3, dtype=torch.float64).tril(-1) + torch.diag_embed(SCALE)
DRAWN = {
    "normal": dist.Normal(LOC, SCALE),
    "vectors": dist.Normal(LOC, SCALE).to_event(1),
    "planes": dist.Normal(LOC.view(5, 1, 3).expand(5, 2, 3), SCALE[:, None]).to_event(2),
    "correlated": dist.MultivariateNormal(LOC, scale_tril=TRIL),
    "positive": dist.LogNormal(LOC, SCALE).to_event(1),
    "between 0 and 1": dist.TransformedDistribution(
        dist.Normal(LOC, SCALE).to_event(1), [transforms.SigmoidTransform()]
    ),
    "simplex": dist.TransformedDistribution(dist.Normal(LOC, SCALE), [transforms.StickBreakingTransform()]),
    "in steps": dist.TransformedDistribution(
        dist.Normal(LOC, SCALE),
        [transforms.ExpTransform(), transforms.AffineTransform(-0.2, SCALE), transforms.StickBreakingTransform()],
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_draw_is_a_function_of_noise_with_the_density_that_follows(name: str) -> None:
    fn = DRAWN[name]
    e = torch.randn(4, *fn.batch_shape, *noise_shape(fn), dtype=torch.float64)
    z, log_det = from_noise(fn, e)
    assert of_noise(fn) and z.shape == (4, *fn.batch_shape, *fn.event_shape)
    log_normal = dist.Normal(f64(0.0), f64(1.0)).log_prob(e).reshape(4, *fn.batch_shape, -1).sum(-1)
    torch.testing.assert_close(log_normal - log_det, fn.log_prob(z))
    torch.testing.assert_close(to_noise(fn, z), e)


class Shifted(dist.Normal):  # type: ignore[misc]  # Pyro has no types
    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value - 1)


class Tempered(dist.Independent):  # type: ignore[misc]
    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) / 2


@pytest.mark.parametrize(
    "fn",
    [
        Tempered(dist.Normal(LOC, SCALE), 1),
        dist.Gamma(SCALE, SCALE),
        dist.StudentT(5.0, LOC, SCALE).to_event(1),
        Shifted(LOC, SCALE),
        dist.TransformedDistribution(dist.Uniform(f64(0.0), f64(1.0)), [transforms.ExpTransform()]),
        dist.TransformedDistribution(dist.Normal(LOC, SCALE), [transforms.AbsTransform()]),
    ],
)
def test_other_draws_are_not_taken_for_functions_of_noise(fn: Any) -> None:
    assert not of_noise(fn)


# --- which guides --------------------------------------------------------------------------------------------------------


def two(x: Tensor) -> None:
    z2 = pyro.sample("z2", normal(torch.zeros_like(x), 1.0))
    z1 = pyro.sample("z1", normal(z2, 0.5))
    pyro.sample("x", normal(z1, 0.3), obs=x)


def apart(x: Tensor) -> None:
    pyro.sample("z2", normal(0.5 * x, 0.2))
    pyro.sample("z1", normal(0.5 * x + 0.3, 0.2))


def by_location(x: Tensor) -> None:
    z2 = pyro.sample("z2", normal(0.5 * x, 0.2))
    pyro.sample("z1", normal(0.5 * (z2 + x), 0.2))


def by_scale(x: Tensor) -> None:
    z1 = pyro.sample("z1", normal(0.5 * x, 0.2))
    pyro.sample("z2", normal(0.5 * x, 0.2 * (0.1 * z1).exp()))


def heavy(x: Tensor) -> None:
    """A Normal below a site that is no function of Normal noise here."""
    z2 = pyro.sample("z2", dist.StudentT(9.0, 0.5 * x, 0.2).to_event(1))
    pyro.sample("z1", normal(0.5 * (z2 + x), 0.2))


def heavy_below(x: Tensor) -> None:
    z2 = pyro.sample("z2", normal(0.5 * x, 0.2))
    pyro.sample("z1", dist.StudentT(9.0, 0.5 * (z2 + x), 0.2).to_event(1))


def by_covariance(x: Tensor) -> None:
    """Covariances of which the sum of a row of the factor does not depend on z2."""
    z2 = pyro.sample("z2", normal(0.5 * x, 0.2))
    tril = 0.2 * torch.eye(3, dtype=x.dtype).repeat(*z2.shape[:-1], 1, 1)
    tril[..., 2, 0], tril[..., 2, 1] = 0.1 * z2[..., 0], -0.1 * z2[..., 0]
    pyro.sample("z1", dist.MultivariateNormal(0.5 * x + 0 * z2, scale_tril=tril))


def in_some_rows(x: Tensor) -> None:
    z2 = pyro.sample("z2", normal(0.5 * x, 0.2))
    pyro.sample("z1", normal(torch.where(x[..., :1] > 0, 0.5 * (z2 + x), 0.9 * x), 0.2))


def by_the_prior(x: Tensor) -> None:
    z2 = pyro.sample("z2", normal(0.5 * x, 0.2))
    pyro.sample("z1", normal(z2, 0.5))


X = torch.randn(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("guide", "by_noise"),
    [
        (apart, []),
        (by_location, ["z2", "z1"]),
        (by_scale, ["z1", "z2"]),
        (heavy, ["z1"]),
        (heavy_below, []),
        (by_covariance, ["z2", "z1"]),
        (in_some_rows, ["z2", "z1"]),
        (by_the_prior, []),
    ],
)
def test_noise_is_taken_where_draws_depend_on_one_another(guide: Callable[[Tensor], Any], by_noise: list[str]) -> None:
    x = X[X[:, 0].argsort()]  # the last ones are positive
    found = coordinates_of(unfitted(pair_of(two, guide), x), x)
    assert [part.name for part in found.parts if part.transform is None] == by_noise


def test_weights_that_are_drawn_move_no_draw_of_a_row() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(f64(0.0), f64(1.0)).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", normal(w * z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(f64(1.0), f64(0.1)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(0.5 * w * x, 0.2))

    found = coordinates_of(unfitted(pv.Pair(model, guide), X), X)
    assert found.parts[0].transform is not None


def test_noise_is_not_taken_where_a_site_depends_on_a_draw_that_fills_gaps() -> None:
    """The same noise would be another value beside another draw of the missing entries. 2 rows: false alarms 1e-5."""
    torch.manual_seed(8)
    x = torch.randn(2, 2, dtype=torch.float64)
    x[:, 0] = math.nan

    def model(x: Tensor) -> None:
        z2 = pyro.sample("z2", normal(torch.zeros_like(x), 1.0))
        likelihood = normal(pyro.sample("z1", normal(z2, 0.5)), 0.3)
        pyro.sample("x_missing", likelihood, infer={"fills": "x"})
        pyro.sample("x", pv.distributions.ObservedOnly(likelihood), obs=x)

    def guide(x: Tensor) -> None:
        z2 = pyro.sample("z2", normal(0.5 * x.nan_to_num(0.0), 0.7))
        missing = pyro.sample("x_missing", normal(z2, 0.6), infer={"fills": "x"})
        pyro.sample("z1", normal(0.5 * z2 + 0.5 * torch.where(x.isnan(), missing, x), 0.35))

    fitted = unfitted(pair_of(model, guide), x)
    assert all(part.transform is not None for part in coordinates_of(fitted, x).parts)
    found = pv.posterior(fitted, x, 400, site=["z1", "x_missing"], num_particles=4000, proposal="laplace", seed=2)
    apart = (found["x_missing"] - found["z1"])[..., 0]
    assert (apart.std(0) / 0.3 - 1).abs().max() < BOUND * math.sqrt(1 / 800 + 1 / 800)


# --- the density ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", [by_location, heavy])
def test_the_density_of_noise_is_that_of_values_by_the_guides_weights(guide: Callable[[Tensor], Any]) -> None:
    """`log p(x, z) + log |dz/du| - log q(u) = log p(x, z) - log q(z)`, at the guide's own draws and at others."""
    fitted = unfitted(pair_of(two, guide), X)
    layout, rows = fitted.layouts[0], {"x": X}
    with fitted.scope():
        coordinates = coordinates_of(fitted, X)
        run = terms(fitted.pair, rows, 4, layout=layout)
        u = coordinates.join(run)
        log_q, log_det = coordinates.densities(run, u)
        at_u = log_joint(fitted.pair, rows, layout, coordinates, u)
        torch.testing.assert_close(at_u - log_q, pv.log_weights(run))
        q = sum(run.reduce(run.sites[name].q.log_prob, True) for name in coordinates.names)  # type: ignore[union-attr]
        torch.testing.assert_close(log_q - log_det, q)
        if guide is by_location:
            torch.testing.assert_close(log_q, dist.Normal(f64(0.0), 1.0).log_prob(u).sum(-1))
        alone = Refined(coordinates, u[0], torch.eye(u.shape[-1], dtype=u.dtype))  # of which no draw is weighed
        shares = {"guide": 1.0, "prior": 0.0, "refined": 0.0}
        torch.testing.assert_close(mixed(run, u, alone, shares), pv.log_weights(run))


def centred(x: Tensor, exp: bool = False) -> None:
    z2 = pyro.sample("z2", normal(torch.zeros_like(x[..., :1]), 1.0))
    fn = dist.LogNormal if exp else dist.Normal
    z1 = pyro.sample("z1", fn(z2, z2.exp().expand(*z2.shape[:-1], x.shape[-1])).to_event(1))
    pyro.sample("x", normal(z1.log() if exp else z1, 0.7), obs=x)


def guide_of_centred(x: Tensor, exp: bool = False) -> None:
    z2 = pyro.sample("z2", normal(0.1 * x[..., :1], 0.4))
    fn = dist.LogNormal if exp else dist.Normal
    pyro.sample("z1", fn(z2 + z2.exp() * 0.3 * x, 0.6 * z2.exp() + 0 * x).to_event(1))


def not_centred(x: Tensor) -> None:
    z2 = pyro.sample("z2", normal(torch.zeros_like(x[..., :1]), 1.0))
    z1 = pyro.sample("z1", normal(torch.zeros_like(x), 1.0))
    pyro.sample("x", normal(z2 + z2.exp() * z1, 0.7), obs=x)


def guide_of_not_centred(x: Tensor) -> None:
    pyro.sample("z2", normal(0.1 * x[..., :1], 0.4))
    pyro.sample("z1", normal(0.3 * x, 0.6))


def test_the_density_of_noise_is_the_same_however_a_level_is_written() -> None:
    """A level by location and scale of the one above it, and the same model with a standard normal in its place."""
    one, other = pair_of(centred, guide_of_centred), pair_of(not_centred, guide_of_not_centred)
    found = []
    for pair, noise in ((one, True), (other, False)):
        fitted = unfitted(pair, X)
        coordinates = coordinates_of(fitted, X)
        assert coordinates.are_noise == noise
        e = torch.linspace(-2, 2, 4 * N * 4, dtype=torch.float64).view(4, N, 4)
        loc, scale = torch.cat([0.1 * X[:, :1], 0.3 * X], 1), f64(0.4, 0.6, 0.6, 0.6)
        u = e if noise else loc + scale * e
        log_p = log_joint(fitted.pair, {"x": X}, fitted.layouts[0], coordinates, u)
        found.append(log_p if noise else log_p + scale.log().sum())
    torch.testing.assert_close(*found)


def test_estimates_are_the_same_however_a_site_is_transformed() -> None:
    found = []
    for exp in (False, True):
        pair = pair_of(lambda x, exp=exp: centred(x, exp), lambda x, exp=exp: guide_of_centred(x, exp))
        found.append(pv.log_likelihood(unfitted(pair, X), X, 50, proposal="laplace", seed=1))
    torch.testing.assert_close(*found)


# --- log p(x) ------------------------------------------------------------------------------------------------------------

SCALES = (1.0, 0.8, 0.5, 0.6)


def three(x: Tensor) -> None:
    z = pyro.sample("z3", normal(torch.zeros_like(x), SCALES[0]))
    z = pyro.sample("z2", normal(z, SCALES[1]))
    z = pyro.sample("z1", normal(z, SCALES[2]))
    pyro.sample("x", normal(z, SCALES[3]), obs=x)


def guide_of_three(x: Tensor) -> None:
    """Each level at the mean of its posterior given the level above, displaced, and with another scale."""
    z = pyro.sample("z3", normal(0.5 * x + 0.6, 0.5))
    for name, share in (("z2", 0.5), ("z1", 0.4)):
        z = pyro.sample(name, normal((1 - share) * z + share * x - 0.3, 0.3))


@pytest.mark.parametrize("size", [4, 10])
@pytest.mark.parametrize("proposal", ["refined", "laplace"])
def test_a_linear_hierarchy_has_its_closed_form(size: int, proposal: str) -> None:
    """6 rows: false alarms 4e-5. 12 dimensions, with Adam's steps, and 30, with Newton's."""
    torch.manual_seed(2)
    x = 1.5 * torch.randn(N, size, dtype=torch.float64)
    fitted = unfitted(pair_of(three, guide_of_three), x)
    assert coordinates_of(fitted, x).are_noise
    found = pv.importance(fitted, x, 1000, proposal=proposal, seed=1)
    exact = normal(torch.zeros_like(x), math.sqrt(sum(s**2 for s in SCALES))).log_prob(x)
    assert ((found.log_likelihood - exact).abs() < BOUND * found.standard_error).all()
    assert found.standard_error.max() < 0.06 and found.k_hat.max() < 0.5


def test_sites_that_are_single_numbers_have_noise_as_well() -> None:
    """p(y) p(z | y) p(x | z) of numbers without a dimension. 6 rows, false alarms 4e-5; and of means of 400 draws as many."""

    def model(x: Tensor) -> None:
        y = pyro.sample("y", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(y, 0.5)), 0.3), obs=x)

    def guide(x: Tensor) -> None:
        y = pyro.sample("y", dist.Normal(0.5 * x, 0.7))
        pyro.sample("z", dist.Normal(0.5 * (x + y), 0.4))

    x = X[:6, 0]
    fitted = unfitted(pair_of(model, guide), x)
    assert coordinates_of(fitted, x).are_noise
    found = pv.importance(fitted, x, 1000, seed=1)
    variance = 1 + 0.5**2 + 0.3**2
    exact = dist.Normal(torch.zeros_like(x), math.sqrt(variance)).log_prob(x)
    assert ((found.log_likelihood - exact).abs() < BOUND * found.standard_error).all()
    y = pv.posterior(fitted, x, 400, site="y", num_particles=4000, seed=2)
    assert ((y.mean(0) - x / variance).abs() < BOUND * math.sqrt((1 - 1 / variance) * (1 / 400 + 1 / 2000))).all()


def test_hundreds_of_dimensions_of_noise_start_at_the_guides_scales() -> None:
    """2 rows, 300 dimensions: false alarms 1e-5. A level given the one above is as under the posterior, but for its place."""
    torch.manual_seed(7)
    total = 1 + 0.25 + 0.09

    def guide(x: Tensor) -> None:
        z2 = pyro.sample("z2", normal(x / total + 0.4, math.sqrt(1 - 1 / total)))
        precision = 1 / 0.25 + 1 / 0.09
        pyro.sample("z1", normal((z2 / 0.25 + x / 0.09) / precision - 0.1, precision**-0.5))

    x = math.sqrt(total) * torch.randn(2, 150, dtype=torch.float64)
    fitted = unfitted(pair_of(two, guide), x)
    found = pv.importance(fitted, x, 200, seed=1)
    exact = normal(torch.zeros_like(x), math.sqrt(total)).log_prob(x)
    assert ((found.log_likelihood - exact).abs() < BOUND * found.standard_error).all()
    assert found.standard_error.max() < 0.1 and found.k_hat.max() < 0.5


def test_a_funnel_is_estimated_as_by_quadrature_which_no_normal_of_values_can() -> None:
    """6 rows: false alarms 4e-5. 25 dimensions, of which one is the scale of the others."""
    torch.manual_seed(3)
    noise, size = 2.0, 24

    def model(x: Tensor) -> None:
        z2 = pyro.sample("z2", normal(torch.zeros_like(x[..., :1]), 1.0))
        z1 = pyro.sample("z1", normal(torch.zeros_like(x), z2.exp()))
        pyro.sample("x", normal(z1, noise), obs=x)

    def guide(x: Tensor) -> None:
        z2 = pyro.sample("z2", normal(0.3 * x[..., :1] - 0.2, 0.5))
        precision = noise**-2 + (-2 * z2).exp()
        scale = 1.1 * precision.rsqrt()
        pyro.sample("z1", normal(x * noise**-2 / precision + 0.5 * scale, scale + 0 * x))

    spread = torch.linspace(-1.0, 1.0, N, dtype=torch.float64).exp()[:, None]
    x = torch.hypot(spread, f64(noise)) * torch.randn(N, size, dtype=torch.float64)
    z2 = torch.linspace(-12, 5, 4001, dtype=torch.float64)[:, None]
    scale = ((2 * z2).exp() + noise**2).sqrt()
    each = dist.Normal(0.0, scale[..., None]).log_prob(x).sum(-1) + dist.Normal(f64(0.0), 1.0).log_prob(z2)
    exact = each.logsumexp(0) + math.log(17 / 4000)

    fitted = unfitted(pair_of(model, guide), x)
    found = pv.importance(fitted, x, 1000, seed=1)
    assert ((found.log_likelihood - exact).abs() < BOUND * found.standard_error).all()
    assert found.standard_error.max() < 0.06 and found.k_hat.max() < 0.5
    # a Normal of values is far too wide where the funnel is narrow
    with fitted.scope():
        layout = fitted.layouts[0]
        blocks = adapted(fitted, {"x": x}, layout, 1000, 100, "refined", noise=False)
        log_w = torch.cat([weigh(fitted, rows, layout, q, 1000, 100, None, None)[0] for rows, q in blocks], 1)
    assert (pareto_k(log_w) > 0.7).sum() >= N / 2


def test_gaps_have_a_share_of_the_prior() -> None:
    """6 rows, of which each entry is missing with probability 0.4: false alarms 4e-5."""
    torch.manual_seed(4)

    def model(x: Tensor) -> None:
        z2 = pyro.sample("z2", normal(torch.zeros_like(x), 1.0))
        z1 = pyro.sample("z1", normal(z2, 0.5))
        pyro.sample("x", pv.distributions.ObservedOnly(normal(z1, 0.3)), obs=x)

    def guide(x: Tensor) -> None:
        by_location(x.nan_to_num(0.0))

    x = torch.randn(N, 3, dtype=torch.float64)
    x[torch.rand(N, 3) < 0.4] = math.nan
    fitted = unfitted(pair_of(model, guide), x)
    assert coordinates_of(fitted, x).are_noise
    found = pv.importance(fitted, x, 2000, seed=1)
    each = dist.Normal(f64(0.0), math.sqrt(1 + 0.25 + 0.09)).log_prob(x.nan_to_num(0.0))
    exact = torch.where(x.isnan(), 0.0, each).sum(-1)
    assert ((found.log_likelihood - exact).abs() < BOUND * found.standard_error).all()
    assert found.standard_error.max() < 0.06 and found.k_hat.max() < 0.6

    # entries are independent; the noise of a row without one of them would be that of another row
    few = pv.entry_densities(fitted, x[:1], num_samples=10, num_particles=200, seed=1)
    assert few.error is not None and torch.equal(few.leave_one_out.isnan(), x[:1].isnan())
    off = (few.leave_one_out - each[:1]).abs() > BOUND * few.error + 1e-3
    assert few.error.nan_to_num(0.0).max() < 0.15 and not off.any()


# --- draws and moments ---------------------------------------------------------------------------------------------------


def of_classes(x: Tensor) -> None:
    y = pyro.sample("y", dist.Categorical(f64(0.3, 0.7)))
    z2 = pyro.sample("z2", normal((3.0 * y[..., None] - 1.5).expand(*y.shape, x.shape[-1]).to(x), 0.6))
    z1 = pyro.sample("z1", normal(z2, 0.5))
    pyro.sample("x", normal(z1, 0.4), obs=x)


def guide_of_classes(x: Tensor) -> None:
    y = pyro.sample("y", dist.Categorical(logits=x[:, :2]), infer={"enumerate": "parallel"})
    z2 = pyro.sample("z2", normal(0.5 * x + 0.3 * y[..., None], 0.3))
    pyro.sample("z1", normal(0.5 * (x + z2), 0.3))


@pytest.mark.parametrize("moves", [0, 2])
def test_draws_are_values_of_their_class_and_of_their_noise(moves: int) -> None:
    """P(y | x) and E[z | x, y] of 6 rows, from 1,000 of 5,000 draws: false alarms 5e-4."""
    torch.manual_seed(5)
    x = 0.6 * torch.randn(N, 2, dtype=torch.float64)
    fitted = unfitted(pair_of(of_classes, guide_of_classes), x)
    assert coordinates_of(fitted, x).are_noise
    sites = ["z1", "z2", "y"] if moves == 0 else ["z1", "z2"]
    found = pv.posterior(fitted, x, 1000, site=sites, num_particles=5000, moves=moves, seed=1)
    variance = 0.6**2 + 0.5**2 + 0.4**2
    prior = f64(-1.5, 1.5)[:, None, None]
    log_p = dist.Normal(prior, math.sqrt(variance)).log_prob(x).sum(-1) + f64(0.3, 0.7).log()[:, None]
    share = log_p.softmax(0)
    z2, z1 = (prior + k * (x - prior) for k in (0.36 / variance, 0.61 / variance))  # (2, N, 2), given the class
    slack = BOUND * math.sqrt(1 / 1000 + 1 / 500)  # of resampling, and of the draws that are resampled from
    for name, mean in (("z2", z2), ("z1", z1)):
        exact = (share[..., None] * mean).sum(0)
        assert ((found[name].mean(0) - exact).abs() < slack * found[name].std(0)).all()
    if moves == 0:
        y = found["y"]
        assert ((y.double().mean(0) - share[1]).abs() < slack * (share[0] * share[1]).sqrt() + 0.005).all()
        # given the class, z2 has its own mean: it was not drawn for the other one
        of_class = torch.stack([y == 0, y == 1])[..., None]  # (2, S, N, 1)
        given = (found["z2"] * of_class).sum(1) / of_class.sum(1)
        enough = (share > 0.2)[..., None].expand_as(z2)
        sd = math.sqrt(1 / (1 / 0.36 + 1 / 0.41))
        assert enough.any() and ((given - z2).abs() < BOUND * math.sqrt(2 / 200) * sd)[enough].all()


def test_the_moments_of_a_refinement_are_those_of_the_posterior() -> None:
    torch.manual_seed(6)
    x = torch.randn(N, 3, dtype=torch.float64)
    fitted = unfitted(pair_of(two, by_location), x)
    found = pv.refine(fitted, x, 2000, seed=1)
    total = 1 + 0.25 + 0.09
    for name, share, var in (("z2", 1 / total, 1 - 1 / total), ("z1", 1.25 / total, 1.25 - 1.25**2 / total)):
        assert ((found.mean[name] - share * x).abs() < BOUND * math.sqrt(var / 1000)).all()
        torch.testing.assert_close(found.sd[name], torch.full_like(x, math.sqrt(var)), rtol=0.1, atol=0)
    exact = normal(torch.zeros_like(x), math.sqrt(total)).log_prob(x)
    # a Normal of noise can be the posterior here, which is Normal: nothing is lost by the approximation
    assert (found.approximation_gap.abs() < 0.05).all() and ((found.log_likelihood - exact).abs() < 0.05).all()


def test_the_estimate_of_a_row_does_not_depend_on_other_rows() -> None:
    fitted = unfitted(pair_of(two, by_location), X)

    def found(rows: Tensor) -> Tensor:
        with common_draws(1):
            return pv.log_likelihood(fitted, rows, 25)

    torch.testing.assert_close(found(X[2:]), found(X)[2:])
