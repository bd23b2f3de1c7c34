"""Quantisers: vectors to the nearest of finitely many codes, with a gradient that passes through.

A quantiser takes a grid of vectors e, `(*batch, width, *grid)`, and returns a grid of codes z of the same shape, one of
`num_codes` at each place. `indices(z)` numbers the codes and `lookup(indices)` is its inverse. What a quantiser returns is
exactly a code, whatever its gradient: `z = q + (t - t.detach())`, where q is the code and t what the gradient follows.

`FSQ` has a fixed lattice of codes and needs nothing else. Those that learn their codes are in `codebooks`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae._arguments import MOST, as_count, as_widths
from pyrovae._dispatch import recorded
from pyrovae.errors import DataError, ShapeError
from pyrovae.nets.mlp import as_size


class Quantiser(nn.Module):
    """Base class of quantisers: `e -> z`, the nearest code at each place of a grid.

    A subclass defines `forward`, `indices` and `lookup`, and for learned codebooks `residuals`.

    Args:
        num_codes: K, the number of codes.
        width: Number of elements of a code.
        grid: Shape of the grid, an int or a tuple of ints.

    Raises:
        OptionError: `num_codes` or `width` is no whole number of at least 2 and 1.
        ShapeError: `grid` is no shape.

    References:
        van den Oord, Vinyals and Kavukcuoglu 2017, arXiv:1711.00937.

    Example:
        >>> codes = pv.nets.FSQ((5, 5, 5), grid=(2, 2))
        >>> isinstance(codes, pv.nets.Quantiser), codes.num_codes, codes.event_shape, codes.index_shape
        (True, 125, torch.Size([3, 2, 2]), torch.Size([2, 2]))
    """

    learned = False  # whether the codes follow the vectors, so that the objective needs terms for that
    commitment = 0.0  # the weight of |e - z|^2 in the objective, of a learned codebook
    moves = False  # whether a step of training changes the codes by its rows, and not by a gradient
    started = True  # whether there are codes; those that move have none before their first step of training

    def __init__(self, num_codes: int, width: int, grid: int | Sequence[int]) -> None:
        super().__init__()
        self.num_codes = whole(self, "num_codes", num_codes, 2)
        self.width = whole(self, "width", width, 1)
        self.grid = as_size(grid)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one grid of codes z."""
        return torch.Size((self.width, *self.grid))

    @property
    def index_shape(self) -> torch.Size:
        """Shape of the numbers of these codes."""
        return self.grid

    def forward(self, e: Tensor) -> Tensor:
        """The nearest codes, with a gradient for e.

        Args:
            e: Vectors, `(*batch, width, *grid)`.

        Returns:
            The codes z, `(*batch, *event_shape)`.

        Raises:
            ShapeError: e has another trailing shape.
        """
        raise NotImplementedError

    def indices(self, z: Tensor) -> Tensor:
        """The numbers of codes, from 0 to K - 1.

        Args:
            z: Codes, `(*batch, *event_shape)`; other vectors count as their nearest code.

        Returns:
            Whole numbers, `(*batch, *index_shape)`.
        """
        raise NotImplementedError

    def lookup(self, indices: Tensor) -> Tensor:
        """The codes with these numbers: the inverse of `indices`.

        Args:
            indices: Whole numbers from 0 to K - 1, `(*batch, *index_shape)`.

        Returns:
            The codes, `(*batch, *event_shape)`.

        Raises:
            ShapeError: The numbers have another trailing shape, or are no whole numbers.
            DataError: On the CPU, a number is not that of a code.
        """
        raise NotImplementedError

    def vectors(self, z: Tensor) -> Tensor:
        """What a decoder reads of codes z, `(*batch, width, *grid)`: the codes themselves, or their sum over levels."""
        return z

    def residuals(self, e: Tensor, z: Tensor) -> Tensor:
        """What each code of z, `(*batch, *event_shape)`, stands for: e itself, or what the levels before it left."""
        return e

    def check(self, values: Tensor, shape: torch.Size) -> None:
        """Raise ShapeError unless `values` has the shape `(*batch, *shape)`."""
        if values.shape[values.dim() - len(shape) :] != shape:
            wanted = ", ".join(["*batch", *map(str, shape)])
            raise ShapeError(
                f"{type(self).__name__} needs a tensor of shape ({wanted}), got {tuple(values.shape)}. Build the networks and "
                "the quantiser for the same grid, and give codes of the size that this model has."
            )

    def check_indices(self, indices: Tensor) -> None:
        """Raise ShapeError or DataError unless `indices` are numbers of codes, `(*batch, *index_shape)`.

        How large they are is looked up on the CPU only, where that takes no time, and not while a step is traced.
        """
        self.check(indices, self.index_shape)
        if indices.dtype is torch.bool or indices.is_floating_point() or indices.is_complex():
            raise ShapeError(f"{type(self).__name__} needs whole numbers of codes, got {indices.dtype}: use .long().")
        if indices.device.type != "cpu" or not indices.numel() or recorded():
            return
        low, high = (int(extreme) for extreme in indices.aminmax())
        if low < 0 or high >= self.num_codes:
            raise DataError(
                f"{type(self).__name__} has {self.num_codes} codes, numbered from 0 to {self.num_codes - 1}, got "
                f"{low if low < 0 else high}: give numbers as indices(z) returns them."
            )


def whole(owner: nn.Module, name: str, value: Any, least: int) -> int:
    """A whole number of at least `least`, or OptionError."""
    return as_count(f"{name} of {type(owner).__name__}", value, least, MOST)


def straight_through(value: Tensor, through: Tensor) -> Tensor:
    """Exactly `value`, with the gradient of `through`. Bengio, Leonard and Courville 2013, arXiv:1308.3432."""
    return value.detach() + (through - through.detach())


class FSQ(Quantiser):
    """Finite scalar quantisation: each element of a vector is rounded to one of a few levels. Nothing is learned.

    With L levels, `h = (L - 1) / 2`, `o = 1/2` for an even and 0 for an odd L, an element u becomes
    `round(b(u)) / floor(L / 2)` with `b(u) = h tanh(u + artanh(o / h)) - o`, which keeps 0 at 0. Rounding passes its gradient
    on as it is, so that `dz/du = b'(u) / floor(L / 2)`. The codes are all combinations of the levels, `K = L_1 ... L_d`, and
    nearly all of them are used without any further term in the objective.

    Args:
        levels: Number of levels of each element, at least 3, such as (8, 5, 5, 5) for 1000 codes.
        grid: Shape of the grid of codes, an int or a tuple of ints.

    Raises:
        OptionError: `levels` is empty, or one of them is no whole number of at least 3.
        ShapeError: `grid` is no shape, or an input has another trailing shape.

    References:
        Mentzer et al. 2023, arXiv:2309.15505.

    Example:
        >>> codes = pv.nets.FSQ((5, 3), grid=2)
        >>> z = codes(torch.tensor([[0.0, 9.0], [-9.0, 0.1]]))
        >>> z
        tensor([[ 0.,  1.],
                [-1.,  0.]])
        >>> codes.indices(z), codes.num_codes
        (tensor([2, 9]), 15)
        >>> torch.equal(codes.lookup(codes.indices(z)), z)
        True
    """

    reach: Tensor
    offset: Tensor
    shift: Tensor
    steps: Tensor
    sizes: Tensor
    basis: Tensor

    def __init__(self, levels: int | Sequence[int] = (8, 6, 5), grid: int | Sequence[int] = 1) -> None:
        sizes_of_levels = as_widths("levels of FSQ", levels, some=True, least=3, one="element of a code")
        super().__init__(math.prod(sizes_of_levels), len(sizes_of_levels), grid)
        self.levels = sizes_of_levels
        sizes = torch.tensor(self.levels).reshape(-1, *(1 for _ in self.grid))
        half = (sizes - 1) / 2
        offset = torch.where(sizes % 2 == 0, 0.5, 0.0)
        parts = {
            "reach": half,
            "offset": offset,
            "shift": torch.atanh(offset / half),
            "steps": (sizes // 2).to(half),
            "sizes": sizes,
            "basis": sizes.cumprod(0) // sizes,
        }
        for name, value in parts.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, e: Tensor) -> Tensor:
        self.check(e, self.event_shape)
        bounded = (self.reach * torch.tanh(e + self.shift) - self.offset) / self.steps
        return straight_through(torch.round(bounded * self.steps) / self.steps, bounded)

    def indices(self, z: Tensor) -> Tensor:
        self.check(z, self.event_shape)
        digits = torch.round(z.detach() * self.steps).long() + self.sizes // 2
        digits = torch.minimum(digits.clamp_min(0), self.sizes - 1)
        return (digits * self.basis).sum(-1 - len(self.grid))

    def lookup(self, indices: Tensor) -> Tensor:
        self.check_indices(indices)
        digits = indices.unsqueeze(-1 - len(self.grid)) // self.basis % self.sizes
        return (digits - self.sizes // 2) / self.steps

    def extra_repr(self) -> str:
        return f"levels={self.levels}, grid={tuple(self.grid)}"
