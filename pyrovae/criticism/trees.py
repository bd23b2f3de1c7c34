"""Draws of sites as the groups of a DataTree: named dimensions, coordinates, and what ArviZ expects of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from pyrovae._arguments import as_mapping, as_names
from pyrovae._lazily import Lazily
from pyrovae._version import __version__
from pyrovae.errors import OptionError
from pyrovae.pair.handlers import DATA_PLATE, PARTICLE_PLATE

arviz_base, xarray = Lazily("arviz_base"), Lazily("xarray")

GROUPS = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
)
SAMPLE_DIMS = ("chain", "draw")


@dataclass(frozen=True)
class Values:
    """The values of one variable, `(*dims, *event)`; `drawn` says that its first dimension is that of the draws."""

    values: Tensor
    dims: tuple[str, ...]  # of the plates
    drawn: bool = True


Groups = dict[str, dict[str, Values]]


@dataclass(frozen=True)
class Naming:
    """What the caller wants dimensions to be called, and where they have which coordinates."""

    sample_dims: tuple[str, ...] = SAMPLE_DIMS
    dims: Mapping[str, Sequence[str]] = field(default_factory=dict)
    coords: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)  # the names of columns, by variable

    @staticmethod
    def of(
        sample_dims: Sequence[str], dims: Mapping[str, Sequence[str]] | None, coords: Mapping[str, Any] | None
    ) -> Naming:
        """The wishes of a caller. OptionError if the draws are to have any other number of dimensions than one or two."""
        drawn = None if isinstance(sample_dims, str) else as_names("sample_dims", sample_dims)
        if drawn is None or not 1 <= len(drawn) <= 2:
            raise OptionError(
                f'sample_dims must be one name or two, as ["sample"] or ["chain", "draw"], got {sample_dims!r}.'
            )
        by_variable = as_mapping("dims", dims, "names of dimensions by variable")
        return Naming(drawn, by_variable, as_mapping("coords", coords, "coordinates by dimension"))

    def full(self, name: str, found: Values) -> list[str]:
        """The names of all dimensions of a variable; those of its event may be missing at the end."""
        lead = list(self.sample_dims) if found.drawn else []
        own = [str(dim) for dim in self.dims.get(name, ())]
        plates = list(found.dims)
        if own[: len(plates)] == plates:
            own = own[len(plates) :]
        event = found.values.dim() - len(plates) - found.drawn
        if len(own) > event:  # one value for each row, as of a log-density
            own = own[:event]
        if self._names(name, event, found):
            own = own or [f"{name}_dim_0"]
        return [*lead, *plates, *own]

    def _names(self, name: str, event: int, found: Values) -> list[str]:
        """The names of the columns of a variable, if they are those of its rows, and no two are the same."""
        names = list(self.columns.get(name, ()))
        fitting = event == 1 and found.values.shape[-1:] == (len(names),) and len(set(names)) == len(names)
        return names if fitting else []

    def places(self, variables: Mapping[str, Values]) -> dict[str, Any]:
        """The coordinates of dimensions: what the caller says, and names of columns where the caller says nothing."""
        found: dict[str, Any] = {}
        for name, value in variables.items():
            full = self.full(name, value)
            if names := self._names(name, value.values.dim() - len(value.dims) - value.drawn, value):
                found.setdefault(full[-1], names)
                # columns of two variables, of which the caller says that they are the same
                if found[full[-1]] != names:
                    found[full[-1]] = None
        return {dim: names for dim, names in found.items() if names is not None} | dict(self.coords)


def chosen_groups(groups: Sequence[str] | None) -> tuple[str, ...]:
    """The groups that were asked for, None being all of them. OptionError if there is no such group."""
    wanted = as_names("groups", GROUPS if groups is None else groups) or ()
    if unknown := [name for name in wanted if name not in GROUPS]:
        raise OptionError(f"groups must be some of {', '.join(GROUPS)}, got {unknown}.")
    return wanted


def by_plates(value: Tensor, frames: Sequence[Any], event_dim: int) -> tuple[Tensor, tuple[str, ...]]:
    """A site's value as `(N, *plates, *event)`, or `(*plates, *event)` of a global one, and the names of the plates."""
    found = sorted((f for f in frames if f.vectorized and f.name != PARTICLE_PLATE), key=lambda f: int(f.dim))
    batch, event = list(value.shape[: value.dim() - event_dim]), value.shape[value.dim() - event_dim :]
    depth = max([-int(f.dim) for f in found], default=0)
    batch = batch[len(batch) - depth :] if len(batch) > depth else [1] * (depth - len(batch)) + batch
    sizes = {depth + int(f.dim): int(f.size) for f in found}
    full = value.reshape([*batch, *event]).expand([*(sizes.get(i, size) for i, size in enumerate(batch)), *event])
    ordered = sorted(found, key=lambda f: f.name != DATA_PLATE)
    places = [depth + int(f.dim) for f in ordered]
    others = [i for i in range(depth) if i not in places]  # dimensions of size 1, in which there is no plate
    moved = full.permute([*places, *others, *range(depth, full.dim())])
    return moved.reshape([*moved.shape[: len(places)], *event]), tuple(f.name for f in ordered)


def tree(groups: Groups, naming: Naming, attributes: Mapping[str, Any]) -> Any:
    """A DataTree with one Dataset for each group that has a variable."""
    attributes = {"inference_library": "pyrovae", "inference_library_version": __version__, **attributes}
    return xarray.DataTree.from_dict(
        {group: _dataset(variables, naming, attributes) for group, variables in groups.items() if variables}
    )


def _dataset(variables: Mapping[str, Values], naming: Naming, attributes: Mapping[str, Any]) -> Any:
    made = arviz_base.dict_to_dataset(
        {name: _array(found, naming) for name, found in variables.items()},
        dims={name: naming.full(name, found) for name, found in variables.items()},
        coords=naming.places(variables),
        sample_dims=[],  # the dimensions above are all there are
        attrs=attributes,
    )
    # where ArviZ 1 looks for them
    made.attrs["sample_dims"] = [dim for dim in naming.sample_dims if dim in made.dims]
    return made


def _array(found: Values, naming: Naming) -> Any:
    values = np.ascontiguousarray(found.values.detach().cpu().numpy())
    return values[None] if found.drawn and len(naming.sample_dims) == 2 else values
