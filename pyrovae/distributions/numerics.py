"""Logarithms of differences, computed without cancellation."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def log1mexp(x: Tensor) -> Tensor:
    """`log(1 - exp(-x))` for x > 0, elementwise and accurate for small and large x. Maechler 2012, vignette of R's Rmpfr."""
    near = x < math.log(2)
    # give each branch an argument at which its derivative is finite, used or not
    small, large = torch.where(near, x, torch.ones_like(x)), torch.where(near, torch.ones_like(x), x)
    return torch.where(near, torch.log(-torch.expm1(-small)), torch.log1p(-torch.exp(-large)))


def log_sigmoid_difference(upper: Tensor, lower: Tensor, width: Tensor) -> Tensor:
    """`log(s(upper) - s(lower)) = log s(upper) + log s(-lower) + log(1 - exp(-width))`, s the logistic function.

    `width = upper - lower > 0` is an argument of its own, since subtracting two large numbers would lose it. Shapes broadcast.
    """
    return F.logsigmoid(upper) + F.logsigmoid(-lower) + log1mexp(width)
