"""Poses: images that are turned, shifted and resized, held against moves that are exact on a grid."""

import math

import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.errors import OptionError, ShapeError
from pyrovae.nets import Pose, Posed, Upright


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


IMAGE = (31, 41)


def hill() -> Tensor:
    """(1, 1, H, W): a smooth hill beside the centre, longer than wide, almost 0 at the edges."""
    down, right = torch.meshgrid(*(torch.arange(side) - side // 2 for side in IMAGE), indexing="ij")
    return torch.exp(-((right - 2.0) ** 2 + 2 * (down + 1.0) ** 2) / 30)[None, None]


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_quarters_of_a_turn_are_anticlockwise(side: int, quarters: int) -> None:
    maps = torch.randn(3, 2, side, side)
    pose = Pose((side, side), rotation=math.pi / 2, shift=None)
    assert pose.size == 1
    close(pose.move(maps, torch.full((3, 1), float(quarters))), torch.rot90(maps, quarters, (-2, -1)))


def test_a_turn_keeps_distances_in_images_that_are_not_square() -> None:
    maps = torch.zeros(1, 1, 9, 15)
    maps[..., 4, 10] = 1.0  # three pixels to the right of the centre
    turned = Pose((9, 15), rotation=math.pi / 2, shift=None).move(maps, torch.ones(1, 1))
    wanted = torch.zeros(1, 1, 9, 15)
    wanted[..., 1, 7] = 1.0  # three above it
    close(turned, wanted)


@pytest.mark.parametrize("image", [(8, 8), (6, 10), (10, 6)])
def test_shifts_are_by_whole_pixels_to_the_right_and_down(image: tuple[int, int]) -> None:
    height, width = image
    pose = Pose(image, rotation=None, shift=2 / max(image))  # a pixel
    maps = torch.randn(1, 1, height, width)
    moved = pose.move(maps, torch.tensor([[2.0, -1.0]]))
    close(moved[..., :-1, 2:], maps[..., 1:, :-2])
    close(moved[..., :-1, 0], maps[..., 1:, 0])  # what comes in repeats the edge
    told = pose.moves(torch.tensor([[2.0, -1.0]]))
    close(torch.cat(told), torch.tensor([0.0, 2.0, -1.0, 1.0]))


def test_twice_the_size_shows_every_second_pixel_at_twice_the_distance() -> None:
    pose = Pose((9, 9), rotation=None, shift=None, scale=math.log(2))
    maps = torch.randn(1, 1, 9, 9)
    close(pose.move(maps, torch.ones(1, 1))[..., ::2, ::2], maps[..., 2:7, 2:7])
    close(pose.moves(torch.ones(1, 1)).size, torch.tensor([2.0]))


def test_an_image_is_resized_and_turned_before_it_is_shifted() -> None:
    whole, parts = Pose(IMAGE, 1.0, 0.2, 0.3), [Pose(IMAGE, None, None, 0.3), Pose(IMAGE, 1.0, None)]
    numbers = torch.tensor([[0.8, 0.5, -0.5, 0.4]])
    moved = parts[1].move(parts[0].move(hill(), numbers[:, 3:]), numbers[:, :1])
    moved = Pose(IMAGE, None, 0.2).move(moved, numbers[:, 1:3])
    assert (whole.move(hill(), numbers) - moved).abs().max() < 0.05  # which is interpolated three times
    assert (whole.move(hill(), numbers) - hill()).abs().max() > 0.3


@pytest.mark.parametrize("seed", range(5))
def test_moving_back_makes_an_image_upright_again(seed: int) -> None:
    torch.manual_seed(seed)
    pose, numbers = Pose(IMAGE, 1.0, 0.1, 0.1), torch.randn(1, 4).clamp(-1, 1)
    moved = pose.move(hill(), numbers)
    assert (pose.move_back(moved, numbers) - hill()).abs().max() < 0.05
    assert (pose.move_back(moved, numbers + 1.0) - hill()).abs().max() > 0.3


def test_gradients_of_both_by_finite_differences() -> None:
    torch.manual_seed(0)
    pose = Pose((4, 5), 1.0, 0.2, 0.1)
    maps, numbers = torch.randn(2, 1, 4, 5, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    given = (maps.requires_grad_(), numbers.requires_grad_())
    assert torch.autograd.gradcheck(pose.move, given) and torch.autograd.gradcheck(pose.move_back, given)


def test_all_parameters_of_a_pixel_move_together_and_batches_are_broadcast() -> None:
    torch.manual_seed(0)
    family, pose = pv.families.Normal((3, 6, 7)), Pose((6, 7))
    net = pv.nets.MLP(2, family.param_shape)
    decoder = pv.Conditional(Posed(net, pose), family)
    z, numbers = torch.randn(5, 2), torch.randn(4, 1, 3)  # drawn four times, one for all rows
    found = decoder(z, numbers)
    assert found.batch_shape == (4, 5) and found.event_shape == (3, 6, 7)
    for k in range(4):
        for channel in range(3):
            upright = net(z)[:, :, channel]  # (5, 2, 6, 7)
            moved = pose.move(upright, numbers[k].expand(5, 3))
            close(found.mean[k, :, channel], moved[:, 0])
    flat = pv.families.Normal(42)
    assert Posed(pv.nets.MLP(2, flat.param_shape), pose)(z, numbers).shape == (4, 5, *flat.param_shape)


def test_an_encoder_sees_what_was_moved_back() -> None:
    torch.manual_seed(0)
    pose, seen = Pose((6, 7)), []

    class Look(torch.nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            seen.append(x)
            return c

    x, numbers, c = torch.randn(5, 42), torch.randn(4, 5, 3), torch.randn(5, 2)
    assert Upright(Look(), pose, in_shape=42)(x, numbers, c) is c
    assert seen[0].shape == (4, 5, 42)
    close(seen[0][2], pose.move_back(x.reshape(5, 1, 6, 7), numbers[2]).flatten(1))


def test_mistakes_are_named() -> None:
    with pytest.raises(ShapeError, match="height and width"):
        Pose((3, 28, 28))
    with pytest.raises(OptionError, match=r"shift must be a positive number, or None, got 0\.0"):
        Pose((28, 28), shift=0.0)
    for wrong in ("1", True, float("nan")):
        with pytest.raises(OptionError, match="rotation must be a positive number"):
            Pose((28, 28), rotation=wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="moves nothing"):
        Pose((28, 28), None, None)
    pose = Pose((28, 28))
    with pytest.raises(ShapeError, match=r"have 3 numbers each, \(\*batch, 3\), got \(5, 4\)"):
        pose.moves(torch.zeros(5, 4))
    with pytest.raises(ShapeError, match="Posed needs a network whose output consists of images of 28 x 28"):
        Posed(pv.nets.MLP(2, 64), pose)
    with pytest.raises(ShapeError, match="Posed needs a network whose output"):
        Posed(torch.nn.Linear(2, 784), pose)  # which says nothing of its output
    with pytest.raises(ShapeError, match="Upright needs rows that consist of images"):
        Upright(pv.nets.MLP(64, 2), pose, in_shape=64)
    with pytest.raises(ShapeError, match=r"Upright needs images \(\*batch, 28, 28\), got \(5, 784\)"):
        Upright(pv.nets.MLP(784, 2), pose)(torch.zeros(5, 784), torch.zeros(5, 3))
