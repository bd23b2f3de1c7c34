"""What densities of whole vectors promise: families of dependent elements, flows, priors on the simplex and the sphere.

In two dimensions all of it can be integrated on a grid: the plane, the circle by its angle, the simplex by its first share.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam
import pyrovae.priors as priors
from pyrovae import distributions
from pyrovae.engine.tracing import graph_of
from pyrovae.errors import OptionError, ShapeError
from pyrovae.fitted.spec import from_spec, to_spec
from pyrovae.nets import MLP

BATCHES = [(), (3,), (2, 3)]


def plane(half: float = 16.0) -> tuple[Tensor, Tensor]:
    line = torch.linspace(-half, half, int(24 * half) + 1, dtype=torch.float64)
    step = float(line[1] - line[0])
    points = torch.cartesian_prod(line, line)
    return points, torch.full((len(points),), step**2, dtype=torch.float64)


def middle() -> tuple[Tensor, Tensor]:
    return plane(6.0)  # splines leave the Normal as it is outside of [-5, 5]


def circle() -> tuple[Tensor, Tensor]:
    angle = 2 * torch.pi * torch.arange(20000, dtype=torch.float64) / 20000
    return torch.stack([angle.cos(), angle.sin()], -1), torch.full((20000,), 2 * torch.pi / 20000, dtype=torch.float64)


def shares() -> tuple[Tensor, Tensor]:
    logit = torch.linspace(-40, 40, 20001, dtype=torch.float64)
    x = torch.sigmoid(logit)
    return torch.stack([x, torch.sigmoid(-logit)], -1), x * (1 - x) * float(logit[1] - logit[0])


def real(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape)


def unit(shape: tuple[int, ...]) -> Tensor:
    return nn.functional.normalize(torch.randn(shape), dim=-1)


def simplex(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape).softmax(-1)


@dataclass
class Row:
    """build(D) -> a module; parents(module) -> the shape of one row of what it takes, None for a prior."""

    build: Callable[[int], Any]
    grid: Callable[[], tuple[Tensor, Tensor]] = plane
    values: Callable[[tuple[int, ...]], Tensor] = real
    tolerance: float = 1e-4  # of the grid


FAMILIES = {
    "FullNormal": Row(fam.FullNormal),
    "LowRankNormal": Row(lambda d: fam.LowRankNormal(d, rank=2)),
    "MixtureOfNormals": Row(lambda d: fam.MixtureOfNormals(d, num_components=3)),
    "PowerSpherical": Row(fam.PowerSpherical, circle, unit),
    "LogisticNormal": Row(fam.LogisticNormal, shares, simplex),
}
FLOWS = {
    kind: Row(
        lambda d, kind=kind: pv.flow(5, d, kind=kind, hidden=(16,), context=8, flow_hidden=(16,)), grid, tolerance=4e-3
    )
    for kind, grid in {"iaf": plane, "nsf": middle, "coupling": plane}.items()
}
PRIORS = {
    **{
        f"FlowPrior-{kind}": Row(lambda d, kind=kind: priors.FlowPrior(d, kind, 2, (16,)), grid, tolerance=4e-3)
        for kind, grid in {"nsf": middle, "maf": plane, "coupling": plane}.items()
    },
    "HypersphericalUniform": Row(priors.HypersphericalUniform, circle, unit),
    "LogisticNormalPrior": Row(priors.LogisticNormal, shares, simplex),
}
ROWS = {**FAMILIES, **FLOWS, **PRIORS}
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
every_guide = pytest.mark.parametrize("row", [*FAMILIES.values(), *FLOWS.values()], ids=[*FAMILIES, *FLOWS])
every_family = pytest.mark.parametrize("row", FAMILIES.values(), ids=FAMILIES)


def given(module: Any, batch: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """What the module takes, for a batch: a prior takes nothing."""
    if isinstance(module, fam.Family):
        return (torch.randn(*batch, *module.param_shape, dtype=dtype),)
    return (torch.randn(*batch, 5, dtype=dtype),) if isinstance(module, pv.ConditionalFlow) else ()


def shaken(module: Any, by: float = 0.3) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return module


def test_every_family_of_vectors_has_a_row() -> None:
    found = {c for c in (getattr(fam, name) for name in fam.__all__) if issubclass(c, fam.Vector)} - {fam.Vector}
    assert {type(row.build(3)) for row in FAMILIES.values()} == found


@every_row
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_batches_are_independent_rows(row: Row, batch: tuple[int, ...]) -> None:
    module = shaken(row.build(4)).double()
    inputs = given(module, batch)
    d = module(*inputs)
    own = batch if inputs else ()
    assert isinstance(d, TorchDistributionMixin)
    assert (d.batch_shape, d.event_shape, module.event_shape) == (own, (4,), (4,))
    wide = d.expand((5, *batch))
    x = wide.rsample()
    assert x.shape == (5, *batch, 4)
    scored = wide.log_prob(x)
    assert scored.shape == (5, *batch) and wide.log_prob(x.clone()).shape == (5, *batch)
    torch.testing.assert_close(scored, d.log_prob(x.clone()))
    assert d.sample((5,)).shape == (5, *own, 4)
    for i in itertools.product(*map(range, own)):
        one = module(*(p[i] for p in inputs))
        torch.testing.assert_close(scored[(slice(None), *i)], one.log_prob(x[(slice(None), *i)].clone()))


@every_row
def test_density_is_normalised_and_draws_have_its_moments(row: Row) -> None:
    module = shaken(row.build(2), 0.1).double()
    d = module(*given(module, ()))
    points, weights = row.grid()
    mass = d.log_prob(points).exp().detach() * weights
    torch.testing.assert_close(mass.sum().item(), 1.0, rtol=0, atol=row.tolerance)
    z = d.sample((20000,))
    for f in (lambda z: z[..., 0], lambda z: z[..., 1], lambda z: z[..., 0] * z[..., 1], lambda z: z[..., 0].sin()):
        error = f(z).std() / 20000**0.5
        assert (f(z).mean() - (f(points) * mass).sum()).abs() < 4 * error + 10 * row.tolerance
    try:
        mean = d.mean
    except NotImplementedError:
        return
    if not isinstance(module, (fam.LogisticNormal, priors.LogisticNormal, pv.ConditionalFlow, priors.FlowPrior)):
        torch.testing.assert_close(mean, (points * mass[:, None]).sum(0), rtol=0, atol=1e-3)


@pytest.mark.slow
@every_guide
def test_pathwise_gradient_is_that_of_the_expectation(row: Row) -> None:
    module = shaken(row.build(2), 0.1).double()
    (inputs,) = given(module, ())
    inputs = 0.5 * inputs.requires_grad_()
    points, weights = row.grid()

    def f(z: Tensor) -> Tensor:
        return z[..., 0].sin() + (z[..., 0] * z[..., 1]).cos() + 0.3 * z[..., 1]

    expected = (f(points) * module(inputs).log_prob(points).exp() * weights).sum()
    (exact,) = torch.autograd.grad(expected, inputs)
    num = 4000
    many = inputs.detach().expand(num, *inputs.shape).clone().requires_grad_()
    (each,) = torch.autograd.grad(f(module(many).rsample()).sum(), many)
    error = each.std(0) / num**0.5
    assert ((each.mean(0) - exact).abs() < 5 * error + 20 * row.tolerance).all()
    assert each.any(0).all()


@every_row
def test_the_score_of_its_own_draw_is_exact(row: Row) -> None:
    module = shaken(row.build(3)).double()
    d = module(*given(module, (6,)))
    with torch.no_grad():
        z = d.sample() if isinstance(module, fam.Family) else d.rsample()
        torch.testing.assert_close(d.log_prob(z), d.log_prob(z.clone()))
    # what was drawn without gradients is scored anew where they are wanted
    if any(p.requires_grad for p in module.parameters()):
        assert d.log_prob(z).requires_grad
        grads = [
            torch.autograd.grad(d.log_prob(v).sum(), list(module.parameters()), retain_graph=True, allow_unused=True)
            for v in (z, z.clone())
        ]
        assert all(a is None or torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*grads))


@pytest.mark.parametrize("kind", FLOWS)
def test_a_guide_s_flow_never_inverts_its_own_draw(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    d = FLOWS[kind].build(3)(torch.randn(6, 5)).expand((4, 6))

    def inverts(self: Any, x: Tensor) -> Any:
        raise AssertionError("inverted")

    monkeypatch.setattr(type(d), "unmap", inverts)
    z = d.rsample()
    assert d.log_prob(z).shape == (4, 6)
    with pytest.raises(AssertionError, match="inverted"):
        d.log_prob(z + 1)


@pytest.mark.slow
def test_steps_and_evaluations_of_a_flow_guide_invert_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, unmap = [], distributions.Flow.unmap

    def counted(self: Any, x: Tensor) -> Any:
        calls.append(x.shape)
        return unmap(self, x)

    monkeypatch.setattr(distributions.Flow, "unmap", counted)
    x, inversions = torch.rand(40, 6), []
    for epochs in (1, 4):
        vae = pv.VAE(priors.StandardNormal(3), pv.mlp(3, fam.Normal(6), hidden=(16,)), pv.flow(6, 3, "nsf", (16,)))
        calls.clear()
        loss = pv.Trace_ELBO(num_particles=2)
        fitted = pv.fit(vae, x, epochs=epochs, batch_size=20, seed=1, engine="eager", loss=loss)
        inversions.append(len(calls))
    assert inversions[0] == inversions[1]  # those of the checks before the first step, on given values
    calls.clear()
    assert pv.log_likelihood(fitted, x, 20, seed=0, proposal="guide").isfinite().all()
    assert pv.encode(fitted, x).shape == (40, 3)
    assert not [shape for shape in calls if 40 in shape]  # a check on a few rows goes first


@every_family
def test_value_and_gradient_are_finite_at_extremes(row: Row) -> None:
    family = row.build(4)
    n = family.param_shape[0]
    params = torch.cat([50.0 * torch.randint(-1, 2, (200, n)), torch.zeros(1, n), torch.full((1, n), 50.0)])
    params.requires_grad_()
    values = [row.values((202, 4)), family(params).rsample()]
    values += [1e3 * values[0]] if row.values is real else [torch.eye(4)[0].expand(202, 4)]
    for z in values:
        assert z.isfinite().all()
        log_prob = family(params).log_prob(z)
        assert log_prob.isfinite().all()
        (grad,) = torch.autograd.grad(log_prob.sum(), params, retain_graph=True)
        assert grad.isfinite().all()
    d = family(params)
    z = d.rsample()
    (grad,) = torch.autograd.grad((z.square() + z).sum() + d.log_prob(z).sum(), params)
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", ["iaf", "nsf", "coupling", *PRIORS])
def test_values_far_out_are_finite(name: str) -> None:
    row = ROWS[name]
    module = shaken(row.build(4), 3.0)
    wide = module(*(50 * p for p in given(module, (6,), torch.float32))).expand((3, 6))
    values = [wide.rsample()]
    if name in PRIORS:
        far = row.values((3, 6, 4))
        values.append(
            (far * torch.tensor([1.0, 10.0, 50.0])[:, None, None] if row.values is real else far).requires_grad_()
        )
    for value in values:
        log_prob = wide.log_prob(value)
        assert value.isfinite().all() and log_prob.isfinite().all()
        wanted = [p for p in (*module.parameters(), *values[1:]) if p.requires_grad]
        total = log_prob.sum() + value.sum()
        grads = torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True) if total.requires_grad else ()
        assert all(g is None or g.isfinite().all() for g in grads)


@every_row
def test_every_parameter_gets_a_gradient_of_finite_size(row: Row) -> None:
    module = row.build(4)
    module = pv.mlp(5, module, hidden=(16,)) if isinstance(module, fam.Family) else module
    inputs = () if isinstance(module, tuple(type(r.build(4)) for r in PRIORS.values())) else (torch.randn(64, 5),)
    d = module(*inputs)
    z = d.rsample() if inputs else row.values((64, 4))
    (d.log_prob(z).sum() + z.square().sum()).backward() if list(module.parameters()) else None
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), f"{name} gets no gradient"
        assert parameter.grad.isfinite().all(), f"{name} gets the gradient {parameter.grad}"


@pytest.mark.slow
@every_row
def test_is_traced_without_reading_values(row: Row) -> None:
    module = row.build(3)
    inputs = given(module, (4,), torch.float32)
    value = row.values((4, 3))

    def draws_and_scores(value: Tensor, *inputs: Tensor) -> Any:
        d = module(*inputs).expand((4,))
        z = d.rsample()
        return d.log_prob(z).sum(), d.log_prob(value)

    with pyro.validation_enabled(False):
        graph = graph_of(draws_and_scores, value, *inputs)
    called = {str(node.target) for node in graph.graph.nodes}
    assert not [name for name in called if "_local_scalar_dense" in name or "lift_fresh" in name or "nonzero" in name]
    moved = [p + 1 for p in inputs]
    torch.testing.assert_close(graph(value, *moved)[1], module(*moved).log_prob(value))


@pytest.mark.slow
@every_row
def test_is_rebuilt_from_its_specification(row: Row) -> None:
    module = shaken(row.build(3))
    again = from_spec(to_spec(module))
    again.load_state_dict(module.state_dict())
    inputs, z = given(module, (6,), torch.float32), row.values((6, 3))
    assert torch.equal(again(*inputs).log_prob(z), module(*inputs).log_prob(z))


@every_row
def test_to_another_dtype(row: Row) -> None:
    for dtype in (torch.float32, torch.float64):
        module = row.build(3).to(dtype)
        d = module(*given(module, (4,), dtype))
        assert d.rsample().dtype == d.log_prob(row.values((4, 3)).to(dtype)).dtype == dtype


@every_family
def test_wrong_shapes_are_refused(row: Row) -> None:
    family = row.build(4)
    (n,) = family.param_shape
    with pytest.raises(ShapeError, match=rf"needs parameters of shape \(\*batch, {n}\), got \({n + 1},\)"):
        family(torch.zeros(n + 1))
    for wrong in ((), (2, 3), (1,) if family.least > 1 else (0,)):
        with pytest.raises(ShapeError):
            row.build(wrong)  # type: ignore[arg-type]


def test_the_normals_are_torch_s() -> None:
    params = torch.randn(7, fam.LowRankNormal(4, 2).param_shape[0], dtype=torch.float64)
    d = fam.LowRankNormal(4, 2)(params)
    same = torch.distributions.LowRankMultivariateNormal(
        d.loc, d.scale.unsqueeze(-1) * d.factor, d.scale**2, validate_args=False
    )
    z = d.sample((3,))
    torch.testing.assert_close(d.log_prob(z), same.log_prob(z))
    torch.testing.assert_close(d.variance, same.variance)
    full = fam.FullNormal(4).double()
    params = torch.randn(full.param_shape, dtype=torch.float64)
    # det L = prod s: the entropy is that of independent Normals of these scales
    scales = nn.functional.softplus(params[4:8]) + 1e-4
    torch.testing.assert_close(full(params).scale_tril.diagonal(), scales)
    torch.testing.assert_close(full(params).entropy(), torch.distributions.Normal(0.0, scales).entropy().sum())
    params[8:] = 0
    torch.testing.assert_close(full(params).log_prob(z), fam.Normal(4)(params[:8].unflatten(0, (2, 4))).log_prob(z))


def test_the_mixture_is_pyro_s_density_and_the_moments_are_right() -> None:
    d = fam.MixtureOfNormals(4, 3)(torch.randn(7, 27, dtype=torch.float64))
    z = d.sample((20000,))
    pyros = pyro.distributions.MixtureOfDiagNormals(d.loc, d.scale, d.logits)
    torch.testing.assert_close(d.log_prob(z), pyros.log_prob(z))
    torch.testing.assert_close(z.var(0), d.variance, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("num", [2, 3, 10])
def test_power_spherical_along_its_direction_is_a_beta(num: int) -> None:
    d = fam.PowerSpherical(num)(torch.randn(num + 1, dtype=torch.float64))
    z = d.sample((4000,))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(4000, dtype=torch.float64))
    along = (z @ d.loc + 1) / 2
    b = (num - 1) / 2
    assert scipy.stats.kstest(along.numpy(), scipy.stats.beta(b + float(d.concentration), b).cdf).pvalue > 1e-4
    torch.testing.assert_close(z.mean(0), d.mean, rtol=0, atol=0.05)
    uniform = priors.HypersphericalUniform(num)().log_prob(z[:2].float())
    np.testing.assert_allclose(uniform, scipy.stats.uniform_direction(num).rvs(2)[:, 0] * 0 - log_area(num), rtol=1e-5)


def log_area(num: int) -> float:
    return float(np.log(2) + num / 2 * np.log(np.pi) - scipy.special.gammaln(num / 2))


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="'nsf', 'maf', 'iaf', 'coupling', got 'glow'"):
        priors.FlowPrior(3, "glow")
    with pytest.raises(OptionError, match="Use kind='iaf'"):
        pv.flow(5, 3, "maf")
    with pytest.raises(OptionError, match="transforms"):
        pv.flow(5, 3, transforms=0)
    with pytest.raises(OptionError, match="hidden"):
        priors.FlowPrior(3, hidden=(0,))
    with pytest.raises(ShapeError, match="vectors"):
        priors.FlowPrior((2, 3))
    with pytest.raises(ShapeError, match="out_shape"):
        pv.ConditionalFlow(MLP(5, (2, 3)), 3)
    for build in (priors.HypersphericalUniform, priors.LogisticNormal):
        with pytest.raises(ShapeError, match="at least 2"):
            build(1)


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("kind", ["iaf", "nsf", "coupling"])
def test_small_flows(kind: str, num: int) -> None:
    d = pv.flow(5, num, kind)(torch.randn(6, 5))
    z = d.rsample()
    torch.testing.assert_close(d.log_prob(z), d.log_prob(z.clone()), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_importing_leaves_torch_s_validation_and_zuko_comes_with_the_first_flow() -> None:
    program = (
        "import sys; from torch.distributions import Distribution as D; "
        "import pyro; before = D._validate_args, D.__dict__['arg_constraints']; import pyrovae as pv; "
        "same = lambda: (D._validate_args, D.__dict__['arg_constraints']) == before; "
        "assert 'zuko' not in sys.modules and same(); pv.flow(5, 3); assert 'zuko' in sys.modules and same()"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


# ---- in a VAE ----


def encoder(family: fam.Family) -> nn.Module:
    return pv.mlp(6, family, hidden=(16,))


def vamp(x: Tensor) -> tuple[nn.Module, nn.Module]:
    shared = encoder(fam.Normal(3))
    return priors.VampPrior(shared, x[:5]), shared


PAIRS: dict[str, Callable[[Tensor], tuple[Any, Any]]] = {
    "Normal": lambda x: (priors.Normal(3), encoder(fam.Normal(3))),
    "VampPrior": vamp,
    "FlowPrior-nsf": lambda x: (priors.FlowPrior(3, "nsf", 2, (16,)), encoder(fam.Normal(3))),
    "FlowPrior-maf": lambda x: (priors.FlowPrior(3, "maf", 2, (16,)), encoder(fam.Normal(3))),
    "FlowPrior-coupling": lambda x: (priors.FlowPrior(3, "coupling", 2, (16,)), encoder(fam.Normal(3))),
    "Laplace": lambda x: (priors.Laplace(3), encoder(fam.Normal(3))),
    "StudentT": lambda x: (priors.StudentT(3), encoder(fam.Normal(3))),
    "Horseshoe": lambda x: (priors.Horseshoe(3), encoder(fam.Normal(3))),
    "sphere": lambda x: (priors.HypersphericalUniform(3), encoder(fam.PowerSpherical(3))),
    "simplex": lambda x: (priors.LogisticNormal(3), encoder(fam.LogisticNormal(3))),
    "FullNormal": lambda x: (priors.StandardNormal(3), encoder(fam.FullNormal(3))),
    "LowRankNormal": lambda x: (priors.StandardNormal(3), encoder(fam.LowRankNormal(3, 2))),
    "MixtureOfNormals": lambda x: (priors.StandardNormal(3), encoder(fam.MixtureOfNormals(3, 4))),
    "iaf": lambda x: (priors.StandardNormal(3), pv.flow(6, 3, "iaf", (16,))),
    "nsf": lambda x: (priors.StandardNormal(3), pv.flow(6, 3, "nsf", (16,))),
    "coupling": lambda x: (priors.StandardNormal(3), pv.flow(6, 3, "coupling", (16,))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_a_vae_of_it_is_fitted_with_particles_saved_and_rebuilt(name: str, tmp_path: Any) -> None:
    """That all engines fit it alike is tested in models/test_swap_matrix.py."""
    x = torch.rand(40, 6)
    prior, guide = PAIRS[name](x)
    vae = pv.VAE(prior, pv.mlp(3, fam.Normal(6), hidden=(16,)), guide)
    loss = pv.Trace_ELBO(num_particles=2)
    fitted = pv.fit(vae, x, epochs=2, batch_size=20, seed=1, engine="eager", loss=loss)
    found = pv.log_likelihood(fitted, x, 20, proposal="guide", seed=0)
    assert found.isfinite().all()
    pv.save(fitted, tmp_path / "run")
    loaded = pv.load(tmp_path / "run")
    assert torch.equal(found, pv.log_likelihood(loaded, x, 20, proposal="guide", seed=0))
    if name == "VampPrior":
        assert loaded.pair.prior.encoder is loaded.pair.encoder
