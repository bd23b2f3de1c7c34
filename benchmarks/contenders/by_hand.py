"""PyTorch without a library: the loops that a good programmer writes, and the machine's matrix-product ceiling."""

from __future__ import annotations

import ctypes
import importlib
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contenders.cases import LEARNING_RATE, PIXELS, Case, Stepper

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def load(spec: dict[str, Any]) -> Tensor:
    """All rows on the device, float32, and the threads and the seed set: what every PyTorch contender begins with.

    What PyTorch imports when it is first needed is imported here, a compiler included, so that nobody's memory or first step
    counts it.
    """
    torch.set_num_threads(spec["threads"])
    if not spec["smoke"]:
        importlib.import_module("torch._inductor.compile_fx")
    layer = nn.Linear(8, 8).to(spec["device"])
    layer(torch.ones(8, 8, device=spec["device"])).sum().backward()
    torch.optim.Adam(layer.parameters(), fused=True).step()
    rows = torch.from_numpy(np.load(spec["data"])).to(torch.float32).to(spec["device"])
    if spec["device"] == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(spec["seed"])
    return rows


def waiter(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


class Order:
    """Shuffled indices of rows, a batch a call, round and round; on the device before the clock starts."""

    def __init__(self, num_rows: int, batch: int, seed: int, device: str) -> None:
        shuffled = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
        self.batches = shuffled[: num_rows // batch * batch].reshape(-1, batch).to(device)
        self.next = 0

    def __call__(self) -> Tensor:
        index = self.batches[self.next]
        self.next = (self.next + 1) % len(self.batches)
        return index


# --- nets ------------------------------------------------------------------------------------------------------------


class Nets(nn.Module):
    """Encoder to (location, raw scale) and decoder to logits, one hidden layer each."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        h, z = case.hidden, case.latent
        self.encoder = nn.Sequential(nn.Linear(PIXELS, h), nn.ReLU(), nn.Linear(h, 2 * z))
        self.decoder = nn.Sequential(nn.Linear(z, h), nn.ReLU(), nn.Linear(h, PIXELS))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.encoder(x).chunk(2, -1)
        return loc, F.softplus(raw) + 1e-4


class LabelledNets(nn.Module):
    """M2's nets: q(y | x), q(z | x, y), p(x | z, y). A layer of two parents is a sum of two: no parent is copied along the
    classes. `concatenate=True` copies and concatenates, as is commonly written."""

    def __init__(self, case: Case, concatenate: bool = False) -> None:
        super().__init__()
        h, z, c = case.hidden, case.latent, case.classes
        self.concatenate = concatenate
        self.classifier = nn.Sequential(nn.Linear(PIXELS, h), nn.Softplus(), nn.Linear(h, c))
        self.encode_x = nn.Linear(PIXELS + c * concatenate, h)
        self.decode_z = nn.Linear(z + c * concatenate, h)
        if not concatenate:
            self.encode_y = nn.Linear(c, h, bias=False)
            self.decode_y = nn.Linear(c, h, bias=False)
        self.encode_out = nn.Linear(h, 2 * z)
        self.decode_out = nn.Linear(h, PIXELS)

    def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.encode_x(beside(x, y)) if self.concatenate else self.encode_x(x) + self.encode_y(y)
        loc, raw = self.encode_out(F.softplus(hidden)).chunk(2, -1)
        return loc, F.softplus(raw) + 1e-4

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        hidden = self.decode_z(beside(z, y)) if self.concatenate else self.decode_z(z) + self.decode_y(y)
        return self.decode_out(F.softplus(hidden))


def beside(a: Tensor, b: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return torch.cat([a.expand(*shape, -1), b.expand(*shape, -1)], -1)


# --- losses, nats per row --------------------------------------------------------------------------------------------


def vae_loss(nets: Nets, x: Tensor) -> Tensor:
    loc, scale = nets.encode(x)
    z = loc + scale * torch.randn_like(scale)
    missed = F.binary_cross_entropy_with_logits(nets.decoder(z), x, reduction="sum")
    kl = 0.5 * (loc.square() + scale.square() - 1).sum() - scale.log().sum()
    return (missed + kl) / len(x)


def iwae_loss(nets: Nets, x: Tensor, particles: int) -> Tensor:
    loc, scale = nets.encode(x)
    noise = torch.randn(particles, *loc.shape, device=x.device, dtype=loc.dtype)
    z = loc + scale * noise
    logits = nets.decoder(z)
    log_x = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
    log_w = log_x + 0.5 * (noise.square() - z.square()).sum(-1) + scale.log().sum(-1)
    return math.log(particles) - log_w.logsumexp(0).mean()


def enumerated_loss(nets: LabelledNets, x: Tensor, classes: int) -> Tensor:
    log_y = F.log_softmax(nets.classifier(x), -1).T  # (C, N)
    y = torch.eye(classes, device=x.device)[:, None]  # (C, 1, C)
    loc, scale = nets.encode(x, y)
    noise = torch.randn_like(scale)
    z = loc + scale * noise
    logits = nets.decode(z, y)
    log_x = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
    log_z = 0.5 * (noise.square() - z.square()).sum(-1) + scale.log().sum(-1)
    return -(log_y.exp() * (log_x + log_z - log_y - math.log(classes))).sum() / len(x)


def loss_of(case: Case) -> tuple[nn.Module, Callable[[Any, Tensor], Tensor]]:
    if case.classes:
        return LabelledNets(case), lambda nets, x: enumerated_loss(nets, x, case.classes)
    if case.particles > 1:
        return Nets(case), lambda nets, x: iwae_loss(nets, x, case.particles)
    return Nets(case), vae_loss


# --- loops -----------------------------------------------------------------------------------------------------------


def build(
    spec: dict[str, Any],
    case: Case,
    rows: Tensor,
    *,
    fused: bool = True,
    compiled: str = "",
    graphed: bool = False,
    precision: str = "float32",
    flush: bool = False,
) -> Stepper:
    """Gather, loss, backward, Adam. `compiled`: "loss", or "step" for gather, loss, gradient and update in one function.

    flush: denormal numbers are zero, as in NumPyro and in pyrovae. Few loops that people write ask for it.
    """
    device = spec["device"]
    if flush and torch.set_flush_denormal(True):
        ctypes.CDLL(None).omp_pause_resource_all(1)  # new workers take it over
    nets, loss_function = loss_of(case)
    nets.to(device)
    order = Order(len(rows), case.batch, spec["seed"], device)
    optimizer = torch.optim.Adam(nets.parameters(), lr=LEARNING_RATE, fused=fused or None, capturable=graphed)

    def objective(x: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            return loss_function(nets, x)

    compiler = {"backend": "aot_eager"} if spec.get("smoke") else {}  # no half a minute of C++ in a smoke run
    run = torch.compile(objective, **compiler) if compiled == "loss" else objective
    last = torch.zeros((), device=device)

    def step() -> None:
        nonlocal last
        optimizer.zero_grad(set_to_none=True)
        loss = run(rows.index_select(0, order()))
        loss.backward()
        optimizer.step()
        last = loss.detach()

    if compiled == "step":
        # PyTorch before 2.10 cannot trace autograd.grad: the contender then fails, and says so.
        torch._dynamo.config.trace_autograd_ops = True
        taken = AdamStep(nets, rows, objective)
        whole = torch.compile(lambda index: taken(index), fullgraph=True, **compiler)

        def step() -> None:
            nonlocal last
            last = whole(order())

    if graphed:
        replay, last = capture(rows, order, optimizer, run)
        return Stepper(replay, waiter(device), last.item)
    return Stepper(step, waiter(device), lambda: last.item())


class AdamStep:
    """A step as one function of an index, for torch.compile, Adam's update written out."""

    def __init__(self, nets: nn.Module, rows: Tensor, objective: Callable[[Tensor], Tensor]) -> None:
        self.rows, self.objective = rows, objective
        self.leaves = list(nets.parameters())
        self.means = [torch.zeros_like(p) for p in self.leaves]
        self.squares = [torch.zeros_like(p) for p in self.leaves]
        self.count = torch.zeros((), device=rows.device)

    def __call__(self, index: Tensor) -> Tensor:
        loss = self.objective(self.rows.index_select(0, index))
        gradients = torch.autograd.grad(loss, self.leaves)
        with torch.no_grad():
            self.count.add_(1)
            rate = LEARNING_RATE / (1 - 0.9**self.count)
            root = (1 - 0.999**self.count).sqrt()
            for leaf, mean, square, gradient in zip(self.leaves, self.means, self.squares, gradients):
                mean.lerp_(gradient, 0.1)
                square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                leaf.sub_(rate * mean / (square.sqrt() / root + 1e-8))
        return loss.detach()


def capture(
    rows: Tensor, order: Order, optimizer: torch.optim.Optimizer, run: Callable[[Tensor], Tensor]
) -> tuple[Callable[[], None], Tensor]:
    """The eager step in one CUDA graph; a replay is a copy of the index and a launch."""
    index = order().clone()

    def once() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = run(rows.index_select(0, index))
        loss.backward()
        optimizer.step()
        return loss.detach()

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        last = once()

    def replay() -> None:
        index.copy_(order())
        graph.replay()

    return replay, last


def products_of_f(spec: dict[str, Any], case: Case, rows: Tensor) -> Stepper:
    """The decoder's products of log p(x) and nothing else, image by image, by the faster one of PyTorch's two libraries."""
    device, wait = spec["device"], waiter(spec["device"])
    z, h = (torch.randn(case.particles, n, device=device) for n in (case.latent, case.hidden))
    into, out = (torch.randn(s, device=device) for s in ((case.latent, case.hidden), (case.hidden, PIXELS)))
    calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"default": torch.mm}
    if device == "cpu":
        calls["oneDNN"] = lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    taken = {}
    for name, multiply in calls.items():
        began = time.perf_counter()
        for _ in range(50):
            multiply(h, out)
        wait()
        taken[name] = time.perf_counter() - began
    chosen = min(taken, key=taken.__getitem__)

    def step() -> None:
        for _ in range(case.images):
            calls[chosen](z, into)
            calls[chosen](h, out)

    return Stepper(step, wait, notes=lambda: {"library": chosen})


# --- the ceiling -----------------------------------------------------------------------------------------------------

SHAPES = [(n, n, n) for n in (512, 1024, 2048)]
SHAPES += [(256, PIXELS, 400), (256, 400, PIXELS), (PIXELS, 256, 400), (400, 256, PIXELS)]
SHAPES_CUDA = [(n, n, n) for n in (4096, 8192)]


def ceiling(spec: dict[str, Any], case: Case, rows: Tensor) -> Stepper:
    """The machine's matrix products: one call times every shape in each precision; the best of all calls is the ceiling.

    In float32 on a CPU, by both libraries that PyTorch has; those of its own choice are told apart.
    """
    from pyrovae.engine.precision import has_bfloat16

    device, wait = spec["device"], waiter(spec["device"])
    best: dict[str, dict[str, float]] = {"float32": {}}
    if has_bfloat16(torch.device(device)):  # else a product would take minutes
        best["bfloat16"] = {}
    chosen: dict[str, float] = {}  # by torch.mm, in float32
    shapes = SHAPES[:1] if spec.get("smoke") else SHAPES + SHAPES_CUDA * (device == "cuda")
    made = []
    for precision in best:
        for n, k, m in shapes:
            a, b = (torch.randn(s, device=device, dtype=getattr(torch, precision)) for s in ((n, k), (k, m)))
            out = torch.empty(n, m, device=device, dtype=a.dtype)
            made.append((precision, f"{n}x{k}x{m}", 2.0 * n * k * m, a, b, out))

    def by_onednn(a: Tensor, b: Tensor, out: Tensor) -> None:
        torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")

    def by_default(a: Tensor, b: Tensor, out: Tensor) -> None:
        torch.mm(a, b, out=out)

    def step() -> None:
        for precision, shape, flops, a, b, out in made:
            for multiply in (by_default, by_onednn) if (precision, device) == ("float32", "cpu") else (by_default,):
                for _ in range(max(3, min(50, int(2e10 / flops)))):
                    began = time.perf_counter()
                    multiply(a, b, out)
                    wait()
                    found = flops / (time.perf_counter() - began) / 1e9
                    best[precision][shape] = max(found, best[precision].get(shape, 0.0))
                    if multiply is by_default and precision == "float32":
                        chosen[shape] = max(found, chosen.get(shape, 0.0))

    def notes() -> dict[str, Any]:
        rounded = {p: {s: round(g, 1) for s, g in found.items()} for p, found in best.items()}
        by_torch = {shape: round(found, 1) for shape, found in chosen.items()}
        return {
            "gflops": rounded,
            "float32 by torch.mm": by_torch,
            "best": {p: max(found.values()) for p, found in rounded.items()},
        }

    return Stepper(step, notes=notes, steps_per_call=case.group)  # one call a group
