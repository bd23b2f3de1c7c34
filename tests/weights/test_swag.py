"""SWAG: moments of the weights that were visited, by hand, as a posterior like any other."""

from pathlib import Path

import pytest
import torch
from support.programs import vae

import pyrovae as pv
from pyrovae.errors import OptionError


def test_moments_are_those_of_the_weights_at_the_ends_of_epochs(tmp_path: Path) -> None:
    x = torch.bernoulli(torch.full((40, 6), 0.4))
    fitted = pv.fit(vae(), x, epochs=1, batch_size=20, seed=0, engine="eager", progress=False)
    visited: list[torch.Tensor] = []

    def look(now: pv.Fit) -> None:
        visited.append(torch.cat([p.detach().flatten() for p in now.pair.parameters()]).double())

    options = {"batch_size": 20, "seed": 1, "engine": "eager", "progress": False}
    around = pv.swag(fitted, x, epochs=6, rank=4, learning_rate=0.05, callbacks=[look], **options)
    fitted.check_weights()  # it went on with a copy
    weights = torch.stack(visited)
    with around.scope():
        q = around.pair.approximation({name: one.parameter for name, one in around.pair.chosen.items()})
    until = torch.stack([weights[: k + 1].mean(0) for k in range(6)])
    deviations = (weights - until)[-4:].T
    variance = weights.var(0, correction=0)
    assert torch.allclose(q.loc.double(), weights.mean(0), atol=1e-6)
    wanted = variance.diag() / 2 + deviations @ deviations.T / (2 * 3)
    assert torch.allclose(q.covariance_matrix.double(), wanted, rtol=1e-3, atol=1e-9)
    assert variance.sqrt().mean() > 1e-3  # it has moved
    loaded = pv.load(pv.save(around, tmp_path / "run"))
    answers = [pv.log_likelihood(one, x, 20, proposal="guide", seed=0) for one in (around, loaded)]
    assert torch.equal(*answers)
    assert len(around.history) == 6 and pv.encode(around, x, num_samples=3).shape == (40, 2)


def test_a_fit_that_stops_early_has_the_covariance_of_the_epochs_visited() -> None:
    """q(w) of R filled columns is the same, however many more there is room for."""
    torch.manual_seed(0)
    visited, zero = torch.randn(3, 5), {"w": torch.zeros(5)}
    wide, narrow = (pv.weights.Visited(rank)(zero) for rank in (20, 3))
    for one in (wide, narrow):
        for weights in visited:
            one.visit(weights)  # type: ignore[operator]
    assert torch.allclose(wide(zero).covariance_matrix, narrow(zero).covariance_matrix)
    deviations = torch.stack([visited[k] - visited[: k + 1].mean(0) for k in range(3)], 1)
    wanted = visited.var(0, correction=0).diag() / 2 + deviations @ deviations.T / 4
    assert torch.allclose(wide(zero).covariance_matrix, wanted, atol=1e-6)


def test_what_it_cannot_go_on_with(tmp_path: Path) -> None:
    x = torch.bernoulli(torch.full((40, 6), 0.4))
    fitted = pv.fit(vae(), x, epochs=1, engine="eager", progress=False)
    for wrong in ({"epochs": 1}, {"epochs": 2.5}, {"rank": "3"}, {"rank": 1}, {"epochs": True}):
        with pytest.raises(OptionError, match="at least 2"):
            pv.swag(fitted, x, **wrong)  # type: ignore[arg-type]
    for unsafe in ({"checkpoint": tmp_path / "run"}, {"resume": True}, {"force": True}, {"checkpoint_every": 1.0}):
        with pytest.raises(OptionError, match=r"pv\.save"):
            pv.swag(fitted, x, epochs=2, **unsafe)
    assert not (tmp_path / "run").exists()
    with pytest.raises(OptionError, match="no option 'hide'"):
        pv.swag(fitted, x, hide="*.bias")
    with pytest.raises(OptionError, match="asked of a fit"):
        pv.swag(fitted.pair, x)  # type: ignore[arg-type]
    options = {"engine": "eager", "progress": False}
    with pytest.raises(OptionError, match="stopped after 1"):
        pv.swag(fitted, x, epochs=9, callbacks=[lambda _: True], **options)
    around = pv.swag(fitted, x, epochs=2, **options)
    with pytest.raises(OptionError, match="latent variables already"):
        pv.swag(around, x, epochs=2)
    model = fitted.pair
    functions = pv.fit(pv.Pair(model.model, model.guide), x, epochs=1, engine="eager", progress=False)
    with pytest.raises(OptionError, match="must be a module"):
        pv.swag(functions, x)
