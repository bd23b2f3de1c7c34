"""pyrovae: write, fit and question variational autoencoders as Pyro model/guide pairs."""

import importlib
from typing import Any

from pyrovae import families, nets, priors
from pyrovae._version import __version__
from pyrovae.check import Layout, check_pair
from pyrovae.conditionals import Conditional, ConditionalFlow, conv, flow, mlp, resnet
from pyrovae.criticism import acquisition, calibration
from pyrovae.criticism.classification import Classification, classify
from pyrovae.criticism.decomposition import active_units, collapsed, kl_by_site
from pyrovae.criticism.importance import Importance, importance, log_likelihood, posterior
from pyrovae.criticism.prior_monte_carlo import prior_log_likelihood
from pyrovae.distributions import observed_only
from pyrovae.errors import (
    CheckpointError,
    DataError,
    NotFiniteError,
    OptionError,
    PairError,
    PyrovaeError,
    ShapeError,
)
from pyrovae.infer import kl, penalties, schedules, transforms
from pyrovae.infer.checkpoint import load, save
from pyrovae.infer.fit import fit
from pyrovae.infer.fitted import Fit
from pyrovae.infer.iwelbo import IWELBO
from pyrovae.infer.objectives import Bound, Trace_ELBO, elbo, log_weights
from pyrovae.infer.svi import SVI
from pyrovae.infer.terms import Terms, terms
from pyrovae.models import (
    ADGM,
    CVAE,
    GMVAE,
    NVAE,
    SSVAE,
    VAE,
    HierarchicalVAE,
    JointVAE,
    LadderVAE,
    Regression,
    SSRegression,
    StackedSSVAE,
    VaDE,
)
from pyrovae.pair import Pair
from pyrovae.predict import decode, encode, generate, reconstruct, simulate

__all__ = [
    "ADGM",
    "CVAE",
    "GMVAE",
    "IWELBO",
    "NVAE",
    "SSVAE",
    "SVI",
    "VAE",
    "Bound",
    "CheckpointError",
    "Classification",
    "Conditional",
    "ConditionalFlow",
    "DataError",
    "Fit",
    "HierarchicalVAE",
    "Importance",
    "JointVAE",
    "LadderVAE",
    "Layout",
    "NotFiniteError",
    "OptionError",
    "Pair",
    "PairError",
    "PyrovaeError",
    "Regression",
    "SSRegression",
    "ShapeError",
    "StackedSSVAE",
    "Terms",
    "Trace_ELBO",
    "VaDE",
    "__version__",
    "acquisition",
    "active_units",
    "calibration",
    "check_pair",
    "classify",
    "collapsed",
    "conv",
    "decode",
    "elbo",
    "encode",
    "families",
    "fit",
    "flow",
    "generate",
    "importance",
    "kl",
    "kl_by_site",
    "load",
    "log_likelihood",
    "log_weights",
    "mlp",
    "nets",
    "observed_only",
    "penalties",
    "plots",
    "posterior",
    "prior_log_likelihood",
    "priors",
    "reconstruct",
    "resnet",
    "save",
    "schedules",
    "simulate",
    "terms",
    "transforms",
]


def __getattr__(name: str) -> Any:
    if name == "plots":  # at its first use: matplotlib and scikit-learn take a second to import
        return importlib.import_module("pyrovae.plots")
    raise AttributeError(f"module 'pyrovae' has no attribute {name!r}")
