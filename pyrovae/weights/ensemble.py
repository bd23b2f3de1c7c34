"""A pair whose weights are those of one of several pairs, which of them being a global latent variable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae._arguments import as_several
from pyrovae.errors import OptionError
from pyrovae.pair.program import PairLike
from pyrovae.weights.choose import every_parameter, not_exchangeable
from pyrovae.weights.exchange import exchanged
from pyrovae.weights.pairs import Side

MEMBER = "member"  # the site


class Ensemble(nn.Module):
    """`p(x, z) = (1/M) sum_m p_m(x, z)`: M pairs of one structure, all rows by the same one, m uniform and summed out.

    `pv.ensemble` makes it of fits. The site "member" is global and enumerated in the guide: a log-weight of a row is that of
    the average density of the members, and what is drawn is drawn by one of them. It is not for fitting: its members share
    nothing that a fit could find.

    Args:
        members: Modules with the methods `model` and `guide`, alike in everything but their parameters.

    Raises:
        OptionError: There are fewer than two members, or they differ in more than their parameters' values, or their weights
            cannot be exchanged.

    References:
        Lakshminarayanan, Pritzel and Blundell 2017, arXiv:1612.01474.

    Example:
        >>> def build():
        ...     return pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> print(pv.check_pair(pv.weights.Ensemble([build(), build()]), torch.zeros(5, 6)))
        member  latent     global  event ()  enumerated in the guide
        z       latent     per row  event (2,)
        x       observed   per row  event (6,) <- x
    """

    def __init__(self, members: Sequence[PairLike]) -> None:
        super().__init__()
        members = as_several("members", members, "pairs")
        wrong = [type(one).__name__ for one in members if not isinstance(one, nn.Module)]
        if wrong or len(members) < 2:
            raise OptionError(
                "An ensemble consists of at least two modules with the methods model and guide, got "
                f"{', '.join(wrong) or len(members)}."
            )
        self.members = nn.ModuleList(one for one in members if isinstance(one, nn.Module))
        self._chosen = [every_parameter(one) for one in members]
        first = self._chosen[0]
        shapes = [{name: tuple(one.parameter.shape) for name, one in each.items()} for each in self._chosen]
        buffers = [dict(one.named_buffers()) for one in self.members]
        layers = [_layers(one) for one in self.members]
        alike = all(one == shapes[0] for one in shapes) and all(one == layers[0] for one in layers)
        if not alike or any(not _equal(one, buffers[0]) for one in buffers):
            raise OptionError(
                "The members of an ensemble are of one structure: they have the same layers, their parameters the same names "
                "and shapes, and their buffers, such as the running means of batch normalisation, the same values."
            )
        if why := next((why for one in first.values() if (why := not_exchangeable(one.places))), ""):
            raise OptionError(f"The weights of these members cannot be exchanged: {why}.")

    @property
    def pair(self) -> Any:
        """The first member, whose code runs with the weights of all."""
        return self.members[0]

    @property
    def model(self) -> Callable[..., Any]:
        return Side(self, "model")

    @property
    def guide(self) -> Callable[..., Any]:
        return Side(self, "guide")

    def _model(self, *args: Any, **batch: Any) -> Any:
        member = pyro.sample(MEMBER, self._uniform())
        with exchanged(self._chosen[0], self._weights(member)):
            return self.pair.model(*args, **batch)

    def _guide(self, *args: Any, **batch: Any) -> Any:
        member = pyro.sample(MEMBER, self._uniform(), infer={"enumerate": "parallel"})
        with exchanged(self._chosen[0], self._weights(member)):
            return self.pair.guide(*args, **batch)

    def _uniform(self) -> Any:
        like = next(iter(self._chosen[0].values())).parameter
        return dist.Categorical(logits=torch.zeros(len(self.members), dtype=like.dtype, device=like.device))

    def _weights(self, member: Tensor) -> dict[str, Tensor]:
        """Each parameter of the members with these numbers, `(*batch, *shape)`."""
        every = {name: torch.stack([each[name].parameter for each in self._chosen]) for name in self._chosen[0]}
        return {name: stacked[member] for name, stacked in every.items()}


def _layers(member: nn.Module) -> list[tuple[str, str, str]]:
    """The modules by name, with the names of their classes and what they print of their settings."""
    return [
        (name, f"{type(m).__module__}.{type(m).__qualname__}", m.extra_repr()) for name, m in member.named_modules()
    ]


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
