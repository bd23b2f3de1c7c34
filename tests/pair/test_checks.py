"""check_pair names what is wrong: the site, the shape, the parameter without gradient, the argument that differs."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.pair.checks import check_gradients, check_particles
from pyrovae.pair.layout import describe, describe_run

X = torch.zeros(5, 4)


def normal(dim: int) -> Any:
    return dist.Normal(torch.zeros(dim), 1.0).to_event(1)


def good_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(2))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 4), 1.0).to_event(1), obs=x)


def good_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", normal(2))


def model_other_argument(y: Tensor) -> None:
    good_model(y)


def guide_missing_site(x: Tensor) -> None:
    pyro.param("unused", torch.zeros(3))


def guide_extra_site(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", normal(2))
        pyro.sample("w", normal(2))


def guide_other_event(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", normal(3))


def guide_global(x: Tensor) -> None:
    pyro.sample("z", normal(2))


def guide_draws_observed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", normal(2))
        pyro.sample("x", normal(4))


def guide_observes(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", normal(2), obs=torch.zeros(len(x), 2))


def model_no_plate(x: Tensor) -> None:
    z = pyro.sample("z", normal(2))
    pyro.sample("x", dist.Normal(z.sum() * torch.ones(5, 4), 1.0).to_event(2), obs=x)


def model_other_rows(x: Tensor) -> None:
    with pyro.plate("data", 5):
        z = pyro.sample("z", normal(2))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(5, 4), 1.0).to_event(1), obs=x[:5])


def guide_five_rows(x: Tensor) -> None:
    with pyro.plate("data", 5):
        pyro.sample("z", normal(2))


def model_no_event(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(2))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) * torch.ones(4), 1.0), obs=x)


def model_wrong_event(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(2))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) * torch.ones(3), 1.0).to_event(1), obs=x)


def model_no_argument() -> None:
    pass


def guide_no_argument() -> None:
    pass


def model_indexes_from_the_left(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(2))
        pyro.sample("x", dist.Normal(z[:, :1] * torch.ones(4), 1.0).to_event(1), obs=x)


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Tensor, str]] = {
    "another argument": (model_other_argument, good_guide, X, r"model\(y\), guide\(x\); they differ in 'x', 'y'"),
    "no argument": (model_no_argument, guide_no_argument, X, "takes no argument"),
    "missing in guide": (good_model, guide_missing_site, X, "model draws 'z', and the guide does not"),
    "extra in guide": (good_model, guide_extra_site, X, "guide draws 'w', which the model does not have"),
    "event shapes differ": (good_model, guide_other_event, X, r"'z'.*\(3,\).*\(2,\)"),
    "global in guide": (
        good_model,
        guide_global,
        X,
        "'z' is inside plate 'data' in the model and outside of it in the guide",
    ),
    "guide draws x": (good_model, guide_draws_observed, X, "'x'.*draws it too"),
    "guide observes": (good_model, guide_observes, X, "guide observes site 'z'"),
    "no plate": (model_no_plate, guide_global, X, "No site of the model is in the plate 'data'"),
    "rows of another batch": (model_other_rows, guide_five_rows, torch.zeros(7, 4), "'data'.* size 5, the batch has 7"),
    "no to_event": (model_no_event, good_guide, X, r"site x dim -1, 5 vs 4 .*; .*\.to_event"),
    "wrong event": (model_wrong_event, good_guide, X, r"'x' observes rows of shape \(4,\).*\(3,\)"),
}


@pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))
def test_a_wrong_pair_is_named(case: tuple[Any, Any, Tensor, str]) -> None:
    model, guide, x, message = case
    with pytest.raises(pv.PairError, match=message):
        pv.check_pair(pv.Pair(model, guide), x)


@pytest.mark.parametrize("flow", [transforms.Planar(2), transforms.Sylvester(2, count_transforms=1)])
@pytest.mark.parametrize("ask", [pv.check_pair, lambda pair, x: pv.fit(pair, x, epochs=1, progress=False)])
def test_a_flow_without_an_inverse_is_named(flow: Any, ask: Callable[[Any, Tensor], Any]) -> None:
    def guide(x: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(normal(2).expand([len(x)]), [flow]))

    with pytest.raises(pv.PairError, match="'z' has no log-density at values other .* no inverse .*(Planar|Sylvester)"):
        ask(pv.Pair(good_model, guide), X)


def test_what_can_only_be_run_one_particle_at_a_time_can_be_fitted_and_is_told() -> None:
    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    pair = pv.Pair(model_indexes_from_the_left, guide)
    with pytest.warns(UserWarning, match="one particle can be run at a time.*particle dimension"):
        pv.check_pair(pair, X)
    pv.fit(pair, X, epochs=1, progress=False, engine="eager")


def test_a_right_pair_is_described() -> None:
    layout = pv.check_pair(pv.Pair(good_model, good_guide), X)
    assert [(s.name, s.role, s.local, s.event_shape, s.argument) for s in layout.sites] == [
        ("z", "latent", True, (2,), None),
        ("x", "observed", True, (4,), "x"),
    ]
    assert layout.plate_nesting == 1


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(2, 4), nn.Linear(2, 4)
        self.frozen = nn.Linear(2, 4).requires_grad_(False)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(2))
            pyro.sample("x", dist.Normal(self.used(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        good_guide(x)


def test_a_parameter_without_gradient_is_named_and_a_frozen_one_is_not() -> None:
    pair = Half()
    before = pair.unused.weight.detach().clone(), pair.used.weight.detach().clone()
    with pytest.warns(UserWarning, match=r"'unused\.weight', 'unused\.bias', which will stay as it is") as caught:
        pv.check_pair(pair, X)
    assert "frozen." not in str(caught[0].message)
    for engine in ("eager", "traced"):
        decay = {"optimizer": lambda leaves: torch.optim.AdamW(leaves, weight_decay=0.1)}
        with pytest.warns(UserWarning, match=r"'unused\.weight', 'unused\.bias'"):
            pv.fit(pair, X, epochs=1, progress=False, clip_norm=1.0, engine=engine, **decay)
    assert torch.equal(pair.unused.weight, before[0]) and not torch.equal(pair.used.weight, before[1])


def test_a_module_that_nobody_registered_is_found() -> None:
    decoder = nn.Linear(2, 4)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(2))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    with pytest.raises(pv.PairError, match=r"'model\.decoder\.(weight|bias)', which nobody trains.*pyro\.module"):
        pv.check_pair(pv.Pair(model, good_guide), X)


def test_a_weight_that_pyro_would_copy_is_found() -> None:
    """pyro.module stores a contiguous copy of a channels_last weight; the module's own would never train."""
    decoder = nn.Conv2d(2, 4, 1).to(memory_format=torch.channels_last)
    decoder.weight = nn.Parameter(torch.randn(4, 2, 3, 3).contiguous(memory_format=torch.channels_last))

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(2))
            loc = (z.unsqueeze(-2) * decoder.weight.sum((-1, -2))).sum(-1) + decoder.bias
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    with pytest.raises(pv.PairError, match="contiguous"):
        pv.check_pair(pv.Pair(model, good_guide), X)


class Named(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.scale = PyroParam(torch.ones(2), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), self.scale).to_event(1))


class NamedModel(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.scale = PyroParam(torch.ones(2), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), self.scale).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) * torch.ones(4), 1.0).to_event(1), obs=x)


def test_two_pyro_modules_under_one_parameter_name_are_found() -> None:
    with pytest.raises(pv.PairError, match="under one Pyro name"):
        pv.check_pair(pv.Pair(NamedModel(), Named()), X)


def test_shape_and_dtype_of_the_data_are_named_with_the_cure() -> None:
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
    with pytest.raises(pv.PyrovaeError, match=r"4.*got \(5, 3\)"):
        pv.check_pair(vae, torch.zeros(5, 3))
    with pytest.raises(pv.PyrovaeError, match=r"float\(\)"):
        vae.encoder(torch.zeros(5, 4, dtype=torch.int64))


class Bits(nn.Module):
    """Networks of torch, and a likelihood of Pyro; the guide may cast the rows by itself."""

    def __init__(self, casts: bool) -> None:
        super().__init__()
        self.decoder, self.encoder, self.casts = nn.Linear(2, 4), nn.Linear(4, 2), casts

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = self.encoder(x.to(self.encoder.weight.dtype) if self.casts else x)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


@pytest.mark.parametrize("casts", [False, True], ids=["network", "likelihood"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.int64])
@pytest.mark.parametrize("double", [False, True])
def test_a_dtype_that_torch_does_not_compute_with_is_named_with_the_cure(
    casts: bool, dtype: torch.dtype, double: bool
) -> None:
    pair = Bits(casts).double() if double else Bits(casts)
    cure = f"x is {str(dtype)[6:]}: .*Cast them: `.{'double' if double else 'float'}"
    x = torch.eye(4).to(dtype)
    with pytest.raises(pv.PyrovaeError, match=cure) as found:  # of rows that were not bound, and so not cast
        traces = describe_run(pair, {"x": x})[1]
        check_gradients(pair, [traces])
    assert ".." not in str(found.value)
    pv.check_pair(pair, x)


class Shift(PyroModule):  # type: ignore[misc]  # Pyro has no types
    """A PyroSample that the model reads: `plain` outside of a call of the module, `self(x)` inside of one."""

    def __init__(self, calls: bool, prior: Any) -> None:
        super().__init__()
        self.shift, self.calls = PyroSample(prior), calls

    def forward(self, x: Tensor) -> None:
        shift = self.shift
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1) + shift, 1.0), obs=x)

    def model(self, x: Tensor) -> None:
        self(x) if self.calls else self.forward(x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


@pytest.mark.parametrize(
    "prior", [dist.Normal(0.0, 1.0), lambda self: dist.Normal(0.0, 1.0)], ids=["fixed", "function"]
)
def test_a_pyro_sample_that_would_be_drawn_without_a_site_is_refused(prior: Any) -> None:
    pair = Shift(calls=False, prior=prior)
    kept = dict(pair._pyro_samples)
    with pytest.raises(pv.PairError, match=r"PyroSample 'shift' of Shift .*pyro.sample\('shift', ...\)"):
        pv.check_pair(pair, torch.zeros(5))
    assert pair._pyro_samples == kept, "what reports the draw stays in the module"
    layout = pv.check_pair(Shift(calls=True, prior=prior), torch.zeros(5))
    assert layout.shared == ["shift"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(0, 4), "empty"),
        ({"x": X, "y": X}, "does not take"),
        ({"y": X}, r"does not take|needs"),
        (["a", "b"], "must hold numbers"),
        (3.0, "one row per datum"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(data: Any, message: str) -> None:
    with pytest.raises(pv.DataError, match=message):
        pv.check_pair(pv.Pair(good_model, good_guide), data)


def test_unequal_rows_are_named() -> None:
    def model(x: Tensor, c: Tensor) -> None:
        good_model(x)

    def guide(x: Tensor, c: Tensor) -> None:
        good_guide(x)

    with pytest.raises(pv.DataError, match=r"'x': 5, 'c': 4"):
        pv.check_pair(pv.Pair(model, guide), {"x": X, "c": X[:4]})


def test_something_that_is_no_pair_is_named() -> None:
    with pytest.raises(pv.PairError, match="callable `model`"):
        pv.check_pair(nn.Linear(2, 2), X)


@pytest.mark.parametrize(
    ("prior", "guide", "said"),
    [
        (pv.priors.LogisticNormal(3), fam.Normal(3), "real numbers.*shares that sum to 1"),
        (pv.priors.HypersphericalUniform(3), fam.Normal(3), "real numbers.*points on a sphere"),
        (pv.priors.StandardNormal(3), fam.PowerSpherical(3), "points on a sphere.*real numbers"),
        (pv.priors.StandardNormal(3), fam.Poisson(3), "integers.*real numbers"),
        (dist.Exponential(torch.ones(3)).to_event(1), fam.Normal(3), "smaller support"),
    ],
)
def test_a_guide_of_another_support_is_refused(prior: Any, guide: fam.Family, said: str) -> None:
    pair = pv.VAE(prior, pv.mlp(3, fam.Bernoulli(6), (8,)), pv.mlp(6, guide, (8,)))
    with pytest.raises(pv.PairError, match=said):
        pv.check_pair(pair, {"x": torch.zeros(20, 6)})


def test_sparse_gradients_are_refused() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Embedding(2, 3, sparse=True)

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.shift(torch.zeros(len(x), dtype=torch.long)), 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            pass

    with pytest.raises(pv.PairError, match="'shift.weight' is sparse"):
        pv.fit(Sparse(), torch.randn(4, 3), epochs=1, engine="eager")


@pytest.mark.parametrize("size", [1.0, 1e3, 1e9, 1e15])
def test_rounding_is_not_taken_for_a_confused_dimension(size: float) -> None:
    """Codes of rows far from 0 are large, and their densities under a narrow guide are made of rounding errors."""
    x = size * torch.randn(3, 20)
    encoder = pv.mlp(20, fam.FullNormal(3), hidden=(8,))
    vae = pv.VAE(pv.priors.StandardNormal(3), pv.mlp(3, fam.Normal(20), hidden=(8,)), encoder)
    check_particles(vae, {"x": x}, describe(vae, {"x": x}))

    def confused(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(3))
            pyro.sample("x", dist.Normal(z.mean(0)[..., :1].expand((*z.shape[:-1], 20)), 1.0).to_event(1), obs=x)

    pair = pv.Pair(confused, vae.guide)
    with pytest.raises(pv.PairError, match="another log-density among several particles"):
        check_particles(pair, {"x": x}, describe(pair, {"x": x}))
