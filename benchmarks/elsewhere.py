"""Do examples, guides, tutorials and docstrings run where fits are on another device than the data? One command:

    python benchmarks/elsewhere.py                                     # all of them, some ten minutes of one core
    python benchmarks/elsewhere.py examples/ladder.py docs/start.md pyrovae.fitted.fitted
    python benchmarks/elsewhere.py --device cuda                       # on a GPU

Without a GPU they run on a stand-in for one, `stand_in.cpp`: it computes on the CPU, and its tensors mix with those of the CPU
as little as those of a GPU. It needs a C++ compiler, and takes about a minute to compile the first time. Fits are as short as
in the tests. Prints what fails, and exits with 1 if anything does.
"""

import argparse
import doctest
import functools
import importlib
import os
import pkgutil
import re
import runpy
import sys
import tempfile
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import torch
from sklearn.utils import Bunch
from torch.utils import cpp_extension

import pyrovae as pv
from pyrovae.criticism import evidence, predictive, proposals
from pyrovae.fitted import folder
from pyrovae.pair.parameters import find_device
from pyrovae.training import plan

ROOT = Path(__file__).parents[1]
BLOCK = r"^```%s\n(.*?)^```"
CELL = r"\{code-cell\} ipython3"
SHORTER = (
    (r"epochs=(20|50|100)\b", "epochs=2"),
    (r"EPOCHS = 8, 30\b", "EPOCHS = 8, 1"),
    (r"num_temperatures=100\b", "num_temperatures=10"),
    (r"(num_samples|num_particles)=(1000|500)\b", r"\1=60"),
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
DIGITS = functools.cache(sklearn.datasets.load_digits)


class StandIn(types.ModuleType):
    """What torch asks the module of a device, torch.stand_in."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """The generator is the CPU's."""


def stand_in() -> torch.device:
    """Compile and register the stand-in for a GPU."""
    torch.utils.rename_privateuse1_backend("stand_in")
    source = str(Path(__file__).with_name("stand_in.cpp"))
    cpp_extension.load("stand_in", [source], extra_cflags=["-O0", "-w"]).start()
    torch._register_device_module("stand_in", StandIn("torch.stand_in"))
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    return torch.device("stand_in", 0)


def few_digits(return_X_y: bool = False) -> Any:
    """As in the tests: the digits that the examples train on, and 20 more."""
    data, target = DIGITS().data[:1457], DIGITS().target[:1457]
    return (data, target) if return_X_y else Bunch(data=data, target=target)


def shorten(device: torch.device) -> None:
    """Let device="auto" be this device, and everything be short."""

    def auto(name: str | torch.device) -> torch.device:
        return device if name == "auto" else find_device(name)

    plan.find_device = folder.find_device = auto  # type: ignore[assignment]
    plan.choose_engine = lambda name, device, steps, product: "eager"  # type: ignore[assignment]
    proposals.STEPS, predictive.REPLICATES, evidence.SIMULATED = 8, 10, 200


def run_example(path: Path) -> Iterator[str]:
    """What is wrong with a file of examples/."""
    sys.argv = [path.name, "--smoke"]
    everything, sklearn.datasets.load_digits = sklearn.datasets.load_digits, few_digits
    try:
        runpy.run_path(str(path), run_name="__main__")
    except Exception:
        yield traceback.format_exc()
    finally:
        sklearn.datasets.load_digits = everything


def run_page(path: Path) -> Iterator[str]:
    """What is wrong with the blocks of a page."""
    space: dict[str, object] = {"__name__": "page"}
    text = path.read_text()
    kind = CELL if re.search(CELL, text) else "python"  # what stands beside cells is for reading
    for number, block in enumerate(re.findall(BLOCK % kind, text, re.DOTALL | re.MULTILINE)):
        for long, short in SHORTER:
            block = re.sub(long, short, block)
        torch.manual_seed(0)
        try:
            exec(compile(block, f"{path.name}, block {number + 1}", "exec"), space)
        except Exception:
            yield traceback.format_exc()


def run_docstrings(name: str) -> Iterator[str]:
    """What is wrong with the examples in the docstrings of a module."""
    given = {"pv": pv, "fam": pv.families, "torch": torch, "np": np}
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name), name, globs=given):
        torch.manual_seed(0)
        said: list[str] = []
        if runner.run(test, out=said.append).failed:
            yield "".join(said)


def everything() -> list[str]:
    pages = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
    modules = sorted(m.name for m in pkgutil.walk_packages(pv.__path__, "pyrovae.") if not m.name.endswith("__main__"))
    return [*map(str, sorted((ROOT / "examples").glob("*.py"))), *map(str, pages), *modules]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="files of examples, pages, modules; default all")
    parser.add_argument("--device", default="", help="of torch; default the stand-in")
    options = parser.parse_args()
    os.environ["MPLBACKEND"] = "agg"
    torch.set_num_threads(1)
    shorten(torch.device(options.device) if options.device else stand_in())
    failed = 0
    for name in options.names or everything():
        path = Path(name).resolve()
        run = (
            run_docstrings(name) if not path.exists() else run_example(path) if path.suffix == ".py" else run_page(path)
        )
        before = Path.cwd()
        with tempfile.TemporaryDirectory() as empty:
            os.chdir(empty)
            wrong = list(run)
            os.chdir(before)
        failed += bool(wrong)
        print(f"{name}: {'FAILED' if wrong else 'ok'}", *wrong, sep="\n", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
