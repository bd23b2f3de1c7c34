"""A deep Markov model in Pyro, step by step, and as `pv.DeepMarkovVAE`: the same losses, and what a step takes.

    python benchmarks/papers/dmm.py
    python benchmarks/papers/dmm.py --only "pyro.infer.SVI;pv.SVI" --sizes 32,32,64,128 --lengths 15,30 --rounds 3 --seeds 0

CONTENDERS, which have the same networks with the same weights at the start, the same minibatches, Adam, and the same noise:

pyro.infer.SVI        the program that one writes by hand: a loop with a sample statement for every z_t and every x_t, masked
                      after the end of a sequence, under Pyro's SVI and Trace_ELBO
pv.SVI                `pv.DeepMarkovVAE`, whose chain is one site, under `pv.SVI`
pv.SVI of the loop    the program that is written by hand, under `pv.SVI`

The sizes are those of Pyro's example of a deep Markov model, after Krishnan, Shalit and Sontag 2017 (arXiv:1609.09869): 88
notes, 100 latent dimensions, emitters of 100 units in two layers, transitions of 200, a recurrent network of 600 units,
minibatches of 20 sequences. z_1 has the prior N(0, I). The data are made here: 240 pieces of 30 to 60 steps, four voices that
move to the nearest notes of a chord, the chords a Markov chain in one of twelve keys; 40 pieces are held out.

All contenders draw the same noise, so that their losses have to agree, step by step: "apart" is the largest relative difference
of the loss of a step from that of the first contender, and "held_out" the loss of the pieces held out after the last step, in
nats per time step. Steps are timed in rounds, one contender after the other, without the first --warm-up steps: the median over
rounds of milliseconds a step, and the least and the greatest, by the clock and of the CPU ("cpu_ms"), which other work on the
machine disturbs less.

Writes benchmarks/results/dmm-DEVICE.json, by sizes, lengths, steps and seed; what is there is kept unless --again.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import harness
import pyro
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

NOTES, CHORDS = 88, ((0, 4, 7), (5, 9, 0), (7, 11, 2), (9, 0, 4), (2, 5, 9))  # I, IV, V, vi, ii
NEXT = torch.tensor(
    [[2, 3, 3, 1, 1], [3, 1, 4, 0, 1], [6, 1, 1, 2, 0], [1, 3, 2, 0, 3], [0, 1, 6, 1, 1]], dtype=torch.float
)
VOICES = (24, 34, 41, 48)  # where they begin, as keys of a piano


def pieces(num: int, shortest: int, longest: int, seed: int) -> Tensor:
    """`(num, longest, 88)`: which notes sound at each step; NaN after the end of a piece."""
    generator = torch.Generator().manual_seed(seed)

    def choose(weights: Tensor) -> int:
        return int(torch.multinomial(weights, 1, generator=generator))

    x = torch.full((num, longest, NOTES), torch.nan)
    for piece in range(num):
        key, chord, voices = choose(torch.ones(12)), 0, list(VOICES)
        length = shortest + choose(torch.ones(longest - shortest + 1))
        for step in range(length):
            if step % 2 == 0:
                chord = choose(NEXT[chord])
            notes = torch.zeros(NOTES)
            for number, start in enumerate(VOICES):
                wish = 0.8 * voices[number] + 0.2 * start + 1.5 * float(torch.randn((), generator=generator))
                sounding = [n for n in range(12, NOTES - 12) if (n + 9 - key) % 12 in CHORDS[chord]]  # key 0 is an A
                voices[number] = min(sounding, key=lambda note, wish=wish: abs(note - wish))  # type: ignore[misc]
                notes[voices[number]] = 1.0
            x[piece, step] = notes
    return x


# --- networks ----------------------------------------------------------------------------------------------------------


class Reader(pv.nets.BackwardGRU):
    """A plain recurrent network with rectified units, in place of the GRU."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__(in_features, width)
        self.gru = nn.RNN(2 * in_features, width, nonlinearity="relu", batch_first=True)  # type: ignore[assignment]


class Combined(nn.Module):
    """Location and scale of q(z_t | z_(t-1), h_t) from `(tanh(W z + b) + h) / 2`, `(*batch, 2, L)`."""

    def __init__(self, latent: int, width: int) -> None:
        super().__init__()
        self.before, self.out, self.latent = nn.Linear(latent, width), nn.Linear(width, 2 * latent), latent

    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        found: Tensor = self.out((torch.tanh(self.before(z)) + h) / 2)
        return found.unflatten(-1, (2, self.latent))


def build(options: argparse.Namespace, seed: int) -> pv.DeepMarkovVAE:
    torch.manual_seed(seed)
    latent, emitter, transition, width = options.sizes
    return pv.DeepMarkovVAE(
        initial=pv.priors.StandardNormal(latent),
        transition=pv.Conditional(pv.nets.GatedStep(latent, transition), fam.Normal(latent)),
        likelihood=pv.mlp(latent, fam.Bernoulli(NOTES), hidden=(emitter, emitter)),
        reader=Reader(NOTES, width),
        combiner=pv.Conditional(Combined(latent, width), fam.Normal(latent)),
    )


class Loop:
    """The same model and guide as one writes them in Pyro, with the networks of a `DeepMarkovVAE`."""

    def __init__(self, nets: pv.DeepMarkovVAE) -> None:
        self.nets = nets

    def model(self, x: Tensor) -> None:
        pyro.module("nets", self.nets)
        here, notes = ~x[..., 0].isnan(), x.nan_to_num()
        with pyro.plate("data", len(x)):
            step: Any = self.nets.initial()
            for t in pyro.markov(range(x.shape[1])):
                with pyro.poutine.mask(mask=here[:, t]):
                    z = pyro.sample(f"z_{t}", step)
                    pyro.sample(f"x_{t}", self.nets.likelihood(z), obs=notes[:, t])
                step = self.nets.transition(z)

    def guide(self, x: Tensor) -> None:
        pyro.module("nets", self.nets)
        here, h = ~x[..., 0].isnan(), self.nets.reader(x)
        z = h.new_zeros(len(x), *self.nets.initial().event_shape)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                with pyro.poutine.mask(mask=here[:, t]):
                    z = pyro.sample(f"z_{t}", self.nets.combiner(z, h[:, t]))


class Registered:
    """A `DeepMarkovVAE` as a program whose parameters are in Pyro's store, like those of `Loop`."""

    def __init__(self, nets: pv.DeepMarkovVAE) -> None:
        self.nets = nets

    def model(self, x: Tensor) -> None:
        pyro.module("nets", self.nets)
        self.nets.model(x)

    def guide(self, x: Tensor) -> None:
        pyro.module("nets", self.nets)
        self.nets.guide(x)


# --- contenders --------------------------------------------------------------------------------------------------------


class Contender:
    """An SVI with the networks that it trains, and the losses of its steps, in nats a time step."""

    def __init__(self, make: Callable[..., Any], by_hand: bool, options: argparse.Namespace, seed: int) -> None:
        self.nets = build(options, seed).to(options.device)
        program: Any = (Loop if by_hand else Registered)(self.nets)
        self.parameters: Any = None
        with self.own_parameters():
            self.svi = make(program.model, program.guide, pyro.optim.Adam({"lr": options.rate}))
        self.losses: list[float] = []
        self.ms: list[float] = []
        self.cpu_ms: list[float] = []

    def own_parameters(self) -> Any:
        """Pyro has one param store for all programs, in which those of each contender have the same names."""
        return _Swapped(self)

    def steps(self, x: Tensor, order: list[Tensor], first: int) -> None:
        """Steps on some minibatches, timed together; the noise of a step is that of its number."""
        wall, cpu = time.perf_counter(), time.process_time()
        with self.own_parameters():
            for number, rows in enumerate(order, first):
                torch.manual_seed(number)
                batch = x[rows]
                self.losses.append(float(self.svi.step(batch)) / in_steps(batch))
        self.ms.append(1000 * (time.perf_counter() - wall) / len(order))
        self.cpu_ms.append(1000 * (time.process_time() - cpu) / len(order))

    def loss(self, x: Tensor) -> float:
        """Nats a time step of these pieces, the mean over five draws."""
        found = []
        with self.own_parameters():
            for seed in range(5):
                torch.manual_seed(seed)
                found.append(float(self.svi.evaluate_loss(x)) / in_steps(x))
        return statistics.mean(found)


class _Swapped:
    def __init__(self, contender: Contender) -> None:
        self.contender = contender

    def __enter__(self) -> None:
        self.others = pyro.get_param_store().get_state()
        pyro.clear_param_store()
        if self.contender.parameters is not None:
            pyro.get_param_store().set_state(self.contender.parameters)

    def __exit__(self, *error: Any) -> None:
        self.contender.parameters = pyro.get_param_store().get_state()
        pyro.clear_param_store()
        pyro.get_param_store().set_state(self.others)


def in_steps(x: Tensor) -> int:
    return int((~x[..., 0].isnan()).sum())


def pyros(model: Any, guide: Any, optim: Any) -> Any:
    return pyro.infer.SVI(model, guide, optim, pyro.infer.Trace_ELBO())


CONTENDERS: dict[str, tuple[Callable[..., Any], bool]] = {
    "pyro.infer.SVI": (pyros, True),
    "pv.SVI": (pv.SVI, False),
    "pv.SVI of the loop": (pv.SVI, True),
}


def measure(seed: int, x: Tensor, held_out: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    total = options.warm_up + options.rounds * options.steps
    per_epoch = len(x) // options.batch_size
    epochs = [torch.randperm(len(x), generator=generator).split(options.batch_size)[:per_epoch] for _ in range(total)]
    order = [rows for epoch in epochs for rows in epoch][:total]
    contenders = {name: Contender(*CONTENDERS[name], options, seed) for name in options.only}
    start = {name: one.loss(held_out) for name, one in contenders.items()}
    done = 0
    for number, steps in enumerate([options.warm_up] + [options.steps] * options.rounds):
        for one in contenders.values():
            one.steps(x, order[done : done + steps], done)
        done += steps
        if options.verbose:
            print(f"round {number}:", {name: f"{one.ms[-1]:.0f} ms" for name, one in contenders.items()}, flush=True)
    first = next(iter(contenders.values()))
    return {
        name: {
            "held_out_at_start": round(start[name], 4),
            "held_out": round(one.loss(held_out), 4),
            "loss": round(statistics.mean(one.losses[-options.steps :]), 4),
            "apart": max(abs(a - b) / abs(b) for a, b in zip(one.losses, first.losses)),
            "ms": [round(f(one.ms[1:]), 1) for f in (statistics.median, min, max)],
            "cpu_ms": [round(f(one.cpu_ms[1:]), 1) for f in (statistics.median, min, max)],
        }
        for name, one in contenders.items()
    }


def main() -> None:
    made = harness.parser(__doc__, CONTENDERS, separator=";", batch_size=20, rate=3e-4, rows=200, seeds=(0, 1, 2))
    made.add_argument("--sizes", type=harness.integers, default=(100, 100, 200, 600))
    made.add_argument("--lengths", type=harness.integers, default=(30, 60), help="the shortest and the longest piece")
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument("--steps", type=int, default=20, help="of a round")
    made.add_argument("--warm-up", type=int, default=3, help="steps before the first round")
    made.add_argument("--verbose", action="store_true")
    smoke = {
        "rows": 6,
        "batch_size": 3,
        "lengths": (2, 5),
        "sizes": (3, 4, 4, 5),
        "rounds": 2,
        "steps": 1,
        "seeds": (0,),
        "warm_up": 3,
    }
    options = harness.parse(made, needs_files=False, **smoke)
    held_out = 4 if options.smoke else 40
    x = pieces(options.rows + held_out, *options.lengths, seed=0).to(options.device)
    steps = options.rounds * options.steps + options.warm_up
    sizes, lengths = (",".join(map(str, numbers)) for numbers in (options.sizes, options.lengths))
    kept = harness.Kept(options, "dmm")
    for seed in options.seeds:
        found = kept.entry(
            f"sizes {sizes}, lengths {lengths}, {steps} steps, seed {seed}",
            functools.partial(measure, seed, x[held_out:], x[:held_out], options),
        )
        for name, one in found.items():
            print(f"{name:20} held out {one['held_out']:.4f}, {one['ms'][0]} ms a step ({one['cpu_ms'][0]} of the CPU)")


if __name__ == "__main__":
    main()
