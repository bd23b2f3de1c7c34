"""How time and memory grow: of a step of a fit, and of log p(x), with rows, latent size, particles, classes and levels.

    python benchmarks/growth.py [--only step,guide,refined] [--what latent dimensions,classes]

One size grows at a time, fourfold from point to point; everything else stays. Each point is a process of its own, forked from
one that has imported everything. Time is that of the CPU, one thread, the least of several repetitions; memory is the largest
resident memory of the process above that of one in which next to nothing grows. The exponent is the slope of the logarithms
over the last three points, where fixed costs weigh least: 1 is linear. Memory that never exceeds 50 MB has none.

A step is one of the traced engine, with Adam. log p(x) is estimated by `pv.importance`, from the guide as the proposal and from
the refined one, the default. Figures go to benchmarks/results/growth-cpu.json, .md and .png, where those of other choices stay.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import pyrovae as pv
from pyrovae import families as fam

RESULTS = Path(__file__).parent / "results"
WIDTH, HIDDEN, BATCH = 64, 128, 128
REPEATS, STEPS = 3, 10  # measurements of each, the least of which counts; steps of an epoch
LINEAR = 1.1  # an exponent up to which a cost counts as linear
FEW_MB = 50


class Sizes(NamedTuple):
    """What grows."""

    rows: int = BATCH  # of a minibatch, or of those whose log p(x) is asked
    data: int = 0  # rows of the data; 0 for ten minibatches
    latent: int = 16
    particles: int = 1
    classes: int = 0
    levels: int = 1


LEAST = Sizes(rows=16, latent=2)
STEP: dict[str, list[Sizes]] = {
    "rows of a minibatch": [Sizes(rows=n) for n in (128, 512, 2048, 8192)],
    "rows of the data": [Sizes(data=n) for n in (4_000, 16_000, 64_000, 256_000)],
    "latent dimensions": [Sizes(latent=n) for n in (16, 64, 256, 1024)],
    "particles": [Sizes(particles=n) for n in (1, 4, 16, 64)],
    "classes": [Sizes(classes=n) for n in (2, 8, 32, 128)],
    "levels": [Sizes(levels=n) for n in (1, 4, 16)],
}
LOG: dict[str, list[Sizes]] = {
    "rows": [Sizes(rows=n, particles=100) for n in (50, 200, 800, 3200)],
    "draws": [Sizes(rows=20, particles=n) for n in (100, 400, 1600, 6400)],
    "latent dimensions": [Sizes(rows=20, particles=100, latent=n) for n in (4, 16, 64, 256)],
    "classes": [Sizes(rows=20, particles=100, classes=n) for n in (2, 8, 32)],
    "levels": [Sizes(rows=20, particles=100, levels=n) for n in (1, 4, 16)],
}
GROWING = {
    "rows of a minibatch": "rows",
    "rows of the data": "data",
    "latent dimensions": "latent",
    "draws": "particles",
}


def pair_of(sizes: Sizes) -> Any:
    torch.manual_seed(0)
    likelihood = fam.Bernoulli(WIDTH)
    if sizes.classes:
        return pv.SSVAE(
            label_prior=pv.priors.Categorical(sizes.classes),
            prior=pv.priors.StandardNormal(sizes.latent),
            likelihood=pv.mlp((sizes.latent, sizes.classes), likelihood, (HIDDEN,)),
            encoder=pv.mlp((WIDTH, sizes.classes), fam.Normal(sizes.latent), (HIDDEN,)),
            classifier=pv.mlp(WIDTH, fam.Categorical((), sizes.classes), (HIDDEN,)),
            code=pv.nets.OneHot(sizes.classes),
        )
    if sizes.levels > 1:
        return pv.HierarchicalVAE.of_levels(
            likelihood, [sizes.latent] * sizes.levels, [HIDDEN] * sizes.levels, layers=1
        )
    prior = pv.priors.StandardNormal(sizes.latent)
    return pv.VAE(
        prior, pv.mlp(sizes.latent, likelihood, (HIDDEN,)), pv.mlp(WIDTH, fam.Normal(sizes.latent), (HIDDEN,))
    )


def rows_of(number: int, sizes: Sizes) -> dict[str, torch.Tensor]:
    """Rows of noise, none of them labelled."""
    x = torch.bernoulli(torch.full((number, WIDTH), 0.3), generator=torch.Generator().manual_seed(0))
    return {"x": x, "y": torch.full((number,), -1)} if sizes.classes else {"x": x}


def fitted_to(sizes: Sizes, epochs: int, **how: Any) -> Any:
    loss = pv.Trace_ELBO(num_particles=sizes.particles) if sizes.particles > 1 else None
    rows = rows_of(sizes.data or STEPS * sizes.rows, sizes)
    how = {"loss": loss, "batch_size": sizes.rows, "seed": 0, "progress": False, "threads": 1, **how}
    return pv.fit(pair_of(sizes), rows, epochs=epochs, **how)


def step(sizes: Sizes) -> float:
    """CPU seconds of a step: the least mean over an epoch, but for the first."""
    times: list[float] = []
    epochs = 2 if sizes.data else 1 + REPEATS
    fitted_to(sizes, epochs, engine="traced", callbacks=[lambda fitted: times.append(time.process_time())])
    return min(b - a for a, b in itertools.pairwise(times)) / ((sizes.data or STEPS * sizes.rows) / sizes.rows)


def log_p(sizes: Sizes, proposal: str) -> float:
    """CPU seconds of log p(x) of the rows."""
    fitted = fitted_to(sizes._replace(rows=BATCH, particles=1), 1, engine="eager")
    x, times = rows_of(sizes.rows, sizes), []
    while len(times) < REPEATS and sum(times) < 3:
        began = time.process_time()
        pv.importance(fitted, x, sizes.particles, proposal=proposal, seed=0)
        times.append(time.process_time() - began)
    return min(times)


def in_child(measure: Callable[[], float]) -> tuple[float, float]:
    """Seconds, and the largest resident memory of the child in MB."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            os.write(write, repr(measure()).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit("a measurement failed")
    return float(told), used.ru_maxrss / 1024


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of the logarithms, by least squares over the last three points."""
    x, y = (torch.tensor(some[-3:], dtype=torch.float64).log() for some in (sizes, values))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def measured(what: str, points: list[Sizes], measure: Callable[[Sizes], float], idle: float) -> dict[str, Any]:
    sizes = [getattr(point, GROWING.get(what, what)) for point in points]
    seconds, megabytes = [], []
    for point in points:
        spent, memory = in_child(functools.partial(measure, point))
        seconds.append(spent)
        megabytes.append(max(memory - idle, 0.1))
    found = {"sizes": sizes, "ms": [round(1000 * s, 3) for s in seconds], "MB": [round(m) for m in megabytes]}
    found["exponent of time"] = round(exponent(sizes, seconds), 2)
    found["exponent of memory"] = round(exponent(sizes, megabytes), 2) if max(megabytes) > FEW_MB else None
    return found


def as_markdown(found: dict[str, Any]) -> str:
    lines = ["| cost | of what grows | sizes | ms | exponent | MB | exponent |", "|---|---|---|---|---:|---|---:|"]
    for name, one in found.items():
        cost, _, what = name.partition(", ")
        columns = [" / ".join(f"{value:,g}" for value in one[key]) for key in ("sizes", "ms", "MB")]
        time_of, memory = one["exponent of time"], one["exponent of memory"]
        told = "" if memory is None else f"{memory:.2f}"
        lines.append(f"| {cost} | {what} | {columns[0]} | {columns[1]} | {time_of:.2f} | {columns[2]} | {told} |")
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    costs = list(dict.fromkeys(name.partition(", ")[0] for name in found))
    figure, axes = plt.subplots(1, len(costs), figsize=(4.2 * len(costs), 3.6), squeeze=False)
    for axis, cost in zip(axes[0], costs):
        for name, one in found.items():
            if name.startswith(f"{cost}, "):
                label = f"{name.partition(', ')[2]} ({one['exponent of time']:.2f})"
                axis.loglog([size / one["sizes"][0] for size in one["sizes"]], one["ms"], "o-", label=label, ms=3)
        axis.set(title=cost, xlabel="times the smallest size", ylabel="CPU ms")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="step,guide,refined", help="step, and log p(x) by the guide or the refined proposal"
    )
    parser.add_argument("--what", default="", help="names of what grows, with commas between them; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS / "growth-cpu.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pv.fit(
        pair_of(LEAST), rows_of(LEAST.rows, LEAST), epochs=1, engine="traced", progress=False
    )  # imports what is late
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    found: dict[str, Any] = kept.get("growth", {})
    chosen = [what.strip() for what in given.what.split(",") if what.strip()]
    measures: dict[str, tuple[str, dict[str, list[Sizes]], Callable[[Sizes], float]]] = {
        "step": ("a step", STEP, step),
        "guide": ("log p(x) by the guide", LOG, lambda sizes: log_p(sizes, "guide")),
        "refined": ("log p(x) refined", LOG, lambda sizes: log_p(sizes, "refined")),
    }
    for name in given.only.split(","):
        cost, points, measure = measures[name.strip()]
        _, idle = in_child(functools.partial(measure, LEAST))
        for what, sizes in points.items():
            if not chosen or what in chosen:
                found[f"{cost}, {what}"] = one = measured(what, sizes, measure, idle)
                print(f"{cost}, {what}: {one}", flush=True)
    steep = [
        name for name, one in found.items() if max(one["exponent of time"], one["exponent of memory"] or 0) > LINEAR
    ]
    print(f"more than linear: {', '.join(steep) or 'nothing'}")
    given.out.write_text(json.dumps({"torch": str(torch.__version__), "growth": found}, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(as_markdown(found))
    draw(found, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
