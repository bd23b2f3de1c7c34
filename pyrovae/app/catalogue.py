"""Priors, likelihoods, guides and networks by name."""

from __future__ import annotations

import hashlib
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyrovae import families, priors
from pyrovae.app.options import Options
from pyrovae.conditionals import flow
from pyrovae.errors import OptionError, PyrovaeError

Event = int | tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """What has a name on the command line: how it is built, and what it is, in a few words. A guide's is build(latent), or
    for a flow build(in_features, latent, hidden=...)."""

    build: Callable[..., Any]
    what: str


@dataclass(frozen=True)
class Prior(Entry):
    """build(latent, encoder, rows). guides: those that have its support, the first of which is the default."""

    guides: tuple[str, ...] = ("normal", "low-rank", "full", "mixture", "iaf", "nsf")


@dataclass(frozen=True)
class Likelihood(Entry):
    """build(event_shape, total_count). density: of real rows, in nats that depend on their units; else a mass.

    takes: the values it is for. "real" rows are standardised, column by column; others are taken as they are.
    """

    takes: str
    density: bool = False

    @property
    def needs_total(self) -> bool:
        return "largest count" in self.takes


@dataclass(frozen=True)
class Model(Entry):
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
GUIDES: dict[str, Entry] = {
    "normal": Entry(families.Normal, "Normal, independent dimensions"),
    "low-rank": Entry(lambda n: families.LowRankNormal(n, min(n, 2)), "Normal, diagonal plus rank 2"),
    "full": Entry(families.FullNormal, "Normal, full covariance"),
    "mixture": Entry(families.MixtureOfNormals, "mixture of diagonal Normals"),
    "power-spherical": Entry(families.PowerSpherical, "around a direction on the sphere"),
    "logistic-normal": Entry(families.LogisticNormal, "Normal under softmax"),
    "iaf": Entry(partial(flow, kind="iaf"), "inverse autoregressive flow"),
    "nsf": Entry(partial(flow, kind="nsf"), "neural spline flow, inverted"),
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
TABLES: dict[str, Mapping[str, Entry]] = {"prior": PRIORS, "likelihood": LIKELIHOODS, "guide": GUIDES}


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


def own_files(options: Options) -> dict[str, str]:
    """The SHA-256 of the file of each part of one's own: with another content it is another model."""
    found = {kind: str(getattr(options, kind)) for kind in TABLES if is_own(getattr(options, kind))}
    return {k: hashlib.sha256(Path(n.rpartition(":")[0]).read_bytes()).hexdigest() for k, n in found.items()}


def choose(name: str, value: str, known: Any) -> str:
    """The value, or OptionError with the known ones."""
    if value not in known:
        raise OptionError(f"--{name} {value!r} is not known; known: {', '.join(known)}.")
    return value
