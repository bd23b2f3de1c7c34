"""Wake-sleep and reweighted wake-sleep: pairs and options that they cannot use are refused, before the first step of a fit."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.programs import binary, categorical
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam


class Odd(nn.Module):
    """A pair that one attribute makes unfit for a sleep phase."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.loc, self.encode = what, nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor) -> None:
        if self.what == "global":
            pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if self.what == "reads":
                z = z + x.mean()
            if self.what == "function":
                pyro.sample("x", dist.Normal(z + self.loc, 1.0), obs=2 * x)
            elif self.what == "twice":
                pyro.sample("x", dist.Normal(z + self.loc, 1.0), obs=x)
                pyro.sample("again", dist.Normal(z, 1.0), obs=x)
            elif self.what == "no sampler":
                pyro.sample("x", _NoSampler(z + self.loc), obs=x)
            else:
                pyro.sample("x", dist.Normal(z + self.loc, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        if self.what == "global":
            pyro.sample("w", dist.Normal(self.encode, 1.0))
        with pyro.plate("data", len(x)):
            if self.what == "auxiliary":
                pyro.sample("a", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
            if self.what == "point":
                pyro.sample("z", dist.Delta(self.encode * x))
            elif self.what == "positive":
                pyro.sample("z", dist.LogNormal(self.encode * x, 1.0))
            else:
                infer = {"objective_only": True} if self.what == "marked" else {}
                pyro.sample("z", dist.Normal(self.encode * x, 1.0), infer=infer)


class _NoSampler(dist.Normal):  # type: ignore[misc]  # Pyro has no types
    def __init__(self, loc: Tensor) -> None:
        super().__init__(loc, 1.0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return _NoSampler(self.loc.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        raise NotImplementedError("this density has no sampler")


REFUSED = {
    "global": "All rows share 'w'",
    "auxiliary": "The guide draws 'a', which the model does not have",
    "reads": "reads 'x' in another way than by obs=",
    "function": "site 'x' does not observe an argument as it is",
    "twice": "site 'again' does not observe an argument as it is",
    "no sampler": "this density has no sampler",
    "point": "gives site 'z' of a row that the model draws the log-density -inf",
    "positive": "log-density nan.*in place of LogNormal",
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("loss", [pv.WakeSleep(), pv.RWS(2, sleep=0.5)], ids=repr)
def test_pairs_without_a_sleep_phase_are_refused_before_the_first_step(what: str, loss: Any) -> None:
    pair = Odd(what)
    with pytest.raises(pv.PairError, match=REFUSED[what]):
        pv.fit(pair, torch.randn(8), epochs=1, loss=loss, progress=False)
    assert pair.loc.item() == 0.0 and pair.encode.item() == 0.0


def test_a_site_that_observes_its_argument_transposed_is_refused() -> None:
    """Drawn values in the form of the site would be taken for those of the argument, though both are 2 x 2."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None, None] + torch.zeros(2, 2), 1.0).to_event(2), obs=x.mT)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("a", torch.ones(())) * x.mean((-1, -2)), 1.0))

    with pytest.raises(pv.PairError, match="observes 'x' in another form"):
        pv.fit(pv.Pair(model, guide), torch.randn(6, 2, 2), epochs=1, loss=pv.WakeSleep(), progress=False)


@pytest.mark.filterwarnings("ignore:No gradient reaches")
@pytest.mark.parametrize("what", ["global", "reads", "function", "twice", "no sampler"])
def test_without_a_sleep_phase_they_are_fitted(what: str) -> None:
    fitted = pv.fit(Odd(what), torch.randn(8), epochs=2, loss=pv.RWS(3), progress=False)
    assert torch.isfinite(torch.tensor(fitted.history[-1]["elbo"]))


def test_options_that_are_refused() -> None:
    x = torch.randn(8)
    for sleep in (-0.1, 1.1, float("nan"), "wake", True, None):
        with pytest.raises(pv.OptionError, match="sleep.* a number from 0 to 1"):
            pv.RWS(5, sleep)  # type: ignore[arg-type]
    for loss in (pv.RWS, pv.WakeSleep):
        with pytest.raises(pv.OptionError, match="num_particles must be at least 1"):
            loss(0)
        for number in (2.5, True, "3"):
            with pytest.raises(pv.OptionError, match="a whole number of at least 1, got"):
                loss(number)
    with pytest.raises(pv.OptionError, match="a single one of 'z' would teach the guide nothing"):
        pv.fit(Odd("plain"), x, epochs=1, loss=pv.RWS(1), progress=False)
    with pytest.raises(pv.OptionError, match="a single one of 'z' would teach the guide nothing"):
        pv.SVI(Odd("plain").model, Odd("plain").guide, pyro.optim.Adam({"lr": 0.1}), pv.RWS(1), engine="eager").step(x)
    warm_up = pv.schedules.kl_warmup(1.0)
    for loss in (pv.RWS(2), pv.WakeSleep()):
        with pytest.raises(pv.OptionError, match="neither has a KL term to weigh"):
            pv.fit(Odd("plain"), x, epochs=1, loss=loss, schedule=warm_up, progress=False)
    with pytest.raises(pv.PairError, match="puts site 'z' at a point"):
        pv.fit(Odd("point"), x, epochs=1, loss=pv.RWS(2), progress=False)
    for loss in (pv.RWS(2), pv.WakeSleep()):
        assert loss(categorical(fam.RelaxedOneHotCategorical((2, 3), hard=True)), {"x": binary()}).elbo.isfinite()
        with pytest.raises(pv.PairError, match="Draws of site 'z' are relaxed"):
            loss(categorical(fam.RelaxedOneHotCategorical((2, 3))), {"x": binary()})
    with pytest.raises(pv.PairError, match="'z' is latent and marked objective_only"):
        pv.RWS(2)(Odd("marked"), {"x": x})
    for loss in (pv.RWS(2, 0.5), pv.WakeSleep()):
        with pytest.raises(pv.OptionError, match="does not know what are data"):
            pv.SVI(Odd("plain").model, Odd("plain").guide, pyro.optim.Adam({"lr": 0.1}), loss)
    with pytest.raises(pv.PairError, match="needs all rows in one batch"):
        pv.RWS(2)(Odd("global"), {"x": x}, num_rows=80)
