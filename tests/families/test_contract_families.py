"""What every family promises. A row of ROWS is a test suite; a family without a row fails."""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.conditionals import Conditional, conv, mlp
from pyrovae.distributions import StudentT
from pyrovae.engine.tracing import graph_of
from pyrovae.errors import DataError, OptionError, PairError, ShapeError
from pyrovae.fitted.spec import from_spec, to_spec
from pyrovae.nets import MLP

# A chi-square or KS test passes if p > FALSE_ALARM: a right sampler fails once in 10,000 seeds, and seeds are fixed.
FALSE_ALARM = 1e-4
BATCHES = [(), (3,), (2, 3)]
EVENTS = [(), (4,), (2, 3)]


def expit(x: np.ndarray) -> np.ndarray:
    return scipy.special.expit(x)


def softplus(x: Any) -> Any:
    return np.logaddexp(0, x)


def betabinom(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    c = 0.2 * 5000 ** expit(raw[1] - 1)
    return scipy.stats.betabinom.logpmf(x, 7, c * expit(raw[0]), c * expit(-raw[0]))


@dataclass
class Row:
    """A family. logpdf(x, raw) -> each element's log-density by scipy, raw: (P, *x.shape). support: all, or a grid."""

    build: Callable[[Any], fam.Family]
    logpdf: Callable[[np.ndarray, np.ndarray], np.ndarray]
    support: Tensor
    discrete: bool
    tails: tuple[float, ...]  # values inside the support, at its ends
    cdf: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None  # by scipy, where no grid can hold the density
    tolerance: float = 1e-6  # of the normalisation, more where the grid meets a kink
    safe: tuple[float, ...] = ()  # added to the parameters where ends are infinite, or one value has all the mass
    overflows: bool = False  # draws of the most extreme parameters are larger than any float32


def count(n: int) -> dict[str, Any]:
    return {"support": torch.arange(n + 1.0), "discrete": True, "tails": (0.0, 1.0, float(n))}


def real() -> dict[str, Any]:
    grid = torch.linspace(-60, 60, 60001, dtype=torch.float64)
    return {"support": grid, "discrete": False, "tails": (0.0, 50.0, -50.0, 1e3)}


def whole() -> dict[str, Any]:
    return {"support": torch.arange(20001.0), "discrete": True, "tails": (0.0, 1.0, 1000.0)}


def positive() -> dict[str, Any]:
    grid = torch.linspace(-110, 60, 120001, dtype=torch.float64).exp()
    return {"support": grid, "discrete": False, "tails": (1e-3, 1.0, 1e3)}


def unit() -> dict[str, Any]:
    grid = torch.linspace(0, 1, 60001, dtype=torch.float64)
    return {"support": grid, "discrete": False, "tails": (1e-3, 0.5, 0.999)}


def heavy() -> dict[str, Any]:
    grid = torch.sinh(torch.linspace(-30, 30, 60001, dtype=torch.float64))
    return {"support": grid, "discrete": False, "tails": (0.0, 50.0, -50.0, 1e3)}


def soft_exp(raw: np.ndarray, bound: float) -> np.ndarray:
    return np.exp(np.log(bound) * np.tanh(raw / np.log(bound)))


def gamma(raw: np.ndarray) -> Any:
    k = soft_exp(raw[1], 1000)
    return scipy.stats.gamma(k, scale=np.exp(raw[0]) / k)


def beta(raw: np.ndarray) -> Any:
    c = 0.2 * 5000 ** expit(raw[1] - 1)
    return scipy.stats.beta(c * expit(raw[0]), c * expit(-raw[0]))


def continuous_bernoulli(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    p = expit(raw[0])
    return np.log(2 * np.arctanh(1 - 2 * p) / (1 - 2 * p)) + x * np.log(p) + (1 - x) * np.log1p(-p)


def nbinom(x: np.ndarray, raw: np.ndarray, t: Any = 1.0) -> np.ndarray:
    return scipy.stats.nbinom.logpmf(x, t, t / (t + np.exp(raw[0])))


def inflated(x: np.ndarray, gate: np.ndarray, log_mass: np.ndarray) -> np.ndarray:
    return np.log(expit(gate) * (x == 0) + expit(-gate) * np.exp(log_mass))


def ordered(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    ends = np.array([-np.inf, *scipy.special.logit(np.arange(1, 4) / 4), np.inf])
    return np.log(expit(ends[x.astype(int) + 1] - raw[0]) - expit(ends[x.astype(int)] - raw[0]))


def ordered_with_scales(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    ends = np.array([-np.inf, *scipy.special.logit(np.arange(1, 4) / 4), np.inf])
    upper, lower = ((ends[x.astype(int) + k] - raw[0]) / np.exp(np.tanh(raw[1] / 2)) for k in (1, 0))
    return np.log(np.where(lower > 0, expit(-lower) - expit(-upper), expit(upper) - expit(lower)))


def discretized(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    s, h = np.exp(7 * np.tanh((raw[1] - 2) / 7)), 1 / 7
    upper = np.where(x == 7, np.inf, (2 * x / 7 - 1 + h - raw[0]) / s)
    lower = np.where(x == 0, -np.inf, (2 * x / 7 - 1 - h - raw[0]) / s)
    # the smaller of the two tails has the digits
    return np.log(np.where(lower > 0, expit(-lower) - expit(-upper), expit(upper) - expit(lower)))


def normal(s: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda x, raw: scipy.stats.norm.logpdf(x, raw[0], s)


ROWS = {
    "Bernoulli": Row(
        lambda e: fam.Bernoulli(e), lambda x, raw: scipy.stats.bernoulli.logpmf(x, expit(raw[0])), **count(1)
    ),
    "Normal": Row(
        lambda e: fam.Normal(e),
        lambda x, raw: scipy.stats.norm.logpdf(x, raw[0], softplus(raw[1]) + 1e-4),
        **real(),
    ),
    "Normal-column": Row(lambda e: fam.Normal(e, scale="column"), normal(1 + 1e-4), **real()),
    "Normal-shared": Row(lambda e: fam.Normal(e, scale="shared", floor=0.1), normal(1.1), **real()),
    "Normal-fixed": Row(lambda e: fam.Normal(e, scale=0.3), normal(0.3), **real()),
    "RoundedNormal": Row(  # with steps and bounds: tests/distributions/test_rounded.py
        lambda e: fam.RoundedNormal(e, centre=0.5, spread=2.0),
        lambda x, raw: scipy.stats.norm.logpdf((x - 0.5) / 2, raw[0], softplus(raw[1]) + 1e-2) - np.log(2),
        **real(),
    ),
    "Binomial": Row(
        lambda e: fam.Binomial(e, 7), lambda x, raw: scipy.stats.binom.logpmf(x, 7, expit(raw[0])), **count(7)
    ),
    "BetaBinomial": Row(lambda e: fam.BetaBinomial(e, 7), betabinom, **count(7)),
    "Categorical": Row(
        lambda e: fam.Categorical(e, 4),
        lambda x, raw: np.take_along_axis(scipy.special.log_softmax(raw, 0), x[None].astype(int), 0)[0],
        **count(3),
    ),
    "Laplace": Row(
        lambda e: fam.Laplace(e),
        lambda x, raw: scipy.stats.laplace.logpdf(x, raw[0], softplus(raw[1]) + 1e-4),
        **real(),
        tolerance=1e-4,
    ),
    "StudentT": Row(
        lambda e: fam.StudentT(e),
        lambda x, raw: scipy.stats.t.logpdf(x, 5, raw[0], softplus(raw[1]) + 1e-4),
        **heavy(),
        cdf=lambda x, raw: scipy.stats.t.cdf(x, 5, raw[0], softplus(raw[1]) + 1e-4),
    ),
    "StudentT-net": Row(
        lambda e: fam.StudentT(e, df="net", scale="column"),
        lambda x, raw: scipy.stats.t.logpdf(x, 1 + 4 * soft_exp(raw[1], 100), raw[0], 1 + 1e-4),
        **heavy(),
        cdf=lambda x, raw: scipy.stats.t.cdf(x, 1 + 4 * soft_exp(raw[1], 100), raw[0], 1 + 1e-4),
    ),
    "StudentT-fixed": Row(
        lambda e: fam.StudentT(e, df=3.0, scale="shared"),
        lambda x, raw: scipy.stats.t.logpdf(x, 3, raw[0], 1 + 1e-4),
        **heavy(),
        cdf=lambda x, raw: scipy.stats.t.cdf(x, 3, raw[0], 1 + 1e-4),
    ),
    "LogNormal": Row(
        lambda e: fam.LogNormal(e),
        lambda x, raw: scipy.stats.lognorm.logpdf(x, softplus(raw[1]) + 1e-4, scale=np.exp(raw[0])),
        **positive(),
        overflows=True,
    ),
    "Gamma": Row(
        lambda e: fam.Gamma(e),
        lambda x, raw: gamma(raw).logpdf(x),
        **positive(),
        cdf=lambda x, raw: gamma(raw).cdf(x),
    ),
    "Beta": Row(
        lambda e: fam.Beta(e),
        lambda x, raw: beta(raw).logpdf(x),
        **unit(),
        cdf=lambda x, raw: beta(raw).cdf(x),
        safe=(0.0, 5.0),
    ),
    "ContinuousBernoulli": Row(lambda e: fam.ContinuousBernoulli(e), continuous_bernoulli, **unit()),
    "Poisson": Row(lambda e: fam.Poisson(e), lambda x, raw: scipy.stats.poisson.logpmf(x, np.exp(raw[0])), **whole()),
    "NegativeBinomial": Row(lambda e: fam.NegativeBinomial(e), nbinom, **whole()),
    "NegativeBinomial-net": Row(
        lambda e: fam.NegativeBinomial(e, dispersion="net"),
        lambda x, raw: nbinom(x, raw, soft_exp(raw[1], 1000)),
        **whole(),
    ),
    "ZeroInflatedPoisson": Row(
        lambda e: fam.ZeroInflatedPoisson(e),
        lambda x, raw: inflated(x, raw[1], scipy.stats.poisson.logpmf(x, np.exp(raw[0]))),
        **whole(),
    ),
    "ZeroInflatedNegativeBinomial": Row(
        lambda e: fam.ZeroInflatedNegativeBinomial(e), lambda x, raw: inflated(x, raw[1], nbinom(x, raw)), **whole()
    ),
    "ZeroInflatedNegativeBinomial-net": Row(
        lambda e: fam.ZeroInflatedNegativeBinomial(e, dispersion="net"),
        lambda x, raw: inflated(x, raw[1], nbinom(x, raw, soft_exp(raw[2], 1000))),
        **whole(),
    ),
    "OrderedLogistic": Row(lambda e: fam.OrderedLogistic(e, 4), ordered, **count(3)),
    "OrderedLogistic-net": Row(lambda e: fam.OrderedLogistic(e, 4, scale="net"), ordered_with_scales, **count(3)),
    "DiscretizedLogistic": Row(lambda e: fam.DiscretizedLogistic(e, 8), discretized, **count(7), safe=(0.0, 2.0)),
}
every_family = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


def params_of(family: fam.Family, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*batch, *family.param_shape, dtype=dtype)


def rebuilt(part: nn.Module) -> nn.Module:
    """Another one of the same class from its attributes: the convention that checkpoints stand on."""
    names = list(inspect.signature(type(part).__init__).parameters)[1:]
    return type(part)(**{name: getattr(part, name) for name in names})


def test_every_family_has_a_row() -> None:
    abstract = (fam.Family, fam.Elementwise)
    found = {c for c in vars(fam).values() if inspect.isclass(c) and issubclass(c, fam.Family) and c not in abstract}
    found = {c for c in found if not issubclass(c, fam.Vector)}  # these stand in test_contract_multivariate.py
    found = {c for c in found if c.__module__ != "pyrovae.families.codes"}  # in test_codes.py
    joint = {fam.DiscretizedLogisticMixture, fam.Multinomial, fam.Columns}  # these have tests of their own below
    assert {type(row.build(3)) for row in ROWS.values()} | joint == found


@every_family
def test_log_prob_is_scipys(row: Row) -> None:
    family = row.build((2, 3)).double()
    params = params_of(family, (50,))
    x = family(params).sample()
    expected = row.logpdf(x.numpy(), params.transpose(0, 1).numpy()).sum((-1, -2))
    np.testing.assert_allclose(family(params).log_prob(x).detach(), expected, rtol=1e-6, atol=1e-6)


@every_family
def test_density_is_normalised(row: Row) -> None:
    family = row.build(()).double()
    params = params_of(family, (20,)) + torch.tensor(row.safe or 0.0)
    density = family(params).log_prob(row.support[:, None]).exp().detach()
    total = density.sum(0) if row.discrete else torch.trapezoid(density, row.support, dim=0)
    torch.testing.assert_close(total.double(), torch.ones(20, dtype=torch.float64), rtol=0, atol=row.tolerance)


@every_family
@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0])
def test_samples_fit_the_density(row: Row, shift: float) -> None:
    family = row.build(())
    params = params_of(family, dtype=torch.float32) + shift * torch.arange(family.param_shape[0])
    params = params + torch.tensor(row.safe or 0.0)
    d = family(params)
    x = d.sample((4000,))
    density = d.log_prob(row.support).exp().detach().double()
    if row.discrete:
        order = np.argsort(density.numpy())
        expected = 4000 * density.numpy()[order]
        observed = np.bincount(x.long().numpy(), minlength=len(density))[order]
        # the rarest values share one cell that expects at least 5, as the chi-square approximation asks
        rare = np.arange(len(order)) <= np.searchsorted(np.cumsum(expected), 5)
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        p = scipy.stats.chisquare(observed, expected * 4000 / expected.sum()).pvalue
    else:
        cdf = torch.cumulative_trapezoid(density, row.support).numpy()
        raw = params.numpy().astype(float)
        by_scipy = row.cdf
        p = scipy.stats.kstest(
            x.numpy(), lambda v: by_scipy(v, raw) if by_scipy else np.interp(v, row.support[1:].numpy(), cdf)
        ).pvalue
    assert p > FALSE_ALARM


@every_family
def test_value_and_gradient_are_finite_in_the_tails(row: Row) -> None:
    family = row.build(())
    corners = list(itertools.islice(itertools.product((-50.0, 0.0, 50.0), repeat=family.param_shape[0]), 200))
    params = torch.tensor(corners, requires_grad=True)
    for value in row.tails:
        log_prob = family(params).log_prob(torch.tensor(value))
        assert log_prob.isfinite().all(), f"log_prob({value}) is not finite"
        assert (log_prob < 1e-3).all() or not row.discrete, f"p({value}) > 1"
        for g in torch.autograd.grad(log_prob.sum(), [params, *family.parameters()]):
            assert g.isfinite().all(), f"the gradient at {value} is not finite"
        drawn = family(params).sample()
        assert not drawn.isnan().any() if row.overflows else drawn.isfinite().all()


@every_family
def test_gradient_is_that_of_the_value(row: Row) -> None:
    family = row.build((2,)).double()
    params = params_of(family, (3,)).requires_grad_()
    x = family(params).sample()
    assert torch.autograd.gradcheck(lambda p: family(p).log_prob(x), params)


@every_family
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_batches_are_independent_rows(row: Row, batch: tuple[int, ...], event: tuple[int, ...]) -> None:
    family = row.build(event).double()
    params = params_of(family, batch)
    d = family(params)
    assert (d.batch_shape, d.event_shape) == (batch, event) and family.event_shape == event
    x = d.sample((5,))
    assert x.shape == (5, *batch, *event)
    log_prob = d.log_prob(x)
    assert log_prob.shape == (5, *batch)
    for i in itertools.product(*map(range, batch)):
        torch.testing.assert_close(log_prob[(slice(None), *i)], family(params[i]).log_prob(x[(slice(None), *i)]))


@every_family
def test_elements_take_their_own_parameters(row: Row) -> None:
    family = row.build((4,)).double()
    params = params_of(family).requires_grad_()
    x = family(params).sample()
    changed = x.clone()
    changed[2] = row.support[0] if x[2] != row.support[0] else row.support[1]
    (grad,) = torch.autograd.grad(family(params).log_prob(changed) - family(params).log_prob(x), params)
    assert grad[:, 2].any() and not grad[:, [0, 1, 3]].any()


@every_family
def test_expand(row: Row) -> None:
    family = row.build((4,)).double()
    d = family(params_of(family, (3,)))
    wide = d.expand((2, 3))
    x = wide.sample()
    assert x.shape == (2, 3, 4) and wide.batch_shape == (2, 3)
    torch.testing.assert_close(wide.log_prob(x), d.log_prob(x))


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtype_of_the_parameters_is_kept(row: Row, dtype: torch.dtype) -> None:
    family = row.build((4,)).to(dtype)
    d = family(params_of(family, (3,), dtype))
    x = d.sample()
    assert d.log_prob(x).dtype == dtype
    assert x.dtype in (dtype, torch.int64)


@every_family
def test_every_parameter_of_an_mlp_gets_a_gradient(row: Row) -> None:
    conditional = mlp(5, row.build((4,)), hidden=(16,))
    d = conditional(torch.randn(64, 5))
    d.log_prob(d.sample()).sum().backward()
    for name, parameter in conditional.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert parameter.grad.isfinite().all() and parameter.grad.any(), f"{name} gets the gradient {parameter.grad}"


@every_family
def test_is_rebuilt_from_its_attributes_and_state(row: Row) -> None:
    conditional = mlp(5, row.build((2, 3)), hidden=(16,))
    with torch.no_grad():
        for parameter in conditional.parameters():
            parameter.add_(torch.randn_like(parameter))
    again = mlp(5, rebuilt(conditional.family), hidden=(16,))
    assert repr(again.family) == repr(conditional.family)
    x, parent = conditional(torch.randn(8, 5)).sample(), torch.randn(8, 5)
    assert not torch.equal(again(parent).log_prob(x), conditional(parent).log_prob(x))
    again.load_state_dict(conditional.state_dict())
    assert torch.equal(again(parent).log_prob(x), conditional(parent).log_prob(x))


@every_family
def test_wrong_shape_names_what_was_wanted_and_what_came(row: Row) -> None:
    family = row.build((4,))
    num_params = family.param_shape[0]
    for shape in [(num_params, 5), (num_params + 1, 4), (4,), (), (4, num_params, 1)]:
        with pytest.raises(ShapeError) as error:
            family(torch.zeros(shape))
        assert f"{family} needs parameters of shape (*batch, {num_params}, 4), got {shape}." in str(error.value)
        assert "out_shape=family.param_shape" in str(error.value)


@pytest.mark.slow
@every_family
def test_is_traced_without_reading_values(row: Row) -> None:
    family = row.build((4,))
    params = params_of(family, (3,), torch.float32)
    x = family(params).sample()
    with pyro.validation_enabled(False):
        graph = graph_of(lambda p, x: family(p).log_prob(x), params, x)
    called = {str(node.target) for node in graph.graph.nodes}
    # a read value, and a constant that a device would have to be sent
    assert not [name for name in called if "_local_scalar_dense" in name or "lift_fresh" in name]
    assert torch.equal(graph(params + 1, x), family(params + 1).log_prob(x))


@every_family
def test_what_is_given_and_not_known_raises(row: Row) -> None:
    family = row.build((4,))
    with pytest.raises(TypeError, match="unknown"):
        family(params_of(family, (3,), torch.float32), unknown=torch.zeros(3))


def test_the_message_is_the_documented_one() -> None:
    with pytest.raises(ShapeError) as error:
        fam.Bernoulli(784)(torch.zeros(32, 784))
    assert str(error.value) == (
        "Bernoulli(784) needs parameters of shape (*batch, 1, 784), got (32, 784). "
        "Give the network out_shape=family.param_shape."
    )
    assert repr(fam.Binomial((28, 28), 255)) == "Binomial((28, 28), total_count=255)"


@pytest.mark.parametrize("event", [0, -3, (3, 0), 2.5, "3", None], ids=str)
def test_an_event_shape_is_positive_ints(event: Any) -> None:
    with pytest.raises(ShapeError, match="positive int"):
        fam.Bernoulli(event)


@pytest.mark.parametrize("scale", ["rows", 0.0, -1.0, float("nan"), float("inf"), True], ids=str)
def test_normal_lists_the_scales_that_it_knows(scale: Any) -> None:
    with pytest.raises(OptionError, match="'net', 'column', 'shared' or a positive number"):
        fam.Normal(3, scale=scale)


@pytest.mark.parametrize("floor", [0.0, -1e-3])
def test_normal_needs_a_positive_floor(floor: float) -> None:
    with pytest.raises(OptionError, match="floor of .* must be a positive number.*no density"):
        fam.Normal(3, floor=floor)


def test_normal_learns_as_many_scales_as_it_says() -> None:
    sizes = {scale: [p.shape for p in fam.Normal((2, 3), scale=scale).parameters()] for scale in ("column", "shared")}
    assert sizes == {"column": [(2, 3)], "shared": [()]}
    assert not list(fam.Normal((2, 3)).parameters()) and not list(fam.Normal((2, 3), scale=2.0).parameters())


@pytest.mark.parametrize("build", [fam.Binomial, fam.BetaBinomial, fam.Categorical])
@pytest.mark.parametrize("number", [0, -1, 2.5])
def test_counts_are_positive_ints(build: Callable[..., fam.Family], number: Any) -> None:
    with pytest.raises(OptionError, match="must be (a whole number of )?at least 1"):
        build(3, number)


def test_beta_binomial_starts_uniform_and_goes_to_the_binomial() -> None:
    x = torch.arange(8.0)
    start = fam.BetaBinomial((), 7)(torch.zeros(2)).log_prob(x).exp()
    torch.testing.assert_close(start, torch.full((8,), 1 / 8), rtol=0.02, atol=0)
    far = fam.BetaBinomial((), 7)(torch.tensor([0.5, 50.0])).log_prob(x).exp()
    torch.testing.assert_close(far, fam.Binomial((), 7)(torch.tensor([0.5])).log_prob(x).exp(), rtol=0, atol=3e-3)


@pytest.mark.parametrize("raw", [-50.0, 0.0, 50.0])
def test_beta_binomial_in_float32_is_that_in_float64(raw: float) -> None:
    family, x = fam.BetaBinomial((), 255), torch.arange(256.0)
    params = torch.stack([torch.linspace(-10, 10, 41), torch.full((41,), raw)], -1)
    single, double = family(params).log_prob(x[:, None]), family(params.double()).log_prob(x[:, None].double())
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=5e-3)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_beta_binomial_still_learns_where_its_mean_is_far_off(sign: float) -> None:
    family, x = fam.BetaBinomial((), 7), torch.tensor(5.0)
    params = torch.tensor([50.0 * sign, 0.0], requires_grad=True)
    (grad,) = torch.autograd.grad(family(params).log_prob(x), params)
    assert -sign * grad[0] > 0.5
    farther = family(torch.tensor([200.0 * sign, 0.0])).log_prob(x)  # here the logistic function underflows
    assert farther.isfinite() and farther < family(params).log_prob(x)


# ---- families of one kind ----


@pytest.mark.slow
def test_continuous_bernoulli_keeps_its_digits_and_its_moments() -> None:
    logits = torch.cat([torch.linspace(-80, 80, 41), torch.tensor([-0.51, -0.49, 1e-3, 1e-6, 0.3])]).double()
    d = fam.ContinuousBernoulli(())(logits[:, None])
    x = torch.linspace(0, 1, 200001, dtype=torch.float64)[:, None]
    density = d.log_prob(x).exp()
    mean = torch.trapezoid(x * density, x, dim=0)
    ones = torch.ones(46, dtype=torch.float64)
    torch.testing.assert_close(torch.trapezoid(density, x, dim=0), ones, rtol=0, atol=1e-7)
    torch.testing.assert_close(d.mean, mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(d.variance, torch.trapezoid((x - mean) ** 2 * density, x, dim=0), rtol=0, atol=1e-7)
    draws = fam.ContinuousBernoulli(())(logits[:, None].float()).rsample((20000,)).double()
    assert ((draws.mean(0) - d.mean).abs() < 5 * (d.variance / 20000).sqrt()).all()


def test_student_t_has_the_moments_that_exist() -> None:
    d = StudentT(torch.tensor([0.5, 1.5, 4.0]), torch.tensor(2.0), torch.tensor(3.0))
    assert d.mean[0].isnan() and d.mean[1:].tolist() == [2.0, 2.0]
    assert d.variance[0].isnan() and d.variance[1].isinf() and d.variance[2].item() == pytest.approx(18.0)


@pytest.mark.parametrize("df", ["rows", 0.0, -1.0, float("nan"), True], ids=str)
def test_student_t_lists_the_dfs_that_it_knows(df: Any) -> None:
    with pytest.raises(OptionError, match="'column', 'shared', 'net' or a positive number"):
        fam.StudentT(3, df=df)


def test_negative_binomial_lists_the_dispersions_that_it_knows() -> None:
    for build in (fam.NegativeBinomial, fam.ZeroInflatedNegativeBinomial):
        with pytest.raises(
            OptionError, match=rf"dispersion of {build.__name__} must be one of 'column', 'net', got 'gene'"
        ):
            build(3, dispersion="gene")


@pytest.mark.parametrize("build", [fam.OrderedLogistic, fam.DiscretizedLogistic])
@pytest.mark.parametrize("number", [0, 1, 2.5, "3"])
def test_two_levels_at_least(build: Callable[..., fam.Family], number: Any) -> None:
    with pytest.raises(OptionError, match="at least 2"):
        build(3, number)


COUNTS: list[Callable[[Any], fam.Family]] = [
    fam.Poisson,
    fam.NegativeBinomial,
    lambda e: fam.NegativeBinomial(e, dispersion="net"),
    fam.ZeroInflatedPoisson,
    fam.ZeroInflatedNegativeBinomial,
]


@pytest.mark.parametrize("build", COUNTS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (3, 1)], ids=str)
def test_library_multiplies_the_mean(build: Callable[[Any], fam.Family], batch: tuple[int, ...]) -> None:
    for event in EVENTS:
        family = build(event)
        params, library = params_of(family, batch, torch.float32), 10 * torch.rand(batch) + 0.5
        wide = library.reshape(batch + (1,) * len(event))
        d = family(params, library=library)
        torch.testing.assert_close(d.mean, family(params).mean * wide, rtol=1e-4, atol=1e-6)
        assert d.batch_shape == batch and torch.equal(family(params, library=wide).mean, d.mean)


@pytest.mark.parametrize("build", COUNTS)
def test_library_of_another_shape_raises(build: Callable[[Any], fam.Family]) -> None:
    family = build(4)
    params = params_of(family, (2, 3), torch.float32)
    assert family(params, library=torch.rand(3)).batch_shape == (2, 3)  # of rows, with particles on the left
    for shape in [(5,), (2, 3, 4), (2,)]:
        with pytest.raises(ShapeError, match=r"library of shape \(2, 3\)"):
            family(params, library=torch.rand(shape))


def test_a_library_of_zero_is_finite() -> None:
    for build in COUNTS:
        params = params_of(build(4), (3,), torch.float32).requires_grad_()
        log_prob = build(4)(params, library=torch.zeros(3)).log_prob(torch.ones(3, 4))
        assert log_prob.isfinite().all() and torch.autograd.grad(log_prob.sum(), params)[0].isfinite().all()


def test_negative_binomial_has_its_mean_and_variance() -> None:
    family = fam.NegativeBinomial((), dispersion="net").double()
    d = family(torch.tensor([1.5, 0.7], dtype=torch.float64))
    mean, t = np.exp(1.5), soft_exp(np.array(0.7), 1000)
    assert d.mean.item() == pytest.approx(mean) and d.variance.item() == pytest.approx(mean + mean**2 / t)


def test_ordered_cutpoints_stay_ordered_and_start_uniform() -> None:
    family = fam.OrderedLogistic(3, 5)
    start = family(torch.zeros(1, 3)).base_dist.probs
    torch.testing.assert_close(start, torch.full((3, 5), 0.2))
    with torch.no_grad():
        for p in family.parameters():
            p.copy_(100 * torch.randn_like(p))
    assert (family.cutpoints()[0].diff() >= 0).all()
    assert fam.OrderedLogistic(3, 2)(torch.zeros(1, 3)).log_prob(torch.ones(3)).item() == pytest.approx(3 * np.log(0.5))


def test_a_scale_of_its_own_makes_a_row_sure_of_the_middle_or_of_both_ends() -> None:
    """Which no predictor does: with one scale the middle of three classes has a third at most, where all are equal at e = 0."""
    family = fam.OrderedLogistic((), 3, scale="net")
    middle = family(torch.tensor([[0.0, -20.0], [0.0, 0.0], [0.0, 20.0]])).probs[:, 1]
    cut = np.log(2.0)  # of s(cut) = 2/3
    wanted = [2 * expit(cut / t) - 1 for t in (np.exp(-1), 1.0, np.exp(1))]
    np.testing.assert_allclose(middle.detach(), wanted, rtol=1e-4)
    with pytest.raises(OptionError, match="scale of OrderedLogistic"):
        fam.OrderedLogistic(3, 4, scale="row")


@pytest.mark.parametrize("classes", [2, 5])
def test_ordered_logistic_starts_from_the_shares_of_each_class(classes: int) -> None:
    x = torch.minimum(torch.randint(classes, (200, 3)), torch.randint(classes, (200, 3))).float()
    x[::7, 1] = torch.nan
    x[:, 2] = 0.0  # the other classes do not occur
    family = fam.OrderedLogistic(3, classes)
    family.start_from(x)
    counts = torch.stack([(x == k).sum(0) for k in range(classes)], -1) + 0.5
    wanted = counts / counts.sum(-1, keepdim=True)
    found = family(torch.zeros(1, 3)).base_dist.probs
    torch.testing.assert_close(found, wanted, atol=3e-4, rtol=0)  # gaps are at least 1e-4


def test_discretized_logistic_has_its_moments() -> None:
    d = fam.DiscretizedLogistic((), 16)(torch.tensor([[0.3, 1.0], [-0.9, 2.5], [1.5, 0.0]]))
    k = torch.arange(16.0)[:, None]
    mass = d.log_prob(k).exp()
    mean = (k * mass).sum(0)
    torch.testing.assert_close(d.mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(d.variance, (k.square() * mass).sum(0) - mean.square(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name", ["NegativeBinomial-net", "ZeroInflatedNegativeBinomial-net", "DiscretizedLogistic", "Gamma"]
)
def test_float32_is_float64_to_a_hundredth_of_a_nat(name: str) -> None:
    """Where large logarithms of the gamma function, or close logistic functions, are subtracted."""
    family = fam.DiscretizedLogistic((), 256) if name == "DiscretizedLogistic" else ROWS[name].build(())
    x = torch.tensor([1.0, 128.0, 254.0]) if ROWS[name].discrete else torch.tensor([0.01, 1.0, 30.0])
    grid = torch.cartesian_prod(*[torch.linspace(-8, 8, 9)] * family.param_shape[0])
    single = family(grid).log_prob(x[:, None]).double()
    double = family(grid.double()).log_prob(x[:, None].double())
    torch.testing.assert_close(single, double, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.discrete and name != "Bernoulli"])
def test_integers_are_taken_as_numbers(name: str) -> None:
    """All but Bernoulli, whose density in torch takes floating values only."""
    family = ROWS[name].build((4,))
    params = params_of(family, (3,), torch.float32)
    x = family(params).sample().clamp(max=1)
    torch.testing.assert_close(family(params).log_prob(x.long()), family(params).log_prob(x.float()))


# ---- joint families ----

TABLE: list[Callable[[], fam.Family]] = [
    lambda: fam.Normal(2),
    lambda: fam.Gamma(()),
    lambda: fam.NegativeBinomial(()),
    lambda: fam.Bernoulli(()),
    lambda: fam.Categorical(2, 4),
    lambda: fam.OrderedLogistic((), 3),
    lambda: fam.Poisson(2),
]
JOINT: dict[str, Callable[[], fam.Family]] = {
    "Columns": lambda: fam.Columns([build() for build in TABLE]),
    "Multinomial": lambda: fam.Multinomial(5, total_count=9),
    "Mixture-colour": lambda: fam.DiscretizedLogisticMixture((3, 2, 1), levels=4, num_components=3),
    "Mixture-grey": lambda: fam.DiscretizedLogisticMixture((1, 2, 2), levels=4, num_components=2),
}
every_joint = pytest.mark.parametrize("build", JOINT.values(), ids=JOINT)


@every_joint
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_joint_batches_are_independent_rows(build: Callable[[], fam.Family], batch: tuple[int, ...]) -> None:
    family = build().double()
    params = params_of(family, batch)
    d = family(params)
    assert (d.batch_shape, d.event_shape) == (batch, family.event_shape)
    x = d.sample((5,))
    assert x.shape == (5, *batch, *family.event_shape) and d.support.check(x).all()
    log_prob = d.log_prob(x)
    assert log_prob.shape == (5, *batch) and log_prob.dtype == torch.float64 and (d.mean.shape == x.shape[1:])
    for i in itertools.product(*map(range, batch)):
        torch.testing.assert_close(log_prob[(slice(None), *i)], family(params[i]).log_prob(x[(slice(None), *i)]))
    wide = d.expand((7, *batch))
    assert wide.sample().shape == (7, *batch, *family.event_shape)
    torch.testing.assert_close(wide.log_prob(x[:1]), log_prob[:1].expand(7, *batch))


@every_joint
def test_joint_value_and_gradient_are_finite_at_the_extremes(build: Callable[[], fam.Family]) -> None:
    family = build()
    x = family(params_of(family, (50,), torch.float32)).sample()
    params = (50 * torch.randint(-1, 2, (50, *family.param_shape)).float()).requires_grad_()
    log_prob = family(params).log_prob(x)
    gradients = torch.autograd.grad(log_prob.sum(), [params, *family.parameters()])
    assert log_prob.isfinite().all() and all(g.isfinite().all() for g in gradients)
    assert family(params).sample().isfinite().all()


@every_joint
def test_joint_refuses_values_outside_its_support_where_pyro_validates(build: Callable[[], fam.Family]) -> None:
    family = build()
    with pyro.validation_enabled(True):
        d = family(params_of(family, (3,), torch.float32))
        for one in (d, d.expand((2, 3))):
            x = one.sample()
            one.log_prob(x)
            with pytest.raises(ValueError, match="support"):
                one.log_prob(x - 100.5)


@every_joint
def test_joint_gradient_is_that_of_the_value(build: Callable[[], fam.Family]) -> None:
    family = build().double()
    params = params_of(family, (2,)).requires_grad_()
    x = family(params).sample()
    assert torch.autograd.gradcheck(lambda p: family(p).log_prob(x), params)


@pytest.mark.slow
@every_joint
def test_joint_is_traced_without_reading_values(build: Callable[[], fam.Family]) -> None:
    family = build()
    params = params_of(family, (3,), torch.float32)
    x = family(params).sample()
    with pyro.validation_enabled(False):
        graph = graph_of(lambda p, x: family(p).log_prob(x), params, x)
    called = {str(node.target) for node in graph.graph.nodes}
    assert not [name for name in called if "_local_scalar_dense" in name or "lift_fresh" in name]
    assert torch.equal(graph(params + 1, x), family(params + 1).log_prob(x))


@every_joint
def test_joint_wrong_shape_and_unknown_argument_raise(build: Callable[[], fam.Family]) -> None:
    family = build()
    for shape in [(), (family.param_shape[0] + 1, *family.param_shape[1:]), (1, *family.event_shape, 1)]:
        with pytest.raises(ShapeError, match="out_shape=family.param_shape"):
            family(torch.zeros(shape))
    with pytest.raises(TypeError, match="unknown"):
        family(torch.zeros(family.param_shape), unknown=torch.zeros(3))


@every_joint
def test_joint_every_parameter_of_an_mlp_gets_a_gradient(build: Callable[[], fam.Family]) -> None:
    conditional = mlp(5, build(), hidden=(16,))
    d = conditional(torch.randn(64, 5))
    d.log_prob(d.sample()).sum().backward()
    for name, parameter in conditional.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@every_joint
def test_joint_is_rebuilt_from_its_specification(build: Callable[[], fam.Family]) -> None:
    conditional = mlp(5, build(), hidden=(16,))
    with torch.no_grad():
        for parameter in conditional.parameters():
            parameter.add_(torch.randn_like(parameter))
    again = from_spec(to_spec(conditional))
    again.load_state_dict(conditional.state_dict())
    assert repr(again.family) == repr(conditional.family)
    parent = torch.randn(8, 5)
    x = conditional(parent).sample()
    assert torch.equal(again(parent).log_prob(x), conditional(parent).log_prob(x))


def test_multinomial_takes_each_row_s_own_total() -> None:
    family = fam.Multinomial(6).double()
    params, totals = params_of(family, (4,)), torch.tensor([0.0, 1.0, 7.0, 300.0])
    x = family(params, total_count=totals).sample()
    assert torch.equal(x.sum(-1), totals.double()) and (x >= 0).all()
    expected = [
        scipy.stats.multinomial.logpmf(x[n].numpy(), int(totals[n]), torch.softmax(params[n], -1).numpy())
        for n in range(4)
    ]
    np.testing.assert_allclose(family(params).log_prob(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(family(params, total_count=totals).mean.sum(-1), totals.double())


def test_multinomial_draws_have_its_mean_and_covariance() -> None:
    d = fam.Multinomial(5, total_count=20)(torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0]))
    x = d.sample((20000,))
    assert ((x.mean(0) - d.mean).abs() < 5 * (d.variance / 20000).sqrt()).all()
    p = d.probs
    covariance = 20 * (p.diag() - p[:, None] * p)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.2)


def test_multinomial_without_a_total_says_what_to_give() -> None:
    d = fam.Multinomial(5)(torch.zeros(3, 5))
    for ask in (d.sample, lambda: d.mean):
        with pytest.raises(PairError, match="total_count=n with n of shape"):
            ask()
    with pytest.raises(ShapeError, match=r"total_count of shape \(3,\), one for each row, got \(4,\)"):
        fam.Multinomial(5)(torch.zeros(3, 5), total_count=torch.ones(4))
    with pytest.raises(ShapeError, match="one dim"):
        fam.Multinomial((2, 3))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="total_count of Multinomial must be at least 1"):
        fam.Multinomial(5, total_count=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_mixture_of_a_pixel_is_normalised_and_drawn_as_it_says(channels: int) -> None:
    family = fam.DiscretizedLogisticMixture((channels, 1, 1), levels=4, num_components=3).double()
    d = family(params_of(family))
    pixels = torch.tensor(list(itertools.product(range(4), repeat=channels)), dtype=torch.float64)[..., None, None]
    mass = d.log_prob(pixels).exp()
    assert mass.sum().item() == pytest.approx(1.0)
    code = (d.sample((20000,)).flatten(1) * 4.0 ** torch.arange(channels - 1, -1, -1)).sum(-1)
    observed, expected = np.bincount(code.long(), minlength=len(mass)), 20000 * mass.numpy()
    often = expected > 5
    observed = np.append(observed[often], observed[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    keep = expected > 0
    assert scipy.stats.chisquare(observed[keep], expected[keep]).pvalue > FALSE_ALARM
    if channels == 1:
        torch.testing.assert_close(d.mean.squeeze(), (pixels.squeeze() * mass).sum())


def test_mixture_conditions_later_channels_on_earlier_ones() -> None:
    family = fam.DiscretizedLogisticMixture((3, 1, 1), num_components=1)
    params = torch.zeros(family.param_shape)
    params[4:7], params[7] = -3.0, 10.0  # sharp scales; the second channel follows the first one
    x = family(params).sample((2000,)).flatten(1)
    correlation = x.T.corrcoef()
    assert correlation[0, 1] > 0.6 and correlation[0, 2].abs() < 0.1


def test_mixture_reads_as_a_decoder_of_images() -> None:
    family = fam.DiscretizedLogisticMixture((3, 8, 8), num_components=2)
    x = conv(4, family, channels=(3,))(torch.randn(2, 4)).sample()
    assert x.shape == (2, 3, 8, 8) and repr(family) == "DiscretizedLogisticMixture((3, 8, 8), num_components=2)"
    with pytest.raises(ShapeError, match=r"\(C, H, W\)"):
        fam.DiscretizedLogisticMixture((8, 8))


def test_columns_are_the_sum_of_their_families() -> None:
    families = [build() for build in TABLE]
    table = fam.Columns(families)
    params, library = params_of(table, (6,), torch.float32), torch.rand(6) + 0.5
    d = table(params, library=library)
    x = d.sample()
    total, at, column = torch.zeros(6), 0, 0
    for family in families:
        n, width = family.param_shape.numel(), family.event_shape.numel()
        raw = params[:, at : at + n].reshape(6, *family.param_shape)
        given = {"library": library} if isinstance(family, (fam.Poisson, fam.NegativeBinomial)) else {}
        part = family(raw, **given)
        total = total + part.log_prob(x[:, column : column + width].reshape(6, *family.event_shape))
        if not isinstance(family, (fam.Categorical, fam.OrderedLogistic)):
            torch.testing.assert_close(d.mean[:, column : column + width].reshape(part.mean.shape), part.mean)
        at, column = at + n, column + width
    torch.testing.assert_close(d.log_prob(x), total)
    assert torch.equal(table(params, library=library[:, None]).log_prob(x), d.log_prob(x))
    assert (d.mean[:, 5:8] == d.mean[:, 5:8].round()).all() and not d.has_rsample


def test_columns_say_what_they_do_not_take() -> None:
    for wrong in ([], [fam.Normal(2), fam.Multinomial(3)], [fam.Normal((2, 3))]):
        with pytest.raises(OptionError, match="independent elements"):
            fam.Columns(wrong)
    with pytest.raises(OptionError, match="library"):
        fam.Columns([fam.Normal(2)])(torch.zeros(3, 4), library=torch.ones(3))
    assert repr(fam.Columns([fam.Normal(2), fam.Gamma(())])) == "Columns([Normal(2), Gamma(())])"


def test_columns_name_the_value_that_is_outside_its_support() -> None:
    table = fam.Columns([fam.Normal(2), fam.Bernoulli(()), fam.Categorical((), 4)])
    d = table(torch.zeros(3, *table.param_shape))
    x = torch.zeros(3, 4)
    x[1, 2], x[2, 3] = 2.0, 4.0
    inside = d.support.base_constraint.check(x)
    assert inside.shape == (3, 4) and (~inside).nonzero().tolist() == [[1, 2], [2, 3]]
    encoder, likelihood = mlp(4, fam.Normal(2)), mlp(2, table)
    vae = pv.VAE(pv.priors.StandardNormal(2), likelihood, encoder)
    with pytest.raises(DataError, match=r"2 of 12 values .*\(0 or 1\).* 2\.0 in row 1, column 2\. .* from 0 to 2"):
        pv.fit(vae, x, epochs=1, batch_size=3)


# ---- conditionals ----


def test_conditional_wants_the_family_s_shape_of_the_network() -> None:
    with pytest.raises(ShapeError, match=r"Normal\(4\) needs a network with out_shape=\(2, 4\), got \(1, 4\)"):
        Conditional(MLP(5, (1, 4)), fam.Normal(4))


def test_conditional_takes_a_network_without_out_shape() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.Unflatten(-1, (2, 4)))
    conditional = Conditional(net, fam.Normal(4))
    assert conditional(torch.zeros(3, 5)).batch_shape == (3,) and conditional.event_shape == (4,)


def test_conditional_hands_what_is_given_to_the_family() -> None:
    class Shifted(fam.Elementwise):
        num_params = 1

        def link(self, loc: Tensor, by: Tensor) -> Any:
            return fam.Normal(self.event_shape, 1.0).link(loc + by)

    conditional, parent = mlp(5, Shifted(4)), torch.randn(3, 5)
    shift = torch.randn(3, 1)
    torch.testing.assert_close(conditional(parent, by=shift).mean, conditional(parent, by=0 * shift).mean + shift)
    with pytest.raises(TypeError, match="unknown"):
        conditional(parent, unknown=shift)


def test_conditional_of_several_parents_broadcasts_them() -> None:
    d = mlp((3, 2), fam.Normal(4))(torch.randn(7, 3), torch.randn(5, 1, 2))
    assert d.batch_shape == (5, 7)


@pytest.mark.parametrize("event", [(1, 28, 28), (9, 7), (3, 8, 5)], ids=str)
def test_conv_goes_from_images_and_to_images(event: tuple[int, ...]) -> None:
    encoder, decoder = conv(event, fam.Normal(4), channels=(3, 5)), conv(4, fam.Normal(event), channels=(3, 5))
    z = encoder(torch.rand(2, 6, *event)).sample()
    assert z.shape == (2, 6, 4) and decoder(z).sample().shape == (2, 6, *event)
    decoder(z).log_prob(torch.rand(2, 6, *event)).sum().backward()
    assert not [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert encoder.net.channels == (3, 5) and decoder.net.channels == (5, 3)


def test_conv_to_what_is_no_image_says_so() -> None:
    with pytest.raises(ShapeError, match=r"Bernoulli\(784\)"):
        conv(20, fam.Bernoulli(784))


def test_conditional_is_rebuilt_from_its_attributes() -> None:
    conditional = conv((9, 7), fam.Normal(4), channels=(3,))
    again = rebuilt(conditional)
    assert isinstance(again, Conditional) and again.net is conditional.net and again.family is conditional.family
