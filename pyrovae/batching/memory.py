"""Where memory does not suffice: questions are asked again in runs of half as many rows, until these fit."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch

from pyrovae.errors import OutOfMemoryError, memory_error, shortened
from pyrovae.pair.asked import refuse_unfitted
from pyrovae.pair.turns import turn

# Runs of questions are small to begin with (see `chunks`): where a 64th does not fit, it is not for the number of rows.
MOST_HALVINGS = 6
_halvings: ContextVar[int] = ContextVar("halvings", default=0)

P = ParamSpec("P")
R = TypeVar("R")


def halvings() -> int:
    """How often the sizes of runs are halved in the question that is being answered."""
    return _halvings.get()


def halving(question: Callable[P, R], *, again: Callable[[], None] = lambda: None) -> Callable[P, R]:
    """Ask a question again, in runs of half as many rows, where memory does not suffice.

    All runs of a question have one size, so that it is the first that fails: little is lost by beginning anew, with the random
    numbers with which it began.

    Args:
        question: A function whose runs have the sizes of `chunk_size`.
        again: Is called before it is asked again.

    Raises:
        OutOfMemoryError: Runs of a 64th of the size still do not fit.
        OptionError: What is asked is no fit, where the first argument of the question is `fitted`.
    """
    of_a_fit = next(iter(inspect.signature(question).parameters), "") == "fitted"

    @functools.wraps(question)
    def asked(*args: P.args, **kwargs: P.kwargs) -> R:
        if of_a_fit and (args or "fitted" in kwargs):
            refuse_unfitted(args[0] if args else kwargs["fitted"])
        with turn():
            before = random_states()
            for times in range(MOST_HALVINGS + 1):
                token = _halvings.set(_halvings.get() + times)
                try:
                    return question(*args, **kwargs)
                except Exception as error:
                    short = memory_error(error)
                    if isinstance(error, OutOfMemoryError) or short is None:
                        raise
                    said = shortened(short, 200) or type(short).__name__
                    del short
                finally:
                    _halvings.reset(token)
                # here, where the error and all that its frames held is gone
                free_memory()
                set_random_states(before)
                if not times:
                    warnings.warn(
                        f"Memory does not suffice ({said}): it is tried again with fewer rows at once.", stacklevel=2
                    )
                again()
        raise OutOfMemoryError(
            f"Memory does not suffice ({said}), even for a {2**MOST_HALVINGS}th of the rows that a run takes: ask about fewer "
            "rows or draws, or free memory."
        )

    return asked


def free_memory() -> None:
    """Give back what torch keeps of a GPU's memory for later."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def random_states() -> list[torch.Tensor]:
    """The random states of torch, of the CPU and of GPUs that are in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def set_random_states(states: list[torch.Tensor]) -> None:
    """Put back what `random_states` took."""
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, device)
