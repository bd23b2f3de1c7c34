"""pyrovae's contenders. What a version of the package must offer is met here, and only here: `lean_step` and `public_step`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, nn

import pyrovae
from contenders import by_hand
from contenders.cases import LEARNING_RATE, PIXELS, Case, Stepper
from pyrovae import families as fam
from pyrovae.engine import compiled as engines
from pyrovae.engine.denormals import flush_denormals
from pyrovae.pair.batch import take_rows
from pyrovae.pair.layout import describe
from pyrovae.pair.parameters import trainable
from pyrovae.training.minibatch import GroupTerms, MinibatchLoss

load = by_hand.load


class M2(nn.Module):
    """p(y) p(z) p(x|z,y), guide q(y|x) q(z|x,y) of unlabelled rows: y is summed out exactly. Kingma et al. 2014."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        h, z, self.classes = (case.hidden,), case.latent, case.classes
        softplus = nn.Softplus
        self.prior = pyrovae.priors.StandardNormal(z)
        self.classifier = by_hand.LabelledNets(case).classifier
        self.encoder = pyrovae.mlp((PIXELS, self.classes), fam.Normal(z), h, softplus)
        self.likelihood = pyrovae.mlp((z, self.classes), fam.Bernoulli(PIXELS), h, softplus)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", pyro.distributions.Categorical(logits=x.new_zeros(self.classes)))
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z, pyrovae.nets.one_hot(y, self.classes)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            q = pyro.distributions.Categorical(logits=self.classifier(x))
            y = pyro.sample("y", q, infer={"enumerate": "parallel"})
            pyro.sample("z", self.encoder(x, pyrovae.nets.one_hot(y, self.classes)))


def vector_quantised() -> nn.Module:
    codes = pyrovae.nets.FSQ((8, 5, 5), grid=(7, 7))
    flat = (codes.width, *codes.grid)
    decoder = pyrovae.nets.Behind(pyrovae.nets.Flat(flat), pyrovae.nets.MLP(math.prod(flat), (1, PIXELS), (400,)))
    return pyrovae.VQVAE(
        prior=pyrovae.priors.Categorical(codes.num_codes, event_shape=codes.index_shape),
        likelihood=pyrovae.Conditional(decoder, fam.Bernoulli(PIXELS)),
        encoder=pyrovae.nets.MLP(PIXELS, flat, (400,)),
        codes=codes,
    )


LEVELS = (64, 32, 16, 8, 4)
GRAPHS: dict[str, Callable[[], nn.Module]] = {
    "two": lambda: pyrovae.HierarchicalVAE.of_levels(fam.Bernoulli(PIXELS), (100, 50), (200, 100)),
    "five": lambda: pyrovae.HierarchicalVAE.of_levels(fam.Bernoulli(PIXELS), LEVELS, LEVELS, layers=1),
    "ladder": lambda: pyrovae.LadderVAE.of_levels(fam.Bernoulli(PIXELS), LEVELS, LEVELS, layers=1),
    "nvae": lambda: pyrovae.NVAE(fam.Bernoulli((28, 28)), channels=(16, 32), groups=(2, 2)),
    "bayesian": lambda: pyrovae.bayesian(plain(20, (400,))),
    "vqvae": vector_quantised,
    "dmm": lambda: pyrovae.DeepMarkovVAE.of_sequences(fam.Bernoulli(28), latent=10, hidden=100, width=100),
}


def plain(latent: int, hidden: tuple[int, ...]) -> pyrovae.VAE:
    return pyrovae.VAE(
        pyrovae.priors.StandardNormal(latent),
        pyrovae.mlp(latent, fam.Bernoulli(PIXELS), hidden),
        pyrovae.mlp(PIXELS, fam.Normal(latent), hidden),
    )


def shaped(case: Case, rows: Tensor) -> Tensor:
    """Rows as the graph takes them: maps are made of images, and a sequence is the lines of one."""
    return rows.unflatten(1, (28, 28)) if case.graph in ("nvae", "dmm") else rows


def pair_of(case: Case) -> nn.Module:
    if case.graph:
        return GRAPHS[case.graph]()
    if case.classes:
        return M2(case)
    return plain(case.latent, (case.hidden,))


def loss_of(case: Case) -> Any:
    if case.particles == 1:
        return pyrovae.Trace_ELBO()
    return pyrovae.IWELBO(num_particles=case.particles)


def lean_step(case: Case, rows: Tensor, engine: str, precision: str) -> tuple[Any, Any]:
    """(what takes a step at an index, its engine), built as `pyrovae.fit` builds it. Adapt this to a new `Program`."""
    flush_denormals(rows.device.type == "cpu")
    pair = pair_of(case).to(rows.device)
    batch = {"x": shaped(case, rows)}
    layout = describe(pair, take_rows(batch, slice(0, case.batch)))
    leaves = trainable(pair)
    program = engines.Program(
        pair=pair,
        objective=MinibatchLoss(
            pair, loss_of(case), len(rows), {"index": GroupTerms(("x",), len(rows), layout)}, batch, precision=precision
        ),
        parameters=leaves,
        optimizer=torch.optim.Adam(list(leaves.values()), lr=LEARNING_RATE, fused=True),
    )
    made = engines.make_engine(engine, program)
    return lambda index: made.step({"index": index}, {}), made


def our_step(spec: dict[str, Any], case: Case, rows: Tensor, *, engine: str, precision: str = "float32") -> Stepper:
    """The step inside `pyrovae.fit`."""
    pyro.enable_validation(False)
    take, made = lean_step(case, rows, engine, precision)
    order = by_hand.Order(len(rows), case.batch, spec["seed"], spec["device"])
    last = take(order())

    def step() -> None:
        nonlocal last
        last = take(order())

    return Stepper(step, by_hand.waiter(spec["device"]), lambda: -last.item(), notes=lambda: ran_as(engine, made.notes))


def public_step(spec: dict[str, Any], case: Case, rows: Tensor, *, engine: str, precision: str = "float32") -> Stepper:
    """The drop-in class: `pyrovae.SVI(...).update(x)`, which does not wait for the device."""
    pyro.enable_validation(False)
    pair = pair_of(case).to(rows.device)
    optimizer = pyro.optim.Adam({"lr": LEARNING_RATE})
    svi = pyrovae.SVI(pair.model, pair.guide, optimizer, loss_of(case), engine=engine, precision=precision)
    rows = shaped(case, rows)
    order = by_hand.Order(len(rows), case.batch, spec["seed"], spec["device"])
    for _ in range(2):  # the first step is eager
        last = svi.update(rows.index_select(0, order()))

    def step() -> None:
        nonlocal last
        last = svi.update(rows.index_select(0, order()))

    def notes() -> dict[str, Any]:
        return ran_as(engine, [note for taken in svi._steps.values() if taken.engine for note in taken.engine.notes])

    # Like Pyro's, its loss is a sum over the rows of a batch.
    return Stepper(step, by_hand.waiter(spec["device"]), lambda: last.item() / case.batch, notes=notes)


def ran_as(engine: str, notes: list[str]) -> dict[str, Any]:
    """The engine, or what it fell back to."""
    return {"ran_as": "; ".join(notes) or engine}


def fitted(spec: dict[str, Any], pair: nn.Module, rows: Tensor) -> Any:
    """A pair after some twenty steps."""
    few = {"epochs": 1, "batch_size": 100, "seed": spec["seed"], "progress": False, "device": spec["device"]}
    made = pyrovae.fit(pair, rows[: 20 * 100], engine="traced", **few)
    made.threads = spec["threads"]
    return made


def log_likelihood(spec: dict[str, Any], case: Case, rows: Tensor, *, proposal: str, by_rule: bool = False) -> Stepper:
    """log p(x) with K = 1000 draws for each row; one step is all of it."""
    made = fitted(spec, pair_of(case), rows)
    if by_rule:
        made.threads = None
    last = torch.zeros(())

    def step() -> None:
        nonlocal last
        last = pyrovae.log_likelihood(made, rows[: case.images], case.particles, proposal=proposal, seed=spec["seed"])

    return Stepper(step, by_hand.waiter(spec["device"]), lambda: -last.mean().item())


def impute(spec: dict[str, Any], case: Case, rows: Tensor, *, proposal: str) -> Stepper:
    """Twenty data sets, in which half of the pixels are drawn given the others; one step is all of it."""
    h, z = (case.hidden,), case.latent
    seen = pyrovae.nets.WithMask(pyrovae.nets.MLP((PIXELS, PIXELS), (2, z), h))
    likelihood = pyrovae.observed_only(pyrovae.mlp(z, fam.Bernoulli(PIXELS), h))
    pair = pyrovae.VAE(pyrovae.priors.StandardNormal(z), likelihood, pyrovae.Conditional(seen, fam.Normal(z)))
    made = fitted(spec, pair, rows)
    holes = rows[: case.images].clone()
    holes[:, ::2] = torch.nan
    how = {"num_particles": case.particles, "proposal": proposal, "seed": spec["seed"]}

    def step() -> None:
        pyrovae.impute(made, holes, 20, **how)

    return Stepper(step, by_hand.waiter(spec["device"]))
