"""Speed of a step against peers and against PyTorch by hand: one command, one process run after another, one table.

    python benchmarks/speed.py --data-root DIR
    python benchmarks/speed.py --device cuda --cases a,b
    python benchmarks/speed.py --smoke

Every contender has a process of its own that idles, blocked, while another one runs. In each round every contender takes its
turn; a ratio is the median over rounds of (its fastest step / our fastest step) in the same round. All do the same work: rows
gathered by a shuffled index from a tensor on the device, forward, backward, Adam at 1e-3, with the same number of threads.
"Ours" is the fastest of our engines; all are listed. A contender that fails is listed with its error.

Peers come from their packages, in an environment that is made on demand in the user's cache folder and sees the running
environment's packages (PyTorch is not installed twice); --peers-python takes another interpreter, --peers none does without.
Cases g to j and m to o are other graphs, each beside itself under Pyro's SVI, k and l questions that no peer has, and p a fit
by two processes. Without --data-root the rows are made: binary, of MNIST's shape and density; case e needs the files.

Writes benchmarks/results/speed-DEVICE.json and .png. The cases are in benchmarks/contenders/cases.py.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import gzip
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from contenders import processes, report
from contenders.cases import CASES, CEILING, JOBS, Case, Contender, contenders, smaller
from contenders.processes import Failed, Worker

HERE = Path(__file__).resolve().parent
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--job-rounds", type=int, default=3, help="rounds of cases e, f, k, l and p, whose turns take long"
    )
    parser.add_argument("--epochs", type=int, default=10, help="of cases e and p")
    parser.add_argument("--only", default="", help="contenders whose names contain one of these, by commas")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-root", help="folder with MNIST's files, packed or not")
    parser.add_argument("--peers", default="auto", choices=("auto", "none"))
    parser.add_argument("--peers-python", help="interpreter of an environment that has the peers")
    parser.add_argument("--smoke", action="store_true", help="everything once, tiny, without peers")
    parser.add_argument(
        "--together", action="store_true", help="start a case's contenders at once: no times of first steps"
    )
    parser.add_argument("--keep", action="store_true", help="keep the other cases of the file that is there")
    parser.add_argument("--out", default=str(HERE / "results"))
    options = parser.parse_args()
    options.cases = list(options.cases.replace(",", ""))
    if unknown := [key for key in options.cases if key not in CASES]:
        parser.error(f"cases {unknown} are not known; known: {', '.join(CASES)}")
    options.together = options.together or options.smoke
    if options.smoke:
        options.rounds = options.job_rounds = 1
        options.epochs, options.peers, options.threads = 1, "none", 1  # one thread: its workers start all at once
    return options


# --- data ------------------------------------------------------------------------------------------------------------


def idx_files(root: str) -> dict[str, bytes]:
    """MNIST's four files, unpacked. SystemExit if one is not there."""
    found = {}
    for folder in (Path(root) / "MNIST" / "raw", Path(root) / "MNIST", Path(root) / "raw", Path(root)):
        for name in IDX:
            plain, packed = folder / name, folder / f"{name}.gz"
            if name not in found and (plain.is_file() or packed.is_file()):
                found[name] = plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes())
    if missing := [name for name in IDX if name not in found]:
        raise SystemExit(f"{root} lacks MNIST's {', '.join(missing)}")
    return found


def binary_rows(gray: np.ndarray, seed: int) -> np.ndarray:
    """One draw of Bernoulli(gray / 255), (N, 784) uint8."""
    noise = np.random.default_rng(seed).integers(0, 255, gray.shape, dtype=np.uint8)
    return (noise < gray).astype(np.uint8)


def made_rows(number: int, seed: int) -> np.ndarray:
    """Gray rows of MNIST's density (13 % of the ink): ten smooth templates, shifted by up to two pixels."""
    generator = np.random.default_rng(seed)
    across = np.linspace(-1, 1, 28)
    templates = []
    for _ in range(10):
        curve = generator.normal(0, 0.35, (12, 2)).cumsum(0).clip(-0.7, 0.7)
        distance = ((across[:, None, None] - curve[:, 0]) ** 2 + (across[None, :, None] - curve[:, 1]) ** 2).min(-1)
        level = np.quantile(distance, 0.13)
        templates.append(255 / (1 + np.exp((distance - level) / 0.008)))
    images = np.stack(templates)[generator.integers(0, 10, number)].astype(np.uint8)
    shifts = generator.integers(-2, 3, (number, 2))
    for shift in np.unique(shifts, axis=0):
        rows = (shifts == shift).all(1)
        images[rows] = np.roll(images[rows], tuple(shift), axis=(1, 2))
    return images.reshape(number, 784)


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Path, str]:
    """Rows for the workers, and for case e a folder as torchvision lays it out: (file of rows, what they are)."""
    if options.data_root:
        files = idx_files(options.data_root)
        gray = np.frombuffer(files[IDX[0]], np.uint8, offset=16).reshape(-1, 784)
        what = "MNIST's training images, binarised once"
        raw = folder / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, content in files.items():
            (raw / name).write_bytes(content)
    else:
        gray = made_rows(2000 if options.smoke else 60_000, options.seed)
        what = f"made: {len(gray)} binary rows of MNIST's shape and density (no --data-root)"
    rows = folder / "rows.npy"
    np.save(rows, binary_rows(gray, options.seed))
    return rows, what


# --- rounds ----------------------------------------------------------------------------------------------------------


class Runner:
    """Runs cases; `python_of` a contender is the running interpreter or the peers'."""

    def __init__(self, options: argparse.Namespace, folder: Path, rows: Path) -> None:
        self.options, self.folder, self.rows = options, folder, rows
        self.peers: Path | None = None
        self.peers_error = "--peers none"
        if options.peers_python:
            self.peers = Path(options.peers_python)
        elif options.peers == "auto":
            try:
                self.peers = processes.peers_python(options.device)
            except (OSError, RuntimeError) as error:
                self.peers_error = f"the peers' environment could not be made: {error}"
                print(self.peers_error, file=sys.stderr)
        self.versions: dict[str, str] = {}

    def python_of(self, contender: Contender) -> Path:
        if not contender.peer:
            return Path(sys.executable)
        if self.peers is None:
            raise Failed(self.peers_error, available=False)
        return self.peers

    def chosen(self, among: list[Contender], key: str) -> list[Contender]:
        wanted = [part.strip() for part in self.options.only.split(",") if part.strip()]
        found = [c for c in among if key in c.cases and self.options.device in c.devices]
        if self.options.smoke:  # a compilation takes half a minute: one is enough
            found = [
                c
                for c in found
                if c.options.get("engine") != "compiled" or (c.name == "pyrovae compiled" and key == "b")
            ]
        return [c for c in found if not wanted or any(part in c.name for part in wanted)]

    def steps(self, case: Case) -> dict[str, Any]:
        """A case of steps: start everybody, then round after round each in turn."""
        options = self.options
        spec = {
            "case": case.key,
            "device": options.device,
            "threads": options.threads,
            "seed": options.seed,
            "smoke": options.smoke,
            "data": str(self.rows),
        }
        entries: dict[str, dict[str, Any]] = {}
        workers: dict[str, Worker] = {}
        started: dict[str, float] = {}
        machine = [CEILING] if case.key == "a" else []

        def failed(name: str, error: Failed) -> None:
            status = "failed" if error.available else "not available"
            entries[name] |= {"status": status, "error": str(error)}
            workers.pop(name, None)
            say(f"  {name}: {status}: {error}")

        with contextlib.ExitStack() as closing:

            def start(contender: Contender) -> None:
                worker = Worker(self.python_of(contender), contender, spec)
                closing.callback(worker.close)
                workers[contender.name] = worker
                started[contender.name] = time.perf_counter()

            everybody = machine + self.chosen(contenders(), case.key)
            entries |= {c.name: {"family": c.family, "status": "ok", "rounds": []} for c in everybody}
            for contender in everybody:
                if options.together and not (options.smoke and contender.peer):  # one at a time, first steps compare
                    start(contender)
            for contender in everybody:
                name = contender.name
                try:
                    if name not in workers:
                        start(contender)
                    ready = workers[name].ask()
                except Failed as error:
                    failed(name, error)
                    continue
                self.versions |= ready["versions"]
                if not options.together:
                    entries[name]["first_step_s"] = ready["first_step_s"]
                    entries[name]["start_to_first_step_s"] = round(time.perf_counter() - started[name], 3)
                say(f"  {name}: first step after {ready['first_step_s']:.1f} s")
            rounds = options.job_rounds if case.images else options.rounds
            for number in range(rounds):
                names = list(workers)
                turn = number % max(1, len(names))  # nobody always follows the same one
                for name in names[turn:] + names[:turn]:
                    warmup = 0 if name == CEILING.name or case.images else min(3, case.groups)
                    shown = 1 if name == CEILING.name else case.groups
                    try:
                        answer = workers[name].ask(f"run {shown} {warmup}")
                    except Failed as error:
                        failed(name, error)
                        continue
                    ms = answer["ms"]
                    entries[name]["rounds"].append(
                        {"fastest_ms": min(ms), "median_ms": statistics.median(ms), "timed": len(ms)}
                    )
                    entries[name]["loss"] = answer["loss"]
                    time.sleep(processes.REST_SECONDS)
                say(f"  round {number + 1} of {rounds}")
            for name in list(workers):
                try:
                    entries[name] |= workers[name].ask("quit")
                except Failed as error:
                    failed(name, error)
        return {"title": case.title, "gflop": case.flops / 1e9, "contenders": entries}

    def jobs(self, case: Case) -> dict[str, Any]:
        """Cases e and p: whole processes in turn. What a job compiles stays on disk for its next round, not for other jobs."""
        options = self.options
        spec = {
            "data_root": str(self.folder),
            "rows": str(self.rows),
            "epochs": options.epochs,
            "device": options.device,
            "threads": options.threads,
            "seed": options.seed,
        }
        entries: dict[str, dict[str, Any]] = {
            job.name: {"family": job.family, "status": "ok", "rounds": []} for job in self.chosen(JOBS, case.key)
        }
        for _ in range(options.job_rounds):
            for job in self.chosen(JOBS, case.key):
                entry = entries[job.name]
                if entry["status"] != "ok":
                    continue
                try:
                    if case.key == "e" and not options.data_root:
                        raise Failed("needs --data-root", available=False)
                    # a user's second run finds the kernels of the first on disk; so does a second round
                    cache = (
                        self.folder / f"kernels-{list(entries).index(job.name)}"
                    )  # no spaces: compilers are called with it
                    said = processes.run_job(self.python_of(job), job, spec, cache)
                except Failed as error:
                    entry |= {"status": "failed" if error.available else "not available", "error": str(error)}
                    say(f"  {job.name}: {entry['status']}: {error}")
                    continue
                ms = 1e3 * said["seconds"]
                entry["rounds"].append({"fastest_ms": ms, "median_ms": ms, "timed": 1, **said})
                entry["loss"] = said["loss"]
                entry["notes"] = {k: v for k, v in said.items() if k in ("ran_as", "epochs")}
                say(f"  {job.name}: {said['seconds']:.1f} s, of which fit {said['fit_seconds']:.1f} s")
        return {"title": f"{case.title}, {options.epochs} epochs", "gflop": None, "contenders": entries}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    found = {"cpu": name, "cores": os.cpu_count(), "threads": options.threads, "python": platform.python_version()}
    if options.device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return found


def main() -> None:
    options = parse()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="pyrovae-speed-"))
    began = time.perf_counter()
    cases: dict[str, Any] = {}
    earlier: dict[str, Any] = {"versions": {}}

    def written() -> dict[str, Any]:
        result: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "device": options.device,
            "machine": machine(options),
            "rows": what,
            "smoke": options.smoke,
            "rounds": options.rounds,
            "job_rounds": options.job_rounds,
            "versions": runner.versions,
            "seconds": round(time.perf_counter() - began),
            "cases": copy.deepcopy(dict(sorted(cases.items()))),
        }
        report.summarise(result)
        (out / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
        report.plot(result, out / f"{stem}.png")
        return result

    stem = f"speed-{options.device}" + ("-smoke" if options.smoke else "")
    if options.keep and (out / f"{stem}.json").is_file():
        earlier = json.loads((out / f"{stem}.json").read_text())
        cases |= earlier["cases"]
    try:
        rows, what = prepare(options, folder)
        say(f"Rows: {what}")
        runner = Runner(options, folder, rows)
        runner.versions |= earlier["versions"]
        for key in options.cases:
            say(f"Case {key}: {CASES[key].title}")
            case = smaller(CASES[key]) if options.smoke else CASES[key]
            cases[key] = runner.jobs(case) if key in "ep" else runner.steps(case)
            result = written()  # case by case: what is measured is kept
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(report.tables(result))
    say(f"{out / stem}.json and .png, {result['seconds']} s")


if __name__ == "__main__":
    main()
