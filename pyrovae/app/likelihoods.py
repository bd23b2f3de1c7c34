"""Which likelihood rows get: the one that is asked for, or that of their kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrovae._lazily import Lazily
from pyrovae.app.catalogue import BY_COLUMN, LIKELIHOODS, ORDERED, TABLE, Likelihood, part
from pyrovae.app.options import Options
from pyrovae.errors import OptionError

if TYPE_CHECKING:
    from pyrovae.data import Dataset
    from pyrovae.tables import scales
else:
    scales = Lazily("pyrovae.tables.scales")

MOST_COLUMNS = 64  # of a table whose model starts as a mixture of its numbers
MOST_TRIED_ROWS = 5000  # of a table; of more, any start is learned from, and no other model is tried unasked
COUNTED = 20  # columns of whole numbers, from which on they are counts of one kind, such as words or genes


def _is_a_table(dataset: Dataset) -> bool:
    """Whether rows are columns that have a likelihood of their own each, and no counts or bits of one kind."""
    if dataset.schema is None or dataset.kind == "table" or bool(dataset.x.isnan().any()):
        return dataset.schema is not None
    if dataset.kind in ("binary", "unit"):
        return False
    if dataset.kind == "count" and (scales.on_one_scale(dataset.schema) or scales.unlike_counts(dataset.x)):
        return True  # a questionnaire, however many items it has
    return len(dataset.schema.modelled) < (COUNTED if dataset.kind == "count" else MOST_COLUMNS + 1)


def _of_columns(options: Options, dataset: Dataset) -> str:
    """The likelihood of a table, by default: of a VAE for columns of which most have an order, one that uses it.

    Beyond the rows up to which `search` compares it with free probabilities, these are learned from the rows.
    """
    if options.model != "vae" or dataset.c is not None or dataset.schema is None or len(dataset.x) > MOST_TRIED_ROWS:
        return TABLE
    return ORDERED if scales.mostly_ordinal(dataset.schema) else TABLE


def choose_likelihood(options: Options, dataset: Dataset, *, tables: bool = True) -> tuple[str, int | None]:
    """The likelihood for a data set, by default that of its kind, and the total count, if the likelihood needs one.

    Args:
        tables: whether a table of numbers gets a likelihood for each column, and colours one of numbers.
    """
    colours = (
        tables and dataset.image_shape is not None and len(dataset.image_shape) == 3 and dataset.image_shape[0] == 3
    )
    bound = options.total_count if options.total_count is not None else dataset.total_count
    by_kind = {
        "table": TABLE,
        "binary": "bernoulli",
        "unit": "normal" if colours else "bernoulli",  # which is for ink: of colours, drawn as 0 or 1, little is left
        "count": "beta-binomial" if bound is not None else "negative-binomial",
        "real": "normal",
    }
    name = options.likelihood or (
        _of_columns(options, dataset) if tables and _is_a_table(dataset) else by_kind[dataset.kind]
    )
    chosen: Likelihood = part("likelihood", name)
    if name in BY_COLUMN and dataset.schema is None:
        raise OptionError(f"--likelihood {name} is for tables, and {dataset.name} is none: leave it out.")
    if dataset.kind == "table" and name not in BY_COLUMN:
        raise OptionError(
            f"--likelihood {name} is for rows of one kind, and {dataset.name} has columns of several kinds: leave it out. "
            "What each column is, can be changed by --columns."
        )
    if options.total_count is not None and not chosen.needs_total:
        takes = ", ".join(other for other, likelihood in LIKELIHOODS.items() if likelihood.needs_total)
        raise OptionError(f"--total-count does not go with --likelihood {name}; it is for {takes}.")
    if chosen.needs_total and bound is None:
        raise OptionError(f"--likelihood {name} needs --total-count, the largest count that can occur.")
    return name, bound if chosen.needs_total else None
