"""A table whose columns have other names, or another order, than those of the fit is refused by all that takes one."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pyrovae as pv
from pyrovae import families as fam

QUICK: dict[str, Any] = {"epochs": 1, "engine": "eager", "progress": False, "seed": 0}
GUIDE: dict[str, Any] = {"num_samples": 4, "proposal": "guide", "seed": 0}
X = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["a", "b", "c"])
Y = torch.tensor([0, 1] * 20)


def vae() -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Normal(3)), pv.mlp(3, fam.Normal(2)))


@cache
def fitted() -> Any:
    return pv.fit(vae(), X, **QUICK)


@cache
def given() -> Any:
    torch.manual_seed(0)
    likelihood, encoder = pv.mlp((2, 3), fam.Normal(3)), pv.mlp((3, 3), fam.Normal(2))
    pair = pv.CVAE(torch.nn.Identity(), pv.priors.StandardNormal(2), likelihood, encoder)
    return pv.fit(pair, {"x": X, "c": X}, **QUICK)


@cache
def by_row(kind: str) -> Any:
    return getattr(pv, kind)(vae(), X)


def named() -> Any:
    schema = pv.tables.infer(X)
    return pv.tables.vae(schema, schema.encode(X), hidden=(4,))


TAKE: dict[str, Callable[[Any], Any]] = {
    "encode": lambda x: pv.encode(fitted(), x),
    "log_likelihood": lambda x: pv.log_likelihood(fitted(), x, **GUIDE),
    "impute": lambda x: pv.impute(fitted(), x, 2, num_particles=4, proposal="guide"),
    "restore": lambda x: pv.restore(fitted(), x, pv.corruptions.Noise(0.1), 2, num_particles=4, proposal="guide"),
    "anomaly_score": lambda x: pv.anomaly_score(fitted(), x, **GUIDE),
    "gradient_variance": lambda x: pv.gradient_variance(fitted(), x, [pv.Trace_ELBO()], num_batches=4, batch_size=8),
    "swag": lambda x: pv.swag(fitted(), x, engine="eager", progress=False, epochs=2, rank=2),
    "validation rows": lambda x: pv.fit(vae(), X, validation=x, **QUICK),
    "generate": lambda x: pv.generate(given(), 40, given={"c": x}),
    "simulate": lambda x: pv.simulate(given(), 40, given={"c": x}),
    "decode": lambda x: pv.decode(given(), torch.zeros(40, 2), given={"c": x}),
    "reconstruct": lambda x: pv.reconstruct(given(), {"x": X, "c": x}),
    "linear_em": lambda x: pv.encode(pv.linear_em(X, 1, epochs=2), x),
    "per_row": lambda x: by_row("per_row").indexed(x),
    "monte_carlo_em": lambda x: by_row("monte_carlo_em").indexed(x),
    "a fit of per_row": lambda x: pv.encode(
        pv.fit(copy.deepcopy(by_row("per_row")), by_row("per_row").indexed(X), **QUICK), x
    ),
    "a model of a schema": lambda x: pv.fit(named(), x, **QUICK),
    "check_pair": lambda x: pv.check_pair(named(), x),
    "Standardize": lambda x: pv.data.Standardize.fit(X).apply(x),
    "LabelField": lambda x: pv.LabelField(X, Y)(x),
    "LabelProcess": lambda x: pv.LabelProcess(X, Y)(x),
    "LabelMixture": lambda x: pv.LabelMixture(X, Y)(x),
    "LabelEnsemble": lambda x: pv.LabelEnsemble(X, Y)(x),
}


@pytest.mark.parametrize("name", TAKE)
def test_columns_never_change_places_without_a_word(name: str) -> None:
    take = TAKE[name]
    take(X)
    with pytest.raises(pv.DataError, match="in another order: 'c', 'a', 'b' in place of 'a', 'b', 'c'"):
        take(X[["c", "a", "b"]])
    with pytest.raises(pv.DataError, match="it lacks 'a' and has 'A' besides"):
        take(X.rename(columns={"a": "A"}))


@pytest.mark.parametrize("name", ["a model of a schema", "encode", "LabelMixture", "generate"])
def test_columns_without_names_are_read_by_places(name: str) -> None:
    TAKE[name](X.to_numpy().astype(np.float32))
    TAKE[name](X.set_axis([0, 1, 2], axis=1))
