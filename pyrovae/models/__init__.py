"""Models of the VAE family: one graph per file, with the model and the guide in full.

Their components are conditionals, modules that map their parents to a distribution over the rows of a batch, such as those
that `pv.mlp` builds, and priors, which have no parents. All models are fitted, evaluated, saved and plotted by the same
functions, which call only `model(**batch)` and `guide(**batch)`.
"""

from pyrovae.models.adgm import ADGM
from pyrovae.models.categorical import CategoricalVAE
from pyrovae.models.cvae import CVAE
from pyrovae.models.gmvae import GMVAE
from pyrovae.models.hierarchical import HierarchicalVAE
from pyrovae.models.jointvae import JointVAE
from pyrovae.models.labels import LabelsVAE
from pyrovae.models.ladder import LadderVAE
from pyrovae.models.markov import DeepMarkovVAE
from pyrovae.models.multimodal import MultimodalVAE
from pyrovae.models.notmiwae import NotMIWAE
from pyrovae.models.nvae import NVAE
from pyrovae.models.regression import Regression
from pyrovae.models.sdgm import SDGM
from pyrovae.models.spatial import SpatialVAE
from pyrovae.models.ssregression import SSRegression
from pyrovae.models.ssvae import SSVAE
from pyrovae.models.stacked import StackedSSVAE
from pyrovae.models.vade import VaDE
from pyrovae.models.vae import VAE
from pyrovae.models.vqvae import VQVAE

__all__ = [
    "ADGM",
    "CVAE",
    "GMVAE",
    "NVAE",
    "SDGM",
    "SSVAE",
    "VAE",
    "VQVAE",
    "CategoricalVAE",
    "DeepMarkovVAE",
    "HierarchicalVAE",
    "JointVAE",
    "LabelsVAE",
    "LadderVAE",
    "MultimodalVAE",
    "NotMIWAE",
    "Regression",
    "SSRegression",
    "SpatialVAE",
    "StackedSSVAE",
    "VaDE",
]
