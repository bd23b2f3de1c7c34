"""Guides for any model that know each training row by its number: no encoder, and so no amortisation."""

from pyrovae.guides.monte_carlo import MonteCarloEM, monte_carlo_em
from pyrovae.guides.per_row import PerRow, per_row

__all__ = ["MonteCarloEM", "PerRow", "monte_carlo_em", "per_row"]
