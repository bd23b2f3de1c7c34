"""What a log-density is the logarithm of, and what kind of values a distribution has."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.constraints import sphere
from torch.distributions import constraints

from pyrovae.pair.parameters import fork_rng

MASS, DENSITY, BOTH = "probability mass", "density", "mass beside a density"
DRAWS = 64  # by which a distribution is told whose support does not say that its values are whole numbers


def innermost(support: Any) -> Any:
    """A support without what `to_event` wraps around it."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def kind_of(support: Any) -> str:
    """The kind of values in a support: integers, real numbers, shares, or points on a sphere."""
    support = innermost(support)
    if getattr(support, "is_discrete", False):
        return "integers"
    if support is constraints.simplex:
        return "shares that sum to 1"
    return "points on a sphere" if support is sphere else "real numbers"


def is_real(fn: Any) -> bool:
    """Whether a distribution is one of real numbers without bounds."""
    try:
        support = innermost(fn.support)
    except (NotImplementedError, AttributeError):
        return False
    return support is constraints.real or support is constraints.real_vector


def of_components(support: Any) -> Any:
    """The support of a mixture is that of its components, which torch has no transform for where it says so itself."""
    if isinstance(support, constraints.independent):
        return constraints.independent(of_components(support.base_constraint), support.reinterpreted_batch_ndims)
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return of_components(support.base_constraint)
    return support


def measures_of(fn: Any) -> tuple[str, ...]:
    """What `fn.log_prob` is the logarithm of: one entry, or one for each column of a row where columns differ.

    An entry is `MASS`, `DENSITY`, `BOTH` (of zeros beside other numbers), or `DENSITY` of shares or of points on a sphere. It
    is found from the distribution itself, looking through `to_event`, masks and mixtures, and never from its name.
    """
    with fork_rng(), torch.no_grad():
        found = _measures(fn)
    return found[:1] if len(set(found)) == 1 else found


def _measures(fn: Any) -> tuple[str, ...]:
    if isinstance(fn, dist.Delta):
        return (MASS,)
    if isinstance(fn, dist.ZeroInflatedDistribution):
        return tuple(measure if measure == MASS else BOTH for measure in _measures(fn.base_dist))
    if isinstance(fn, dist.MaskedMixture):
        one, two = _measures(fn.component0), _measures(fn.component1)
        return one if one == two else (BOTH,)
    if blocks := getattr(fn, "blocks", None):
        return tuple(chain.from_iterable(_repeated(_measures(block), block.batch_shape[-1]) for block in blocks))
    inner = next(
        (getattr(fn, name) for name in ("base_dist", "component_distribution", "whole") if hasattr(fn, name)), None
    )
    if inner is not None and set(below := _measures(inner)) != {DENSITY}:
        return below
    return _by_support(fn)


def _by_support(fn: Any) -> tuple[str, ...]:
    try:
        support = innermost(fn.support)
    except (NotImplementedError, AttributeError):  # a distribution without a support
        support = constraints.real
    if parts := getattr(support, "cseq", None):  # of constraints.cat and constraints.stack
        lengths = getattr(support, "lengths", [1] * len(parts))
        return tuple(chain.from_iterable([_measure(part)] * length for part, length in zip(parts, lengths)))
    measure = _measure(support)
    return (MASS if measure == DENSITY and _draws_whole_numbers(fn) else measure,)


def _measure(support: Any) -> str:
    kind = kind_of(support)
    return MASS if kind == "integers" else DENSITY if kind == "real numbers" else f"{DENSITY} of {kind}"


def _draws_whole_numbers(fn: Any) -> bool:
    """Whether all draws are whole numbers, and not all the same one, as none of a distribution with a density is."""
    try:
        draws = fn.sample((DRAWS,))
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return bool((draws == draws.round()).all()) and bool((draws != draws.flatten()[0]).any())


def _repeated(measures: tuple[str, ...], size: int) -> tuple[str, ...]:
    return measures * size if len(measures) == 1 else measures
