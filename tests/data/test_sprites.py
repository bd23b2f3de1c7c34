"""Sprites: the factors are those of the images."""

from typing import Any

import pytest
import torch

from pyrovae.data import load, load_again, sprites
from pyrovae.errors import OptionError

SMALL = (3, 4, 4, 5, 5)


def test_all_combinations_in_order() -> None:
    data = sprites(None, size=64, levels=SMALL)
    assert data.factors is not None and data.y is not None
    assert torch.equal(data.factors, torch.cartesian_prod(*map(torch.arange, SMALL)))
    assert torch.equal(data.y, data.factors[:, 0]) and data.classes == ("square", "ellipse", "heart")
    assert len(data.x.unique(dim=0)) == len(data.x)  # 64 pixels tell all of these apart
    assert set(data.x.unique().tolist()) == {0.0, 1.0} and data.x.dtype == torch.float32


def test_places_and_sizes_are_those_of_the_factors() -> None:
    """The centre of mass moves by equal steps with x and y, and the area grows as the square of the scale."""
    data = sprites(None, size=64, levels=(3, 4, 2, 5, 5))
    images = data.x.reshape(3, 4, 2, 5, 5, 64, 64)
    place = (torch.arange(64) + 0.5) / 64
    area = images.sum((-1, -2))
    for profile, along in ((images.sum(-2), 3), (images.sum(-1), 4)):  # over rows: x; over columns: y
        centre = (profile * place).sum(-1) / area
        steps = centre.diff(dim=along)
        torch.testing.assert_close(steps, torch.full_like(steps, (1 - 2 * 0.2517) / 4), atol=0.01, rtol=0)
    radius = area.mean((2, 3, 4)).sqrt()  # by shape and scale
    half = torch.linspace(0.0971, 0.1813, 4)
    torch.testing.assert_close(radius / half, (radius[:, -1:] / half[-1]).expand(3, 4), rtol=0.05, atol=0)


def test_angles_turn() -> None:
    """Of an ellipse the axis of most spread, from second moments, is where the angle says."""
    data = sprites(None, size=64, levels=(2, 1, 8, 1, 1))
    images = data.x.reshape(2, 8, 64, 64)[1].double()
    mass = images / images.sum((1, 2), keepdim=True)
    place = torch.arange(64).double()
    x, y = ((mass.sum(dim) * place).sum(1, keepdim=True) for dim in (1, 2))
    dx, dy = (place - x)[:, None, :], (place - y)[:, :, None]
    xx, yy, xy = ((mass * product).sum((1, 2)) for product in (dx * dx, dy * dy, dx * dy))
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)
    torch.testing.assert_close(angle, torch.arange(8).double() * torch.pi / 16, atol=0.06, rtol=0)


def test_rows_are_chosen_once_and_again_the_same() -> None:
    one, two, other = sprites(200, seed=1), sprites(200, seed=1), sprites(200, seed=2)
    assert one.factors is not None and len(one.factors.unique(dim=0)) == 200
    assert torch.equal(one.x, two.x) and not torch.equal(one.x, other.x)
    data = load("sprites")
    assert data.x.shape == (10_000, 1024) and data.kind == "binary"
    assert torch.equal(load_again(data.source).x, data.x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (4, 1, 1, 1, 1)}, "at most 3 for the shape"),
        ({"levels": (3, 6)}, "five whole numbers"),
        ({"size": 4}, "at least 8 pixels, .*got 4"),
        ({"size": 16.0}, "whole number of at least 8 pixels, .*got 16.0"),
        ({"num_rows": 2.5}, "got 2.5"),
        ({"num_rows": 0}, "between 1 and 36864"),
        ({"num_rows": 99, "levels": (3, 1, 1, 2, 2)}, "between 1 and 12.*got 99"),
    ],
)
def test_unfit_options_get_one_clear_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        sprites(**options)
