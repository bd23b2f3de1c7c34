"""The options of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pyrovae.errors import CheckpointError


@dataclass(frozen=True)
class Options:
    """What a person may choose. None: decided from the data (see `decide`)."""

    model: str = "vae"
    clusters: int | None = None
    labelled: int | None = None
    levels: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None
    prior: str = "normal"
    likelihood: str | None = None
    guide: str | None = None
    total_count: int | None = None
    net: str = "mlp"
    latent: int = 10
    hidden: tuple[int, ...] = (400,)
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    kl_warmup: float = 0.0
    kl_cycles: int = 0
    free_bits: float = 0.0
    lagging: float = 0.0
    clip_norm: float | None = None
    patience: int | None = None
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    num_samples: int = 1000
    seed: int = 0


def read_options(info: Mapping[str, Any]) -> Options:
    """The options of a run.json. CheckpointError when they are not whole."""
    try:
        # runs from before there were other models than the VAE, or these remedies
        since = ("model", "clusters", "labelled", "levels", "groups", "kl_cycles", "free_bits", "lagging")
        found = {**{name: getattr(Options(), name) for name in since}, **info["options"]}
        sizes = {name: found[name] and tuple(found[name]) for name in ("levels", "groups")}
        names = {f.name for f in fields(Options)}
        if set(found) != names:
            raise KeyError(f"options {sorted(set(found) ^ names)}")
        return Options(**{**found, "hidden": tuple(found["hidden"]), **sizes})
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"The run's options are damaged or missing ({error!r}): was it made by `pyrovae fit`?"
        ) from error
