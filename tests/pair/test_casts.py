"""Rows of any dtype: what the pair does not compute with is cast, everything else is left as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.pair.casts import find_casts

X = np.arange(40).reshape(10, 4) % 2
HOW: dict[str, Any] = {"epochs": 1, "batch_size": 5, "seed": 0, "engine": "eager", "progress": False}


def vae() -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))


GIVEN: dict[str, Any] = {
    "bool": X.astype(bool),
    "int8": X.astype(np.int8),
    "uint16": X.astype(np.uint16),
    "float64": X.astype(np.float64),
    "list of lists": X.tolist(),
    "DataFrame": pd.DataFrame(X),
    "tensor of bools": torch.tensor(X).bool(),
    "tensor of uint8": torch.tensor(X).to(torch.uint8),
    "tensor of float64": torch.tensor(X).double(),
    "tensor of bfloat16": torch.tensor(X).bfloat16(),
}


@pytest.fixture(scope="module")
def floats() -> Tensor:
    return pv.encode(pv.fit(vae(), torch.tensor(X).float(), **HOW), torch.tensor(X).float())


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_rows_of_any_dtype_are_as_those_of_the_dtype_of_the_weights(given: Any, floats: Tensor) -> None:
    before = repr(given)
    pv.check_pair(vae(), given)
    fitted = pv.fit(vae(), given, validation=given, **HOW)
    assert torch.equal(pv.encode(fitted, given), floats)
    assert fitted.layout.arguments["x"][1] == torch.float32
    same = pv.log_likelihood(fitted, given, num_samples=2, proposal="guide", seed=0)
    assert torch.equal(
        same, pv.log_likelihood(fitted, torch.tensor(X).float(), num_samples=2, proposal="guide", seed=0)
    )
    assert repr(given) == before


def test_a_fit_to_floats_answers_about_integers(floats: Tensor) -> None:
    fitted = pv.fit(vae(), torch.tensor(X).float(), **HOW)
    assert all(torch.equal(pv.encode(fitted, given), floats) for given in GIVEN.values())


def test_rows_that_are_loaded_or_come_are_cast_too(floats: Tensor) -> None:
    rows = torch.tensor(X)
    loaded = pv.fit(vae(), torch.utils.data.TensorDataset(rows), **HOW)
    assert torch.equal(pv.encode(loaded, rows), floats)

    def batches() -> Iterator[Tensor]:
        yield from rows.split(5)

    come = pv.fit(vae(), batches, steps=3, **{k: v for k, v in HOW.items() if k not in ("epochs", "batch_size")})
    assert come.layout.arguments["x"][1] == torch.float32


class Classes(nn.Module):
    """Counts x and a class y, which stays an integer; perhaps further counts, which may be unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder, self.loc = nn.Embedding(3, 2), nn.Linear(4, 2), nn.Linear(2, 4)

    def model(self, x: Tensor, y: Tensor, w: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.embed(y), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.loc(z)).to_event(1), obs=x)
            if w is not None:
                pyro.sample("w", dist.Normal(self.loc(z), 1.0).to_event(1), obs=w)

    def guide(self, x: Tensor, y: Tensor, w: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            both = x if w is None else x + self.loc(self.encoder(w))
            pyro.sample("z", dist.Normal(self.encoder(both), 1.0).to_event(1))


def test_only_what_the_pair_cannot_take_is_cast() -> None:
    x, y = torch.tensor(X), torch.arange(10) % 3
    assert find_casts(Classes(), {"x": x, "y": y}) == {"x": torch.float32}
    assert find_casts(Classes(), {"x": x.float(), "y": y}) == {}
    assert find_casts(Classes().double(), {"x": x, "y": y}) == {"x": torch.float64}


def test_rows_of_integers_that_are_unknown_stay_so() -> None:
    w = torch.tensor(X) + 3
    w[4:] = -1
    fitted = pv.fit(Classes(), {"x": torch.tensor(X), "y": torch.arange(10) % 3, "w": w}, **HOW)
    assert fitted.arguments["w"][1] == torch.float32 and fitted.arguments["y"][1] == torch.int64
    assert sorted(len(layout.arguments) for layout in fitted.layouts) == [2, 3]


def test_another_error_is_not_hidden_by_the_cast() -> None:
    with pytest.raises(pv.DataError, match="outside the support of Bernoulli"):
        pv.fit(vae(), X * 7, **HOW)
    with pytest.raises(pv.DataError, match="beyond float32"):
        pv.fit(vae(), torch.full((10, 4), 1e300, dtype=torch.float64), **HOW)
    with pytest.raises(pv.PyrovaeError, match=r"rows of shape \(\*batch, 4\), got \("):
        pv.fit(vae(), X[:, :3], **HOW)


def test_to_find_casts_leaves_no_trace() -> None:
    torch.manual_seed(3)
    state, pair = torch.get_rng_state(), vae()
    torch.set_rng_state(state)
    find_casts(pair, {"x": torch.tensor(X)})
    assert torch.equal(torch.get_rng_state(), state)
    assert pair.training and not pyro.get_param_store().keys()
