"""pyrovae.SVI in place of pyro.infer.SVI: programs that never heard of pyrovae train to the same numbers."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.infer import JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.optim.multi import MixedMultiOptimizer
from support.told import told
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

import pyrovae as pv

PIXELS, CLASSES = 12, 3


@pytest.fixture(autouse=True)
def own_store() -> Any:
    with pyro.get_param_store().scope():
        yield


# --- the programs of Pyro's tutorials, in small: plain Pyro, no part of ours --------------------------------------------


class TutorialVAE(nn.Module):
    """The VAE tutorial: p(z) p(x | z), q(z | x)."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.Softplus(), nn.Linear(16, PIXELS), nn.Sigmoid())
        self.hidden, self.loc, self.scale = nn.Linear(PIXELS, 16), nn.Linear(16, 2), nn.Linear(16, 2)
        self.encoder = nn.ModuleList([self.hidden, self.loc, self.scale])

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], 2, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, torch.ones_like(z_loc)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            h = softplus(self.hidden(x))
            pyro.sample("latent", dist.Normal(self.loc(h), self.scale(h).exp()).to_event(1))


class TutorialM2(nn.Module):
    """The semi-supervised VAE tutorial: y observed or enumerated, one-hot, in one model."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(PIXELS, CLASSES)
        self.encode = nn.Linear(PIXELS + CLASSES, 4)
        self.decode = nn.Sequential(nn.Linear(2 + CLASSES, 16), nn.Softplus(), nn.Linear(16, PIXELS))

    @staticmethod
    def joined(a: Tensor, b: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
        return torch.cat([a.expand(*shape, -1), b.expand(*shape, -1)], -1)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("ss_vae", self)
        with pyro.plate("data", x.size(0)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.size(0), 2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(x.size(0), CLASSES) / CLASSES), obs=y)
            pyro.sample("x", dist.Bernoulli(logits=self.decode(self.joined(z, y))).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", x.size(0)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classify(x)), infer={"enumerate": "parallel"})
            loc, scale = self.encode(self.joined(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class TutorialCVAE(nn.Module):
    """The conditional VAE tutorial: a baseline prediction, a learned prior p(z | x), masked missing pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.baseline = nn.Linear(PIXELS, PIXELS)
        self.prior = nn.Linear(2 * PIXELS, 4)
        self.recognition = nn.Linear(2 * PIXELS, 4)
        self.generation = nn.Linear(2, PIXELS)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("generation_net", self)
        with pyro.plate("data"):
            with torch.no_grad():
                guess = torch.sigmoid(self.baseline(x))
            loc, scale = self.prior(torch.cat([x, guess], -1)).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))
            probs = torch.sigmoid(self.generation(z))
            if y is not None:
                missing = (x == -1).to(x.dtype)
                seen = dist.Bernoulli(probs, validate_args=False).mask(missing).to_event(1)
                pyro.sample("y", seen, obs=y)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data"):
            assert y is not None
            loc, scale = self.recognition(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


# --- other programs ----------------------------------------------------------------------------------------------------


def bare() -> tuple[Any, Any]:
    """Constrained bare parameters, a global latent, a subsampling plate that draws its own rows."""

    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(x.new_zeros(()), 1.0))
        scale = pyro.param("scale", torch.ones((), dtype=x.dtype), constraint=constraints.positive)
        with pyro.plate("rows", len(x), subsample_size=8) as index:
            pyro.sample("x", dist.Normal(m, scale).expand([PIXELS]).to_event(1), obs=x[index])

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros((), dtype=x.dtype))
        pyro.sample(
            "m", dist.Normal(loc, pyro.param("sd", torch.ones((), dtype=x.dtype), constraint=constraints.positive))
        )

    return model, guide


def scored() -> tuple[Any, Any]:
    """A Bernoulli latent without reparameterisation or enumeration."""
    net, back = nn.Linear(PIXELS, 1).double(), nn.Linear(1, PIXELS).double()

    def model(x: Tensor) -> None:
        pyro.module("back", back)
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(x.new_full((), 0.5)))
            pyro.sample("x", dist.Normal(back(b[:, None]), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=net(x)[:, 0]))

    return model, guide


class Regression(PyroModule):
    """A PyroModule with a random weight and a constrained parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = PyroParam(torch.ones((), dtype=torch.float64), constraint=constraints.positive)
        self.weight = PyroSample(dist.Normal(torch.zeros(PIXELS, dtype=torch.float64), 1.0).to_event(1))

    def forward(self, x: Tensor) -> None:
        weight = self.weight
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(x @ weight, self.scale), obs=x[:, 0])


def held(cls: type[nn.Module]) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        made: Any = cls().double()
        return made.model, made.guide

    return make


def auto(guide: Any) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        model = Regression()
        return model, guide(model)

    return make


def mixture() -> tuple[Any, Any]:
    """Enumerated in the model alone; bare parameters with a simplex."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.ones(3, dtype=x.dtype) / 3, constraint=constraints.simplex)
        locs = pyro.param("locs", torch.linspace(-1, 1, 3, dtype=x.dtype))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[c], 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        pass

    return model, guide


class Row(NamedTuple):
    make: Callable[[], tuple[Any, Any]]
    loss: Callable[[], Any]
    reals: bool = False


PROGRAMS = {
    "VAE tutorial": Row(held(TutorialVAE), Trace_ELBO),
    "VAE tutorial, mean field": Row(held(TutorialVAE), TraceMeanField_ELBO),
    "VAE tutorial, 3 particles": Row(held(TutorialVAE), lambda: Trace_ELBO(num_particles=3)),
    "M2 tutorial": Row(held(TutorialM2), lambda: TraceEnum_ELBO(max_plate_nesting=1)),
    "mixture": Row(mixture, lambda: TraceEnum_ELBO(max_plate_nesting=1), reals=True),
    "bare parameters": Row(bare, Trace_ELBO, reals=True),
    "score function": Row(scored, Trace_ELBO, reals=True),
    "AutoNormal": Row(auto(AutoNormal), Trace_ELBO, reals=True),
    "AutoDiagonalNormal": Row(auto(AutoDiagonalNormal), Trace_ELBO, reals=True),
}


def rows(reals: bool = False, n: int = 40) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(n, PIXELS).double() if reals else torch.bernoulli(torch.full((n, PIXELS), 0.3)).double()


def adam() -> Any:
    return pyro.optim.Adam({"lr": 0.01})


def train(
    make: Any, kind: Any, loss: Any, reals: bool = False, optim: Any = adam, steps: int = 15, **options: Any
) -> Any:
    """Losses, final parameters, and the loss at the end."""
    pyro.clear_param_store()
    x = rows(reals)
    torch.manual_seed(0)
    svi = kind(*make(), optim(), loss, **options)
    torch.manual_seed(1)
    losses = [svi.step(x[(8 * i) % 40 :][:24] if not reals else x) for i in range(steps)]
    final = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    torch.manual_seed(3)
    ends = [svi.evaluate_loss(x) for _ in range(3)]
    return losses, final, ends, svi


def same(found: Any, true: Any, tolerance: float = 1e-8) -> None:
    assert found[0] == pytest.approx(true[0], rel=tolerance)
    assert found[1].keys() == true[1].keys()
    for name, value in true[1].items():
        assert float((found[1][name] - value).abs().max()) <= tolerance * max(1.0, float(value.abs().max())), name
    assert found[2] == pytest.approx(true[2], rel=tolerance)


@functools.cache
def under_pyro(name: str) -> Any:
    """What Pyro makes of a program, for all tests that compare with it."""
    row = PROGRAMS[name]
    return train(row.make, pyro.infer.SVI, row.loss(), row.reals)


SLOW = {("VAE tutorial, 3 particles", "traced"), ("VAE tutorial, mean field", "traced"), ("M2 tutorial", "traced")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        pytest.param(name, engine, marks=[pytest.mark.slow] * ((name, engine) in SLOW))
        for name in PROGRAMS
        for engine in ("eager", "traced")
    ],
)
def test_programs_train_as_under_pyro(name: str, engine: str) -> None:
    """Losses of 15 steps on batches of two sizes, parameters and evaluate_loss, from one seed, in double precision."""
    row, true = PROGRAMS[name], under_pyro(name)
    found = train(row.make, pv.SVI, row.loss(), row.reals, engine=engine)
    assert true[0][0] != true[0][-1]
    same(found, true)


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_the_cvae_tutorial_trains_as_under_pyro(engine: str) -> None:
    """Two arguments, a plate without a size, a distribution masked inside."""

    def go(kind: Any, **options: Any) -> list[float]:
        pyro.clear_param_store()
        torch.manual_seed(0)
        cvae: Any = TutorialCVAE().double()
        y = rows()
        x = torch.where(torch.arange(PIXELS) < 4, y, torch.full_like(y, -1))
        svi = kind(cvae.model, cvae.guide, adam(), Trace_ELBO(), **options)
        torch.manual_seed(1)
        return [svi.step(x, y) for _ in range(20)]

    # Pyro's plate without a size, and our reading of a plate "data", take the rows that come.
    assert go(pv.SVI, engine=engine) == pytest.approx(go(pyro.infer.SVI), rel=1e-8)


@pytest.mark.slow
@pytest.mark.usefixtures("without_inductor")
def test_compiled_steps_train_as_under_pyro() -> None:
    row = PROGRAMS["VAE tutorial"]
    found = train(row.make, pv.SVI, row.loss(), engine="compiled")
    same(found, under_pyro("VAE tutorial"))


def labelled() -> Tensor:
    return torch.eye(CLASSES).double()[torch.arange(24) % CLASSES]


def enumerating() -> TraceEnum_ELBO:
    return TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)  # labelled batches enumerate nothing


@pytest.mark.slow
def test_labelled_and_unlabelled_batches_share_parameters() -> None:
    """One program called in two ways, one of them with y observed: two graphs, one optimizer. SGD, whose steps of zero
    gradients go nowhere under Pyro as well."""

    def go(kind: Any, **options: Any) -> list[float]:
        pyro.clear_param_store()
        torch.manual_seed(0)
        m2: Any = TutorialM2().double()
        x, optim = rows(), pyro.optim.SGD({"lr": 1e-3})
        svi = kind(m2.model, m2.guide, optim, enumerating(), **options)
        torch.manual_seed(1)
        return [svi.step(x[:24], labelled()) if i % 2 else svi.step(x[:24]) for i in range(20)]

    assert go(pv.SVI, engine="traced") == pytest.approx(go(pyro.infer.SVI), rel=1e-8)


@pytest.mark.slow
def test_a_parameter_without_gradient_is_not_moved() -> None:
    """Adam's memory of unlabelled batches does not move the classifier on labelled ones; Pyro's does."""
    moved = {}
    for kind in (pv.SVI, pyro.infer.SVI):
        pyro.clear_param_store()
        m2: Any = TutorialM2().double()
        x = rows()
        svi = kind(m2.model, m2.guide, adam(), enumerating())
        for _ in range(3):
            svi.step(x[:24])
        before = m2.classify.weight.detach().clone()
        svi.step(x[:24], labelled())
        moved[kind.__module__.split(".")[0]] = float((m2.classify.weight.detach() - before).abs().max())
    assert moved["pyrovae"] == 0.0 and moved["pyro"] > 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize("engine", ["traced", pytest.param("compiled", marks=pytest.mark.slow)])
def test_two_svis_share_the_state_of_one_optimizer(engine: str) -> None:
    def go(kind: Any, **options: Any) -> list[float]:
        pyro.clear_param_store()
        torch.manual_seed(0)
        vae: Any = TutorialVAE().double()
        x, optim = rows(), adam()
        svis = [kind(vae.model, vae.guide, optim, loss(), **options) for loss in (Trace_ELBO, TraceMeanField_ELBO)]
        torch.manual_seed(1)
        return [svis[i % 2].step(x) for i in range(12)]

    assert go(pv.SVI, engine=engine) == pytest.approx(go(pyro.infer.SVI), rel=1e-8)


@pytest.mark.slow
def test_the_jit_losses_have_the_same_twin() -> None:
    """Pyro's own draws other numbers while it traces: compared with its Trace_ELBO."""
    same(train(held(TutorialVAE), pv.SVI, JitTrace_ELBO()), under_pyro("VAE tutorial"))


# --- optimizers --------------------------------------------------------------------------------------------------------


LATE: dict[str, Callable[[], Any]] = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.01}),
    "ClippedAdam, lrd": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.9}),
    "AdagradRMSProp": lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
    "DCTAdam": lambda: pyro.optim.DCTAdam({"lr": 0.01}),
    "Adagrad": lambda: pyro.optim.Adagrad({"lr": 0.1, "initial_accumulator_value": 0.2}),
    "Rprop": lambda: pyro.optim.Rprop({"lr": 0.01}),
}


def late(x: Tensor, first: int) -> None:
    """Parameters that start at random, `first` of them in all."""
    at = torch.zeros((), dtype=torch.float64)
    for i in range(first):
        at = at + pyro.param(f"w{i}", torch.randn((), dtype=torch.float64))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(at, 1.0), obs=x)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (i > 1)) for i, name in enumerate(LATE)]
)
def test_a_parameter_that_is_first_seen_late_begins_as_under_pyro(name: str) -> None:
    """Its initial value is the draw, and its learning rate and state are those, that Pyro would give it at that step."""
    ends = []
    for kind in (pyro.infer.SVI, pv.SVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = kind(late, lambda x, first: None, LATE[name](), Trace_ELBO())
        x = torch.randn(8).double()
        losses = [svi.step(x, 1 if i < 8 else 2 if i < 14 or i % 2 else 3) for i in range(20)]
        ends.append((losses, {n: p.detach().clone() for n, p in pyro.get_param_store().items()}))
    assert ends[1][0] == pytest.approx(ends[0][0], rel=1e-10)
    assert ends[1][1].keys() == {"w0", "w1", "w2"}
    for parameter, value in ends[0][1].items():
        torch.testing.assert_close(ends[1][1][parameter], value, rtol=1e-10, atol=0)


def test_an_optimizer_function_makes_the_state_of_late_parameters() -> None:
    svi = pv.SVI(late, lambda x, first: None, lambda p: torch.optim.Adagrad(p, lr=0.1), Trace_ELBO())
    for i in range(4):
        svi.step(torch.randn(8).double(), 1 + i // 2)
    assert len(svi.optimizer.state) == 2  # type: ignore[union-attr]


def test_a_loaded_state_brings_the_learning_rate_it_had(tmp_path: Path) -> None:
    pyro.clear_param_store()
    x, rates = rows(reals=True)[:, 0], []
    for part in range(2):
        optim = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.5})
        if part:
            optim.load(str(tmp_path / "state.pt"))
        svi = pv.SVI(late, lambda x, first: None, optim, Trace_ELBO())
        for _ in range(3):
            svi.step(x, 1)
        optim.save(str(tmp_path / "state.pt"))
        rates.append(svi.optimizer.param_groups[0]["lr"])  # type: ignore[union-attr]
    assert rates == pytest.approx([0.05 / 2**3, 0.05 / 2**6])


def by_name(name: str) -> dict[str, Any]:
    return {"lr": 0.03 if "decoder" in name or name == "locs" else 0.01}


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "a function of the name": lambda: pyro.optim.Adam(by_name),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.99, "clip_norm": 1.0}),
    "clipped norm and value": lambda: pyro.optim.Adam({"lr": 0.01}, {"clip_norm": 3.0, "clip_value": 0.5}),
    "SGD": lambda: pyro.optim.SGD({"lr": 1e-4, "momentum": 0.9}),
    "AdamW": lambda: pyro.optim.AdamW({"lr": 0.01, "weight_decay": 0.1}),
    "RMSprop": lambda: pyro.optim.RMSprop({"lr": 0.001}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pyro_optimizers_are_translated(name: str) -> None:
    row = PROGRAMS["VAE tutorial"]
    true = train(row.make, pyro.infer.SVI, row.loss(), optim=OPTIMIZERS[name])
    same(train(row.make, pv.SVI, row.loss(), optim=OPTIMIZERS[name], engine="eager"), true)


def test_arguments_by_name_become_groups() -> None:
    *_, svi = train(held(TutorialVAE), pv.SVI, Trace_ELBO(), optim=lambda: pyro.optim.Adam(by_name), steps=2)
    assert sorted((g["lr"], len(g["params"])) for g in svi.optimizer.param_groups) == [(0.01, 6), (0.03, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("made", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_torch_optimizers_are_taken(made: bool) -> None:
    torch.manual_seed(0)
    vae: Any = TutorialVAE().double()
    optim = torch.optim.Adam(vae.parameters(), lr=0.01) if made else lambda p: torch.optim.Adam(p, lr=0.01)
    found = train(lambda: (vae.model, vae.guide), pv.SVI, Trace_ELBO(), optim=lambda: optim)
    same(found, under_pyro("VAE tutorial"))


@pytest.mark.slow
def test_saved_pyro_optimizer_state_goes_on(tmp_path: Path) -> None:
    """optim.save() after our steps, optim.load() before more: as with Pyro."""

    def go(kind: Any) -> list[float]:
        pyro.clear_param_store()
        torch.manual_seed(0)
        vae: Any = TutorialVAE().double()
        x, losses = rows(), []
        for part in range(2):
            optim = adam()
            if part:
                optim.load(str(tmp_path / "adam.pt"))
            svi = kind(vae.model, vae.guide, optim, Trace_ELBO())
            torch.manual_seed(part)
            losses += [svi.step(x) for _ in range(5)]
            optim.save(str(tmp_path / "adam.pt"))
        return losses

    assert go(pv.SVI) == pytest.approx(go(pyro.infer.SVI), rel=1e-8)


def scheduler(name: str, optimizer: Any = torch.optim.Adam, lr: Any = 0.05, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(pyro.optim, name)(
        {"optimizer": optimizer, "optim_args": lr if callable(lr) else {"lr": lr}, **options}, {"clip_norm": 5.0}
    )


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ExponentialLR": scheduler("ExponentialLR", gamma=0.7),
    "LambdaLR, SGD": scheduler("LambdaLR", torch.optim.SGD, 0.01, lr_lambda=lambda epoch: 1 / (1 + epoch)),
    "OneCycleLR": scheduler("OneCycleLR", max_lr=0.2, total_steps=12),
    "CyclicLR": scheduler("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=2, cycle_momentum=False),
    "ReduceLROnPlateau": scheduler("ReduceLROnPlateau", patience=0, threshold=10.0),
    "a function of the name": scheduler(
        "StepLR", lr=lambda name: {"lr": 0.1 if name == "w1" else 0.02}, step_size=2, gamma=0.1
    ),
    "ClippedAdam": scheduler("ExponentialLR", pyro.optim.clipped_adam.ClippedAdam, gamma=0.8),
}


def scheduled(kind: Any, make: Callable[[], Any], path: Path, **options: Any) -> tuple[list[float], list[Any]]:
    """Losses, and the learning rates in the end: of parameters that come late, by a scheduler that is saved halfway."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    x, losses = torch.randn(8).double(), []
    for part in range(2):
        optim = make()
        if part:
            optim.load(str(path))
        svi = kind(late, lambda x, first: None, optim, Trace_ELBO(), **options)
        for i in range(6 * part, 6 * part + 6):
            losses.append(svi.step(x, 1 if i < 4 else 2))
            if i != 3:
                optim.step(*([losses[-1]] if "Plateau" in make().pt_scheduler_constructor.__name__ else []))
        optim.save(str(path))
    rates = {
        n: one.optimizer.param_groups[0]["lr"] for n, one in zip(sorted(optim.get_state()), optim.optim_objs.values())
    }
    return losses, sorted(rates.values())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (i > 1)) for i, name in enumerate(SCHEDULERS)]
)
def test_schedulers_change_the_rates_of_the_next_step_as_under_pyro(name: str, tmp_path: Path) -> None:
    true, rates = scheduled(pyro.infer.SVI, SCHEDULERS[name], tmp_path / "pyro.pt")
    found, own = scheduled(pv.SVI, SCHEDULERS[name], tmp_path / "ours.pt", engine="traced")
    assert found == pytest.approx(true, rel=1e-9) and own == pytest.approx(rates, rel=1e-12)
    assert len(set(rates)) > 1 or rates[0] != 0.05  # the schedule did something


@pytest.mark.slow
@pytest.mark.usefixtures("without_inductor")
def test_a_scheduler_changes_the_momentum_of_compiled_steps(tmp_path: Path) -> None:
    true, _ = scheduled(pyro.infer.SVI, SCHEDULERS["OneCycleLR"], tmp_path / "pyro.pt")
    found, _ = scheduled(pv.SVI, SCHEDULERS["OneCycleLR"], tmp_path / "ours.pt", engine="compiled")
    assert found == pytest.approx(true, rel=1e-7)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "several optimizers": (
        lambda: MixedMultiOptimizer([]),
        "MixedMultiOptimizer is not supported: pass pyro.optim.Adam",
    ),
    "a loss": (lambda: Trace_ELBO(), "Trace_ELBO is no optimizer"),
    "a number": (lambda: 0.01, "optim must be"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_optimizers_are_refused_by_name(name: str) -> None:
    make, match = REFUSED[name]
    vae: Any = TutorialVAE()
    with pytest.raises(pv.OptionError, match=match):
        pv.SVI(vae.model, vae.guide, make(), Trace_ELBO())


# --- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [TraceGraph_ELBO, lambda: RenyiELBO(num_particles=2)])
def test_losses_without_a_twin_run_as_pyros_own_and_say_so(loss: Any) -> None:
    true = train(held(TutorialVAE), pyro.infer.SVI, loss())
    with pytest.warns(UserWarning, match="ELBO runs as Pyro's own, eagerly"):
        found = train(held(TutorialVAE), pv.SVI, loss())
    same(found, true)


@pytest.mark.slow
def test_a_loss_function_of_ones_own_is_traced() -> None:
    def simple_elbo(model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        guide_trace = pyro.poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = pyro.poutine.trace(pyro.poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        loss: Tensor = guide_trace.log_prob_sum() - model_trace.log_prob_sum()
        return loss

    true = train(held(TutorialVAE), pyro.infer.SVI, simple_elbo)
    same(train(held(TutorialVAE), pv.SVI, simple_elbo, engine="traced"), true)


@pytest.mark.slow
def test_our_losses_train_plain_programs() -> None:
    """More particles, importance weights: a tighter loss, on a program that knows nothing of them."""
    losses = {}
    for loss in (pv.Trace_ELBO(), pv.IWELBO(20)):
        losses[type(loss).__name__] = np.mean(train(held(TutorialVAE), pv.SVI, loss, steps=60)[0][-10:])
    assert losses["IWELBO"] < losses["Trace_ELBO"]


# --- what changes between steps ----------------------------------------------------------------------------------------


class Shifted(nn.Module):
    """A float attribute that shapes the model."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.shift = 0.0

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.m + self.shift, 1.0).expand([PIXELS]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pass


def test_an_attribute_changed_between_steps_is_seen_at_the_next() -> None:
    x = rows(reals=True)
    ends = []
    for engine in ("eager", "traced"):
        pair = Shifted()
        svi = pv.SVI(pair.model, pair.guide, adam(), Trace_ELBO(), engine=engine)

        def go(svi: Any = svi, pair: Any = pair) -> list[float]:
            losses = []
            for i in range(8):
                pair.shift = 0.0 if i < 4 else 2.0
                losses.append(svi.step(x))
            return losses

        if engine == "eager":
            ends.append(go())
        else:
            with pytest.warns(UserWarning, match="shift.*traced anew"):
                ends.append(go())
    assert ends[1] == pytest.approx(ends[0], rel=1e-12)


def test_a_cleared_store_begins_anew() -> None:
    """As in Pyro: after clear_param_store the program makes new parameters, and they are the ones that train."""

    def model(x: Tensor) -> None:
        m = pyro.param("m", torch.zeros((), dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0).expand([PIXELS]).to_event(1), obs=x)

    x = rows(reals=True) + 3
    svi = pv.SVI(model, lambda x: None, adam(), Trace_ELBO())
    first = [svi.step(x) for _ in range(5)]
    evaluated = [svi.evaluate_loss(x) for _ in range(3)][-1]
    pyro.clear_param_store()
    assert svi.evaluate_loss(x) == pytest.approx(first[0]) and evaluated < first[-1]
    again = [svi.step(x) for _ in range(5)]
    assert again == pytest.approx(first, rel=1e-12)
    assert float(pyro.param("m").detach()) == pytest.approx(0.05, rel=1e-3)


def test_modules_train_where_a_program_registers_none() -> None:
    pair = Shifted()
    svi = pv.SVI(pair.model, pair.guide, adam(), Trace_ELBO())
    for _ in range(5):
        svi.step(rows(reals=True))
    assert pair.m.item() != 0.0 and not list(pyro.get_param_store().keys())


def test_numbers_that_change_at_every_step_are_told() -> None:
    def model(x: Tensor, factor: float) -> None:
        m = pyro.param("m", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m * factor, 1.0), obs=x)

    def guide(x: Tensor, factor: float) -> None:
        pass

    x = torch.randn(10)
    svi = pv.SVI(model, guide, adam(), Trace_ELBO(), engine="traced")
    with pytest.warns(UserWarning, match="more than 16 different sets.*as tensors") as caught:
        for i in range(40):
            svi.step(x, 0.1 * i)
    assert len(told(caught)) == 1
    svi = pv.SVI(model, guide, adam(), Trace_ELBO(), engine="traced")
    for i in range(40):  # as a tensor: one graph
        svi.step(x, torch.tensor(0.1 * i))
    assert len(svi._steps) == 1


class Counted(nn.Module):
    """Counts how often its model runs as a Python program."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.runs: list[int] = []

    def model(self, x: Tensor, factor: float = 1.0) -> None:
        self.runs.append(1)
        pyro.module("counted", self)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.m * factor, self.spread), obs=x)

    def guide(self, x: Tensor, factor: float = 1.0) -> None:
        pass

    @property
    def spread(self) -> float:
        return 1.0


CHANGING: dict[str, Callable[[Any, int], float]] = {
    "a number": lambda step, i: step(torch.zeros(8).double(), 0.1 * i),
    "a shape": lambda step, i: step(torch.zeros(3 + i).double()),
    "one of twelve shapes": lambda step, i: step(torch.zeros(3 + i % 12).double()),
}


@pytest.mark.filterwarnings("ignore:SVI.step was called with more than 16")
@pytest.mark.parametrize("name", CHANGING)
def test_what_changes_at_every_step_runs_no_more_often_than_under_pyro(name: str) -> None:
    counted = Counted()
    svi = pv.SVI(counted.model, counted.guide, adam(), Trace_ELBO(), engine="traced")
    for i in range(24):
        CHANGING[name](svi.step, i)
    assert len(counted.runs) == 24


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*traced anew")
def test_an_attribute_that_changes_at_every_step_is_given_up() -> None:
    class Annealed(Counted):
        beta = 1.0

        @property
        def spread(self) -> float:
            return self.beta

    ends = []
    for kind in (pyro.infer.SVI, pv.SVI):
        pyro.clear_param_store()
        program = Annealed()
        svi = kind(program.model, program.guide, adam(), Trace_ELBO())

        def steps(program: Any = program, svi: Any = svi) -> list[float]:
            losses = []
            for i in range(40):
                program.beta = 1.0 + 0.1 * i
                losses.append(svi.step(torch.ones(8).double()))
            return losses

        if kind is pv.SVI:
            with pytest.warns(UserWarning, match="goes on eagerly.*change at nearly every step"):
                ends.append(steps())
        else:
            ends.append(steps())
    assert ends[1] == pytest.approx(ends[0], rel=1e-12)
    assert len(program.runs) < 80


def test_what_a_training_loop_keeps_beside_the_program_is_not_watched() -> None:
    """The SVI itself, a history, counters and the best loss are attributes of the object whose methods are model and guide."""

    class Training(Counted):
        def __init__(self) -> None:
            super().__init__()
            self.svi = pv.SVI(self.model, self.guide, adam(), Trace_ELBO(), engine="traced")
            self.epoch, self.best, self.losses = 0, float("inf"), list[float]()
            self._spread = 1.0

        @property
        def spread(self) -> float:
            return self._spread

        def train(self, steps: int) -> None:
            for _ in range(steps):
                self.epoch += 1
                self.losses.append(self.svi.step(torch.ones(8).double()))
                self.best = min(self.losses)

    training = Training()
    training.train(3)
    traced = len(training.runs)
    training.train(20)
    assert len(training.runs) == traced
    training._spread = 2.0  # read through a property
    with pytest.warns(UserWarning, match="_spread.*traced anew"):
        training.train(1)
    assert training.losses[-1] > training.losses[-2] + 1


def test_an_array_is_told_and_read_at_every_step() -> None:
    def model(x: Any) -> None:
        m = pyro.param("m", torch.zeros((), dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=torch.as_tensor(x))

    x = np.zeros(10)
    svi = pv.SVI(model, lambda x: None, adam(), Trace_ELBO())
    with pytest.warns(UserWarning, match="NumPy array.*eagerly"):
        first = svi.step(x)
    x += 10.0
    assert svi.step(x) > first + 100


def test_pyros_validation_still_speaks_at_the_first_step() -> None:
    vae: Any = TutorialVAE().double()
    svi = pv.SVI(vae.model, vae.guide, adam(), Trace_ELBO())
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="support"):
        svi.step(rows(reals=True))


def test_what_cannot_be_traced_goes_on_eagerly() -> None:
    class Branching(Shifted):
        def model(self, x: Tensor) -> None:
            if x.sum() > 0:
                pyro.sample("extra", dist.Normal(self.m, 1.0), obs=x.new_ones(()))
            super().model(x)

    results = []
    x = rows(reals=True)
    for engine in ("eager", "traced"):
        pair = Branching()
        svi = pv.SVI(pair.model, pair.guide, adam(), Trace_ELBO(), engine=engine)
        batches = [x if i % 2 else -x for i in range(6)]
        if engine == "eager":
            results.append([svi.step(b) for b in batches])
        else:
            with pytest.warns(UserWarning, match=r"cannot trace.*test_svi.py, line \d+: if x.sum\(\) > 0"):
                results.append([svi.step(b) for b in batches])
    assert results[0] == results[1]


def test_bad_arguments_are_refused_at_once() -> None:
    vae: Any = TutorialVAE()
    with pytest.raises(pv.OptionError, match="known: auto, eager"):
        pv.SVI(vae.model, vae.guide, adam(), Trace_ELBO(), engine="fast")
    with pytest.raises(pv.OptionError, match="model must be callable"):
        pv.SVI("vae", vae.guide, adam(), Trace_ELBO())
    with pytest.raises(pv.OptionError, match="bfloat16"):
        pv.SVI(vae.model, vae.guide, adam(), Trace_ELBO(), precision="half")


def test_update_does_not_wait() -> None:
    vae: Any = TutorialVAE().double()
    svi = pv.SVI(vae.model, vae.guide, adam(), Trace_ELBO())
    losses = [svi.update(rows()) for _ in range(4)]
    assert all(isinstance(loss, Tensor) and loss.shape == () and not loss.requires_grad for loss in losses)
