"""Labels that spread over a graph of nearest neighbours: by a linear system written out, and by scikit-learn's neighbours."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import nan_euclidean_distances
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import pyrovae as pv
from pyrovae.criticism.fields import _folds, nearest


def two_moons(n: int = 60, labelled: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of two half circles, their classes, and the classes of a few rows of each with -1 elsewhere."""
    generator = torch.Generator().manual_seed(0)
    angle = math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
    y = torch.arange(n) % 2
    x = torch.stack([angle.cos() + y, torch.where(y == 0, angle.sin(), 0.4 - angle.sin())], 1)
    few = torch.full((n,), -1)
    few[: 2 * labelled] = y[: 2 * labelled]
    return x + 0.05 * torch.randn(n, 2, generator=generator, dtype=torch.float64), y, few


def dense(x: Tensor, few: Tensor, k: int, classes: int) -> np.ndarray:
    """The field by a dense solve of f = 0.99 D^-1 W f + 0.01 / C over the rows without a label."""
    near = NearestNeighbors(n_neighbors=k).fit(x.numpy()).kneighbors(return_distance=False)
    W = np.zeros((len(x), len(x)))
    W[np.arange(len(x))[:, None], near] = 1
    W = W + W.T
    S = W / W.sum(1, keepdims=True)
    known, free = few.numpy() >= 0, few.numpy() < 0
    f = np.zeros((len(x), classes))
    f[known, few.numpy()[known]] = 1
    right = 0.99 * S[np.ix_(free, known)] @ f[known] + 0.01 / classes
    f[free] = np.linalg.solve(np.eye(free.sum()) - 0.99 * S[np.ix_(free, free)], right)
    return f


def test_a_field_is_the_solution_of_its_equation_and_new_rows_take_the_mean_of_their_neighbours() -> None:
    x, _, few = two_moons()
    field = pv.LabelField(x, few, num_classes=3, num_neighbors=4)
    wanted = dense(x, few, 4, 3)
    np.testing.assert_allclose(field.values.numpy(), wanted, atol=1e-6)
    assert torch.equal(pv.LabelField(x.numpy(), few.numpy(), 3, 4).values, field.values)
    new = torch.tensor([[0.3, 0.6], [1.5, -0.2]], dtype=torch.float64)
    near = NearestNeighbors(n_neighbors=4).fit(x.numpy()).kneighbors(new.numpy(), return_distance=False)
    even = 0.99 * wanted[near].mean(1) + 0.01 / 3
    sharp = even ** (1 / field.temperature)
    np.testing.assert_allclose(field(new).numpy(), sharp / sharp.sum(1, keepdims=True), atol=1e-6)


def test_it_follows_the_half_circles_where_the_nearest_label_does_not() -> None:
    x, y, _ = two_moons(200)
    few = torch.full_like(y, -1)
    few[x[:, 0].argmin()], few[x[:, 0].argmax()] = 0, 1  # the far end of each
    assert (pv.LabelField(x, few)(x).argmax(1) == y).double().mean() > 0.95
    known = few >= 0
    by_nearest = few[known][torch.cdist(x, x[known]).argmin(1)]
    assert (by_nearest == y).double().mean() < 0.9


def test_the_temperature_has_the_best_log_score_of_labels_left_out_one_by_one() -> None:
    x, _, few = two_moons(60, labelled=6)
    few[0] = 1 - few[0]  # a label that its neighbours contradict, so that the best temperature is not the lowest
    field = pv.LabelField(x, few)
    left_out = []
    for row in (few >= 0).nonzero()[:, 0]:
        others = few.clone()
        others[row] = -1
        left_out.append(dense(x, others, 5, 2)[row])
    logs, labels = torch.from_numpy(np.log(left_out)), few[few >= 0]

    def score(temperature: float) -> tuple[float, float]:
        tempered = (logs / temperature).log_softmax(1)
        known = tempered.gather(1, labels[:, None])
        return float(known.mean()), float(known.sum() + 0.5 * tempered.mean())  # half a row of unknown class

    assert score(field.temperature)[0] == pytest.approx(field.score, abs=1e-5)
    best = score(field.temperature)[1]
    assert best > max(score(0.98 * field.temperature)[1], score(1.02 * field.temperature)[1])


def test_a_label_without_another_of_its_class_is_not_held_out() -> None:
    x, _, few = two_moons(20, labelled=1)
    field = pv.LabelField(x, few)
    assert field.temperature == 1 and math.isnan(field.score)


def test_no_fold_takes_the_last_label_of_a_class() -> None:
    y = torch.tensor([2, -1, 0, 1, 1, 0, 1, 3, 1, 1, -1, 0])
    held, folds = _folds(y, 2)
    assert sorted(held.tolist()) == [2, 3, 4, 5, 6, 8, 9, 11]  # 2 and 3 have one label each
    for fold in (0, 1):
        left = set(range(12)) - set(held[folds == fold].tolist())
        assert {0, 1, 2, 3} <= {int(y[row]) for row in left}


def test_neighbours_of_rows_with_gaps_are_those_of_scikit_learn() -> None:
    x = torch.randn(40, 5, dtype=torch.float64)
    x[torch.rand(40, 5) < 0.3] = math.nan
    x[3, :] = math.nan
    wanted = nan_euclidean_distances(x.numpy())
    found, finite = nearest(x, x, 4, themselves=True)
    assert finite.all(1).tolist() == [row != 3 for row in range(40)]
    np.fill_diagonal(wanted, np.nan)
    for row in set(range(40)) - {3}:
        assert set(found[row].tolist()) == set(np.argsort(wanted[row])[:4].tolist())
    few = torch.where(torch.arange(40) < 8, torch.arange(40) % 2, -1)
    few[3] = -1
    field = pv.LabelField(x, few)
    torch.testing.assert_close(field.values[3], torch.full((2,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(field(x[3:4]), torch.full((1, 2), 0.5, dtype=torch.float64))


def test_columns_far_from_zero_lose_no_digits() -> None:
    x, _, few = two_moons()
    torch.testing.assert_close(pv.LabelField(x + 2**30, few)(x + 2**30), pv.LabelField(x, few)(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("unit", [1e-300, 1e-25, 1e25, 1e300])
def test_rows_of_many_columns_may_be_in_any_unit(unit: float) -> None:
    """Of more than 64 columns distances are float32, in which squares of 1e-25 or 1e25 would be 0 or infinite."""
    x = torch.randn(30, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.where(torch.arange(30) < 8, torch.arange(30) % 2, -1)
    found, wanted = pv.LabelField(unit * x, y), pv.LabelField(x, y)
    torch.testing.assert_close(found.probabilities, wanted.probabilities)
    torch.testing.assert_close(found(unit * x[10:]), wanted(x[10:]))


def test_the_nearest_of_a_row_far_away_are_on_its_side() -> None:
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    x[20:] += 8
    field = pv.LabelField(x, torch.where(torch.arange(40) % 20 < 3, torch.arange(40) // 20, -1))
    assert field(torch.tensor([[-1e20, -1e20], [1e20, 1e20]])).argmax(-1).tolist() == [0, 1]
    assert field(x[:0]).shape == (0, 2)


def test_pooled_probabilities_are_the_geometric_mean() -> None:
    x, _, few = two_moons()
    field, others = pv.LabelField(x, few), torch.rand(60, 2).softmax(1)
    product = (field(x) * others).sqrt()
    torch.testing.assert_close(field.pooled(x, others), product / product.sum(1, keepdim=True))
    certain = torch.tensor([[1.0, 0.0]]).expand(60, 2)  # no 0 / 0
    assert field.pooled(x, certain).isfinite().all()


def test_what_is_refused() -> None:
    x, _, few = two_moons()
    with pytest.raises(pv.OptionError, match="num_neighbors must be at least 1, got 0"):
        pv.LabelField(x, few, num_neighbors=0)
    with pytest.raises(pv.ShapeError, match=r"got \(60, 2\) and \(59,\)"):
        pv.LabelField(x, few[1:])
    with pytest.raises(pv.ShapeError, match=r"got \(60,\) and \(60,\)"):
        pv.LabelField(x[:, 0], few)
    with pytest.raises(pv.DataError, match="60 rows, 0 labelled"):
        pv.LabelField(x, torch.full((60,), -1))
    with pytest.raises(pv.DataError, match="below 1, the number of classes, got 1"):
        pv.LabelField(x, few, num_classes=1)
    with pytest.raises(pv.DataError, match="integers, got torch.float64"):
        pv.LabelField(x, few.double())
    with pytest.raises(pv.DataError, match="must be finite"):
        pv.LabelField(x.clone().fill_(math.inf), few)
    field = pv.LabelField(x, few)
    with pytest.raises(pv.ShapeError, match=r"rows \(N, \*event\), got \(2,\)"):
        field(x[0])
    with pytest.raises(pv.ShapeError, match="has 2 numbers, got rows with 3"):
        field(torch.zeros(4, 3))
    with pytest.raises(pv.ShapeError, match=r"\(60, 2\), got others \(60, 3\)"):
        field.pooled(x, torch.zeros(60, 3))


def test_other_labels_of_the_same_rows_have_the_field_that_they_would_have_anew() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 3), torch.full((40,), -1)
    y[:12] = torch.arange(12) % 3
    field = pv.LabelField(x, y, num_classes=3)
    before, other = field.probabilities.clone(), torch.where(torch.arange(40) < 6, -1, y)
    again, anew = field.relabelled(other), pv.LabelField(x, other, num_classes=3)
    assert torch.equal(again.probabilities, anew.probabilities) and again.temperature == anew.temperature
    assert torch.equal(again(x[:5]), anew(x[:5])) and torch.equal(field.probabilities, before)
    with pytest.raises(pv.DataError, match="below 3"):
        field.relabelled(torch.full((40,), 3))
