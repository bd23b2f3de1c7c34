"""log p(x_d | x_-d) where one entry all but determines the code: closed forms, and sums over a grid."""

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.criticism.left_out import _Rows, transforms_without_each
from pyrovae.criticism.population import Kernels, adapted_kernels, population_monte_carlo
from pyrovae.distributions import ObservedOnly
from pyrovae.fitted.fitted import seeded

NAN = math.nan
ERRORS = 4.5  # standard errors: of 50 estimates one is farther off, by chance, once in 3,000 times


class Table(torch.nn.Module):
    """z ~ p(z), x_d | z ~ N(f_d(z), s_d^2), where entries that are missing are left out; a guide that is off by a bit.

    Args:
        noise: s, `(D,)`.
        size: dimensions of z.
        prior: p(z), if it is not N(0, I).
    """

    def __init__(self, noise: list[float], size: int, prior: Any = None) -> None:
        super().__init__()
        self.noise, self.size = torch.nn.Parameter(torch.tensor(noise, dtype=torch.float64)), size
        self.prior = prior or dist.Normal(torch.zeros(size).double(), 1.0).to_event(1)

    def means(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", ObservedOnly(dist.Normal(self.means(z), self.noise).to_event(1)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            first = x[:, : self.size].nan_to_num(0.0) + 0.5 * self.noise[: self.size]
            pyro.sample("z", dist.Normal(first, 1.5 * self.noise[: self.size]).to_event(1))


class Linear(Table):
    """Four columns of two numbers: the first two are copies with little noise, the others sums."""

    def means(self, z: Tensor) -> Tensor:
        return torch.stack([z[..., 0], z[..., 1], z.sum(-1), z[..., 0] - z[..., 1]], -1)


class Square(Table):
    """`x = (z, z^2)` with noise: without the first column, z is one root or the other."""

    def means(self, z: Tensor) -> Tensor:
        return torch.cat([z, z.square()], -1)


def fit_of(pair: Any, x: Tensor) -> pv.Fit:
    """A fit that leaves the weights as they are."""
    return pv.fit(pair, x, epochs=1, learning_rate=1e-13, engine="eager", progress=False)


def agree(found: pv.Entries, exact: Tensor) -> None:
    assert found.error is not None and found.k_hat is not None
    known = ~exact.isnan()
    for column in (found.leave_one_out, found.error, found.k_hat):
        assert torch.equal(~column.isnan(), known)
    assert bool((found.error[known] < 0.15).all())
    off = (found.leave_one_out - exact)[known]
    assert bool((off.abs() <= ERRORS * found.error[known] + 1e-3).all()), (off, found.error, found.k_hat)


def by_quadrature(fitted: pv.Fit, x: Tensor, num_points: int) -> Tensor:
    """`log p(x) - log p(x_-d)` of entries that are known, by sums over a grid."""

    def log_p(rows: Tensor) -> Tensor:
        found = pv.quadrature(fitted, rows, num_points=num_points)
        assert bool((found.error < 1e-3).all())
        return found.log_likelihood

    columns = torch.arange(x.shape[1])
    gaps = torch.stack([log_p(torch.where(columns == d, NAN, x)) for d in columns], 1)
    return torch.where(x.isnan(), NAN, log_p(x)[:, None] - gaps)


def given_others(row: Tensor, d: int, covariance: Tensor) -> dist.Normal:
    """p(x_d | x_-d) of a row of a centred Normal, by its entries that are known."""
    others = [e for e in range(len(row)) if e != d and not bool(row[e].isnan())]
    slope = torch.linalg.solve(covariance[others][:, others], covariance[others, d])
    return dist.Normal(row[others] @ slope, (covariance[d, d] - slope @ covariance[others, d]).sqrt())


def test_columns_nearly_without_noise_have_the_densities_of_the_closed_form() -> None:
    """A noise of 0.002, in whose units the others leave z a range of 350; and rows that are strange in that column."""
    noise = [0.002, 0.01, 1.0, 2.0]
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]]).double()
    covariance = w @ w.T + torch.diag(torch.tensor(noise).double().square())
    torch.manual_seed(0)
    x = dist.MultivariateNormal(torch.zeros(4).double(), covariance).sample((5,))
    x[1, 0] += 3.0
    x[2, 1] -= 4.0
    x[3, 2], x[4, 0] = NAN, NAN
    exact = torch.full_like(x, NAN)
    for n, row in enumerate(x):
        for d in (~row.isnan()).nonzero().flatten().tolist():
            exact[n, d] = given_others(row, d, covariance).log_prob(row[d])
    agree(pv.entry_densities(fit_of(Linear(noise, 2), x[:2]), x, num_samples=20, seed=0), exact)


def test_transforms_are_those_of_the_closed_form() -> None:
    """`P(X_d < x_d | x_-d)` of 10 entries by 400 weighted draws, of which at least 100 are in effect."""
    noise = [0.002, 0.01, 1.0, 2.0]
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]]).double()
    covariance = w @ w.T + torch.diag(torch.tensor(noise).double().square())
    torch.manual_seed(1)
    x = dist.MultivariateNormal(torch.zeros(4).double(), covariance).sample((6,))
    x[0, 0], x[1, 1], x[2, 3], x[3, 0] = x[0, 0] + 1.0, NAN, NAN, NAN
    fitted = fit_of(Linear(noise, 2), x[4:])
    (part,) = fitted.parts(x)
    columns = torch.tensor([True, True, False, False])
    with fitted.scope(), seeded(0):
        found = transforms_without_each(fitted, part, "x", columns, draws=400, proposal="refined")
    assert torch.equal(found.isnan(), x.isnan() | ~columns)
    for n, d in (~found.isnan()).nonzero().tolist():
        exact = given_others(x[n], d, covariance).cdf(x[n, d])
        assert abs(found[n, d] - exact) < ERRORS * (exact * (1 - exact) / 100).sqrt() + 0.005


def test_both_modes_are_found_that_an_entry_decides_between() -> None:
    """Against sums over a grid, which owe nothing to proposals. One mode alone would be log 2 = 0.69 too high."""
    x = torch.tensor([[1.0, 1.0], [-1.5, 2.3], [1.0, 1.9], [-0.2, 3.0], [NAN, 1.0]], dtype=torch.float64)
    fitted = fit_of(Square([0.03, 0.1], 1), x[:4])

    exact = by_quadrature(fitted, x, num_points=1025)
    agree(pv.entry_densities(fitted, x, num_samples=20, num_particles=2000, seed=0), exact)


def test_a_prior_with_thin_components_has_narrow_and_wide_modes() -> None:
    """Half of the rows have z within 0.02 of 1, the others have any: without the column that copies z, both remain."""
    parts = dist.Normal(torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[0.02], [1.5]]).double()).to_event(1)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.5, 0.5]).double()), parts)
    x = torch.tensor([[1.0, 0.9], [1.3, 2.0], [-2.0, 1.0]], dtype=torch.float64)
    fitted = fit_of(Square([0.02, 0.7], 1, mixture), x)
    exact = by_quadrature(fitted, x, num_points=2049)
    agree(pv.entry_densities(fitted, x, num_samples=20, seed=0), exact)


class Several(Table):
    """Six noisy measurements of two numbers, none of which says much alone."""

    def means(self, z: Tensor) -> Tensor:
        return z @ torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.5, -1.0], [0.0, 1.0, 1.0, -1.0, 1.0, 0.5]]).double()


def test_entries_share_draws_where_that_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def one_by_one(block: _Rows, which: Tensor, whole: Any) -> Iterator[Any]:
        asked.append(int(which.sum()))
        return iter(())

    monkeypatch.setattr(_Rows, "_one_by_one", one_by_one)
    noise = [1.0, 0.8, 1.2, 1.0, 0.9, 1.1]
    pair = Several(noise, 2)
    w = pair.means(torch.eye(2).double()).T
    covariance = w @ w.T + torch.diag(torch.tensor(noise).double().square())
    torch.manual_seed(0)
    x = dist.MultivariateNormal(torch.zeros(6).double(), covariance).sample((6,))
    x[1, 0] += 6.0
    x[3, 2], x[4, 0] = NAN, NAN
    exact = torch.full_like(x, NAN)
    for n, row in enumerate(x):
        for d in (~row.isnan()).nonzero().flatten().tolist():
            exact[n, d] = given_others(row, d, covariance).log_prob(row[d])
    agree(pv.entry_densities(fit_of(pair, x), x, num_samples=20, seed=0), exact)
    assert asked == [0]  # once, for no entry


class Centred(Square):
    """The scale of the second column depends on whether the first is known."""

    def model(self, x: Tensor) -> None:
        noise = torch.stack([self.noise[0].expand(len(x)), self.noise[1] * (1 + x[:, 0].isnan())], -1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", ObservedOnly(dist.Normal(self.means(z), noise).to_event(1)), obs=x)


def test_where_the_model_uses_an_entry_otherwise_densities_are_not_subtracted() -> None:
    x = torch.tensor([[1.0, 1.0], [-1.5, 2.3], [1.0, 1.9]], dtype=torch.float64)
    fitted = fit_of(Centred([0.5, 0.2], 1), x)
    agree(pv.entry_densities(fitted, x, num_samples=20, seed=0), by_quadrature(fitted, x, num_points=1025))


class Coin(torch.nn.Module):
    """A code of one bit, which no gradient moves: `x_d | y ~ N(3 y, 1)`."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(x.new_full((1,), 0.5)).to_event(1))
            pyro.sample("x", ObservedOnly(dist.Normal(self.w * y, x.new_ones(2)).to_event(1)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(x.new_full((len(x), 1), 0.5)).to_event(1))


@pytest.mark.filterwarnings("ignore:The guide is the proposal")
def test_where_no_proposal_can_be_refined_rows_with_gaps_are_as_any_others() -> None:
    x = torch.tensor([[0.3, 2.8], [1.4, NAN], [0.1, -0.4]], dtype=torch.float64)
    found = pv.entry_densities(fit_of(Coin(), x), x, num_samples=20, seed=0)
    each = torch.stack(
        [dist.Normal(3.0 * y, 1.0).log_prob(x.nan_to_num(0.0)) for y in (0.0, 1.0)]
    ).double()  # (2, N, D)
    known = torch.where(x.isnan(), 0.0, each)
    exact = known.sum(-1, keepdim=True).logsumexp(0) - (known.sum(-1, keepdim=True) - known).logsumexp(0)
    agree(found, torch.where(x.isnan(), NAN, exact))


def test_a_prior_may_depend_on_a_class_that_is_summed_out() -> None:
    """`p(z) = (N(-2, 1) + N(2, 1)) / 2` by classes, x two measurements of z with noise 0.05 and 0.5, against quadrature."""
    x = torch.tensor([[1.0, 1.3], [-2.2, -1.5]], dtype=torch.float64)
    fitted = fit_of(Sides(), x)
    exact = by_quadrature(fitted, x, num_points=1025)
    agree(pv.entry_densities(fitted, x, num_samples=20, seed=0), exact)


class Sides(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.nn.Parameter(torch.tensor([0.05, 0.5], dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(x.new_ones(2)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(4.0 * y[..., None].double() - 2.0, 1.0).to_event(1))
            pyro.sample("x", ObservedOnly(dist.Normal(z.expand(*z.shape[:-1], 2), self.noise).to_event(1)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.nanmean(-1, keepdim=True), 0.1).to_event(1))


# --- population Monte Carlo itself


def test_population_monte_carlo_integrates_what_its_first_mixture_misses_by_far() -> None:
    """`p(u) = 3 N(u; m, S)`, which is 30 units from where the draws start, and 20 times as long as wide."""
    torch.manual_seed(0)
    d, rows = 3, 4
    scale = torch.eye(d).double().expand(rows, d, d)
    centre = torch.zeros(1, rows, d).double()
    far = torch.tensor([30.0, -5.0, 0.0]).double()
    normal = dist.MultivariateNormal(far, torch.diag(torch.tensor([400.0, 1.0, 1.0]).double()))
    starts = 3 * torch.randn(50, rows, d).double()
    whole = Kernels(centre, scale)
    found = population_monte_carlo(lambda u, index: normal.log_prob(u) + math.log(3.0), whole, starts, scale, 400)
    assert bool(((found.log_p - math.log(3.0)).abs() < ERRORS * found.error).all())
    assert bool((found.error < 0.1).all()) and bool((found.k_hat < 0.7).all())


def test_kernels_keep_the_covariance_of_the_draws() -> None:
    torch.manual_seed(0)
    u = torch.randn(4000, 1, 2).double() * torch.tensor([10.0, 0.5]) + 7
    scale = torch.eye(2).double()[None]
    one, kernels = adapted_kernels(u, torch.zeros(4000, 1).double(), scale, 4000)
    width = kernels.scale_tril[0] @ kernels.scale_tril[0].T
    assert torch.allclose(width, torch.diag(torch.tensor([1.0, 0.25]).double()), atol=0.02)
    assert torch.allclose(kernels.centres[:, 0].T.cov() + width, u[:, 0].T.cov(), rtol=0.02, atol=0.03)
    assert torch.allclose(one.centres[0, 0], u.mean((0, 1)))
    grid = torch.cartesian_prod(torch.linspace(-300, 300, 1201), torch.linspace(-20, 35, 1101)).double()
    few = Kernels(kernels.centres[:5], kernels.scale_tril)
    mass = few.log_prob(grid[:, None])[:, 0].exp().sum() * 0.5 * 0.05
    assert abs(mass - 1) < 0.01
