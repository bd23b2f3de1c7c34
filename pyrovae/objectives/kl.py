"""Functions of the per-site KL terms, for `Trace_ELBO(kl=...)`: they prevent latent variables from being ignored.

Such a function takes a dict from site to KL term in nats, of shape `(K, N)` for a local site and `(K,)` for a global one, and
returns it changed; `(K, 1)` is one value for every row. A function of two required arguments also gets the KL weight, as a
0-d tensor; since a step is traced only once, it must branch on the weight by `torch.where`, not by `if`. Any function will do:
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

KLFunction = Callable[..., Mapping[str, Tensor]]  # of (terms) or (terms, weight)

__all__ = ["KLFunction", "balanced", "chain", "free_bits"]


class free_bits:
    """`max(nats, mean KL)` for each site: below its `nats` a KL term has no gradient, so ignoring the variable gains nothing.

    The mean is over the rows and particles of a minibatch, and separate for each group of rows. If the guide draws sites in
    another order than the model, the KL term of a lower level is small when the level above is informative, and a floor would
    then also hold back p(lower | upper): name the upper levels only.

    Args:
        nats: One number for all sites, or a dict by site; sites that are not named stay as they are. In nats per row for a
            local site, in nats for the whole data set for a global one.

    Raises:
        OptionError: A number is negative or not finite.
        PairError: At the first step, for a site that the pair does not have.

    References:
        Kingma et al. 2016, arXiv:1606.04934, appendix C.8.

    Example:
        >>> floor = pv.kl.free_bits(0.5)
        >>> floor({"z": torch.tensor([[0.1, 0.3, 0.2]])})
        {'z': tensor([[0.5000]])}
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=1, loss=pv.Trace_ELBO(kl=floor), progress=False)
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
    """`gamma_l KL_l` for each level l while the KL weight is below 1, so that no level of a hierarchy is ignored early on.

    `gamma_l` is proportional to `(|mean KL_l over the minibatch| + 0.01) / size_l`, carries no gradient and has mean 1 over the
    local sites: a level with little information pays little. Groups of rows are balanced separately, and global sites, which
    belong to no row, are unchanged. From KL weight 1 on, and so without a warm-up of that weight, it changes nothing.

    Args:
        sizes: A size for each site, 1 for those not named; in the reference they grow with the resolution of a level.

    Raises:
        OptionError: `sizes` is not a dict, or a size is not positive.
        PairError: At the first step, for a site that the pair does not have.

    References:
        Vahdat and Kautz 2020, arXiv:2007.03898, appendix A.

    Example:
        >>> terms = {"z1": torch.full((1, 2), 0.99), "z2": torch.full((1, 2), 2.99)}
        >>> pv.kl.balanced()(terms, torch.tensor(0.5))
        {'z1': tensor([[0.4950, 0.4950]]), 'z2': tensor([[4.4850, 4.4850]])}
        >>> pv.kl.balanced()(terms, torch.tensor(1.0))
        {'z1': tensor([[0.9900, 0.9900]]), 'z2': tensor([[2.9900, 2.9900]])}
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
    """Several functions of the KL terms, one after the other.

    Args:
        functions: Functions as for `Trace_ELBO(kl=...)`, in the order in which they are applied.

    Raises:
        OptionError: One of them is not callable.

    Example:
        >>> kl = pv.kl.chain(pv.kl.balanced(), pv.kl.free_bits(0.5))
        >>> kl
        chain(balanced(), free_bits(0.5))
        >>> kl({"z": torch.tensor([[0.1, 0.3]])}, torch.tensor(1.0))
        {'z': tensor([[0.5000]])}
    """

    def __init__(self, *functions: KLFunction) -> None:
        if not all(map(callable, functions)):
            raise OptionError(f"chain needs functions of the KL terms, got {functions!r}.")
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
    """Whether a function of the KL terms also takes the KL weight. Raises OptionError for a third required argument."""
    try:
        parameters = inspect.signature(kl).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind in places]
    if len(required) > 2:
        raise OptionError(
            f"A function kl takes the KL terms, or the KL terms and the KL weight; this one wants {required}."
        )
    return len(required) == 2


def repr_of(function: Any) -> str:
    """A function's name instead of its address, since the settings of a fit are compared when it is resumed elsewhere."""
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else repr(function)


def _mean(kl: Tensor) -> Tensor:
    """The mean over rows and particles: `(K, 1)`, or `(K,)` for a global site."""
    return kl.mean().expand(len(kl), *(1,) * (kl.dim() - 1))


def _numbers(given: float | Mapping[str, float], wanted: str, zero: bool) -> Any:
    """The numbers given, checked. Raises OptionError for one that is not finite or not positive (0 where `zero` allows it)."""
    numbers = dict(given) if isinstance(given, Mapping) else {"": given}
    for name, number in numbers.items():
        fits = isinstance(number, Real) and math.isfinite(number) and (number > 0 or (zero and number == 0))
        if not fits:
            place = f" for {name!r}" if name else ""
            raise OptionError(f"{wanted}, one number or a dict by site; got {number!r}{place}.")
    return numbers if isinstance(given, Mapping) else given
