"""Distributions that torch and Pyro lack or compute inaccurately, and combinations of distributions."""

from pyrovae.distributions.bernoulli import Bernoulli
from pyrovae.distributions.categorical import Categorical
from pyrovae.distributions.codes import Autoregressive, Codes
from pyrovae.distributions.columns import ProductOfColumns
from pyrovae.distributions.combine import (
    ObservedOnly,
    normal_where,
    observed_only,
    product_of_experts,
    product_of_normals,
    residual_normal,
)
from pyrovae.distributions.continuous import ContinuousBernoulli
from pyrovae.distributions.discretized import DiscretizedLogistic, DiscretizedLogisticMixture
from pyrovae.distributions.experts import MixtureOfProducts, ProductOfExperts
from pyrovae.distributions.markov import MarkovChain
from pyrovae.distributions.multinomial import Multinomial
from pyrovae.distributions.normals import LowRankNormal, MixtureOfNormals
from pyrovae.distributions.onehot import (
    OneHotCategorical,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    StraightThroughBernoulli,
    StraightThroughOneHotCategorical,
)
from pyrovae.distributions.pushforward import Flow, LogisticNormal, Pushforward
from pyrovae.distributions.rounded import RoundedNormal
from pyrovae.distributions.sphere import HypersphericalUniform, PowerSpherical
from pyrovae.distributions.student import StudentT

__all__ = [
    "Autoregressive",
    "Bernoulli",
    "Categorical",
    "Codes",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Flow",
    "HypersphericalUniform",
    "LogisticNormal",
    "LowRankNormal",
    "MarkovChain",
    "MixtureOfNormals",
    "MixtureOfProducts",
    "Multinomial",
    "ObservedOnly",
    "OneHotCategorical",
    "PowerSpherical",
    "ProductOfColumns",
    "ProductOfExperts",
    "Pushforward",
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
    "RoundedNormal",
    "StraightThroughBernoulli",
    "StraightThroughOneHotCategorical",
    "StudentT",
    "normal_where",
    "observed_only",
    "product_of_experts",
    "product_of_normals",
    "residual_normal",
]
