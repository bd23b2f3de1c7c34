"""The base classes of families, the link functions of a generalised linear model with a network in place of the linear part.

A family maps the raw, unconstrained output of a network to a distribution over one row, and can serve as a likelihood or
as a guide. It declares the shape of the parameters that it needs (`param_shape`), so that networks can be built to fit.
A new family whose elements are independent given the parameters takes a few lines::

    class Laplace(Elementwise):
        num_params = 2

        def link(self, loc, raw):
            return dist.Laplace(loc, F.softplus(raw) + 1e-4)

Pass constants to a distribution as `loc.new_full((), value)`, which fills them in on the device. A Python number would be
copied to the device at every call, which waits for the device and cannot be captured in a CUDA graph. Whether values and
parameters are validated is the caller's choice (`pyro.enable_validation`); with validation off, neither a family nor the
`log_prob` of its distribution waits for the device.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae._arguments import MOST, as_count, told
from pyrovae._html import Shown
from pyrovae.errors import OptionError, ShapeError
from pyrovae.nets.mlp import as_size


class Family(Shown, nn.Module):
    """Base class of families: `params -> p(x | params)`.

    A family takes parameters `(*batch, *param_shape)` and returns a distribution with batch shape `(*batch)` over rows of shape
    `event_shape`. A subclass defines `param_shape` and `forward`, which first calls `check`; subclass `Elementwise` instead if
    the elements of a row are independent.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.

    Raises:
        ShapeError: `event_shape` is not a positive int or a tuple of them.

    References:
        McCullagh and Nelder 1989, *Generalized Linear Models*.

    Example:
        >>> family = fam.FullNormal(3)
        >>> isinstance(family, fam.Family), family.event_shape, family.param_shape
        (True, torch.Size([3]), torch.Size([9]))
        >>> q = family(torch.zeros(5, *family.param_shape))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([3]))
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_size(event_shape)

    @property
    def param_shape(self) -> torch.Size:
        """Shape of the parameters of one row, which a network has to produce."""
        raise NotImplementedError

    def forward(self, params: Tensor, **given: Any) -> TorchDistributionMixin:
        """The distribution with these parameters.

        Args:
            params: Raw network output, `(*batch, *param_shape)`.
            given: What else some families take by name, such as `library` for counts.

        Returns:
            A distribution with batch shape `(*batch)` and event shape `event_shape`.

        Raises:
            ShapeError: `params` has another trailing shape.
        """
        raise NotImplementedError

    def check(self, params: Tensor) -> None:
        """Check the trailing shape of parameters.

        Args:
            params: Raw network output, to be of shape `(*batch, *param_shape)`.

        Raises:
            ShapeError: It has another shape.
        """
        if params.shape[-len(self.param_shape) :] != self.param_shape:
            wanted = ", ".join(["*batch", *map(str, self.param_shape)])
            raise ShapeError(
                f"{self} needs parameters of shape ({wanted}), got {tuple(params.shape)}. "
                "Give the network out_shape=family.param_shape."
            )

    def features(self, x: Tensor) -> Tensor:
        """What an encoder sees of rows x, `(*batch, *event_shape)`: by default the values themselves; see `Features`."""
        return x

    def extra_repr(self) -> str:
        event: Any = self.event_shape[0] if len(self.event_shape) == 1 else tuple(self.event_shape)
        options = [
            p for p in inspect.signature(type(self)).parameters.values() if p.name not in ("event_shape", "self")
        ]
        options = [p for p in options if hasattr(self, p.name)]
        changed = [f"{p.name}={value!r}" for p in options if (value := getattr(self, p.name)) != p.default]
        return ", ".join([repr(event), *changed])


class Elementwise(Family):
    """Base class of families of independent elements: `p(x | params) = prod_d p(x_d | params_1d, ..., params_Pd)`.

    The parameters have shape `(*batch, P, *event_shape)`: P = `num_params` numbers for each element of a row
    `(*batch, *event_shape)`. A subclass defines `num_params` and `link`.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.

    Raises:
        ShapeError: `event_shape` is not a positive int or a tuple of them.

    Example:
        >>> import pyro.distributions as dist
        >>> class Exponential(fam.Elementwise):
        ...     num_params = 1
        ...
        ...     def link(self, log_rate):
        ...         return dist.Exponential(log_rate.exp())
        >>> family = Exponential((2, 3))
        >>> family.param_shape
        torch.Size([1, 2, 3])
        >>> family(torch.zeros(5, 1, 2, 3)).log_prob(torch.ones(5, 2, 3))  # -1 nat for each of 6 elements
        tensor([-6., -6., -6., -6., -6.])
    """

    num_params: int

    @property
    def param_shape(self) -> torch.Size:
        return torch.Size((self.num_params, *self.event_shape))

    def link(self, *raw: Any, **given: Any) -> TorchDistributionMixin:
        """The distribution of each element.

        Args:
            raw: P tensors of shape `(*batch, *event_shape)`, one for each parameter.
            given: What else the family takes by name.

        Returns:
            A distribution of scalars with batch shape `(*batch, *event_shape)`.
        """
        raise NotImplementedError

    def forward(self, params: Tensor, **given: Any) -> TorchDistributionMixin:
        self.check(params)
        elements = self.link(*params.unbind(-1 - len(self.event_shape)), **given)
        return elements.to_event(len(self.event_shape))


def soft_exp(raw: Tensor, bound: float) -> Tensor:
    """`exp(c tanh(raw / c))` with `c = log(bound)`: close to `exp(raw)` near 0, and between `1 / bound` and `bound`."""
    c = math.log(bound)
    return torch.exp(c * torch.tanh(raw / c))


def positive(family: Family, name: str, value: int, least: int = 1) -> int:
    """A number of so many at least as a Python int, or OptionError."""
    return as_count(f"{name} of {type(family).__name__}", value, least, MOST)


def as_family(family: Any) -> Family:
    """A family as it is. OptionError for what is none, such as a class without its arguments."""
    if isinstance(family, type):
        raise OptionError(
            f"A family is an object, such as families.Normal(4), with the shape of one row, and {family.__name__} is a class: "
            f"write {family.__name__}(...)."
        )
    if not callable(family) or not isinstance(getattr(family, "param_shape", None), Sequence):
        raise OptionError(
            f"A family is needed, a module with a param_shape, such as families.Normal(4), with the shape of one row, got "
            f"{told(family)}."
        )
    found: Family = family
    return found
