"""The models that have a name on the command line, each built from the parts that the options name."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pyrovae._lazily import Lazily
from pyrovae.app.catalogue import CONDITION, ESTIMATORS, Model, codes_of
from pyrovae.app.options import Options
from pyrovae.app.pieces import Pieces

if TYPE_CHECKING:
    from torch import Tensor

    from pyrovae import conditionals, families, models, nets, priors
    from pyrovae import tables as of_tables
    from pyrovae.app.given import Given, GivenCaptions
    from pyrovae.pair.program import PairLike
    from pyrovae.tables.schema import Schema
else:  # so that the names of models are known at once
    conditionals, families = Lazily("pyrovae.conditionals"), Lazily("pyrovae.families")
    models, nets, priors = Lazily("pyrovae.models"), Lazily("pyrovae.nets"), Lazily("pyrovae.priors")
    of_tables = Lazily("pyrovae.tables")


# models whose counts can have a size factor
SIZED = ("vae", "cvae", "m2", "labels", "gmvae", "vade", "jointvae", "hierarchical")
STARTS = {"full-mixture": "mixture", "full-mixture-nsf": "flow", "normal": "normal"}


def _vae(of: Pieces) -> models.VAE:
    if of.starts_as_mixture:
        kind = STARTS.get(str(of.options.prior))
        how: dict[str, Any] = {"latent": of.latent, "hidden": of.widths, "gaps": of.gaps, "ordered": of.ordered}
        assert of.schema is not None
        return of_tables.vae(of.schema, of.train, prior=kind or of.prior(), seed=of.options.seed, **how)
    likelihood = of.likelihood(of.latent)
    encoder = of.seeing(of.posterior(of.event))
    return models.VAE(prior=of.prior(encoder), likelihood=likelihood, encoder=encoder)


def _cvae(of: Pieces) -> models.CVAE:
    shared = of.prior() if of.options.shared_prior else None
    if of.given:
        if of.starts_as_mixture and shared is None:  # whose codes start as copies of the columns, with all that c says
            assert of.schema is not None
            how: dict[str, Any] = {"latent": of.latent, "hidden": of.widths, "gaps": of.gaps, "ordered": of.ordered}
            return of_tables.cvae(of.schema, of.train, of.given, **how)
        own = of.of_words if isinstance(of.code, nets.Words) else partial(of.normal, of.latent, of.given)
        return models.CVAE(
            condition=of.code,
            prior=own() if shared is None else shared,
            likelihood=of.likelihood(of.latent, of.given),
            encoder=of.seeing(of.posterior(of.event, of.given)),
        )
    return models.CVAE(
        condition=nets.OneHot(of.classes),
        prior=of.normal_of_class() if shared is None else shared,
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


def _labels(of: Pieces) -> models.LabelsVAE:
    return models.LabelsVAE(
        label_priors=[priors.Categorical(classes) for classes in of.sizes],
        prior=of.prior(),
        likelihood=of.likelihood(of.latent, *of.sizes),
        encoder=of.seeing(of.posterior(of.event, *of.sizes)),
        classifiers=[of.seeing(of.classifier(of.event, classes=classes)) for classes in of.sizes],
        codes=[nets.OneHot(classes) for classes in of.sizes],
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


def _spatial(of: Pieces) -> models.SpatialVAE:
    assert not isinstance(of.event, int)
    pose = nets.Pose(of.event[-2:], rotation=1.0, shift=0.2)
    likelihood, encoder = of.likelihood(of.latent), of.seeing(of.posterior(of.event))
    likelihood.net, encoder.net = nets.Posed(likelihood.net, pose), nets.Upright(encoder.net, pose, of.event)
    return models.SpatialVAE(
        prior=of.prior(),
        pose_prior=priors.Normal(pose.size),
        likelihood=likelihood,
        pose_encoder=of.seeing(of.normal(pose.size, of.event)),
        encoder=encoder,
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
    codes, prior = codes_of(str(of.options.codebook), grid, len(of.train), of.options.batch_size or len(of.train))
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
    "vae": Model(_vae, "p(z) p(x|z)", takes=("prior", "net", "dropout")),
    "cvae": Model(
        _cvae,
        "p(z|c) p(x|z,c): conditional on the class c",
        labels=CONDITION,
        takes=("prior", "shared_prior", "dropout"),
    ),
    "m2": Model(
        _m2,
        "p(y) p(z) p(x|z,y): semi-supervised, labels may be missing",
        labels="y",
        takes=("prior", "labelled", "norm", "dropout"),
    ),
    "labels": Model(
        _labels,
        "p(y1) ... p(yL) p(z) p(x|z,y1,...,yL): m2 with several columns of labels, each known of some rows",
        several=True,
        takes=("prior", "norm", "dropout"),
    ),
    "m1m2": Model(
        _m1m2,
        "p(y) p(z2) p(z1|z2,y) p(x|z1): M2 on top of a latent z1",
        labels="y",
        takes=("prior", "labelled", "stages", "dropout"),
        code="z1",
        first_stage=_m1,
    ),
    "adgm": Model(
        _adgm,
        "M2 with an auxiliary variable for a more flexible guide",
        labels="y",
        takes=("prior", "labelled", "norm", "dropout"),
    ),
    "sdgm": Model(
        _sdgm,
        "p(y) p(z) p(a|z,y) p(x|a,z,y): M2 with a second layer of latent variables",
        labels="y",
        takes=("prior", "labelled", "norm", "dropout"),
    ),
    "gmvae": Model(_gmvae, "p(y) p(z|y) p(x|z): clusters, with q(y|x) q(z|x,y)", takes=("clusters", "dropout")),
    "vade": Model(_vade, "gmvae with q(z|x), the cluster summed out in the model", takes=("clusters", "dropout")),
    "jointvae": Model(
        _jointvae, "p(y) p(z) p(x|z,y): a discrete and a continuous code", takes=("prior", "clusters", "dropout")
    ),
    "spatial": Model(
        _spatial,
        "p(pose) p(z) p(x|z,pose): images, turned and shifted by the pose",
        takes=("prior", "net"),
        images=True,
        has_pose=True,
    ),
    "hierarchical": Model(
        _hierarchical,
        "p(z2) p(z1|z2) p(x|z1), or deeper, inferred from the bottom up",
        takes=("prior", "levels", "dropout"),
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
        takes=("categories", "estimator", "net", "dropout"),
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
    sizes: tuple[int, ...] = (),
) -> PairLike:
    """The model that the options name, for such rows and so many classes or clusters (0 for a model without them).

    Args:
        schema: what the columns of a table are, whose likelihood is that of tables.
        gaps: whether cells are missing in some row, also of those held out.
        given: columns or captions that the model is given with every row.
        sizes: the numbers of classes of several labels.
    """
    of = Pieces(options, train, num_classes, schema, gaps)
    if given is not None:
        of.given, of.code = given.num_features, given.code()
    of.sizes = sizes
    pair: PairLike = MODELS[options.model].build(of)
    return pair
