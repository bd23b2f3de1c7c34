"""What a person can set of a latent site, and the values of a row as a flat list of numbers, as a page sends them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.batching.checks import describe_support
from pyrovae.errors import DataError, counted
from pyrovae.objectives.codes import can_number
from pyrovae.pair.layout import Site
from pyrovae.pair.supports import kind_of, of_components

MOST_SLIDERS = 64  # of a site; those of the other dimensions stay behind
LARGEST = 1e6  # of a value, unless the prior has larger ones
MOST_OPTIONS = 64  # of a menu; more are a number to type
LEAST_SHARE = 1e-6  # of a simplex, on whose edge densities are infinite
REALS, SPHERE, SHARES = "reals", "sphere", "shares"  # what can be moved; all else is chosen
WHOLE, ONE_HOT, CODES = "whole numbers", "one-hot", "codes"


class Latent:
    """What can be set of a latent site that each row has.

    A value of one row, `(1, *event)`, is written as `size` numbers: its elements; where the site is one-hot, the numbers of its
    categories; where it has codes, their numbers.

    Args:
        site: As the layout has it.
        fn: Its distribution in a run of the model with N rows.
        draws: Values of that run, `(N, *event)`.
        parents: The latent sites, and arguments, that it depends on.
        names: Of its classes, where they have names.
        title: What a person knows it by, if that is not the name of the site.
    """

    def __init__(
        self,
        site: Site,
        fn: Any,
        draws: Tensor,
        parents: Sequence[str] = (),
        names: Sequence[str | int] | None = None,
        title: str | None = None,
    ) -> None:
        self.name, self.argument, self.enumerated = site.name, site.argument, site.enumerated
        self.event, self.parents, self._fn = tuple(draws.shape[1:]), tuple(parents), fn
        self.kind, self.lowest, self.highest = _kind(fn, draws)
        self.shape = self._shape()
        self.size = math.prod(self.shape)
        self.names = tuple(map(str, names)) if names is not None and len(names) == (self.num_options or 0) else None
        self.title = title or site.name
        self._draws, self._device = draws.cpu(), draws.device
        self._largest = max(LARGEST, 10 * float(self._draws.double().abs().max()))
        self._support = _support(fn)

    @property
    def moves(self) -> bool:
        """Whether its values are real numbers."""
        return self.kind in (REALS, SPHERE, SHARES)

    @property
    def density(self) -> str:
        """Its factor of the model, such as p(z1 | z2)."""
        given = ", ".join(self.parents)
        return f"p({self.name}{' | ' if given else ''}{given})"

    @property
    def num_options(self) -> int | None:
        """How many values each number can have, None where there is no end of them."""
        return None if self.highest is None or self.lowest is None else self.highest - self.lowest + 1

    def _shape(self) -> tuple[int, ...]:
        if self.kind == ONE_HOT:
            return self.event[:-1]
        return tuple(self._fn.quantiser.index_shape) if self.kind == CODES else self.event

    # --- between values and numbers

    @torch.no_grad()
    def write(self, value: Tensor) -> list[float]:
        """The numbers of a value, `(1, *event)`; of a mean of categories the most probable ones."""
        found = self._numbers(value)[0].tolist()
        return [float(f"{one:.6g}") for one in found] if self.moves else [int(one) for one in found]

    def _numbers(self, value: Tensor) -> Tensor:
        """`(N, *event)` as `(N, size)`."""
        if self.kind == ONE_HOT:
            return value.argmax(-1).reshape(len(value), -1)
        if self.kind == CODES:
            numbers: Tensor = self._fn.numbers(value)
            return numbers.reshape(len(value), -1)
        flat = value.reshape(len(value), -1)
        return flat if self.moves else flat.round()

    @torch.no_grad()
    def read(self, values: object, moved: object = None) -> Tensor:
        """The value that these numbers are, `(1, *event)`.

        Args:
            values: The numbers.
            moved: Which of them was moved last, on a sphere or a simplex: the others make room for it. None scales all.

        Raises:
            DataError: They are no numbers, not as many as the site has, or outside of its support.
        """
        if not isinstance(values, list) or len(values) != self.size:
            got = f"{len(values)}" if isinstance(values, list) else type(values).__name__
            raise DataError(f"{self.name} takes a list of {counted(self.size, 'number')}, got {got}.")
        for value in values:
            self._check(value)
        if moved is not None and (not isinstance(moved, int) or isinstance(moved, bool) or not 0 <= moved < self.size):
            raise DataError(
                f"the dimension of {self.name} that was moved is from 0 to {self.size - 1}, got {str(moved)[:40]}."
            )
        if not self.moves:
            numbers = torch.tensor([values], dtype=torch.int64, device=self._device).reshape(1, *self.shape)
            return self._of_numbers(numbers)
        found = torch.tensor([values], dtype=torch.float64).reshape(1, *self.event)
        if self.kind == SPHERE:
            found = _of_groups(_on_sphere, found, moved, self.name)
        elif self.kind == SHARES:
            found = _of_groups(_as_shares, found, moved, self.name)
        found = found.to(self._device, self._draws.dtype)
        if not self._inside(found):
            allowed = describe_support(_base(self._support))
            raise DataError(f"{self.name} has no such value: its prior allows only {allowed}.")
        return found

    def _check(self, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= self._largest:
            ends = f"{-self._largest:g} and {self._largest:g}"
            raise DataError(f"{self.name} takes numbers between {ends}, got {str(value)[:40] or repr(value)}.")
        if self.moves:
            return
        low, high = self.lowest, self.highest
        if value != int(value) or (low is not None and value < low) or (high is not None and value > high):
            bounds = f"from {low}" if high is None else f"from {low} to {high}"
            raise DataError(f"{self.name} takes whole numbers {bounds}, got {value}.")

    def _of_numbers(self, numbers: Tensor) -> Tensor:
        if self.kind == ONE_HOT:
            assert self.highest is not None
            return torch.nn.functional.one_hot(numbers, self.highest + 1).to(self._draws.dtype)
        if self.kind == CODES:
            code: Tensor = self._fn.quantiser.lookup(numbers)
            return code
        return numbers.to(self._draws.dtype)

    def _inside(self, value: Tensor) -> bool:
        """Whether the prior allows a value in some of its draws: where its support depends on other sites, the run decides."""
        if self._support is None:
            return True
        try:
            inside = self._support.check(value)
        except (NotImplementedError, RuntimeError):  # the run decides
            return True
        return bool(inside.reshape(len(inside), -1).all(1).any())

    # --- what a page shows

    def middle(self, draws: Tensor) -> list[float]:
        """The median of each element of draws, `(N, *event)`."""
        medians = np.median(draws.reshape(len(draws), -1).double().cpu().numpy(), 0)
        return [_short(one) for one in medians.tolist()]

    def describe(self, codes: Tensor | None = None, labels: Sequence[str] | None = None) -> dict[str, Any]:
        """What the controls of the site are, in JSON's types.

        The most active dimensions come first: by the variance of posterior means over rows, in units of the variance under the
        prior.

        Args:
            codes: Posterior means of some rows, `(M, *event)`; None where they are not known.
            labels: Of these rows.
        """
        order = list(range(self.size))
        activity = None
        draws = self._draws.reshape(len(self._draws), -1).double().numpy() if self.moves else None
        means = None if codes is None or draws is None else codes.reshape(len(codes), -1).cpu().double().numpy()
        if draws is not None and means is not None and len(means) > 1:
            spread = draws.var(0)
            activity = np.nan_to_num(means.var(0) / np.where(spread > 0, spread, 1.0))
            order = np.argsort(-activity, kind="stable").tolist()
        shown = order[:MOST_SLIDERS]
        dims: list[dict[str, Any]] = [{"index": i, "name": self._name_of(i)} for i in shown]
        if draws is not None:
            ranges = self._ranges(draws[:, shown], None if means is None else means[:, shown])
            for one, (low, high) in zip(dims, ranges):
                one |= {"low": _short(low), "high": _short(high)}
                if activity is not None:
                    one["activity"] = _short(float(activity[one["index"]]))
        found: dict[str, Any] = {
            "name": self.name,
            "title": self.title,
            "kind": self.kind,
            "moves": self.moves,
            "size": self.size,
        }
        found |= {"density": self.density, "shape": list(self.shape), "dims": dims, "others": self.size - len(dims)}
        found |= {"low": self.lowest, "high": self.highest, "options": self._options()}
        if self.kind == REALS and self.event == (2,) and means is not None:
            found["points"] = np.round(means, 4).tolist()
            found["labels"] = None if labels is None else list(labels)
        return found

    def _options(self) -> list[str] | None:
        if self.names is not None:
            return list(self.names)
        if self.num_options is None or self.num_options > MOST_OPTIONS or self.lowest is None:
            return None
        return [str(self.lowest + i) for i in range(self.num_options)]

    def _name_of(self, index: int) -> str:
        places = np.unravel_index(index, self.shape) if self.shape else ()
        return ",".join(str(int(place)) for place in places)

    def _ranges(self, draws: Any, means: Any) -> list[tuple[float, float]]:
        """From where to where each slider goes: a little further than draws from the prior, and the codes of rows, are."""
        if self.kind != REALS:
            return [(-1.0 if self.kind == SPHERE else 0.0, 1.0)] * draws.shape[1]
        allowed = _limits(self._support)
        low, high = np.quantile(draws, [0.01, 0.99], axis=0)
        if means is not None and len(means):
            ends = np.quantile(means, [0.01, 0.99], axis=0)
            low, high = np.minimum(low, ends[0]), np.maximum(high, ends[1])
        width = np.where(high > low, high - low, 1.0)
        low, high = np.maximum(low - 0.3 * width, allowed[0]), np.minimum(high + 0.3 * width, allowed[1])
        return list(zip(low.tolist(), high.tolist()))


def _kind(fn: Any, draws: Tensor) -> tuple[str, int | None, int | None]:
    """The kind of values, and the smallest and largest of whole ones."""
    if can_number(fn) and hasattr(fn, "quantiser"):
        return CODES, 0, int(fn.num_codes) - 1
    support = _base(_support(fn))
    if support is None:
        return REALS, None, None
    if isinstance(support, type(constraints.one_hot)):
        return ONE_HOT, 0, draws.shape[-1] - 1
    if isinstance(support, type(constraints.boolean)):
        return WHOLE, 0, 1
    kind = kind_of(support)
    if kind == "integers":
        bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
        low, high = (None if bound is None else int(torch.as_tensor(bound).max()) for bound in bounds)
        return WHOLE, 0 if low is None else low, high
    return {"points on a sphere": SPHERE, "shares that sum to 1": SHARES}.get(kind, REALS), None, None


def _support(fn: Any) -> Any:
    """The support of a distribution, or None where it has none."""
    try:
        return of_components(fn.support)
    except (NotImplementedError, AttributeError):
        return None


def _base(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _limits(support: Any) -> tuple[float, float]:
    """The smallest and the largest number that a support allows, or two next to them where it is open."""
    found, support = [-math.inf, math.inf], _base(support)
    for i, (name, sign) in enumerate((("lower_bound", 1.0), ("upper_bound", -1.0))):
        if (bound := getattr(support, name, None)) is not None:
            bounds = torch.as_tensor(bound, dtype=torch.float64)
            end = bounds.min() if sign > 0 else bounds.max()
            inside = bool(torch.as_tensor(support.check(end.to(torch.float32))).any())
            found[i] = float(end) if inside else float(end + sign * 1e-4 * (1 + end.abs()))
    return found[0], found[1]


def _of_groups(change: Callable[..., Tensor], value: Tensor, moved: int | None, name: str) -> Tensor:
    """What belongs together is the last dimension; what was moved changes its own group alone."""
    width = value.shape[-1]
    group, place = (None, None) if moved is None else divmod(moved, width)
    groups = [change(one, place if i == group else None, name) for i, one in enumerate(value.reshape(-1, 1, width))]
    return torch.cat(groups).reshape(value.shape)


def _on_sphere(value: Tensor, moved: int | None, name: str) -> Tensor:
    """A point of length 1 in the same direction, or with the element that was moved where it is, as far as that can be."""
    if moved is not None:
        here = float(value[0, moved].clamp(-1, 1))
        others = value.clone()
        others[0, moved] = 0
        if not float(others.norm()):
            others[0, (moved + 1) % value.shape[1]] = 1.0
        value = others / others.norm() * math.sqrt(max(0.0, 1 - here**2))
        value[0, moved] = here
    if not float(value.norm()):
        raise DataError(f"{name} is a point on a sphere, and all of its numbers are 0: give one that is not.")
    return value / value.norm()


def _as_shares(value: Tensor, moved: int | None, name: str) -> Tensor:
    """Shares that sum to 1 in the same proportions, or with the one that was moved where it is."""
    if bool((value < 0).any()):
        raise DataError(f"{name} has shares, which are 0 or more, got {float(value.min()):g}.")
    if moved is not None:
        here = float(value[0, moved].clamp(0, 1))
        others = value.clone()
        others[0, moved] = 0
        if not float(others.sum()):
            others += 1.0
            others[0, moved] = 0
        value = others / others.sum() * (1 - here)
        value[0, moved] = here
    if not float(value.sum()):
        raise DataError(f"{name} has shares that sum to 1, and all of its numbers are 0: give one that is not.")
    value = (value / value.sum()).clamp_min(LEAST_SHARE)
    return value / value.sum()


def _short(value: float) -> float:
    return float(f"{value:.4g}")
