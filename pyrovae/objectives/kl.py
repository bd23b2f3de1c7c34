"""Functions of the per-site KL terms, for `Trace_ELBO(kl=...)`: floors and balances against posterior collapse.

Such a function takes the dict of KL terms by site, nats, (K, N) of a local site and (K,) of a global one, and returns it
changed, (K, 1) meaning one value for every row. One of two required arguments is given the KL weight as well, a 0-d tensor:
a step is traced once, so `torch.where` decides by it, not `if`. A function of one's own does as well:
`kl=lambda terms: {**terms, "y": terms["y"].clamp_min(0.5)}`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import OptionError

KLFunction = Callable[..., Mapping[str, Tensor]]  # (terms) or (terms, weight)


class free_bits:
    """max(nats, mean KL) of each site: below its `nats` a latent variable costs nothing, so that there is no gain in
    switching it off (Kingma et al. 2016, arXiv:1606.04934, appendix C.8).

    nats: a number for every site, or a dict by site, which leaves the others as they are. Of a local site it is nats per
    row, and the mean that of the minibatch's rows and particles, each group of rows by itself; of a global site nats for the
    whole data set. Where the guide draws in another order than the model, a lower level's term is small when the level above
    says much of it, and the floor then holds back p(lower | upper), too: name the upper levels only. Raises OptionError for
    a negative number; PairError, at the first step, for a site that the pair does not have.
    """

    def __init__(self, nats: float | Mapping[str, float]) -> None:
        self.nats = _numbers(nats, "free_bits needs nats of at least 0", zero=True)
        self.sites = tuple(self.nats) if isinstance(self.nats, dict) else ()

    def __call__(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        floors = self.nats if isinstance(self.nats, dict) else dict.fromkeys(terms, self.nats)
        return {**terms, **{name: _mean(terms[name]).clamp_min(floors[name]) for name in floors if name in terms}}

    def __repr__(self) -> str:
        return f"free_bits({self.nats!r})"


class balanced:
    """gamma_l KL_l while the KL weight is below 1, so that no level of a hierarchy is switched off before it is of use; the KL
    terms as they are from weight 1 on (Vahdat & Kautz 2020, arXiv:2007.03898, appendix A).

    gamma_l is proportional to (|mean KL_l over the minibatch| + 0.01) / size_l, without gradient, and its mean over the local
    sites is 1: a level that says little pays little. Groups of rows are balanced each by itself. Global sites belong to no row
    and are left alone. It does nothing without a schedule of the KL weight. sizes: by site, 1 where not named; theirs grow
    with the resolution of a level.

    Raises OptionError for a size that is not positive; PairError, at the first step, for a site that the pair does not have.
    """

    def __init__(self, sizes: Mapping[str, float] | None = None) -> None:
        if not isinstance(sizes or {}, Mapping):
            raise OptionError(f"balanced needs sizes as a dict by site, got {sizes!r}.")
        found = _numbers(sizes or {}, "balanced needs positive sizes", zero=False)
        self.sizes, self.sites = found, tuple(found)

    def __call__(self, terms: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
        local = {name: kl for name, kl in terms.items() if kl.dim() == 2}
        if not local:
            return dict(terms)
        shares = torch.stack([(kl.mean().abs() + 0.01) / self.sizes.get(name, 1.0) for name, kl in local.items()])
        gammas = torch.where(weight < 1, shares / shares.mean(), 1.0).detach()
        return {**terms, **{name: gamma * kl for gamma, (name, kl) in zip(gammas, local.items())}}

    def __repr__(self) -> str:
        return f"balanced({self.sizes or ''})"


class chain:
    """Several functions of the KL terms, one after the other: `chain(balanced(), free_bits(0.5))` is the free bits of what
    has been balanced."""

    def __init__(self, *functions: KLFunction) -> None:
        if not all(map(callable, functions)):
            raise OptionError(f"chain takes functions of the KL terms, got {functions!r}.")
        self.functions = functions
        self.weighted = [takes_weight(f) for f in functions]
        self.sites = tuple(name for f in functions for name in getattr(f, "sites", ()))

    def __call__(self, terms: Mapping[str, Tensor], weight: Tensor) -> Mapping[str, Tensor]:
        for f, weighted in zip(self.functions, self.weighted):
            terms = f(dict(terms), weight) if weighted else f(dict(terms))
        return terms

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr_of, self.functions))})"


def takes_weight(kl: Any) -> bool:
    """Whether a function of the KL terms asks for the KL weight: has a second required argument. OptionError for a third."""
    try:
        parameters = inspect.signature(kl).parameters.values()
    except (TypeError, ValueError):  # of C, without a signature
        return False
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind in places]
    if len(required) > 2:
        raise OptionError(f"A function kl takes the KL terms, or these and the KL weight; this one wants {required}.")
    return len(required) == 2


def repr_of(function: Any) -> str:
    """A function by its name, not its address: the settings of a fit are compared when it is resumed elsewhere."""
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else repr(function)


def _mean(kl: Tensor) -> Tensor:
    """The mean over rows and particles, in the place of all of them: (K, 1), or (K,) of a global site."""
    return kl.mean().expand(len(kl), *(1,) * (kl.dim() - 1))


def _numbers(given: float | Mapping[str, float], wanted: str, zero: bool) -> Any:
    numbers = dict(given) if isinstance(given, Mapping) else {"": given}
    for name, number in numbers.items():
        fits = isinstance(number, Real) and math.isfinite(number) and (number > 0 or (zero and number == 0))
        if not fits:
            place = f" for {name!r}" if name else ""
            raise OptionError(f"{wanted}, a number or a dict of them by site; got {number!r}{place}.")
    return numbers if isinstance(given, Mapping) else given
