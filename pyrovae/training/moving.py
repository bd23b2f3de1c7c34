"""Modules that move: their state is set by the rows of each step of training, as a codebook follows its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyrovae.pair.parameters import every_module
from pyrovae.pair.program import PairLike, sample_sites


def moving_modules(pair: PairLike) -> list[Any]:
    """The modules whose state each step of training sets by its rows, such as the codebook of `pv.nets.VQ`."""
    parts = [part for root in every_module(pair).values() for part in root.modules()]
    return [part for part in parts if getattr(part, "moves", None) is True and hasattr(part, "started")]


def moves_on(pair: PairLike, runs: Sequence[tuple[Any, Any]]) -> bool:
    """Whether steps will set the state of modules by their rows: these have not started, or a gradient reaches a draw."""
    modules = [module for module in moving_modules(pair) if module.training]
    draws = [node["value"] for _, guide in runs for node in sample_sites(guide).values()]
    return bool(modules) and (any(d.requires_grad for d in draws) or not all(module.started for module in modules))
