"""A fit answers with the weights that it trained, or says that they are others now."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.programs import binary, ssvae, vae
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.criticism.prior_as_guide import with_prior_as_guide
from pyrovae.pair.graph import graph_text

OPTIONS: dict[str, Any] = {"epochs": 1, "batch_size": 10, "engine": "eager", "seed": 0, "progress": False}
MATCH = "no longer those of this Fit.*copy.deepcopy.*keep_weights"


def fitted_vae() -> pv.Fit:
    return pv.fit(vae(), binary(), **OPTIONS)


QUESTIONS: dict[str, Callable[[pv.Fit, Path], Any]] = {
    "importance": lambda f, _: pv.importance(f, binary(), 5, proposal="guide"),
    "log_likelihood": lambda f, _: pv.log_likelihood(f, binary(), 5, proposal="guide"),
    "prior_log_likelihood": lambda f, _: pv.prior_log_likelihood(f, binary(), 5),
    "posterior": lambda f, _: pv.posterior(f, binary(), 1, num_particles=5, proposal="guide"),
    "encode": lambda f, _: pv.encode(f, binary()),
    "reconstruct": lambda f, _: pv.reconstruct(f, binary()),
    "decode": lambda f, _: pv.decode(f, torch.zeros(3, 2)),
    "generate": lambda f, _: pv.generate(f, 3),
    "simulate": lambda f, _: pv.simulate(f, 3),
    "kl_by_site": lambda f, _: pv.kl_by_site(f, binary()),
    "save": lambda f, folder: pv.save(f, folder / "stale"),
}


def by_another_fit(fitted: pv.Fit, folder: Path) -> None:
    pv.fit(fitted.pair, 1 - binary(), **OPTIONS)


def by_a_fit_of_a_part(fitted: pv.Fit, folder: Path) -> None:
    other = pv.VAE(fitted.pair.prior, fitted.pair.likelihood, pv.mlp(6, fam.Normal(2), hidden=(4,)))
    pv.fit(other, binary(), **OPTIONS)


def by_loading(fitted: pv.Fit, folder: Path) -> None:
    pv.load(pv.save(fitted_vae(), folder / "other"), fitted.pair)


def by_svi(fitted: pv.Fit, folder: Path) -> None:
    pv.SVI(fitted.pair.model, fitted.pair.guide, pyro.optim.ClippedAdam({"lr": 0.1})).step(binary())


def by_a_fused_optimizer(fitted: pv.Fit, folder: Path) -> None:
    optimizer = torch.optim.Adam(fitted.pair.parameters(), fused=True)
    pv.terms(fitted.pair, {"x": binary()}).sites["x"].p.log_prob.sum().backward()
    optimizer.step()


def by_hand(fitted: pv.Fit, folder: Path) -> None:
    next(fitted.pair.likelihood.parameters()).data[0] += 1e-3


def by_a_new_parameter(fitted: pv.Fit, folder: Path) -> None:
    fitted.pair.encoder = pv.mlp(6, fam.Normal(2), hidden=(3,))


CHANGES = [
    by_another_fit,
    by_a_fit_of_a_part,
    by_loading,
    by_svi,
    by_a_fused_optimizer,
    by_hand,
    by_a_new_parameter,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_noticed(change: Any, tmp_path: Path) -> None:
    fitted = fitted_vae()
    pv.encode(fitted, binary())
    change(fitted, tmp_path)
    with pytest.raises(pv.PairError, match=MATCH):
        pv.encode(fitted, binary())


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_notices(question: str, tmp_path: Path) -> None:
    fitted = fitted_vae()
    QUESTIONS[question](fitted, tmp_path / "fresh")
    by_another_fit(fitted, tmp_path)
    with pytest.raises(pv.PairError, match=MATCH):
        QUESTIONS[question](fitted, tmp_path)
    assert not (tmp_path / "stale" / "weights.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_a_second_fit_answers_and_the_first_refuses(engine: str) -> None:
    pair = ssvae()
    data = {"x": binary(), "y": torch.arange(40) % 3}
    first = pv.fit(pair, data, **{**OPTIONS, "engine": engine})
    second = pv.fit(pair, data, **{**OPTIONS, "engine": engine, "seed": 1})
    pv.classify(second, data, num_samples=5)
    with pytest.raises(pv.PairError, match=MATCH):
        pv.classify(first, data, num_samples=5)


def test_a_prior_as_guide_made_before_notices_too() -> None:
    fitted = fitted_vae()
    made = with_prior_as_guide(fitted)
    pv.importance(made, binary(), 5, proposal="guide")
    by_another_fit(fitted, Path())
    with pytest.raises(pv.PairError, match=MATCH):
        pv.importance(made, binary(), 5, proposal="guide")


def test_functions_share_the_module_that_they_register() -> None:
    net = nn.Linear(6, 6)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(torch.zeros(6)), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        pyro.sample("w", dist.Normal(loc, 1.0), infer={"is_auxiliary": True})

    first = pv.fit(pv.Pair(model, guide), binary(), **OPTIONS)
    pv.generate(first, 3)
    pv.fit(pv.Pair(model, guide), binary(), **OPTIONS)
    with pytest.raises(pv.PairError, match=r"net\$\$\$"):
        pv.generate(first, 3)


def same(fitted: pv.Fit, folder: Path) -> pv.Fit:
    """Things to do with a fit that leave its answers as they are."""
    pair = fitted.pair
    kept = copy.deepcopy(pair.state_dict())
    by_another_fit(fitted, folder)
    pair.load_state_dict(kept)  # put back by hand
    pair.train().eval().to(torch.device("cpu")).requires_grad_(False).requires_grad_(True)
    graph_text(pair, {"x": binary()})
    return fitted


KEPT: dict[str, Callable[[pv.Fit, Path], pv.Fit]] = {
    "put back": same,
    "a copy": lambda f, _: copy.deepcopy(f),
    "pickled": lambda f, _: pickle.loads(pickle.dumps(f)),
    "replaced": lambda f, _: dataclasses.replace(f, info={"a": 1}),
    "loaded": lambda f, folder: pv.load(pv.save(f, folder / "run")),
    "loaded into itself": lambda f, folder: pv.load(pv.save(f, folder / "run"), f.pair) and f,
}


@pytest.mark.parametrize("name", KEPT)
def test_what_leaves_the_weights_is_no_change(name: str, tmp_path: Path) -> None:
    fitted, x = fitted_vae(), binary()
    before = pv.encode(fitted, x)
    assert torch.equal(pv.encode(KEPT[name](fitted, tmp_path), x), before)


def test_a_copy_of_the_pair_is_fitted_apart() -> None:
    first, x = fitted_vae(), binary()
    before = pv.encode(first, x)
    second = pv.fit(copy.deepcopy(first.pair), x, **OPTIONS)
    assert torch.equal(pv.encode(first, x), before) and not torch.equal(pv.encode(second, x), before)


def test_a_change_on_purpose_is_kept(tmp_path: Path) -> None:
    fitted = fitted_vae()
    by_hand(fitted, tmp_path)
    fitted.keep_weights()
    codes = pv.decode(fitted, torch.zeros(1, 2))
    assert torch.equal(pv.decode(pv.load(pv.save(fitted, tmp_path / "run")), torch.zeros(1, 2)), codes)


def test_callbacks_stopping_and_resuming_are_no_change(tmp_path: Path) -> None:
    """Questions during a fit, after an early stop with the best weights, and after resuming."""
    x, options = binary(), {**OPTIONS, "validation": 0.25}
    asked: list[Any] = []

    def ask(fitted: pv.Fit) -> None:
        asked.append(pv.encode(fitted, x))

    pair = vae()
    stopped = pv.fit(pair, x, patience=1, callbacks=[ask], checkpoint=tmp_path / "run", **{**options, "epochs": 3})
    pv.encode(stopped, x)
    first = pv.fit(vae(), x, checkpoint=tmp_path / "more", **options)
    more = pv.fit(first.pair, x, checkpoint=tmp_path / "more", resume=True, **{**options, "epochs": 2})
    assert len(asked) >= 2 and torch.equal(pv.encode(more, x), pv.encode(pv.load(tmp_path / "more"), x))
    with pytest.raises(pv.PairError, match=MATCH):
        pv.encode(first, x)


def test_buffers_are_for_their_owner_to_change() -> None:
    """A temperature in a buffer, or running means, may be set between questions."""
    pair = vae()
    pair.register_buffer("temperature", torch.ones(()))
    fitted = pv.fit(pair, binary(), **OPTIONS)
    pair.temperature.fill_(2.0)
    pv.encode(fitted, binary())


def test_a_parameter_of_one_element_may_have_a_stride_of_0() -> None:
    """As a clone of an expanded number has; `contiguous` leaves it so."""
    one = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.OrderedLogistic(1, 3)), pv.mlp(1, fam.Normal(2)))
    assert one.likelihood.family.first.stride() == (1,)
    one.likelihood.family.first = nn.Parameter(torch.tensor(-0.7).expand(1).clone())
    assert one.likelihood.family.first.stride() == (0,)
    fitted = pv.fit(one, torch.arange(30.0).remainder(3).unsqueeze(1), **OPTIONS)
    assert pv.encode(fitted, torch.ones(2, 1)).shape == (2, 2)
