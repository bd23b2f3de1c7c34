"""Data: where rows come from, how they are split, how they are scaled."""

from .sources import KINDS, NAMES, Dataset, load, load_again
from .splits import Split
from .tables import Standardize

__all__ = ["KINDS", "NAMES", "Dataset", "Split", "Standardize", "load", "load_again"]
