"""A frozen part: a copy that computes the same, learns nothing, counts nothing, and stays so in a run folder."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.programs import binary, vae
from torch import nn

import pyrovae as pv
import pyrovae.families as fam


def counting() -> pv.Conditional:
    """A decoder with all that changes without a gradient: running means, and dropout."""
    torch.manual_seed(0)
    head = pv.mlp(2, fam.Bernoulli(6), hidden=(8,), activation=pv.nets.ReLUDropout(0.5))
    return pv.Conditional(nn.Sequential(nn.BatchNorm1d(2), head.net), head.family)


def tensors(part: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in part.state_dict().items()}


def test_it_is_a_copy_that_computes_the_same() -> None:
    part = counting()
    before = tensors(part)
    kept = pv.frozen(part)
    z = torch.randn(5, 2)
    assert type(kept) is type(part) and kept is not part
    assert torch.equal(kept(z).mean, copy.deepcopy(part).eval()(z).mean)
    assert not any(p.requires_grad for p in kept.parameters()) and not any(m.training for m in kept.modules())
    assert all(p.requires_grad for p in part.parameters()) and all(m.training for m in part.modules())
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())


@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.filterwarnings("error:No gradient")
def test_a_fit_leaves_it_as_it_is_and_moves_the_rest(engine: str) -> None:
    part = counting()
    kept = pv.frozen(part)
    encoder = pv.mlp(6, fam.Normal(2), hidden=(8,))
    before, others = tensors(kept), tensors(encoder)
    pair = pv.VAE(pv.priors.StandardNormal(2), kept, encoder)
    fitted = pv.fit(pair, binary(), epochs=2, batch_size=20, seed=0, engine=engine, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in kept.state_dict().items())
    assert not any(torch.equal(value, others[name]) for name, value in encoder.state_dict().items())
    assert not any(name.startswith("likelihood") for name in fitted.settings["optimizer"])
    again = pv.VAE(pv.priors.StandardNormal(2), part, encoder)  # the part itself goes on learning
    moved = tensors(part)
    pv.fit(again, binary(), epochs=1, batch_size=20, seed=0, engine=engine, progress=False)
    assert not any(torch.equal(value, moved[name]) for name, value in part.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in kept.state_dict().items())


def test_it_stays_frozen_in_a_run_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = vae()
    pair = pv.VAE(whole.prior, pv.frozen(whole.likelihood), whole.encoder)
    fitted = pv.fit(pair, binary(), epochs=1, batch_size=20, seed=0, engine="eager", progress=False)
    folder = pv.save(fitted, tmp_path / "run")
    loaded: Any = pv.load(folder).pair
    for one, other in zip(pair.named_modules(), loaded.named_modules()):
        assert one[0] == other[0] and one[1].training == other[1].training, one[0]
    learning = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in pair.named_parameters() if name.startswith("encoder")}
    before = tensors(loaded.likelihood)
    pv.fit(loaded, binary(), epochs=1, batch_size=20, seed=1, engine="eager", progress=False)
    assert all(torch.equal(value, before[name]) for name, value in loaded.likelihood.state_dict().items())
    with fitted.scope():  # where all modules are in evaluation mode
        inside: Any = pv.load(pv.save(fitted, tmp_path / "inside")).pair
    assert inside.encoder.training and not inside.likelihood.training
    given = vae()  # a pair that the caller gives stays as he made it
    pv.load(folder, given)
    assert all(p.requires_grad for p in given.parameters()) and all(m.training for m in given.modules())


@pytest.mark.parametrize("part", [lambda: torch.distributions.Normal(0.0, 1.0), lambda: vae().model, lambda: None])
def test_what_is_no_module_is_refused(part: Callable[[], Any]) -> None:
    with pytest.raises(pv.OptionError, match="frozen takes a module"):
        pv.frozen(part())
