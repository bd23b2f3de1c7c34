"""Link functions: the raw output of a network -> the distribution of one row. See `pyrovae.families.base`."""

from pyrovae.families.base import Elementwise, Family
from pyrovae.families.elementwise import Bernoulli, BetaBinomial, Binomial, Categorical, Normal

__all__ = ["Bernoulli", "BetaBinomial", "Binomial", "Categorical", "Elementwise", "Family", "Normal"]
