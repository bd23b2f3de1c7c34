"""Priors and posteriors of a pair's weights, and the pairs that `pv.bayesian` and `pv.map_prior` make of it."""

from pyrovae.weights.ensemble import Ensemble
from pyrovae.weights.pairs import MAP, Bayesian, bayesian, map_prior
from pyrovae.weights.posteriors import LowRank, MeanField, Visited
from pyrovae.weights.priors import FanIn

__all__ = ["MAP", "Bayesian", "Ensemble", "FanIn", "LowRank", "MeanField", "Visited", "bayesian", "map_prior"]
