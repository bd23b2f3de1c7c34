"""The parts of models that have a name on the command line, built as the options say: `Pieces`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyrovae._lazily import Lazily
from pyrovae.app.catalogue import FLOWS, NORMS, ORDERED, Event, Likelihood, part
from pyrovae.app.options import Options
from pyrovae.errors import OptionError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pyrovae import conditionals, distributions, families, nets
    from pyrovae.tables.schema import Schema
else:  # so that the names of models are known at once
    torch = Lazily("torch")
    conditionals, families = Lazily("pyrovae.conditionals"), Lazily("pyrovae.families")
    nets, distributions = Lazily("pyrovae.nets"), Lazily("pyrovae.distributions")

WIDTHS = (400,)


class _Size:
    """What the size of a row of counts is: a latent dimension, or the last of the numbers that the model is given."""

    def __init__(self, train: Tensor, options: Options) -> None:
        self.is_latent = options.size_factor == "latent"
        logs = nets.sizes.log_size(train).double()
        self.centre = float(logs.mean())
        self.spread = max(float(logs.std(correction=0)), 0.05) if self.is_latent else 1.0

    def factor(self, net: Any, last: int) -> nets.SizeFactor:
        """A decoder's network with the size in its log-means; `last` is the number of its last parent."""
        place = {"parent": 0, "place": 0} if self.is_latent else {"parent": last, "place": -1}
        return nets.SizeFactor(net, self.centre, self.spread, **place)

    @staticmethod
    def start(net: Any, train: Tensor) -> None:
        """Let the log-means of the columns start at what they are in rows of the average size."""
        means = train.nanmean(0).nan_to_num(0.0)
        shares = (means / means.mean().clamp_min(1e-30)).clamp_min(1e-3).log()
        if isinstance(net, nets.MLP) and len(net.rest):
            last: Any = net.rest[-1]
            with torch.no_grad():
                last.bias[: len(shares)] = shares


class Pieces:
    """Builds the conditionals of a model, of the families and networks that the options name.

    event: the size of a row that is a vector, the shape of one that is an image; of a table the number of its features.
    latent: the number of dimensions of z, with several levels of the top one.
    levels: the number of dimensions of each level, from the data upwards.
    classes: the number of values of y or c.
    """

    def __init__(
        self, options: Options, train: Tensor, num_classes: int, schema: Schema | None = None, gaps: bool = False
    ) -> None:
        shape = tuple(train.shape[1:])
        if options.net == "conv" and len(shape) < 2:
            raise OptionError("--net conv needs images, and these rows have no image shape; use --net mlp.")
        self.options, self.train, self.gaps = options, train, gaps
        self.event: Event = shape[0] if len(shape) == 1 else shape
        self.levels, self.classes = options.levels or (options.latent or 1,), num_classes
        self.latent = self.levels[-1]
        self.chosen: Likelihood = part("likelihood", str(options.likelihood))
        self.net: Any = getattr(conditionals, str(options.net))
        self.widths = WIDTHS if options.hidden is None else options.hidden
        self.hidden: dict[str, Any] = {"hidden": self.widths} if options.net == "mlp" or len(shape) == 1 else {}
        if options.norm != "none":
            self.hidden["activation"] = NORMS[options.norm].build()
        elif options.dropout:
            self.hidden["activation"] = nets.ReLUDropout(options.dropout)
        self.schema = schema
        self.seen: families.Features | None = None
        self.sizes: tuple[int, ...] = ()  # the numbers of classes of several labels
        self.given = 0  # how many numbers a model's networks see of the columns, or of the caption, that it is given
        self.code: Any = None  # the network of c that they share
        total = options.total_count or 1
        self.ordered = options.likelihood == ORDERED
        if schema is None:
            self.family: Any = self.chosen.build(self.event, total)
        else:
            self.family = schema.family(train, ordered=self.ordered, scale="net")
        self.size = _Size(train, options) if options.size_factor not in (None, "none") else None
        if schema is not None or gaps:
            self.seen = families.Features(self.family, mask=gaps)
            self.event = self.seen.num_features

    def conditional(self, family: families.Family, *parents: Event) -> Any:
        """p(child | parents) of a family; each parent is given by its size or shape."""
        if self.options.net == "mlp":
            return _flattening(parents, lambda sizes: self.net(sizes, family, **self.hidden))
        return self.net(parents if len(parents) > 1 else parents[0], family, **self.hidden)

    def likelihood(self, *parents: int) -> Any:
        """p(x | parents) of the family that --likelihood names."""
        made = self.conditional(self.family, *parents)
        if self.size is not None:
            self.size.start(made.net, self.train)
            made.net = self.size.factor(made.net, len(parents) - 1)
        return self.observed(made)

    def observed(self, made: Any) -> Any:
        """A likelihood that leaves missing cells out: of a table always, of other rows where some are missing."""
        return made if self.seen is None else distributions.observed_only(made)

    def posterior(self, *parents: Event, guide: str | None = None) -> Any:
        """q(z | parents) of the family that --guide names."""
        guide = guide or str(self.options.guide)
        build = part("guide", guide).build
        if guide in FLOWS:
            return _flattening(parents, lambda sizes: build(sizes, self.latent, hidden=self.widths))
        return self.conditional(build(self.latent), *parents)

    def normal(self, latent: int, *parents: Event) -> Any:
        """p(z | parents), independent Normals."""
        return self.conditional(families.Normal(latent), *parents)

    def of_words(self) -> Any:
        """p(z | c) of a caption c: a coupling flow, since a caption that says little has many kinds of images."""
        if self.latent == 1:  # has nothing to couple
            return self.normal(1, self.given)
        return conditionals.flow(self.given, self.latent, "coupling", hidden=(64,))

    def lower(self) -> list[Any]:
        """p(z_l | z_{l+1}) for each level except the top one."""
        return [self.normal(below, above) for below, above in zip(self.levels, self.levels[1:])]

    def classifier(self, *parents: Event, classes: int | None = None) -> Any:
        return self.conditional(families.Categorical((), classes or self.classes), *parents)

    def seeing(self, made: Any) -> Any:
        """A conditional whose first parent is x, which it then sees divided by its bound, as log(1 + x), or as features."""
        self._seeing(made)
        is_guide = isinstance(
            getattr(made, "family", None), families.Normal | families.FullNormal | families.LowRankNormal
        )
        if self.size is not None and self.size.is_latent and is_guide:
            made.net = nets.SizeFromTotal(made.net, self.size.centre, self.size.spread)
        return made

    def _seeing(self, made: Any) -> Any:
        if self.seen is not None:
            made.net = nets.Behind(self.seen, made.net)
            return made
        bound = self.options.total_count or 1
        if self.chosen.needs_total and bound > 1:
            made.net = nets.Rescaled(made.net, 1 / bound)
        elif self.chosen.takes in ("count", "positive"):
            made.net = nets.Log1p(made.net)
        return made

    @property
    def starts_as_mixture(self) -> bool:
        """Whether the model is the VAE of a table that starts as a mixture; see `pyrovae.tables.vae`."""
        own = self.options.prior == "vamp" or self.options.net != "mlp"
        return self.schema is not None and self.options.guide == "full" and not own

    def prior(self, encoder: Any = None) -> Any:
        """p(z) of the family that --prior names. A VampPrior shares `encoder`, if there is one of x alone."""
        # a mixture of flows at 500 pseudo-inputs would cost 500 flows a draw, so it gets a diagonal encoder
        if self.options.prior == "vamp" and (encoder is None or self.options.guide in FLOWS):
            encoder = self.seeing(self.posterior(self.event, guide="normal"))
        picked = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.options.seed))
        return part("prior", str(self.options.prior)).build(self.latent, encoder, self.train[picked])

    def normal_of_class(self) -> Any:
        """p(z | class): a learned diagonal Normal for each class or cluster."""
        return conditionals.mlp(self.classes, families.Normal(self.latent), hidden=())


def _flattening(parents: tuple[Event, ...], build: Callable[[Any], Any]) -> Any:
    """What is built of the sizes of parents, behind a front that makes a vector of the first one where that is an image."""
    sizes = tuple(math.prod(parent) if isinstance(parent, tuple) else parent for parent in parents)
    made = build(sizes if len(sizes) > 1 else sizes[0])
    if isinstance(parents[0], tuple):
        made.net = nets.Behind(nets.Flat(parents[0]), made.net)
    return made
