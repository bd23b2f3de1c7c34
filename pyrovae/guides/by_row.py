"""What guides have in common that know each training row by its number: `ByRow`, the sites of a row as one vector."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from pyrovae._arguments import as_count, as_mapping, as_names
from pyrovae.errors import DataError, OptionError, PairError, counted
from pyrovae.objectives.wake_sleep import RWS, WakeSleep
from pyrovae.pair.batch import Batch, as_batch, check_names, group_rows, num_rows, take_group
from pyrovae.pair.handlers import DATA_PLATE, AllDrawn, Until
from pyrovae.pair.parameters import dtype_of, evaluating, fork_rng, modules
from pyrovae.pair.program import Pair, PairLike, is_local, sample_sites, signature_of
from pyrovae.pair.supports import of_components
from pyrovae.weights.choose import read_by

INDEX = "index"  # the argument that numbers the rows
PRIOR_DRAWS = 16  # of each row, from which tables start
AT_ONCE = 1024  # rows whose prior is drawn together

Place = Callable[[str, Any, int], Any]  # name, distribution and dimension of rows of a site -> what the guide draws


class ByRow(nn.Module):
    """A model with a guide that knows each training row by its number, the argument `index`.

    The continuous latent sites of a row are one vector u of d real numbers, in the order of `sites`; discrete ones are summed
    out. A row without a number gets the prior.

    Args:
        pair: The pair whose model it is.
        num_rows: The number N of rows.
        sites: The shape of each site without constraints, by name.
        summed: Names of discrete sites.
    """

    def __init__(
        self, pair: PairLike, num_rows: int, sites: Mapping[str, Sequence[int]], summed: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.pair, self.num_rows = as_pair(pair), as_count("num_rows", num_rows)
        self.sites = {name: tuple(shape) for name, shape in as_mapping("sites", sites, "shapes by site").items()}
        if not self.sites:
            raise OptionError("sites must name at least one latent site of a row, with its shape: {'z': (2,)}.")
        self.summed = as_names("summed", summed) or ()
        if INDEX in signature_of(pair.model).parameters:
            raise OptionError(
                f"The model has an argument {INDEX!r} already, by which a guide by row would number the rows: rename it."
            )
        self._held = nn.ModuleList() if isinstance(pair, nn.Module) else nn.ModuleList(modules(pair).values())
        idle = read_by(pair.guide) - read_by(pair.model)
        for parameter in self.parameters():
            if id(parameter) in idle:
                parameter.requires_grad_(False)

    @property
    def size(self) -> int:
        """d, the number of coordinates of a row."""
        return sum(math.prod(shape) for shape in self.sites.values())

    @property
    def model(self) -> Callable[..., Any]:
        return _Side(self, "model")

    @property
    def guide(self) -> Callable[..., Any]:
        return _Side(self, "guide")

    def name_columns(self, names: dict[str, list[str]]) -> None:
        """Keep the names of the columns of the training rows, by argument, which `pv.fit` looks at."""
        self.column_names: Any = names

    def indexed(self, data: Any) -> Batch:
        """The training rows with their numbers: what `pv.fit` takes.

        Args:
            data: All N rows, in the order in which the guide knows them.

        Raises:
            DataError: There are more or fewer rows, or other columns than those of the rows that the guide was made from.
        """
        check_names(self, data)
        batch = as_batch(self.pair, data)
        if num_rows(batch) != self.num_rows:
            raise DataError(
                f"The guide knows {counted(self.num_rows, 'row')}, got {num_rows(batch)}: give all rows, in their order."
            )
        return {**batch, INDEX: torch.arange(self.num_rows)}

    def _model(self, batch: Mapping[str, Tensor]) -> Any:
        return self._marked()(**{name: value for name, value in batch.items() if name != INDEX})

    def _guide(self, batch: Mapping[str, Tensor]) -> None:
        rows = {name: value for name, value in batch.items() if name != INDEX}
        index = batch.get(INDEX)
        if isinstance(index, Tensor):
            self._draw(rows, self._place(self._numbers(index), rows))
            return
        if self.training and torch.is_grad_enabled():
            raise PairError(
                "The guide knows training rows by their numbers, and here are rows without: fit it to pair.indexed(data), "
                "and give rows without numbers to questions only."
            )
        self._draw(rows, None)

    def _numbers(self, index: Tensor) -> Tensor:
        """The numbers of rows, as what tensors are indexed by; a negative one is out of range, and not counted from the end."""
        if index.dim() != 1 or index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
            raise DataError(
                f"{INDEX!r} must hold the number of each row, whole numbers from 0 to {self.num_rows - 1} of shape (N,), got "
                f"{index.dtype} of shape {tuple(index.shape)}: take pair.indexed(data)."
            )
        index = index.long()
        return index.where(index >= 0, self.num_rows)

    def check_fit(self, rows: Mapping[str, Tensor] | None, loss: Any, num_processes: int) -> None:
        """Refuse a fit that would go wrong unnoticed; `pv.fit` asks each module of a pair that has this method.

        Args:
            rows: The training rows; None where they are not at hand.
            loss: What the fit ascends.
            num_processes: How many processes take its steps together.

        Raises:
            DataError: A number is out of range, or two rows have the same.
            OptionError: The loss has a sleep phase.
        """
        if isinstance(loss, WakeSleep) or (isinstance(loss, RWS) and loss.sleep > 0):
            raise OptionError(
                f"{type(loss).__name__} teaches the guide by rows that the model draws, and a guide by row knows training rows "
                "only: use Trace_ELBO."
            )
        if rows is None or INDEX not in rows:
            return
        numbers = self._numbers(rows[INDEX]).cpu()
        outside = numbers[numbers >= self.num_rows]
        if len(outside):
            raise DataError(
                f"{INDEX!r} must hold numbers from 0 to {self.num_rows - 1}, as the guide knows "
                f"{counted(self.num_rows, 'row')}, and "
                f"{counted(len(outside), 'row has', 'rows have')} others: take pair.indexed(data)."
            )
        found, counts = numbers.unique(return_counts=True)
        if len(found) < len(numbers):
            raise DataError(
                f"{counted(len(numbers) - len(found), 'row has', 'rows have')} the number of another row, as "
                f"{found[counts > 1][0]}, and would share "
                "its posterior: take pair.indexed(data), or make the pair of all rows, repeated ones as well."
            )

    def _place(self, index: Tensor, rows: Mapping[str, Tensor]) -> Place:
        """What the guide draws in the rows of these numbers."""
        raise NotImplementedError

    def _draw(self, rows: Mapping[str, Tensor], place: Place | None) -> None:
        """Run the model as far as its latent sites, and draw these from what `place` returns, or else from their priors."""
        inside = self._marked()
        if place is not None:
            inside = _Placed(self.sites, place)(inside)
        with contextlib.suppress(AllDrawn):
            poutine.block(Until(frozenset(self.sites))(inside), hide_fn=self._is_hidden)(**rows)

    def _is_hidden(self, site: Any) -> bool:
        if site["type"] != "sample" or site_is_subsample(site):
            return False
        return site["is_observed"] or site["name"] not in self.sites

    def _marked(self) -> Callable[..., Any]:
        """The model, its discrete sites marked for enumeration."""
        if not self.summed:
            return self.pair.model
        marks = {name: {"enumerate": "parallel"} for name in self.summed}
        marked: Callable[..., Any] = poutine.infer_config(
            self.pair.model, config_fn=lambda site: marks.get(site["name"], {})
        )
        return marked

    def parts(self, table: Tensor) -> dict[str, Tensor]:
        """Coordinates `(*rows, d)` by site, `(*rows, *shape)`."""
        flat = table.split([math.prod(shape) for shape in self.sites.values()], -1)
        return {
            name: part.reshape(*table.shape[:-1], *shape)
            for (name, shape), part in zip(self.sites.items(), flat, strict=True)
        }

    def prior_draws(self, data: Any, num_draws: int = PRIOR_DRAWS) -> Tensor:
        """Coordinates drawn from the prior, `(num_draws, N, d)`; 0 where a row observes a site."""
        batch = _bound(self.pair, data)
        found = torch.zeros(num_draws, num_rows(batch), self.size, dtype=dtype_of(self.pair))
        with torch.no_grad(), evaluating(self), pyro.validation_enabled(False):
            for group in group_rows(self.pair, batch):
                rows = take_group(batch, group)
                for few, where in zip(_chunks(rows), group.rows.split(AT_ONCE), strict=True):
                    for draw in range(num_draws):
                        found[draw, where] = self._prior_draw(few).to(found)
        return found.nan_to_num(0.0, posinf=30.0, neginf=-30.0)  # of values that were rounded to the end of a support

    def _prior_draw(self, rows: Batch) -> Tensor:
        """Coordinates of some rows, drawn from the prior, `(n, d)`."""
        drawn = sample_sites(poutine.trace(lambda given: self._draw(given, None)).get_trace(rows))
        flat = [
            _free(drawn[name]).reshape(num_rows(rows), -1)
            if name in drawn
            else torch.zeros(num_rows(rows), math.prod(shape))
            for name, shape in self.sites.items()
        ]
        like = next(iter(drawn.values()), None)
        return torch.cat([part if like is None else part.to(like["value"]) for part in flat], 1)


class _Side:
    """The model or the guide of a pair whose guide knows rows by their numbers."""

    def __init__(self, owner: ByRow, side: str) -> None:
        self.owner, self.side = owner, side
        own = signature_of(owner.pair.model)
        given = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        rest = [p for p in own.parameters.values() if p.kind is p.VAR_KEYWORD]
        number = inspect.Parameter(INDEX, inspect.Parameter.KEYWORD_ONLY, default=None)
        self.__signature__ = own.replace(parameters=[*given, number, *rest])

    def __call__(self, *args: Any, **named: Any) -> Any:
        given = self.__signature__.bind(*args, **named).arguments
        for parameter in self.__signature__.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name, {})
        return getattr(self.owner, f"_{self.side}")(given)


class _Placed(Messenger):  # type: ignore[misc]  # Pyro has no types
    """Put other distributions in the place of those that latent sites have in the model."""

    def __init__(self, names: Mapping[str, Any], place: Place) -> None:
        super().__init__()
        self.names, self.place = frozenset(names), place

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and not msg["is_observed"]:
            (dim,) = (frame.dim for frame in msg["cond_indep_stack"] if frame.name == DATA_PLATE)
            msg["fn"] = self.place(msg["name"], msg["fn"], dim)


def at_dim(value: Tensor, dim: int) -> Tensor:
    """Values of rows, `(N, *shape)`, whose rows are to be at this dimension of a batch shape."""
    return value.reshape(len(value), *(1 for _ in range(-dim - 1)), *value.shape[1:])


def normals(loc: Mapping[str, Tensor], scale: Mapping[str, Tensor]) -> Place:
    """Independent Normals of the coordinates, carried to the support of each site; by site, `(N, *shape)`.

    The transform keeps where a draw came from. Computed back from the value, that is wrong near the edge of a support: of a
    share that was rounded to 1, log q would be dozens of nats off.
    """

    def place(name: str, fn: Any, dim: int) -> Any:
        free = dist.Normal(at_dim(loc[name], dim), at_dim(scale[name], dim)).to_event(loc[name].dim() - 1)
        return free if is_real(fn.support) else dist.TransformedDistribution(free, [to_support(fn).with_cache()])

    return place


def to_support(fn: Any) -> Any:
    """The transform that carries real numbers to the support of a distribution."""
    return biject_to(of_components(fn.support))


def is_real(support: Any) -> bool:
    """Whether every value is in a support."""
    support = of_components(support)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector


def _free(node: Any) -> Tensor:
    """The value of a site of a trace without constraints, `(N, *shape)`."""
    fn, value = node["fn"], node["value"]
    (frame,) = node["cond_indep_stack"]
    free = to_support(fn).inv(value).movedim(len(fn.batch_shape) + frame.dim, 0)
    return free.reshape(frame.size, *_shape(node))


def _shape(node: Any) -> tuple[int, ...]:
    """The shape of a row of a site without constraints."""
    fn = node["fn"]
    free = to_support(fn).inverse_shape(fn.batch_shape + fn.event_shape)
    return tuple(free[len(fn.batch_shape) :])


def _bound(pair: PairLike, data: Any) -> Batch:
    """Data bound to the arguments of the model, on the device of its modules."""
    parts = [tensor for module in modules(pair).values() for tensor in module.state_dict().values()]
    device = next((tensor.device for tensor in parts), torch.device("cpu"))
    return {name: value.to(device) for name, value in as_batch(pair, data).items()}


def _chunks(rows: Batch) -> Iterator[Batch]:
    for first in range(0, num_rows(rows), AT_ONCE):
        yield {name: value[first : first + AT_ONCE] for name, value in rows.items()}


@dataclass(frozen=True)
class Sites:
    """The latent sites of a row: the shapes of continuous ones without constraints, and the names of discrete ones."""

    free: dict[str, tuple[int, ...]]
    summed: tuple[str, ...]


def as_pair(pair: Any) -> PairLike:
    """A pair as it is, and a model alone as a pair whose guide plays no part."""
    if callable(getattr(pair, "model", None)):
        return pair
    if not callable(pair):
        cure = ": give its pair, fitted.pair" if hasattr(pair, "pair") else ""
        raise PairError(f"A pair, or a model as a function, is needed, got {type(pair).__name__}{cure}.")
    return Pair(pair, pair)


def sites_of(pair: PairLike, data: Any) -> Sites:
    """The latent sites of rows, found by running the model.

    Raises:
        PairError: A latent site is shared by all rows, is in another plate beside "data", is discrete with too many values to
            sum, stands for missing entries, or has no vector of real numbers.
    """
    batch = _bound(pair, data)
    free: dict[str, tuple[int, ...]] = {}
    summed: dict[str, None] = {}
    with fork_rng(), torch.no_grad(), evaluating(pair), pyro.validation_enabled(False):
        for group in group_rows(pair, batch):
            few = {name: value[:2] for name, value in take_group(batch, group).items()}
            for name, node in sample_sites(poutine.trace(pair.model).get_trace(**few)).items():
                if not node["is_observed"]:
                    _check(name, node)
                    if node["fn"].support.is_discrete:
                        summed[name] = None
                    else:
                        free[name] = _shape(node)
    if not free:
        raise PairError(
            "The model has no continuous latent site of a row, and a guide by row would have nothing to draw."
        )
    return Sites(free, tuple(summed))


def _check(name: str, node: Any) -> None:
    """PairError unless a guide by row can have a site."""
    fn, beside = node["fn"], [frame.name for frame in node["cond_indep_stack"] if frame.name != DATA_PLATE]
    if not is_local(node):
        raise PairError(
            f"All rows share site {name!r}, which no table of rows has a place for: make it a parameter, or fit a pair "
            "with a guide of its own."
        )
    if beside:
        raise PairError(f"Site {name!r} is in the plate {beside[0]!r} beside 'data', where a row has no single value.")
    if node["infer"].get("fills") is not None:
        raise PairError(f"Site {name!r} stands for missing entries, drawn from the likelihood: no guide by row.")
    try:
        discrete = fn.support.is_discrete
        if not discrete:
            to_support(fn)
    except NotImplementedError as error:
        raise PairError(f"No vector of real numbers stands for site {name!r} ({error}).") from error
    if discrete and not fn.has_enumerate_support:
        raise PairError(
            f"Site {name!r} is discrete and has no finite support to sum over: a guide by row cannot draw it."
        )
