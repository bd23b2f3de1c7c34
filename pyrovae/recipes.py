"""Recipes: which model a data set gets, of the parts that were named.

This is a face: it puts parts of the model tower together. What it decides by itself it says (`describe_run`) and a run
records.
"""

from __future__ import annotations

import hashlib
import math
import runpy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae import families, priors
from pyrovae.conditionals import conv, flow, mlp, resnet
from pyrovae.data import Dataset
from pyrovae.errors import CheckpointError, DataError, OptionError, PyrovaeError
from pyrovae.models import ADGM, CVAE, GMVAE, NVAE, SSVAE, VAE, HierarchicalVAE, JointVAE, LadderVAE, StackedSSVAE, VaDE
from pyrovae.nets import MLP, Activated, Log1p, OneHot, Rescaled, Swapped

Event = int | tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """What has a name on the command line: how it is built, and what it is, in a few words. A guide's is build(latent), or
    for a flow build(in_features, latent, hidden=...)."""

    build: Callable[..., Any]
    what: str


@dataclass(frozen=True)
class Prior(Part):
    """build(latent, encoder, rows). guides: those that have its support, the first of which is the default."""

    guides: tuple[str, ...] = ("normal", "low-rank", "full", "mixture", "iaf", "nsf")


@dataclass(frozen=True)
class Likelihood(Part):
    """build(event_shape, total_count). density: of real rows, in nats that depend on their units; else a mass.

    takes: the values it is for. "real" rows are standardised, column by column; others are taken as they are.
    """

    takes: str
    density: bool = False

    @property
    def needs_total(self) -> bool:
        return "largest count" in self.takes


@dataclass(frozen=True)
class Model(Part):
    """build(pieces). labels: the argument that they go to, `CONDITION` (c, given for every row) or "y", None where the model
    takes none. takes: the options that are not for every model. code: the site that `encode` gives. images: whether its
    rows are images, (C, H, W) or (H, W), whatever --net says."""

    labels: str | None = None
    takes: tuple[str, ...] = ()
    code: str = "z"
    images: bool = False

    @property
    def clusters(self) -> bool:
        """Whether it finds classes of its own, y, that no label names."""
        return "clusters" in self.takes

    @property
    def probability(self) -> str:
        """What it gives the probability of."""
        return f"p(x | {CONDITION})" if self.labels == CONDITION else "p(x)"


CONDITION = "c"
PRIORS: dict[str, Prior] = {
    "normal": Prior(lambda n, *_: priors.StandardNormal(n), "N(0, I)"),
    "learned-normal": Prior(lambda n, *_: priors.Normal(n), "a Normal whose location and scale are learned"),
    "laplace": Prior(lambda n, *_: priors.Laplace(n), "independent Laplace"),
    "student-t": Prior(lambda n, *_: priors.StudentT(n), "independent Student's t"),
    "horseshoe": Prior(lambda n, *_: priors.Horseshoe(n), "sparse codes"),
    "mixture": Prior(lambda n, *_: priors.MixtureOfNormals(n), "ten Normals, learned"),
    "vamp": Prior(lambda n, encoder, x: priors.VampPrior(encoder, x[:500]), "the encoder at 500 learned pseudo-inputs"),
    "maf": Prior(lambda n, *_: priors.FlowPrior(n, kind="maf"), "masked autoregressive flow"),
    "nsf": Prior(lambda n, *_: priors.FlowPrior(n, kind="nsf"), "neural spline flow"),
    "coupling": Prior(lambda n, *_: priors.FlowPrior(n, kind="coupling"), "flow of affine couplings"),
    "sphere": Prior(
        lambda n, *_: priors.HypersphericalUniform(n), "uniform on the sphere", guides=("power-spherical",)
    ),
    "logistic-normal": Prior(lambda n, *_: priors.LogisticNormal(n), "proportions", guides=("logistic-normal",)),
}
GUIDES: dict[str, Part] = {
    "normal": Part(families.Normal, "Normal, independent dimensions"),
    "low-rank": Part(lambda n: families.LowRankNormal(n, min(n, 2)), "Normal, diagonal plus rank 2"),
    "full": Part(families.FullNormal, "Normal, full covariance"),
    "mixture": Part(families.MixtureOfNormals, "mixture of diagonal Normals"),
    "power-spherical": Part(families.PowerSpherical, "around a direction on the sphere"),
    "logistic-normal": Part(families.LogisticNormal, "Normal under softmax"),
    "iaf": Part(partial(flow, kind="iaf"), "inverse autoregressive flow"),
    "nsf": Part(partial(flow, kind="nsf"), "neural spline flow, inverted"),
}
FLOWS = ("iaf", "nsf")
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
    "binomial": Likelihood(families.Binomial, "counts up to a known one", "count, largest count"),
    "beta-binomial": Likelihood(families.BetaBinomial, "the same, with more spread", "count, largest count"),
    "discretized-logistic": Likelihood(
        lambda e, n: families.DiscretizedLogistic(e, n + 1), "levels in order", "count, largest count"
    ),
    "ordinal": Likelihood(lambda e, n: families.OrderedLogistic(e, n + 1), "grades", "count, largest count"),
    "categorical": Likelihood(
        lambda e, n: families.Categorical(e, n + 1), "codes without order", "count, largest count"
    ),
    "poisson": Likelihood(lambda e, n: families.Poisson(e), "counts", "count"),
    "negative-binomial": Likelihood(lambda e, n: families.NegativeBinomial(e), "counts with more spread", "count"),
    "zero-inflated-poisson": Likelihood(
        lambda e, n: families.ZeroInflatedPoisson(e), "counts, zeros of their own", "count"
    ),
    "zero-inflated-negative-binomial": Likelihood(
        lambda e, n: families.ZeroInflatedNegativeBinomial(e), "both", "count"
    ),
}
NETS = ("mlp", "conv", "resnet")


@dataclass(frozen=True)
class Options:
    """What a person may choose. None: decided from the data (see `decide`)."""

    model: str = "vae"
    clusters: int | None = None
    labelled: int | None = None
    levels: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None
    prior: str = "normal"
    likelihood: str | None = None
    guide: str | None = None
    total_count: int | None = None
    net: str = "mlp"
    latent: int = 10
    hidden: tuple[int, ...] = (400,)
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    kl_warmup: float = 0.0
    kl_cycles: int = 0
    free_bits: float = 0.0
    lagging: float = 0.0
    clip_norm: float | None = None
    patience: int | None = None
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    num_samples: int = 1000
    seed: int = 0


# --- models ----------------------------------------------------------------------------------------------------------


class Pieces:
    """What models are put together from: conditionals of the families and networks that were named, for such rows.

    event: of x, the size of a vector or the shape of an image; latent: how many dimensions a latent variable has, the top one
    of several levels; levels: how many each has, from the data upwards; classes: how many values y or c has.
    """

    def __init__(self, options: Options, train: Tensor, num_classes: int) -> None:
        shape = tuple(train.shape[1:])
        if options.net == "conv" and len(shape) < 2:
            raise OptionError("--net conv needs images, and these rows have no image shape; use --net mlp.")
        self.options, self.train = options, train
        self.event: Event = shape[0] if len(shape) == 1 else shape
        self.levels, self.classes = options.levels or (options.latent,), num_classes
        self.latent = self.levels[-1]
        self.chosen: Likelihood = part("likelihood", str(options.likelihood))
        self.net: Any = {"mlp": mlp, "conv": conv, "resnet": resnet}[options.net]
        self.hidden: dict[str, Any] = {"hidden": options.hidden} if len(shape) == 1 else {}

    def conditional(self, family: families.Family, *parents: Event) -> Any:
        """p(child | parents), parents by their sizes."""
        return self.net(parents if len(parents) > 1 else parents[0], family, **self.hidden)

    def likelihood(self, *parents: int) -> Any:
        """p(x | parents) of the family that --likelihood names."""
        return self.conditional(self.chosen.build(self.event, self.options.total_count or 1), *parents)

    def posterior(self, *parents: Event, guide: str | None = None) -> Any:
        """q(z | parents) of the family that --guide names."""
        guide = guide or str(self.options.guide)
        build = part("guide", guide).build
        if guide in FLOWS:
            return build(parents if len(parents) > 1 else parents[0], self.latent, hidden=self.options.hidden)
        return self.conditional(build(self.latent), *parents)

    def normal(self, latent: int, *parents: Event) -> Any:
        """p(z | parents), independent Normals."""
        return self.conditional(families.Normal(latent), *parents)

    def lower(self) -> list[Any]:
        """p(z_l | z_{l+1}) for each level but the top."""
        return [self.normal(below, above) for below, above in zip(self.levels, self.levels[1:])]

    def classifier(self, *parents: Event) -> Any:
        return self.conditional(families.Categorical((), self.classes), *parents)

    def seeing(self, made: Any) -> Any:
        """A conditional whose first parent is x: counts enter it divided by their bound, or as log(1 + x)."""
        bound = self.options.total_count or 1
        if self.chosen.needs_total and bound > 1:
            made.net = Rescaled(made.net, 1 / bound)
        elif self.chosen.takes in ("count", "positive"):
            made.net = Log1p(made.net)
        return made

    def prior(self, encoder: Any = None) -> Any:
        """p(z) of the family that --prior names. `encoder`, of x alone, is also that of a VampPrior."""
        # a mixture of flows at 500 pseudo-inputs would cost 500 flows a draw: it gets a diagonal encoder of its own
        if self.options.prior == "vamp" and (encoder is None or self.options.guide in FLOWS):
            encoder = self.seeing(self.posterior(self.event, guide="normal"))
        picked = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.options.seed))
        return part("prior", self.options.prior).build(self.latent, encoder, self.train[picked])

    def normal_of_class(self) -> Any:
        """p(z | class): for each class or cluster a Normal, diagonal, learned."""
        return mlp(self.classes, families.Normal(self.latent), hidden=())


def _vae(of: Pieces) -> VAE:
    likelihood = of.likelihood(of.latent)
    encoder = of.seeing(of.posterior(of.event))
    return VAE(prior=of.prior(encoder), likelihood=likelihood, encoder=encoder)


def _cvae(of: Pieces) -> CVAE:
    return CVAE(
        condition=OneHot(of.classes),
        prior=of.normal_of_class(),
        likelihood=of.likelihood(of.latent, of.classes),
        encoder=of.seeing(of.posterior(of.event, of.classes)),
    )


def _m2(of: Pieces) -> SSVAE:
    return SSVAE(
        label_prior=priors.Categorical(of.classes),
        prior=of.prior(),
        likelihood=of.likelihood(of.latent, of.classes),
        encoder=of.seeing(of.posterior(of.event, of.classes)),
        classifier=of.seeing(of.classifier(of.event)),
        code=OneHot(of.classes),
    )


def _m1m2(of: Pieces) -> StackedSSVAE:
    return StackedSSVAE(
        label_prior=priors.Categorical(of.classes),
        prior=of.prior(),
        lower=of.conditional(families.Normal(of.latent), of.latent, of.classes),
        likelihood=of.likelihood(of.latent),
        encoder=of.seeing(of.posterior(of.event, guide="normal")),
        classifier=of.classifier(of.latent),
        upper_encoder=of.posterior(of.latent, of.classes),
        code=OneHot(of.classes),
    )


def _adgm(of: Pieces) -> ADGM:
    def after_a(made: Any) -> Any:  # its x comes second
        made.net = Swapped(made.net)
        return made

    normal = families.Normal(of.latent)
    return ADGM(
        label_prior=priors.Categorical(of.classes),
        prior=of.prior(),
        likelihood=of.likelihood(of.latent, of.classes),
        auxiliary=of.seeing(of.conditional(normal, of.event, of.latent, of.classes)),
        auxiliary_encoder=of.seeing(of.conditional(normal, of.event)),
        classifier=after_a(of.seeing(of.classifier(of.event, of.latent))),
        encoder=after_a(of.seeing(of.posterior(of.event, of.latent, of.classes))),
        code=OneHot(of.classes),
    )


def _gmvae(of: Pieces) -> GMVAE:
    return GMVAE(
        cluster_prior=priors.Categorical(of.classes),
        prior=of.normal_of_class(),
        likelihood=of.likelihood(of.latent),
        encoder=of.seeing(of.posterior(of.event, of.classes)),
        classifier=of.seeing(of.classifier(of.event)),
        code=OneHot(of.classes),
    )


def _vade(of: Pieces) -> VaDE:
    return VaDE(
        cluster_prior=priors.Categorical(of.classes, learned=True),
        prior=of.normal_of_class(),
        likelihood=of.likelihood(of.latent),
        encoder=of.seeing(of.posterior(of.event)),
        code=OneHot(of.classes),
    )


def _jointvae(of: Pieces) -> JointVAE:
    encoder = of.seeing(of.posterior(of.event))
    return JointVAE(
        discrete_prior=priors.Categorical(of.classes),
        prior=of.prior(encoder),
        likelihood=of.likelihood(of.latent, of.classes),
        encoder=encoder,
        classifier=of.seeing(of.classifier(of.event)),
        code=OneHot(of.classes),
    )


def _hierarchical(of: Pieces) -> HierarchicalVAE:
    parents = (of.event, *of.levels)
    encoders = [of.normal(latent, parent) for latent, parent in zip(of.levels[:-1], parents)]
    encoders.append(of.posterior(parents[len(encoders)]))  # --guide names the top's family, --prior being the top's
    of.seeing(encoders[0])
    return HierarchicalVAE(
        prior=of.prior(), lower=of.lower(), likelihood=of.likelihood(of.levels[0]), encoders=encoders
    )


def _ladder(of: Pieces) -> LadderVAE:
    *hidden, width = of.options.hidden
    sizes = (of.event, *[width] * (len(of.levels) - 1))
    upward = [Activated(MLP(size, width, hidden)) for size in sizes]
    of.seeing(upward[0])
    evidence = [mlp(width, families.Normal(latent), hidden=()) for latent in of.levels[:-1]]
    return LadderVAE(
        prior=of.prior(),
        lower=of.lower(),
        likelihood=of.likelihood(of.levels[0]),
        upward=upward,
        evidence=[*evidence, of.posterior(width)],
    )


def _nvae(of: Pieces) -> NVAE:
    groups = of.options.groups or ()
    assert not isinstance(of.event, int)
    return NVAE(
        of.chosen.build(of.event, of.options.total_count or 1),
        channels=[16 * 2**resolution for resolution in range(len(groups))],
        groups=groups,
        latent_channels=of.latent,
        rescale=1 / (of.options.total_count or 1),
    )


MODELS: dict[str, Model] = {
    "vae": Model(_vae, "p(z) p(x|z)", takes=("prior", "net")),
    "cvae": Model(_cvae, "p(z|c) p(x|z,c): rows given their class", labels=CONDITION),
    "m2": Model(_m2, "p(y) p(z) p(x|z,y): a class that some rows have", labels="y", takes=("prior", "labelled")),
    "m1m2": Model(
        _m1m2, "p(y) p(z2) p(z1|z2,y) p(x|z1): M2 of codes", labels="y", takes=("prior", "labelled"), code="z1"
    ),
    "adgm": Model(_adgm, "M2 with an auxiliary variable in its guide", labels="y", takes=("prior", "labelled")),
    "gmvae": Model(_gmvae, "p(y) p(z|y) p(x|z): clusters, with q(y|x) q(z|x,y)", takes=("clusters",)),
    "vade": Model(_vade, "the same with q(z|x), clusters summed out in the model", takes=("clusters",)),
    "jointvae": Model(_jointvae, "p(y) p(z) p(x|z,y): clusters beside codes", takes=("prior", "clusters")),
    "hierarchical": Model(
        _hierarchical, "p(z2) p(z1|z2) p(x|z1), or deeper, inferred bottom up", takes=("prior", "levels"), code="z1"
    ),
    "ladder": Model(_ladder, "the same, inferred top down", takes=("prior", "levels"), code="z1"),
    "nvae": Model(
        _nvae, "images: groups of maps from coarse to fine, residual cells", takes=("groups",), code="z1_1", images=True
    ),
}


# --- parts of one's own ----------------------------------------------------------------------------------------------

TABLES: dict[str, Mapping[str, Part]] = {"prior": PRIORS, "likelihood": LIKELIHOODS, "guide": GUIDES}


def is_own(name: str | None) -> bool:
    """Whether a part is a class in a file: parts.py:Name."""
    return name is not None and ".py:" in name


def part(kind: str, name: str) -> Any:
    """The part of that name, or of a file: a prior is built as Name(latent), a likelihood or guide as Name(event_shape).

    OptionError lists the known names, or says what is wrong with the file.
    """
    if not is_own(name):
        return TABLES[kind][choose(kind, name, TABLES[kind])]
    path, _, attribute = name.rpartition(":")
    if not Path(path).is_file():
        raise OptionError(f"--{kind} {name}: there is no file {path}.")
    try:
        own: Any = runpy.run_path(path).get(attribute)
    except (Exception, SystemExit) as error:  # whatever a person's file raises
        raise OptionError(f"--{kind} {name}: {path} does not run ({type(error).__name__}: {error}).") from error
    if not (isinstance(own, type) and issubclass(own, nn.Module)):
        raise OptionError(f"--{kind} {name}: {path} has no class {attribute} that is a torch.nn.Module.")
    if kind == "prior":
        return Prior(lambda n, *_: _made(kind, name, own, n), name)
    if not issubclass(own, families.Family):
        raise OptionError(f"--{kind} {name}: {attribute} is no family; derive it from families.Elementwise or Family.")
    if kind == "guide":
        return Part(lambda n: _made(kind, name, own, n), name)
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


def own_files(options: Options) -> dict[str, str]:
    """The SHA-256 of the file of each part of one's own: with another content it is another model."""
    found = {kind: str(getattr(options, kind)) for kind in TABLES if is_own(getattr(options, kind))}
    return {k: hashlib.sha256(Path(n.rpartition(":")[0]).read_bytes()).hexdigest() for k, n in found.items()}


# --- decisions -------------------------------------------------------------------------------------------------------


def choose(name: str, value: str, known: Any) -> str:
    """The value, or OptionError with the known ones."""
    if value not in known:
        raise OptionError(f"--{name} {value!r} is not known; known: {', '.join(known)}.")
    return value


def decide(options: Options, dataset: Dataset, num_rows: int) -> Options:
    """Fill in what was left open, from the data: the likelihood from their kind, the length of the fit from their number.

    Epochs: about 3,000 steps, at least 20 and at most 500 epochs.
    """
    clusters = _fitting_model(options, dataset)
    prior: Prior = part("prior", options.prior)
    guide = options.guide or prior.guides[0]
    part("guide", guide)
    if guide not in (fitting := prior.guides) and not is_own(guide) and not is_own(options.prior):
        raise OptionError(
            f"--guide {guide} has not the support of --prior {options.prior}; that prior takes {', '.join(fitting)}."
        )
    if guide in FLOWS and options.net != "mlp":
        raise OptionError(f"--guide {guide} stands behind --net mlp; with --net {options.net} take another guide.")
    choose("net", options.net, NETS)
    if options.net == "conv" and options.hidden != (400,):
        raise OptionError("--hidden is for --net mlp and resnet: a convolutional net has its channels.")
    bounded = options.total_count if options.total_count is not None else dataset.total_count
    kinds = {
        "binary": "bernoulli",
        "unit": "bernoulli",
        "count": "beta-binomial" if bounded is not None else "negative-binomial",
        "real": "normal",
    }
    likelihood = options.likelihood or kinds[dataset.kind]
    chosen: Likelihood = part("likelihood", likelihood)
    if options.total_count is not None and not chosen.needs_total:
        takes = ", ".join(name for name, other in LIKELIHOODS.items() if other.needs_total)
        raise OptionError(f"--total-count does not go with --likelihood {likelihood}; it is for {takes}.")
    if chosen.needs_total and bounded is None:
        raise OptionError(f"--likelihood {likelihood} needs --total-count, the largest count that can occur.")
    levels = options.levels
    if levels is None and "levels" in MODELS[options.model].takes:
        levels = (options.latent, max(1, options.latent // 2))
    latent = levels[0] if levels else options.latent
    if levels == () or any(size < 1 for size in (latent, *options.hidden, *(levels or ()))):
        raise OptionError(
            f"--latent, --levels and --hidden must be positive, got {latent}, {levels} and {options.hidden}."
        )
    if options.model == "ladder" and not options.hidden:
        raise OptionError("--model ladder needs --hidden of at least one width: what goes up the levels.")
    for name in ("epochs", "batch_size", "num_samples", "total_count"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise OptionError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    for name in ("learning_rate", "clip_norm"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise OptionError(f"--{name.replace('_', '-')} must be positive, got {value}.")
    for name, what in (
        ("kl_warmup", "a number of epochs"),
        ("kl_cycles", "how often the KL weight rises"),
        ("free_bits", "nats a row"),
        ("lagging", "a number of epochs"),
    ):
        if not 0 <= getattr(options, name) < math.inf:
            raise OptionError(f"--{name.replace('_', '-')} is {what}, 0 for none, got {getattr(options, name)}.")
    if options.patience is not None and not options.validation_fraction:
        raise OptionError("--patience needs rows to watch: give --validation-fraction 0.1, or leave it out.")
    if options.kl_warmup and options.kl_cycles:
        raise OptionError("--kl-warmup and --kl-cycles are two schedules of one weight: choose one.")
    batch_size = options.batch_size or min(num_rows, 256 if num_rows >= 20_000 else 128)
    groups = options.groups
    if groups is None and "groups" in MODELS[options.model].takes:
        groups = (1, 2)
    if groups is not None and (not groups or min(groups) < 1):
        raise OptionError(f"--groups are whole numbers of at least 1, the coarsest resolution first, got {groups}.")
    epochs = options.epochs or max(20, min(500, math.ceil(3000 * batch_size / num_rows)))
    for name in ("kl_warmup", "lagging"):
        if getattr(options, name) > epochs:
            raise OptionError(
                f"--{name.replace('_', '-')} {getattr(options, name):g} is longer than the fit of {epochs} epochs: take half "
                "of them, or more --epochs."
            )
    # without it most groups of maps are switched off before they are of use
    warms_up = MODELS[options.model].images and not options.kl_cycles
    filled = {
        "clusters": clusters,
        "levels": levels,
        "groups": groups,
        "latent": latent,
        "prior": _found(options.prior),
        "likelihood": _found(likelihood),
        "guide": None if MODELS[options.model].images else _found(guide),
        "total_count": bounded if chosen.needs_total else None,
        "batch_size": batch_size,
        "epochs": epochs,
        "kl_warmup": options.kl_warmup or (epochs / 3 if warms_up else 0.0),
        "learning_rate": options.learning_rate or 3e-3,
    }
    return Options(**{**asdict(options), **filled})


def _fitting_model(options: Options, dataset: Dataset) -> int | None:
    """How many clusters, if the model has some. OptionError for options that the model does not take, and missing labels."""
    model: Model = MODELS[choose("model", options.model, MODELS)]
    for name in ("prior", "net", "labelled", "clusters", "levels", "groups"):
        value = getattr(options, name)
        if value != getattr(Options(), name) and name not in model.takes:
            those = ", ".join(known for known, other in MODELS.items() if name in other.takes)
            raise OptionError(f"--{name} {value} does not go with --model {options.model}; it is for {those}.")
    if model.images and (options.guide is not None or options.hidden != Options().hidden):
        raise OptionError(
            f"--model {options.model} has a guide and nets of its own, sized by --latent and --groups: leave out --guide and "
            "--hidden."
        )
    if options.model == "hierarchical" and options.free_bits and len(options.levels or (1, 1)) == 1:
        raise OptionError("--free-bits spares z1 of --model hierarchical, and there is no other level: leave it out.")
    if model.images and dataset.image_shape is None:
        raise OptionError(f"--model {options.model} needs images, and the rows of {dataset.name} have no image shape.")
    names = class_names(dataset)
    if model.clusters:
        if options.clusters is not None and options.clusters < 2:
            raise OptionError(f"--clusters must be at least 2, got {options.clusters}.")
        return options.clusters or (max(2, len(names)) if names else 10)
    if model.labels is not None and len(names) < 2:
        told = f"{dataset.name} has {'none' if not names else 'one class only'}"
        raise OptionError(
            f"--model {options.model} needs labels of at least two classes, and {told}: name their column with --label."
        )
    if model.labels == CONDITION:
        every = [(dataset.x, dataset.y)] + ([] if dataset.x_test is None else [(dataset.x_test, dataset.y_test)])
        unknown = sum(len(x) if y is None else int((y < 0).sum()) for x, y in every)
        if unknown:
            raise OptionError(
                f"--model {options.model} needs the label of every row, and {unknown} rows of {dataset.name} have none: drop "
                f"them, or take a model that does without ({', '.join(n for n, m in MODELS.items() if m.labels == 'y')})."
            )
    return None


def _found(name: str) -> str:
    """A part of one's own by its file's whole path, so that the run can be asked from anywhere."""
    return str(Path(name).resolve()) if is_own(name) else name


def build(options: Options, train: Tensor, num_classes: int) -> nn.Module:
    """The model of these options for such rows, of so many classes or clusters, if it has some."""
    pair: nn.Module = MODELS[options.model].build(Pieces(options, train, num_classes))
    return pair


def class_names(dataset: Dataset) -> tuple[str | int, ...]:
    """What the classes 0, 1, ... are called; () without labels."""
    if dataset.classes is not None:
        return dataset.classes
    codes = [int(y.max()) for y in (dataset.y, dataset.y_test) if y is not None]
    return tuple(range(max(codes, default=-1) + 1))


def read_options(info: Mapping[str, Any]) -> Options:
    """The options of a run.json. CheckpointError when they are not whole."""
    try:
        # runs from before there were other models than the VAE, or these remedies
        since = ("model", "clusters", "labelled", "levels", "groups", "kl_cycles", "free_bits", "lagging")
        found = {**{name: getattr(Options(), name) for name in since}, **info["options"]}
        sizes = {name: found[name] and tuple(found[name]) for name in ("levels", "groups")}
        names = {f.name for f in fields(Options)}
        if set(found) != names:
            raise KeyError(f"options {sorted(set(found) ^ names)}")
        return Options(**{**found, "hidden": tuple(found["hidden"]), **sizes})
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"The run's options are damaged or missing ({error!r}): was it made by `pyrovae fit`?"
        ) from error


def refuse_missing(dataset: Dataset) -> None:
    """DataError for missing entries, by their place in the source: the standard VAE does not take them."""
    for part in (dataset.x, dataset.x_test):
        if part is not None and bool(part.isnan().any()):
            row, column = part.isnan().nonzero()[0].tolist()
            name = dataset.columns[column] if dataset.columns else f"column {column}"
            raise DataError(
                f"{dataset.name} has {int(part.isnan().sum())} missing entries (NaN) in {int(part.isnan().any(1).sum())} rows, "
                f"the first in row {row} (counted from 0), {name}. Fill or drop them; in Python, pv.observed_only(likelihood) "
                "leaves them out of the density."
            )
