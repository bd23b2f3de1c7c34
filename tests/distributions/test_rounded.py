"""Numbers on a linear or a log scale, recorded to a step, within bounds: masses and densities against scipy's."""

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.distributions.recorded import Cells, log_density
from pyrovae.errors import DataError, OptionError

FALSE_ALARM = 1e-4  # of the chi-square test, whose seed is fixed

CASES: dict[str, dict[str, Any]] = {
    "exact": {"centre": 2.0, "spread": 3.0},
    "exact, log": {"centre": 0.5, "spread": 0.75, "offset": 0.25},
    "steps": {"centre": 2.0, "spread": 3.0, "step": 0.5},
    "fine steps": {"centre": 2.0, "spread": 3.0, "step": 0.015625},
    "counts": {"centre": 2.0, "spread": 3.0, "step": 1.0, "low": 0.0},
    "counts, log": {"centre": 1.0, "spread": 0.875, "step": 1.0, "low": 0.0, "offset": 1.0},
    "shares": {"centre": 0.75, "spread": 0.25, "step": 0.0625, "low": 0.0, "high": 1.0},
    "positive with steps": {"centre": 0.0, "spread": 1.0, "step": 0.125, "offset": 0.0, "low": 0.125},
}


def grid(case: dict[str, Any]) -> np.ndarray:
    low, high = case.get("low"), case.get("high")
    step = case.get("step", 0.0)
    if "offset" in case:
        low = -case["offset"] if low is None else low
    start = -40.0 if low is None else low
    stop = (4000.0 if "offset" in case else 60.0) if high is None else high
    if step:
        return np.arange(round(start / step), round(stop / step) + 1) * step
    if "offset" in case:
        return np.exp(np.linspace(-30, 12, 200_001)) + start
    return np.linspace(start, stop, 200_001)


def by_scipy(x: np.ndarray, loc: float, scale: float, case: dict[str, Any]) -> np.ndarray:
    """The log density, of one or of the numbers that are recorded as x."""
    offset, step = case.get("offset"), case.get("step", 0.0)

    def t(value: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            u = value if offset is None else np.log(np.maximum(value + offset, 0))
        return (u - case["centre"]) / case["spread"]

    normal = scipy.stats.norm(loc, scale)
    if not step:
        slope = -np.log(case["spread"]) - (0 if offset is None else np.log(x + offset))
        return normal.logpdf(t(x)) + slope
    upper, lower = t(x + step / 2), t(x - step / 2)
    if "high" in case:
        upper = np.where(x > case["high"] - step / 4, np.inf, upper)
    if "low" in case:
        lower = np.where(x < case["low"] + step / 4, -np.inf, lower)
    middle = normal.cdf(upper) - normal.cdf(lower)
    tail = normal.sf(lower) - normal.sf(upper)
    with np.errstate(divide="ignore"):
        return np.log(np.where(lower > loc, tail, middle)) - np.log(step)


def distribution(case: dict[str, Any], loc: float, scale: float) -> Any:
    family = fam.RoundedNormal(1, **case).double()
    raw = np.log(np.expm1(scale - 0.01))
    return family(torch.tensor([[[loc], [raw]]], dtype=torch.float64)).base_dist


PARAMETERS = list(itertools.product((-1.5, 0.0, 2.0), (0.05, 0.8, 2.0)))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_densities_are_right_and_sum_to_1(case: dict[str, Any]) -> None:
    x = grid(case)
    for loc, scale in PARAMETERS:
        log_p = distribution(case, loc, scale).log_prob(torch.from_numpy(x)[:, None])[:, 0].numpy()
        exact = by_scipy(x, loc, scale, case)
        seen = exact > -200
        np.testing.assert_allclose(log_p[seen], exact[seen], rtol=1e-5, atol=2e-5)
        step = case.get("step", 0.0)
        total = (np.exp(log_p) * step).sum() if step else np.trapezoid(np.exp(log_p), x)
        cut = "offset" in case and scale == 2.0  # the grid ends within the tail
        assert abs(total - 1) < (0.05 if cut else 2e-3), (loc, scale, total)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_draws_have_the_distribution(case: dict[str, Any]) -> None:
    torch.manual_seed(0)
    p = distribution(case, 0.3, 0.8)
    draws = p.sample((20_000,)).flatten().numpy()
    assert p.support.check(torch.from_numpy(draws)).all()
    if "step" not in case:
        t = (draws if "offset" not in case else np.log(draws + case["offset"])) - case["centre"]
        assert scipy.stats.kstest(t / case["spread"], scipy.stats.norm(0.3, 0.8).cdf).pvalue > FALSE_ALARM
        return
    values, counts = np.unique(np.round(draws / case["step"]), return_counts=True)
    expected = np.exp(by_scipy(values * case["step"], 0.3, 0.8, case)) * case["step"] * len(draws)
    often = expected > 10
    rest = [len(draws) - counts[often].sum()], [len(draws) - expected[often].sum()]
    observed, wanted = np.append(counts[often], rest[0]), np.append(expected[often], rest[1])
    assert scipy.stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > FALSE_ALARM


def test_masses_of_intervals_are_precise_in_tails_and_for_thin_ones() -> None:
    starts = np.array([-30.0, -8.0, -1.0, -0.01, 0.0, 0.5, 8.0, 30.0])
    widths = np.array([1e-6, 1e-3, 0.0999, 0.1001, 1.0, 50.0])
    lower = np.broadcast_to(starts[:, None], (len(starts), len(widths)))
    upper = lower + widths
    a = np.where(lower + upper > 0, -upper, lower)
    b = np.where(lower + upper > 0, -lower, upper)
    log_a, log_b = scipy.stats.norm.logcdf(a), scipy.stats.norm.logcdf(b)
    exact = log_b + np.log(-np.expm1(log_a - log_b))
    thin = np.broadcast_to(widths, lower.shape) < 1e-4
    centre = (a + b) / 2
    exact = np.where(thin, scipy.stats.norm.logpdf(centre) + np.log(widths), exact)
    middle, width = torch.from_numpy((lower + upper) / 2), torch.from_numpy(np.broadcast_to(widths, lower.shape).copy())
    for dtype, tolerance in ((torch.float64, 2e-5), (torch.float32, 5e-5)):
        zero = torch.zeros(middle.shape, dtype=dtype)  # of a step of 1, whose logarithm is 0
        found = log_density(zero, zero + 1, Cells(middle.to(dtype), width.to(dtype), width.log().to(dtype), zero))
        np.testing.assert_allclose(found.numpy(), exact, atol=tolerance, rtol=1e-6)


def cells(dtype: torch.dtype) -> tuple[Any, torch.Tensor]:
    """Columns of all kinds, and rows of them, those at a bound and in the tails included."""
    scales = {"centre": (0.0, 1.0, 0.5, 0.0, 2.0, 0.3), "spread": (1.0, 0.5, 0.25, 1e-2, 3.0, 1.0)}
    scales |= {"step": (0.0, 1.0, 0.0625, 2.0**-10, 0.0, 0.125), "offset": (None, 1.0, None, 0.0, 0.25, 0.0)}
    bounds = {"low": (None, 0.0, 0.0, None, None, 0.125), "high": (None, None, 1.0, None, None, None)}
    family = fam.RoundedNormal(6, **scales, **bounds)
    torch.manual_seed(0)
    wide = torch.stack([torch.randn(60, 6), torch.full((60, 6), 2.0)], -2)
    return family.to(dtype), family(wide).sample().to(dtype)


def log_p(family: Any, x: torch.Tensor, loc: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = family(torch.stack([loc, raw], -2)).base_dist.log_prob(x)
    return found


def test_derivatives_are_those_of_the_density() -> None:
    """By numbers, and in any order: by parameters, by the row, and of derivatives."""
    family, x = cells(torch.float64)
    x = x[:4]
    loc, raw = (torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *parts: log_p(family, x, *parts), (loc, raw))
    assert torch.autograd.gradgradcheck(lambda *parts: log_p(family, x, *parts), (loc, raw))
    exact = x.clone().requires_grad_()
    inside = (x > 0.3) & (x < 0.9)
    assert torch.autograd.gradcheck(lambda of: log_p(family, of, loc.detach(), raw.detach())[inside], exact, eps=1e-7)


def test_single_precision_keeps_six_digits() -> None:
    """Steps of a hundred thousandth of the spread, of which the two ends have few digits, included."""
    many = {"centre": (170.0, 0.0), "spread": (9.0, 1.0), "step": (1e-4, 1e-5), "offset": (None, 1.0)}
    torch.manual_seed(0)
    loc, raw = torch.randn(50, 2), torch.randn(50, 2)
    x = fam.RoundedNormal(2, **many)(torch.stack([loc, raw], -2)).sample()
    found = []
    for dtype in (torch.float64, torch.float32):
        parts = [part.to(dtype).requires_grad_() for part in (loc, raw)]
        value = log_p(fam.RoundedNormal(2, **many).to(dtype), x.to(dtype), *parts)
        found.append([value.detach().double(), *(g.double() for g in torch.autograd.grad(value.sum(), parts))])
    for double, single in zip(*found):
        torch.testing.assert_close(single, double, rtol=2e-5, atol=2e-5)


def test_parameters_and_rows_are_broadcast() -> None:
    family, x = cells(torch.float32)
    params = torch.randn(5, 1, 2, 6, requires_grad=True)
    many = family(params).base_dist.log_prob(x)
    assert many.shape == (5, 60, 6)
    (gradient,) = torch.autograd.grad(many.sum(), params)
    each = torch.stack([family(params[k].expand(60, 2, 6)).base_dist.log_prob(x) for k in range(5)])
    torch.testing.assert_close(many, each)
    torch.testing.assert_close(gradient, torch.autograd.grad(each.sum(), params)[0], rtol=1e-4, atol=1e-4)


def test_gradients_are_finite_where_values_are_extreme() -> None:
    scales = {"centre": (0.0, 1.0, 0.5, 0.0), "spread": (1.0, 0.5, 0.3, 1e-3), "step": (0.0, 1.0, 0.05, 1e-4)}
    bounds = {"offset": (None, 1.0, None, 0.0), "low": (None, 0.0, 0.0, None), "high": (None, None, 1.0, None)}
    family = fam.RoundedNormal(4, **scales, **bounds)
    x = torch.tensor([[1e6, 0.0, 0.0, 1e-4], [-1e6, 1e6, 1.0, 1e3], [0.0, 3.0, 0.5, 1.0]])
    for size in (0.0, 5.0, 50.0, -50.0):
        params = torch.full((3, 2, 4), size, requires_grad=True)
        log_p = family(params).log_prob(x)
        (gradient,) = torch.autograd.grad(log_p.sum(), params)
        assert log_p.isfinite().all() and gradient.isfinite().all()


def test_features_hide_gaps_and_say_where_they_are() -> None:
    numbers = fam.RoundedNormal(2, centre=(1.0, 0.0), spread=(2.0, 1.0))
    family = fam.Columns([numbers, fam.Categorical((), 3), fam.Poisson(()), fam.OrderedLogistic((), 3)])
    seen = fam.Features(family)
    x = torch.tensor([[3.0, 1.0, 2.0, 0.0, 1.0], [float("nan")] * 5])
    found = seen(x)
    assert seen.num_features == found.shape[1] == 2 + 3 + 1 + 1 + 5
    assert found[0].tolist() == [1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1] and not found[1].any()
    assert fam.Features(family, mask=False)(x).shape[1] == 7


WRONG: dict[str, dict[str, Any]] = {
    "one spread": {"spread": (1.0, 2.0, 3.0)},
    "positive numbers": {"spread": 0.0},
    "steps of 0 or more": {"step": -1.0},
    "low below high": {"low": 2.0, "high": 1.0},
    "floor of RoundedNormal must be a positive number": {"floor": 0.0},
}


@pytest.mark.parametrize("words", WRONG)
def test_arguments_that_are_impossible(words: str) -> None:
    with pytest.raises(OptionError, match=words):
        fam.RoundedNormal(2, **WRONG[words])


def test_values_beyond_a_bound_are_refused_before_a_fit() -> None:
    family = fam.Columns([fam.RoundedNormal(2, low=(None, 0.0), step=1.0), fam.Categorical((), 2)])
    pair = pv.VAE(pv.priors.StandardNormal(1), pv.mlp(1, family, (4,)), pv.mlp(3, fam.Normal(1), (4,)))
    x = torch.tensor([[0.0, 1.0, 1.0], [2.0, -3.0, 0.0]])
    with pytest.raises(DataError, match=r"outside the support.*between 0 and inf.*row 1, column 1"):
        pv.fit(pair, x, epochs=1, progress=False)
