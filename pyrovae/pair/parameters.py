"""The parameters of a pair: where they are kept, on which device, and in which mode its modules are."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae.errors import OptionError


def modules(pair: Any) -> dict[str, nn.Module]:
    """The modules that hold a pair's weights, by prefix: the pair itself, or its two functions where they are modules,
    methods of modules, or partial applications of either."""
    if isinstance(pair, nn.Module):
        return {"": pair}
    found: dict[str, nn.Module] = {}
    for side in ("model", "guide"):
        function = getattr(pair, side)
        while isinstance(function, functools.partial):
            function = function.func
        holder = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
        if isinstance(holder, nn.Module) and all(holder is not m for m in found.values()):
            found[f"{side}."] = holder
    return found


def named_tensors(pair: Any, *, buffers: bool) -> dict[str, Tensor]:
    """Parameters (and buffers) of a pair by name, each tensor once: the modules' own, then the param store's."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def add(name: str, tensor: Tensor) -> None:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor

    for prefix, module in modules(pair).items():
        for name, parameter in module.named_parameters():
            add(prefix + name, parameter)
        if buffers:
            persistent = module.state_dict(keep_vars=True)
            for name, buffer in module.named_buffers():
                if name in persistent:
                    add(prefix + name, buffer)
    for name, unconstrained in pyro.get_param_store()._params.items():
        add(name, unconstrained)
    return found


def trainable(pair: Any) -> dict[str, Tensor]:
    """The leaf tensors that a fit trains, by name: unconstrained, each once."""
    return {name: p for name, p in named_tensors(pair, buffers=False).items() if p.requires_grad}


_SCOPES: list[dict[str, Any]] = []


@contextmanager
def param_scope(state: dict[str, Any]) -> Iterator[None]:
    """Run inside a param store of one's own, kept in `state`; the global store is put back afterwards, whatever happens."""
    if _SCOPES and _SCOPES[-1] is state:  # asked from within, by a callback: these very parameters are in use
        yield
        return
    store = pyro.get_param_store()
    outside = store.get_state()
    _SCOPES.append(state)
    store.clear()
    try:
        store.set_state({"params": state.get("params", {}), "constraints": state.get("constraints", {})})
        yield
    finally:
        _SCOPES.pop()
        state.update(store.get_state())
        store.clear()
        store.set_state(outside)


@contextmanager
def fork_rng() -> Iterator[None]:
    """What happens to torch's random state inside is undone. CUDA's are included where CUDA is in use, and only there."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


def find_device(device: str | torch.device) -> torch.device:
    """A device by name; "auto" is CUDA where there is one. OptionError for one that cannot be used here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise RuntimeError("it holds no values")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:100]
        raise OptionError(f"device={str(device)!r} cannot be used here ({reason}); known: auto, cpu, cuda.") from error
    return found


def place(pair: Any, device: torch.device) -> None:
    """Move a pair to a device in place. Leaves stay the same objects, so that optimizers and registrations hold."""
    for module in modules(pair).values():
        module.to(device)
    with torch.no_grad():
        for tensor in pyro.get_param_store()._params.values():
            if tensor.device != device:
                tensor.data = tensor.data.to(device)


@contextmanager
def evaluating(pair: Any) -> Iterator[None]:
    """The pair's modules in evaluation mode, and each back in its own mode afterwards."""
    modes = [(m, m.training) for root in modules(pair).values() for m in root.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, was in modes:
            module.training = was
