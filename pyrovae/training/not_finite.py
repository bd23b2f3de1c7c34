"""Where a loss became NaN or infinite: the site, and the first operation whose result is not finite; and how to skip a step."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pyrovae._dispatch import DispatchMode
from pyrovae.engine.program import Clip, Program
from pyrovae.engine.step import Engine
from pyrovae.engine.tracing import line_of_program
from pyrovae.pair.batch import Batch

MOST_FRAMES = 500
MOST_REPEATED = 500  # steps that are taken again to find the one that failed


def explain(program: Program, inputs: Batch, weights: Mapping[str, float], what: str = "") -> str:
    """What is not finite first in one step, run eagerly: parameters, sites, operations or gradients; "" if nothing is.

    Args:
        program: the step.
        inputs, weights: of the step that failed, as the engine takes them.
        what: what was not finite, as the error says it.
    """
    broken = [name for name, leaf in program.parameters.items() if not _finite(leaf)]
    if broken:
        return f"before the step, {_listed(broken, 'parameter')} {'is' if len(broken) == 1 else 'are'} not finite"
    like = program.leaves[0]
    numbers = {name: torch.full((), weights[name], dtype=like.dtype, device=like.device) for name in program.weights}
    sites, first = _Sites(), _First()
    with torch.enable_grad():
        with sites, first:
            _, loss = program.objective(inputs, numbers)
        if not _finite(loss):
            return "; ".join(found for found in (sites.found, first.found) if found)
        grads = torch.autograd.grad(loss, program.leaves, allow_unused=True)
    trained = [name for name, leaf in program.parameters.items() if leaf.requires_grad]
    names = [name for name, grad in zip(trained, grads) if grad is not None and not _finite(grad)]
    if names:
        return f"the loss is finite, and the gradient of {_listed(names, 'parameter')} is not"
    if what.startswith("the loss"):  # and none of the parameters that it was computed with is broken
        return "taken again, the step is finite: the pair changes by something else than its weights and torch's random numbers"
    return "loss and gradient of that step are finite: it was too large"


def without_what_is_not_finite(clip: Clip | None) -> Clip:
    """A `Clip` that makes all gradients zero where one of them is NaN or infinite, before it does what `clip` does."""

    def clipped(leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> Sequence[Tensor]:
        finite = torch.stack([torch.isfinite(grad).all() for grad in grads]).all()
        grads = [torch.where(finite, grad, torch.zeros_like(grad)) for grad in grads]
        return grads if clip is None else clip(leaves, grads)

    return clipped


def step_or_back(engine: Engine, inputs: Batch, weights: Mapping[str, float], buffers: Sequence[Tensor]) -> Tensor:
    """Take a step and return its ELBO; where that is not finite, or a buffer no longer is, all buffers are as before the step.

    Args:
        engine, inputs, weights: as `Engine.step` takes them.
        buffers: tensors that a step may change besides parameters, such as running means.
    """
    if not buffers:
        return engine.step(inputs, weights)
    with torch.no_grad():
        before = [buffer.clone() for buffer in buffers]
    elbo = engine.step(inputs, weights)
    with torch.no_grad():
        sound = torch.isfinite(elbo)
        for buffer, old in zip(buffers, before):
            if buffer.is_floating_point():  # -inf may stand in one from the start, as in a mask
                sound = sound & (torch.isfinite(buffer) | ~torch.isfinite(old)).all().to(sound.device)
        for buffer, old in zip(buffers, before):
            buffer.copy_(torch.where(sound.to(buffer.device), buffer, old))
    return elbo


class _Sites(Messenger):  # type: ignore[misc]
    """Finds the first sample statement whose parameters, value or log-density is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if self.found or type(msg["fn"]).__name__ == "_Subsample":
            return
        base = msg["fn"]
        while hasattr(base, "base_dist"):
            base = base.base_dist
        for name in getattr(base, "arg_constraints", ()):
            value = base.__dict__.get(name)
            if isinstance(value, Tensor) and _kinds(value) - {"-inf"}:  # which logits may be
                self.found = f"at site {msg['name']!r}, {name} of its {type(base).__name__} is not finite"
                return
        if not msg["is_observed"] and not _finite(msg["value"]):
            self.found = f"the value of site {msg['name']!r} is not finite"
            return
        with torch.no_grad():
            density = msg["fn"].log_prob(msg["value"])
        if not _finite(density):
            self.found = f"the log-density of site {msg['name']!r} is not finite, under its {type(base).__name__}"


class _First(DispatchMode):
    """Finds the first operations that make NaN, or an infinite number, of what has none."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, str] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = _kinds((args, kwargs))
        made = func(*args, **dict(kwargs or {}))
        if "empty" not in str(func):
            for kind in _kinds(made) - given - self.first.keys():
                name = str(func).removeprefix("aten.").partition(".")[0].strip("_")
                self.first[kind] = f"the first {kind} is a result of {name}{_where()}"
        return made

    @property
    def found(self) -> str:
        named = [self.first[kind] for kind in ("inf", "NaN") if kind in self.first]
        return "; ".join(named) or self.first.get("-inf", "")  # -inf is also how a class is ruled out


KINDS = {"NaN": torch.isnan, "inf": torch.isposinf, "-inf": torch.isneginf}


def _kinds(values: Any) -> set[str]:
    """Which numbers that are not finite some tensors hold."""
    tensors = [v for v in tree_flatten(values)[0] if isinstance(v, Tensor) and not _finite(v)]
    return {kind for kind, holds in KINDS.items() if any(bool(holds(v).any()) for v in tensors)}


def _where() -> str:
    """The line of the program that is run."""
    frames = traceback.extract_stack(limit=MOST_FRAMES)
    start = max((i for i, one in enumerate(frames) if one.filename == __file__ and one.name == "explain"), default=-1)
    found = line_of_program(frames[start + 1 :])
    return "" if found is None else f", in {found[1]}, line {found[0].lineno}"


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _listed(names: Sequence[str], what: str) -> str:
    return f"{what}{'s' * (len(names) > 1)} {', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''}"
