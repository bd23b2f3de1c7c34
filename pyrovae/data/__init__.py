"""Data sets: reading them by name or from files, splitting their rows, scaling their columns.

`open` gives a fit the rows of files that are larger than memory.
`load` reads a data set that is known by name (digits, sprites, MNIST, Fashion-MNIST) or a file of yours into a `Dataset`;
`sprites` draws shapes whose factors are known; `captioned` gives images captions, whose words a `Vocabulary` numbers;
`Standardize` scales the columns of a real-valued table; `Split` divides rows
into training, validation and test rows.
Nothing in the rest of the package needs this module: `pv.fit` takes tensors from anywhere.
"""

from pyrovae._sources import NAMES
from pyrovae.batching.splits import Split
from pyrovae.data.captioned import captioned
from pyrovae.data.captions import Captions
from pyrovae.data.dataset import KINDS, Dataset
from pyrovae.data.files import open
from pyrovae.data.load import load, load_again
from pyrovae.data.scaling import Standardize
from pyrovae.data.sprites import sprites
from pyrovae.data.strokes import extent, slant, stroke_width
from pyrovae.data.vocabulary import Vocabulary

__all__ = [
    "KINDS",
    "NAMES",
    "Captions",
    "Dataset",
    "Split",
    "Standardize",
    "Vocabulary",
    "captioned",
    "extent",
    "load",
    "load_again",
    "open",
    "slant",
    "sprites",
    "stroke_width",
]
