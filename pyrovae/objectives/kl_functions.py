"""What a function of the KL terms (see `kl`) is: what it is given, what it may tell of itself, and how several make one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

from torch import Tensor, nn

from pyrovae.errors import OptionError
from pyrovae.objectives.terms import Terms
from pyrovae.pair.batch import Batch
from pyrovae.pair.layout import Layout
from pyrovae.pair.program import PairLike

KLFunction = Callable[..., Mapping[str, Tensor]]  # of (terms), (terms, weight) or (terms, weight, minibatch)


class Minibatch(NamedTuple):
    """What a function of the KL terms may look at besides these: a run of the pair on a minibatch.

    Attributes:
        terms: The run, as `pv.terms` returns it: the draws of all sites, and their distributions.
        num_rows: N, the number of rows of the whole data set, or of the group of rows that the minibatch is from.

    Example:
        >>> def small_codes(kl, weight, minibatch):
        ...     return {"z": kl["z"] + 0.1 * minibatch.terms.sites["z"].value.square().sum(-1)}
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=1, loss=pv.Trace_ELBO(kl=small_codes), progress=False)
    """

    terms: Terms
    num_rows: int


class chain:
    """Several functions of the KL terms, one after the other.

    Args:
        functions: Functions as for `Trace_ELBO(kl=...)`, in the order in which they are applied.

    Raises:
        OptionError: One of them is not callable, or one that applies the KL weight itself (`capacity`) is not the last.

    Example:
        >>> kl = pv.kl.chain(pv.kl.balanced(), pv.kl.free_bits(0.5))
        >>> kl
        chain(balanced(), free_bits(0.5))
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=1, loss=pv.Trace_ELBO(kl=kl), progress=False)
    """

    def __init__(self, *functions: KLFunction) -> None:
        if not all(map(callable, functions)):
            raise OptionError(f"chain needs functions of the KL terms, got {functions!r}.")
        for f in functions:
            num_arguments(f)  # refuse one of too many arguments now
        if any(applies_weight(f) for f in functions[:-1]):
            raise OptionError("capacity applies the KL weight itself, so it must be the last function of a chain.")
        self.functions = functions
        self.applies_weight = bool(functions) and applies_weight(functions[-1])
        self.sites = tuple(name for f in functions for name in getattr(f, "sites", ()))

    @property
    def trains(self) -> tuple[nn.Module, ...]:
        """What a fit trains besides the pair."""
        return tuple(module for f in self.functions for module in getattr(f, "trains", ()))

    def check(self, pair: PairLike, batch: Batch, layout: Layout) -> None:
        """What the functions check of a pair before the first step of a fit."""
        for f in self.functions:
            if hasattr(f, "check"):
                f.check(pair, batch, layout)

    def __call__(self, terms: Mapping[str, Tensor], weight: Tensor, minibatch: Minibatch) -> Mapping[str, Tensor]:
        for f in self.functions:
            terms = apply(f, terms, weight, minibatch)
        return terms

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr_of, self.functions))})"


def num_arguments(kl: Any) -> int:
    """How many of terms, weight and minibatch a function of the KL terms takes. OptionError for a fourth required argument."""
    try:
        parameters = inspect.signature(kl).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return 1
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind in places]
    if len(required) > 3:
        raise OptionError(
            "A function kl takes the KL terms, and then, if it wants, the KL weight and the minibatch; this one wants "
            f"{required}."
        )
    return max(1, len(required))


def apply(kl: KLFunction, terms: Mapping[str, Tensor], weight: Tensor, minibatch: Minibatch) -> Mapping[str, Tensor]:
    """What a function makes of a copy of the KL terms, given as many arguments as it takes."""
    return kl(*(dict(terms), weight, minibatch)[: num_arguments(kl)])


def applies_weight(kl: Any) -> bool:
    """Whether the result of a function has the KL weight in it already, as that of `capacity` has."""
    return bool(getattr(kl, "applies_weight", False))


def repr_of(function: Any) -> str:
    """A function's name instead of its address, since the settings of a fit are compared when it is resumed elsewhere."""
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else repr(function)


def mean_over_rows(kl: Tensor) -> Tensor:
    """The mean over rows and particles: `(K, 1)`, or `(K,)` for a global site."""
    return kl.mean().expand(len(kl), *(1,) * (kl.dim() - 1))


def checked_numbers(given: float | Mapping[str, float], wanted: str, zero: bool) -> Any:
    """The numbers given, checked. Raises OptionError for one that is not finite or not positive (0 where `zero` allows it)."""
    numbers = dict(given) if isinstance(given, Mapping) else {"": given}
    for name, number in numbers.items():
        fits = isinstance(number, Real) and math.isfinite(number) and (number > 0 or (zero and number == 0))
        if not fits:
            place = f" for {name!r}" if name else ""
            raise OptionError(f"{wanted}, one number or a dict by site; got {number!r}{place}.")
    return numbers if isinstance(given, Mapping) else given
