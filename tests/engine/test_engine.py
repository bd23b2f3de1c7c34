"""Engines: one step run in several ways gives one result, and what cannot be traced is noticed."""

import functools
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from safetensors.torch import load_file
from support.marks import compiles
from support.told import told
from torch import Tensor, nn
from torch._guards import TracingContext

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.engine import compiled as engines
from pyrovae.engine import tracing
from pyrovae.engine.compiled import choose_engine

pytestmark = pytest.mark.auto_engine


class Noisy(nn.Module):
    """Dropout and batch norm in the encoder: random numbers and buffers inside the step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))
        self.decode = nn.Linear(2, 6)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, scale = self.net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def binary(n: int = 40) -> Tensor:
    return torch.bernoulli(torch.full((n, 6), 0.4))


def vae() -> pv.VAE:
    return pv.VAE(
        prior=pv.priors.MixtureOfNormals(2, 3),
        likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
    )


def plain() -> pv.VAE:
    """Linear networks, and so little to compile."""
    return pv.VAE(pv.priors.MixtureOfNormals(2, 3), pv.mlp(2, fam.Bernoulli(6), ()), pv.mlp(6, fam.Normal(2), ()))


class Summed(nn.Module):
    """A class that the guide sums out and a uniform prior of no batch shape: the decoder's rows are views that depend on the
    order in which eager mode lays out the values of the class. Dropout and batch norm as in `Noisy`."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = pv.priors.StandardNormal(2)
        self.net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3))
        self.classifier, self.encoder = nn.Linear(4, 3), pv.mlp((4, 3), fam.Normal(2), ())
        self.likelihood = pv.mlp((2, 3), fam.Bernoulli(6), (4,))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=x.new_zeros(3)))
            pyro.sample("x", self.likelihood(pyro.sample("z", self.prior()), pv.nets.one_hot(y, 3)), obs=x)

    def guide(self, x: Tensor) -> None:
        h = self.net(x)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.classifier(h)), infer={"enumerate": "parallel"})
            pyro.sample("z", self.encoder(h, pv.nets.one_hot(y, 3)))


def fitted(make: Callable[[], Any], engine: str, **options: Any) -> tuple[list[float], dict[str, Tensor], Any]:
    """The ELBO of each of some 50 steps, the trained weights, and the fit."""
    torch.manual_seed(1)
    pair = make()
    x = binary(40).to(next(pair.parameters()).dtype)
    elbos: list[Tensor] = []
    step = engines.Traced.step
    defaults: dict[str, Any] = {"epochs": 10, "batch_size": 8, "seed": 0, "learning_rate": 0.01}
    with pytest.MonkeyPatch.context() as patch:
        for kind in (engines.Eager, engines.Traced):
            inner = kind.step
            patch.setattr(kind, "step", lambda *args, inner=inner: (elbos.append(inner(*args)), elbos[-1])[1])
        fit = pv.fit(pair, x, engine=engine, **(defaults | options))
    assert engines.Traced.step is step and len(elbos) == 5 * len(fit.history)
    return [float(e) for e in elbos], {n: p.detach().clone() for n, p in pair.state_dict().items()}, fit


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-12))


# --- one result ------------------------------------------------------------------------------------------------------

SCHEDULE = [pv.schedules.one_cycle(0.02), pv.schedules.kl_warmup(4)]


class Transposed(nn.Module):
    """The mean of x is a weight's transpose, so that the weight's gradient is laid out by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 2))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.weight.mT, 1.0).expand([len(x), 2, 3]).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        pass


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_gradients_are_laid_out_as_their_parameters(engine: str) -> None:
    """Adam's first step is by the rate along each gradient's sign. Fused, it reads memory in order, whatever the strides."""
    to = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])
    pair = Transposed()
    pv.fit(pair, to.expand(8, 2, 3), epochs=1, batch_size=8, learning_rate=0.1, engine=engine)
    torch.testing.assert_close(pair.weight.detach(), 0.1 * to.mT, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [vae, Noisy])
def test_engines_follow_the_same_losses(make: Callable[[], Any]) -> None:
    """50 steps from one seed, with both schedules, clipping, a transform and a penalty: losses to 1e-5."""
    follows(
        make,
        "traced",
        schedule=SCHEDULE,
        clip_norm=2.0,
        transform=lambda b: {"x": (b["x"] + (torch.rand_like(b["x"]) < 0.1).to(b["x"].dtype)).clamp(max=1)},
        penalty=lambda pair: 0.5 * sum(p.square().sum() for p in pair.parameters()),
    )


def follows(make: Callable[[], Any], engine: str, **options: Any) -> None:
    true, weights, _ = fitted(make, "eager", **options)
    assert len(true) == 50 and true[0] != true[-1]
    found, trained, fit = fitted(make, engine, **options)
    assert fit.settings["engine"] == engine and "engine_notes" not in fit.settings
    assert max(abs(a - b) / abs(b) for a, b in zip(found, true)) < 1e-5
    assert max(apart(trained[n], weights[n]) for n in weights) < 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("without_inductor")
def test_engines_reach_the_same_parameters_in_double_precision() -> None:
    def make() -> Any:
        return plain().double()

    true, weights, _ = fitted(make, "eager", schedule=SCHEDULE, clip_norm=2.0)
    for name in ("traced", "compiled"):
        found, trained, _ = fitted(make, name, schedule=SCHEDULE, clip_norm=2.0)
        assert max(abs(a - b) / abs(b) for a, b in zip(found, true)) < 1e-10
        assert max(apart(trained[n], weights[n]) for n in weights) < 1e-10


def summed() -> Summed:
    """In double precision, since Adam takes steps of one size along gradients that are rounding alone, too."""
    return Summed().double()


@pytest.mark.slow
@compiles
def test_views_of_eager_mode_do_not_bind_the_compiler() -> None:
    follows(summed, "compiled")


def test_a_compiled_step_that_gives_another_elbo_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def miscompiled(step: Any, tensors: Any, **how: Any) -> Any:
        return lambda *given: [step(*given)[0] + 1.0]

    monkeypatch.setattr("pyrovae.engine.compiled.compiled", miscompiled)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "seed": 2, "progress": False}
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"could not be compiled \(its ELBO is .* goes on traced"):
        found = pv.fit(vae(), binary(), engine="compiled", **options)
    torch.manual_seed(0)
    traced = pv.fit(vae(), binary(), engine="traced", **options)
    assert [row["elbo"] for row in found.history] == [row["elbo"] for row in traced.history]


def test_a_compiled_step_is_compared_at_the_weights_of_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing it for the compiler takes a step, by numbers that are no step's: weights were 1e8 then, and the ELBO -1e30."""
    same: list[bool] = []

    def compiling(step: Any, tensors: list[Tensor], **how: Any) -> Any:
        before = [t.clone() for t in tensors]
        step(*tensors)

        def made(*given: Tensor) -> Any:
            same.append(all(map(torch.equal, given, before)))
            return step(*given)

        return made

    monkeypatch.setattr("pyrovae.engine.compiled.compiled", compiling)
    pv.fit(vae(), binary(), engine="compiled", epochs=1, batch_size=8, progress=False)
    assert same[0] and len(same) == 6


@pytest.mark.slow
@compiles
def test_a_compiled_fit_resumes_bit_for_bit(tmp_path: Path) -> None:
    """The program is that of the test above, and so compiled already."""
    x = binary().double()
    options: dict[str, Any] = {"batch_size": 8, "seed": 2, "engine": "compiled", "learning_rate": 0.01}
    torch.manual_seed(0)
    whole = summed()
    pv.fit(whole, x, epochs=4, **options)
    torch.manual_seed(0)
    halfway = {"checkpoint": tmp_path / "run", "callbacks": [lambda f: len(f.history) == 2]}
    pv.fit(summed(), x, epochs=4, **halfway, **options)
    run = tmp_path / "run"
    torch.manual_seed(0)
    again = summed()
    resumed = pv.fit(again, x, epochs=4, checkpoint=run, resume=True, **options)
    assert len(resumed.history) == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert torch.equal(
        load_file(run / "weights.safetensors")["encoder.net.first.0.weight"], whole.encoder.net.first[0].weight
    )


ADAMS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "Adam, amsgrad, weight decay": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "AdamW, two groups": lambda p: torch.optim.AdamW(
        [{"params": p[:2], "lr": 0.02, "weight_decay": 0.3}, {"params": p[2:], "betas": (0.8, 0.99)}], fused=True
    ),
}


@pytest.mark.slow
@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize(
    "name", ["Adam, amsgrad, weight decay", pytest.param("AdamW, two groups", marks=pytest.mark.slow)]
)
def test_adam_in_the_graph_is_torchs(name: str) -> None:
    """Weights and the optimizer's whole state, under torch's names."""
    made: list[torch.optim.Optimizer] = []

    def keep(leaves: list[Tensor]) -> torch.optim.Optimizer:
        made.append(ADAMS[name](leaves))
        return made[-1]

    _, true, _ = fitted(lambda: vae().double(), "eager", optimizer=keep)
    _, weights, _ = fitted(lambda: vae().double(), "compiled", optimizer=keep)
    assert max(apart(weights[n], true[n]) for n in true) < 1e-10
    eager, compiled = (optimizer.state_dict() for optimizer in made)
    assert compiled["param_groups"] == eager["param_groups"]
    for index, state in eager["state"].items():
        assert compiled["state"][index].keys() == state.keys()
        for key, value in state.items():
            assert compiled["state"][index][key].dtype == value.dtype
            assert apart(compiled["state"][index][key], value) < 1e-10


@pytest.mark.slow
@pytest.mark.usefixtures("without_inductor")
def test_other_optimizers_step_outside_the_graph_and_the_fit_says_so(caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"optimizer": lambda p: torch.optim.RMSprop(p, lr=0.01), "epochs": 2}
    true, _, _ = fitted(vae, "eager", **options)
    with caplog.at_level("INFO", logger="pyrovae"):
        found, _, fit = fitted(vae, "compiled", **options)
    assert found == pytest.approx(true, rel=1e-5)
    assert "RMSprop steps outside the graph" in fit.settings["engine_notes"][0] and "RMSprop" in caplog.text


@pytest.fixture(scope="module")
def full_precision() -> list[float]:
    """The ELBO of each of 200 steps in single precision."""
    return fitted(plain, "eager", epochs=40)[0]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "traced", pytest.param("compiled", marks=compiles)])
def test_bfloat16_trains_float32_parameters_to_the_same_elbo(engine: str, full_precision: list[float]) -> None:
    full = full_precision
    half, weights, fit = fitted(plain, engine, epochs=40, precision="bfloat16")
    assert all(w.dtype == torch.float32 for w in weights.values()) and fit.settings["precision"] == "bfloat16"
    assert half[0] != full[0]
    assert np.mean(half[-50:]) == pytest.approx(np.mean(full[-50:]), rel=0.02)


@pytest.mark.parametrize(
    ("has", "least", "dtype", "precision"),
    [
        (True, 0.0, torch.float32, "bfloat16"),
        (False, 0.0, torch.float32, "float32"),
        (True, 1e12, torch.float32, "float32"),
        (True, 0.0, torch.float64, "float32"),
    ],
)
def test_auto_takes_bfloat16_for_large_products_where_a_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, has: bool, least: float, dtype: torch.dtype, precision: str
) -> None:
    monkeypatch.setattr("pyrovae.engine.precision.has_bfloat16", lambda device: has)
    monkeypatch.setattr("pyrovae.engine.precision.WORTH_IT", least)
    chosen = pv.fit(vae().to(dtype), binary().to(dtype), epochs=1, engine="eager", precision="auto").settings
    assert chosen["precision"] == precision


@pytest.mark.parametrize("drop_in", [False, True])
def test_bfloat16_warns_where_the_processor_computes_it_slowly(monkeypatch: pytest.MonkeyPatch, drop_in: bool) -> None:
    def fit(precision: str) -> None:
        if drop_in:
            pair = vae()
            pv.SVI(pair.model, pair.guide, pyro.optim.Adam({}), pv.Trace_ELBO(), precision=precision).step(binary())
        else:
            pv.fit(vae(), binary(), epochs=1, engine="eager", precision=precision)

    monkeypatch.setattr("pyrovae.engine.precision.NOTICED", 1.0)
    monkeypatch.setattr("pyrovae.engine.precision.has_bfloat16", lambda device: True)
    fit("bfloat16")
    monkeypatch.setattr("pyrovae.engine.precision.has_bfloat16", lambda device: False)
    fit("float32")
    with pytest.warns(UserWarning, match="several times slower.*'auto'") as said:
        fit("bfloat16")
    assert said[0].filename == __file__  # at the line of the user


def test_bfloat16_leaves_densities_in_single_precision() -> None:
    seen: list[torch.dtype] = []

    class Watching(Noisy):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).expand([2]).to_event(1))
                logits = self.decode(z)
                seen.append(logits.dtype)
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    fitted(Watching, "eager", epochs=1, precision="bfloat16")
    assert set(seen) == {torch.float32}


# --- traces ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fifty_epochs_trace_once_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedules of learning rate and KL weight retrace nothing: one graph to train, one to evaluate."""
    traces: list[Any] = []
    inner = tracing.capture
    monkeypatch.setattr(tracing, "capture", lambda *args: (traces.append(args), inner(*args))[1])
    calls = {"n": 0}

    class Counting(Noisy):
        def guide(self, x: Tensor) -> None:
            calls["n"] += 1
            super().guide(x)

    x = binary(43)
    pv.fit(Counting(), x, epochs=50, batch_size=8, validation=0.2, schedule=SCHEDULE, engine="traced", seed=0)
    assert len(traces) == 2
    # per epoch: the comparison of its first step's loss; not one of the 200 steps runs the pair
    assert calls["n"] < 50 + 20


def test_a_graph_reads_captured_tensors_where_they_are() -> None:
    """A tensor that a program reads but was not given is captured by reference; a number made of it is not."""
    shift = torch.zeros(3)
    graph = tracing.capture(lambda x: [x + shift + torch.tensor(1.0)], [torch.ones(3)])
    assert [tuple(t.shape) for t in graph.captured] == [(3,)] and graph.inputs == 2
    assert torch.equal(graph(torch.ones(3))[0], torch.full((3,), 2.0))
    shift += 5
    assert torch.equal(graph(torch.ones(3))[0], torch.full((3,), 7.0))


# --- traps -----------------------------------------------------------------------------------------------------------


class Trap(nn.Module):
    """x ~ N(m + what the trap makes of x, 1), a global mean m: each subclass hides something from a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(()))
        self.shift: Any = 0.5
        self.closure = torch.tensor(0.5)
        self.calls = 0

    def trap(self, x: Tensor) -> Any:
        raise NotImplementedError

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.m + self.trap(x), 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pass


class Branch(Trap):
    def trap(self, x: Tensor) -> Any:
        return 1.0 if x.mean() > 0 else -1.0


class Item(Trap):
    def trap(self, x: Tensor) -> Any:
        return 0.1 * x.max().item()


class ToList(Trap):
    def trap(self, x: Tensor) -> Any:
        return sum(x.tolist()) / len(x)


class ToNumpy(Trap):
    def trap(self, x: Tensor) -> Any:
        return float(np.median(x.numpy()))


class NumpyRandom(Trap):
    def trap(self, x: Tensor) -> Any:
        return float(np.random.randn())


class ClosureValue(Trap):
    def trap(self, x: Tensor) -> Any:
        return self.closure.item()


class Attribute(Trap):
    def trap(self, x: Tensor) -> Any:
        return self.shift


class Structure(Trap):
    """A site appears after some calls."""

    def trap(self, x: Tensor) -> Any:
        self.calls += 1
        if self.calls > 12:
            pyro.sample("late", dist.Normal(self.m, 1.0).expand([len(x)]), obs=x + 1)
        return 0.0


class Wrapped(Trap):
    """Reads a value inside a distribution that validates itself."""

    def trap(self, x: Tensor) -> Any:
        return dist.Normal(x, 1.0, validate_args=True).mean


def change(fit: pv.Fit) -> None:
    """What a user's callback does between epochs."""
    if isinstance(fit.pair, Attribute):
        fit.pair.shift = 0.5 + len(fit.history)
    fit.pair.closure.fill_(0.5 + len(fit.history))


TRAPS: dict[type[Trap], str] = {
    Branch: r"cannot trace.*reads a tensor's value.*test_engine.py, line \d+: return 1.0 if x.mean",
    Item: r"cannot trace.*reads a tensor's value.*\.max\(\)\.item\(\)",
    ToList: r"cannot trace.*tolist\(\).*sum\(x.tolist\(\)\)",
    ToNumpy: r"cannot trace.*numpy\(\).*np.median",
    NumpyRandom: r"cannot trace.*another result when its operations are run again.*NumPy",
    ClosureValue: r"the program has changed in a way that a trace cannot see",
    Attribute: r"'shift' is now '?1.5'?: the step was traced anew.*register_buffer",
    Structure: r"cannot trace|has changed in a way",
    Wrapped: r"cannot trace.*reads a tensor's value",
}


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_what_a_trace_cannot_see_is_told_and_gets_the_eager_result(trap: type[Trap]) -> None:
    x = torch.randn(40) + 1
    options: dict[str, Any] = {"epochs": 5, "batch_size": 10, "seed": 0, "learning_rate": 0.05, "callbacks": [change]}
    if trap is Structure:
        options["epochs"] = 20
    if trap is NumpyRandom:  # the same numbers in any number of calls
        x = x[:10]
        options |= {"epochs": 1}
    np.random.seed(0)
    true = trap()
    if trap is not NumpyRandom:
        pv.fit(true, x, engine="eager", **options)
    found = trap()
    with pytest.warns(UserWarning, match=TRAPS[trap]) as caught:
        fit = pv.fit(found, x, engine="traced", **options)
    assert len([w for w in caught if "trace" in str(w.message)]) == 1  # one warning, not one a step
    assert fit.settings["engine_notes"]
    if trap not in (NumpyRandom, Structure):
        assert torch.equal(found.m, true.m)


class Masked(Trap):
    """As many numbers as there are positive ones, whose mean divides by a number that the trace would keep."""

    def trap(self, x: Tensor) -> Any:
        return x[x > 0].mean()


class MaskedRows(Trap):
    """Rows that are chosen by their values, put through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def trap(self, x: Tensor) -> Any:
        return self.layer(x[:, None][x > 0.5]).mean()


class MaskedSelect(Trap):
    def trap(self, x: Tensor) -> Any:
        return torch.masked_select(x, x > 0).std()


class Nonzero(Trap):
    def trap(self, x: Tensor) -> Any:
        return 0.01 * x[torch.where(x > 0)[0]].mean()


class Unique(Trap):
    def trap(self, x: Tensor) -> Any:
        return torch.unique(x.round()).mean()


class DrawnMask(Trap):
    def trap(self, x: Tensor) -> Any:
        return x[torch.rand(len(x)) > 0.5].mean()


SHAPES: list[type[Trap]] = [Masked, MaskedRows, MaskedSelect, Nonzero, Unique, DrawnMask]


@pytest.mark.parametrize(
    ("trap", "verb"),
    [*((trap, "fit") for trap in SHAPES), *((MaskedRows, verb) for verb in ("step", "evaluate"))],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_shapes_that_depend_on_values_run_eagerly(trap: type[Trap], verb: str) -> None:
    x = torch.randn(40, generator=torch.Generator().manual_seed(0)) + 1
    results = []
    for engine in ("eager", "traced"):
        torch.manual_seed(0)
        pair = trap()
        torch.manual_seed(1)
        with pyro.get_param_store().scope(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if verb == "fit":
                pv.fit(pair, x, epochs=2, batch_size=10, seed=0, engine=engine)
                results.append([p.detach().clone() for p in pair.parameters()])
            else:
                svi = pv.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), engine=engine)
                run = svi.step if verb == "step" else svi.evaluate_loss
                results.append([torch.tensor(run(rows)) for rows in x.split(10) * 2])
        told = [str(w.message) for w in caught if "eagerly" in str(w.message)]
        assert bool(told) == (engine == "traced")
        assert all("depends on values" in text and "test_engine.py" in text for text in told)
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_mask_that_no_value_enters_is_traced() -> None:
    class Constant(Trap):
        def trap(self, x: Tensor) -> Any:
            return x[torch.arange(len(x)) % 2 == 0].mean()

    assert "engine_notes" not in pv.fit(Constant(), torch.randn(40), epochs=2, batch_size=10, engine="traced").settings


class OwnNoise(Trap):
    """Draws from a generator of the program's own."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def trap(self, x: Tensor) -> Any:
        if isinstance(self.generator, torch.Generator):
            return torch.randn((), generator=self.generator)
        return self.generator.normal() if hasattr(self.generator, "normal") else self.generator.gauss(0, 1)


GENERATORS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.Generator().manual_seed(3),
    "NumPy": lambda: np.random.default_rng(3),
    "NumPy's old one": lambda: np.random.RandomState(3),
    "Python": lambda: random.Random(3),
    "NumPy's global one": lambda: np.random.seed(3) or np.random,  # type: ignore[func-returns-value]
    "Python's global one": lambda: random.seed(3) or random,  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_trace_that_falls_back_leaves_the_programs_own_generator_where_it_was(name: str) -> None:
    ends = []
    for engine in ("eager", "traced"):
        pair = OwnNoise(GENERATORS[name]())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pv.fit(pair, torch.ones(40), epochs=2, batch_size=10, seed=0, engine=engine, learning_rate=0.1)
        assert any("cannot trace" in str(w.message) for w in caught) == (engine == "traced")
        ends.append(pair.m.detach())
    assert torch.equal(*ends)


class Recurrent(nn.Module):
    """An encoder of sequences."""

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self.rnn = make(3, 4, batch_first=True)
        self.loc, self.decode = nn.LazyLinear(2), nn.Linear(2, 15)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z).unflatten(-1, (5, 3)), 1.0).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(self.rnn(x)[0][:, -1]), 1.0).to_event(1))


RECURRENT: dict[str, Callable[..., Any]] = {
    "LSTM": nn.LSTM,
    "LSTM both ways, two layers": functools.partial(nn.LSTM, bidirectional=True, num_layers=2),
    "LSTM with projections": functools.partial(nn.LSTM, proj_size=2),
    "GRU": nn.GRU,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "LSTM " in name else []) for name in RECURRENT]
)
def test_recurrent_encoders_are_traced(name: str) -> None:
    x = torch.randn(24, 5, 3)
    ends = []
    for engine in ("eager", "traced"):
        torch.manual_seed(0)
        pair = Recurrent(RECURRENT[name])
        pair.guide(x)  # sizes the lazy layer
        fit = pv.fit(pair, x, epochs=2, batch_size=8, validation=0.25, seed=0, engine=engine)
        assert "engine_notes" not in fit.settings
        ends.append([row["elbo"] for row in fit.history])
    assert ends[1] == pytest.approx(ends[0], rel=1e-5)


def test_a_counter_in_the_pair_is_no_news() -> None:
    """What a run of the pair changes by itself does not retrace it; neither does a tensor kept for a look."""

    class Counts(Trap):
        def trap(self, x: Tensor) -> Any:
            self.calls += 1
            self.last = x
            return 0.0

    x = torch.randn(40)
    one, two = Counts(), Counts()
    fit = pv.fit(one, x, epochs=4, batch_size=10, seed=0, engine="traced")
    pv.fit(two, x, epochs=4, batch_size=10, seed=0, engine="eager")
    assert torch.equal(one.m, two.m) and "engine_notes" not in fit.settings


def test_a_buffer_written_between_epochs_needs_no_new_trace() -> None:
    class Buffered(Trap):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("b", torch.zeros(()))

        def trap(self, x: Tensor) -> Any:
            return self.b

    def write(fit: pv.Fit) -> None:
        fit.pair.b.fill_(float(len(fit.history)))

    x = torch.randn(40)
    one, two = Buffered(), Buffered()
    fit = pv.fit(one, x, epochs=4, batch_size=10, seed=0, engine="traced", callbacks=[write])
    pv.fit(two, x, epochs=4, batch_size=10, seed=0, engine="eager", callbacks=[write])
    assert torch.equal(one.m, two.m) and "engine_notes" not in fit.settings


FACTOR = 1.0


@pytest.mark.slow
def test_globals_and_closures_of_plain_functions_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = {"closure": 1.0}

    def model(x: Tensor) -> None:
        m = pyro.param("m", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m * FACTOR + weight["closure"], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pass

    x = torch.randn(40)
    for what in ("FACTOR", "closure"):
        ends = []
        for engine in ("eager", "traced"):
            weight["closure"] = 1.0
            monkeypatch.setitem(globals(), "FACTOR", 1.0)

            def turn(fit: pv.Fit, what: str = what) -> None:
                if what == "closure":
                    weight["closure"] = 3.0
                else:
                    globals()["FACTOR"] = 3.0

            def go(engine: str = engine, turn: Any = turn) -> Tensor:
                fit = pv.fit(
                    pv.Pair(model, guide),
                    x,
                    epochs=3,
                    batch_size=10,
                    seed=0,
                    engine=engine,
                    callbacks=[turn],
                    learning_rate=0.1,
                )
                return fit.store["params"]["m"].detach()

            if engine == "eager":
                ends.append(go())
            else:
                with pytest.warns(UserWarning, match=what):
                    ends.append(go())
        assert torch.equal(*ends), what


@pytest.mark.slow
@pytest.mark.usefixtures("without_inductor")
def test_a_step_that_keeps_changing_is_not_compiled_for_ever() -> None:
    pair = Attribute()
    options: dict[str, Any] = {"epochs": 6, "batch_size": 10, "seed": 0, "callbacks": [change], "learning_rate": 0.05}
    x = torch.randn(40)
    true = Attribute()
    pv.fit(true, x, engine="eager", **options)
    with pytest.warns(UserWarning) as caught:
        pv.fit(pair, x, engine="compiled", **options)
    retraced, given_up = told(caught)
    assert "the step was traced anew" in retraced and "goes on traced, not compiled" in given_up
    assert torch.allclose(pair.m, true.m, rtol=1e-5)


@pytest.mark.slow
def test_what_does_not_compile_goes_on_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no compiler today")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    true, _, _ = fitted(vae, "traced", epochs=2)
    with pytest.warns(UserWarning, match="no compiler today.*goes on traced"):
        found, _, _ = fitted(vae, "compiled", epochs=2)
    assert found == true


# --- the choice ------------------------------------------------------------------------------------------------------


def test_auto_is_a_rule_without_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(engines, "has_compiler", lambda: True)
    for product, fewest in ((0, 20_000), (160_000_000, 7_693), (1_600_000_000, 1_177)):
        assert choose_engine("auto", cpu, fewest - 1, product) == "traced"
        assert choose_engine("auto", cpu, fewest, product) == "compiled"
    assert choose_engine("auto", cuda, 1) == "graphed"
    monkeypatch.setattr(engines, "has_compiler", lambda: False)
    assert choose_engine("auto", cpu, 20_000) == "traced"


def test_a_resumed_run_keeps_its_engine(tmp_path: Path) -> None:
    x = binary()
    options: dict[str, Any] = {"batch_size": 12, "seed": 2, "checkpoint": tmp_path / "run"}
    pv.fit(vae(), x, epochs=1, engine="eager", **options)
    assert pv.fit(vae(), x, epochs=2, resume=True, **options).settings["engine"] == "eager"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"engine": "fast"}, "eager, traced, compiled, graphed"),
        ({"engine": "graphed"}, "the device is cpu"),
        ({"precision": "float16"}, "auto, float32, bfloat16"),
    ],
)
def test_unknown_ways_to_run_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(pv.OptionError, match=match):
        pv.fit(vae(), binary(), epochs=1, **options)


def test_half_precision_of_double_parameters_is_refused() -> None:
    with pytest.raises(pv.OptionError, match="float32 parameters"):
        pv.fit(vae().double(), binary().double(), epochs=1, precision="bfloat16")


def test_errors_of_the_program_are_not_hidden() -> None:
    class Broken(Trap):
        def trap(self, x: Tensor) -> Any:
            if self.training:  # checks run in evaluation mode
                raise ZeroDivisionError("mine")
            return 0.0

    with pytest.raises(ZeroDivisionError, match="mine"):
        pv.fit(Broken(), torch.randn(40), epochs=1, engine="traced")


def test_a_step_is_compiled_for_its_one_shape() -> None:
    """No size is a symbol: Inductor fails at those of a large graph that no operation settles."""
    with engines.cached_compilation():
        mode = TracingContext.get().fake_mode
        assert mode is not None
        assert all(type(n) is int for n in mode.from_tensor(torch.zeros(5, 3), static_shapes=False).shape)


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_parameters_that_a_callback_freezes_stay(engine: str) -> None:
    pair = plain()
    weights = list(pair.encoder.parameters())
    kept: list[Tensor] = []

    def freeze(fit: pv.Fit) -> None:
        pair.encoder.requires_grad_(False)
        kept.extend(weight.clone() for weight in weights)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the step is traced anew, and says so
        pv.fit(pair, binary(20), epochs=3, batch_size=10, seed=0, engine=engine, progress=False, callbacks=[freeze])
    assert all(torch.equal(a, b) for a, b in zip(weights, kept[: len(weights)], strict=True))
    with pytest.raises(pv.PairError, match="All parameters were frozen"):
        pv.fit(
            vae(),
            binary(20),
            epochs=2,
            batch_size=10,
            engine=engine,
            callbacks=[lambda fit: fit.pair.requires_grad_(False) and None],
        )


class Looking(AutoNormal):
    """An AutoGuide of a user's that reads a value."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        return found if float(found["m"].detach()) < 1e9 else {}  # here


def test_the_line_that_cannot_be_traced_is_one_of_the_program_also_under_an_auto_guide() -> None:
    options: dict[str, Any] = {"epochs": 1, "engine": "traced", "progress": False}

    def heavy(x: Tensor) -> None:
        m = pyro.sample("m", dist.Stable(1.5, 0.0))  # Pyro's density reads values, and no line of it is the user's
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    with pytest.warns(
        UserWarning, match=r"cannot trace.* at sample site 'm' \(Pyro's stable_log_prob.py, line \d+: if "
    ):
        pv.fit(pv.Pair(heavy, AutoNormal(heavy)), torch.randn(20), **options)

    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    with pytest.warns(UserWarning, match=r"cannot trace.*\(test_engine.py, line \d+: .*# here\)"):
        pv.fit(pv.Pair(model, Looking(model)), torch.randn(20), **options)
