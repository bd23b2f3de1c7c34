"""Codes: what a network is given in place of a label or a number."""

import torch
from torch import Tensor, nn

from pyrovae.nets.mlp import as_size, one_hot


class OneHot(nn.Module):
    """y -> (1[y = 0], ..., 1[y = C-1]). y: (*batch), of any dtype; result: (*batch, num_classes), see `one_hot`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        (self.num_classes,) = self.out_shape = as_size(num_classes)

    def forward(self, y: Tensor) -> Tensor:
        return one_hot(y, self.num_classes)


class Thermometer(nn.Module):
    """y -> (1[y > 0], ..., 1[y > C-2]): a code of grades, near ones alike. y: (*batch); result: (*batch, num_classes - 1).

    `num_classes` C is at least 2, else ShapeError. Frank & Hall 2001, *A simple approach to ordinal classification*.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.out_shape = as_size(num_classes - 1)

    def forward(self, y: Tensor) -> Tensor:
        steps = torch.arange(self.num_classes - 1, device=y.device)
        return (y.unsqueeze(-1) > steps).to(torch.get_default_dtype())


class Column(nn.Module):
    """y -> (y): a number as a vector of one element. y: (*batch), floating; result: (*batch, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.out_shape = as_size(1)

    def forward(self, y: Tensor) -> Tensor:
        return y.unsqueeze(-1)
