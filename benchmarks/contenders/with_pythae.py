"""pythae: its VAE and IWAE with the shared nets, stepped as its trainer does, and through its trainer; its get_nll."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor, nn

from contenders import by_hand
from contenders.cases import LEARNING_RATE, PIXELS, Case, Stepper

logging.disable(logging.INFO)
load = by_hand.load


class Encoder(BaseEncoder):
    """784 - hidden - (mean, log-variance)."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.latent_dim = case.latent
        self.net = nn.Sequential(nn.Linear(PIXELS, case.hidden), nn.ReLU(), nn.Linear(case.hidden, 2 * case.latent))

    def forward(self, x: Tensor) -> ModelOutput:
        mean, log_variance = self.net(x).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    """latent - hidden - 784 probabilities, which is what pythae's cross-entropy takes."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(case.latent, case.hidden), nn.ReLU(), nn.Linear(case.hidden, PIXELS), nn.Sigmoid()
        )

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.net(z))


def model_of(case: Case, device: str) -> Any:
    options: dict[str, Any] = {
        "input_dim": (PIXELS,),
        "latent_dim": case.latent,
        "reconstruction_loss": "bce",
    }
    if case.particles > 1 and not case.images:
        config: Any = IWAEConfig(**options, number_samples=case.particles)
        model = IWAE(config, Encoder(case), Decoder(case))
    else:
        model = VAE(VAEConfig(**options), Encoder(case), Decoder(case))
    model.device = device
    return model.to(device)


def make_trainer(spec: dict[str, Any], case: Case, rows: Tensor, model: Any) -> BaseTrainer:
    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(prefix="pyrovae-speed-"),
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=case.batch,
        optimizer_cls="Adam",
        num_epochs=1,
        seed=spec["seed"],
        no_cuda=spec["device"] == "cpu",
    )
    made = BaseTrainer(model, BaseDataset(rows, torch.zeros(len(rows))), training_config=config)
    made.prepare_training()
    model.train()
    return made


def step(spec: dict[str, Any], case: Case, rows: Tensor) -> Stepper:
    """Gather as the others do, then the model's loss and its trainer's own optimizer step, without its loader and log."""
    model = model_of(case, spec["device"])
    made = make_trainer(spec, case, rows[: case.batch], model)
    order = by_hand.Order(len(rows), case.batch, spec["seed"], spec["device"])
    last = torch.zeros(())

    def take() -> None:
        nonlocal last
        output = model({"data": rows.index_select(0, order())})
        made._optimizers_step(output)
        last = output.loss.detach()

    return Stepper(take, by_hand.waiter(spec["device"]), lambda: last.item())


def trainer(spec: dict[str, Any], case: Case, rows: Tensor) -> Stepper:
    """What its users run: `BaseTrainer.train_step` over one epoch, its loader and its reading of every loss included.

    An epoch here has 20 batches, so that the loader's start counts for little.
    """
    length = max(20, case.group)
    model = model_of(case, spec["device"])
    made = make_trainer(spec, case, rows[: length * case.batch].cpu(), model)
    epoch, last = 0, 0.0

    def take() -> None:
        nonlocal epoch, last
        epoch += 1
        last = float(made.train_step(epoch))

    return Stepper(take, by_hand.waiter(spec["device"]), lambda: last, steps_per_call=length)


def get_nll(spec: dict[str, Any], case: Case, rows: Tensor) -> Stepper:
    """`model.get_nll`, without gradients, at the fastest of several batch sizes, found on a few images before the clock."""
    model = model_of(case, spec["device"])
    made = make_trainer(spec, case, rows[:100], model)
    order = by_hand.Order(2000, 100, spec["seed"], spec["device"])
    for _ in range(20):  # as trained as ours
        made._optimizers_step(model({"data": rows.index_select(0, order())}))
    model.eval()
    x = rows[: case.images]
    wait = by_hand.waiter(spec["device"])
    tried = {}
    with torch.no_grad():
        for size in sizes(case.particles):
            best = float("inf")
            for _ in range(3):
                began = time.perf_counter()
                model.get_nll(x[:10], n_samples=case.particles, batch_size=size)
                wait()
                best = min(best, time.perf_counter() - began)
            tried[size] = best
    chosen = min(tried, key=tried.__getitem__)
    last = 0.0

    def take() -> None:
        nonlocal last
        with torch.no_grad():
            last = -float(model.get_nll(x, n_samples=case.particles, batch_size=chosen))

    milliseconds = {size: round(1e2 * seconds, 3) for size, seconds in tried.items()}
    return Stepper(take, wait, lambda: last, notes=lambda: {"batch_size": chosen, "ms_per_image": milliseconds})


def sizes(particles: int) -> Iterator[int]:
    """Divisors of K: pythae drops the draws that do not fill a batch."""
    yield from (size for size in (20, 50, 100, 200, 500, 1000) if size <= particles and particles % size == 0)
