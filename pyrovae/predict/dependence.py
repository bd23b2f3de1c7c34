"""Which sites of a model depend on which others, and what connects those that are known with those that are asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pyro import poutine
from torch import Tensor

from pyrovae.fitted.fitted import Fit
from pyrovae.pair.batch import Batch, num_rows
from pyrovae.pair.graph import parents
from pyrovae.pair.handlers import SetRows, SetValues
from pyrovae.pair.layout import union
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import sample_sites


def site_parents(fitted: Fit, rows: Batch, held: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """For each site of the model what it depends on, with these values held; nothing if the model does not run."""
    local = {s.name for s in union(fitted.layouts).sites if s.local}
    values = {name: value[: num_rows(rows)] if name in local else value for name, value in held.items()}
    with fork_rng():
        try:  # values are drawn first, since not every sampler takes tensors whose origin is tracked
            nodes = sample_sites(poutine.trace(SetRows(values)(fitted.pair.model)).get_trace(**rows))
            values |= {name: node["value"] for name, node in nodes.items() if not node["is_observed"]}
            return parents(SetValues(values)(fitted.pair.model), rows)
        except (
            RuntimeError,
            ValueError,
            TypeError,
            AttributeError,
            IndexError,
        ):  # about which the run that follows will complain
            return {}


def common_sites(
    above: Mapping[str, Collection[str]], wanted: Collection[str], observed: Collection[str], fixed: Collection[str]
) -> set[str]:
    """The sites that are not fixed on which both something wanted and something observed depends: these connect the two."""
    mine = reached(above, wanted, {*fixed, *observed}) | (set(wanted) - set(fixed))
    return mine & reached(above, observed, {*fixed, *observed})


def reached(above: Mapping[str, Collection[str]], starts: Collection[str], fixed: Collection[str]) -> set[str]:
    """The sites on which some of these depend, by ways that no fixed site is on."""
    found: set[str] = set()
    stack = [parent for name in starts for parent in above.get(name, ())]
    while stack:
        name = stack.pop()
        if name in above and name not in found and name not in fixed:
            found.add(name)
            stack.extend(above[name])
    return found
