"""Stacking weights against a search over the simplex, and shares of wins."""

import pytest
import torch

import pyrovae as pv
from pyrovae.criticism.stacking import shares_of_wins, stacking_weights


def test_weights_are_those_of_a_search() -> None:
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(3, 40, generator=generator, dtype=torch.float64) * 2 - 80
    grid = torch.cartesian_prod(torch.linspace(0, 1, 201), torch.linspace(0, 1, 201)).double()
    grid = torch.cat([grid, 1 - grid.sum(1, keepdim=True)], 1)
    grid = grid[grid[:, 2] >= -1e-9].clamp_min(0)
    best = grid[(grid @ log_p.exp()).log().sum(1).argmax()]
    torch.testing.assert_close(stacking_weights(log_p), best, rtol=0, atol=0.006)
    assert stacking_weights(log_p).sum() == pytest.approx(1)
    torch.testing.assert_close(stacking_weights(log_p - 1e4), stacking_weights(log_p))  # no underflow


def test_a_model_that_knows_no_row_better_has_no_weight() -> None:
    log_p = torch.tensor([[-1.0, -2.0, -3.0], [-1.5, -2.5, -9.0], [-1.0, -2.0, -3.0]])
    weights = stacking_weights(log_p)
    assert weights[1] < 1e-6 and weights[0] == pytest.approx(0.5)
    assert stacking_weights(log_p[:1]).tolist() == [1.0]
    torch.testing.assert_close(shares_of_wins(log_p), torch.tensor([0.5, 0.0, 0.5]).double())


def test_models_come_as_a_tensor_an_array_a_list_or_by_name() -> None:
    log_p = torch.tensor([[-1.0, -1.0, -4.0], [-4.0, -2.0, -1.0]])
    wanted = stacking_weights(log_p)
    assert wanted[0] > wanted[1] > 0.1
    for given in (log_p.numpy(), list(log_p), dict(zip("ab", log_p)), dict(zip("ab", log_p.numpy())), log_p.tolist()):
        torch.testing.assert_close(stacking_weights(given), wanted)
    for wrong in ([log_p[0], log_p[1, :2]], {"a": object()}, ["first", "second"]):
        with pytest.raises(pv.DataError, match="'log_p' must"):
            stacking_weights(wrong)
    with pytest.raises(pv.ShapeError, match=r"got \(0,\)"):
        stacking_weights([])


def test_what_has_no_weights_is_refused() -> None:
    with pytest.raises(pv.ShapeError, match=r"\(models, rows\)"):
        stacking_weights(torch.zeros(3))
    with pytest.raises(pv.DataError, match="NaN"):
        stacking_weights(torch.tensor([[0.0, torch.nan]]))
    with pytest.raises(pv.DataError, match="possible"):
        stacking_weights(torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]]))


def test_more_models_than_rows_are_asked_about() -> None:
    log_p = torch.tensor([[-1.0, -1.0, -4.0], [-4.0, -2.0, -1.0]])
    with pytest.warns(UserWarning, match=r"got \(3, 2\): more models than rows.*log_p.T"):
        stacking_weights(log_p.T)
