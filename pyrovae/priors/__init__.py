"""Priors: conditionals without parents.

A prior is any module whose `forward()` takes no parents and returns the distribution of one row.
"""

from pyrovae.priors.base import Fixed, MixtureOfNormals, StandardNormal, as_conditional_prior, as_prior
from pyrovae.priors.codes import Autoregressive
from pyrovae.priors.flexible import FlowPrior, VampPrior
from pyrovae.priors.simple import (
    Bernoulli,
    Categorical,
    Horseshoe,
    HypersphericalUniform,
    Laplace,
    LogisticNormal,
    Normal,
    OneHotCategorical,
    StudentT,
)

__all__ = [
    "Autoregressive",
    "Bernoulli",
    "Categorical",
    "Fixed",
    "FlowPrior",
    "Horseshoe",
    "HypersphericalUniform",
    "Laplace",
    "LogisticNormal",
    "MixtureOfNormals",
    "Normal",
    "OneHotCategorical",
    "StandardNormal",
    "StudentT",
    "VampPrior",
    "as_conditional_prior",
    "as_prior",
]
