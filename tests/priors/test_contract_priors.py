"""What every prior promises. A row of ROWS is a test suite; a prior without a row fails."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

import pyrovae.families as fam
import pyrovae.priors as priors
from pyrovae.conditionals import mlp
from pyrovae.engine.tracing import graph_of
from pyrovae.errors import OptionError, PairError, ShapeError
from pyrovae.fitted.spec import from_spec, to_spec

# A KS test passes if p > FALSE_ALARM: a right sampler fails once in 10,000 seeds, and seeds are fixed.
FALSE_ALARM = 1e-4
EVENTS = [(), (4,), (2, 3)]
GRID = torch.linspace(-30, 30, 30001, dtype=torch.float64)


def mixture(z: np.ndarray, prior: Any) -> np.ndarray:
    scale = np.logaddexp(0, prior.raw_scale.detach().numpy()) + 1e-3
    log_weights = scipy.special.log_softmax(prior.logits.detach().numpy())
    each = scipy.stats.norm.logpdf(z[:, None], prior.loc.detach().numpy(), scale)
    return scipy.special.logsumexp(each.reshape(*each.shape[:2], -1).sum(-1) + log_weights, axis=-1)


def vamp(z: np.ndarray, prior: Any) -> np.ndarray:
    d = prior.encoder(prior.pseudo_inputs)
    d = getattr(d, "base_dist", d)
    each = scipy.stats.norm.logpdf(z[:, None], d.loc.detach().numpy(), d.scale.detach().numpy())
    each = each.reshape(*each.shape[:2], -1).sum(-1)
    return scipy.special.logsumexp(each, axis=-1) - np.log(len(prior.pseudo_inputs))


def horseshoe(z: np.ndarray, prior: Any) -> np.ndarray:
    node = prior.log_node.numpy()
    weights = scipy.special.log_softmax(-np.log(np.cosh(node)))
    each = scipy.stats.norm.logpdf(z[..., None], 0, prior.scale * np.exp(node))
    return product(scipy.special.logsumexp(each + weights, axis=-1))


def normal(z: np.ndarray, prior: Any) -> np.ndarray:
    scale = np.logaddexp(0, prior.raw_scale.detach().numpy()) + 1e-3
    return product(scipy.stats.norm.logpdf(z, prior.loc.detach().numpy(), scale))


def product(logpdf: np.ndarray) -> np.ndarray:
    return logpdf.reshape(len(logpdf), -1).sum(-1)


@dataclass
class Row:
    """A prior of an event_shape, and its log-density by scipy: logpdf(z, prior), z: (n, *event_shape)."""

    build: Callable[[Any], nn.Module]
    logpdf: Callable[[np.ndarray, Any], np.ndarray]
    grid: torch.Tensor = GRID


ROWS = {
    "StandardNormal": Row(priors.StandardNormal, lambda z, prior: product(scipy.stats.norm.logpdf(z))),
    "MixtureOfNormals": Row(lambda event: priors.MixtureOfNormals(event, num_components=3), mixture),
    "Fixed": Row(
        lambda event: priors.Fixed(dist.Laplace(torch.ones(event), torch.tensor(2.0)).to_event(len(event))),
        lambda z, prior: product(scipy.stats.laplace.logpdf(z, 1, 2)),
    ),
}
# Learned, of codes, and sparse ones. Priors of vectors alone stand in test_contract_multivariate.py.
ROWS |= {
    "Normal": Row(priors.Normal, normal),
    "VampPrior": Row(
        lambda event: priors.VampPrior(mlp(5, fam.Normal(event), hidden=(8,)), torch.randn(3, 5)),
        vamp,
        grid=torch.linspace(-60, 60, 1200001, dtype=torch.float64),
    ),
    "Laplace": Row(
        lambda event: priors.Laplace(event, scale=0.7), lambda z, prior: product(scipy.stats.laplace.logpdf(z, 0, 0.7))
    ),
    "StudentT": Row(
        lambda event: priors.StudentT(event, df=5.0, scale=0.7),
        lambda z, prior: product(scipy.stats.t.logpdf(z, 5, 0, 0.7)),
    ),
    "Horseshoe": Row(
        lambda event: priors.Horseshoe(event, scale=0.7),
        horseshoe,
        grid=1e-5 * torch.sinh(torch.linspace(-27, 27, 30001, dtype=torch.float64)),
    ),
}
every_prior = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


def rebuilt(prior: nn.Module) -> nn.Module:
    """Another one from its specification, as a checkpoint builds it."""
    made: nn.Module = from_spec(to_spec(prior))
    return made


def shaken(prior: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter))
    return prior


def test_every_prior_has_a_row() -> None:
    found = {c for c in (getattr(priors, name) for name in priors.__all__) if isinstance(c, type)}
    elsewhere = {priors.FlowPrior, priors.HypersphericalUniform, priors.LogisticNormal}  # test_contract_multivariate.py
    elsewhere |= {priors.Categorical}  # of class numbers: below
    elsewhere |= {priors.Autoregressive}  # of code numbers: distributions/test_codes.py
    elsewhere |= {priors.OneHotCategorical, priors.Bernoulli}  # of codes and bits: families/test_codes.py
    assert {type(row.build((3,))) for row in ROWS.values()} == found - elsewhere


@every_prior
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_log_prob_is_scipys(row: Row, event: tuple[int, ...]) -> None:
    prior = shaken(row.build(event)).double()
    z = 2 * torch.randn(50, *event, dtype=torch.float64)
    np.testing.assert_allclose(prior().log_prob(z).detach(), row.logpdf(z.numpy(), prior), rtol=1e-10)


@every_prior
def test_density_is_normalised_and_samples_fit_it(row: Row) -> None:
    prior = shaken(row.build(())).double()
    density = prior().log_prob(row.grid).exp().detach()
    cdf = torch.cumulative_trapezoid(density, row.grid)
    torch.testing.assert_close(cdf[-1].item(), 1.0, rtol=0, atol=1e-5)
    z = prior().sample((4000,))
    assert scipy.stats.kstest(z.numpy(), lambda v: np.interp(v, row.grid[1:], cdf)).pvalue > FALSE_ALARM


@every_prior
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_its_event_is_the_whole_row(row: Row, event: tuple[int, ...]) -> None:
    d = row.build(event)()
    assert (d.batch_shape, d.event_shape) == ((), event)
    assert isinstance(d, TorchDistributionMixin)
    for batch in [(), (3,), (2, 3)]:
        z = d.expand(batch).sample()
        assert z.shape == (*batch, *event)
        assert d.log_prob(z).shape == d.expand(batch).log_prob(z).shape == batch
        torch.testing.assert_close(d.log_prob(z), d.expand(batch).log_prob(z))


@every_prior
def test_stands_in_a_plate(row: Row) -> None:
    prior = row.build((4,))
    with pyro.plate("data", 6):
        assert pyro.sample("z", prior()).shape == (6, 4)


@every_prior
def test_value_and_gradient_are_finite_far_out(row: Row) -> None:
    prior = row.build((4,))
    with torch.no_grad():
        for i, parameter in enumerate(prior.parameters()):
            parameter.copy_(50.0 * torch.randint(-1, 2, parameter.shape) + i)
    z = torch.tensor([-50.0, 0.0, 50.0, 300.0])[:, None].expand(-1, 4).clone().requires_grad_()
    log_prob = prior().log_prob(z)
    assert log_prob.isfinite().all()
    for g in torch.autograd.grad(log_prob.sum(), [z, *prior.parameters()]):
        assert g.isfinite().all()


@every_prior
def test_every_parameter_gets_a_gradient(row: Row) -> None:
    prior = shaken(row.build((4,)))
    z = torch.randn(32, 4, requires_grad=True)
    prior().log_prob(z).sum().backward()
    assert z.grad is not None and z.grad.any()
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), f"{name} gets no gradient"


@every_prior
def test_to_another_dtype_and_device(row: Row) -> None:
    prior = row.build((4,)).to(torch.float64)
    z = prior().sample((3,))
    assert z.dtype == torch.float64 and prior().log_prob(z).dtype == torch.float64
    prior.to("meta")
    with pyro.validation_enabled(False):  # there are no values on this device
        assert prior().log_prob(z.to("meta")).device.type == "meta"


@every_prior
def test_is_rebuilt_from_its_attributes_and_state(row: Row) -> None:
    prior = shaken(row.build((2, 3)))
    again = rebuilt(prior)
    z = torch.randn(8, 2, 3)
    assert not list(prior.parameters()) or not torch.equal(again().log_prob(z), prior().log_prob(z))
    again.load_state_dict(prior.state_dict())
    assert torch.equal(again().log_prob(z), prior().log_prob(z))


@every_prior
def test_is_traced_without_reading_values(row: Row) -> None:
    prior, z = row.build((4,)), torch.randn(3, 4)
    with pyro.validation_enabled(False):
        graph = graph_of(lambda z: prior().log_prob(z), z)
    called = {str(node.target) for node in graph.graph.nodes}
    assert not [name for name in called if "_local_scalar_dense" in name or "lift_fresh" in name]
    torch.testing.assert_close(graph(z + 1), prior().log_prob(z + 1))


def test_what_is_not_learned_is_not_saved() -> None:
    assert not priors.StandardNormal(3).state_dict()


@pytest.mark.slow
def test_mixture_starts_apart_with_the_moments_of_the_standard_normal() -> None:
    prior = priors.MixtureOfNormals(20, num_components=200)
    z = prior().sample((20000,))
    torch.testing.assert_close(z.mean(0), torch.zeros(20), rtol=0, atol=0.25)
    torch.testing.assert_close(z.var(0), torch.ones(20), rtol=0, atol=0.3)
    distances = torch.cdist(prior.loc, prior.loc)[~torch.eye(200, dtype=torch.bool)]
    assert distances.min() > 1


def test_horseshoe_is_the_marginal_of_the_half_cauchy_mixture() -> None:
    z = torch.logspace(-3, 3, 200, dtype=torch.float64)
    square = (z**2 / 2).numpy()
    e1 = np.array([scipy.special.exp1(s) if s < 50 else 1 / s * (1 - 1 / s + 2 / s**2 - 6 / s**3) for s in square])
    scaled = np.where(square < 50, np.exp(np.minimum(square, 50)) * e1, e1)  # exp(s) E_1(s), by its series far out
    expected = scaled / np.sqrt(2 * np.pi**3)
    found = priors.Horseshoe(()).double()().log_prob(z).exp()
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_vamp_prior_starts_at_the_rows_given_and_leaves_them_alone() -> None:
    rows = torch.randn(3, 5)
    prior = shaken(priors.VampPrior(mlp(5, fam.Normal(4)), rows))
    assert prior.pseudo_inputs.shape == rows.shape and not torch.equal(prior.pseudo_inputs, rows)
    assert torch.equal(priors.VampPrior(prior.encoder, rows).pseudo_inputs, rows)
    for wrong in (3, torch.tensor(1.0), torch.zeros(0, 5)):
        with pytest.raises(ShapeError, match="pseudo_inputs"):
            priors.VampPrior(prior.encoder, wrong)


@pytest.mark.parametrize("build", [priors.Laplace, priors.StudentT, priors.Horseshoe])
@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), True], ids=str)
def test_scales_are_positive(build: Callable[..., Any], scale: Any) -> None:
    with pytest.raises(OptionError, match="scale of priors.* must be a positive number"):
        build(3, scale=scale)


@pytest.mark.parametrize("number", [0, -1, 2.5], ids=str)
def test_mixture_has_a_positive_number_of_components(number: Any) -> None:
    with pytest.raises(ShapeError, match="positive int"):
        priors.MixtureOfNormals(3, number)


# ---- plain distributions ----

ones = torch.ones(4)
DISTRIBUTIONS: dict[str, Callable[[], Any]] = {
    "to_event": lambda: dist.Normal(ones, 2 * ones).to_event(1),
    "torch": lambda: torch.distributions.Independent(torch.distributions.Normal(ones, 2 * ones), 1),
    "expanded": lambda: dist.Normal(torch.tensor(1.0), 2.0).expand([4]).to_event(1),
    "uniform": lambda: dist.Uniform(-3 * ones, 3 * ones).to_event(1),
    "mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(logits=ones[:3]), dist.Normal(torch.randn(3, 4), 1.0).to_event(1)
    ),
    "multivariate": lambda: dist.MultivariateNormal(ones, 2 * torch.eye(4)),
    "transformed": lambda: dist.TransformedDistribution(
        dist.Normal(ones, ones).to_event(1),
        [
            torch.distributions.ComposeTransform(
                [torch.distributions.AffineTransform(ones, 2 * ones, event_dim=1), torch.distributions.TanhTransform()]
            ),
            torch.distributions.AffineTransform(ones, 3 * ones, event_dim=1).inv,
        ],
    ),
}


def test_the_inverse_of_a_transform_moves_with_it() -> None:
    d = DISTRIBUTIONS["transformed"]()
    kept = [t.inv for t in d.transforms]  # a transform remembers its inverse
    moved = priors.Fixed(d).to(torch.float64)().transforms
    for old, new in zip(kept, moved):
        z = 0.1 * torch.ones(4)
        assert old(z).dtype == torch.float32 and new.inv(z.double()).dtype == torch.float64
        torch.testing.assert_close(new.inv(new(z.double())), z.double())


@pytest.mark.parametrize("build", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_a_plain_distribution_moves_and_stays_the_same(build: Callable[[], Any]) -> None:
    d = build()
    z = d.sample((5,))
    before = d.log_prob(z)
    prior = priors.as_prior(d).to(torch.float64)
    assert prior().sample().dtype == torch.float64
    after = prior().log_prob(d.sample((5,)).double())
    assert after.dtype == torch.float64
    torch.testing.assert_close(prior().log_prob(z.double()).float(), before, rtol=1e-3, atol=1e-3)
    assert d.sample().dtype == torch.float32 and torch.equal(d.log_prob(z), before)  # the caller's own is left alone
    assert prior().expand((2,)).sample().shape == (2, 4)
    with pyro.plate("data", 3):
        assert pyro.sample("z", prior()).shape == (3, 4)


def test_a_module_around_it_moves_it_too() -> None:
    outer = nn.ModuleDict({"prior": priors.Fixed(DISTRIBUTIONS["to_event"]())}).double()
    assert outer["prior"]().sample().dtype == torch.float64


@pytest.mark.parametrize("build", [dist.Normal, torch.distributions.Normal])
def test_a_distribution_of_many_numbers_is_asked_for_its_event(build: Callable[..., Any]) -> None:
    with pytest.raises(PairError, match=r"batch_shape \(4,\).*\.to_event\(1\)"):
        priors.as_prior(build(ones, ones))


def test_a_distribution_that_wants_to_learn_is_refused() -> None:
    with pytest.raises(PairError, match="requires a gradient"):
        priors.as_prior(dist.Normal(ones.clone().requires_grad_(), ones).to_event(1))


def test_as_prior() -> None:
    module = priors.StandardNormal(3)
    assert priors.as_prior(module) is module
    assert isinstance(priors.as_prior(dist.Normal(0.0, 1.0)), priors.Fixed)
    for wrong in (20, "normal", priors.StandardNormal, None):
        with pytest.raises(PairError, match=f"got {type(wrong).__name__}"):
            priors.as_prior(wrong)


# --- of class numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
def test_categorical_is_a_mass_over_its_classes(learned: bool) -> None:
    prior = shaken(priors.Categorical(4, learned=learned))
    found = rebuilt(prior)
    found.load_state_dict(prior.state_dict())
    for made in (prior, found):
        log_p = made().log_prob(torch.arange(4))
        np.testing.assert_allclose(log_p.detach(), scipy.special.log_softmax(made.logits.detach()), rtol=1e-6)
    assert (prior().log_prob(torch.tensor([-1, 4])) == -torch.inf).all()
    assert prior.event_shape == () and prior().expand((3,)).sample().shape == (3,)
    assert len(list(prior.parameters())) == len(prior.state_dict()) == learned
    if learned:
        (-prior().log_prob(torch.tensor([0, 0, 1])).sum()).backward()
        assert prior.logits.grad.abs().min() > 0
    else:
        assert (prior.logits == 0).all()
    with pytest.raises(ShapeError):
        priors.Categorical(0, learned=learned)
