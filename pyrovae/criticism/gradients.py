"""`gradient_variance`: how much noise the gradient of each loss has at given weights, from its draws and from its rows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae._arguments import as_seed
from pyrovae._html import Told
from pyrovae.engine.threads import computing_with
from pyrovae.engine.tracing import undone
from pyrovae.errors import OptionError, counted
from pyrovae.fitted.fitted import Fit, transform_once
from pyrovae.objectives.losses import as_loss
from pyrovae.pair.batch import Batch, as_batch
from pyrovae.pair.checks import sides_of
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import default_dtype, fork_rng, param_scope, seed_torch, trainable
from pyrovae.pair.program import PairLike
from pyrovae.pair.turns import turn
from pyrovae.training.bind import bind
from pyrovae.training.checks import check
from pyrovae.training.fit import fit
from pyrovae.training.fit_options import FitOptions, whole_number
from pyrovae.training.groups import group
from pyrovae.training.plan import plan

COLUMNS = ("loss", "rows", "parameters", "variance", "error", "of draws", "of rows", "squared norm")


class GradientNoise(NamedTuple):
    """The noise of one loss's gradient in one group of parameters, in squared nats per row and unit of a parameter.

    Attributes:
        loss: The name of the loss.
        batch_size: M, the rows of a minibatch.
        parameters: "model", "guide" or "shared": parameters that only the model uses, only the guide, or both.
        variance: The trace of the covariance of the gradient over minibatches and draws.
        error: The standard error of `variance`.
        of_draws: The part of it that is left where the rows stay the same: of the guide's draws, and of a random transform or
            dropout. `variance - of_draws` is that of the rows.
        squared_norm: The squared norm of the mean gradient, without bias, so that it may be negative where it is small.
    """

    loss: str
    batch_size: int
    parameters: str
    variance: float
    error: float
    of_draws: float
    squared_norm: float


@dataclass(frozen=True, repr=False)
class GradientVariance(Told):
    """What `pv.gradient_variance` measures. Printed, it is a table.

    Attributes:
        rows: A `GradientNoise` for each loss, batch size and group of parameters.
        num_batches: The number of minibatches of each, with two independent gradients of the same rows.

    Example:
        >>> from pyrovae.criticism.gradients import GradientNoise
        >>> noise = GradientNoise("A", 100, "guide", variance=2.0, error=0.1, of_draws=1.5, squared_norm=0.5)
        >>> found = pv.GradientVariance((noise,), num_batches=200)
        >>> found.of("A", "guide").of_draws
        1.5
        >>> found
        Variance of gradients, 200 minibatches each; squared nats per row
          loss  rows  parameters  variance  error  of draws  of rows  squared norm
          A     100   guide       2         0.1    1.5       0.5      0.5
    """

    rows: tuple[GradientNoise, ...]
    num_batches: int

    def of(self, loss: str, parameters: str, batch_size: int | None = None) -> GradientNoise:
        """The entry of a loss and a group of parameters; `batch_size` where there are several.

        Raises:
            OptionError: There is no such entry, or several.
        """
        found = [
            r for r in self.rows if (r.loss, r.parameters) == (loss, parameters) and batch_size in (None, r.batch_size)
        ]
        if len(found) != 1:
            known = ", ".join(f"({r.loss!r}, {r.parameters!r}, {r.batch_size})" for r in self.rows)
            raise OptionError(
                f"There are {counted(len(found), 'entry', 'entries')} of ({loss!r}, {parameters!r}, {batch_size}), one is "
                f"wanted; known: {known}."
            )
        return found[0]

    def _told(self) -> tuple[Any, ...]:
        title = f"Variance of gradients, {self.num_batches} minibatches each; squared nats per row"
        return (title, COLUMNS, [(*r[:6], r.variance - r.of_draws, r.squared_norm) for r in self.rows])


def gradient_variance(
    pair: PairLike | Fit,
    data: Any,
    losses: Mapping[str, Any] | Sequence[Any],
    *,
    batch_size: int | Sequence[int] = 100,
    num_batches: int = 100,
    seed: int | None = None,
) -> GradientVariance:
    """The trace of the covariance of each loss's gradient at the weights as they are: which estimator has less noise, and why.

    The gradient is that of one step of `pv.fit`: of the loss of a minibatch of M of the N rows, in nats per row, with K draws
    of the guide for each row. Its variance has two parts, by the rows that are in the minibatch and by the draws:

        tr Cov[g] = tr Cov[E[g | rows]] + E[tr Cov[g | rows]].

    More draws make the second smaller, and more rows both. Each is estimated without bias from pairs of independent minibatches
    with two gradients each: half the squared distance of two gradients of the same rows, and of different rows. All losses see
    the same minibatches. Gradients of losses with the same expectation can be compared by the variance alone; others, such as
    importance-weighted bounds of different K, by variance and squared norm together.

    Args:
        pair: A pair, or a `Fit` of it, whose weights, transform and groups of rows are used. Weights stay as they are. Modules
            stay in their mode, so that dropout is part of the noise.
        data: The rows, as for `pv.fit`.
        losses: Losses by name, or a list of losses, whose names are what they print. Whatever `pv.fit` takes will do.
        batch_size: M, or several.
        num_batches: The number of minibatches of each size, even and at least 4.
        seed: The seed of minibatches and draws; None continues torch's random state.

    Returns:
        The variances, by loss, batch size and group of parameters, see `GradientVariance`.

    Raises:
        OptionError: There are no losses or two of one name, a number is not possible, or nothing is to be trained.
        DataError: The data are not what the model takes, or have fewer rows than a minibatch.
        PairError: A loss does not support the pair.

    References:
        Kingma and Welling 2014, arXiv:1312.6114; Roeder, Wu and Duvenaud 2017, arXiv:1703.09194; Rainforth et al. 2018,
        arXiv:1802.04537 (how the noise of importance-weighted gradients grows with K).

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(1), pv.mlp(1, fam.Normal(2)), pv.mlp(2, fam.Normal(1)))
        >>> losses = {"A": pv.Trace_ELBO(), "B": pv.Trace_ELBO(kl="analytic")}
        >>> found = pv.gradient_variance(vae, torch.randn(50, 2), losses, batch_size=10, num_batches=4, seed=0)
        >>> [(row.loss, row.parameters) for row in found.rows]
        [('A', 'model'), ('A', 'guide'), ('B', 'model'), ('B', 'guide')]
    """
    named = _named(losses)
    sizes = batch_size if isinstance(batch_size, Sequence) else [batch_size]
    if not sizes or any(size is None for size in sizes):
        raise OptionError(f"batch_size is the number of rows of a minibatch, or a list of such, got {batch_size!r}.")
    if num_batches is None or (whole_number("num_batches", num_batches, least=4) or 0) % 2:
        raise OptionError(f"num_batches must be even, since minibatches are compared in pairs, got {num_batches}.")
    fitted = pair if isinstance(pair, Fit) else Fit(pair, layout=Layout((), 0, {}))
    if isinstance(pair, Fit):
        pair.check_weights()
        pair.check_columns(data)
    start = int(torch.randint(2**31, ())) if seed is None else as_seed(seed)
    data = as_batch(
        fitted.pair,
        data,
        transforms=fitted.transform is not None,
        casts={name: dtype for name, (_, dtype) in {**fitted.arguments, **fitted.untransformed}.items()},
    )
    found = [
        row
        for size in sizes
        for name, loss in named.items()
        for row in _measured(fitted, data, name, loss, size, num_batches // 2, start)
    ]
    return GradientVariance(tuple(found), num_batches)


def _named(losses: Any) -> dict[str, Any]:
    if isinstance(losses, Mapping):
        named = {str(name): as_loss(loss) for name, loss in losses.items()}
    elif isinstance(losses, Sequence) and not isinstance(losses, str):
        made = [as_loss(loss) for loss in losses]
        named = {repr(loss): loss for loss in made}
        if len(named) < len(made):
            raise OptionError("Two of the losses print alike: give them names, losses={'first': ..., 'second': ...}.")
    else:
        raise OptionError(f"losses is a list of losses, or a dict of them by name, got {losses!r}: write [loss].")
    if not named:
        raise OptionError("There is no loss to measure: name some, such as losses={'A': pv.Trace_ELBO()}.")
    return named


def _measured(
    fitted: Fit, data: Batch, name: str, loss: Any, size: int, num_pairs: int, seed: int
) -> list[GradientNoise]:
    """The noise of one loss: what `fit` plans for it, with gradients of independent minibatches in place of steps."""
    pair, defaults = fitted.pair, inspect.signature(fit).parameters.values()
    given = {"epochs": 1, "batch_size": size, "loss": loss, "seed": seed % 2**31, "transform": fitted.transform}
    given |= {"engine": "eager", "device": fitted.device}
    options = FitOptions(**{p.name: p.default for p in defaults if p.name not in ("pair", "data")} | given)
    scratch = Fit(pair, layout=fitted.layout, store=fitted.store, transform=fitted.transform)
    with turn():
        bound = bind(pair, data, options)
        groups = group(pair, bound, options)
        with fork_rng(), param_scope(fitted.store), default_dtype(pair):
            seed_torch(seed)
            bound.place()
            chosen = plan(scratch, bound, groups, check(scratch, bound, groups, options), options)
            leaves = trainable(pair)

            def gradient(index: Batch) -> Tensor:
                _, objective = chosen.program.objective(index, {})
                grads = torch.autograd.grad(objective, list(leaves.values()), allow_unused=True)
                flat = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves.values(), grads)]
                return torch.cat([g.flatten().double() for g in flat])

            def minibatch(number: int) -> Batch:
                order = torch.Generator().manual_seed((seed + 7919 * number) % 2**63)  # the same for all losses
                chosen_rows = {g.key: torch.randperm(len(g.rows), generator=order)[: g.size] for g in groups}
                return {g.key: g.rows[chosen_rows[g.key].to(g.rows.device)].to(bound.device) for g in groups}

            with computing_with(chosen.threads), undone(chosen.program.buffers):  # such as those of batch normalisation
                firsts = [transform_once(pair, one.first_batch(bound), fitted.transform) for one in groups]
                parts = _parts(pair, firsts)
                owner = torch.cat([torch.full((p.numel(),), _place(parts, n)) for n, p in leaves.items()])
                sums = _Sums(len(parts), owner.to(bound.device))
                for number in range(num_pairs):
                    one, two = minibatch(2 * number), minibatch(2 * number + 1)
                    sums.add(gradient(one), gradient(one), gradient(two), gradient(two))
    return sums.noise(name, size, list(parts))


def _place(parts: Mapping[str, set[str]], name: str) -> int:
    """The number of the group that a parameter is in."""
    return next(number for number, names in enumerate(parts.values()) if name in names)


def _parts(pair: PairLike, firsts: Sequence[Batch]) -> dict[str, set[str]]:
    """The names of the parameters that only the model uses, only the guide, and both; without groups that are empty."""
    model, guide = sides_of(pair, firsts)
    unused = set(trainable(pair)) - model - guide  # whose gradient is 0
    found = {"model": (model - guide) | unused, "guide": guide - model, "shared": model & guide}
    return {part: names for part, names in found.items() if names}


class _Sums:
    """Sums over pairs of minibatches, with two gradients of each, by group of parameters."""

    def __init__(self, num_parts: int, owner: Tensor) -> None:
        self.num_parts, self.owner = num_parts, owner
        self.total: list[Tensor] = []
        self.of_draws: list[Tensor] = []
        self.mean = torch.zeros(len(owner), dtype=torch.float64, device=owner.device)

    def by_part(self, values: Tensor) -> Tensor:
        zeros = torch.zeros(self.num_parts, dtype=torch.float64, device=values.device)
        return zeros.index_add(0, self.owner, values)

    def add(self, a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> None:
        self.total.append(self.by_part(((a1 - b1).square() + (a2 - b2).square()) / 4))
        self.of_draws.append(self.by_part(((a1 - a2).square() + (b1 - b2).square()) / 4))
        self.mean += a1 + a2 + b1 + b2

    def noise(self, loss: str, size: int, parts: Sequence[str]) -> list[GradientNoise]:
        total, of_draws, num = torch.stack(self.total), torch.stack(self.of_draws), len(self.total)
        variance, draws = total.mean(0), of_draws.mean(0)
        error = total.std(0) / num**0.5
        # the mean of 2 num minibatches with two draws each has the variance of the rows, and half that of the draws
        of_mean = (variance - draws / 2) / (2 * num)
        squared = self.by_part((self.mean / (4 * num)).square()) - of_mean
        columns = zip(parts, variance.tolist(), error.tolist(), draws.tolist(), squared.tolist())
        return [GradientNoise(loss, size, *values) for values in columns]
