"""`classify`: the probabilities p(y | x) of a discrete latent site, by the guide and by Bayes' rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae.batching.checks import check_rows
from pyrovae.batching.memory import halving, random_states
from pyrovae.batching.transformed import in_evaluation, transformed
from pyrovae.criticism.acquisition import entropy
from pyrovae.criticism.importance import weight_blocks
from pyrovae.criticism.proposals import check_proposal, usable
from pyrovae.criticism.weighing import refined_blocks
from pyrovae.errors import NotFiniteError, PairError, counted
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded, transform_once
from pyrovae.objectives.terms import Terms, terms
from pyrovae.objectives.weights import guide_probabilities, log_weights, num_values
from pyrovae.pair.batch import as_batch, take_rows
from pyrovae.pair.datasets import is_streamed
from pyrovae.pair.layout import Layout, describe
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import arguments, same_values

# The numbers in memory for each class, draw and row while `_class_probabilities` runs: log-weights and intermediate results.
NUMBERS_PER_WEIGHT = 8


@dataclass(frozen=True)
class Classification:
    """Probabilities of the C values of a discrete latent site y for N rows, from `pv.classify`.

    The tensors are `(N, C)`, float64, on the CPU. Class c is the c-th value of the support of y.

    Attributes:
        guide: `q(y | x)`, averaged over what the guide draws before y; `E_q(z|x)[p(y | x, z)]` if only the model has y.
        joint: `p(y | x) = p(x, y) / sum_c p(x, y = c)`, each p(x, y) estimated by importance sampling with K draws.
        standard_error: The Monte Carlo standard error of `joint`, by the delta method; NaN for K = 1. It is too small if
            the guide misses a part of the posterior that no draw has reached: raise K and compare.
        site: The name of y.
        num_samples: K.
        transform_draws: S, the draws of the fit's transform that were averaged over; 1 where it is not random.

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
        >>> found = pv.Classification(guide=p, joint=p, standard_error=0 * p, site="y", num_samples=100)
        >>> found.predicted, found.entropy
        (tensor([0, 0]), tensor([0.3251, 0.6931]))
    """

    guide: Tensor
    joint: Tensor
    standard_error: Tensor
    site: str
    num_samples: int
    transform_draws: int = 1

    @property
    def predicted(self) -> Tensor:
        """The most probable class by `joint`, `(N,)`; by the guide it is `guide.argmax(-1)`."""
        return self.joint.argmax(-1)

    @property
    def entropy(self) -> Tensor:
        """The entropy `H[p(y | x)]` of `joint` in nats, `(N,)`, from 0 to log C."""
        return entropy(self.joint)


@halving
def classify(
    fitted: Fit,
    data: Any,
    *,
    site: str | None = None,
    num_samples: int = 100,
    proposal: str = "guide",
    transform_draws: int = 20,
    seed: int | None = 0,
) -> Classification:
    """The probabilities `p(y | x)` of an enumerated latent site y for each row, by the guide and by Bayes' rule.

    By the guide, it is its classifier q(y | x). By Bayes' rule, `p(y = c | x)` is proportional to
    `E[p(x, y = c, z) / r(z | x, y = c)]` over a proposal r(z | x, y = c), which is estimated with K draws; the ratio has a bias
    of order 1 / K where no transform is random. All other latent sites are integrated out, and sites marked `objective_only`
    are ignored.

    **Rows that a random transform changes**, such as grey images under `transforms.Binarize`, are judged as they were given,
    and not by a single draw of theirs: both kinds of probabilities are `p(y | x)` proportional to `exp E_t[log p(y | t(x))]`,
    over S draws of the transform t, a geometric mean. The draws are always the same ones, and the K draws of the latent sites
    are spread over them, so that the bias by Bayes' rule is of order S / K: where it matters, raise K, and not S. This is the
    rule wherever classes are asked for: `pyrovae fit` and `evaluate` call this function, and `pyrovae label` shows its
    classifier the means of the pixels, which is the same to first order in what the noise changes. On validation rows of digits
    one draw loses 7 to 9 points of accuracy, see "Few labels" in the results of the documentation.

    If the pair does not treat several particles in one run correctly, they are run one by one, with a warning.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. Labels of y in it are ignored; other arguments that may be missing are used where
            they are known. The transform of the fit is applied.
        site: The site y. It may be left out if only one site with a value for each row is enumerated.
        num_samples: The number K of draws for each class and row.
        proposal: Of the draws for Bayes' rule: "guide", or "refined" or "laplace", as for `pv.importance`. A refined proposal
            takes some ten times as long at K = 100; look at it where `standard_error` is large.
        transform_draws: S, at most K: draws of the transform, where it is random. 1 judges a single draw. A refined proposal is
            fitted anew at each.
        seed: The seed of the draws of the latent sites; None continues torch's random state.

    Returns:
        The probabilities of each row, see `Classification`.

    Raises:
        OptionError: `num_samples` or `transform_draws` is no whole number of at least 1, or the proposal is not known.
        PairError: The pair enumerates no such site, or several and none is named.
        DataError: Values are outside the support of the likelihood, or missing where it does not allow that.
        NotFiniteError: A row has probability 0 at every draw and for every class.

    References:
        Kingma, Rezende, Mohamed & Welling 2014, arXiv:1406.5298 (the classifier). Burda, Grosse & Salakhutdinov 2016,
        arXiv:1509.00519 (the weights).

    Example:
        >>> ssvae = pv.SSVAE(
        ...     label_prior=pv.priors.Categorical(3),
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp((2, 3), fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp((6, 3), fam.Normal(2), hidden=(8,)),
        ...     classifier=pv.mlp(6, fam.Categorical((), 3), hidden=(8,)),
        ...     code=pv.nets.OneHot(3),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> y = torch.where(torch.arange(40) < 12, torch.arange(40) % 3, -1)  # 12 labels are known
        >>> fitted = pv.fit(ssvae, {"x": x, "y": y}, epochs=1, engine="eager", progress=False)
        >>> found = pv.classify(fitted, x, num_samples=20)
        >>> found.joint.shape, found.predicted.shape
        (torch.Size([40, 3]), torch.Size([40]))
    """
    num_samples, transform_draws = as_count("num_samples", num_samples), as_count("transform_draws", transform_draws)
    check_proposal(proposal)
    with fitted.scope(), seeded(seed):
        kept, name = _unlabelled(fitted, data, site)
        parts = fitted.parts(kept)
        for part in parts:
            check_rows(fitted.pair, part.batch, fitted.chunk_size(part.batch), strict=False, numbers=part.rows)
        draws = _num_draws(fitted, kept, parts, min(transform_draws, num_samples))
        found = []
        for draw in range(draws):
            own = fitted.parts(kept, draw, known=True) if draw else parts
            samples = num_samples // draws + (draw < num_samples % draws)
            columns = zip(*[_classified(fitted, part, name, samples, proposal) for part in own])
            found.append([in_order(parts, list(column)) for column in columns])
    guide, joint, error, log_joint = (torch.stack(column) for column in zip(*found))
    if draws == 1:
        return Classification(guide[0], joint[0], error[0], name, num_samples)
    return Classification(_pooled(guide.log())[0], *_pooled(log_joint), name, num_samples, draws)


def _num_draws(fitted: Fit, data: Any, parts: list[FittedGroup], most: int) -> int:
    """How many draws of the fit's transform are averaged over: one where it changes nothing in these rows at random."""
    transform = in_evaluation(fitted.transform)
    if most == 1 or transform is None:
        return 1
    if _differ(parts, fitted.parts(data, 1, known=True)):
        return most
    few = take_rows(fitted.batch(data), slice(0, 2))
    with fork_rng():
        before = random_states()
        transformed(fitted.pair, few, transform)
        random = any(not torch.equal(one, other) for one, other in zip(before, random_states()))
    later = range(2, most) if random else ()  # two draws of what is rarely changed may be alike
    return most if any(_differ(parts, fitted.parts(data, draw, known=True)) for draw in later) else 1


def _differ(parts: list[FittedGroup], others: list[FittedGroup]) -> bool:
    """Whether two draws of a transform differ in a value, a shape, or in what arguments there are."""
    return any(
        part.batch.keys() != other.batch.keys()
        or any(not same_values(value, other.batch[name]) for name, value in part.batch.items())
        for part, other in zip(parts, others)
    )


LEAST = math.log(torch.finfo(torch.float32).tiny)


def _pooled(logs: Tensor) -> tuple[Tensor, Tensor]:
    """The geometric mean over draws of class probabilities, normalised, and its standard error, `(n, C)` each.

    `logs` are the log-probabilities at each draw, `(S, n, C)`. A probability of 0 at some draws does not decide alone: it may
    be that of few draws of z, or have underflown. It counts as the least of its row that is not 0, and at most 1e-38.
    """
    impossible = (logs == -torch.inf).all(0)
    least = torch.where(logs == -torch.inf, 0.0, logs).amin((0, 2), keepdim=True).clamp_max(LEAST)
    logs = torch.maximum(logs, least)
    pooled = logs.mean(0).masked_fill(impossible, -torch.inf).softmax(-1)
    moved = pooled * (logs - (pooled * logs).sum(-1, keepdim=True))  # of the softmax, by the delta method
    return pooled, moved.std(0) / len(logs) ** 0.5


def _classified(fitted: Fit, part: FittedGroup, name: str, num_samples: int, proposal: str) -> list[Tensor]:
    """Probabilities by the guide and by Bayes' rule, and the standard error and logarithm of the latter, `(n, C)` each."""
    with fork_rng():
        classes = num_values(terms(fitted.pair, take_rows(part.batch, slice(0, 1)), layout=part.layout), name)
    proposal = usable(fitted, part, proposal, (name,))

    def summary(run: Terms) -> list[Tensor]:
        by_guide = guide_probabilities(run, name)
        return [by_guide] if proposal != "guide" else [by_guide, log_weights(run, keep=name)]

    guide: list[Tensor] = []
    joint: list[tuple[Tensor, Tensor, Tensor]] = []
    elements = NUMBERS_PER_WEIGHT * classes
    for by_guide, *log_w in weight_blocks(fitted, part.batch, part.layout, num_samples, summary, elements):
        guide.append(by_guide.mean(1).T.double().cpu())
        joint.extend(_class_probabilities(one) for one in log_w)
    if proposal != "guide":
        blocks = refined_blocks(fitted, part.batch, part.layout, num_samples, proposal, keep=name)
        joint.extend(_class_probabilities(log_w) for log_w, _ in blocks)
    return [torch.cat(guide), *(torch.cat(column) for column in zip(*joint))]


def _class_probabilities(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities by Bayes' rule, their standard error, and their logarithm, which cannot underflow, `(n, C)` each.

    log_w: log-weights of each class and draw, `(C, K, n)`.
    """
    particles = log_w.shape[1]
    log_w = log_w.double()
    highest = log_w.amax((0, 1))
    if not bool(torch.isfinite(highest).all()):
        raise NotFiniteError(
            f"{counted(int((~torch.isfinite(highest)).sum()), 'row has', 'rows have')} probability 0, or an undefined "
            "one, at every draw for every "
            "class: look at them with importance(...), raise num_samples, or train on data with such rows."
        )
    w = (log_w - highest).exp()
    all_classes = w.sum(0)  # (K, n)
    joint = w.sum(1) / all_classes.sum(0)
    error = torch.full_like(joint, float("nan"))
    if particles > 1:
        squares = (w - joint[:, None] * all_classes).square().sum(1)
        error = (squares * particles / (particles - 1)).sqrt() / all_classes.sum(0)
    logs = log_w.logsumexp(1)
    return joint.T.cpu(), error.T.cpu(), (logs - logs.logsumexp(0)).T.cpu()


def _unlabelled(fitted: Fit, data: Any, site: str | None) -> tuple[dict[str, Any], str]:
    """The arguments without the labels that the site would observe, and the name of the site."""
    wanted = arguments(fitted.pair)
    if is_streamed(data):
        data = as_batch(
            fitted.pair, data, {name: dtype for name, (_, dtype) in fitted.arguments.items()}, transforms=True
        )
    given = dict(data) if isinstance(data, Mapping) else {next(iter(wanted)): data}
    optional = [name for name in given if name in wanted and wanted[name].default is None]
    kept = {name: value for name, value in given.items() if name not in optional}
    name = _choose(_layout(fitted, kept), site)
    for other in optional:
        more = {**kept, other: given[other]}
        if given[other] is not None and name in _enumerated(_layout(fitted, more)):
            kept = more
    return kept, name


def _layout(fitted: Fit, given: Mapping[str, Any]) -> Layout:
    """The layout of the pair for rows in which all of these arguments are known."""
    rows = take_rows(fitted.batch(given), slice(0, 2))
    optional = [name for name, p in arguments(fitted.pair).items() if p.default is None]
    rows = {name: torch.zeros_like(value) if name in optional else value for name, value in rows.items()}
    with fork_rng():
        return describe(fitted.pair, transform_once(fitted.pair, rows, fitted.transform))


def _enumerated(layout: Layout) -> list[str]:
    """The enumerated latent sites that have one value for each row."""
    return [s.name for s in layout.sites if s.enumerated is not None and s.role == "latent" and s.local]


def _choose(layout: Layout, site: str | None) -> str:
    """The named site, or the only enumerated one. PairError if there is none, or several and none is named."""
    names = _enumerated(layout)
    if site in names:
        return str(site)
    if site is None and len(names) == 1:
        return names[0]
    listed = ", ".join(map(repr, names)) or "none"
    got = "no name was given" if site is None else f"got {site!r}"
    raise PairError(
        f"classify needs a latent site of each row that is enumerated, marked infer={{'enumerate': 'parallel'}}: this pair "
        f"has {listed}; {got}. " + ("Name one with site=..." if names else "Mark a discrete site like this.")
    )
