"""Validation rows are judged by the bound that the fit ascends."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.pairs import ENUMERATED, TABLE
from support.programs import binary, labels, ssvae
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.fitted.fitted import FIXED_NOISE_SEED, Fit
from pyrovae.pair.layout import describe

STILL: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-14, "seed": 0, "engine": "eager", "progress": False}
CHOSEN = ["plain", "inner_plate", "masked", "enumerated", "deep_mixture", "columns"]
ROWS = {row.name: row for row in [*ENUMERATED, *TABLE] if row.name in CHOSEN}


def bound(pair: Any, batch: dict[str, Tensor], loss: Any) -> float:
    """Of all rows together, with the noise that validation rows always get, nats per row."""
    layout = describe(pair, batch)
    torch.manual_seed(FIXED_NOISE_SEED)
    return float(loss(pair, batch, layout=layout).elbo / len(batch["x"]))


def validated(pair: Any, data: Any, loss: Any, **options: Any) -> float:
    fitted = pv.fit(pair, data, loss=loss, validation=data, **{**STILL, **options})
    return fitted.history[0]["validation_elbo"]


@pytest.mark.parametrize("particles", [1, 7])
@pytest.mark.parametrize("name", ROWS)
def test_it_is_the_bound_of_the_loss(name: str, particles: int) -> None:
    pair, batch = ROWS[name].build()
    loss = pv.IWELBO(particles)
    if name == "plain" and particles > 1:
        assert validated(pair, batch, pv.RWS(particles)) == pytest.approx(bound(pair, batch, loss), rel=1e-9)
    assert validated(pair, batch, loss) == pytest.approx(bound(pair, batch, loss), rel=1e-9)


class Displaced(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1); the guide is the posterior, N(x/2, 1/2), moved by a parameter."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + self.shift, math.sqrt(0.5)))


def test_with_many_draws_it_is_log_p() -> None:
    """The weights have variance exp(2) - 1: the error of 4000 draws and 40 rows is 0.006 nats. The ELBO is 1 nat below."""
    x = torch.linspace(-2, 2, 40, dtype=torch.float64)
    log_p = dist.Normal(0.0, math.sqrt(2)).log_prob(x).mean().item()
    assert validated(Displaced(1.0), x, pv.IWELBO(4000)) == pytest.approx(log_p, abs=0.03)


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_rows_of_several_groups_and_chunks_count_alike(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of 7 rows the noise is other noise: 500 draws leave 0.02 nats."""
    data = {"x": binary(), "y": labels(known=12)}
    pair = ssvae()
    whole = validated(pair, data, pv.IWELBO(500), engine=engine)
    sizes = []
    monkeypatch.setattr(Fit, "chunk_size", lambda self, batch, num=1: sizes.append(num) or 7)
    assert validated(pair, data, pv.IWELBO(500), engine=engine) == pytest.approx(whole, abs=0.02)
    assert 500 in sizes  # so that as many rows fit as there is memory for, with all draws of each


@pytest.mark.parametrize("name", ["global_local", "global_discrete"])
def test_rows_that_share_a_latent_variable_are_judged_by_their_elbo(name: str) -> None:
    pair, batch = next(row for row in TABLE if row.name == name).build()
    how: dict[str, Any] = {"batch_size": len(batch["x"])}
    elbo = validated(pair, batch, pv.Trace_ELBO(), **how)
    assert validated(pair, batch, pv.IWELBO(7), **how) == pytest.approx(elbo, rel=1e-9)


def test_patience_and_the_best_epoch_go_by_it() -> None:
    """The guide is drawn back to the posterior; with as many draws, that changes the bound by far less than the ELBO."""
    x = torch.linspace(-2, 2, 40, dtype=torch.float64)
    stopped = {}
    for loss in (pv.IWELBO(100), pv.Trace_ELBO()):
        fitted = pv.fit(
            Displaced(0.5), x, loss=loss, validation=x, patience=3, **{**STILL, "epochs": 40, "learning_rate": 0.02}
        )
        scores = [row["validation_elbo"] for row in fitted.history]
        stopped[repr(loss)] = len(scores)
        best = max(range(len(scores)), key=scores.__getitem__)
        assert fitted.settings["best_epoch"] == best + 1
        torch.manual_seed(FIXED_NOISE_SEED)
        assert scores[best] == pytest.approx(bound(fitted.pair, {"x": x}, loss), rel=1e-9)
    assert len(set(stopped.values())) == 2
