"""Link functions, as in a generalised linear model: the raw output of a network -> the distribution of one row.

A family serves as a likelihood and as a guide alike. It tells a network what to put out (`param_shape`), so nobody
counts outputs by hand. A family of one's own whose elements are independent given the parameters is a few lines:

    class Laplace(Elementwise):
        num_params = 2

        def link(self, loc, raw):
            return dist.Laplace(loc, F.softplus(raw) + 1e-4)

A constant enters a distribution by `new_full`, a kernel that fills: a Python number would be copied to the device at
every call, which waits for it and cannot be captured. Whether values and parameters are validated is the caller's
choice (`pyro.enable_validation`); with validation off nothing in here, nor in `log_prob`, waits for a device.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.errors import OptionError, ShapeError
from pyrovae.nets.mlp import as_size


class Family(nn.Module):
    """f: params -> p(row | params). params: (*batch, *param_shape); rows: (*batch, *event_shape).

    `event_shape` is an int or a tuple of ints, `()` for a number. A subclass gives `param_shape` and `forward`, and
    calls `check` first. McCullagh & Nelder 1989, *Generalized Linear Models*.
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_size(event_shape)

    @property
    def param_shape(self) -> torch.Size:
        """The shape of the parameters of one row."""
        raise NotImplementedError

    def forward(self, params: Tensor, **given: Any) -> TorchDistributionMixin:
        raise NotImplementedError

    def check(self, params: Tensor) -> None:
        """Raises ShapeError unless params has shape (*batch, *param_shape)."""
        if params.shape[-len(self.param_shape) :] != self.param_shape:
            wanted = ", ".join(["*batch", *map(str, self.param_shape)])
            raise ShapeError(
                f"{self} needs parameters of shape ({wanted}), got {tuple(params.shape)}. "
                "Give the network out_shape=family.param_shape."
            )

    def extra_repr(self) -> str:
        event: Any = self.event_shape[0] if len(self.event_shape) == 1 else tuple(self.event_shape)
        options = [
            p for p in inspect.signature(type(self)).parameters.values() if p.name not in ("event_shape", "self")
        ]
        options = [p for p in options if hasattr(self, p.name)]
        changed = [f"{p.name}={value!r}" for p in options if (value := getattr(self, p.name)) != p.default]
        return ", ".join([repr(event), *changed])


class Elementwise(Family):
    """p(row | params) = prod_d p(row_d | params_{1d}, ..., params_{Pd}), d over the elements of the row.

    params: (*batch, P, *event_shape) with P = `num_params`; rows: (*batch, *event_shape). A subclass gives
    `num_params` and `link`. Raises ShapeError if params has another trailing shape.
    """

    num_params: int

    @property
    def param_shape(self) -> torch.Size:
        return torch.Size((self.num_params, *self.event_shape))

    def link(self, *raw: Any, **given: Any) -> TorchDistributionMixin:
        """P raw tensors (*batch, *event_shape) -> a distribution with that batch_shape, one for each element."""
        raise NotImplementedError

    def forward(self, params: Tensor, **given: Any) -> TorchDistributionMixin:
        self.check(params)
        elements = self.link(*params.unbind(-1 - len(self.event_shape)), **given)
        return elements.to_event(len(self.event_shape))


def soft_exp(raw: Tensor, bound: float) -> Tensor:
    """exp(c tanh(raw / c)), c = log(bound): exp(raw) near 0, from 1 / bound to bound wherever raw is."""
    c = math.log(bound)
    return torch.exp(c * torch.tanh(raw / c))


def positive(family: Family, name: str, value: int, least: int = 1) -> int:
    """The value, if it is an int of at least `least`; OptionError otherwise."""
    if not isinstance(value, int) or value < least:
        wanted = "a positive int" if least == 1 else f"an int of at least {least}"
        raise OptionError(f"{type(family).__name__} needs {name} to be {wanted}, got {value!r}.")
    return value
