"""A pair is a model p(x, z) and its guide q(z | x): two Pyro programs with the same arguments, run together on a batch.

Nothing in this module knows a particular graphical model. Whatever is known about a pair was found out by running it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pyro import poutine
from pyro.poutine.messenger import _bound_partial
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrovae._html import table
from pyrovae._weighing import Enumerated, weighed_by
from pyrovae.errors import PairError
from pyrovae.pair.common import commonly
from pyrovae.pair.handlers import DATA_PLATE, PARTICLE_PLATE, Enumerate, Replay, SetValues, with_particles
from pyrovae.pair.turns import turn


class PairLike(Protocol):
    """Any object with a callable `model` and a callable `guide`: a `Pair`, or a module with two methods of these names."""

    @property
    def model(self) -> Callable[..., Any]: ...

    @property
    def guide(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class Pair:
    """A model p(x, z) and a guide q(z | x) that were written separately, as one pair.

    Every function of pyrovae takes a pair, which may be any object with a callable `model` and a callable `guide`: most
    often it is a module with two methods of these names, as in `pv.VAE`. `Pair` is for separate functions, modules and Pyro's
    AutoGuides.

    The weights that are trained are those of the modules that the two functions are, or whose methods they are, also inside
    of handlers (`poutine.scale`), decorators and `functools.partial` objects; and those that a function registers with
    `pyro.module` or `pyro.param`. Device, evaluation mode (batch normalisation, dropout) and buffers are handled for all
    modules that the functions reach, by closures and globals, too.

    Arguments that may be missing in some rows have the default None. Where their number depends on how an object was made, its
    methods may take them by `**known`, and its attribute `optional_arguments` names them, as in `pv.LabelsVAE`.

    Args:
        model: Pyro program of p(x, z). A batch is passed by keyword, `model(x=x, ...)`; the first dimension of every
            argument is the rows, and `pyro.plate("data", len(x))` declares them independent.
        guide: Pyro program of q(z | x), with the same arguments. It draws the latent sites of the model by name.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> encoder = torch.nn.Linear(3, 2)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.module("encoder", encoder)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))
        >>> print(pv.check_pair(pv.Pair(model, guide), torch.zeros(5, 3)))
        z  latent     per row  event (2,)
        x  observed   per row  event (3,) <- x
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]

    def _repr_html_(self) -> str:
        sides = [(side, getattr(self, side)) for side in ("model", "guide")]
        rows = [(side, getattr(f, "__qualname__", type(f).__name__), signature_of(f)) for side, f in sides]
        return table("Pair", ("side", "function", "arguments"), rows)


def signature_of(function: Any) -> inspect.Signature:
    """The signature of a model or guide, in which `**arguments` are those that its object names.

    How many arguments a pair has may depend on how it was made, as in `LabelsVAE`: then its model and guide take them by
    `**known`, and the attribute `optional_arguments` of the pair has their names. Each of them may be missing.
    """
    # nn.Module.__call__ takes (*args, **kwargs), so a module's argument names are those of its `forward`.
    while isinstance(function, _bound_partial):  # a handler of Pyro
        function = function.func.args[1]
    found = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    last = next((p for p in found.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    while isinstance(function, partial):
        function = function.func
    names = getattr(getattr(function, "__self__", function), "optional_arguments", ())
    if last is None or not names:
        return found
    free = [name for name in names if name not in found.parameters]
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in free]
    return found.replace(parameters=[*(p for p in found.parameters.values() if p is not last), *named])


def arguments(pair: PairLike) -> dict[str, inspect.Parameter]:
    """The named arguments of the model, in order.

    Raises:
        PairError: `model` or `guide` is missing, their arguments differ, or the model takes none. A guide with `**kwargs`
            may leave arguments out.
    """
    if isinstance(pair, type):
        raise PairError(f"A pair is an object, and {pair.__name__} is a class: make one of it, {pair.__name__}(...).")
    for side in ("model", "guide"):
        if not callable(getattr(pair, side, None)):
            if hasattr(pair, "pair"):  # a fit
                raise PairError("This is asked of a pair, and got its fit: give its pair, fitted.pair.")
            raise PairError(
                f"A pair needs a callable `{side}`, and {type(pair).__name__} has none. "
                "Write `model` and `guide` as methods of one class, or pass two functions: pv.Pair(model, guide)."
            )
    named = {
        side: {
            name: p
            for name, p in signature_of(getattr(pair, side)).parameters.items()
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        for side in ("model", "guide")
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature_of(pair.guide).parameters.values())
    if not open_ended and list(named["model"]) != list(named["guide"]):
        differing = sorted(set(named["model"]) ^ set(named["guide"])) or list(named["guide"])
        raise PairError(
            f"Model and guide must take the same arguments: model({', '.join(named['model'])}), "
            f"guide({', '.join(named['guide'])}); they differ in {', '.join(map(repr, differing))}."
        )
    if not named["model"]:
        raise PairError(
            "The model takes no argument: make the data its argument, model(x), so that it can be run on batches."
        )
    return named["model"]


def run(
    pair: PairLike,
    batch: Mapping[str, Tensor],
    *,
    num_particles: int = 1,
    plate_nesting: int = 0,
    enumerate: bool = False,
) -> tuple[Any, Any]:
    """Trace the guide, and then the model at the values that the guide has drawn.

    Args:
        pair: Model and guide.
        batch: The arguments of both.
        num_particles: K. For K > 1 everything is drawn K times, along a plate to the left of the pair's own plates.
        plate_nesting: How many dimensions the pair's plates take up; needed for particles and for enumeration.
        enumerate: Give the sites marked `infer={"enumerate": "parallel"}` all of their values, each along a dimension to the
            left of plates and particles. Otherwise they are drawn like any other site.

    Returns:
        The model's trace and the guide's trace. Log-densities have not been computed.
    """
    guide = with_particles(pair.guide, num_particles, plate_nesting)
    model = with_particles(pair.model, num_particles, plate_nesting)
    summed = Enumerate(-plate_nesting - 1 - (num_particles > 1)) if enumerate else None
    values = summed.values if summed else Enumerated()
    with turn(), weighed_by(values), unwritten(batch, "guide"):
        guide_trace = poutine.trace(commonly(summed(guide) if summed else guide)).get_trace(**batch)
    # Replay is applied first, so that a site which already has its values from the guide is not enumerated again.
    model = Replay(guide_trace)(model)
    with turn(), weighed_by(values), unwritten(batch, "model"):
        return poutine.trace(commonly(summed(model) if summed else model)).get_trace(**batch), guide_trace


@contextmanager
def unwritten(batch: Mapping[str, Tensor], who: str, *, by_value: bool = False) -> Iterator[None]:
    """Raise PairError if what runs inside writes into a tensor of the batch, which others read afterwards.

    torch counts such writes, except through `.data` or NumPy; `by_value` compares the values with a copy instead. Errors of a
    program keep their own words: the table of all shapes that Pyro adds to them hides what they say.
    """
    before = {name: value.clone() if by_value else _version(value) for name, value in batch.items()}
    try:
        yield
    except (ValueError, RuntimeError) as error:
        plain: BaseException = error
        while "\nTrace Shapes:" in str(plain) and plain.__cause__ is not None:
            plain = plain.__cause__
        if plain is error:
            raise
        raise plain from None
    for name, was in before.items():
        now = batch[name]
        same = same_values(was, now) if isinstance(was, Tensor) else was == _version(now)
        if not same:
            raise PairError(
                f"The {who} writes into its argument {name!r}, and would change the data for all that read them afterwards. "
                f"Work on a copy, such as {name}.clone() or {name}.nan_to_num(0.0), and set no inplace=True on a layer that "
                "takes the data."
            )


def unwritten_value(name: str, node: Any) -> AbstractContextManager[None]:
    """Raise PairError if a likelihood, whose log-density is computed inside, writes into the data of its site."""
    observed = node["is_observed"] and isinstance(node["value"], Tensor)
    return unwritten({"value": node["value"]} if observed else {}, f"likelihood of site {name!r}")


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one shape and the same numbers, NaN at the same places included."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _version(tensor: Tensor) -> int:
    """How often a tensor has been written into; torch does not count it for tensors made in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def plate_nesting(*sides: Mapping[str, Any]) -> int:
    """How many dimensions the vectorised plates of these sample sites take up, without that of the particles."""
    frames = [f for sites in sides for node in sites.values() for f in node["cond_indep_stack"]]
    return max((-f.dim for f in frames if f.vectorized and f.name != PARTICLE_PLATE), default=0)


def is_marked(node: Any) -> bool:
    """Whether a site is marked for enumeration. The mark of an observed site means nothing."""
    return node["infer"].get("enumerate") is not None and not node["is_observed"]


def sample_sites(trace: Any) -> dict[str, Any]:
    """The random variables of a trace by name, without the indices that plates subsample and `pyro.deterministic` sites."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node) and not node["infer"].get("_deterministic")
    }


def sites_by_side(traces: tuple[Any, Any]) -> dict[tuple[str, str], Any]:
    """The random variables of a run by side, "model" or "guide", and name; those of the model first."""
    return {
        (side, n): node for side, trace in zip(("model", "guide"), traces) for n, node in sample_sites(trace).items()
    }


def at_values(pair: PairLike, values: Mapping[str, Tensor]) -> Pair:
    """The pair whose sites have these values instead of being drawn. They stay latent."""
    return Pair(SetValues(values)(pair.model), SetValues(values)(pair.guide))


def is_local(node: Any) -> bool:
    """Whether a site is inside the plate "data", and so has one value for each row."""
    return any(f.name == DATA_PLATE for f in node["cond_indep_stack"])


def distribution_name(fn: Any) -> str:
    """The class of a distribution, looking through `to_event`, `expand` and `mask`."""
    while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__
