"""The models that have a name on the command line, each built from the parts that the options name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pyrovae._lazily import Lazily
from pyrovae.app.catalogue import CONDITION, ESTIMATORS, FLOWS, NORMS, Event, Likelihood, Model, codes_of, part
from pyrovae.app.options import Options
from pyrovae.errors import OptionError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pyrovae import conditionals, distributions, families, models, nets, priors
    from pyrovae import tables as of_tables
    from pyrovae.app.given import Given, GivenCaptions
    from pyrovae.pair.program import PairLike
    from pyrovae.tables.schema import Schema
else:  # so that the names of models are known at once
    torch = Lazily("torch")
    conditionals, families = Lazily("pyrovae.conditionals"), Lazily("pyrovae.families")
    models, nets, priors = Lazily("pyrovae.models"), Lazily("pyrovae.nets"), Lazily("pyrovae.priors")
    distributions, of_tables = Lazily("pyrovae.distributions"), Lazily("pyrovae.tables")


SIZED = ("vae", "cvae", "m2", "gmvae", "vade", "jointvae", "hierarchical")  # models whose counts can have a size factor
STARTS = {"full-mixture": "mixture", "full-mixture-nsf": "flow", "normal": "normal"}
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
        self.hidden: dict[str, Any] = {"hidden": self.widths} if len(shape) == 1 else {}
        if options.norm != "none":
            self.hidden["activation"] = NORMS[options.norm].build()
        self.schema = schema
        self.seen: families.Features | None = None
        self.given = 0  # how many numbers a model's networks see of the columns, or of the caption, that it is given
        self.code: Any = None  # the network of c that they share
        total = options.total_count or 1
        self.family: Any = self.chosen.build(self.event, total) if schema is None else schema.family(train)
        self.size = _Size(train, options) if options.size_factor not in (None, "none") else None
        if schema is not None or gaps:
            self.seen = families.Features(self.family, mask=gaps)
            self.event = self.seen.num_features

    def conditional(self, family: families.Family, *parents: Event) -> Any:
        """p(child | parents) of a family; each parent is given by its size or shape."""
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
            return build(parents if len(parents) > 1 else parents[0], self.latent, hidden=self.widths)
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

    def classifier(self, *parents: Event) -> Any:
        return self.conditional(families.Categorical((), self.classes), *parents)

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


def _vae(of: Pieces) -> models.VAE:
    if of.starts_as_mixture:
        kind = STARTS.get(str(of.options.prior))
        how: dict[str, Any] = {"latent": of.latent, "hidden": of.widths, "seed": of.options.seed}
        assert of.schema is not None
        return of_tables.vae(of.schema, of.train, prior=kind or of.prior(), gaps=of.gaps, **how)
    likelihood = of.likelihood(of.latent)
    encoder = of.seeing(of.posterior(of.event))
    return models.VAE(prior=of.prior(encoder), likelihood=likelihood, encoder=encoder)


def _cvae(of: Pieces) -> models.CVAE:
    if of.given:
        if of.starts_as_mixture:
            assert of.schema is not None
            how: dict[str, Any] = {"latent": of.latent, "hidden": of.widths, "gaps": of.gaps}
            return of_tables.cvae(of.schema, of.train, of.given, **how)
        return models.CVAE(
            condition=of.code,
            prior=of.of_words() if isinstance(of.code, nets.Words) else of.normal(of.latent, of.given),
            likelihood=of.likelihood(of.latent, of.given),
            encoder=of.seeing(of.posterior(of.event, of.given)),
        )
    return models.CVAE(
        condition=nets.OneHot(of.classes),
        prior=of.normal_of_class(),
        likelihood=of.likelihood(of.latent, of.classes),
        encoder=of.seeing(of.posterior(of.event, of.classes)),
    )


def _m2(of: Pieces) -> models.SSVAE:
    return models.SSVAE(
        label_prior=priors.Categorical(of.classes),
        prior=of.prior(),
        likelihood=of.likelihood(of.latent, of.classes),
        encoder=of.seeing(of.posterior(of.event, of.classes)),
        classifier=of.seeing(of.classifier(of.event)),
        code=nets.OneHot(of.classes),
    )


def _m1m2(of: Pieces) -> models.StackedSSVAE:
    return models.StackedSSVAE(
        label_prior=priors.Categorical(of.classes),
        prior=of.prior(),
        lower=of.conditional(families.Normal(of.latent), of.latent, of.classes),
        likelihood=of.likelihood(of.latent),
        encoder=of.seeing(of.posterior(of.event, guide="normal")),
        classifier=of.classifier(of.latent),
        upper_encoder=of.posterior(of.latent, of.classes),
        code=nets.OneHot(of.classes),
    )


def _m1(pair: models.StackedSSVAE) -> models.VAE:
    """The VAE below the model of codes and labels."""
    size: Any = pair.lower.event_shape
    return models.VAE(priors.StandardNormal(size), pair.likelihood, pair.encoder)


def _after_a(made: Any) -> Any:
    """A conditional of x and a, called with a first."""
    made.net = nets.Swapped(made.net)
    return made


def _adgm(of: Pieces) -> models.ADGM:
    normal = families.Normal(of.latent)
    return models.ADGM(
        label_prior=priors.Categorical(of.classes),
        prior=of.prior(),
        likelihood=of.likelihood(of.latent, of.classes),
        auxiliary=of.seeing(of.conditional(normal, of.event, of.latent, of.classes)),
        auxiliary_encoder=of.seeing(of.conditional(normal, of.event)),
        classifier=_after_a(of.seeing(of.classifier(of.event, of.latent))),
        encoder=_after_a(of.seeing(of.posterior(of.event, of.latent, of.classes))),
        code=nets.OneHot(of.classes),
    )


def _sdgm(of: Pieces) -> models.SDGM:
    normal = families.Normal(of.latent)
    return models.SDGM(
        label_prior=priors.Categorical(of.classes),
        prior=of.prior(),
        auxiliary=of.conditional(normal, of.latent, of.classes),
        likelihood=of.likelihood(of.latent, of.latent, of.classes),
        auxiliary_encoder=of.seeing(of.conditional(normal, of.event)),
        classifier=_after_a(of.seeing(of.classifier(of.event, of.latent))),
        encoder=_after_a(of.seeing(of.posterior(of.event, of.latent, of.classes))),
        code=nets.OneHot(of.classes),
    )


def _gmvae(of: Pieces) -> models.GMVAE:
    return models.GMVAE(
        cluster_prior=priors.Categorical(of.classes),
        prior=of.normal_of_class(),
        likelihood=of.likelihood(of.latent),
        encoder=of.seeing(of.posterior(of.event, of.classes)),
        classifier=of.seeing(of.classifier(of.event)),
        code=nets.OneHot(of.classes),
    )


def _vade(of: Pieces) -> models.VaDE:
    return models.VaDE(
        cluster_prior=priors.Categorical(of.classes, learned=True),
        prior=of.normal_of_class(),
        likelihood=of.likelihood(of.latent),
        encoder=of.seeing(of.posterior(of.event)),
        code=nets.OneHot(of.classes),
    )


def _jointvae(of: Pieces) -> models.JointVAE:
    encoder = of.seeing(of.posterior(of.event))
    return models.JointVAE(
        discrete_prior=priors.Categorical(of.classes),
        prior=of.prior(encoder),
        likelihood=of.likelihood(of.latent, of.classes),
        encoder=encoder,
        classifier=of.seeing(of.classifier(of.event)),
        code=nets.OneHot(of.classes),
    )


def _hierarchical(of: Pieces) -> models.HierarchicalVAE:
    parents = (of.event, *of.levels)
    encoders = [of.normal(latent, parent) for latent, parent in zip(of.levels[:-1], parents)]
    encoders.append(of.posterior(parents[len(encoders)]))  # --guide, like --prior, is that of the top level
    of.seeing(encoders[0])
    return models.HierarchicalVAE(
        prior=of.prior(), lower=of.lower(), likelihood=of.likelihood(of.levels[0]), encoders=encoders
    )


def _ladder(of: Pieces) -> models.LadderVAE:
    *hidden, width = of.widths
    sizes = (of.event, *[width] * (len(of.levels) - 1))
    upward = [nets.Activated(nets.MLP(size, width, hidden)) for size in sizes]
    of.seeing(upward[0])
    evidence = [conditionals.mlp(width, families.Normal(latent), hidden=()) for latent in of.levels[:-1]]
    return models.LadderVAE(
        prior=of.prior(),
        lower=of.lower(),
        likelihood=of.likelihood(of.levels[0]),
        upward=upward,
        evidence=[*evidence, of.posterior(width)],
    )


def _nvae(of: Pieces) -> models.NVAE:
    groups = of.options.groups or ()
    assert not isinstance(of.event, int)
    return models.NVAE(
        of.chosen.build(of.event, of.options.total_count or 1),
        channels=[16 * 2**resolution for resolution in range(len(groups))],
        groups=groups,
        latent_channels=of.latent,
        rescale=1 / (of.options.total_count or 1),
    )


def _vqvae(of: Pieces) -> models.VQVAE:
    """Codes of images on a grid of a quarter of their size, of other rows --latent of them in a line."""
    images, channels = not isinstance(of.event, int), (32, 64)
    rows: Any = of.event
    grid: Any = nets.GridEncoder(rows, 1, channels, cells=0).grid if images else of.latent
    codes, prior = codes_of(str(of.options.codebook), grid, len(of.train))
    read = (codes.width, *codes.grid)
    encoder: Any
    decoder: Any
    if images:
        encoder = nets.GridEncoder(rows, codes.width, channels)
        decoder = nets.GridDecoder(codes.width, of.family.param_shape, channels)
    else:
        encoder = nets.MLP(rows, read, of.widths)
        decoder = nets.Behind(nets.Flat(read), nets.MLP(codes.width * of.latent, of.family.param_shape, of.widths))
    return models.VQVAE(
        prior=prior,
        likelihood=of.observed(conditionals.Conditional(decoder, of.family)),
        encoder=of.seeing(SimpleNamespace(net=encoder)).net,
        codes=codes,
    )


def _categorical(of: Pieces) -> models.CategoricalVAE:
    codes = (of.latent, of.options.categories or 0)
    encoder = of.seeing(of.conditional(ESTIMATORS[str(of.options.estimator)].build(codes), of.event))
    return models.CategoricalVAE(priors.OneHotCategorical(codes), of.likelihood(codes[0] * codes[1]), encoder)


MODELS: dict[str, Model] = {
    "vae": Model(_vae, "p(z) p(x|z)", takes=("prior", "net")),
    "cvae": Model(_cvae, "p(z|c) p(x|z,c): conditional on the class c", labels=CONDITION),
    "m2": Model(
        _m2,
        "p(y) p(z) p(x|z,y): semi-supervised, labels may be missing",
        labels="y",
        takes=("prior", "labelled", "norm"),
    ),
    "m1m2": Model(
        _m1m2,
        "p(y) p(z2) p(z1|z2,y) p(x|z1): M2 on top of a latent z1",
        labels="y",
        takes=("prior", "labelled", "stages"),
        code="z1",
        first_stage=_m1,
    ),
    "adgm": Model(
        _adgm,
        "M2 with an auxiliary variable for a more flexible guide",
        labels="y",
        takes=("prior", "labelled", "norm"),
    ),
    "sdgm": Model(
        _sdgm,
        "p(y) p(z) p(a|z,y) p(x|a,z,y): M2 with a second layer of latent variables",
        labels="y",
        takes=("prior", "labelled", "norm"),
    ),
    "gmvae": Model(_gmvae, "p(y) p(z|y) p(x|z): clusters, with q(y|x) q(z|x,y)", takes=("clusters",)),
    "vade": Model(_vade, "gmvae with q(z|x), the cluster summed out in the model", takes=("clusters",)),
    "jointvae": Model(_jointvae, "p(y) p(z) p(x|z,y): a discrete and a continuous code", takes=("prior", "clusters")),
    "hierarchical": Model(
        _hierarchical,
        "p(z2) p(z1|z2) p(x|z1), or deeper, inferred from the bottom up",
        takes=("prior", "levels"),
        code="z1",
    ),
    "ladder": Model(_ladder, "hierarchical, inferred from the top down", takes=("prior", "levels"), code="z1"),
    "nvae": Model(
        _nvae,
        "images: groups of latent maps from coarse to fine, residual cells",
        takes=("groups",),
        code="z1_1",
        images=True,
    ),
    "vqvae": Model(
        _vqvae,
        "p(z) p(x|z), z a grid of codes, under an autoregressive prior",
        takes=("codebook", "net"),
        own_guide=True,
    ),
    "categorical": Model(
        _categorical,
        "p(z) p(x|z), z codes of categories",
        takes=("categories", "estimator", "net"),
        own_guide=True,
    ),
}


def build(
    options: Options,
    train: Tensor,
    num_classes: int,
    schema: Schema | None = None,
    gaps: bool = False,
    given: Given | GivenCaptions | None = None,
) -> PairLike:
    """The model that the options name, for such rows and so many classes or clusters (0 for a model without them).

    Args:
        schema: what the columns of a table are, whose likelihood is that of tables.
        gaps: whether cells are missing in some row, also of those held out.
        given: columns or captions that the model is given with every row.
    """
    of = Pieces(options, train, num_classes, schema, gaps)
    if given is not None:
        of.given, of.code = given.num_features, given.code()
    pair: PairLike = MODELS[options.model].build(of)
    return pair
