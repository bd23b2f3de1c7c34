"""Effect handlers for any model or guide: they know plates and sites, but no particular graphical model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import Delta, TorchDistribution
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrovae._weighing import Enumerated
from pyrovae.errors import PairError

DATA_PLATE = "data"
PARTICLE_PLATE = "particles of pyrovae"  # no name that a program may have for a plate of its own
MOST_DIMS = 60  # torch's reductions work on tensors of at most 64 dimensions


def with_particles(function: Callable[..., Any], num_particles: int, plate_nesting: int) -> Callable[..., Any]:
    """`function` run for K particles at once, in a plate to the left of its own plates; unchanged for K = 1."""
    if num_particles == 1:
        return function
    wrapped: Callable[..., Any] = pyro.plate(PARTICLE_PLATE, num_particles, dim=-plate_nesting - 1)(function)
    return wrapped


class Uncondition(Messenger):  # type: ignore[misc]  # Pyro has no types
    """Draw the observed sites of a model, except those that observe one of the tensors in `keep`.

    With this, `generate` samples from the same model that was fitted: what the caller gives stays observed, and all else is
    drawn. Sites marked `objective_only` are no part of the model, and stay as they are.
    """

    def __init__(self, keep: Iterable[Tensor]) -> None:
        super().__init__()
        self.keep = tuple(keep)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not msg["infer"].get("objective_only") and not self._given(msg["value"]):
            msg["is_observed"] = False
            msg["value"] = None

    def _given(self, value: Any) -> bool:
        if not isinstance(value, Tensor) or any(same_memory(value, kept) for kept in self.keep):
            return isinstance(value, Tensor)
        # Arguments that were not given are filled with NaN, so a value without NaN was computed from given ones only.
        return value.is_floating_point() and not bool(torch.isnan(value).any())


class DrawObserved(Messenger):  # type: ignore[misc]
    """Draw all observed sites of a model anew, but not those marked `objective_only`, which are no part of it."""

    def _pyro_sample(self, msg: Any) -> None:
        kept = msg["infer"].get("objective_only") or msg["infer"].get("_deterministic")
        if msg["is_observed"] and not kept:
            msg["is_observed"] = False
            msg["value"], msg["done"] = None, False


class DetachDraws(Messenger):  # type: ignore[misc]
    """Let no gradient flow into what is drawn. It has to be outside of the trace that records the draws."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        # a value without gradient stays the same object: that of an enumerated site carries a mark of Pyro's
        if not msg["is_observed"] and isinstance(value, Tensor) and value.requires_grad:
            msg["value"] = value.detach()


class FixDraws(Messenger):  # type: ignore[misc]
    """Draw these values of a guide's sites with probability 1, one value for all particles; they are not enumerated."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["fn"] = Delta(self.values[msg["name"]], event_dim=len(msg["fn"].event_shape))
            msg["infer"] = {key: value for key, value in msg["infer"].items() if key != "enumerate"}


class OnlyDistributions(Messenger):  # type: ignore[misc]
    """Raise PairError where a site is given something else than a distribution of Pyro."""

    def _pyro_sample(self, msg: Any) -> None:
        fn, name = msg["fn"], msg["name"]
        if isinstance(fn, Tensor):
            raise PairError(
                f"Site {name!r} needs a distribution, got a tensor of shape {tuple(fn.shape)}: a network alone gives numbers. "
                "Give it a family, as in pv.Conditional(net, pv.families.Normal(3)), or return a distribution from its "
                "`forward`."
            )
        if not hasattr(fn, "log_prob"):
            raise PairError(
                f"Site {name!r} needs a distribution, got {type(fn).__name__}. Return a distribution of pyro.distributions."
            )
        if not callable(fn):
            raise PairError(
                f"Site {name!r} has a {type(fn).__name__} of torch.distributions, without what Pyro needs. Use that of "
                "pyro.distributions, which takes the same arguments."
            )


class Replay(Messenger):  # type: ignore[misc]
    """Run the model at the values that the guide has drawn. Unlike `pyro.poutine.replay`, keep its own `infer` options."""

    def __init__(self, trace: Any) -> None:
        super().__init__()
        self.trace = trace

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.trace and not msg["is_observed"]:
            drawn = self.trace.nodes[msg["name"]]
            msg["done"] = True
            msg["value"] = drawn["value"]
            msg["infer"] = {**drawn["infer"], **msg["infer"]}


class Enumerate(Messenger):  # type: ignore[misc]
    """Give each site marked `infer={"enumerate": "parallel"}` all of its values, along a new dimension of its own.

    The dimensions start at `first_dim` and go to the left, first for the sites of the guide and then for those of the model.
    Each is used once; they are not recycled under `pyro.markov`.

    Raises:
        PairError: A site cannot be enumerated as it is marked, see `check_mark`, or there are too many.
    """

    def __init__(self, first_dim: int) -> None:
        super().__init__()
        self.next_dim = first_dim
        self.values = Enumerated()

    def _pyro_sample(self, msg: Any) -> None:
        name, fn, infer = msg["name"], msg["fn"], msg["infer"]
        if msg["done"] or msg["is_observed"] or infer.get("enumerate") is None:
            return
        check_mark(name, fn, infer)
        dim, self.next_dim = self.next_dim, self.next_dim - 1
        if -dim > MOST_DIMS:
            raise PairError(
                f"Site {name!r} would be enumerated along dimension {dim}, and at most {MOST_DIMS} are possible (dimensions "
                f"are not recycled under pyro.markov): mark fewer sites, or {PYRO_ENUMERATES}."
            )
        support = fn.enumerate_support(expand=False)
        event = tuple(fn.event_shape)
        value = support.reshape(len(support), *(1 for _ in range(-dim - 1)), *event)
        if infer.get("expand"):
            value = value.expand(
                len(support), *(1 for _ in range(-dim - 1 - len(fn.batch_shape))), *fn.batch_shape, *event
            )
        elif hasattr(support, "_pyro_categorical_support"):  # lets Categorical.log_prob do without a gather
            value._pyro_categorical_support = support._pyro_categorical_support
        plates = {f.dim: f.size for f in msg["cond_indep_stack"] if f.vectorized}
        self.values.add(dim, len(support), lambda: fn.log_prob(value), plates)
        msg["infer"] = {**infer, "_enumerate_dim": dim}
        msg["value"], msg["done"] = value, True


PYRO_ENUMERATES = "use pyro.infer.TraceEnum_ELBO with pyro.infer.SVI"


def check_mark(name: str, fn: Any, infer: Mapping[str, Any]) -> None:
    """Raise PairError unless a site's mark asks for parallel enumeration and its distribution has a finite support."""
    kind = infer["enumerate"]
    if kind != "parallel" or infer.get("num_samples") is not None:
        what = f"infer={{'enumerate': {kind!r}}}" + (
            " with num_samples" if infer.get("num_samples") is not None else ""
        )
        raise PairError(
            f"Site {name!r} is marked {what}, but only exact sums are supported: mark it infer={{'enumerate': 'parallel'}} "
            f"and nothing else, remove the mark so that the site is drawn, or {PYRO_ENUMERATES}."
        )
    if not getattr(fn, "has_enumerate_support", False):
        raise PairError(
            f"Site {name!r} is marked infer={{'enumerate': 'parallel'}}, but {fn} has no finite support to sum over: "
            "remove the mark so that the site is drawn, or use Categorical, OneHotCategorical, Bernoulli or Binomial."
        )


class Keep(Messenger):  # type: ignore[misc]
    """Remember the values of these sites from the first run. Later runs, which may use detached values, are not recorded."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = frozenset(names)
        self.values: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            self.values.setdefault(msg["name"], msg["value"])


def settled(function: Callable[..., Any], values: Mapping[str, Tensor], counted: Iterable[str]) -> Callable[..., Any]:
    """Fix the sites in `values`, and hide the sites in `counted`, whose log-densities another group of rows has contributed."""
    inside: Callable[..., Any] = SetValues(values)(function)
    hidden: Callable[..., Any] = pyro.poutine.block(inside, hide=list(counted))
    return hidden


class SetValues(Messenger):  # type: ignore[misc]
    """Give sites these values instead of drawing them. Unlike with `pyro.condition`, they stay latent."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["done"] = True
            msg["value"] = self.values[msg["name"]]


class SetRows(SetValues):
    """`SetValues` of values as questions return them, `(N, *plates, *event)`, whatever dimensions plates have in a program.

    Sites outside of the plate "data" have them as they are.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            frames = [f for f in msg["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE]
            msg["done"] = True
            msg["value"] = _in_a_run(self.values[msg["name"]], frames, len(msg["fn"].event_shape))


def _in_a_run(value: Tensor, frames: list[Any], event_dim: int) -> Tensor:
    """Values `(N, *plates, *event)`, plates from left to right, with each plate in its own dimension."""
    batch = value.dim() - event_dim
    if batch != len(frames) or not any(f.name == DATA_PLATE for f in frames):
        return value
    ordered = sorted(frames, key=lambda f: (f.name != DATA_PLATE, int(f.dim)))
    places = sorted(range(batch), key=lambda i: int(ordered[i].dim))
    moved = value.permute(*places, *range(batch, value.dim()))
    sizes = [1] * -min(int(f.dim) for f in frames)
    for place, size in zip(places, moved.shape):
        sizes[int(ordered[place].dim)] = size
    return moved.reshape(*sizes, *moved.shape[batch:])


class AllDrawn(Exception):
    """Ends a run, see `Until`."""


class Until(Messenger):  # type: ignore[misc]
    """End a run by `AllDrawn` once all of these sites have values: what follows is not needed, and may cost the most."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def __enter__(self) -> Any:
        self.missing = set(self.names)
        return super().__enter__()

    def _pyro_post_sample(self, msg: Any) -> None:
        self.missing.discard(msg["name"])
        if not self.missing:
            raise AllDrawn


class PutDraws(SetValues):
    """Put these values in the place of a guide's draws, with density 1, so that the log-weights of a run are log p alone."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["name"] in self.values:
            msg["fn"] = Delta(msg["value"], event_dim=len(msg["fn"].event_shape))


class AnyOf(Messenger):  # type: ignore[misc]
    """Give an enumerated site these values, `(C, *event)`, each with density 1, whatever its distribution depends on."""

    def __init__(self, site: str, values: Tensor) -> None:
        super().__init__()
        self.site, self.values = site, values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            msg["fn"] = _Listed(self.values, len(msg["fn"].event_shape))


class _Listed(TorchDistribution):  # type: ignore[misc]
    """Values, `(C, *event)`, with density 1 each, to be enumerated."""

    has_enumerate_support = True
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, values: Tensor, event_dim: int, batch_shape: tuple[int, ...] = ()) -> None:
        super().__init__(torch.Size(batch_shape), values.shape[values.dim() - event_dim :], validate_args=False)
        self.values = values

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> _Listed:
        return _Listed(self.values, len(self.event_shape), tuple(batch_shape))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self.values

    def log_prob(self, value: Tensor) -> Tensor:
        dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
        return torch.zeros(value.shape[: value.dim() - len(self.event_shape)], dtype=dtype, device=value.device)


class MakeParamsOn(Messenger):  # type: ignore[misc]
    """Put every new `pyro.param` on this device, whatever device its initial value is computed on.

    A plain function that contains `pyro.param("w", lambda: torch.randn(2))` cannot know on which device it will be fitted.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def _pyro_param(self, msg: Any) -> None:
        name, *initial = msg["args"]
        if not initial or isinstance(initial[0], torch.nn.Parameter):  # it exists already, or belongs to a module
            return

        def moved() -> Tensor:
            value: Tensor = initial[0]() if callable(initial[0]) else initial[0]
            return value.to(self.device)

        msg["args"] = (name, moved)


def same_memory(a: Any, b: Any) -> bool:
    """Whether `b` is `a` itself or a reshaped view of it."""
    if a is b or not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return a is b
    here, there = ((t.numel(), t.storage_offset(), t.untyped_storage().data_ptr()) for t in (a, b))
    return here == there


@contextmanager
def no_nameless_draws(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Raise PairError where a `PyroSample` is read while its module is not called: Pyro then draws it without a sample site.

    The draw would be in no density and in no guide, and another one each time that it is read.
    """
    found = {id(part): part for module in modules for part in module.modules() if isinstance(part, PyroModule)}
    before = [(part, dict(part._pyro_samples)) for part in found.values() if part._pyro_samples]

    def named(name: str, prior: Any) -> Callable[[PyroModule], Any]:
        def read(part: PyroModule) -> Any:
            if not part._pyro_context.active:
                raise PairError(
                    f"PyroSample {name!r} of {type(part).__name__} is read outside of a call of the module, where Pyro "
                    f"draws it without a sample site. Write pyro.sample({name!r}, ...) there; or make what reads it the "
                    "`forward` of the PyroModule, and call that: pv.Pair(module, guide)."
                )
            return prior if hasattr(prior, "sample") else prior(part)

        return read

    try:
        for part, priors in before:
            part._pyro_samples.update({name: named(name, prior) for name, prior in priors.items()})
        yield
    finally:
        for part, priors in before:
            part._pyro_samples.update(priors)
