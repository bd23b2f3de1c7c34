"""Priors of weights: a distribution for each parameter of a network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae._arguments import as_number
from pyrovae.errors import OptionError

# The name of a parameter and the parameter -> a distribution of one value of it.
WeightPrior = Callable[[str, Tensor], Any]


class FanIn:
    """`w ~ N(0, scale^2 / n)`, where n is the number of inputs of a layer: functions keep their scale as layers get wider.

    The n of a weight matrix (outputs, inputs) is its number of columns, and that of a convolution the product of all of its
    dimensions but the first. Vectors, such as biases, get `N(0, scale^2)`.

    Args:
        scale: Standard deviation of what a layer computes from inputs of mean square 1; positive.

    Raises:
        OptionError: The scale is not positive and finite.

    References:
        Neal 1996, *Bayesian Learning for Neural Networks*, chapter 2.

    Example:
        >>> prior = pv.weights.FanIn(2.0)
        >>> prior("weight", torch.zeros(3, 16)).base_dist.scale[0, 0]
        tensor(0.5000)
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = as_number("scale of FanIn", scale, above=0)

    def __call__(self, name: str, parameter: Tensor) -> Any:
        inputs = math.prod(parameter.shape[1:]) if parameter.dim() > 1 else 1
        scale = torch.full_like(parameter, self.scale / math.sqrt(max(1, inputs)), requires_grad=False)
        return dist.Normal(torch.zeros_like(scale), scale).to_event(parameter.dim())

    def __repr__(self) -> str:
        return f"FanIn({self.scale!r})"


def prior_of(prior: Any, name: str, parameter: Tensor) -> Any:
    """The distribution of one parameter, with its shape as event shape.

    Raises:
        OptionError: The prior is no distribution of single numbers, nor a function that returns a distribution of the
            parameter's shape.
    """
    if isinstance(prior, torch.distributions.Distribution):
        if prior.batch_shape or prior.event_shape:
            raise OptionError(
                "A prior of weights is a distribution of one number, such as pyro.distributions.Normal(0.0, 1.0), or a "
                "function of a parameter's name and value, such as pv.weights.FanIn(); this one has shapes "
                f"{tuple(prior.batch_shape)} and {tuple(prior.event_shape)}."
            )
        made = _on(prior, parameter).expand(parameter.shape)
        return made.to_event(parameter.dim()) if parameter.dim() else made
    made = prior(name, parameter)
    shape = getattr(made, "event_shape", None)
    if shape != parameter.shape or made.batch_shape:
        raise OptionError(
            f"The prior of {name!r} must be a distribution of events of shape {tuple(parameter.shape)}, got "
            f"{made if shape is None else f'events of shape {tuple(shape)} in a batch of shape {tuple(made.batch_shape)}'}: "
            "use .to_event(parameter.dim())."
        )
    return made


def check_prior(prior: Any) -> Any:
    """A prior as it is given. OptionError unless it is a distribution of Pyro or a function."""
    if isinstance(prior, torch.distributions.Distribution) and not callable(prior):
        raise OptionError(
            f"The prior is a {type(prior).__name__} of torch.distributions: use that of pyro.distributions, which takes the "
            "same arguments."
        )
    if not callable(prior) or isinstance(prior, type):
        raise OptionError(
            "A prior of weights is a distribution of one number, such as pyro.distributions.Normal(0.0, 1.0), or a function of "
            f"a parameter's name and value; got {prior!r}."
        )
    return prior


def _on(distribution: Any, like: Tensor) -> Any:
    """A distribution with its tensors on the device, and in the precision, of another tensor."""
    made = copy.copy(distribution)
    for name, value in vars(distribution).items():
        if isinstance(value, Tensor):
            made.__dict__[name] = value.to(like) if value.is_floating_point() else value.to(like.device)
        elif isinstance(value, torch.distributions.Distribution):
            made.__dict__[name] = _on(value, like)
    return made
