"""One contender in a process of its own. argv: a JSON spec. Then lines on stdin, answers as JSON lines on stdout:

    (at start)         {"ready": true, "first_step_s": ..., "versions": ...} or {"error": ..., "available": ...}
    run GROUPS WARMUP  {"ms": [mean step of each group], "loss": ...}
    quit               {"memory": ..., "notes": ...}

Between turns it blocks in a read of stdin. Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from contenders.cases import CASES, Case, NotAvailable, Stepper, smaller

PACKAGES = ("torch", "pyro-ppl", "numpyro", "jax", "jaxlib", "pythae", "pyroved", "numpy")


class Memory:
    """Peak above the level at `start`, in MB: resident memory of the process, or what PyTorch or XLA holds on the device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.base = self.level()

    def start(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what loading left behind is not a contender's
        self.base = self.level()
        self.reset()

    def reset(self) -> None:
        if self.device == "cuda" and "torch" in sys.modules:
            sys.modules["torch"].cuda.reset_peak_memory_stats()
        elif self.device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew

    def level(self) -> float:
        return self._read("VmRSS", "memory_allocated", "bytes_in_use")

    def peak(self) -> float:
        return self.highest() - self.base

    def highest(self) -> float:
        return self._read("VmHWM", "max_memory_allocated", "peak_bytes_in_use")

    def _read(self, resident: str, torch_name: str, jax_name: str) -> float:
        if self.device == "cpu":
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(resident)) / 1024
        if "jax" in sys.modules:
            return (sys.modules["jax"].devices()[0].memory_stats() or {}).get(jax_name, 0) / 2**20
        return getattr(sys.modules["torch"].cuda, torch_name)() / 2**20 if "torch" in sys.modules else 0.0


def block(stepper: Stepper, case: Case, groups: int, warmup: int) -> list[float]:
    """Mean step of each group, ms. Each group ends with a wait for what is still running."""
    calls = max(1, case.group // stepper.steps_per_call)
    steps = calls * stepper.steps_per_call
    found = []
    for number in range(warmup + groups):
        began = time.perf_counter()
        for _ in range(calls):
            stepper.step()
        stepper.wait()
        seconds = time.perf_counter() - began
        if number >= warmup:
            found.append(1e3 * seconds / steps)
    return found


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        if name.replace("-ppl", "") in sys.modules:
            found[name] = importlib.metadata.version(name)
    return found


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    spec = json.loads(sys.argv[1])
    case = CASES[spec["case"]]
    if spec.get("smoke"):
        case = smaller(case)
    warnings.simplefilter("ignore")
    try:
        module = importlib.import_module(f"contenders.{spec['module']}")
        rows = module.load(spec)
        memory = Memory(spec["device"])
        memory.start()
        began = time.perf_counter()
        stepper = getattr(module, spec["build"])(spec, case, rows, **spec["options"])
        built = time.perf_counter() - began
        stepper.step()
        stepper.wait()
        first = time.perf_counter() - began
        peak_of_first, highest = memory.peak(), memory.highest()
        memory.reset()
        answer(ready=True, build_s=round(built, 3), first_step_s=round(first, 3), versions=versions())
        for line in sys.stdin:
            command, *numbers = line.split()
            if command == "quit":
                after = memory.peak()
                held = {
                    "peak_mb": max(after, peak_of_first),
                    "peak_after_first_step_mb": after,
                    "with_imports_and_data_mb": max(highest, memory.highest()),
                }
                answer(memory={name: round(mb, 1) for name, mb in held.items()}, notes=stepper.notes())
                return
            ms = block(stepper, case, *map(int, numbers))
            answer(ms=[round(m, 6) for m in ms], loss=stepper.loss())
    except BaseException as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}".strip()
        answer(error=text[:600], available=not isinstance(error, NotAvailable))


if __name__ == "__main__":
    main()
