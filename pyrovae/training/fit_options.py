"""The options of `fit`, checked before anything is done."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_choice, as_function, as_mapping, as_number, as_path, as_seed, index_of, told
from pyrovae.batching.transforms import Transform
from pyrovae.engine import ranks
from pyrovae.engine.threads import as_threads
from pyrovae.errors import OptionError
from pyrovae.fitted.files import read_run
from pyrovae.fitted.fitted import Fit
from pyrovae.training.schedules import Schedule

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]
Callback = Callable[[Fit], bool | None]
UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}  # in seconds
ON_NAN = ("stop", "skip", "rollback")

# what other libraries call the options of `fit`
MEANT = {
    **dict.fromkeys(("lr", "learning_rate_init"), "learning_rate"),
    **dict.fromkeys(("n_epochs", "num_epochs", "max_epochs", "max_iter"), "epochs"),
    **dict.fromkeys(("n_steps", "num_steps", "max_steps"), "steps"),
    **dict.fromkeys(("bs", "batch", "minibatch_size"), "batch_size"),
    **dict.fromkeys(("val", "val_data", "valid", "validation_data", "validation_split", "eval_data"), "validation"),
    **dict.fromkeys(("early_stopping", "n_iter_no_change"), "patience, a number of epochs"),
    **dict.fromkeys(("random_state", "random_seed", "rng"), "seed"),
    **dict.fromkeys(("verbose", "progress_bar"), "progress"),
    **dict.fromkeys(("grad_clip", "clip_grad", "clip_grad_norm", "max_grad_norm", "gradient_clip_val"), "clip_norm"),
    **dict.fromkeys(("gpu", "cuda", "accelerator"), "device='cuda'"),
    **dict.fromkeys(("beta", "kl_weight"), "loss=pv.Trace_ELBO(kl=pv.kl.beta(...))"),
    **dict.fromkeys(("num_particles", "n_particles"), "loss=pv.Trace_ELBO(num_particles=...)"),
    "weight_decay": "optimizer=lambda leaves: torch.optim.AdamW(leaves, weight_decay=...)",
}


def only_looks(callback: Callback) -> bool:
    """Whether a callback says that it changes nothing, as trackers do."""
    return bool(getattr(callback, "only_looks", False))


@dataclass
class FitOptions:
    """The options of `fit`, under the names and with the meaning that they have there, checked."""

    epochs: int | None
    batch_size: int | None
    learning_rate: float
    loss: Any
    optimizer: OptimizerFactory | None
    validation: Any
    patience: int | None
    keep_best: bool | None
    schedule: Schedule | Sequence[Schedule] | None
    transform: Transform | None
    penalty: Callable[[Any], Tensor] | None
    clip_norm: float | None
    on_nan: str
    group_size: Mapping[str, int] | None
    group_weight: Mapping[str, float] | None
    callbacks: Sequence[Callback]
    checkpoint: str | Path | None
    resume: bool
    force: bool
    checkpoint_every: float | str
    seed: int | None
    device: str | torch.device
    engine: str
    precision: str | None
    threads: int | None
    progress: bool | None
    info: Mapping[str, Any] | None
    check_also: Any
    steps: int | None
    num_rows: int | None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "steps", "num_rows"):
            setattr(self, name, whole_number(name, getattr(self, name), least=0 if name == "epochs" else 1))
        if self.steps is not None and self.epochs is not None:
            raise OptionError("The length of a fit is epochs=... or steps=..., and both were given: leave one out.")
        self.threads = as_threads(self.threads)
        self.every = Every.of(self.checkpoint_every)
        self.seed = None if self.seed is None else as_seed(self.seed)
        self.learning_rate = as_number("learning_rate", self.learning_rate, above=0)
        if self.clip_norm is not None:
            self.clip_norm = as_number("clip_norm", self.clip_norm, above=0, also=", or None")
        for name, of in {"transform": "a batch", "penalty": "the pair"}.items():
            if getattr(self, name) is not None:
                as_function(name, getattr(self, name), of)
        if self.checkpoint is not None:
            self.checkpoint = as_path("checkpoint", self.checkpoint)
        self.info = as_mapping("info", self.info, "what is kept with the run")
        as_choice("on_nan", self.on_nan, ON_NAN)
        if isinstance(self.validation, (int, float)) and not 0 < self.validation < 1:
            raise OptionError(
                f"validation must be a fraction between 0 and 1, or data, got {self.validation!r}; None does without."
            )
        if self.patience is not None and self.validation is None:
            raise OptionError("patience needs rows to watch: give validation=0.1 (a fraction), or data.")
        if self.keep_best and self.validation is None:
            raise OptionError("keep_best needs rows to judge by: give validation=0.1 (a fraction), or data.")
        if self.resume and self.checkpoint is None:
            raise OptionError("resume=True needs checkpoint=..., the folder of the run to go on with.")
        if not isinstance(self.callbacks, Sequence):
            raise OptionError(
                f"callbacks is a list of functions of the Fit, got {self.callbacks!r}: write callbacks=[f]."
            )
        for one in self.callbacks:
            if not callable(one):
                raise OptionError(f"callbacks is a list of functions of the Fit, and {one!r} is none: leave it out.")
            if isinstance(one, type) and only_looks(one):
                raise OptionError(
                    f"callbacks takes a tracker, and {one.__name__} is its class: write {one.__name__}(...)."
                )
        try:
            json.dumps(self.info)
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"info is kept as JSON, and this is not JSON ({error}): use numbers, text, lists."
            ) from error

    def recorded(self, setting: str) -> Any:
        """A setting of the run that is to be resumed."""
        folder = self.checkpoint
        assert folder is not None
        return ranks.first(lambda: read_run(folder).get("settings", {}).get(setting))


@dataclass(frozen=True)
class Every:
    """How often a checkpoint is written: after so many seconds, or after so many steps.

    Example:
        >>> from pyrovae.training.fit_options import Every
        >>> Every.of("10min"), Every.of("500 steps")
        (Every(seconds=600.0, steps=inf), Every(seconds=inf, steps=500))
    """

    seconds: float
    steps: float

    @classmethod
    def of(cls, given: Any) -> Every:
        """From a number of seconds, or a text such as "30s", "10min", "2h" or "500 steps". OptionError for anything else."""
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", given.lower()) if isinstance(given, str) else None
        number = float(found[1]) if found is not None else given
        unit = found[2] if found is not None else "s"
        if unit in ("step", "steps") and number >= 1 and float(number).is_integer():
            return cls(math.inf, int(number))
        real = isinstance(number, Real) and not isinstance(number, bool) and float(number) >= 0
        if unit not in UNITS or not real:
            raise OptionError(
                "checkpoint_every must be a number of seconds, or a text such as '30s', '10min', '2h' or '500 steps', got "
                f"{given!r}."
            )
        return cls(float(number) * UNITS[unit], math.inf)


def whole_number(name: str, value: Any, least: int) -> int | None:
    """A whole number of at least so many as a Python int, or None where the option has a default."""
    number = index_of(value)
    if value is not None and (number is None or number < least):
        raise OptionError(f"{name} must be a whole number of at least {least}, got {told(value)}.")
    return number
