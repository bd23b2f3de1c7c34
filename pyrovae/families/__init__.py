"""Link functions: the raw output of a network -> the distribution of one row. See `pyrovae.families.base`."""

from pyrovae.families.base import Elementwise, Family
from pyrovae.families.elementwise import Bernoulli, BetaBinomial, Binomial, Categorical, Normal
from pyrovae.families.multivariate import (
    FullNormal,
    LogisticNormal,
    LowRankNormal,
    MixtureOfNormals,
    PowerSpherical,
    Vector,
)

__all__ = [
    "Bernoulli",
    "BetaBinomial",
    "Binomial",
    "Categorical",
    "Elementwise",
    "Family",
    "FullNormal",
    "LogisticNormal",
    "LowRankNormal",
    "MixtureOfNormals",
    "Normal",
    "PowerSpherical",
    "Vector",
]
