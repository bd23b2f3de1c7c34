"""Labels that no training row has: one warning, before any work."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from pyrovae.pair.layout import Layout
from pyrovae.pair.program import PairLike, arguments, sample_sites
from pyrovae.training.bind import FitData
from pyrovae.training.groups import TrainingGroup

MOST_CLASSES = 1000  # of more, such as the words of a vocabulary, some never occur
MOST_NAMED = 5


def warn_of_labels(
    pair: PairLike, data: FitData, groups: Sequence[TrainingGroup], layouts: Sequence[Layout], models: Sequence[Any]
) -> None:
    """Warn of an argument that the model infers where it is unknown, as a label, if no row has it, or none of some class.

    Such an argument has the default None, and a site of its name: observed where it is known, and latent elsewhere.

    Args:
        data: The training rows.
        groups: Their groups, by what is known of them.
        layouts: Of each group.
        models: The trace of the model in a run on each group.
    """
    optional = [name for name, parameter in arguments(pair).items() if parameter.default is None]
    for name in optional:
        known = any(name in one.names for one in groups)
        for layout, trace in zip(layouts, models):
            site = next((s for s in layout.sites if s.name == name and s.local), None)
            if site is None:
                continue
            classes = _classes(sample_sites(trace)[name]["fn"])
            if site.role == "latent" and not known:
                _warn(_without(name, classes is not None))
                break
            others = [s for s in layout.sites if s.role == "observed" and s.argument != name]
            if site.role == "observed" and others and classes is not None and data.training.rows is not None:
                rows = data.training.rows[name]
                empty = classes[~torch.isin(classes, rows.to(classes.device, classes.dtype))].tolist()
                if 0 < len(empty) < len(classes) <= MOST_CLASSES:
                    _warn(_empty(name, empty, len(classes)))
                break


def _classes(fn: Any) -> torch.Tensor | None:
    """The values that a site can have, `(C,)`; None if they are not finitely many numbers."""
    if tuple(fn.event_shape) or not getattr(fn, "has_enumerate_support", False):
        return None
    with torch.no_grad():
        values: torch.Tensor = fn.enumerate_support(expand=False)
    return values.flatten()


def _without(name: str, classes: bool) -> str:
    if classes:
        return (
            f"No training row has a label: {name} is unknown in all of them, so that its classes are clusters, in any order, "
            f"and say nothing about labels. Give {name} of some rows (class numbers from 0, and -1 where unknown); if clusters "
            "are what you want, fit pv.GMVAE."
        )
    return (
        f"No training row has a value of {name}: it is inferred in all of them, and what is inferred is a latent variable like "
        f"others, which says nothing about {name}. Give {name} of some rows (NaN where unknown); if you have none, fit pv.VAE."
    )


def _empty(name: str, empty: Sequence[float], num: int) -> str:
    listed = ", ".join(f"{number:g}" for number in empty[:MOST_NAMED]) + (", ..." if len(empty) > MOST_NAMED else "")
    which = f"class {listed}" if len(empty) == 1 else f"the {len(empty)} classes {listed}"
    return (
        f"No training row has the label {name} of {which}, of {num} classes that the model has, so that no row says what "
        "these are: none is classified so rightly, but by chance. Label a row of each class, or make the model with the "
        "classes that occur."
    )


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=7)  # at the call of fit
