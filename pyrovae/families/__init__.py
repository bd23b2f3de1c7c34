"""Families: from the raw output of a network to a distribution over one row, for likelihoods and guides alike.

See `pyrovae.families.base` for how to write one.
"""

from pyrovae.families.base import Elementwise, Family
from pyrovae.families.codes import (
    OneHotCategorical,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    StraightThroughBernoulli,
    StraightThroughOneHotCategorical,
)
from pyrovae.families.columns import Columns, Features
from pyrovae.families.continuous import Beta, ContinuousBernoulli, Gamma, Laplace, LogNormal, StudentT
from pyrovae.families.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial, ZeroInflatedPoisson
from pyrovae.families.elementwise import Bernoulli, BetaBinomial, Binomial, Categorical, Normal
from pyrovae.families.images import DiscretizedLogistic, DiscretizedLogisticMixture
from pyrovae.families.multivariate import (
    FullNormal,
    LogisticNormal,
    LowRankNormal,
    MixtureOfNormals,
    PowerSpherical,
    Vector,
)
from pyrovae.families.ordinal import OrderedLogistic
from pyrovae.families.rounded import RoundedNormal
from pyrovae.families.text import Multinomial

__all__ = [
    "Bernoulli",
    "Beta",
    "BetaBinomial",
    "Binomial",
    "Categorical",
    "Columns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Elementwise",
    "Family",
    "Features",
    "FullNormal",
    "Gamma",
    "Laplace",
    "LogNormal",
    "LogisticNormal",
    "LowRankNormal",
    "MixtureOfNormals",
    "Multinomial",
    "NegativeBinomial",
    "Normal",
    "OneHotCategorical",
    "OrderedLogistic",
    "Poisson",
    "PowerSpherical",
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
    "RoundedNormal",
    "StraightThroughBernoulli",
    "StraightThroughOneHotCategorical",
    "StudentT",
    "Vector",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
]
