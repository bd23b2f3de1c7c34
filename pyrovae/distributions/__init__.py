"""Densities that torch and Pyro lack, and combinations of densities."""

from pyrovae.distributions.columns import ProductOfColumns
from pyrovae.distributions.combine import ObservedOnly, observed_only
from pyrovae.distributions.continuous import ContinuousBernoulli, StudentT
from pyrovae.distributions.discretized import DiscretizedLogistic, DiscretizedLogisticMixture
from pyrovae.distributions.multinomial import Multinomial

__all__ = [
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Multinomial",
    "ObservedOnly",
    "ProductOfColumns",
    "StudentT",
    "observed_only",
]
