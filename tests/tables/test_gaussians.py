"""Mixtures of Normals by EM: the numbers of scikit-learn's GaussianMixture."""

import numpy as np
import pytest
from sklearn.datasets import load_wine
from sklearn.mixture import GaussianMixture

from pyrovae.tables.gaussians import Array, best_by_bic, mixture, nearest


def clusters(num: int, seed: int = 0) -> Array:
    """Three Normals of different shapes in three dimensions."""
    random = np.random.default_rng(seed)
    group = random.choice(3, num, p=[0.5, 0.3, 0.2])
    shapes = random.normal(size=(3, 3, 3)) / 2
    x = np.einsum("nd,nde->ne", random.normal(size=(num, 3)), shapes[group]) + np.eye(3)[group] * 6
    return x


def wine() -> Array:
    x = load_wine().data
    standardised: Array = (x - x.mean(0)) / x.std(0)
    return standardised


@pytest.mark.parametrize(("x", "seed"), [(clusters(150), 0), (clusters(150), 3), (wine(), 0)])
@pytest.mark.parametrize(("k", "floor"), [(1, 1e-6), (2, 1e-6), (3, 1e-4), (5, 1e-4)])
def test_from_the_same_seed_it_is_scikit_learns(x: Array, seed: int, k: int, floor: float) -> None:
    theirs = GaussianMixture(k, n_init=2, reg_covar=floor, random_state=seed).fit(x)
    found = mixture(x, k, floor, seed)
    for ours, their in zip(found, (theirs.weights_, theirs.means_, theirs.covariances_)):
        np.testing.assert_allclose(ours, their, atol=1e-9)
    np.testing.assert_allclose(found.log_prob(x), theirs.score_samples(x), atol=1e-7)
    assert found.bic(x) == pytest.approx(theirs.bic(x), abs=1e-5)


def test_bic_finds_the_components_that_there_are() -> None:
    x = clusters(400)
    found = best_by_bic(x, 6, seed=0)
    assert sorted(round(w, 1) for w in found.weights.tolist()) == [0.2, 0.3, 0.5]
    assert float(found.weights.sum()) == pytest.approx(1)
    for a, b in zip(found, best_by_bic(x, 6, seed=0)):  # the seed is all that is random
        assert (a == b).all()


def test_rows_that_repeat_and_columns_that_do_not_vary_are_taken() -> None:
    """Fewer distinct rows than components, whose covariances are the floor alone; and as many components as rows."""
    x = np.tile([[0.0, 1.0], [2.0, 1.0]], (10, 1))
    assert np.isfinite(best_by_bic(x, 5, floor=1e-4).log_prob(x)).all()
    assert np.isfinite(best_by_bic(np.zeros((8, 3)), 8).log_prob(np.zeros((1, 3)))).all()
    assert np.isfinite(best_by_bic(clusters(4), 4).log_prob(clusters(4))).all()


def test_k_means_puts_apart_what_lies_apart() -> None:
    x = np.array([[0.0], [0.1], [9.0], [9.2], [5.0]])
    for seed in range(5):
        a, b, c, d, e = nearest(x, 3, np.random.RandomState(seed)).tolist()
        assert a == b and c == d and len({a, c, e}) == 3
