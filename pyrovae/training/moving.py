"""Modules that move: their state is set by the rows of each step of training, as a codebook follows its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyro
import torch

from pyrovae.batching.stream import watched
from pyrovae.engine.tracing import undone
from pyrovae.fitted.fitted import transform_once
from pyrovae.pair.parameters import every_module, named_tensors
from pyrovae.pair.program import PairLike, run, sample_sites
from pyrovae.training.bind import FitData
from pyrovae.training.fit_options import FitOptions

if TYPE_CHECKING:
    from pyrovae.training.plan import TrainingGroup


def moving_modules(pair: PairLike) -> list[Any]:
    """The modules whose state each step of training sets by its rows, such as the codebook of `pv.nets.VQ`."""
    parts = [part for root in every_module(pair).values() for part in root.modules()]
    return [part for part in parts if getattr(part, "moves", None) is True and hasattr(part, "started")]


def start(pair: PairLike, data: FitData, groups: Sequence[TrainingGroup], options: FitOptions) -> None:
    """Let modules that set their state by the rows of their first step do so, on some rows, so that steps can be traced.

    Random state and all other buffers stay as they are.
    """
    waiting = [module for module in moving_modules(pair) if not module.started]
    if not data.epochs or not waiting:
        return
    own = {id(buffer) for module in waiting for buffer in module.buffers()}
    others = [t for t in named_tensors(pair, buffers=True).values() if id(t) not in own]
    with undone(others), torch.enable_grad(), pyro.validation_enabled(False):
        for one in groups:
            rows = data.training.take(one.rows[watched(len(one.rows), one.size)].to(data.device))
            known = {name: value for name, value in rows.items() if name in one.names}
            run(pair, transform_once(pair, known, options.transform))


def moves_on(pair: PairLike, runs: Sequence[tuple[Any, Any]]) -> bool:
    """Whether steps will set the state of modules by their rows: these have not started, or a gradient reaches a draw."""
    modules = [module for module in moving_modules(pair) if module.training]
    draws = [node["value"] for _, guide in runs for node in sample_sites(guide).values()]
    return bool(modules) and (any(d.requires_grad for d in draws) or not all(module.started for module in modules))
