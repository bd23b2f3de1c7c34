"""Pyro's own SVI on hand-written model and guide: a fair Pyro program, with none of pyrovae's layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.infer import SVI, JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

from contenders import by_hand
from contenders.cases import LEARNING_RATE, Case, Stepper

load = by_hand.load


class VAE:
    """Two Pyro programs around the shared nets."""

    def __init__(self, case: Case, device: str) -> None:
        self.nets = by_hand.Nets(case).to(device)
        self.latent = case.latent

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.nets.decoder)
        with pyro.plate("data", x.shape[0]):
            zeros = x.new_zeros(x.shape[0], self.latent)
            z = pyro.sample("z", dist.Normal(zeros, x.new_ones(())).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.nets.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.nets.encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(*self.nets.encode(x)).to_event(1))


class M2:
    """p(y) p(z) p(x|z,y) with q(y|x) q(z|x,y), of unlabelled rows; y is marked for enumeration."""

    def __init__(self, case: Case, device: str, concatenate: bool) -> None:
        self.nets: nn.Module = by_hand.LabelledNets(case, concatenate).to(device)
        self.latent, self.classes = case.latent, case.classes

    def model(self, x: Tensor) -> None:
        pyro.module("nets", self.nets)
        with pyro.plate("data", x.shape[0]):
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(x.shape[0], self.classes)))
            zeros = x.new_zeros(x.shape[0], self.latent)
            z = pyro.sample("z", dist.Normal(zeros, x.new_ones(())).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.nets.decode(z, y)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            q = dist.OneHotCategorical(logits=self.nets.classifier(x))
            y = pyro.sample("y", q, infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(*self.nets.encode(x, y)).to_event(1))


def same_graph(spec: dict[str, Any], case: Case, rows: Tensor) -> Stepper:
    """pyrovae's own model and guide, as any Pyro program: every sample statement is Pyro's."""
    from contenders import ours  # the peers' processes do without

    pyro.enable_validation(False)
    pair = ours.pair_of(case).to(spec["device"])

    def registered(program: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        def run(x: Tensor) -> Any:
            pyro.module("pair", pair)
            return program(x)

        return run

    return stepping(
        spec, case, ours.shaped(case, rows), SVI(registered(pair.model), registered(pair.guide), adam(), Trace_ELBO())
    )


def adam() -> Any:
    return pyro.optim.Adam({"lr": LEARNING_RATE})


def build(
    spec: dict[str, Any],
    case: Case,
    rows: Tensor,
    *,
    validation: bool = False,
    jit: bool = False,
    concatenate: bool = False,
) -> Stepper:
    pyro.enable_validation(validation)
    pair: Any
    if case.classes:
        pair, loss = M2(case, spec["device"], concatenate), TraceEnum_ELBO(max_plate_nesting=1)
    elif case.particles > 1:
        pair = VAE(case, spec["device"])
        loss = RenyiELBO(alpha=0, num_particles=case.particles, vectorize_particles=True, max_plate_nesting=1)
    else:
        pair = VAE(case, spec["device"])
        loss = JitTrace_ELBO(ignore_jit_warnings=True) if jit else Trace_ELBO()
    return stepping(spec, case, rows, SVI(pair.model, pair.guide, adam(), loss))


def stepping(spec: dict[str, Any], case: Case, rows: Tensor, svi: Any) -> Stepper:
    order = by_hand.Order(len(rows), case.batch, spec["seed"], spec["device"])
    last = 0.0

    def step() -> None:
        nonlocal last
        last = svi.step(rows.index_select(0, order()))

    return Stepper(step, by_hand.waiter(spec["device"]), lambda: last / case.batch)
