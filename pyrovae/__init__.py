"""pyrovae: write, fit and question variational autoencoders as Pyro model/guide pairs."""

from typing import TYPE_CHECKING

from pyrovae._lazily import lazy_names
from pyrovae._version import __version__
from pyrovae.errors import (
    CheckpointError,
    DataError,
    MissingPackageError,
    NotFiniteError,
    OptionError,
    OutOfMemoryError,
    PairError,
    PyrovaeError,
    RankError,
    ShapeError,
)

if TYPE_CHECKING:
    from pyrovae import data, families, guides, nets, plots, priors, tables, weights
    from pyrovae.app.pages.check import save_page
    from pyrovae.batching import transforms
    from pyrovae.closed_form import linear_em
    from pyrovae.conditionals import Conditional, ConditionalFlow, Marginal, Padded, conv, flow, mlp, resnet
    from pyrovae.criticism import acquisition, calibration, disentanglement
    from pyrovae.criticism.ais import AIS, ais
    from pyrovae.criticism.bdmc import BDMC, bdmc
    from pyrovae.criticism.classification import Classification, classify
    from pyrovae.criticism.code_usage import CodeUsage, code_usage
    from pyrovae.criticism.decomposition import KLParts, active_units, collapsed, kl_by_site, kl_parts, record_kl_parts
    from pyrovae.criticism.edges import gradient_histograms
    from pyrovae.criticism.ensembles import LabelEnsemble
    from pyrovae.criticism.entries import Entries, entry_densities
    from pyrovae.criticism.fields import LabelField
    from pyrovae.criticism.findings import Finding
    from pyrovae.criticism.from_pyro_svi import from_pyro_svi
    from pyrovae.criticism.global_posterior import global_posterior
    from pyrovae.criticism.gradients import GradientVariance, gradient_variance
    from pyrovae.criticism.harmonic import Harmonic, harmonic
    from pyrovae.criticism.importance import Importance, importance, log_likelihood
    from pyrovae.criticism.mixtures import LabelMixture
    from pyrovae.criticism.outliers import Anomaly, anomaly_score, benjamini_hochberg, conformal_p_values
    from pyrovae.criticism.posterior import posterior
    from pyrovae.criticism.prior_monte_carlo import prior_log_likelihood
    from pyrovae.criticism.processes import LabelProcess
    from pyrovae.criticism.psis import k_hat_threshold
    from pyrovae.criticism.quadrature import Quadrature, quadrature
    from pyrovae.criticism.refine import Refinement, refine
    from pyrovae.criticism.report import Report, criticise
    from pyrovae.criticism.stacking import stacking_weights
    from pyrovae.criticism.to_arviz import to_arviz
    from pyrovae.criticism.words import word_perplexity
    from pyrovae.distributions import observed_only
    from pyrovae.fitted.ensemble import ensemble
    from pyrovae.fitted.fitted import Fit
    from pyrovae.fitted.folder import load, save
    from pyrovae.guides.monte_carlo import monte_carlo_em
    from pyrovae.guides.per_row import per_row
    from pyrovae.models import (
        ADGM,
        CVAE,
        GMVAE,
        NVAE,
        SDGM,
        SSVAE,
        VAE,
        VQVAE,
        CategoricalVAE,
        DeepMarkovVAE,
        HierarchicalVAE,
        JointVAE,
        LabelsVAE,
        LadderVAE,
        MultimodalVAE,
        NotMIWAE,
        Regression,
        SpatialVAE,
        SSRegression,
        StackedSSVAE,
        VaDE,
    )
    from pyrovae.nets.freezing import frozen
    from pyrovae.normalised import batch_normed
    from pyrovae.objectives import baselines, kl, penalties
    from pyrovae.objectives.elbo import Bound, elbo
    from pyrovae.objectives.iwelbo import IWELBO
    from pyrovae.objectives.losses import Trace_ELBO
    from pyrovae.objectives.terms import Terms, terms
    from pyrovae.objectives.wake_sleep import RWS, WakeSleep
    from pyrovae.objectives.weights import log_weights
    from pyrovae.pair.checks import check_pair
    from pyrovae.pair.graph import draw_graph, graph, graph_text
    from pyrovae.pair.layout import Layout
    from pyrovae.pair.program import Pair
    from pyrovae.predict.decode import decode
    from pyrovae.predict.encode import encode
    from pyrovae.predict.generate import generate, simulate
    from pyrovae.predict.reconstruct import reconstruct
    from pyrovae.recover import corruptions
    from pyrovae.recover.imputation import Imputation
    from pyrovae.recover.impute import impute
    from pyrovae.recover.pool import Pooled, pool
    from pyrovae.recover.restore import Restoration, restore
    from pyrovae.training import schedules, tracking
    from pyrovae.training.fit import fit
    from pyrovae.training.statistics import recompute_statistics
    from pyrovae.training.svi import SVI
    from pyrovae.training.swag import swag
    from pyrovae.weights.pairs import bayesian, map_prior

# Where these names come from. They are imported when they are first asked for, since torch and Pyro take seconds, which
# `pyrovae --help` need not wait for.
_HOMES = {
    "pyrovae.app.pages.check": "save_page",
    "pyrovae.batching": "transforms",
    "pyrovae.closed_form": "linear_em",
    "pyrovae.conditionals": "Conditional ConditionalFlow Marginal Padded conv flow mlp resnet",
    "pyrovae.normalised": "batch_normed",
    "pyrovae.criticism": "acquisition calibration disentanglement",
    "pyrovae.criticism.ais": "AIS ais",
    "pyrovae.criticism.bdmc": "BDMC bdmc",
    "pyrovae.criticism.classification": "Classification classify",
    "pyrovae.criticism.code_usage": "CodeUsage code_usage",
    "pyrovae.criticism.decomposition": "KLParts active_units collapsed kl_by_site kl_parts record_kl_parts",
    "pyrovae.criticism.entries": "Entries entry_densities",
    "pyrovae.criticism.edges": "gradient_histograms",
    "pyrovae.criticism.ensembles": "LabelEnsemble",
    "pyrovae.criticism.fields": "LabelField",
    "pyrovae.criticism.findings": "Finding",
    "pyrovae.criticism.from_pyro_svi": "from_pyro_svi",
    "pyrovae.criticism.global_posterior": "global_posterior",
    "pyrovae.criticism.gradients": "GradientVariance gradient_variance",
    "pyrovae.criticism.harmonic": "Harmonic harmonic",
    "pyrovae.criticism.importance": "Importance importance log_likelihood",
    "pyrovae.criticism.outliers": "Anomaly anomaly_score benjamini_hochberg conformal_p_values",
    "pyrovae.criticism.posterior": "posterior",
    "pyrovae.criticism.mixtures": "LabelMixture",
    "pyrovae.criticism.processes": "LabelProcess",
    "pyrovae.criticism.psis": "k_hat_threshold",
    "pyrovae.criticism.prior_monte_carlo": "prior_log_likelihood",
    "pyrovae.criticism.quadrature": "Quadrature quadrature",
    "pyrovae.criticism.refine": "Refinement refine",
    "pyrovae.criticism.report": "Report criticise",
    "pyrovae.criticism.stacking": "stacking_weights",
    "pyrovae.criticism.to_arviz": "to_arviz",
    "pyrovae.criticism.words": "word_perplexity",
    "pyrovae.distributions": "observed_only",
    "pyrovae.fitted.ensemble": "ensemble",
    "pyrovae.fitted.fitted": "Fit",
    "pyrovae.fitted.folder": "load save",
    "pyrovae.guides.monte_carlo": "monte_carlo_em",
    "pyrovae.guides.per_row": "per_row",
    "pyrovae.models": """ADGM CVAE GMVAE NVAE SDGM SSVAE VAE VQVAE CategoricalVAE DeepMarkovVAE HierarchicalVAE JointVAE
        LabelsVAE LadderVAE MultimodalVAE NotMIWAE Regression SpatialVAE SSRegression
        StackedSSVAE VaDE""",
    "pyrovae.nets.freezing": "frozen",
    "pyrovae.objectives": "baselines kl penalties",
    "pyrovae.objectives.elbo": "Bound elbo",
    "pyrovae.objectives.iwelbo": "IWELBO",
    "pyrovae.objectives.losses": "Trace_ELBO",
    "pyrovae.objectives.terms": "Terms terms",
    "pyrovae.objectives.wake_sleep": "RWS WakeSleep",
    "pyrovae.objectives.weights": "log_weights",
    "pyrovae.pair.checks": "check_pair",
    "pyrovae.pair.graph": "draw_graph graph graph_text",
    "pyrovae.pair.layout": "Layout",
    "pyrovae.pair.program": "Pair",
    "pyrovae.predict.decode": "decode",
    "pyrovae.predict.encode": "encode",
    "pyrovae.predict.generate": "generate simulate",
    "pyrovae.predict.reconstruct": "reconstruct",
    "pyrovae.recover": "corruptions",
    "pyrovae.recover.imputation": "Imputation",
    "pyrovae.recover.impute": "impute",
    "pyrovae.recover.pool": "Pooled pool",
    "pyrovae.recover.restore": "Restoration restore",
    "pyrovae.training": "schedules tracking",
    "pyrovae.training.fit": "fit",
    "pyrovae.training.statistics": "recompute_statistics",
    "pyrovae.training.svi": "SVI",
    "pyrovae.training.swag": "swag",
    "pyrovae.weights.pairs": "bayesian map_prior",
}
__getattr__ = lazy_names(__name__, _HOMES)

__all__ = [
    "ADGM",
    "AIS",
    "BDMC",
    "CVAE",
    "GMVAE",
    "IWELBO",
    "NVAE",
    "RWS",
    "SDGM",
    "SSVAE",
    "SVI",
    "VAE",
    "VQVAE",
    "Anomaly",
    "Bound",
    "CategoricalVAE",
    "CheckpointError",
    "Classification",
    "CodeUsage",
    "Conditional",
    "ConditionalFlow",
    "DataError",
    "DeepMarkovVAE",
    "Entries",
    "Finding",
    "Fit",
    "GradientVariance",
    "Harmonic",
    "HierarchicalVAE",
    "Importance",
    "Imputation",
    "JointVAE",
    "KLParts",
    "LabelEnsemble",
    "LabelField",
    "LabelMixture",
    "LabelProcess",
    "LabelsVAE",
    "LadderVAE",
    "Layout",
    "Marginal",
    "MissingPackageError",
    "MultimodalVAE",
    "NotFiniteError",
    "NotMIWAE",
    "OptionError",
    "OutOfMemoryError",
    "Padded",
    "Pair",
    "PairError",
    "Pooled",
    "PyrovaeError",
    "Quadrature",
    "RankError",
    "Refinement",
    "Regression",
    "Report",
    "Restoration",
    "SSRegression",
    "ShapeError",
    "SpatialVAE",
    "StackedSSVAE",
    "Terms",
    "Trace_ELBO",
    "VaDE",
    "WakeSleep",
    "__version__",
    "acquisition",
    "active_units",
    "ais",
    "anomaly_score",
    "baselines",
    "batch_normed",
    "bayesian",
    "bdmc",
    "benjamini_hochberg",
    "calibration",
    "check_pair",
    "classify",
    "code_usage",
    "collapsed",
    "conformal_p_values",
    "conv",
    "corruptions",
    "criticise",
    "data",
    "decode",
    "disentanglement",
    "draw_graph",
    "elbo",
    "encode",
    "ensemble",
    "entry_densities",
    "families",
    "fit",
    "flow",
    "from_pyro_svi",
    "frozen",
    "generate",
    "global_posterior",
    "gradient_histograms",
    "gradient_variance",
    "graph",
    "graph_text",
    "guides",
    "harmonic",
    "importance",
    "impute",
    "k_hat_threshold",
    "kl",
    "kl_by_site",
    "kl_parts",
    "linear_em",
    "load",
    "log_likelihood",
    "log_weights",
    "map_prior",
    "mlp",
    "monte_carlo_em",
    "nets",
    "observed_only",
    "penalties",
    "per_row",
    "plots",
    "pool",
    "posterior",
    "prior_log_likelihood",
    "priors",
    "quadrature",
    "recompute_statistics",
    "reconstruct",
    "record_kl_parts",
    "refine",
    "resnet",
    "restore",
    "save",
    "save_page",
    "schedules",
    "simulate",
    "stacking_weights",
    "swag",
    "tables",
    "terms",
    "to_arviz",
    "tracking",
    "transforms",
    "weights",
    "word_perplexity",
]


def __dir__() -> list[str]:
    return list(__all__)
