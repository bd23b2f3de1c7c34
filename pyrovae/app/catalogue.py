"""The parts that have a name on the command line: priors, likelihoods, families of guides, and kinds of networks."""

from __future__ import annotations

import hashlib
import math
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae._lazily import Lazily
from pyrovae._near import near_paths
from pyrovae.app.options import Options
from pyrovae.errors import OptionError, PyrovaeError

if TYPE_CHECKING:
    import torch

    from pyrovae import conditionals, families, nets, priors
else:  # so that the names of parts are known at once
    torch = Lazily("torch")
    conditionals, families = Lazily("pyrovae.conditionals"), Lazily("pyrovae.families")
    nets, priors = Lazily("pyrovae.nets"), Lazily("pyrovae.priors")

Event = int | tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A named part: how it is built, and what it is in a few words.

    A guide is built by build(latent), a flow by build(in_features, latent, hidden=...).
    """

    build: Callable[..., Any]
    what: str


@dataclass(frozen=True)
class Prior(Entry):
    """A prior p(z), built by build(latent, encoder, rows).

    guides: the families of guides that have its support; the first is the default.
    """

    guides: tuple[str, ...] = ("normal", "low-rank", "full", "mixture", "iaf", "nsf")


@dataclass(frozen=True)
class Likelihood(Entry):
    """A likelihood p(x | z), built by build(event_shape, total_count).

    takes: the kind of values that it is for. "real" rows are standardised column by column; others are taken as they are.
    density: whether log p(x) is a log density, whose value depends on the units of x, and not a log mass.
    """

    takes: str
    density: bool = False

    @property
    def needs_total(self) -> bool:
        return "largest count" in self.takes


@dataclass(frozen=True)
class Model(Entry):
    """A graphical model, built by build(pieces).

    labels: the argument that labels go to: `CONDITION` (c, known for every row), "y", or None for a model without labels.
    several: whether it has several columns of labels, y1, y2, ..., and no other.
    takes: those options that are not for every model.
    code: the site whose posterior mean `encode` writes.
    images: whether its rows are images, (C, H, W) or (H, W), whatever --net says.
    has_pose: whether a latent variable of its own, "pose", moves these images.
    own_guide: whether its guide is its own, whatever the prior is.
    first_stage: from the pair, the one that a fit in two stages fits first; they share parts.
    """

    labels: str | None = None
    several: bool = False
    takes: tuple[str, ...] = ()
    code: str = "z"
    images: bool = False
    has_pose: bool = False
    own_guide: bool = False
    first_stage: Callable[[Any], Any] = lambda pair: pair

    @property
    def infers_labels(self) -> bool:
        """Whether it has labels that rows may lack."""
        return self.labels == "y" or self.several

    @property
    def quantised(self) -> bool:
        """Whether its latent variable is a grid of codes."""
        return "codebook" in self.takes

    @property
    def grouped(self) -> bool:
        """Whether its latent variables are groups of maps, with a guide and networks of its own."""
        return "groups" in self.takes

    @property
    def clusters(self) -> bool:
        """Whether it finds clusters, y, without labels."""
        return "clusters" in self.takes

    @property
    def probability(self) -> str:
        """The probability that it gives, as the tables write it."""
        return f"p(x | {CONDITION})" if self.labels == CONDITION else "p(x)"


CONDITION = "c"
PRIORS: dict[str, Prior] = {
    "normal": Prior(lambda n, *_: priors.StandardNormal(n), "N(0, I)"),
    "learned-normal": Prior(lambda n, *_: priors.Normal(n), "a Normal whose location and scale are learned"),
    "laplace": Prior(lambda n, *_: priors.Laplace(n), "independent Laplace"),
    "student-t": Prior(lambda n, *_: priors.StudentT(n), "independent Student's t"),
    "horseshoe": Prior(lambda n, *_: priors.Horseshoe(n), "horseshoe: most values near 0, a few large"),
    "mixture": Prior(lambda n, *_: priors.MixtureOfNormals(n), "mixture of ten Normals, learned"),
    "full-mixture": Prior(
        lambda n, *_: priors.MixtureOfNormals(n, covariance="full" if n > 1 else "diag"),
        "mixture of Normals with full covariances; of a table it starts as the data's",
        guides=("full", "normal", "low-rank", "mixture", "iaf", "nsf"),
    ),
    "full-mixture-nsf": Prior(
        lambda n, *_: priors.FlowPrior(n, base=priors.MixtureOfNormals(n, covariance="full" if n > 1 else "diag")),
        "full-mixture behind a neural spline flow",
        guides=("full", "normal", "low-rank", "mixture", "iaf", "nsf"),
    ),
    "vamp": Prior(lambda n, encoder, x: priors.VampPrior(encoder, x[:500]), "the encoder at 500 learned pseudo-inputs"),
    "maf": Prior(lambda n, *_: priors.FlowPrior(n, kind="maf"), "masked autoregressive flow"),
    "nsf": Prior(lambda n, *_: priors.FlowPrior(n, kind="nsf"), "neural spline flow"),
    "coupling": Prior(lambda n, *_: priors.FlowPrior(n, kind="coupling"), "flow of affine couplings"),
    "sphere": Prior(
        lambda n, *_: priors.HypersphericalUniform(n), "uniform on the sphere", guides=("power-spherical",)
    ),
    "logistic-normal": Prior(
        lambda n, *_: priors.LogisticNormal(n), "softmax of a Normal", guides=("logistic-normal",)
    ),
}
GUIDES: dict[str, Entry] = {
    "normal": Entry(lambda n: families.Normal(n), "Normal, independent dimensions"),
    "low-rank": Entry(lambda n: families.LowRankNormal(n, min(n, 2)), "Normal, diagonal plus rank 2"),
    "full": Entry(lambda n: families.FullNormal(n), "Normal, full covariance"),
    "mixture": Entry(lambda n: families.MixtureOfNormals(n), "mixture of diagonal Normals"),
    "power-spherical": Entry(lambda n: families.PowerSpherical(n), "power spherical, concentrated around a direction"),
    "logistic-normal": Entry(lambda n: families.LogisticNormal(n), "softmax of a Normal"),
    "iaf": Entry(lambda n, latent, hidden: conditionals.flow(n, latent, "iaf", hidden), "inverse autoregressive flow"),
    "nsf": Entry(lambda n, latent, hidden: conditionals.flow(n, latent, "nsf", hidden), "neural spline flow, inverted"),
}
FLOWS = ("iaf", "nsf")
# Built by build(grid, levels, most), of as many codes as there are combinations of levels; those that start among the vectors
# of a step are at most so many.
CODEBOOKS: dict[str, Entry] = {
    "fsq": Entry(lambda grid, levels, most: nets.FSQ(levels, grid), "finite scalar quantisation, nothing learned"),
    "vq": Entry(
        lambda grid, levels, most: nets.VQ(min(math.prod(levels), most), 8, grid),
        "codes that follow their vectors; dead ones start again",
    ),
    "simvq": Entry(
        lambda grid, levels, most: nets.SimVQ(math.prod(levels), 8, grid), "codes behind a learned linear map"
    ),
    "residual": Entry(
        lambda grid, levels, most: nets.ResidualVQ(min(math.isqrt(math.prod(levels)) + 1, most), 8, grid, depth=2),
        "two levels of codes that add up",
    ),
}
ENOUGH_FOR_MANY_CODES = 10_000  # training rows; with fewer, a prior of many codes overfits
MOST_LEVELS, FEWER_LEVELS = (8, 6, 5), ((3, 3), (3, 3, 3), (5, 5, 3))  # of one code
ENOUGH_NATS = 19.0  # that the codes of a row can tell about it


def codes_of(
    name: str, grid: int | tuple[int, ...], num_rows: int, batch_size: int
) -> tuple[nets.Quantiser, priors.Autoregressive]:
    """The codes of that name at each place of a grid, and their prior, for so many training rows, and rows a step.

    There are 240 codes, or of few rows as few as can tell 19 nats about a row. On digits, 1,258 training rows, ten codes of 9
    have a bound of -91.1 nats a validation row, and ten of 240 one of -105.5. Codes that start among the vectors of a step are
    at most half as many as these.
    """
    places = grid if isinstance(grid, int) else math.prod(grid)
    many = num_rows >= ENOUGH_FOR_MANY_CODES
    enough = (levels for levels in FEWER_LEVELS if places * math.log(math.prod(levels)) > ENOUGH_NATS)
    most = max(2, min(num_rows, batch_size) * places // 2)
    codes = CODEBOOKS[name].build(grid, MOST_LEVELS if many else next(enough, MOST_LEVELS), most)
    size = {} if many else {"width": 32, "layers": 1}
    return codes, priors.Autoregressive(codes.num_codes, codes.index_shape, **size)


ESTIMATORS: dict[str, Entry] = {
    "relaxed": Entry(
        lambda codes: families.RelaxedOneHotCategorical(codes),
        "Gumbel-softmax, whose temperature falls from 1 to 0.5 in the first half of the fit",
    ),
    "straight-through": Entry(
        lambda codes: families.StraightThroughOneHotCategorical(codes),
        "exact draws with the gradient of the probabilities",
    ),
    "score": Entry(
        lambda codes: families.OneHotCategorical(codes),
        "the score function of five draws a row, each less the mean of the others; unbiased",
    ),
}
NORMS: dict[str, Entry] = {
    "none": Entry(lambda: torch.nn.ReLU, "no normalisation of hidden layers"),
    "layer": Entry(lambda: nets.LayerNormed(), "over the units of a layer, for each row by itself"),
    "batch": Entry(lambda: nets.BatchNormed(), "over the rows of a step, classes weighted by q(y | x)"),
}
# the likelihoods of tables, which a schema builds: in the second one ordinal columns have one that uses their order
TABLE, ORDERED = "columns", "ordered-columns"
BY_COLUMN = (TABLE, ORDERED)


def _of_a_table() -> Any:
    raise OptionError(f"--likelihood {TABLE} is for tables, whose columns it is made for; these rows are none.")


LIKELIHOODS: dict[str, Likelihood] = {
    "bernoulli": Likelihood(lambda e, n: families.Bernoulli(e), "0 or 1, or draws from [0, 1]", "binary unit"),
    "continuous-bernoulli": Likelihood(
        lambda e, n: families.ContinuousBernoulli(e), "[0, 1]", "binary unit", density=True
    ),
    "beta": Likelihood(lambda e, n: families.Beta(e), "(0, 1)", "unit", density=True),
    "normal": Likelihood(lambda e, n: families.Normal(e, scale="column"), "reals", "real", density=True),
    "laplace": Likelihood(lambda e, n: families.Laplace(e), "reals", "real", density=True),
    "student-t": Likelihood(lambda e, n: families.StudentT(e), "reals with outliers", "real", density=True),
    "log-normal": Likelihood(lambda e, n: families.LogNormal(e), "positive reals", "positive", density=True),
    "gamma": Likelihood(lambda e, n: families.Gamma(e), "positive reals", "positive", density=True),
    "binomial": Likelihood(lambda e, n: families.Binomial(e, n), "counts up to a known one", "count, largest count"),
    "beta-binomial": Likelihood(
        lambda e, n: families.BetaBinomial(e, n), "overdispersed counts up to a known one", "count, largest count"
    ),
    "discretized-logistic": Likelihood(
        lambda e, n: families.DiscretizedLogistic(e, n + 1), "ordered levels", "count, largest count"
    ),
    "ordinal": Likelihood(lambda e, n: families.OrderedLogistic(e, n + 1), "ordered grades", "count, largest count"),
    "categorical": Likelihood(
        lambda e, n: families.Categorical(e, n + 1), "classes without an order", "count, largest count"
    ),
    "poisson": Likelihood(lambda e, n: families.Poisson(e), "counts", "count"),
    "negative-binomial": Likelihood(lambda e, n: families.NegativeBinomial(e), "overdispersed counts", "count"),
    "zero-inflated-poisson": Likelihood(
        lambda e, n: families.ZeroInflatedPoisson(e), "Poisson counts with extra zeros", "count"
    ),
    "zero-inflated-negative-binomial": Likelihood(
        lambda e, n: families.ZeroInflatedNegativeBinomial(e), "overdispersed counts with extra zeros", "count"
    ),
    TABLE: Likelihood(lambda e, n: _of_a_table(), "tables: for each column what it is", "table", density=True),
    ORDERED: Likelihood(
        lambda e, n: _of_a_table(), "the same, with the order of ordinal columns in use", "table", density=True
    ),
}
NETS = ("mlp", "conv", "resnet")
TABLES: dict[str, Mapping[str, Entry]] = {"prior": PRIORS, "likelihood": LIKELIHOODS, "guide": GUIDES}


def is_own(name: str | None) -> bool:
    """Whether the name is that of a class in a file of the user's: parts.py:Name."""
    return name is not None and ".py:" in name


def part(kind: str, name: str) -> Any:
    """The prior, likelihood or guide of a name, or of a class in a file, `parts.py:Name`.

    Such a class is built as Name(latent) for a prior, as Name(event_shape) for a likelihood or guide.

    Raises:
        OptionError: the name is not known, or something is wrong with the file.
    """
    if not is_own(name):
        return TABLES[kind][choose(kind, name, TABLES[kind])]
    path, _, attribute = name.rpartition(":")
    if not Path(path).is_file():
        raise OptionError(f"--{kind} {name}: there is no file {path}{near_paths(path, ('.py',))}.")
    try:
        own: Any = runpy.run_path(path).get(attribute)
    except (Exception, SystemExit) as error:  # whatever the file raises
        raise OptionError(f"--{kind} {name}: {path} does not run ({type(error).__name__}: {error}).") from error
    if not (isinstance(own, type) and issubclass(own, torch.nn.Module)):
        raise OptionError(f"--{kind} {name}: {path} has no class {attribute} that is a torch.nn.Module.")
    if kind == "prior":
        return Prior(lambda n, *_: _made(kind, name, own, n), name)
    if not issubclass(own, families.Family):
        raise OptionError(f"--{kind} {name}: {attribute} is no family; derive it from families.Elementwise or Family.")
    if kind == "guide":
        return Entry(lambda n: _made(kind, name, own, n), name)
    one = _made(kind, name, own, 1)
    discrete = _made(kind, name, lambda n: one(torch.zeros(one.param_shape)).support.is_discrete, 1)
    return Likelihood(lambda event, _: _made(kind, name, own, event), name, "its own", density=not discrete)


def _made(kind: str, name: str, build: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return build(argument)
    except PyrovaeError:
        raise
    except Exception as error:
        raise OptionError(
            f"--{kind} {name}: {name.rpartition(':')[2]}({argument!r}) fails ({type(error).__name__}: {error}). A part is "
            "built from one number, or from the shape of a row."
        ) from error


def own_paths(options: Options) -> dict[str, str]:
    """The file of each part that the user wrote."""
    return {kind: name.rpartition(":")[0] for kind in TABLES if is_own(name := getattr(options, kind))}


def own_files(options: Options) -> dict[str, str]:
    """The SHA-256 of the file of each part that the user wrote: when it changes, so does the model."""
    return {kind: hashlib.sha256(Path(path).read_bytes()).hexdigest() for kind, path in own_paths(options).items()}


def choose(name: str, value: str, known: Any) -> str:
    """The value, if it is one of the known ones; else OptionError, which lists them."""
    if value not in known:
        raise OptionError(f"--{name} {value!r} is not known; known: {', '.join(known)}.")
    return value
