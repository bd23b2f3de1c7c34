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
from torch.fx.experimental.proxy_tensor import make_fx

import pyrovae.families as fam
from pyrovae.conditionals import Conditional, conv, mlp
from pyrovae.errors import OptionError, ShapeError
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


def count(n: int) -> dict[str, Any]:
    return {"support": torch.arange(n + 1.0), "discrete": True, "tails": (0.0, 1.0, float(n))}


def real() -> dict[str, Any]:
    grid = torch.linspace(-60, 60, 60001, dtype=torch.float64)
    return {"support": grid, "discrete": False, "tails": (0.0, 50.0, -50.0, 1e3)}


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
    "Binomial": Row(
        lambda e: fam.Binomial(e, 7), lambda x, raw: scipy.stats.binom.logpmf(x, 7, expit(raw[0])), **count(7)
    ),
    "BetaBinomial": Row(lambda e: fam.BetaBinomial(e, 7), betabinom, **count(7)),
    "Categorical": Row(
        lambda e: fam.Categorical(e, 4),
        lambda x, raw: np.take_along_axis(scipy.special.log_softmax(raw, 0), x[None].astype(int), 0)[0],
        **count(3),
    ),
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
    assert {type(row.build(3)) for row in ROWS.values()} == found


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
    density = family(params_of(family, (20,))).log_prob(row.support[:, None]).exp().detach()
    total = density.sum(0) if row.discrete else torch.trapezoid(density, row.support, dim=0)
    torch.testing.assert_close(total.double(), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-6)


@every_family
@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0])
def test_samples_fit_the_density(row: Row, shift: float) -> None:
    family = row.build(())
    d = family(params_of(family, dtype=torch.float32) + shift * torch.arange(family.param_shape[0]))
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
        p = scipy.stats.kstest(x.numpy(), lambda v: np.interp(v, row.support[1:].numpy(), cdf)).pvalue
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
        assert family(params).sample().isfinite().all()


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


@every_family
def test_is_traced_without_reading_values(row: Row) -> None:
    family = row.build((4,))
    params = params_of(family, (3,), torch.float32)
    x = family(params).sample()
    with pyro.validation_enabled(False):
        graph = make_fx(lambda p, x: family(p).log_prob(x))(params, x)
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
    with pytest.raises(OptionError, match="positive floor"):
        fam.Normal(3, floor=floor)


def test_normal_learns_as_many_scales_as_it_says() -> None:
    sizes = {scale: [p.shape for p in fam.Normal((2, 3), scale=scale).parameters()] for scale in ("column", "shared")}
    assert sizes == {"column": [(2, 3)], "shared": [()]}
    assert not list(fam.Normal((2, 3)).parameters()) and not list(fam.Normal((2, 3), scale=2.0).parameters())


@pytest.mark.parametrize("build", [fam.Binomial, fam.BetaBinomial, fam.Categorical])
@pytest.mark.parametrize("number", [0, -1, 2.5])
def test_counts_are_positive_ints(build: Callable[..., fam.Family], number: Any) -> None:
    with pytest.raises(OptionError, match="positive int"):
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
