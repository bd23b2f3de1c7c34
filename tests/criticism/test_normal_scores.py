"""Normal scores by scipy's ranks and quantiles, with ties, gaps, new rows and columns that say nothing."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata

from pyrovae.criticism.normal_scores import NormalScores


def test_scores_are_normal_quantiles_of_mean_ranks() -> None:
    x = torch.randint(0, 6, (40, 3), generator=torch.Generator().manual_seed(0)).double()  # with ties
    x[:, 2] = torch.logspace(-200, 200, 40, dtype=torch.float64)
    wanted = np.stack([norm.ppf((rankdata(column) - 0.5) / 40) for column in x.numpy().T], 1)
    np.testing.assert_allclose(NormalScores.of(x)(x).numpy(), wanted, atol=1e-12)
    grown = x.clone()
    grown[:, 0] = x[:, 0].exp()  # no growing function of a column changes anything
    assert torch.equal(NormalScores.of(grown)(grown), NormalScores.of(x)(x))


def test_a_gap_stays_one_and_is_none_of_the_others_ranks() -> None:
    x = torch.tensor([[1.0, 5.0], [math.nan, 6.0], [3.0, math.nan], [2.0, math.nan]], dtype=torch.float64)
    found = NormalScores.of(x)(x)
    np.testing.assert_allclose(found[[0, 3, 2], 0].numpy(), norm.ppf([1 / 6, 3 / 6, 5 / 6]), atol=1e-12)
    np.testing.assert_allclose(found[:2, 1].numpy(), norm.ppf([0.25, 0.75]), atol=1e-12)
    assert torch.equal(found.isnan(), x.isnan())


def test_a_new_value_is_between_its_neighbours_and_not_beyond_the_ends() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    found = NormalScores.of(x)(torch.tensor([[-1e300], [0.5], [1.0], [1e300]], dtype=torch.float64))[:, 0]
    np.testing.assert_allclose(found.numpy(), norm.ppf([1 / 8, 1 / 4, 3 / 8, 7 / 8]), atol=1e-12)


def test_columns_that_are_constant_or_empty_say_nothing() -> None:
    x = torch.tensor([[7.0, math.nan]] * 3, dtype=torch.float64)
    found = NormalScores.of(x)(torch.tensor([[7.0, 1.0], [7.0, math.nan]], dtype=torch.float64))
    assert found[0].tolist() == pytest.approx([0.0, 0.0]) and found[1, 1].isnan()
