"""Images that are turned, shifted and resized: how a few numbers, the pose, move what a network draws or sees."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae._arguments import as_number
from pyrovae.errors import OptionError, ShapeError
from pyrovae.nets.mlp import as_size


class Moves(NamedTuple):
    """What poses do to an image, each of shape `(*batch)`; see `Pose.moves`.

    Example:
        >>> pv.nets.Pose((28, 28), rotation=None, shift=0.5).moves(torch.tensor([1.0, 0.0]))
        Moves(angle=tensor(0.), right=tensor(7.), down=tensor(0.), size=tensor(1.))
    """

    angle: Tensor  # radians, anticlockwise
    right: Tensor  # pixels
    down: Tensor  # pixels
    size: Tensor  # a factor


class Pose(nn.Module):
    """How P numbers move an image: turn it, shift it, and change its size about its centre, in this order.

    A pose is `(*batch, P)`: an angle, a shift to the right and one down, and the logarithm of a factor, those of them that have
    a scale here, in units of that scale. With a standard Normal prior, scales are prior standard deviations.

    Args:
        image: (H, W).
        rotation: The scale of the angle, in radians; None for no rotation.
        shift: The scale of the shifts, as a share of half the longer side; None for no shift.
        scale: The scale of the logarithm of the size; None for images of one size.

    Raises:
        ShapeError: `image` is not two positive ints.
        OptionError: A scale is not positive, or all are None.

    References:
        Jaderberg et al. 2015, *Spatial transformer networks*, arXiv:1506.02025.

    Example:
        >>> pose = pv.nets.Pose((28, 28), rotation=1.0, shift=0.2)
        >>> pose.size
        3
        >>> pose.moves(torch.tensor([0.5, 1.0, -1.0])).right  # pixels
        tensor(2.8000)
    """

    def __init__(
        self,
        image: Sequence[int],
        rotation: float | None = 1.0,
        shift: float | None = 0.2,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.image, self.rotation, self.shift, self.scale = as_size(image), rotation, shift, scale
        if len(self.image) != 2:
            raise ShapeError(f"Pose needs the height and width of an image, (H, W), got {tuple(self.image)}.")
        scales = {"rotation": rotation, "shift": shift, "scale": scale}
        for name, value in scales.items():
            if value is not None:
                as_number(name, value, above=0, also=", or None")
        self.size = (rotation is not None) + 2 * (shift is not None) + (scale is not None)
        if not self.size:
            raise OptionError("A pose without rotation, shift and scale moves nothing: give at least one of them.")

    def _numbers(self, pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Angle, shift `(*batch, 2)` as a share of half the longer side, and logarithm of the size."""
        if pose.shape[-1] != self.size:
            raise ShapeError(
                f"These poses have {self.size} numbers each, (*batch, {self.size}), got {tuple(pose.shape)}."
            )
        none, at = torch.zeros_like(pose[..., 0]), 0
        angle, shift, size = none, torch.stack([none, none], -1), none
        if self.rotation is not None:
            angle, at = self.rotation * pose[..., 0], 1
        if self.shift is not None:
            shift, at = self.shift * pose[..., at : at + 2], at + 2
        if self.scale is not None:
            size = self.scale * pose[..., at]
        return angle, shift, size

    def moves(self, pose: Tensor) -> Moves:
        """What poses `(*batch, P)` do, in radians, pixels and as a factor."""
        angle, shift, size = self._numbers(pose)
        pixels = shift * (max(self.image) / 2)
        return Moves(angle, pixels[..., 0], pixels[..., 1], size.exp())

    def move(self, maps: Tensor, pose: Tensor) -> Tensor:
        """Move upright images.

        Args:
            maps: `(*batch, M, H, W)`, M values at each pixel.
            pose: `(*batch, P)`.

        Returns:
            `(*batch, M, H, W)`, by bilinear interpolation; what comes in from outside repeats the edge.
        """
        angle, shift, size = self._numbers(pose)
        # a pixel at p shows what was at R(-angle) (p - shift) / size
        turn = _rotation(-angle) * (-size).exp()[..., None, None]
        return self._sampled(maps, turn, -(turn @ shift[..., None])[..., 0])

    def move_back(self, maps: Tensor, pose: Tensor) -> Tensor:
        """Make images upright again: what `move` has done, but for what has left the picture and for interpolation.

        Args:
            maps: `(*batch, M, H, W)`.
            pose: `(*batch, P)`.

        Returns:
            `(*batch, M, H, W)`.
        """
        angle, shift, size = self._numbers(pose)
        return self._sampled(maps, _rotation(angle) * size.exp()[..., None, None], shift)

    def _sampled(self, maps: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
        """The maps at `turn p + shift` for each pixel p, whose unit is half the longer side."""
        # grid_sample has both edges at -1 and 1, whatever the sides are
        down, right = (max(side - 1, 1) / max(self.image) for side in self.image)
        rows = [
            torch.stack([turn[..., 0, 0], turn[..., 0, 1] * (down / right), shift[..., 0] / right], -1),
            torch.stack([turn[..., 1, 0] * (right / down), turn[..., 1, 1], shift[..., 1] / down], -1),
        ]
        affine = torch.stack(rows, -2)
        batch = torch.broadcast_shapes(maps.shape[:-3], affine.shape[:-2])
        maps = maps.expand(*batch, *maps.shape[-3:]).reshape(-1, *maps.shape[-3:])
        affine = affine.expand(*batch, 2, 3).reshape(-1, 2, 3)
        grid = F.affine_grid(affine, list(maps.shape), align_corners=True)
        moved = F.grid_sample(maps, grid.to(maps.dtype), padding_mode="border", align_corners=True)
        return moved.reshape(*batch, *moved.shape[1:])


def _rotation(angle: Tensor) -> Tensor:
    """Matrices `(*batch, 2, 2)` that turn (right, down) anticlockwise, as one sees it."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)


class Posed(nn.Module):
    """`move(net(z, ...), pose)`: a decoder that draws images upright, whose parameters are then moved by the pose.

    Args:
        net: A network of any parents whose output for a row, `out_shape`, has whole maps of H x W numbers, such as
            `family.param_shape` of images or of flat images. The pose is given after its parents.
        pose: How the pose moves an image.

    Raises:
        ShapeError: The output of `net` does not consist of such maps.

    References:
        Detlefsen and Hauberg 2019, arXiv:1906.11881.

    Example:
        >>> family = fam.Bernoulli((28, 28))
        >>> pose = pv.nets.Pose((28, 28))
        >>> decoder = pv.Conditional(pv.nets.Posed(pv.nets.MLP(4, family.param_shape, hidden=(16,)), pose), family)
        >>> decoder(torch.zeros(5, 4), torch.randn(5, pose.size)).mean.shape
        torch.Size([5, 28, 28])
    """

    def __init__(self, net: nn.Module, pose: Pose) -> None:
        super().__init__()
        self.net, self.pose = net, pose
        self.out_shape = as_size(getattr(net, "out_shape", ()))
        _check_maps("Posed", "a network whose output consists", self.out_shape, pose)

    def forward(self, *parents: Tensor) -> Tensor:
        out: Tensor = self.net(*parents[:-1])
        batch = out.shape[: out.dim() - len(self.out_shape)]
        moved = self.pose.move(out.reshape(*batch, -1, *self.pose.image), parents[-1])
        return moved.reshape(*moved.shape[:-3], *self.out_shape)


class Upright(nn.Module):
    """`net(move_back(x, pose), ...)`: an encoder that sees images as they were before the pose moved them.

    Images are without gaps: a missing pixel (NaN) would make its neighbours missing, too.

    Args:
        net: A network of x and any other parents; the output, `(*batch, *out_shape)`, is its own.
        pose: How the pose moves an image. It is given after x.
        in_shape: Shape of one row of x, such as (H, W), (C, H, W) or H * W; (H, W) by default.

    Raises:
        ShapeError: `in_shape` does not consist of maps of H x W numbers, or a call's x has another shape.

    References:
        Detlefsen and Hauberg 2019, arXiv:1906.11881.

    Example:
        >>> pose = pv.nets.Pose((28, 28))
        >>> net = pv.nets.Upright(pv.nets.MLP(784, 2, hidden=(16,)), pose, in_shape=784)
        >>> net(torch.zeros(5, 784), torch.randn(5, pose.size)).shape
        torch.Size([5, 2])
    """

    def __init__(self, net: nn.Module, pose: Pose, in_shape: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.net, self.pose = net, pose
        self.in_shape = pose.image if in_shape is None else as_size(in_shape)
        self.out_shape = getattr(net, "out_shape", None)
        _check_maps("Upright", "rows that consist", self.in_shape, pose)

    def forward(self, x: Tensor, pose: Tensor, *others: Tensor) -> Tensor:
        lead = x.dim() - len(self.in_shape)
        if lead < 0 or x.shape[lead:] != self.in_shape:
            wanted = ", ".join(["*batch", *map(str, self.in_shape)])
            raise ShapeError(
                f"Upright needs images ({wanted}), got {tuple(x.shape)}. Give one row's shape as in_shape."
            )
        seen = self.pose.move_back(x.reshape(*x.shape[:lead], -1, *self.pose.image), pose)
        result: Tensor = self.net(seen.reshape(*seen.shape[:-3], *self.in_shape), *others)
        return result


def _check_maps(who: str, what: str, shape: torch.Size, pose: Pose) -> None:
    """ShapeError unless a shape consists of maps of the pose's height and width."""
    height, width = pose.image
    flat = len(shape) < 2 or shape[-2:] != pose.image
    if not shape or (flat and shape[-1] % (height * width)):
        raise ShapeError(
            f"{who} needs {what} of images of {height} x {width} numbers, (..., {height}, {width}) or "
            f"(..., {height * width}), got {tuple(shape)}. Give Pose the height and width of your images."
        )
