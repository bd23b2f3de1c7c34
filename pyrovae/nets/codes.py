"""Codes of labels and numbers, in the form that a network takes."""

import torch
from torch import Tensor, nn

from pyrovae.errors import ShapeError
from pyrovae.nets.mlp import as_length, one_hot


class OneHot(nn.Module):
    """`y -> (1[y = 0], ..., 1[y = C - 1])`: the one-hot code of a class.

    Input `(*batch)` of any dtype, output `(*batch, num_classes)`. Values that are no class give zeros, see `one_hot`;
    `pv.fit` and all functions that take rows refuse them.

    Args:
        num_classes: C, the number of classes.

    Raises:
        ShapeError: `num_classes` is not a positive int.

    Example:
        >>> pv.nets.OneHot(3)(torch.tensor([2, 0]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """

    like: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = as_length("num_classes", num_classes)
        self.out_shape = torch.Size([self.num_classes])
        self.register_buffer("like", torch.empty(0), persistent=False)  # of the dtype that the module is moved to

    def forward(self, y: Tensor) -> Tensor:
        return one_hot(y, self.num_classes, self.like.dtype)

    def extra_repr(self) -> str:
        return str(self.num_classes)

    def outside(self, y: Tensor) -> Tensor:
        """Which values are no class, bool of the shape of y. Looked at where data are checked, and not in every call."""
        return is_no_class(y, self.num_classes)


class Thermometer(nn.Module):
    """`y -> (1[y > 0], ..., 1[y > C - 2])`: a code of ordered grades, in which neighbouring grades are similar.

    Input `(*batch)`, output `(*batch, num_classes - 1)`.

    Args:
        num_classes: C, the number of grades, at least 2.

    Raises:
        ShapeError: `num_classes` is less than 2.

    References:
        Frank and Hall 2001, *A simple approach to ordinal classification*.

    Example:
        >>> pv.nets.Thermometer(4)(torch.tensor([0, 2, 3]))
        tensor([[0., 0., 0.],
                [1., 1., 0.],
                [1., 1., 1.]])
    """

    like: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = as_length("num_classes", num_classes)
        if self.num_classes < 2:
            raise ShapeError(f"Thermometer needs num_classes of at least 2, got {num_classes}.")
        self.out_shape = torch.Size([self.num_classes - 1])
        self.register_buffer("like", torch.empty(0), persistent=False)  # of the dtype that the module is moved to

    def forward(self, y: Tensor) -> Tensor:
        steps = torch.arange(self.num_classes - 1, device=y.device)
        return (y.unsqueeze(-1) > steps).to(self.like.dtype)

    def extra_repr(self) -> str:
        return str(self.num_classes)

    def outside(self, y: Tensor) -> Tensor:
        """Which values are no grade, bool of the shape of y. Looked at where data are checked, and not in every call."""
        return is_no_class(y, self.num_classes)


def is_no_class(y: Tensor, num_classes: int) -> Tensor:
    """Which values are none of 0, ..., num_classes - 1."""
    return one_hot(y, num_classes).sum(-1) == 0


class Column(nn.Module):
    """`y -> (y)`: a number as a vector of one element.

    Input `(*batch)`, floating, output `(*batch, 1)`.

    Example:
        >>> pv.nets.Column()(torch.tensor([1.5, 2.5])).shape
        torch.Size([2, 1])
    """

    def __init__(self) -> None:
        super().__init__()
        self.out_shape = torch.Size([1])

    def forward(self, y: Tensor) -> Tensor:
        return y.unsqueeze(-1)
