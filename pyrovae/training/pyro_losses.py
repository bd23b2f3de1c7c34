"""Pyro's own losses: which of them says the same as one of ours, and a step or a check of a program by them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import pyro.infer
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrovae.objectives.losses import Trace_ELBO, modules_of
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import Pair, is_marked, run, sample_sites

# Losses that this package computes itself, and the class that takes Pyro's own steps in their place: what Pyro's JIT traces is
# no program of Python any more, and would not be checked.
PLAIN = {
    pyro.infer.Trace_ELBO: pyro.infer.Trace_ELBO,
    pyro.infer.JitTrace_ELBO: pyro.infer.Trace_ELBO,
    pyro.infer.TraceMeanField_ELBO: pyro.infer.TraceMeanField_ELBO,
    pyro.infer.JitTraceMeanField_ELBO: pyro.infer.TraceMeanField_ELBO,
    pyro.infer.TraceEnum_ELBO: pyro.infer.TraceEnum_ELBO,
    pyro.infer.JitTraceEnum_ELBO: pyro.infer.TraceEnum_ELBO,
}


def pyro_loss(loss: Any) -> Any:
    """Pyro's own loss that has the value and, but for a baseline, the gradient of a loss; None where Pyro has none."""
    if isinstance(loss, pyro.infer.ELBO):
        plain = PLAIN.get(type(loss), type(loss))
        if plain is type(loss):
            return loss
        made = plain()
        vars(made).update({name: value for name, value in vars(loss).items() if name in vars(made)})
        return made
    if type(loss) is Trace_ELBO and loss.kl is None and loss.gradient == "standard" and not modules_of(loss):
        return pyro.infer.Trace_ELBO(loss.num_particles, vectorize_particles=loss.num_particles > 1)
    return None


class Marks:
    """What a program asks for that this package does in another way than a loss of Pyro's, found in the traces of one run.

    Pyro counts sites marked `objective_only` like all others, and only its `TraceEnum_ELBO` honours marks for enumeration. Its
    other losses do not let a score meet the sites that only the guide has, so that their gradient is biased.
    """

    def __init__(self) -> None:
        self.enumerated = self.objective_only = self.biased = False

    def note(self, model_trace: Any, guide_trace: Any) -> tuple[Any, Any]:
        model, guide = sample_sites(model_trace), sample_sites(guide_trace)
        for node in (*model.values(), *guide.values()):
            self.enumerated |= is_marked(node)
            self.objective_only |= bool(node["infer"].get("objective_only"))
        self.biased |= not guide.keys() <= model.keys() and any(not node["fn"].has_rsample for node in guide.values())
        return model_trace, guide_trace

    def own(self, loss: Any) -> bool:
        """Whether the loss of this package says something else than Pyro's `loss`."""
        enumerates = isinstance(loss, pyro.infer.TraceEnum_ELBO)
        return self.objective_only or (not enumerates and (self.enumerated or self.biased))


def _noting(loss: Any, marks: Marks) -> Any:
    """A loss of Pyro's that notes the marks of the programs that it runs."""
    made = copy.copy(loss)
    made._get_trace = lambda *run: marks.note(*type(loss)._get_trace(made, *run))
    return made


class Taken(NamedTuple):
    """What one run under a loss of Pyro's gives: the loss, the parameters it used by name, and the marks it met."""

    loss: Any
    leaves: dict[str, Tensor]
    marks: Marks


def take(loss: Any, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any) -> Taken:
    """Pyro's own `loss_and_grads`, with all of its checks; the gradients are left in the parameters' `grad`."""
    marks = Marks()
    noting = _noting(loss, marks)
    with poutine.trace(param_only=True) as captured:
        value = noting.loss_and_grads(model, guide, *args, **kwargs)
    loss.max_plate_nesting = noting.max_plate_nesting  # where it had to be found
    return Taken(value, leaves_of(captured.trace), marks)


def evaluate(
    loss: Any, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[Any, Marks]:
    """Pyro's own loss, with all of its checks, and the marks that it met."""
    marks = Marks()
    noting = _noting(loss, marks)
    value = noting.loss(model, guide, *args, **kwargs)
    loss.max_plate_nesting = noting.max_plate_nesting
    return value, marks


def validate(loss: Any, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Run Pyro's checks of a program, where Pyro's validation is on: errors and warnings as `pyro.infer.SVI` has them.

    `loss` is a loss of Pyro's. None stands for one without a counterpart: only the program's structure is checked then. The
    random state is restored.
    """
    if not is_validation_enabled():
        return
    with ExitStack() as stack:
        for context in (fork_rng(), torch.no_grad(), poutine.block()):
            stack.enter_context(context)
        if loss is not None:
            once = copy.copy(loss)
            if not once.vectorize_particles:
                once.num_particles = 1
            once.loss(model, guide, *args, **kwargs)
            return
        with fork_rng():
            traces = run(Pair(functools.partial(model, *args, **kwargs), functools.partial(guide, *args, **kwargs)), {})
        marks = Marks()
        marks.note(*traces)
        kind = pyro.infer.TraceEnum_ELBO if marks.enumerated else pyro.infer.Trace_ELBO
        for _ in kind()._get_traces(model, guide, args, kwargs):
            pass


def leaves_of(trace: Any) -> dict[str, Tensor]:
    """The unconstrained tensors of the parameters that a program used, each once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, node in trace.nodes.items():
        leaf = node["value"].unconstrained() if hasattr(node["value"], "unconstrained") else node["value"]
        found.setdefault(id(leaf), (name, leaf))
    return dict(found.values())
