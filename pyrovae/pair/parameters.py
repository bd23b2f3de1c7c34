"""The parameters of a pair: where they are stored, on which device they are, and the mode of the pair's modules."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae._arguments import told
from pyrovae.errors import OptionError
from pyrovae.pair.program import PairLike
from pyrovae.pair.reach import modules_in, parts_of, unwrapped
from pyrovae.pair.turns import lent_turn, turn


def modules(pair: PairLike) -> dict[str, nn.Module]:
    """The modules that own a pair's weights, by the prefix of their parameters' names.

    This is the pair itself if it is a module. Otherwise it is what `model` and `guide` are, if they are modules or methods of
    modules, also inside of handlers, decorators and `functools.partial` objects.
    """
    if isinstance(pair, nn.Module):
        return {"": pair}
    found: dict[str, nn.Module] = {}
    for side in ("model", "guide"):
        function = unwrapped(getattr(pair, side))
        holder = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
        if isinstance(holder, nn.Module) and all(holder is not m for m in found.values()):
            found[f"{side}."] = holder
    return found


def every_module(pair: PairLike) -> dict[str, nn.Module]:
    """The modules that a pair may run, by prefix: first those of `modules`, then those that its functions reach elsewhere.

    Of the latter, in closures and globals, the parameters are trained and saved only where `pyro.module` registers them, but
    their mode, device and buffers are the pair's concern all the same.
    """
    for known, remembered in _REMEMBERED:
        if known is pair:
            return dict(remembered)
    found = dict(modules(pair))
    inside = parts_of(*found.values())
    reached = modules_in(model=pair.model, guide=pair.guide)
    return found | {f"{path}.": module for path, module in reached.items() if id(module) not in inside}


_REMEMBERED: list[tuple[PairLike, dict[str, nn.Module]]] = []


@contextmanager
def modules_remembered(pair: PairLike) -> Iterator[None]:
    """Inside, `every_module` answers as at the start: to search takes milliseconds, and an epoch of a small fit no longer."""
    _REMEMBERED.append((pair, every_module(pair)))
    try:
        yield
    finally:
        _REMEMBERED.pop()


@contextmanager
def statistics_kept(pair: PairLike) -> Iterator[None]:
    """Inside, batch normalisation leaves its running means alone while it trains: these are no rows of the data.

    That is what torch's layers do where `track_running_stats` is off, and layers with such an attribute of that meaning.
    """
    found = {id(part): part for module in every_module(pair).values() for part in module.modules()}
    following: list[Any] = [
        m for m in found.values() if m.training and getattr(m, "track_running_stats", False) is True
    ]
    for module in following:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in following:
            module.track_running_stats = True


def named_tensors(pair: PairLike, *, buffers: bool) -> dict[str, Tensor]:
    """The parameters, and on request the persistent buffers, of a pair by name.

    Those of the pair's own modules come first, then those of Pyro's param store, and then the buffers of other modules that
    it runs. A shared tensor is listed once.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def add(name: str, tensor: Tensor) -> None:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor

    def add_buffers(prefix: str, module: nn.Module) -> None:
        persistent = module.state_dict(keep_vars=True)
        for name, buffer in module.named_buffers():
            if name in persistent:
                add(prefix + name, buffer)

    for prefix, module in modules(pair).items():
        for name, parameter in module.named_parameters():
            add(prefix + name, parameter)
        if buffers:
            add_buffers(prefix, module)
    for name, unconstrained in pyro.get_param_store()._params.items():
        add(name, unconstrained)
    if buffers:
        for prefix, module in every_module(pair).items():
            add_buffers(prefix, module)
    return found


def dtype_of(pair: PairLike) -> torch.dtype:
    """The dtype of a pair's modules, if their weights have one in common, else torch's default dtype."""
    found = {p.dtype for m in modules(pair).values() for p in m.parameters() if p.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.get_default_dtype()


@contextmanager
def default_dtype(pair: PairLike) -> Iterator[None]:
    """Let tensors that the pair's code makes without a dtype, such as `torch.zeros(2)`, have that of its weights."""
    before, own = torch.get_default_dtype(), dtype_of(pair)
    try:
        torch.set_default_dtype(own if own in (torch.float32, torch.float64) else before)
        yield
    finally:
        torch.set_default_dtype(before)


def trainable(pair: PairLike) -> dict[str, Tensor]:
    """The unconstrained parameters that a fit trains, by name. A shared one is listed once."""
    return {name: p for name, p in named_tensors(pair, buffers=False).items() if p.requires_grad}


_SCOPES: list[dict[str, Any]] = []


@contextmanager
def param_scope(state: dict[str, Any]) -> Iterator[None]:
    """Use a param store of one's own inside, whose content is kept in `state`, and restore the global store afterwards."""
    with turn():
        if _SCOPES and _SCOPES[-1] is state:  # already in use, as when a callback evaluates the fit that called it
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
def lent() -> Iterator[None]:
    """Inside, other threads may ask questions, also about the fit that is running, and may fit."""
    _SCOPES[-1].update(pyro.get_param_store().get_state())
    with lent_turn():
        yield


@contextmanager
def fork_rng() -> Iterator[None]:
    """Restore torch's random state afterwards, and that of the CUDA devices if CUDA has been initialised."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with turn(), torch.random.fork_rng(devices=devices):
        yield


@functools.cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def seed_torch(seed: int) -> None:
    """Seed torch as `torch.manual_seed` does.

    That function takes milliseconds where there is no CUDA, and memory at every call: it keeps the stack for a CUDA to come.
    """
    if _has_accelerator():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def find_device(device: str | torch.device) -> torch.device:
    """The device of that name; "auto" is CUDA if available, else the CPU. OptionError if it cannot be used here."""
    if not isinstance(device, (str, torch.device, int)) or isinstance(device, bool):
        raise OptionError(f"device must be 'auto', 'cpu', 'cuda' or a torch.device, got {told(device)}.")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise RuntimeError("tensors on it have no values")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:100]
        raise OptionError(f"device={str(device)!r} cannot be used here ({reason}); known: auto, cpu, cuda.") from error
    return found


def place(pair: PairLike, device: torch.device) -> None:
    """Move a pair to a device in place. Parameters stay the same objects, so that optimizers keep working."""
    for module in every_module(pair).values():
        module.to(device)
    with torch.no_grad():
        for tensor in pyro.get_param_store()._params.values():
            if tensor.device != device:
                tensor.data = tensor.data.to(device)


@contextmanager
def evaluating(pair: PairLike) -> Iterator[None]:
    """Put the pair's modules into evaluation mode, and each back into its previous mode afterwards."""
    modes = [(m, m.training) for root in every_module(pair).values() for m in root.modules()]
    # cuDNN has no gradients of recurrent networks in evaluation mode
    without_cudnn = torch.backends.cudnn.enabled and any(isinstance(module, nn.RNNBase) for module, _ in modes)
    try:
        for module, _ in modes:
            module.training = False
        if without_cudnn:
            torch.backends.cudnn.enabled = False
        yield
    finally:
        if without_cudnn:
            torch.backends.cudnn.enabled = True
        for module, was in modes:
            module.training = was
