"""Modules are found however a pair holds them: their mode, device and buffers are handled, and their weights are saved."""

import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from support.programs import binary, labels
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.pair.parameters import every_module, modules, modules_remembered, named_tensors, seed_torch
from pyrovae.pair.reach import MOST_ENTRIES, parts_of, reach

OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 10, "seed": 0, "progress": False}


def nets() -> tuple[nn.Module, nn.Module]:
    """A decoder and an encoder that are other functions in training than at evaluation."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 6))
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    return decoder, encoder


def draw(x: Tensor, decoder: Any) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        # rows of z in one dimension, which is all that BatchNorm1d knows
        logits = decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 6)
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def infer(x: Tensor, encoder: Any) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))


class Held(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nets()

    def model(self, x: Tensor) -> None:
        draw(x, self.decoder)

    def guide(self, x: Tensor) -> None:
        infer(x, self.encoder)


def closures() -> pv.Pair:
    decoder, encoder = nets()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        draw(x, decoder)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        infer(x, encoder)

    return pv.Pair(model, guide)


DECODER, ENCODER = nets()


def global_model(x: Tensor) -> None:
    pyro.module("decoder", DECODER)
    draw(x, DECODER)


def registered_encoder() -> nn.Module:
    return pyro.module("encoder", ENCODER)


def global_guide(x: Tensor) -> None:
    def inner() -> None:  # a function in the function, which calls one that names the global
        infer(x, registered_encoder())

    inner()


def of_globals() -> pv.Pair:
    global DECODER, ENCODER
    DECODER, ENCODER = nets()
    return pv.Pair(global_model, global_guide)


def registered(x: Tensor, net: nn.Module, name: str, what: Callable[..., None]) -> None:
    pyro.module(name, net)
    what(x, net)


def partials() -> pv.Pair:
    decoder, encoder = nets()
    model = functools.partial(registered, net=decoder, name="decoder", what=draw)
    guide = functools.partial(registered, net=encoder, name="encoder", what=infer)
    return pv.Pair(lambda x: model(x), lambda x: guide(x))


def containers() -> pv.Pair:
    parts = dict(zip(("decoder", "encoder"), nets()))

    def model(x: Tensor, *, many: Any = (parts,)) -> None:  # also by a default
        registered(x, many[0]["decoder"], "decoder", draw)

    def guide(x: Tensor, *, many: Any = (parts,)) -> None:
        registered(x, parts["encoder"], "encoder", infer)

    return pv.Pair(lambda x: model(x), lambda x: guide(x))


class Plain:
    """A class that is no module."""

    def __init__(self) -> None:
        self.decoder, self.encoder = nets()

    def model(self, x: Tensor) -> None:
        registered(x, self.decoder, "decoder", draw)

    def guide(self, x: Tensor) -> None:
        registered(x, self.encoder, "encoder", infer)


NETS = types.ModuleType("my_nets")


def of_a_python_module() -> pv.Pair:
    NETS.decoder, NETS.encoder = nets()  # type: ignore[attr-defined]

    def model(x: Tensor) -> None:
        registered(x, NETS.decoder, "decoder", draw)

    def guide(x: Tensor) -> None:
        registered(x, NETS.encoder, "encoder", infer)

    return pv.Pair(model, guide)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inside


def around(wrap: Callable[[Any], Any]) -> Callable[[], pv.Pair]:
    """The methods of a module, each inside of something."""

    def build() -> pv.Pair:
        held = Held()
        return pv.Pair(wrap(held.model), wrap(held.guide))

    return build


PAIRS: dict[str, Callable[[], Any]] = {
    "closures": closures,
    "globals": of_globals,
    "partials": partials,
    "a module of Python": of_a_python_module,
    "containers": containers,
    "a plain class": Plain,
    "a handler": around(lambda f: poutine.scale(f, scale=1.0)),
    "handlers": around(lambda f: poutine.scale(poutine.mask(f, mask=True), scale=1.0)),
    "a bare handler": around(lambda f: poutine.infer_config(config_fn=lambda site: {})(f)),
    "a decorator": around(decorated),
    "a partial": around(functools.partial),
    "all of them": around(lambda f: decorated(functools.partial(poutine.scale(decorated(f), scale=1.0)))),
}


@pytest.fixture(scope="module")
def held() -> tuple[Tensor, pv.Fit]:
    """What a fit of a class that holds the same networks gives."""
    torch.manual_seed(1)
    x = binary()
    return x, pv.fit(Held(), x, engine="eager", **OPTIONS)


def networks(pair: Any) -> list[nn.Sequential]:
    found = [m for root in every_module(pair).values() for m in root.modules() if isinstance(m, nn.Sequential)]
    return sorted({id(m): m for m in found}.values(), key=lambda net: net[-1].out_features)


@pytest.mark.parametrize("name", PAIRS)
def test_modules_are_found_wherever_they_are(name: str, held: tuple[Tensor, pv.Fit], tmp_path: Path) -> None:
    """Fit, questions, saving and loading are those of a class that holds the networks, batch normalisation included."""
    x, wanted = held
    pair = PAIRS[name]()
    assert len(networks(pair)) == 2
    fitted = pv.fit(pair, x, engine="eager", **OPTIONS)
    assert [row["elbo"] for row in fitted.history] == [row["elbo"] for row in wanted.history]
    codes = pv.encode(fitted, x)
    assert torch.equal(codes, pv.encode(wanted, x))
    torch.testing.assert_close(pv.encode(fitted, x[:1]), codes[:1])  # a row alone, without dropout
    assert torch.equal(pv.reconstruct(fitted, x), pv.reconstruct(wanted, x))
    assert all(m.training for net in networks(pair) for m in net.modules())
    loaded = pv.load(pv.save(fitted, tmp_path / "run"), PAIRS[name]())
    assert torch.equal(pv.encode(loaded, x), codes)
    with fitted.scope():
        names = list(named_tensors(pair, buffers=True))
    assert sum(name.endswith("running_mean") for name in names) == 2 and len(names) == 18


@pytest.mark.parametrize("name", ["closures", "a handler"])
def test_a_traced_step_treats_buffers_as_an_eager_one(name: str, held: tuple[Tensor, pv.Fit]) -> None:
    x, wanted = held
    pair = PAIRS[name]()
    fitted = pv.fit(pair, x, engine="traced", **OPTIONS)
    for net, other in zip(networks(pair), networks(wanted.pair), strict=True):
        torch.testing.assert_close(net[1].running_mean, other[1].running_mean)
        assert int(net[1].num_batches_tracked) == int(other[1].num_batches_tracked)
    assert "engine_notes" not in fitted.settings


def test_what_is_reached_is_not_what_is_trained() -> None:
    """A frozen network in a closure is put into evaluation mode and back, and is not trained."""
    frozen, trained = (net.requires_grad_(i == 0) for i, net in enumerate(nets()[::-1]))
    trained.requires_grad_(True)
    frozen.requires_grad_(False)
    before = [p.clone() for p in frozen.parameters()]

    def model(x: Tensor) -> None:
        pyro.module("decoder", trained)
        draw(x, trained)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", lambda: torch.ones(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(frozen(x), scale.exp()).to_event(1))

    pair = pv.Pair(model, guide)
    assert not modules(pair) and set(every_module(pair)) == {"model.trained.", "guide.frozen."}
    x = binary()
    fitted = pv.fit(pair, x, engine="eager", **OPTIONS)
    assert torch.equal(pv.encode(fitted, x), pv.encode(fitted, x)) and frozen.training
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.parameters()))


def test_a_global_of_the_same_name_as_an_attribute_is_not_reached() -> None:
    other = nn.Linear(1, 1)
    scope: dict[str, Any] = {"draw": draw, "encoder": other}
    exec("def model(x, held):\n    draw(x, held.encoder)\n", scope)
    pair = pv.Pair(functools.partial(scope["model"], held=Held()), lambda x: None)
    assert other not in [m for root in every_module(pair).values() for m in root.modules()]


ONE_ROW: dict[str, tuple[Callable[[], Any], Any, dict[str, Any], str]] = {
    "a batch of one": (Held, lambda: binary(5), {"batch_size": 1}, "takes 1 of the 5 rows that have x.*batch_size"),
    "functions": (closures, lambda: binary(5), {"batch_size": 1}, "takes 1 of the 5 rows.*LayerNorm"),
    "one row": (Held, lambda: binary(1), {"batch_size": 1}, "takes 1 of the 1 rows"),
}


class Labelled(Held):
    """x with a label that may be missing, and need not be used."""

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        draw(x, self.decoder)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        infer(x, self.encoder)


def one_labelled() -> dict[str, Tensor]:
    y = labels()
    y[1:] = -1
    return {"x": binary(), "y": y.clamp(max=2)}


ONE_ROW["a group of one"] = (Labelled, one_labelled, {}, "takes 1 of the 1 rows that have x, y.*group_size")


@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.parametrize("name", ONE_ROW)
def test_one_row_a_step_under_batch_normalisation_is_explained(name: str, engine: str) -> None:
    build, data, options, match = ONE_ROW[name]
    torch.manual_seed(1)
    rows = data()
    pv.check_pair(build(), rows)
    with pytest.raises(pv.PairError, match=match):
        pv.fit(build(), rows, engine=engine, **{**OPTIONS, **options})


def test_modules_are_looked_for_once_where_they_are_remembered() -> None:
    decoder, encoder = nets()
    held = {"decoder": decoder}

    def model(x: Tensor) -> None:
        draw(x, held["decoder"])

    pair = pv.Pair(model, lambda x: infer(x, encoder))
    before = every_module(pair)
    with modules_remembered(pair):
        held["more"] = nn.Linear(1, 1)
        assert every_module(pair) == before
        assert every_module(pv.Pair(model, pair.guide)) != before  # of another pair, nothing is remembered
    assert every_module(pair) != before


def test_a_seed_is_that_of_torch_and_leaves_nothing_behind() -> None:
    for seed in (0, 7, -3, 2**40):
        torch.manual_seed(seed)
        expected = torch.rand(3)
        seed_torch(seed)
        assert torch.equal(torch.rand(3), expected)
    queued = len(torch.cuda._queued_calls)
    seed_torch(1)
    assert len(torch.cuda._queued_calls) == queued or torch.accelerator.is_available()


def test_parts_of_modules_are_found_once_each() -> None:
    shared = nn.Linear(2, 2)
    module = nn.Sequential(shared, nn.Sequential(shared, nn.ReLU()))
    module.register_module("none", None)
    found = parts_of(module, shared)
    assert list(found.values()) == list(module.modules()) and list(found) == list(map(id, found.values()))


def test_a_search_for_modules_passes_over_numbers_and_ends_in_large_structures() -> None:
    net = nn.Linear(2, 2)
    history = [float(n) for n in range(2 * MOST_ENTRIES)]
    both = [net, history]
    found, slots = reach(both, ends=False)
    assert [value for _, value in found] == [both, history, net] and not slots
    large = [[n] for n in range(3 * MOST_ENTRIES)]
    assert len(reach(large, ends=False)[0]) <= MOST_ENTRIES
