"""Densities that torch and Pyro lack, and combinations of densities."""

from pyrovae.distributions.combine import ObservedOnly, observed_only
from pyrovae.distributions.normals import LowRankNormal, MixtureOfNormals
from pyrovae.distributions.pushforward import Flow, LogisticNormal, Pushforward
from pyrovae.distributions.sphere import HypersphericalUniform, PowerSpherical
from pyrovae.distributions.student import StudentT

__all__ = [
    "Flow",
    "HypersphericalUniform",
    "LogisticNormal",
    "LowRankNormal",
    "MixtureOfNormals",
    "ObservedOnly",
    "PowerSpherical",
    "Pushforward",
    "StudentT",
    "observed_only",
]
