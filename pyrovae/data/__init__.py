"""Data: where rows come from, how they are split, how they are scaled."""

from pyrovae.batching.splits import Split
from pyrovae.data.dataset import KINDS, Dataset
from pyrovae.data.load import load, load_again
from pyrovae.data.named import NAMES
from pyrovae.data.scaling import Standardize

__all__ = ["KINDS", "NAMES", "Dataset", "Split", "Standardize", "load", "load_again"]
