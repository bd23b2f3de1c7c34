"""pyrovae.SVI and pyro.infer.SVI on programs that are right, doubtful and wrong: both raise, both warn, or both train alike."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormalMessenger
from torch import Tensor, nn
from torch.distributions import constraints

import pyrovae as pv

PARALLEL = {"enumerate": "parallel"}
Program = Callable[[], tuple[Any, Any]]


@pytest.fixture(autouse=True)
def own_store() -> Any:
    with pyro.get_param_store().scope():
        yield


# --- programs -----------------------------------------------------------------------------------------------------------


def loc(*shape: int) -> Tensor:
    value: Tensor = pyro.param("loc", torch.full(shape, 0.3))
    return value


def probability() -> Tensor:
    value: Tensor = pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)
    return value


def normal(event: Callable[[], Any] = lambda: dist.Normal(0.0, 1.0)) -> Callable[[], None]:
    """A model of one latent site "z" and an observation."""

    def model() -> None:
        z = pyro.sample("z", event())
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0))

    return model


def other_event_dims() -> tuple[Any, Any]:
    return normal(lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1)), lambda: pyro.sample(
        "z", dist.Normal(loc(2, 1), 1.0).to_event(2)
    )


def other_shapes() -> tuple[Any, Any]:
    return normal(lambda: dist.Normal(torch.zeros(1, 2), 1.0).to_event(2)), lambda: pyro.sample(
        "z", dist.Normal(loc(2, 1), 1.0).to_event(2)
    )


def shapes_without_events() -> tuple[Any, Any]:
    return normal(lambda: dist.Normal(torch.zeros(2), 1.0)), lambda: pyro.sample("z", dist.Normal(loc(2, 1), 1.0))


def vector_without_plate() -> tuple[Any, Any]:
    return normal(lambda: dist.Normal(torch.zeros(2), 1.0)), lambda: pyro.sample("z", dist.Normal(loc(2), 1.0))


def observed_vector_without_plate() -> tuple[Any, Any]:
    return lambda: pyro.sample("x", dist.Normal(loc(), 1.0).expand([5]), obs=torch.zeros(5)), lambda: None


def site_twice() -> tuple[Any, Any]:
    def guide() -> None:
        pyro.sample("z", dist.Normal(loc(), 1.0))
        pyro.sample("z", dist.Normal(loc(), 1.0))

    return normal(), guide


def plate_of_the_guide_alone() -> tuple[Any, Any]:
    def guide() -> None:
        for _ in pyro.plate("rows", 10, 5):
            pass
        pyro.sample("z", dist.Normal(loc(), 1.0))

    return normal(), guide


def sizes(model_size: int, guide_size: int) -> Program:
    def make() -> tuple[Any, Any]:
        def model() -> None:
            with pyro.plate("rows", model_size):
                pyro.sample("z", dist.Normal(0.0, 1.0))

        def guide() -> None:
            with pyro.plate("rows", guide_size):
                pyro.sample("z", dist.Normal(loc(), 1.0))

        return model, guide

    return make


def batch_does_not_fit_the_plate() -> tuple[Any, Any]:
    def program() -> None:
        with pyro.plate("rows", 10, 5):
            pyro.sample("z", dist.Normal(loc(), 1.0).expand([2]))

    return program, program


def deeper_than_the_plates() -> tuple[Any, Any]:
    def program() -> None:
        with pyro.plate("outer", 5), pyro.plate("inner", 6):
            pyro.sample("z", dist.Normal(loc(), 1.0).expand([4, 6, 5]))

    return program, program


def to_event_forgotten() -> tuple[Any, Any]:
    def model() -> None:
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal(torch.zeros(4, 3), 1.0))

    def guide() -> None:
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal(loc(4, 3), 1.0))

    return model, guide


def factor_of_the_guide(**options: Any) -> Program:
    def make() -> tuple[Any, Any]:
        def guide() -> None:
            pyro.sample("z", dist.Normal(loc(), 1.0))
            pyro.factor("more", -loc() * 2.0, **options)

        return normal(), guide

    return make


def outside_of_the_support() -> tuple[Any, Any]:
    return lambda: pyro.sample("x", dist.Bernoulli(probability()), obs=torch.tensor(2.0)), lambda: None


def enumerated_upstream_of_another_plate() -> tuple[Any, Any]:
    """Two loops over plates, the second of which depends on an enumerated site of the first."""

    def model() -> None:
        z = torch.tensor(0.0)
        for i in pyro.plate("first", 2):
            z = pyro.sample(f"z{i}", dist.Bernoulli(0.5))
        for i in pyro.plate("second", 2):
            pyro.sample(f"y{i}", dist.Bernoulli(0.2 + 0.5 * z))

    def guide() -> None:
        z = torch.tensor(0.0)
        for i in pyro.plate("first", 2):
            z = pyro.sample(f"z{i}", dist.Bernoulli(probability()), infer=PARALLEL)
        for i in pyro.plate("second", 2):
            pyro.sample(f"y{i}", dist.Bernoulli(0.2 + 0.5 * z))

    return model, guide


def sequential_in_the_model() -> tuple[Any, Any]:
    return lambda: pyro.sample("z", dist.Bernoulli(probability()), infer={"enumerate": "sequential"}), lambda: None


def continuous_enumerated() -> tuple[Any, Any]:
    return normal(), lambda: pyro.sample("z", dist.Normal(loc(), 1.0), infer=PARALLEL)


def unequal_scales_in_one_sum() -> tuple[Any, Any]:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(probability()), infer=PARALLEL)
        with poutine.scale(scale=0.5):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

    return model, lambda: None


def misspelt() -> tuple[Any, Any]:
    return normal(), lambda: pyro.sample("y", dist.Normal(loc(), 1.0))


def missing() -> tuple[Any, Any]:
    def model() -> None:
        normal()()
        pyro.sample("more", dist.Normal(0.0, 1.0))

    return model, lambda: pyro.sample("z", dist.Normal(loc(), 1.0))


def auxiliary(**infer: Any) -> Program:
    def make() -> tuple[Any, Any]:
        def guide() -> None:
            u = pyro.sample("u", dist.Normal(loc(), 1.0), infer=infer)
            pyro.sample("z", dist.Normal(u, 1.0))

        return normal(), guide

    return make


def auxiliary_of_the_model() -> tuple[Any, Any]:
    return normal(), lambda: pyro.sample("z", dist.Normal(loc(), 1.0), infer={"is_auxiliary": True})


def other_order() -> tuple[Any, Any]:
    def model() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, 1.0))

    def guide() -> None:
        pyro.sample("b", dist.Normal(loc(), 1.0))
        pyro.sample("a", dist.Normal(loc(), 2.0))

    return model, guide


def reparameterised() -> tuple[Any, Any]:
    return normal(), lambda: pyro.sample("z", dist.Normal(loc(), 1.0))


def plate_of_the_model_alone() -> tuple[Any, Any]:
    def model() -> None:
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return model, lambda: pyro.sample("z", dist.Normal(loc(), 1.0).expand([3]))


def enumerated(plate: str, **infer: Any) -> Program:
    def make() -> tuple[Any, Any]:
        def model() -> None:
            with pyro.plate(plate, 3):
                z = pyro.sample("z", dist.Categorical(torch.ones(4)))
                pyro.sample("x", dist.Normal(z.float(), 1.0), obs=torch.arange(3.0))

        def guide() -> None:
            probs = pyro.param("probs", torch.ones(3, 4) / 4, constraint=constraints.simplex)
            with pyro.plate(plate, 3):
                pyro.sample("z", dist.Categorical(probs), infer=infer)

        return model, guide

    return make


def masked(mask: Any, kind: str) -> Program:
    def make() -> tuple[Any, Any]:
        def model() -> None:
            with pyro.plate("rows", 3), poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Normal(0.0, 1.0) if kind == "normal" else dist.Bernoulli(0.5))
                pyro.sample("x", dist.Normal(z, 1.0), obs=torch.arange(3.0))

        def guide() -> None:
            with pyro.plate("rows", 3), poutine.mask(mask=mask):
                if kind == "normal":
                    pyro.sample("z", dist.Normal(loc(), 1.0))
                else:
                    pyro.sample("z", dist.Bernoulli(probability()), infer=PARALLEL if kind == "enumerated" else {})

        return model, guide

    return make


def nothing() -> tuple[Any, Any]:
    return lambda: None, lambda: None


def parameters_without_a_site() -> tuple[Any, Any]:
    return lambda: loc(), lambda: None


def chain() -> tuple[Any, Any]:
    """Longer than there are dimensions."""

    def model() -> None:
        probs = pyro.param("probs", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
        z: Any = 0
        for t in pyro.markov(range(70)):
            z = pyro.sample(f"z{t}", dist.Categorical(probs[z]), infer=PARALLEL)
            pyro.sample(f"x{t}", dist.Normal(z.float(), 1.0), obs=torch.tensor(0.2))

    return model, lambda: None


def guide_as_messenger() -> tuple[Any, Any]:
    return normal(), AutoNormalMessenger(normal())


def random_start() -> tuple[Any, Any]:
    """Parameters that start at random, and noise that follows: both are Pyro's own draws."""

    def model() -> None:
        scale = pyro.param("scale", lambda: torch.rand(()) + 0.5, constraint=constraints.positive)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample(
            "z", dist.Normal(pyro.param("start", lambda: torch.randn(())), pyro.param("sd", torch.rand(()) + 0.5))
        )

    return model, guide


PROGRAMS: dict[str, Program] = {
    "event dims": other_event_dims,
    "shapes": other_shapes,
    "shapes without events": shapes_without_events,
    "a vector without plate": vector_without_plate,
    "an observed vector without plate": observed_vector_without_plate,
    "a site twice": site_twice,
    "a plate of the guide alone": plate_of_the_guide_alone,
    "a plate of the model alone": plate_of_the_model_alone,
    "plates of two sizes": sizes(4, 3),
    "plates of one size": sizes(4, 4),
    "a batch that does not fit its plate": batch_does_not_fit_the_plate,
    "deeper than the plates": deeper_than_the_plates,
    "to_event forgotten": to_event_forgotten,
    "a factor of the guide": factor_of_the_guide(),
    "a factor of the guide, has_rsample": factor_of_the_guide(has_rsample=True),
    "outside of the support": outside_of_the_support,
    "enumerated upstream of another plate": enumerated_upstream_of_another_plate,
    "sequential in the model": sequential_in_the_model,
    "continuous, enumerated": continuous_enumerated,
    "unequal scales in one sum": unequal_scales_in_one_sum,
    "misspelt": misspelt,
    "missing": missing,
    "auxiliary, unmarked": auxiliary(),
    "auxiliary": auxiliary(is_auxiliary=True),
    "auxiliary of the model": auxiliary_of_the_model,
    "another order": other_order,
    "reparameterised": reparameterised,
    "enumerated": enumerated("rows", enumerate="parallel"),
    "enumerated in a plate of our name": enumerated("particles", enumerate="parallel"),
    "sequential": enumerated("rows", enumerate="sequential"),
    "several draws": enumerated("rows", enumerate="parallel", num_samples=5),
    "drawn": enumerated("rows"),
    **{
        f"masked {mask}, {kind}": masked(mask, kind)
        for mask in (False, True)
        for kind in ("normal", "drawn", "enumerated")
    },
    "nothing": nothing,
    "parameters without a site": parameters_without_a_site,
    "a long chain": chain,
    "a guide that is a messenger": guide_as_messenger,
    "a random start": random_start,
}
ENUMERATED = ("enumerated", "several", "a long", "sequential", "continuous", "unequal")
OURS = ("goes on eagerly", "cannot trace")


def outcome(
    kind: Any, program: Program, loss: Any, steps: int = 3
) -> tuple[str, list[str], list[float], dict[str, Tensor]]:
    """Whether steps fail, what they warn of, the losses, and the parameters at the end."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    losses: list[float] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        failure = ""
        try:
            svi = kind(*program(), pyro.optim.Adam({"lr": 0.01}), loss)
            losses += [svi.step() for _ in range(steps)]
        except Exception as error:
            failure = str(error)
    said = {str(w.message).split("\n")[0] for w in caught}
    final = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    return failure, sorted(text for text in said if not any(ours in text for ours in OURS)), losses, final


MEAN_FIELD = ("another order", "auxiliary of the model", "drawn", "masked False, normal", "reparameterised", "shapes")


def of_its_own(loss: Any, name: str) -> bool:
    """Whether a program may run in another way by this loss than by `Trace_ELBO`."""
    return loss is Trace_ELBO or (loss is TraceEnum_ELBO and any(kind in name for kind in ENUMERATED))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "name"),
    [
        pytest.param(loss, name, marks=[] if of_its_own(loss, name) else [pytest.mark.slow])
        for loss, names in ((Trace_ELBO, PROGRAMS), (TraceEnum_ELBO, PROGRAMS), (TraceMeanField_ELBO, MEAN_FIELD))
        for name in names
        if name != "a long chain" or loss is TraceEnum_ELBO  # else the model draws its sites
    ],
)
def test_raise_warn_and_train_alike(name: str, loss: Any) -> None:
    true = outcome(pyro.infer.SVI, PROGRAMS[name], loss())
    found = outcome(pv.SVI, PROGRAMS[name], loss())
    assert bool(found[0]) == bool(true[0]), (found[0], true[0])
    assert found[1] == true[1]
    if loss is TraceEnum_ELBO or not any(kind in name for kind in ENUMERATED):  # Pyro's other losses ignore the marks
        assert found[2] == pytest.approx(true[2], rel=1e-5, abs=1e-5)
        assert found[3].keys() == true[3].keys()
        for parameter, value in true[3].items():
            torch.testing.assert_close(found[3][parameter], value, rtol=1e-5, atol=1e-5)


STRUCTURE = {
    "event dims": "event_dims disagree|invalid log_prob shape",
    "shapes": "shapes disagree",
    "a vector without plate": "invalid log_prob shape",
    "a factor of the guide": "has_rsample",
}


@pytest.mark.parametrize("name", STRUCTURE)
@pytest.mark.parametrize(
    "loss", [None, pv.Trace_ELBO(2), pv.Trace_ELBO(kl="analytic"), pv.IWELBO(3), pv.RWS(3)], ids=repr
)
def test_the_losses_of_this_package_are_checked_by_pyro_as_well(name: str, loss: Any) -> None:
    svi = pv.SVI(*PROGRAMS[name](), pyro.optim.Adam({"lr": 0.01}), loss)
    with pytest.raises(ValueError, match=STRUCTURE[name]):
        svi.step()


def test_without_validation_nothing_is_checked() -> None:
    with pyro.validation_enabled(False):
        assert outcome(pv.SVI, vector_without_plate, Trace_ELBO())[:2] == ("", [])


class Switched(nn.Module):
    """A program that an attribute makes wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 1

    def model(self) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(self.size), 1.0).to_event(self.size == 1))
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0))

    def guide(self) -> None:
        pyro.sample("z", dist.Normal(loc(1).expand(self.size), 1.0).to_event(self.size == 1))


def test_a_program_is_checked_again_where_it_is_traced_anew() -> None:
    program = Switched()
    svi = pv.SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(3):
        svi.step()
    before = loc(1).detach().clone()
    program.size = 2
    with pytest.raises(ValueError, match="invalid log_prob shape"):
        svi.step()
    assert torch.equal(loc(1).detach(), before)


# --- gradients of what only the guide has -------------------------------------------------------------------------------


def exact_and_average(loss: Any) -> tuple[Tensor, Tensor]:
    """d ELBO / d logit of a guide that draws b itself and states log q(b) as a factor: exactly, and averaged over b."""
    logit = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    fits = torch.tensor([-2.0, -0.5], dtype=torch.float64)  # log p(x, b)
    log_q = torch.stack([nn.functional.logsigmoid(-logit), nn.functional.logsigmoid(logit)])
    exact = torch.autograd.grad((log_q.exp() * (fits - log_q)).sum(), logit)[0]
    average = torch.zeros((), dtype=torch.float64)
    for b in range(2):

        def guide(b: int = b) -> None:
            free = pyro.param("logit", torch.tensor(0.3, dtype=torch.float64))
            sign = 1.0 if b else -1.0
            pyro.factor("log q", nn.functional.logsigmoid(sign * free), has_rsample=False)

        def model(b: int = b) -> None:
            pyro.factor("log p", fits[b])

        pyro.clear_param_store()
        svi = pv.SVI(model, guide, pyro.optim.SGD({"lr": 1.0}), loss)
        pyro.param("logit", torch.tensor(0.3, dtype=torch.float64))
        svi.step()
        average = average + log_q[b].exp().detach() * (pyro.param("logit").detach() - 0.3)
    return exact, average


@pytest.mark.parametrize("engine_loss", [Trace_ELBO, TraceEnum_ELBO])
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_the_factor_of_a_draw_of_ones_own_has_an_unbiased_gradient(engine_loss: Any) -> None:
    """Pyro's Trace_ELBO leaves the cost -log q(b) out of what the score meets, and is biased."""
    exact, average = exact_and_average(engine_loss())
    torch.testing.assert_close(average, exact, rtol=1e-10, atol=0)


class Squared:
    """A loss that is no ELBO and no function, as Pyro's EnergyDistance is: the squared distance of draws from the data."""

    def __call__(self, model: Any, guide: Any, *args: Any) -> Tensor:
        poutine.trace(guide).get_trace(*args)
        return (model(*args) - 3.0).square().sum()


def test_an_object_that_is_called_is_a_loss() -> None:
    def model() -> Tensor:
        return pyro.param("m", torch.tensor(0.0)) + 0.0 * pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    found = []
    for kind in (pyro.infer.SVI, pv.SVI):
        pyro.clear_param_store()
        svi = kind(model, guide, pyro.optim.Adam({"lr": 0.1}), Squared())
        found.append([svi.step() for _ in range(4)])
    pyro.clear_param_store()
    assert found[1] == pytest.approx(found[0], rel=1e-6) and found[0][3] < found[0][0] == 9.0


@pytest.mark.parametrize("kind", ["Trace_ELBO", "TraceEnum_ELBO"])
@pytest.mark.parametrize("trains", [False, True])
def test_a_program_may_insist_on_the_shapes_of_pyros_runs(kind: str, trains: bool) -> None:
    """Its asserts hold in the runs of Pyro's loss, and in no others."""

    def program() -> None:
        loc = pyro.param("loc", torch.tensor(0.0)) if trains else torch.tensor(0.0)
        with pyro.plate("rows", 5):
            x = pyro.sample("x", dist.Normal(loc, 1.0))
        assert x.shape == (7, 5)

    loss = getattr(pyro.infer, kind)(num_particles=7, vectorize_particles=True, max_plate_nesting=1)
    svi = pv.SVI(program, program, pyro.optim.Adam({"lr": 1e-6}), loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a trained one goes on eagerly, and says so
        assert all(svi.step() == pytest.approx(0.0, abs=1e-5) for _ in range(3))
    pyro.clear_param_store()
