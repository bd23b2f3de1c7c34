"""Other values in the place of a pair's parameters while it runs, also one value for each particle of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pyrovae.weights.choose import Chosen


@contextmanager
def exchanged(chosen: Mapping[str, Chosen], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the modules that keep the chosen parameters have these values inside, and their parameters again afterwards.

    A value has the shape of its parameter, or, in a run of K particles, `(K, 1, ..., 1, *shape)` with a dimension for each
    plate. Linear layers and layer normalisation then take one weight for each particle, and what is computed element by
    element broadcasts; a convolution, say, fails.
    """
    kept = [(module, name, one.parameter) for one in chosen.values() for module, name in one.places]
    several = any(values[name].dim() > one.parameter.dim() for name, one in chosen.items())
    with ExitStack() as stack:
        stack.enter_context(_NotParams(values.values()))
        if several:
            stack.enter_context(OneForEachParticle())
        try:
            for name, one in chosen.items():
                for module, attribute in one.places:
                    module._parameters[attribute] = values[name]  # type: ignore[assignment]
            yield
        finally:
            for module, attribute, parameter in kept:
                module._parameters[attribute] = parameter


class _NotParams(Messenger):  # type: ignore[misc]  # Pyro has no types
    """Let `pyro.module` pass over values that stand for parameters, which it would make parameters of the store."""

    def __init__(self, values: Any) -> None:
        super().__init__()
        self.known = {id(value) for value in values}

    def _pyro_param(self, msg: Any) -> None:
        if any(id(arg) in self.known for arg in msg["args"][1:]):
            msg["value"], msg["done"], msg["stop"] = msg["args"][1], True, True


class OneForEachParticle(TorchFunctionMode):
    """Layers whose weights have dimensions on the left, one for each of those of the batch: `(*batch, *shape)`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return linear(*args, **(kwargs or {}))
        if func is F.layer_norm:
            return layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`W x + b` for W of shape `(*batch, out, in)` and b of shape `(*batch, out)`; batch shapes broadcast with that of x."""
    if weight.dim() <= 2:
        if bias is None or bias.dim() <= 1:
            return F.linear(input, weight, bias)
        return F.linear(input, weight) + bias
    if weight.shape[-3] == 1:  # the same for all rows: one product of matrices
        rows = input if input.dim() > 1 else input.unsqueeze(0)
        out = torch.matmul(rows, weight.squeeze(-3).mT)
    else:
        out = torch.matmul(input.unsqueeze(-2), weight.mT).squeeze(-2)
    return out if bias is None else out + bias


def layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalisation whose weight and bias have dimensions of a batch on the left."""
    out = F.layer_norm(input, normalized_shape, eps=eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias
