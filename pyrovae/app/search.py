"""A fit that tries a few recipes for its model, and keeps the one by which rows held out are most probable."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae._files import temporary_folder
from pyrovae.app.catalogue import BY_COLUMN, ORDERED, TABLE
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
from pyrovae.tables import starts

if TYPE_CHECKING:
    from torch import Tensor

    from pyrovae.data import Dataset

Recipe = dict[str, Any]

TEN_CODES: dict[str, Recipe] = {
    "10 latent dimensions, started at random": {"prior": "mixture", "guide": "full", "latent": 10, "hidden": (64,)}
}
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
SEED = 1
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
    watch = [starts.Race(starts.best_elbo(run.fitted))] if options.search == "auto" else []
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
                found = {one: starts.mean_of(each) for one, each in scores.items()}
                # most answers have an order, so that chance alone is not to take it away
                lead = starts.error_of(scores[name] - scores[best_name]) if name in FREE else 0.0
                if found[name] > found[best_name] + lead:
                    best, best_name = tried, name
            except starts.Behind as behind:
                left[name] = str(behind)
                say(f"Left, since {behind}.")
            except PyrovaeError as error:  # such as a fit that diverges
                say(f"It cannot be fitted: {error}")
        if len(found) < 2:
            say("Kept: the first model.")
            return _noted(run, search_left=left)
        table = "; ".join(f"{score:.2f} by {name}" for name, score in found.items())
        judges = min(starts.MOST_JUDGES, len(run.rows.validation))
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
    if (judges := len(split.validation)) < starts.FEWEST_JUDGES:
        if options.search == "small":
            raise OptionError(
                f"--search small needs {starts.FEWEST_JUDGES} validation rows to judge by, and has {judges}: raise "
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
        by_start = {starts.MIXTURE: WITHOUT_FLOW, starts.RANDOM: TEN_CODES}
        tried = starts.also(len(split.train), len(dataset.x), columns) if table else ()
        known = {name: one for start in tried for name, one in by_start[start].items()}
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
    rows = take_rows(run.rows.batch("validation"), slice(0, starts.MOST_JUDGES))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The guide is the proposal")
        found = log_likelihood(run.fitted, rows, starts.DRAWS, proposal=run.options.proposal, seed=SEED)
    return found.double() - run.rows.log_abs_det
