"""The numbers of a run's table, from its test rows."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from pyrovae.app.catalogue import CONDITION
from pyrovae.app.options import OPTIONS
from pyrovae.app.rows import Labels
from pyrovae.app.run import Run
from pyrovae.criticism.classification import classify
from pyrovae.criticism.code_usage import code_usage
from pyrovae.criticism.decomposition import active_units
from pyrovae.criticism.importance import Importance, importance
from pyrovae.errors import OptionError
from pyrovae.fitted.diverged import diverged
from pyrovae.pair.batch import Batch, take_rows
from pyrovae.predict.encode import encode
from pyrovae.predict.generate import simulate
from pyrovae.tables.baselines import baselines
from pyrovae.tables.simulated import sentence

TRAINING_ROWS, TRAINING_DRAWS = 200, 100
LEAST_ROWS, MOST_COLUMNS = 20, 64  # of a table beside which a Gaussian mixture is fitted
FEWEST_JUDGED = 20  # rows, to say that few of them make most of an error
PRIOR_DRAWS = 200  # for the variance of the latent sites
EVALUATION_SEED = 1  # of the draws behind the table, so that `evaluate` repeats what `fit` printed


def evaluate(
    run: Run, num_samples: int, num_rows: int | None = None, proposal: str = OPTIONS["proposal"].default
) -> tuple[dict[str, Any], Importance]:
    """The numbers of the table, and the values of each test row.

    Nats per row, in the units of the data. The ELBO is that of all test rows. Labels of test rows serve for the accuracies
    only, unless they are conditions.

    Args:
        num_samples: draws per row for log p(x) and k-hat.
        num_rows: the number of test rows, from the first on, for log p(x) and k-hat; by default as many as make a million
            draws.
        proposal: of these draws, "refined", "laplace" or "guide".
    """
    check_draws(num_samples, num_rows)
    fitted, rows = run.fitted, run.rows
    batch = rows.batch("test")
    picked = take_rows(batch, first_rows(num_samples, num_rows))
    found = estimate(run, picked, num_samples, proposal)
    results: dict[str, Any] = found.summary()
    if len(picked["x"]) < len(rows.test):
        everything = importance(fitted, batch, 10, proposal="guide", seed=EVALUATION_SEED).summary()
        results |= {"elbo": everything["elbo"], "elbo_se": everything["elbo_se"]}
    results |= _training_rows(run, found.proposal)
    for name in ("elbo", "log_likelihood", "train_elbo", "train_log_likelihood"):
        results[name] -= rows.log_abs_det
    results |= _units(run) | _codes(run) | _typical("log_likelihood", found.log_likelihood.cpu(), rows.log_abs_det)
    results |= _baseline(run, found)
    results["log_abs_det"] = rows.log_abs_det
    results |= {"num_samples": num_samples, "proposal": found.proposal, "only_guide": found.proposal != proposal}
    results |= {"test_rows": len(rows.test), "log_likelihood_rows": len(picked["x"])} | _length(run)
    if said := diverged(run.fitted):
        results["diverged"] = said
    return results | accuracies(run, num_samples), found


def estimate(run: Run, rows: Batch, num_samples: int, proposal: str, seed: int = EVALUATION_SEED) -> Importance:
    """log p(x) of test rows, with the guide as proposal where no other can be refined; of codes, one draw is all there are."""
    num_samples = 1 if run.model.quantised else num_samples
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The guide is the proposal")  # the table says it
        return importance(run.fitted, rows, num_samples, proposal=proposal, seed=seed)


def _training_rows(run: Run, proposal: str) -> dict[str, float]:
    """ELBO and log p(x) of some training rows without their labels, to compare with test rows; a cheap estimate will do."""
    some = take_rows(run.rows.batch("train", labels=False), slice(0, TRAINING_ROWS))
    found = estimate(run, some, TRAINING_DRAWS, "guide" if proposal == "guide" else "laplace").summary()
    names = ("elbo", "elbo_se", "log_likelihood", "log_likelihood_se")
    return {f"train_{name}": found[name] for name in names}


def _length(run: Run) -> dict[str, float]:
    """The steps of the fit, and what the validation ELBO gained in their second half, in nats per row."""
    history = run.fitted.history
    if not history or "steps" not in history[-1]:
        return {}
    found = {"epochs": len(history), "steps": history[-1]["steps"]}
    seen = [row for row in history if "validation_elbo" in row]
    before = [row for row in seen if 2 * row["steps"] <= found["steps"]]
    if run.fitted.stopped or not before:
        return found
    return found | {"second_half_gain": seen[-1]["validation_elbo"] - before[-1]["validation_elbo"]}


def _baseline(run: Run, found: Importance) -> dict[str, Any]:
    """log p(x) of the same test rows by a Gaussian mixture, and by how much the model is above it, for tables without gaps."""
    known, schema = rows_for_densities(run), run.rows.schema
    if known is None or schema is None:
        return {}
    log_p = found.log_likelihood.cpu()
    test = run.rows.test[: len(log_p)].cpu()[~log_p.isnan()]
    mixture = baselines(schema, known, test, seed=EVALUATION_SEED)["gaussian mixture"]
    above = log_p[~log_p.isnan()] - mixture
    error = math.sqrt(len(test))
    return {
        "prior": run.options.prior,  # for what to try in its place
        "mixture_log_likelihood": mixture.mean().item(),
        "mixture_log_likelihood_se": (mixture.std() / error).item(),
        "above_mixture": above.mean().item(),
        "above_mixture_se": (above.std() / error).item(),
        **_typical("mixture_log_likelihood", mixture),
        **_typical("above_mixture", above, below=False),
    }


def _typical(name: str, values: Tensor, subtract: float = 0.0, *, below: bool = True) -> dict[str, float]:
    """The median of such values, the least of them, and how many rows make most of the error of their mean, 0 for no few."""
    values = values[~values.isnan()].double() - subtract
    if not len(values):
        return {}
    return {
        f"{name}_median": values.median().item(),
        f"{name}_least": values.min().item(),
        f"{name}_far_rows": rows_that_dominate(values, below=below),
    }


def rows_that_dominate(values: Tensor, *, below: bool = True) -> int:
    """How many rows, at most one in twenty, make more than half of the variance of their values; 0 if no so few do.

    The mean over rows is then one over these few, and its standard error says little: another sample has other ones. Of Normal
    values the largest twentieth make a quarter of the variance. With `below`, only rows below the mean are meant.
    """
    if len(values) < FEWEST_JUDGED or not bool(values.isfinite().all()):
        return 0
    away = values.double() - values.double().mean()
    total = away.square().sum()
    share = (away.clamp_max(0) if below else away).square().sort(descending=True).values.cumsum(0)
    few = int((share <= 0.5 * total).sum()) + 1
    return few if total > 0 and few <= max(1, len(values) // 20) else 0


def rows_for_densities(run: Run) -> Tensor | None:
    """The rows that another density of a table can be fitted to, beside which the model stands; None if there are none."""
    rows = run.rows
    if rows.schema is None or rows.gaps or run.model.labels == CONDITION or len(rows.schema.modelled) > MOST_COLUMNS:
        return None
    known = rows.train if rows.validation is None else torch.cat([rows.train, rows.validation])
    return known.cpu() if len(known) >= LEAST_ROWS else None


def simulated_rows(run: Run, num: int = 1000) -> str | None:
    """How rows that the model draws compare with those of the table, in a sentence; None where rows are no table."""
    rows = run.rows
    if rows.schema is None or (run.model.labels == CONDITION and rows.given is None):
        return None
    given = None
    if rows.given is not None:  # as often as the table has them
        every = torch.cat([rows.given.parts["train"], rows.given.parts["test"]])
        random = torch.Generator().manual_seed(EVALUATION_SEED)
        given = rows.given.argument(every[torch.randint(len(every), (num,), generator=random)])
    drawn = simulate(run.fitted, num, given=given, seed=EVALUATION_SEED)["x"]
    return sentence(rows.schema, torch.cat([rows.train, rows.test]).cpu(), drawn.flatten(1).cpu())


def check_draws(num_samples: int, num_rows: int | None, least_rows: int = 1) -> None:
    if num_samples < 1:
        raise OptionError(f"--num-samples must be at least 1, got {num_samples}.")
    if num_rows is not None and num_rows < least_rows:
        raise OptionError(f"--rows must be at least {least_rows}, got {num_rows}.")


def first_rows(num_samples: int, num_rows: int | None) -> slice:
    """The test rows of which log p(x) is estimated: those asked for, or as many as make a million draws."""
    return slice(0, num_rows or max(1, 1_000_000 // num_samples))


def _codes(run: Run) -> dict[str, float]:
    """How many codes the guide uses on test rows, and their perplexity, on average over residual levels."""
    if not run.model.quantised:
        return {}
    usage = code_usage(run.fitted, run.rows.batch("test"))
    return {
        "code_perplexity": usage.perplexity.mean().item(),
        "codes_used": usage.used.double().mean().item(),
        "codes": usage.num_codes,
    }


def _units(run: Run) -> dict[str, float]:
    """How many latent units are active, of how many: of each level, but of all maps together."""
    fitted, levels = run.fitted, run.levels
    results: dict[str, float] = {}
    seen = run.rows.batch("test")
    given = {
        name: value[:PRIOR_DRAWS]
        for name, value in seen.items()
        if run.rows.argument == CONDITION and name == CONDITION
    }
    num = len(given[CONDITION]) if given else PRIOR_DRAWS
    draws = simulate(fitted, num, given=given or None, seed=0)
    counted = [levels] if run.model.grouped else [(site,) for site in levels or (run.model.code,)]
    for sites, suffix in zip(counted, ("", *(f"_{name}" for (name, *_) in counted[1:]))):
        # some means are averages of draws: encoded twice, so that their noise does not pass for activity
        means = [torch.cat([encode(fitted, seen, site=z, seed=seed).flatten(1) for z in sites], 1) for seed in (0, 1)]
        prior = torch.cat([draws[z].flatten(1) for z in sites], 1).var(0)
        active = (
            int(active_units(means[0], again=means[1], prior_variance=prior).sum()) if len(run.rows.test) > 1 else 0
        )
        results |= {f"active_units{suffix}": active, f"latent_units{suffix}": means[0].shape[1]}
    return results


def accuracies(run: Run, num_samples: int) -> dict[str, Any]:
    """The accuracy on the first 500 labelled test rows, for models that have classes or clusters.

    Classes are predicted by the guide's classifier and by the joint model. A cluster, found by the guide, predicts the class
    that most of its training rows have.
    """
    model, truth = run.model, run.rows.codes["test"]
    if run.rows.several:
        return {"labels": [_of_column(run, column, min(num_samples, 100)) for column in run.rows.several]}
    if truth is None or (model.labels != "y" and not model.clusters):
        return {}
    draws = min(num_samples, 10 if model.clusters else 100)

    def predicted(part: str, first: int) -> tuple[Tensor, Tensor, Tensor]:
        codes = run.rows.codes[part]
        assert codes is not None
        known = (codes >= 0).nonzero().squeeze(1)[:first]
        data = {"x": getattr(run.rows, part)[known]}
        found = classify(run.fitted, data, site="y", num_samples=draws, seed=EVALUATION_SEED)
        return found.guide.argmax(-1), found.joint.argmax(-1), codes[known]

    if not bool((truth >= 0).any()):
        return {}
    guide, joint, truth = predicted("test", 500)
    by = {"guide": guide, "joint": joint}
    if model.clusters:
        clusters, _, codes = predicted("train", 2000)
        if not len(codes):
            return {}
        by = {"clusters": _majorities(clusters, codes, int(guide.max()) + 1)[guide]}
    results: dict[str, float] = {"accuracy_rows": len(truth)}
    for name, classes in by.items():
        share = (classes == truth).double().mean().item()
        results |= {f"accuracy_{name}": share, f"accuracy_{name}_se": math.sqrt(share * (1 - share) / len(truth))}
    if model.clusters:
        results["clusters_used"] = len(clusters.unique())
    return results


MOST_JUDGED = 500  # test rows with a label


def _of_column(run: Run, column: Labels, num_samples: int) -> dict[str, Any]:
    """Shares of test rows of which one of several labels is predicted rightly, from x alone, and given the other labels."""
    truth = column.codes["test"]
    rows = (truth >= 0).nonzero().squeeze(1)[:MOST_JUDGED]
    found: dict[str, Any] = {"column": column.name, "rows": len(rows)}
    if not len(rows):
        return found
    data = {"x": run.rows.test[rows]}
    how: dict[str, Any] = {"site": column.argument, "num_samples": num_samples, "seed": EVALUATION_SEED}
    alone = classify(run.fitted, data, **how)
    shares = {"guide": alone.guide.argmax(-1), "joint": alone.predicted}
    others = {one.argument: one.codes["test"][rows] for one in run.rows.several if one is not column}
    if any(bool((codes >= 0).any()) for codes in others.values()):
        shares["given"] = classify(run.fitted, data | others, **how).predicted
    return found | {name: (classes == truth[rows]).double().mean().item() for name, classes in shares.items()}


def _majorities(clusters: Tensor, codes: Tensor, num_clusters: int) -> Tensor:
    """The class that most rows of each cluster have, -1 for a cluster without rows."""
    pairs = torch.zeros(max(num_clusters, int(clusters.max()) + 1), int(codes.max()) + 1)
    pairs.index_put_((clusters, codes), torch.ones(len(codes)), accumulate=True)
    return torch.where(pairs.sum(1) > 0, pairs.argmax(1), -1)
