"""p(y | x) of a discrete latent variable: by the guide, and by Bayes' rule over the joint model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.batching.checks import check_rows
from pyrovae.criticism.acquisition import entropy
from pyrovae.criticism.importance import weight_blocks
from pyrovae.errors import NotFiniteError, OptionError, PairError
from pyrovae.fitted.fitted import Fit, in_order, seeded, transform_once
from pyrovae.objectives.terms import terms
from pyrovae.objectives.weights import guide_probabilities, log_weights, num_values
from pyrovae.pair.batch import take_rows
from pyrovae.pair.layout import Layout, describe
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import arguments

# Numbers a class, draw and row that judging a block holds at once: log-weights and what is made of them, in float64.
HELD = 8


@dataclass(frozen=True)
class Classification:
    """Probabilities of the C values of `site` in each of N rows, (N, C) float64 on the CPU; value c is the c-th of its support.

    guide: q(y | x), averaged over what the guide draws before y. Of a site that only the model has, E_q(z|x)[p(y | x, z)].
    joint: p(y | x) = p(x, y) / sum_c p(x, y = c), each p(x, y) by importance sampling with K = `num_samples` draws.
    standard_error: of `joint`, Monte Carlo, by the delta method; NaN for K = 1. It knows of no tail that no draw has seen:
    where q(z | x, y) covers p(z | x, y) badly, raise K and compare.
    """

    guide: Tensor
    joint: Tensor
    standard_error: Tensor
    site: str
    num_samples: int

    @property
    def predicted(self) -> Tensor:
        """argmax_c of `joint`: (N,) class numbers. By the guide: `guide.argmax(-1)`."""
        return self.joint.argmax(-1)

    @property
    def entropy(self) -> Tensor:
        """H[p(y | x)] of `joint`, nats: (N,), 0 to log C."""
        return entropy(self.joint)


def classify(
    fitted: Fit, data: Any, *, site: str | None = None, num_samples: int = 100, seed: int | None = 0
) -> Classification:
    """p(y | x) of each row, of a latent site y that the pair sums out, by its guide and by Bayes' rule over its joint model.

    By the joint model: p(y = c | x) is proportional to E[p(x, y = c, z) / q(z | x, y = c)] over q(z | x, y = c), estimated
    with K = `num_samples` draws; every other latent variable is integrated out, and what is marked `objective_only` does not
    count. It is a ratio of estimates, with a bias of order 1 / K. By the guide: its classifier.

    `site` may be left out where the pair sums out only one that has a value a row. Labels of it in the data are not looked
    at: an argument that may be None, and that the site observes, is dropped; other such arguments count where they are
    known. The fit's transform is applied once, from a fixed seed; `seed` of the draws, None continues torch's state. Memory
    does not grow with N, but for the results. A pair that does not carry a particle dimension is run particle by particle,
    with a warning.

    Raises PairError where the pair sums out no such site, or several and none is named; DataError for rows that the model
    does not take; NotFiniteError for a row that has probability 0 at every draw. Kingma et al. 2014, arXiv:1406.5298
    (the classifier); Burda et al. 2016, arXiv:1509.00519 (the weights).
    """
    if num_samples < 1:
        raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
    with fitted.scope(), seeded(seed):
        kept, name = _unlabelled(fitted, data, site)
        parts = fitted.parts(kept)
        for part in parts:
            check_rows(fitted.pair, part.batch, strict=False)
        found = []
        for part in parts:
            with fork_rng():
                classes = num_values(terms(fitted.pair, take_rows(part.batch, slice(0, 1)), layout=part.layout), name)
            blocks = weight_blocks(
                fitted,
                part.batch,
                part.layout,
                num_samples,
                lambda run: [log_weights(run, keep=name), guide_probabilities(run, name)],
                HELD * classes,
            )
            judged = [_judge(*block) for block in blocks]
            found.append([torch.cat(column) for column in zip(*judged)])
    guide, joint, error = (in_order(parts, list(column)) for column in zip(*found))
    return Classification(guide, joint, error, name, num_samples)


def _judge(log_w: Tensor, guide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-weights and the guide's probabilities, (C, K, n) -> the latter's mean, Bayes' rule and its error, (n, C) each."""
    particles = log_w.shape[1]
    log_w = log_w.double()
    highest = log_w.amax((0, 1))
    if not bool(torch.isfinite(highest).all()):
        raise NotFiniteError(
            f"{int((~torch.isfinite(highest)).sum())} rows have probability 0, or none, at every draw of the guide and for "
            "every class: look at them with importance(...), raise num_samples, or train on data that contain such rows."
        )
    w = (log_w - highest).exp()
    every = w.sum(0)  # (K, n)
    joint = w.sum(1) / every.sum(0)
    error = torch.full_like(joint, float("nan"))
    if particles > 1:
        spread = (w - joint[:, None] * every).square().sum(1)
        error = (spread * particles / (particles - 1)).sqrt() / every.sum(0)
    return guide.mean(1).T.double().cpu(), joint.T.cpu(), error.T.cpu()


def _unlabelled(fitted: Fit, data: Any, site: str | None) -> tuple[dict[str, Any], str]:
    """The data without what the site observes, and the site's name."""
    wanted = arguments(fitted.pair)
    given = dict(data) if isinstance(data, Mapping) else {next(iter(wanted)): data}
    optional = [name for name in given if name in wanted and wanted[name].default is None]
    kept = {name: value for name, value in given.items() if name not in optional}
    name = _choose(_layout(fitted, kept), site)
    for other in optional:
        more = {**kept, other: given[other]}
        if given[other] is not None and name in _summed_out(_layout(fitted, more)):
            kept = more
    return kept, name


def _layout(fitted: Fit, given: Mapping[str, Any]) -> Layout:
    """What the pair is made of for rows in which all of these arguments are known."""
    rows = take_rows(fitted.batch(given), slice(0, 2))
    optional = [name for name, p in arguments(fitted.pair).items() if p.default is None]
    rows = {name: torch.zeros_like(value) if name in optional else value for name, value in rows.items()}
    with fork_rng():
        return describe(fitted.pair, transform_once(rows, fitted.transform))


def _summed_out(layout: Layout) -> list[str]:
    return [s.name for s in layout.sites if s.enumerated is not None and s.role == "latent" and s.local]


def _choose(layout: Layout, site: str | None) -> str:
    names = _summed_out(layout)
    if site in names:
        return str(site)
    if site is None and len(names) == 1:
        return names[0]
    listed = ", ".join(map(repr, names)) or "none"
    got = "no name was given" if site is None else f"got {site!r}"
    raise PairError(
        f"classify takes one latent site that is summed out for each row, marked infer={{'enumerate': 'parallel'}}: this pair "
        f"has {listed}; {got}. " + ("Name one with site=..." if names else "Mark a discrete site so.")
    )
