"""What is timed: the cases, their arithmetic, and who contends in each. Imports nothing, so no worker pays for another's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

LEARNING_RATE = 1e-3
PIXELS = 784


class NotAvailable(Exception):
    """What was asked for does not exist in this version: reported as that, not as a failure."""


@dataclass(frozen=True)
class Case:
    """One kind of step. `group` steps are timed together (rivals that run ahead are waited for once a group); a round has
    `groups` of them; one "step" of cases f, k and l is the whole evaluation."""

    key: str
    title: str
    batch: int
    latent: int
    hidden: int
    particles: int = 1
    classes: int = 0
    group: int = 1
    groups: int = 20
    images: int = 0
    graph: str = ""

    @property
    def flops(self) -> float:
        """Of a step's matrix products: forward, gradient of the weights, gradient of the inputs except of x and labels.
        0 of a graph, or of a proposal that is refined, whose products nobody has counted."""
        if self.graph or self.key in "kl":
            return 0.0
        rows, wide = self.batch, self.batch * max(1, self.classes) * self.particles
        h, z = self.hidden, self.latent

        def layer(n: int, a: int, b: int, products: int = 3) -> float:
            return 2.0 * n * a * b * products

        decoder = layer(wide, z, h) + layer(wide, h, PIXELS)
        if self.images:
            draws = self.images * self.particles
            once = layer(self.images, PIXELS, h, 1) + layer(self.images, h, 2 * z, 1)
            return once + layer(draws, z, h, 1) + layer(draws, h, PIXELS, 1)
        if self.classes:
            classifier = layer(rows, PIXELS, h, 2) + layer(rows, h, self.classes)
            # A label's layer has one row a class: nothing beside the others.
            return classifier + layer(rows, PIXELS, h, 2) + layer(wide, h, 2 * z) + decoder
        return layer(rows, PIXELS, h, 2) + layer(rows, h, 2 * z) + decoder


CASES = {
    case.key: case
    for case in (
        Case("a", "VAE 784-400-20, batch 256", 256, 20, 400, group=4, groups=20),
        Case("b", "VAE 784-64-2, batch 32", 32, 2, 64, group=16, groups=20),
        Case("c", "M2, 10 classes enumerated, 784-500-50, batch 200", 200, 50, 500, classes=10, groups=12),
        Case("d", "IWAE K=50, 784-400-20, batch 100", 100, 20, 400, particles=50, groups=8),
        Case("e", "files to fitted model: MNIST, 784-400-20, batch 256", 256, 20, 400),
        Case("f", "log p(x), K=1000, 1,000 images, 784-400-20", 1, 20, 400, particles=1000, images=1000, groups=1),
        Case("g", "two levels, 784-200-200-100-100-100-50, batch 100", 100, 50, 200, group=4, graph="two"),
        Case("h", "five levels, 64-32-16-8-4, one layer of 64-32-16-8-4, batch 32", 32, 4, 64, group=8, graph="five"),
        Case("i", "ladder of five levels, the same nets, batch 32", 32, 4, 64, group=8, graph="ladder"),
        Case("j", "NVAE, 16-32 channels, 2 + 2 groups of maps, batch 32", 32, 4, 16, groups=8, graph="nvae"),
        Case(
            "k", "log p(x), K=1000, refined for each of 100 images, 784-400-20", 1, 20, 400, 1000, images=100, groups=1
        ),
        Case("l", "impute half of 100 images, 20 data sets, 784-400-20", 1, 20, 400, 1000, images=100, groups=1),
        Case("m", "Bayesian decoder, 784-400-20, batch 256", 256, 20, 400, group=4, graph="bayesian"),
        Case(
            "n", "VQ-VAE, FSQ of 200 codes on a 7x7 grid, 784-400-147, batch 128", 128, 3, 400, group=4, graph="vqvae"
        ),
        Case("o", "deep Markov model, 28 steps of 28 pixels, 100 units, batch 20", 20, 10, 100, groups=8, graph="dmm"),
        Case("p", "one fit by two processes, 784-400-20, batch 256", 256, 20, 400),
    )
}


def smaller(case: Case) -> Case:
    """The same step with next to no repetition, for a smoke run."""
    return replace(case, group=1, groups=1, images=min(case.images, 10), particles=min(case.particles, 100))


@dataclass
class Stepper:
    """A contender, ready to run. `step` may return before its work is done; `wait` blocks until it is."""

    step: Callable[[], Any]
    wait: Callable[[], Any] = lambda: None
    loss: Callable[[], float] = lambda: float("nan")  # of the last step, nats per row: tells that all do the same work
    steps_per_call: int = 1
    notes: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Contender:
    """Who runs: `build` in `contenders.<module>` called with (spec, case, rows, **options) gives a Stepper.

    `family` is who it stands for in a ratio; of several in one family the fastest counts. `peer` needs the peers'
    environment.
    """

    name: str
    family: str
    cases: str
    module: str
    build: str
    options: dict[str, Any] = field(default_factory=dict)
    peer: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")


BF16 = {"precision": "bfloat16"}
CUDA = ("cuda",)
CPU = ("cpu",)


def contenders() -> list[Contender]:
    """All of them, in the order of the table."""
    found: list[Contender] = []

    def add(name: str, family: str, cases: str, build: str, peer: bool = False, devices: Any = None, **o: Any) -> None:
        module, function = build.split(".")
        found.append(Contender(name, family, cases, module, function, o, peer, devices or ("cpu", "cuda")))

    for engine in ("eager", "traced", "compiled", "graphed"):
        where = CUDA if engine == "graphed" else None
        add(f"pyrovae {engine}", "ours", "abcdghijmno", "ours.our_step", devices=where, engine=engine)
        add(f"pyrovae SVI {engine}", "ours", "abcd", "ours.public_step", devices=where, engine=engine)
        add(f"pyrovae bf16 {engine}", "ours bf16", "a", "ours.our_step", devices=where, engine=engine, **BF16)
    add("pyrovae log_likelihood", "ours", "f", "ours.log_likelihood", proposal="guide")
    add(
        "pyrovae log_likelihood, threads by rule",
        "ours, by rule",
        "f",
        "ours.log_likelihood",
        proposal="guide",
        by_rule=True,
    )
    add("its matrix products alone", "products", "f", "by_hand.products_of_f")
    add("pyrovae log_likelihood, refined", "ours", "k", "ours.log_likelihood", proposal="refined")
    add("pyrovae log_likelihood, Laplace", "ours, Laplace", "k", "ours.log_likelihood", proposal="laplace")
    add("pyrovae log_likelihood, guide", "ours, guide", "k", "ours.log_likelihood", proposal="guide")
    add("pyrovae impute, refined", "ours", "l", "ours.impute", proposal="refined")
    add("pyrovae impute, guide", "ours, guide", "l", "ours.impute", proposal="guide")
    add("PyTorch, Adam", "PyTorch", "a", "by_hand.build", fused=False)
    add("PyTorch, fused Adam", "PyTorch", "abcd", "by_hand.build")
    add("PyTorch, loss compiled", "PyTorch", "abcd", "by_hand.build", compiled="loss")
    add("PyTorch, step compiled", "PyTorch", "abcd", "by_hand.build", compiled="step")
    add(
        "PyTorch, step compiled, denormals flushed",
        "PyTorch flushed",
        "ab",
        "by_hand.build",
        compiled="step",
        flush=True,
        devices=CPU,
    )
    add("PyTorch, fused Adam, denormals flushed", "PyTorch flushed", "ab", "by_hand.build", flush=True, devices=CPU)
    add("PyTorch, CUDA graph", "PyTorch graphed", "abcd", "by_hand.build", graphed=True, devices=CUDA)
    graphs = {"graphed": True, "compiled": "loss"}
    add("PyTorch, CUDA graph, loss compiled", "PyTorch graphed", "abcd", "by_hand.build", devices=CUDA, **graphs)
    add("PyTorch bf16, loss compiled", "PyTorch bf16", "a", "by_hand.build", compiled="loss", **BF16)
    add("Pyro SVI", "Pyro", "abcd", "with_pyro.build")
    add("Pyro SVI, the same graph", "Pyro", "ghijmno", "with_pyro.same_graph")
    add("Pyro SVI, validation on", "Pyro, validation on", "abcd", "with_pyro.build", validation=True)
    add("Pyro SVI, Jit", "Pyro Jit", "ab", "with_pyro.build", jit=True)
    add("Pyro SVI, Jit, validation on", "Pyro Jit, validation on", "ab", "with_pyro.build", jit=True, validation=True)
    add("Pyro SVI, nets that concatenate", "Pyro, tutorial's nets", "c", "with_pyro.build", concatenate=True)
    add("NumPyro, jitted update", "NumPyro jit", "ab", "with_numpyro.build", peer=True)
    add("NumPyro, scanned steps", "NumPyro scan", "ab", "with_numpyro.build", peer=True, scanned=True)
    add("pythae, model and its step", "pythae", "abd", "with_pythae.step", peer=True)
    add("pythae, its trainer and loader", "pythae trainer", "ab", "with_pythae.trainer", peer=True)
    add("pythae get_nll", "pythae", "f", "with_pythae.get_nll", peer=True)
    add("pyroVED, its SVI step", "pyroVED", "ab", "with_pyroved.build", peer=True)
    return found


CEILING = Contender("ceiling", "machine", "", "by_hand", "ceiling")

TWO = {"processes": 2}

# Cases e and p: whole processes, `jobs.py`; `build` is a function there.
JOBS = [
    Contender("pyrovae, binarised at every step", "ours, more work", "e", "jobs", "ours", {"engine": "auto"}),
    Contender("pyrovae, binarised once", "ours", "e", "jobs", "ours", {"engine": "auto", "once": True}),
    Contender("pyrovae compiled, binarised once", "ours", "e", "jobs", "ours", {"engine": "compiled", "once": True}),
    Contender(
        "pyrovae, threads by rule",
        "ours, by rule",
        "e",
        "jobs",
        "ours",
        {"engine": "auto", "once": True, "by_rule": True},
    ),
    Contender(
        "pyrovae, 100 epochs", "ours, 100 epochs", "e", "jobs", "ours", {"engine": "auto", "epochs": 100}, devices=CUDA
    ),
    Contender("Pyro tutorial's script", "Pyro", "e", "jobs", "pyro_tutorial", {"loaders": 1}),
    Contender("Pyro tutorial's script, no loader process", "Pyro", "e", "jobs", "pyro_tutorial", {"loaders": 0}),
    Contender("pythae TrainingPipeline", "pythae", "e", "jobs", "pythae_pipeline", peer=True),
    Contender("pyrovae, two processes", "ours", "p", "jobs", "together", {"by": "ours", **TWO}, devices=CPU),
    Contender("pyrovae, one process", "ours, alone", "p", "jobs", "together", {"by": "ours"}, devices=CPU),
    Contender("PyTorch's DDP, two processes", "PyTorch", "p", "jobs", "together", {"by": "ddp", **TWO}, devices=CPU),
]
