"""Scores of disentanglement on codes whose scores are known: the factors themselves, constants, copies, rotations."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import pyrovae as pv
from pyrovae import disentanglement
from pyrovae.criticism.factors import binned

LEVELS = (3, 4, 5)
FACTORS = (
    np.stack(np.meshgrid(*map(range, LEVELS), indexing="ij"), -1).reshape(-1, 3).repeat(5, 0)
)  # 300 rows, all even
IDENTITY = 2.0 - FACTORS[:, ::-1]  # in another order, scale and direction
SCALED = (FACTORS - FACTORS.mean(0)) / FACTORS.std(0)
ROTATED = SCALED @ np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3
CONSTANT, DUPLICATED = np.full((300, 4), 0.7), FACTORS.repeat(2, 1)
Scores = dict[str, float]


def scores(codes: Any, factors: Any = FACTORS) -> Scores:
    dci, mec = disentanglement.dci(codes, factors, num_trees=5), disentanglement.infomec(codes, factors)
    found = {name: getattr(disentanglement, name)(codes, factors) for name in ("mig", "sap")}
    found |= {n: getattr(disentanglement, f"{n}_score")(codes, factors, 200, 32) for n in ("factor_vae", "beta_vae")}
    found |= {n: getattr(dci, n) for n in ("disentanglement", "completeness", "informativeness")}
    return found | {name: getattr(mec, name) for name in ("modularity", "explicitness", "compactness")}


@pytest.fixture(scope="module")
def identity() -> Scores:
    return scores(IDENTITY)


def test_factors_themselves_score_one(identity: Scores) -> None:
    assert identity["mig"] == pytest.approx(1, abs=1e-12)
    for name in ("sap", "factor_vae", "beta_vae", "disentanglement", "completeness", "informativeness", "modularity"):
        assert identity[name] == pytest.approx(1, abs=1e-6), name
    assert identity["compactness"] == pytest.approx(1, abs=1e-6)
    assert identity["explicitness"] > 0.99


def test_constants_say_nothing() -> None:
    found = scores(CONSTANT)
    assert found.pop("beta_vae") < 0.5  # chance is 1/3, and 0.5 more than four standard errors above it
    assert set(found.values()) == {0.0}


def test_copies_are_disentangled_but_not_complete(identity: Scores) -> None:
    found = scores(DUPLICATED)
    for name in ("mig", "sap"):
        assert found[name] == pytest.approx(0, abs=1e-12)
    for name in ("factor_vae", "beta_vae", "disentanglement", "informativeness", "modularity"):
        assert found[name] == pytest.approx(1, abs=1e-6), name
    # two of six codes share what is said of a factor: 1 - log 2 / log 6 at least, and (1/2 - 1/6) / (1 - 1/6)
    assert 1 - np.log(2) / np.log(6) - 1e-9 <= found["completeness"] < 0.99
    assert found["compactness"] == pytest.approx(0.4, abs=1e-6)


def test_rotations_are_informative_but_entangled() -> None:
    found = scores(ROTATED)
    assert found["explicitness"] > 0.99 and found["informativeness"] > 0.6
    for name in ("mig", "sap", "disentanglement", "completeness", "modularity", "compactness"):
        assert found[name] < 0.5, name
    assert found["factor_vae"] < 0.95


def test_mutual_information_is_that_of_the_table() -> None:
    """Code = factor mod 2 of four even levels: log 2 nats of log 4; a second code with another half of it."""
    factor = np.arange(4).repeat(10)[:, None]
    one, two = factor % 2, factor // 2
    assert disentanglement.mig(one, factor) == pytest.approx(0.5)
    assert disentanglement.mig(np.hstack([one, two]), factor) == pytest.approx(0)
    assert disentanglement.mig(np.hstack([factor, two]), factor) == pytest.approx(0.5)


def test_continuous_factors() -> None:
    rng = np.random.default_rng(0)
    factors = rng.uniform(size=(400, 2))
    found = scores(factors, factors)
    assert min(found[name] for name in ("sap", "factor_vae", "disentanglement", "informativeness", "modularity")) > 0.95
    assert found["mig"] > 0.7  # where noise of the table is left of the second code
    correlated = np.stack([factors[:, 0], factors[:, 0] + factors[:, 1]], 1)
    gap = np.corrcoef(factors.T)[0, 1] ** 2
    squared = np.corrcoef(correlated[:, 1], factors[:, 0])[0, 1] ** 2
    other = np.corrcoef(correlated[:, 1], factors[:, 1])[0, 1] ** 2
    assert disentanglement.sap(correlated, factors) == pytest.approx((1 - squared + other - gap) / 2)


def test_more_codes_than_factors_say_the_same(identity: Scores) -> None:
    """Dead codes are no harm."""
    padded: NDArray[Any] = np.hstack([IDENTITY, np.zeros((300, 2))])
    found = scores(padded)
    for name, value in identity.items():
        assert found[name] == pytest.approx(value, abs=0.02), name


def test_tensors_are_arrays_and_stay_as_they_are() -> None:
    codes, factors = torch.tensor(IDENTITY, requires_grad=True), torch.tensor(FACTORS)
    before = codes.detach().clone()
    assert disentanglement.mig(codes, factors) == pytest.approx(1)
    assert torch.equal(codes, before)


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (IDENTITY[:, 0], FACTORS, r"codes \(N, D\).*got \(300,\) and \(300, 3\)"),
        (IDENTITY[:10], FACTORS, r"of the same rows.*got \(10, 3\)"),
        (IDENTITY * np.nan, FACTORS, "finite codes, and 900"),
        (IDENTITY, FACTORS * [1, 0, 1], "Factor 1 has a single value, 0"),
        (IDENTITY[:, :0], FACTORS, r"got \(300, 0\)"),
        (IDENTITY, np.array([["heart"]] * 300), "number the levels"),
    ],
)
@pytest.mark.parametrize("score", [name for name in disentanglement.__all__ if name.islower()])
def test_unfit_arrays_get_one_clear_error(score: str, codes: Any, factors: Any, message: str) -> None:
    with pytest.raises(pv.DataError, match=message):
        getattr(disentanglement, score)(codes, factors)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: disentanglement.mig(IDENTITY, FACTORS, bins=1), "bins must be at least 2, got 1"),
        (lambda: disentanglement.mig(IDENTITY, FACTORS, bins=2.5), "bins .* got 2.5"),  # type: ignore[arg-type]
        (lambda: disentanglement.dci(IDENTITY, FACTORS, num_trees=0), "num_trees .* at least 1, got 0"),
        (lambda: disentanglement.infomec(IDENTITY, FACTORS, num_neighbors=0), "num_neighbors .* at least 1, got 0"),
        (lambda: disentanglement.factor_vae_score(IDENTITY, FACTORS, 2.5), "num_votes .* got 2.5"),  # type: ignore[arg-type]
        (lambda: disentanglement.factor_vae_score(IDENTITY, FACTORS, 10, 1), "batch_size .* at least 2, got 1"),
        (lambda: disentanglement.beta_vae_score(IDENTITY, FACTORS, 10, 1), "batch_size .* at least 2, got 1"),
    ],
)
def test_unfit_options_get_one_clear_error(call: Any, message: str) -> None:
    with pytest.raises(pv.OptionError, match=message):
        call()


def test_votes_that_hold_one_factor_only_are_judged_by_the_others() -> None:
    """With one example to learn from, the answer is right where the example to test on holds the same factor."""
    found = {disentanglement.beta_vae_score(IDENTITY, FACTORS, 1, 4, seed=seed) for seed in range(10)}
    assert found == {0.0, 1.0}
    assert disentanglement.beta_vae_score(IDENTITY, FACTORS[:, :1], 5, 4) == 1.0


def test_levels_that_occur_once_do_not_count_in_the_nearest_neighbour_estimate() -> None:
    rng = np.random.default_rng(0)
    factors = np.arange(3).repeat(20)[:, None]
    codes = factors + 0.1 * rng.normal(size=(60, 1))
    alone = disentanglement.infomec(codes, factors).information
    more = np.vstack([factors, np.arange(3, 13)[:, None]])
    found = disentanglement.infomec(np.vstack([codes, rng.normal(size=(10, 1))]), more).information
    assert found == pytest.approx(alone, abs=0.01) and alone == pytest.approx(1.0, abs=0.1)
    with pytest.raises(pv.DataError, match="two levels of factor 0 that occur at least twice"):
        disentanglement.infomec(rng.normal(size=(40, 2)), rng.permutation(40)[:, None])


@pytest.mark.parametrize("unit", [2.0**1020, 2.0**-1000], ids=["large", "small"])
def test_scores_do_not_depend_on_the_unit(unit: float) -> None:
    """Not even where squares overflow, or become 0; units that are powers of two change no digit of a value."""
    rng = np.random.default_rng(0)
    factors = np.column_stack([rng.integers(0, 3, 90), rng.normal(size=90)])
    codes = np.column_stack([factors @ rng.normal(size=(2, 2)), rng.normal(size=90)])
    some = {"num_votes": 20, "batch_size": 4}
    how = {"mig": {}, "dci": {"num_trees": 2}, "sap": {}, "infomec": {"num_neighbors": 3}}
    for name, options in (how | {"factor_vae_score": some, "beta_vae_score": some}).items():
        score: Any = getattr(disentanglement, name)
        wanted = str(score(codes, factors, **options))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert str(score(codes * unit, factors, **options)) == wanted
            assert str(score(codes, factors * [1, unit], **options)) == wanted


def test_bins_have_the_same_width_where_the_range_overflows() -> None:
    assert binned(np.array([-1.7e308, 0, 1.7e308]), 20).tolist() == [0, 10, 19]
    assert binned(np.array([0, 5e-324]), 20).tolist() == [0, 19]
    assert binned(np.full(3, 1e308), 4).tolist() == [0, 0, 0] == binned(np.zeros(3), 4).tolist()
