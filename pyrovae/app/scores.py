"""The numbers of a run's table, on its test rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.app.catalogue import Model
from pyrovae.app.models import MODELS
from pyrovae.app.options import read_options
from pyrovae.app.rows import Rows
from pyrovae.criticism.classification import classify
from pyrovae.criticism.decomposition import active_units
from pyrovae.criticism.importance import Importance, importance
from pyrovae.errors import OptionError
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.batch import take_rows
from pyrovae.predict.encode import encode

EVALUATION_SEED = 1  # of the draws behind the table, so that `evaluate` repeats what `fit` printed


def evaluate(
    fitted: Fit, rows: Rows, num_samples: int, num_rows: int | None = None
) -> tuple[dict[str, float], Importance]:
    """The table's numbers on the test rows, nats per row in the data's own units, and the values of each row.

    log p(x), or log p(x | c), and k-hat are those of the first `num_rows` test rows, by default as many as make a million
    draws; the ELBO is that of all. Labels of test rows serve for `accuracies` only, unless they are conditions.
    """
    if num_samples < 1 or (num_rows is not None and num_rows < 1):
        raise OptionError(f"--num-samples and --rows must be at least 1, got {num_samples} and {num_rows}.")
    batch = rows.batch("test")
    picked = take_rows(batch, first_rows(num_samples, num_rows))
    found = importance(fitted, picked, num_samples, seed=EVALUATION_SEED)
    results = found.summary()
    if len(picked["x"]) < len(rows.test):
        everything = importance(fitted, batch, 10, seed=EVALUATION_SEED).summary()
        results |= {"elbo": everything["elbo"], "elbo_se": everything["elbo_se"]}
    results["elbo"] -= rows.log_abs_det
    results["log_likelihood"] -= rows.log_abs_det
    seen = fitted.evaluation_batch(batch)
    several = levels_of(fitted)
    # maps are counted together, levels each
    counted = [several] if model_of(fitted).images else [(site,) for site in several or (model_of(fitted).code,)]
    for sites, suffix in zip(counted, ("", *(f"_{name}" for (name, *_) in counted[1:]))):
        # twice where they are averages of draws, whose noise would pass for activity
        seeds = (0, 1) if several else (0,)
        means = [torch.cat([encode(fitted, seen, site=z, seed=seed).flatten(1) for z in sites], 1) for seed in seeds]
        results[f"active_units{suffix}"] = (
            int(active_units(means[0], again=means[-1]).sum()) if len(rows.test) > 1 else 0
        )
        results[f"latent_units{suffix}"] = means[0].shape[1]
    results["log_abs_det"] = rows.log_abs_det
    results |= {"num_samples": num_samples, "test_rows": len(rows.test), "log_likelihood_rows": len(picked["x"])}
    return results | accuracies(fitted, rows, num_samples), found


def first_rows(num_samples: int, num_rows: int | None) -> slice:
    """Of so many test rows log p(x) is estimated: those asked for, or as many as make a million draws."""
    return slice(0, num_rows or max(1, 1_000_000 // num_samples))


def accuracies(fitted: Fit, rows: Rows, num_samples: int) -> dict[str, float]:
    """The share of the first 500 labelled test rows whose class is told rightly, for models that have one to tell.

    Of labelled classes by the guide's classifier and by the joint model; of clusters after each was given the class that most
    of its training rows have, by the guide.
    """
    model, truth = model_of(fitted), rows.codes["test"]
    if truth is None or (model.labels != "y" and not model.clusters):
        return {}
    draws = min(num_samples, 10 if model.clusters else 100)

    def told(part: str, first: int) -> tuple[Tensor, Tensor, Tensor]:
        codes = rows.codes[part]
        assert codes is not None
        known = (codes >= 0).nonzero().squeeze(1)[:first]
        found = classify(fitted, {"x": getattr(rows, part)[known]}, site="y", num_samples=draws, seed=EVALUATION_SEED)
        return found.guide.argmax(-1), found.joint.argmax(-1), codes[known]

    if not bool((truth >= 0).any()):
        return {}
    guide, joint, truth = told("test", 500)
    by = {"guide": guide, "joint": joint}
    if model.clusters:
        clusters, _, codes = told("train", 2000)
        if not len(codes):
            return {}
        pairs = torch.zeros(int(clusters.max()) + 1, int(codes.max()) + 1)
        pairs.index_put_((clusters, codes), torch.ones(len(codes)), accumulate=True)
        majority = torch.full(
            (max(len(pairs), int(guide.max()) + 1),), -1
        )  # of a cluster that no training row is in: none
        majority[: len(pairs)] = torch.where(pairs.sum(1) > 0, pairs.argmax(1), -1)
        by = {"clusters": majority[guide]}
    results: dict[str, float] = {"accuracy_rows": len(truth)}
    for name, predicted in by.items():
        share = (predicted == truth).double().mean().item()
        results |= {f"accuracy_{name}": share, f"accuracy_{name}_se": math.sqrt(share * (1 - share) / len(truth))}
    if model.clusters:
        results["clusters_used"] = len(clusters.unique())
    return results


def model_of(fitted: Fit) -> Model:
    """What the recipes know about the model of a run."""
    return MODELS[read_options(fitted.info).model]


def levels_of(fitted: Fit) -> tuple[str, ...]:
    """The sites of a model of several levels, from the data upwards; () of others."""
    options = read_options(fitted.info)
    if options.groups is not None:
        return tuple(f"z{s}_{g}" for s, num in enumerate(options.groups, 1) for g in range(1, num + 1))[::-1]
    return tuple(f"z{level}" for level in range(1, len(options.levels or ()) + 1))
