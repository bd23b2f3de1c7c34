"""Densities that torch and Pyro lack, and combinations of densities."""

from pyrovae.distributions.combine import ObservedOnly, observed_only

__all__ = ["ObservedOnly", "observed_only"]
