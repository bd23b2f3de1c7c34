"""The options of a run, each declared once.

From its declaration follow the field of `Options`, the flags of the commands that offer the option and their help, the
refusal of impossible values, its place in run.json, and the value that a run.json from before the option is read with.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_type_hints

from pyrovae.app.declared import POSITIVE, Check, Option, amount, at_least, option, sizes
from pyrovae.errors import CheckpointError

SIZES = ("latent", "none")  # of rows, where no column gives them
NAMED = Check(lambda value: bool(value.strip(" ,")), "names a column of the table")
GROUPS = Check(
    lambda value: 0 < len(value) <= 10 and min(value) >= 1 and max(value) <= 100,
    "are whole numbers of at least 1, the coarsest resolution first",
)


@dataclass(frozen=True)
class Options:
    """What a person may choose for a run. None: decided from the data, see `decide`."""

    model: str = option("vae", "Graphical model: {known}.", later=True)
    header: bool | None = option(
        None,
        "Whether the first line of a table names its columns; by default found out.",
        commands=("fit", "sweep", "label"),
        later=True,
    )
    id: str | None = option(
        None,
        "Column that names the rows of a table and is not modelled: its name, its number, or none; by default recognised.",
        commands=("fit", "sweep", "label"),
        later=True,
    )
    drop: str | None = option(
        None,
        "Columns of a table to leave out: names or numbers, with commas between them.",
        commands=("fit", "sweep", "label"),
        later=True,
    )
    columns: str | None = option(
        None,
        "YAML file that says what each column of a table is, such as an edited columns.yaml of a run; by default found out.",
        commands=("fit", "sweep"),
        later=True,
    )
    size: int | None = option(
        None,
        "Side, in pixels, of the squares to which the images of a folder are scaled and cropped; by default as they are.",
        commands=("fit", "sweep", "label"),
        later=True,
    )
    condition: str | None = option(
        None,
        "Columns of a table that the model is given with every row, such as batch,age: names or numbers, with commas between "
        "them; or captions, which describe gray images in words. The model, p(x | c), is cvae.",
        check=NAMED,
        commands=("fit", "sweep"),
        later=True,
    )
    shared_prior: bool = option(
        False,
        "For {models}: one prior p(z), that of --prior, in place of p(z | c), so that codes need not tell what --condition "
        "gives, as where batches are to be corrected for.",
        commands=("fit", "sweep"),
        by_model=True,
        later=True,
    )
    size_factor: str | None = option(
        None,
        "What the size of a row of counts is, by which the means of all columns are multiplied: latent, none, or a column of "
        "the table such as a depth or an exposure; by default latent, for counts without an upper bound.",
        check=NAMED,
        commands=("fit", "sweep"),
        later=True,
        before="none",
    )
    clusters: int | None = option(
        None,
        "Number of clusters of {models}; by default as many as the labels have classes, else 10.",
        check=at_least(2, 10_000),
        by_model=True,
        later=True,
    )
    labelled: int | None = option(
        None,
        "Number of training rows whose labels {models} may see; by default all that have one.",
        by_model=True,
        later=True,
    )
    stages: int = option(
        1,
        "Stages in which {models} is fitted: 1, all at once, or 2, first a VAE without labels, and then, with that one frozen, "
        "the model of its codes and of the labels, each for --epochs.",
        check=Check(lambda value: value in (1, 2), "must be 1 or 2"),
        by_model=True,
        later=True,
    )
    levels: tuple[int, ...] | None = option(
        None,
        "Latent dimensions of z1, z2, ... of {models}, such as 32,16,8; by default --latent and half of it.",
        check=sizes(10**6, 100),
        by_model=True,
        later=True,
    )
    groups: tuple[int, ...] | None = option(
        None,
        "Number of groups of latent maps of {models} at each resolution, the coarsest first; by default 1,2.",
        check=GROUPS,
        by_model=True,
        later=True,
    )
    codebook: str | None = option(
        None,
        "Codes of {models}: {known}; by default fsq. The others need pip install 'pyrovae[vq]'.",
        by_model=True,
        later=True,
    )
    categories: int | None = option(
        None,
        "Number of categories of each code of {models}; by default 10.",
        check=at_least(2),
        by_model=True,
        later=True,
    )
    estimator: str | None = option(
        None,
        "How the gradient reaches the codes of {models}: {known}; by default relaxed.",
        by_model=True,
        later=True,
    )
    prior: str | None = option(
        None,
        "Prior: {known}; by default normal, and for tables a mixture that the data start.",
        commands=("fit", "sweep"),
        by_model=True,
        helps={"sweep": "One or more priors, separated by commas; by default as for `fit`."},
    )
    likelihood: str | None = option(
        None,
        "Likelihood: {known}; by default chosen by the kind of the data.",
        commands=("fit", "sweep", "label"),
        helps={
            "sweep": "One or more likelihoods, separated by commas; by default chosen by the kind of the data.",
            "label": "Likelihood, as for `fit`; by default chosen by the kind of the data.",
        },
    )
    guide: str | None = option(
        None,
        "Family of the guide: {known}; by default normal, or what the prior needs.",
        commands=("fit", "sweep"),
        helps={"sweep": "One or more families of the guide, separated by commas; by default what the prior needs."},
    )
    total_count: int | None = option(
        None,
        "Largest count that can occur, for likelihoods that need it.",
        check=at_least(1, 2**24),  # beyond which float32 does not hold all whole numbers
        commands=("fit", "sweep", "label"),
    )
    net: str | None = option(
        "mlp",
        "Kind of network: {known}.",
        commands=("fit", "sweep", "label"),
        by_model=True,
        defaults={"label": None},
        helps={"label": "Kind of network: mlp or conv; by default conv for images of 16 x 16 pixels or more."},
    )
    norm: str = option(
        "none",
        "Normalisation of the hidden layers of {models}: {known}.",
        by_model=True,
        later=True,
    )
    latent: int | None = option(
        None,
        "Number of latent dimensions; by default 10, and for tables as many as columns of numbers and some for classes. "
        "Of categorical the number of codes, and of vqvae that of codes in a line, except with --net conv.",
        check=sizes(10**6, 1),
        commands=("fit", "sweep", "label"),
        defaults={"label": None},
        helps={"label": "Number of latent dimensions; by default 50 with --net conv, else 10."},
    )
    hidden: tuple[int, ...] | None = option(
        None,
        "Widths of the hidden layers, such as 400 or 300,300; by default 400, and 64 for tables.",
        check=sizes(10**6, 1000),
        commands=("fit", "sweep", "label"),
        defaults={"label": (200,)},
        helps={"label": "Width of the hidden layer."},
    )
    dropout: float | None = option(
        None,
        "Share of hidden units left out at random in training, for {models}; by default 0.2 for perceptrons of vae where "
        "training rows are fewer than 2500 and than eight for each number of a row, but not for tables; else 0.",
        check=Check(lambda value: 0 <= value < 1, "is a share from 0 to below 1"),
        commands=("fit", "sweep"),
        by_model=True,
        later=True,
        before=0.0,
        defaults={"label": 0.5},
    )
    epochs: int | None = option(
        None,
        "Passes over the training rows; by default about 3,000 steps, in 20 to 500 epochs; for tables up to 9,000 steps, in "
        "up to 1,000 epochs.",
        check=at_least(1),
        commands=("fit", "sweep"),
    )
    batch_size: int | None = option(
        None,
        "Rows per step; by default 128, or 256 from 20,000 training rows on, and fewer for small tables.",
        check=at_least(1),
        commands=("fit", "sweep"),
        defaults={"label": 128},
    )
    learning_rate: float | None = option(
        None,
        "Peak of the one-cycle schedule; by default 3e-3.",
        check=POSITIVE,
        commands=("fit", "sweep"),
        defaults={"label": 3e-3},
    )
    kl_warmup: float | None = option(
        None,
        "Epochs over which the KL weight rises from 0 to 1; by default 0, and for nvae a third of all epochs.",
        check=amount("a number of epochs"),
        commands=("fit", "sweep"),
    )
    kl_cycles: int = option(
        0,
        "How many times the KL weight rises from 0 to 1 during the fit.",
        check=amount("how often the KL weight rises"),
        later=True,
    )
    kl: str = option(
        "auto",
        "How KL terms of the ELBO are computed: auto, in closed form where that is known, which has less noise, or draws.",
        check=Check(lambda value: value in ("auto", "draws"), "must be auto or draws"),
        commands=("fit", "sweep"),
        later=True,
        before="draws",
    )
    free_bits: float = option(
        0.0,
        "Nats per row that the KL of each latent variable may reach at no cost; does not apply to z1 of hierarchical, "
        "which is inferred first.",
        check=amount("nats a row"),
        later=True,
    )
    lagging: float = option(
        0.0,
        "Epochs in which the model is updated only every tenth step, the guide at every step.",
        check=amount("a number of epochs"),
        later=True,
    )
    clip_norm: float | None = option(
        None, "Largest global norm of the gradient; by default without limit.", check=POSITIVE
    )
    on_nan: str = option(
        "stop",
        "What to do when the loss becomes NaN or infinite: stop; skip such steps; or rollback, to the last good epoch, and "
        "halve the learning rate.",
        check=Check(lambda value: value in ("stop", "skip", "rollback"), "must be stop, skip or rollback"),
        commands=("fit", "sweep"),
        later=True,
    )
    checkpoint_every: float = option(
        30.0,
        "Seconds of a fit between two writes of its state, which is what a crash can cost; 0 for one after every epoch.",
        check=Check(lambda value: 0 <= value < math.inf, "is a number of seconds, at least 0"),
        commands=("fit", "sweep"),
        later=True,
    )
    patience: int | None = option(
        None,
        "Stop after this many epochs without a better validation ELBO. By default a quarter of them for tables of up to 2,000 "
        "rows, unless --epochs is given.",
    )
    search: str = option(
        "auto",
        "Recipes that are tried where prior, guide or sizes are left open, judged by log p(x) of validation rows: none, small "
        "(three to five of them), or auto, of tables of up to 5,000 rows: one for more than 12 columns, one for ordinal ones.",
        check=Check(lambda value: value in ("none", "small", "auto"), "must be none, small or auto"),
        later=True,
        before="none",
    )
    keep: str | None = option(
        None,
        "Which weights to keep: best, those of the epoch with the best validation ELBO, or last; by default best, but last "
        "for models that infer a label.",
        check=Check(lambda value: value in ("best", "last"), "must be best or last"),
        commands=("fit", "sweep"),
        later=True,
        before="last",
    )
    test_fraction: float = option(0.2, "Fraction of the rows held out for the final table.")
    validation_fraction: float = option(0.1, "Fraction of the rows on which training is monitored.")
    num_samples: int = option(
        1000, "Importance samples per row for log p(x).", check=at_least(1), commands=("fit", "sweep")
    )
    proposal: str = option(
        "refined",
        "Proposal of the importance samples: refined, fitted to each row; laplace, cheaper; or guide, the cheapest.",
        check=Check(lambda value: value in ("refined", "laplace", "guide"), "must be refined, laplace or guide"),
        commands=("fit", "sweep"),
        later=True,
        before="guide",
    )
    seed: int = option(
        0,
        "Seed of weights, split, shuffling and noise.",
        commands=("fit", "sweep", "label"),
        helps={"label": "Seed of weights, held-out rows, shuffling and noise."},
    )
    steps: int | None = option(
        None,
        "Training steps of a model whose classifier answers beside the ensemble; by default 0, and no model, since from few "
        "labels it adds little. With another option of the model, or --neighbors 0, some 300 to 2,000.",
        check=at_least(0),
        commands=("label",),
    )
    labelled_batch_size: int = option(
        40, "Labelled rows per step.", check=at_least(1), commands=(), defaults={"label": 40}
    )
    alpha: float | None = option(
        None, "Weight of the classifier's own loss, see `SSVAE`.", commands=(), defaults={"label": None}
    )
    passes: int = option(
        20,
        "Passes of the model's classifier with dropout on; their mean predicts.",
        check=at_least(2, 10_000),
        commands=("label",),
    )
    neighbors: int = option(
        5,
        "Nearest neighbours of a row, along which labels spread in a part of the ensemble; 0 leaves the ensemble out.",
        check=at_least(0),
        commands=("label",),
        later=True,
        before=0,
    )
    holdout: float = option(
        0.2,
        "Fraction of the labelled rows held out for the report; if fewer than 50, cross-validation takes their place.",
        commands=("label",),
    )

    @classmethod
    def of(cls, command: str, **given: Any) -> Options:
        """The options of a command: those given, and its defaults."""
        return cls(**{**{o.name: o.default_of(command) for o in offered(command, hidden=True)}, **given})

    @property
    def table(self) -> dict[str, Any]:
        """How a table, or a folder of images, is read, as arguments of `load`."""
        how: dict[str, Any] = {"ids": self.id, "header": self.header, "drop": self.drop or ()}
        given = [name for name in (self.condition, self.size_column) if name is not None]
        chosen = {"columns": self.columns, "conditions": ",".join(given) or None, "size": self.size}
        return how | {name: value for name, value in chosen.items() if value is not None}

    @property
    def size_column(self) -> str | None:
        """The column that gives the sizes of rows, if one does."""
        return None if self.size_factor in (None, *SIZES) else self.size_factor

    @classmethod
    def from_json(cls, recorded: Any, command: str) -> Options:
        """The options that a run.json records for a run of `fit` or `label`.

        Raises:
            CheckpointError: one is missing or unknown, or its value is of another type.
        """
        try:
            declared = {o.name: o for o in offered(command, hidden=True)}
            found = {
                **{
                    o.name: o.default_of(command) if o.before is None else o.before
                    for o in declared.values()
                    if o.later
                },
                **recorded,
            }
            if set(found) != set(declared):
                raise KeyError(f"options {sorted(set(found) ^ set(declared))}")
            return cls.of(command, **{name: declared[name].from_json(value) for name, value in found.items()})
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"The run's options are damaged or missing ({error!r}): was it made by `pyrovae {command}`?"
            ) from error

    def to_json(self, command: str) -> dict[str, Any]:
        """What run.json records of a run of `fit` or `label`."""
        values = {o.name: getattr(self, o.name) for o in offered(command, hidden=True)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def check(self, command: str) -> None:
        """OptionError for a value that is impossible by itself."""
        for one in offered(command, hidden=True):
            one.refuse(getattr(self, one.name))


def _declarations() -> dict[str, Option]:
    types = get_type_hints(Options)
    found = {}
    for one in fields(Options):
        assert one.default is not MISSING
        found[one.name] = Option(name=one.name, type=types[one.name], default=one.default, **one.metadata)
    return found


OPTIONS = _declarations()


def offered(command: str, *, hidden: bool = False) -> list[Option]:
    """The options that a command offers; with `hidden` those, too, that it uses without offering them."""
    return [o for o in OPTIONS.values() if command in o.commands or (hidden and command in o.defaults)]
