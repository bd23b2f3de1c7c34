"""Columns far from the numbers that a likelihood expects: one warning that names them and the cure, and no false alarm."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

HOW: dict[str, Any] = {"epochs": 1, "batch_size": 30, "seed": 0, "engine": "eager", "progress": False}
NORMAL: np.ndarray = np.random.default_rng(0).normal(size=(90, 4))


def vae(family: fam.Family | None = None, columns: int = 4, encoder: Any = None) -> pv.VAE:
    torch.manual_seed(0)
    likelihood = pv.observed_only(pv.mlp(1, family or fam.Normal(columns), hidden=(4,)))
    seen = pv.Conditional(pv.nets.WithMask(pv.nets.MLP((columns, columns), (2, 1), hidden=(4,))), fam.Normal(1))
    return pv.VAE(pv.priors.StandardNormal(1), likelihood, encoder=encoder or seen)


def with_gaps(x: np.ndarray) -> np.ndarray:
    return np.where(np.arange(x.size).reshape(x.shape) % 7 == 0, np.nan, x)


COLUMNS = pd.DataFrame(NORMAL, columns=["age", "bmi", "income", "dose"])
FAR: dict[str, tuple[Any, str]] = {
    "a mean": (NORMAL + np.array([0, 0, 1000, 0]), r"1 of 4 columns, 2 \(1e\+03 ± 1.0\d\)"),
    "large": (NORMAL * [1, 1, 1e4, 1], r"1 of 4 columns, 2 \("),
    "small": (NORMAL * [1, 1, 1, 1e-3], r"1 of 4 columns, 3 \("),
    "means of some fifty": (NORMAL + np.array([50, 1, 1, -60]), r"2 of 4 columns, 0 \(50.* 3 \(-59"),
    "all of them": (NORMAL * 1e4, r"4 of 4 columns, 0 .* 1 .* 2 .* 3 "),
    "integers": ((NORMAL * 1e4).astype(np.int64), r"4 of 4 columns"),
    "float64 as a tensor": (torch.tensor(NORMAL) + 1e6, r"4 of 4 columns"),
    "a constant": (np.where([True, False, False, False], 5e4, NORMAL), r"1 of 4 columns, 0 \(5e\+04 ± 0\)"),
    "a huge offset": (NORMAL + np.array([1e9, 0, 0, 0]), r"1 of 4 columns, 0 \(1e\+09"),
    "gaps": (with_gaps(NORMAL * [1, 1e4, 1, 1]), r"1 of 4 columns, 1 \("),
    "names": (COLUMNS * [1, 1, 1e5, 1e-4], r"2 of 4 columns, 'income' \(.*, 'dose' \("),
    "a sorted table": (np.sort(NORMAL, 0) * [1, 1, 1e-3, 1], r"1 of 4 columns, 2 \("),
}


@pytest.mark.parametrize(("given", "said"), FAR.values(), ids=FAR)
def test_one_warning_names_the_columns_their_scale_and_the_cure(given: Any, said: str) -> None:
    before = repr(given)
    with pytest.warns(UserWarning, match=said + ".* pv.data.Standardize.fit") as caught:
        pv.fit(vae(), given, **HOW)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert repr(given) == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.fit(vae(), pv.data.Standardize.fit(given).apply(given), **HOW)  # the cure is one


@pytest.mark.parametrize(
    ("given", "said"), [FAR[name] for name in FAR if "sorted" not in name], ids=[n for n in FAR if "sorted" not in n]
)
def test_check_pair_says_the_same_of_the_rows_it_is_given(given: Any, said: str) -> None:
    with pytest.warns(UserWarning, match=said + ".* pv.data.Standardize.fit") as caught:
        pv.check_pair(vae(), given)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.check_pair(vae(), given[:19])  # too few to judge by
        pv.check_pair(vae(), pv.data.Standardize.fit(given).apply(given))


def test_the_first_rows_of_a_sorted_table_are_not_called_narrow_by_check_pair() -> None:
    narrow = np.sort(NORMAL, 0) * [1, 1, 1e-3, 1]  # as it is, if these are all rows; who knows?
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.check_pair(vae(), narrow)
    with pytest.warns(UserWarning, match=r"1 of 4 columns, 2 \("):
        pv.check_pair(vae(), narrow + np.array([0, 0, 1e3, 0]))


NEAR: dict[str, tuple[Any, pv.VAE]] = {
    "standardised": (NORMAL, vae()),
    "with gaps": (with_gaps(NORMAL), vae()),
    "constant": (np.where([True, False, False, False], 3.0, NORMAL), vae()),
    "somewhat small": (NORMAL * 0.04, vae()),
    "grey values from 0 to 16": (np.arange(360).reshape(90, 4) * 7 % 17, vae()),
    "sorted": (np.sort(NORMAL, 0) * 0.2, vae()),
    "pixels in [0, 1], dark at the border": ((NORMAL > 1) * [1.0, 0.5, 0.0, 0.0] + (np.eye(90, 4) * 0.004), vae()),
    "counts": (np.random.default_rng(0).poisson(1e4, (90, 4)).astype(float), vae(fam.Poisson(4))),
    "positive": (np.exp(NORMAL + 9), vae(fam.LogNormal(4))),
    "a scale of its own": (NORMAL * 5e3, vae(fam.Normal(4, scale=4e3))),
    "units of its own": (
        NORMAL * 1e5 + 1e6,
        vae(fam.RoundedNormal(4, centre=1e6, spread=1e5)),
    ),
}


@pytest.mark.parametrize(("given", "pair"), NEAR.values(), ids=NEAR)
def test_there_is_no_false_alarm(given: Any, pair: pv.VAE) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.fit(pair, given, **HOW)
        pv.check_pair(pair, given)


def test_a_number_beside_the_rows_and_images_have_a_cure_of_their_own() -> None:
    regression = pv.Regression(torch.nn.Identity(), pv.mlp(4, fam.Normal(()), hidden=()))
    number = torch.tensor(NORMAL[:, 0] * 300 + 2e3)
    with pytest.warns(UserWarning, match=r"learn: .*e\+03 ± 2\d\d\. .*fit to \(x - .*\) / 2\d\d; .* minus 1 log"):
        pv.fit(regression, {"x": number, "c": torch.tensor(NORMAL)}, **HOW)
    images = torch.tensor(NORMAL).reshape(90, 2, 2) * 60 + 1000
    flat = pv.Conditional(torch.nn.Sequential(torch.nn.Flatten(-2), pv.nets.MLP(4, (2, 1), hidden=(4,))), fam.Normal(1))
    pair = pv.VAE(pv.priors.StandardNormal(1), pv.mlp(1, fam.Normal((2, 2)), hidden=(4,)), encoder=flat)
    with pytest.warns(UserWarning, match=r"4 of 4 elements of a row, the first .* minus 4 log\(6\d\.\d\) nats a row"):
        pv.fit(pair, images, **HOW)


def test_what_a_transform_makes_is_what_counts() -> None:
    def standardise(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": (batch["x"] - 1e3) / 1e2}

    far = torch.tensor(NORMAL).float() * 1e2 + 1e3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.fit(vae(), far, transform=standardise, **HOW)
    with pytest.warns(UserWarning, match="Let the transform standardise 'x'"):
        pv.fit(vae(), far * 1e4, transform=standardise, **HOW)


def test_a_pair_of_functions_and_a_latent_site_far_away() -> None:
    """A latent site may be anywhere, and so may a site that belongs to no row."""

    def model(x: Tensor) -> None:
        far = pyro.sample("far", pyro.distributions.Normal(torch.tensor(1e6), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(1e6, 1.0))
            pyro.sample("x", pyro.distributions.Normal(z - far, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("far", pyro.distributions.Normal(pyro.param("f", torch.tensor(1e6)), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(1e6 + pyro.param("m", torch.tensor(0.0)), 1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.fit(pv.Pair(model, guide), torch.tensor(NORMAL[:, 0]).float(), **HOW)
    with pytest.warns(UserWarning, match=r"Normal at site 'x' expects"):
        pv.fit(pv.Pair(model, guide), torch.tensor(NORMAL[:, 0]).float() + 1e4, **HOW)


def test_log_p_of_the_cure_is_in_the_units_of_the_data() -> None:
    """Of a model that is N(0, I) whatever z is, log p(x) in the units of the data is that of N(mean, sd^2) in closed form."""
    x = NORMAL * [1.0, 1e-3, 1e4, 20.0] + [0.0, 1.0, 1e6, 1e3]
    units = pv.data.Standardize.fit(x)
    encoder = pv.mlp(4, fam.Normal(1, scale=1.0), hidden=())
    pair = vae(fam.Normal(4, scale=1.0), encoder=encoder)
    for parameter in pair.parameters():
        torch.nn.init.zeros_(parameter)  # q(z|x) is p(z), and p(x|z) is N(0, I)
    fitted = pv.fit(pair, units.apply(x), **(HOW | {"epochs": 0}))
    found = pv.log_likelihood(fitted, units.apply(x), 3, proposal="guide", seed=0) - units.log_abs_det
    exact = torch.distributions.Normal(torch.tensor(x.mean(0)), torch.tensor(x.std(0))).log_prob(torch.tensor(x)).sum(1)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-3)


def test_standardize_takes_what_fit_takes() -> None:
    whole = (NORMAL * 100).astype(np.int64)
    scaling = pv.data.Standardize.fit(whole)
    exact = (whole - whole.mean(0)) / whole.std(0)
    for given in (whole, whole.tolist(), pd.DataFrame(whole), torch.tensor(whole), whole.astype(np.float64)):
        z = scaling.apply(given)
        assert z.dtype == torch.float32
        np.testing.assert_allclose(z.numpy(), exact, rtol=1e-6, atol=1e-6)
    with pytest.raises(pv.DataError, match="must hold numbers"):
        pv.data.Standardize.fit(pd.DataFrame({"a": ["x", "y"]}))
