"""A fit that tries a few recipes for its model, and keeps the one by which rows held out are most probable."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae._files import temporary_folder
from pyrovae.app.catalogue import BY_COLUMN, ORDERED, TABLE
from pyrovae.app.decide import ENOUGH_FOR_A_FLOW
from pyrovae.app.likelihoods import MOST_TRIED_ROWS, choose_likelihood
from pyrovae.app.models import MODELS
from pyrovae.app.options import Options
from pyrovae.app.rows import split_rows
from pyrovae.app.run import Run, fit_run, move_run
from pyrovae.app.unused import without_widths
from pyrovae.criticism.importance import log_likelihood
from pyrovae.engine.ranks import world_size
from pyrovae.errors import OptionError, PyrovaeError, counted
from pyrovae.pair.batch import take_rows

if TYPE_CHECKING:
    from torch import Tensor

    from pyrovae.data import Dataset
    from pyrovae.fitted.fitted import Fit

Recipe = dict[str, Any]

# Copies of columns overfit in some tables of many columns, by 14 nats a row of ionosphere, and gain as much in others.
TEN_CODES: dict[str, Recipe] = {
    "10 latent dimensions, started at random": {"prior": "mixture", "guide": "full", "latent": 10, "hidden": (64,)}
}
# Of some hundred rows a flow learns more than they say in some tables (by 1.8 nats a row of diabetes), and gains in others.
FLOW = "full-mixture-nsf"
WITHOUT_FLOW: dict[str, Recipe] = {"a mixture as prior, without a flow": {"prior": "full-mixture"}}
# Numbers in few levels may be codes without an order, or clusters: see benchmarks/ordinal.py.
FREE: dict[str, Recipe] = {
    "a probability for each value of ordinal columns, whatever their order": {"likelihood": TABLE}
}
OF_TABLES: dict[str, Recipe] = {
    **TEN_CODES,
    **WITHOUT_FLOW,
    "a mixture and a flow as prior": {"prior": FLOW},
    "wider networks": {"hidden": (128, 128)},
}
OF_OTHERS: dict[str, Recipe] = {
    "a mixture as prior": {"prior": "mixture"},
    "20 latent dimensions": {"latent": 20},
    "wider networks": {"hidden": (256, 256)},
}
MOST_COPIED = 12  # columns of a table, beyond which another start is tried
MOST_WITHOUT_FLOW = 2000  # rows, beyond which that is not tried
FEWEST_JUDGES = 10  # validation rows
MOST_JUDGES, DRAWS = 500, 200  # validation rows that judge, and draws of each
SEED = 1
# share of the epochs after which a second fit may be left, and by how many nats its best validation ELBO is then too low
START, FAR_BEHIND = 1 / 3, 3.0
FIRST = "the first model"


def search_run(
    dataset: Dataset, options: Options, folder: Path, *, say: Callable[[str], None] = lambda message: None, **how: Any
) -> Run:
    """`fit_run`, and then the same with other recipes where the options ask for a search; the best run is in the folder.

    The recipes differ in what was left open: the prior, the guide, the number of codes, the widths of the networks. The judge
    is log p(x) of the validation rows; a recipe that nobody has asked for is left early where its validation ELBO is far below.
    Free probabilities of ordinal columns have to be ahead by more than the standard error of the difference.
    Until the search is over, the folder holds the run without one.

    Args:
        dataset: the data.
        options: with `search`, "none", "small" or "auto": of tables of many columns another start is tried, and of some
            hundred rows the same start without a flow in the prior.
        folder: the run folder.
        say: called with what is tried, and what was found.
        how: as for `fit_run`.
    """
    recipes = recipes_for(options, dataset)
    run = fit_run(dataset, options, folder, say=say, **how)
    recipes = {name: recipe for name, recipe in recipes.items() if _differs(run.options, recipe)}
    if options.search == "auto" and run.options.prior != FLOW:
        recipes = {name: recipe for name, recipe in recipes.items() if name not in WITHOUT_FLOW}
    if not recipes or run.rows.validation is None:
        return run
    scores: dict[str, Tensor] = {}
    found: dict[str, float] = {}
    left: dict[str, str] = {}
    best, best_name = run, FIRST
    quiet = how | {"progress": False, "force": False, "track": ()}
    # what nobody has asked for is to take no longer than it needs to show that it is worse
    watch = [Race(best_elbo(run.fitted))] if options.search == "auto" else []
    with temporary_folder() as elsewhere:
        for number, (name, recipe) in enumerate(recipes.items(), 1):
            which = "another model" if len(recipes) == 1 else f"model {number + 1} of {len(recipes) + 1}"
            say(f"Fitting {which} to compare: {name}.")
            if name in FREE:  # beside the best start that the order has
                recipe = recipes.get(best_name, {}) | recipe
            try:
                tried = fit_run(dataset, replace(options, **recipe), elsewhere / str(number), watch=watch, **quiet)
                scores = scores or {FIRST: _scores(run)}
                scores[name] = _scores(tried)
                found = {one: _mean(each) for one, each in scores.items()}
                # most answers have an order, so that chance alone is not to take it away
                lead = _error(scores[name] - scores[best_name]) if name in FREE else 0.0
                if found[name] > found[best_name] + lead:
                    best, best_name = tried, name
            except Behind as behind:
                left[name] = str(behind)
                say(f"Left, since {behind}.")
            except PyrovaeError as error:  # such as a fit that diverges
                say(f"It cannot be fitted: {error}")
        if len(found) < 2:
            say("Kept: the first model.")
            return _noted(run, search_left=left)
        table = "; ".join(f"{score:.2f} by {name}" for name, score in found.items())
        judges = min(MOST_JUDGES, len(run.rows.validation))
        highest = best_name == max(found, key=found.__getitem__)
        why = "as the higher one" if highest else "since the lead of the other is within its standard error"
        say(f"Mean log p(x) of {counted(judges, 'validation row')}, nats per row: {table}. Kept, {why}: {best_name}.")
        if best is not run:
            best = move_run(best, folder, how.get("track", ()))
    return _noted(best, search=found, search_left=left)


def _noted(run: Run, **what: Any) -> Run:
    """The run, whose run.json will say what was tried: what is not empty."""
    run.fitted.info.update({name: tried for name, tried in what.items() if tried})
    return run


class Behind(Exception):
    """A fit is so far behind another one that it is not worth its time."""


class Race:
    """A callback of a fit that ends it by `Behind` where it is far behind another fit of the same rows.

    Args:
        best: the best validation ELBO of the other fit, in nats per row.
    """

    only_looks = True  # a fit that comes through is as it would be without

    def __init__(self, best: float) -> None:
        self.best = best

    def __call__(self, fitted: Fit) -> None:
        epoch = len(fitted.history)
        if epoch < START * fitted.settings["epochs"]:
            return
        behind = self.best - best_elbo(fitted)
        if behind > FAR_BEHIND:
            raise Behind(f"its validation ELBO is {behind:.1f} nats per row lower after {counted(epoch, 'epoch')}")


def best_elbo(fitted: Fit) -> float:
    """The best validation ELBO of a fit so far, in nats per row; not every one of many epochs has one."""
    return max((row["validation_elbo"] for row in fitted.history if "validation_elbo" in row), default=-math.inf)


def recipes_for(options: Options, dataset: Dataset) -> dict[str, Recipe]:
    """The recipes of a search, without those that set what is given.

    Raises:
        OptionError: a search is asked for a model that has no recipes, or with too few rows to judge by.
    """
    if options.search == "none":
        return {}
    if world_size() > 1:
        if options.search == "small":
            raise OptionError("--search small is for one process: start it without torchrun, or leave --search out.")
        return {}
    split = split_rows(dataset, options)
    if (judges := len(split.validation)) < FEWEST_JUDGES:
        if options.search == "small":
            raise OptionError(
                f"--search small needs {FEWEST_JUDGES} validation rows to judge by, and has {judges}: raise "
                "--validation-fraction."
            )
        return {}
    if options.model != "vae" or dataset.c is not None:
        if options.search == "small":
            raise OptionError("--search small is for --model vae without --condition: leave it out.")
        return {}
    likelihood = choose_likelihood(options, dataset)[0]
    table = likelihood in BY_COLUMN and dataset.schema is not None
    if options.search == "auto":
        columns = len(dataset.schema.modelled) if table and dataset.schema is not None else 0
        known = TEN_CODES if columns > MOST_COPIED else {}
        some_hundred = len(split.train) >= ENOUGH_FOR_A_FLOW and len(dataset.x) <= MOST_WITHOUT_FLOW
        known = WITHOUT_FLOW | known if table and some_hundred else known
        known = known | FREE if likelihood == ORDERED else known
        known = known if len(dataset.x) <= MOST_TRIED_ROWS else {}
    else:
        known = (OF_TABLES | FREE if likelihood == ORDERED else OF_TABLES) if table else OF_OTHERS
    if without_widths(MODELS[options.model], options.net, dataset.image_shape is not None):
        known = {name: one for name, one in known.items() if "hidden" not in one}
    return {name: one for name, one in known.items() if all(getattr(options, option) is None for option in one)}


def _differs(decided: Options, recipe: Recipe) -> bool:
    return any(getattr(decided, name) != value for name, value in recipe.items())


def _scores(run: Run) -> Tensor:
    """log p(x) of validation rows, `(M,)`, in nats."""
    rows = take_rows(run.rows.batch("validation"), slice(0, MOST_JUDGES))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The guide is the proposal")
        found = log_likelihood(run.fitted, rows, DRAWS, proposal=run.options.proposal, seed=SEED)
    return found.double() - run.rows.log_abs_det


def _mean(scores: Tensor) -> float:
    """Their mean, or minus infinity if it is no number."""
    mean = scores.mean().item()
    return mean if math.isfinite(mean) else -math.inf


def _error(differences: Tensor) -> float:
    """The standard error of the mean of differences, row by row; 0 of a single row, and where it is no number."""
    error = differences.std().item() / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return error if math.isfinite(error) else 0.0
