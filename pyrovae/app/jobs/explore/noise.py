"""Noise of a site that does not depend on what other sites draw, or are held at."""

from __future__ import annotations

import zlib
from typing import Any

from pyro.poutine.messenger import Messenger

from pyrovae.pair.parameters import seed_torch


class NoiseBySite(Messenger):  # type: ignore[misc]  # Pyro has no types
    """Seed torch before each site by its name, so that what a site draws follows from a seed, whatever others draw.

    It changes torch's random state, which the caller restores.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def _pyro_sample(self, msg: Any) -> None:
        seed_torch(zlib.crc32(f"{self.seed} {msg['name']}".encode()))
