"""What a mistake in somebody's program means: the line that it is in, and the cure of what torch and Pyro say of it."""

from __future__ import annotations

import math
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.errors import PairError, counted, shortened

MOST_NAMES = 12  # of sites that a message lists
_LIBRARIES = tuple(
    {str(Path(m.__file__).parent) + "/" for m in (torch, pyro) if m.__file__}
    | {str(Path(__file__).parents[1]) + "/"}
    | {sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_OUTSIDE = re.compile(
    r"Expected parameter (\w+) \(.*\) of distribution (\w+)\(.*to satisfy the constraint (\w+)\(.*, but found invalid values",
    re.DOTALL,
)
_POSITIVE = (
    "has to be positive: end the network that makes it in .exp() or torch.nn.functional.softplus(...), "
    "or take a family, such as fam.Normal(2), which does so"
)


def listed(names: Sequence[str]) -> str:
    """Names in brackets, as Python writes a list; of many the first ones and their number."""
    if len(names) <= MOST_NAMES:
        return str(list(names))
    return f"[{', '.join(map(repr, names[: MOST_NAMES // 2]))}, ... {len(names)} in all]"


def observes(name: str, node: Any) -> str:
    """What a guide does that observes something, and what to do instead."""
    if type(node["fn"]).__name__ == "Unit":
        return (
            f"has a factor, {name!r} (pyro.factor), but a guide only draws: what it adds belongs to the density of a site, as "
            "that of a pyro.distributions.TransformedDistribution, or of a distribution of your own."
        )
    return f"observes site {name!r}, but a guide only draws: move obs=... to the model."


def not_one_event(name: str, node: Any) -> None:
    """PairError where a site of rows observes all of them as one event, whose log-density counts once for each row."""
    shape, event_dim = tuple(node["value"].shape), len(node["fn"].event_shape)
    if event_dim == len(shape) and shape[0] > 1:
        raise PairError(
            f"Site {name!r} observes all rows as one event of shape {shape}, and its log-density would count {shape[0]} times, "
            f"once for each row: write .to_event({event_dim - 1}) in place of .to_event({event_dim}), so that it is one row."
        )


def where_it_failed(error: BaseException) -> str:
    """The innermost line that is no library's, as " (model.py, line 12: z = self.net(x))"; nothing if there is none."""
    found = ""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and not found and id(at) not in seen:
        seen.add(id(at))
        for frame, number in traceback.walk_tb(at.__traceback__):
            name = frame.f_code.co_filename
            if not name.startswith((*_LIBRARIES, "<frozen", "<string")) and name != sys.executable:
                here = traceback.FrameSummary(name, number, frame.f_code.co_name)
                code = f": {shortened(here.line, 100)}" if here.line else ""
                found = f" ({Path(name).name}, line {number}{code})"
        at = at.__cause__ or at.__context__
    return found


def in_words(error: BaseException) -> str:
    """The first line of what torch or Pyro says; of a parameter outside of its constraint, which it is and the cure."""
    found = _OUTSIDE.search(str(error))
    if found is None:
        return (str(error).splitlines() or [type(error).__name__])[0]
    name, distribution, constraint = found.groups()
    if constraint == "GreaterThan" and "lower_bound=0.0" in str(error).split("constraint", 1)[1]:
        return f"the {name} of {distribution} {_POSITIVE}"
    return f"the {name} of {distribution} has values that it cannot have ({constraint})"


FAR = 1000.0  # from 0 ± 1, beyond which data explain numbers that are not finite
CHECK_SCALE = "check the scale of the data and the initial weights."


def cure_of_scale(observed: Iterable[Any]) -> str:
    """How far the values that sites observe are from 0 ± 1, and what to do, as the end of a sentence; "" if they are not."""
    values = [v.abs().max().item() for v in observed if isinstance(v, Tensor) and v.is_floating_point() and v.numel()]
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    if largest < FAR:
        return ""
    return (
        f"the data reach {largest:.3g}, and networks expect 0 ± 1. Standardise them: units = pv.data.Standardize.fit(x), and "
        "fit to units.apply(x)."
    )


def unfit_parameters(fn: Any) -> str:
    """Which parameters of a distribution are outside of their constraints, as a sentence; nothing if none is."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    for name, constraint in getattr(fn, "arg_constraints", {}).items():
        value = vars(fn).get(name)  # others are computed from these
        if not isinstance(value, Tensor) or constraints.is_dependent(constraint):
            continue
        inside = constraint.check(value)
        if bool(inside.all()):
            continue
        what = f"{int((~inside).sum())} of {inside.numel()} values of its {name}"
        if bool(torch.isnan(value).any()):
            return f" {what} are NaN: look at what the network makes of the rows, and at the scale of the data."
        lowest = getattr(constraint, "lower_bound", None)
        if lowest == 0 and not hasattr(constraint, "upper_bound"):
            return f" {what} are not positive, and the {name} {_POSITIVE}."
        return f" {what} cannot be that ({constraint})."
    return ""


def cure_of_shapes(error: Exception, rows: int, row: Sequence[int]) -> str:
    """What to do about a site that does not fit its plate, or has the name of another one; empty for any other error.

    Args:
        error: What Pyro raised.
        rows: How many there are.
        row: The shape of one of them.
    """
    found = re.match(r"Shape mismatch inside plate\('data'\) at site .* dim -\d+, (\d+) vs (\d+)", str(error))
    if found and int(found[1]) != rows == int(found[2]):
        return f". The batch has {counted(rows, 'row')}: write `pyro.plate('data', len(x))`, where x is an argument."
    if found and rows == 1 and len(row) > 1:
        return f". There is one row here, of shape {tuple(row)}: the first dimension of the data is that of the rows."
    if twice := re.match(r"Multiple sample sites named '(.*)'", str(error)):
        if twice[1] == "data":
            once = "rows = pyro.plate('data', len(x))"
            return f". Enter the plate once, or make it once, {once}, and enter that twice, `with rows:`."
        return ". Each site of a program needs a name of its own."
    if str(error).startswith("Shape mismatch inside plate"):
        return "; use .to_event(n) to declare that the dimensions of one row belong to one event"
    return ""


def cure_of_weights(error: Exception, dtypes: set[torch.dtype]) -> str:
    """What to do about an error of two dtypes where the weights have several; empty for any other error."""
    several = sorted(str(dtype)[6:] for dtype in dtypes if dtype.is_floating_point)
    if len(several) < 2 or "dtype" not in str(error):
        return ""
    return f". The weights are {' and '.join(several)}: make them one, as by pair.float() or pair.double()."


def other_forms(batch: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], str]]:
    """The batch with one argument in another form, as numbers or as a column, as classes or one-hot, and the words for it."""
    for name, value in batch.items():
        if value.shape[1:] == (1,):
            yield {**batch, name: value.squeeze(1)}, f"{name}.squeeze(1), of shape (N,), takes the place of {name}"
        elif value.dim() == 1:
            yield (
                {**batch, name: value.unsqueeze(1)},
                f"{name}.unsqueeze(1), of shape (N, 1), takes the place of {name}",
            )
        elif value.dim() == 2 and bool(((value == 0) | (value == 1)).all() and (value.sum(1) == 1).all()):
            classes = f"{name}.argmax(1), the numbers of the classes, takes the place of {name}, which is one-hot"
            yield {**batch, name: value.to(torch.uint8).argmax(1)}, classes


def cure_by_trying(batch: Mapping[str, Tensor], run: Callable[[dict[str, Tensor]], Any]) -> str:
    """The argument with which the pair runs once it has another form, as a sentence; nothing if there is none."""
    for other, words in other_forms(batch):
        try:
            run(other)
        except Exception:  # whatever else is wrong with it
            continue
        return f" The pair runs if {words}."
    return ""


def cure_of_gaps(names: Sequence[str]) -> str:
    """What to do about NaN in these arguments, as sentences."""
    them = " and ".join(map(repr, names))
    return (
        f"If the model observes {them}, missing entries can be left out of the density, which takes both: "
        "likelihood=pv.observed_only(likelihood), and an encoder that takes NaN (pv.nets.WithMask around its network). "
        "Otherwise fill them in, or drop these rows."
    )
