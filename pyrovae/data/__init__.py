"""Data: where rows come from, how they are split, how they are scaled."""

from pyrovae.data.sources import KINDS, NAMES, Dataset, load, load_again
from pyrovae.data.tables import Standardize
from pyrovae.infer.splits import Split

__all__ = ["KINDS", "NAMES", "Dataset", "Split", "Standardize", "load", "load_again"]
