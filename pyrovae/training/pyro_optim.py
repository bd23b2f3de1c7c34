"""Pyro's optimizers, which keep one torch optimizer for each tensor, as one torch optimizer with groups of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.optim.horovod import HorovodOptimizer
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.optim.multi import MultiOptimizer
from pyro.params.param_store import module_from_param_with_module_name, normalize_param_name, user_param_name
from torch import Tensor
from torch.optim import Optimizer

from pyrovae.engine.fused import check_fused, lay_out_state
from pyrovae.engine.step import Engine
from pyrovae.errors import OptionError

CLIPPING = ("clip_norm", "clip_value")


class Optimizers:
    """One torch optimizer for all parameters that programs turn out to have, shared by all engines that step it.

    A parameter gets the arguments and the state with which Pyro would start it, whenever it is first seen: both come from an
    optimizer that is made for it alone. Under torch's own optimizers, parameters with equal options then share a group. Others
    may change a group's options in a step, as ClippedAdam lowers its learning rate, and so each parameter has its own. It has
    its own under a `PyroLRScheduler`, too, which counts the steps of each parameter from the first that saw it.
    """

    def __init__(self, source: PyroOptim | Optimizer | Callable[[list[Tensor]], Optimizer]) -> None:
        self.source = source
        self.optimizer: Optimizer | None = source if isinstance(source, Optimizer) else None
        self._clipped: dict[int, Mapping[str, Any]] = {}
        self._known: set[int] = set()
        self._active: Engine | None = None

    def add(self, leaves: Mapping[str, Tensor]) -> None:
        """Take in parameters that are new."""
        new = {name: leaf for name, leaf in leaves.items() if id(leaf) not in self._known and leaf.requires_grad}
        self._known.update(map(id, new.values()))
        if not new:
            return
        if isinstance(self.source, Optimizer):
            check_fused(self.source)
            return
        if isinstance(self.source, PyroOptim):
            for name, leaf in new.items():
                self._add_pyro(name, leaf)
        else:
            made = self.source(list(new.values()))
            if not isinstance(made, Optimizer):
                raise OptionError(
                    f"optim must make a torch optimizer of a list of tensors; it made a {type(made).__name__}."
                )
            self._join(made)

    def _join(self, made: Optimizer) -> None:
        """Take over the parameters of an optimizer, with what it would have started them with."""
        check_fused(made)
        if self.optimizer is None:
            self.optimizer = made
            return
        shares = type(made).__module__.startswith("torch.")
        for group in made.param_groups:
            alike = [g for g in self.optimizer.param_groups if _options(g) == _options(group)] if shares else []
            if alike:
                alike[0]["params"] += group["params"]
            else:
                self.optimizer.add_param_group(group)
        self.optimizer.state.update(made.state)

    def _add_pyro(self, name: str, leaf: Tensor) -> None:
        source: Any = self.source
        given = source.pt_optim_args
        if callable(given):
            if source.pt_optim_args_argc == 1:
                given = given(normalize_param_name(name))
            else:
                given = given(module_from_param_with_module_name(name), user_param_name(name))
        if not isinstance(given, dict):
            raise OptionError(f"optim_args must give a dict for each parameter, got {given!r} for {name!r}.")
        made = source.pt_optim_constructor([leaf], **given)
        waiting = source._state_waiting_to_be_consumed.pop(name, None)
        if isinstance(source, PyroLRScheduler):
            if self.optimizer is None:
                self.optimizer = source.pt_optim_constructor([leaf], **given)
                self.optimizer.param_groups.clear()
                self.optimizer.state.clear()
            self._schedule(made, leaf, waiting)
        else:
            if waiting is not None:
                made.load_state_dict(waiting)
                lay_out_state(made)
            self._join(made)
        clip = source.pt_clip_args
        if callable(clip):
            clip = clip(module_from_param_with_module_name(name), user_param_name(name))
        unknown = sorted(set(clip) - set(CLIPPING))
        if unknown:
            raise OptionError(f"clip_args knows {', '.join(CLIPPING)}; got {unknown}.")
        if clip:
            self._clipped[id(leaf)] = clip

    def _schedule(self, made: Any, leaf: Tensor, waiting: Mapping[str, Any] | None) -> None:
        """Take over a parameter whose options a scheduler of its own changes, in the very dict that the steps read."""
        source: Any = self.source
        scheduler = source.pt_scheduler_constructor(made, **source.kwargs)
        if waiting is not None:
            scheduler.load_state_dict(waiting["scheduler"])
            made.load_state_dict(waiting["optimizer"])
            lay_out_state(made)
        whole = self.whole()
        whole.param_groups += made.param_groups
        whole.state[leaf] = made.state[leaf]
        made._opt_called = True  # or torch would warn of a scheduler that steps before its optimizer
        source.optim_objs[leaf] = scheduler  # which `source.step` steps

    def get_state(self) -> dict[str, Any]:
        """The state of each parameter by name, as `PyroOptim.get_state` gives it."""
        self.sync()
        found: dict[str, Any] = {}
        for group in self.optimizer.param_groups if self.optimizer else ():
            for leaf in group["params"]:
                alone = {**group, "params": [0]}
                name = pyro.get_param_store().param_name(leaf)
                found[name] = {"state": {0: dict(self.optimizer.state[leaf])}, "param_groups": [alone]}  # type: ignore[union-attr]
                if isinstance(self.source, PyroLRScheduler):
                    found[name] = {"scheduler": self.source.optim_objs[leaf].state_dict(), "optimizer": found[name]}
        return found

    @property
    def clip(self) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]] | None:
        """Clipping as Pyro has it, tensor by tensor: first of the norm, then of the values. None where there is none."""
        return self._clip if self._clipped else None

    def _clip(self, leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for leaf, grad in zip(leaves, grads):
            options = self._clipped.get(id(leaf), {})
            if options.get("clip_norm") is not None:
                grad = grad * (options["clip_norm"] / (grad.norm() + 1e-6)).clamp(max=1.0)
            if options.get("clip_value") is not None:
                grad = grad.clamp(-options["clip_value"], options["clip_value"])
            found.append(grad)
        return found

    def use(self, engine: Engine | None) -> None:
        """Let an engine step: what the one before kept to itself is written into the state first."""
        if self._active is not engine:
            self.sync()
            self._active = engine
            if engine is not None:
                engine.rebind()

    def sync(self) -> None:
        """Make the optimizer's state whole."""
        if self._active is not None:
            self._active.sync()

    def whole(self) -> Optimizer:
        """The torch optimizer, once there is one."""
        assert self.optimizer is not None
        return self.optimizer


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group of parameters is stepped with, as values that can be compared."""
    return {name: float(v) if isinstance(v, Tensor) else v for name, v in group.items() if name != "params"}


def as_optimizers(optim: Any) -> Optimizers:
    """The optimizers behind what a user passed. OptionError, by name, for what has no torch optimizer of its own."""
    if isinstance(optim, (HorovodOptimizer, MultiOptimizer)):
        raise OptionError(
            f"optim={type(optim).__name__} is not supported: pass pyro.optim.Adam({{...}}), or a torch optimizer over the "
            "parameters."
        )
    if not isinstance(optim, PyroOptim) and not isinstance(optim, Optimizer) and not callable(optim):
        raise OptionError(
            "optim must be a pyro.optim optimizer, a torch optimizer, or a function from a list of tensors to one, got "
            f"{type(optim).__name__}."
        )
    if isinstance(optim, (ELBO, type)):
        name = optim.__name__ if isinstance(optim, type) else type(optim).__name__
        raise OptionError(f"optim={name} is no optimizer: pass pyro.optim.Adam({{'lr': 1e-3}}), say.")
    if not isinstance(optim, (PyroOptim, Optimizer)):
        return Optimizers(optim)
    # kept with the user's object: two SVIs that share an optimizer share its state, as in Pyro
    made = vars(optim).setdefault("_pyrovae", Optimizers(optim))
    if isinstance(optim, PyroOptim):
        optim.get_state = made.get_state  # so that optim.save() saves what was learnt here
    return made
