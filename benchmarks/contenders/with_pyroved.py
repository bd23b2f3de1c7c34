"""pyroVED: its iVAE without invariances, nets of the same sizes, its trainer's SVI step on a gathered batch."""

from __future__ import annotations

from typing import Any

import pyro
import pyroved
from torch import Tensor

from contenders import by_hand
from contenders.cases import LEARNING_RATE, PIXELS, Case, Stepper

load = by_hand.load


def build(spec: dict[str, Any], case: Case, rows: Tensor) -> Stepper:
    pyro.enable_validation(False)
    model = pyroved.models.iVAE(
        (PIXELS,),
        latent_dim=case.latent,
        invariances=None,
        hidden_dim_e=[case.hidden],
        hidden_dim_d=[case.hidden],
        activation="relu",
        sampler_d="bernoulli",
        seed=spec["seed"],
        device=spec["device"],
    )
    trainer = pyroved.trainers.SVItrainer(model, lr=LEARNING_RATE, seed=spec["seed"], device=spec["device"])
    order = by_hand.Order(len(rows), case.batch, spec["seed"], spec["device"])
    last = 0.0

    def step() -> None:
        nonlocal last
        last = trainer.svi.step(rows.index_select(0, order()))

    return Stepper(step, by_hand.waiter(spec["device"]), lambda: last / case.batch)
