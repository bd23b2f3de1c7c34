"""What `pv.fit` says in the words of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyrovae.errors import NotFiniteError

FLAGS = {
    "Lower the learning rate": "Lower --learning-rate",
    "set clip_norm=10": "set --clip-norm 10",
    "warm up the KL weight": "warm up the KL weight by --kl-warmup",
    "on_nan='rollback' does": "--on-nan rollback does",
}


@contextmanager
def in_flags() -> Iterator[None]:
    """Name options, and not arguments of `pv.fit`, where a fit ends by a loss that is not finite."""
    try:
        yield
    except NotFiniteError as error:
        said = str(error)
        for argument, flag in FLAGS.items():
            said = said.replace(argument, flag)
        raise NotFiniteError(said) from error
