"""`Imputation`: draws of missing entries, and the completed data in the form in which they were given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_number, index_of, told
from pyrovae._html import table
from pyrovae.errors import OptionError, counted
from pyrovae.recover.filling import Given
from pyrovae.recover.gaps import Completed


@dataclass(frozen=True)
class Imputed:
    """The missing entries of one argument.

    Attributes:
        rows: The argument as the fit sees it, `(N, *event)`, on the CPU.
        where: The missing entries, as flat indices of `rows`, `(M,)`, ascending.
        draws: `(S, M)`, in the dtype of the rows.
        mean: `(M,)` float64, of classes the most frequent one.
        classes: Which entries are classes, `(M,)` bool.
    """

    rows: Tensor
    where: Tensor
    draws: Tensor
    mean: Tensor
    classes: Tensor

    @staticmethod
    def of(rows: Tensor, blocks: Sequence[Completed], num_samples: int) -> Imputed:
        """What was found for some rows each, whose `where` are flat indices of all rows."""
        if not blocks:
            nothing = torch.zeros(0, dtype=torch.int64)
            return Imputed(rows, nothing, rows.new_zeros(num_samples, 0), nothing.double(), nothing.bool())
        where, order = torch.cat([block.where for block in blocks]).cpu().sort()
        draws = torch.cat([block.draws for block in blocks], 1).cpu()[:, order].to(rows.dtype)
        mean, classes = (torch.cat(part).cpu()[order] for part in zip(*((b.mean, b.classes) for b in blocks)))
        return Imputed(rows, where, draws, mean, classes)

    def filled(self, values: Tensor) -> Tensor:
        """The rows with these values of the missing entries, `(..., N, *event)` from `(..., M)`."""
        whole = self.rows.to(torch.promote_types(self.rows.dtype, values.dtype))
        whole = whole.expand(*values.shape[:-1], *whole.shape).flatten(values.dim() - 1).contiguous().clone()
        whole[..., self.where] = values.to(whole.dtype)
        return whole.reshape(*values.shape[:-1], *self.rows.shape)


@dataclass(frozen=True, repr=False)
class Imputation:
    """S draws of the missing entries of N rows, as `pv.impute` returns them.

    Where the model observes one argument, what is asked for is one tensor, and else a dict of tensors by argument. All
    tensors are on the CPU; observed entries are in them as they were given.

    Attributes:
        num_samples: S.
        ess: How many draws of the proposal count in each row, `(N,)`, by the effective sample size of their weights; NaN in
            rows without a gap.
        k_hat: The estimated shape of the weights' tail, `(N,)`: above `pv.k_hat_threshold(num_particles)`, the proposal
            misses a part of the posterior, and so may the draws. NaN in rows that needed no weights.

    References:
        Rubin 1987, *Multiple Imputation for Nonresponse in Surveys*.

    Example:
        >>> x = torch.randn(40, 1) + 0.1 * torch.randn(40, 3)
        >>> x[:10, 0] = float("nan")
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(1),
        ...     likelihood=pv.observed_only(pv.mlp(1, fam.Normal(3), hidden=(8,))),
        ...     encoder=pv.Conditional(pv.nets.WithMask(pv.nets.MLP((3, 3), (2, 1), hidden=(8,))), fam.Normal(1)),
        ... )
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> imputed = pv.impute(fitted, x, num_samples=20, seed=0)
        >>> imputed
        Imputation(20 draws of 10 missing entries in 10 of 40 rows)
        >>> means = [imputed.complete(k).mean(0) for k in range(20)]  # an analysis of each completed data set
    """

    num_samples: int
    ess: Tensor
    k_hat: Tensor
    _imputed: dict[str, Imputed]
    _given: Given | None = None

    def __repr__(self) -> str:
        entries = sum(len(one.where) for one in self._imputed.values())
        rows = int((~torch.isnan(self.ess)).sum())
        missing = counted(entries, "missing entry", "missing entries")
        return f"Imputation({self.num_samples} draws of {missing} in {rows} of {len(self.ess)} rows)"

    def _repr_html_(self) -> str:
        ess = self.ess[~torch.isnan(self.ess)]
        found = [(name, len(one.where), one.rows.numel()) for name, one in self._imputed.items()]
        lowest = [f"effective sample size: {ess.min().item():.1f} to {ess.max().item():.1f}"] if len(ess) else []
        return table(repr(self), ("argument", "missing entries", "of"), found, lowest)

    def _each(self, of: Callable[[Imputed], Any]) -> Any:
        found = {name: of(one) for name, one in self._imputed.items()}
        return next(iter(found.values())) if len(found) == 1 else found

    @property
    def missing(self) -> Any:
        """Which entries were missing, `(N, *event)` bool."""
        return self._each(_mask)

    @property
    def draws(self) -> Any:
        """The S completed arguments, `(S, N, *event)`, in the dtype that the fit has."""
        return self._each(lambda one: one.filled(one.draws))

    @property
    def mean(self) -> Any:
        """The mean of each missing entry, `(N, *event)`, and of a class label the most frequent class.

        It is an average of `E[x_missing | x_observed, z]` over 200 draws of z, or S if that is more, and so less noisy than
        that of S draws.
        """
        return self._each(lambda one: one.filled(_as_rows(one, one.mean)))

    @property
    def sd(self) -> Any:
        """The standard deviation of each entry's draws, `(N, *event)`: 0 where it was observed, NaN for class labels."""
        return self._each(lambda one: self._spread(one))

    def interval(self, level: float = 0.9) -> Any:
        """Intervals that contain each missing entry with a given probability, if the model is right.

        The ends are quantiles of the S draws, interpolated at the positions p (S + 1), so that the probability does not
        depend on S. Observed entries are both ends of their own; class labels have none, which is NaN.

        Args:
            level: The probability, between 0 and 1.

        Returns:
            The lower and the upper ends, `(N, *event)` each; or a dict of such pairs.

        Raises:
            OptionError: The level is not between 0 and 1, or S draws are too few for it: `S >= (1 + level) / (1 - level)`.
        """
        level = as_number("level", level, above=0, below=1)
        needed = math.ceil((1 + level) / (1 - level) - 1e-9)
        if self.num_samples < needed:
            raise OptionError(
                f"Intervals of level {level:g} need at least {needed} draws, got {self.num_samples}: impute with "
                f"num_samples={needed}, or ask for a lower level."
            )
        return self._each(lambda one: tuple(self._quantile(one, (1 + sign * level) / 2) for sign in (-1, 1)))

    def complete(self, k: int | None = None) -> Any:
        """The data as they were given, with the missing entries of draw k, or their means, filled in.

        Tensors, arrays and DataFrames keep their kind, dtype and order; what else was given comes back as tensors. Integers
        become floating numbers where they have to, as for means of counts.

        Args:
            k: The number of the draw, from 0 to S - 1; None fills in means, and the most frequent classes.

        Raises:
            OptionError: There is no such draw.
        """
        if k is not None and ((number := index_of(k)) is None or not 0 <= number < self.num_samples):
            raise OptionError(f"There are draws 0 to {self.num_samples - 1}, got {told(k)}.")
        values = {name: one.mean if k is None else one.draws[k] for name, one in self._imputed.items()}
        whole = {name: one.filled(_as_rows(one, values[name])) for name, one in self._imputed.items()}
        if self._given is None:
            return next(iter(whole.values())) if len(whole) == 1 else whole
        return self._given.filled(whole, {name: one.where for name, one in self._imputed.items()}, values)

    def _spread(self, one: Imputed) -> Tensor:
        draws = one.draws.double()
        squares = (draws - draws.mean(0)).square().sum(0)  # torch's std warns of tensors without entries
        sd = (squares / (len(draws) - 1)).sqrt() if len(draws) > 1 else torch.full_like(squares, torch.nan)
        sd = torch.where(one.classes, torch.nan, sd)
        found = torch.zeros(one.rows.shape, dtype=torch.float64).flatten()
        found[one.where] = sd
        return found.reshape(one.rows.shape)

    def _quantile(self, one: Imputed, p: float) -> Tensor:
        draws = one.draws.double().sort(0).values
        position = min(max(p * (len(draws) + 1) - 1, 0.0), len(draws) - 1.0)
        low = min(math.floor(position + 1e-9), len(draws) - 1)
        high, part = min(low + 1, len(draws) - 1), max(position - low, 0.0)
        found = draws[low] + part * (draws[high] - draws[low])
        found = torch.where(one.classes, torch.nan, found)
        return one.filled(_as_rows(one, found))


def _as_rows(one: Imputed, values: Tensor) -> Tensor:
    """Values in the dtype of the rows, if that is floating."""
    return values.to(one.rows.dtype) if one.rows.is_floating_point() else values


def _mask(one: Imputed) -> Tensor:
    found = torch.zeros(one.rows.numel(), dtype=torch.bool)
    found[one.where] = True
    return found.reshape(one.rows.shape)
