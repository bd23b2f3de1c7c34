"""Networks around counts: the size of a row, and its shares among the columns."""

import pytest
import torch

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.errors import OptionError, ShapeError


@pytest.mark.parametrize("family", [fam.Poisson(5), fam.NegativeBinomial(5), fam.ZeroInflatedNegativeBinomial(5)])
def test_the_mean_of_the_means_is_the_size(family: fam.Family) -> None:
    net = pv.nets.SizeFactor(pv.nets.MLP((3, 2), family.param_shape), centre=1.5, spread=0.4)
    z, y = torch.randn(4, 1, 3), torch.rand(6, 2)
    out = net(z, y)
    assert out.shape == (4, 6, *family.param_shape)
    means = out[..., 0, :].exp().mean(-1)
    torch.testing.assert_close(means, (1.5 + 0.4 * z[..., 0]).exp().expand(4, 6))
    torch.testing.assert_close(out[..., 1:, :], net.net(z, y)[..., 1:, :])


def test_the_size_may_be_the_last_number_of_another_parent() -> None:
    net = pv.nets.SizeFactor(pv.nets.MLP((3, 2), (1, 5)), parent=1, place=-1)
    c = torch.tensor([[0.3, 2.0], [0.3, -1.0]])
    torch.testing.assert_close(net(torch.randn(2, 3), c)[:, 0].exp().mean(-1), c[:, 1].exp())


def test_an_encoder_starts_with_the_size() -> None:
    inner = pv.nets.Log1p(pv.nets.MLP((4, 3), (2, 6)))
    net = pv.nets.SizeFromTotal(inner, centre=1.0, spread=0.5)
    x, y = torch.tensor([[1.0, 3.0, 0.0, 8.0], [0.0, 0.0, 0.0, 0.0]]), torch.rand(5, 1, 3)
    added = (net(x, y) - inner(x, y))[..., 0, 0]
    torch.testing.assert_close(added, ((torch.tensor([3.0, 0.125]).log() - 1.0) / 0.5).expand(5, 2))
    assert torch.equal(net(x, y)[..., 1, :], inner(x, y)[..., 1, :]) and torch.equal(
        net(x, y)[..., 1:], inner(x, y)[..., 1:]
    )


def test_missing_counts_are_left_out_of_the_size() -> None:
    x = torch.tensor([[2.0, 4.0], [float("nan"), 3.0], [float("nan"), float("nan")]])
    torch.testing.assert_close(pv.nets.sizes.log_size(x).exp(), torch.tensor([3.0, 3.0, 0.5]))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(OptionError, match="spread must be a positive number"):
        pv.nets.SizeFactor(pv.nets.MLP(3, (1, 5)), spread=0.0)
    with pytest.raises(OptionError, match="spread must be a positive number"):
        pv.nets.SizeFromTotal(pv.nets.MLP(3, (2, 5)), spread=-1.0)
    with pytest.raises(ShapeError, match="place 7 of parent 0"):
        pv.nets.SizeFactor(pv.nets.MLP(3, (1, 5)), place=7)(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="parent 1"):
        pv.nets.SizeFactor(pv.nets.MLP(3, (1, 5)), parent=1)(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="out_shape"):
        pv.nets.SizeFromTotal(torch.nn.Linear(3, 5))
