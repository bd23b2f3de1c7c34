"""The side of the parent: starts workers, speaks with them, makes the peers' environment."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from contenders.cases import Contender

HERE = Path(__file__).resolve().parent
PEERS = ("pythae==0.1.2", "pyroved==0.3.0", "numpyro==0.22.0", "jax==0.10.2", "pyro-ppl==1.9.2")
PEERS_CUDA = ("jax[cuda13]==0.10.2",)
# OpenMP's threads look for work for a while after a parallel region: the next one starts when they sleep.
REST_SECONDS = 0.25


def peers_python(device: str) -> Path:
    """The interpreter of the environment with the peers; made in the user's cache folder if it is not there.

    The environment sees the running one's packages through a .pth file, so PyTorch is not installed a second time and all
    contenders use the same one. RuntimeError with pip's last words when it cannot be made.
    """
    running = sysconfig.get_path("purelib")
    folder = user_cache_path("pyrovae") / "peers"
    python = folder / "bin" / "python"
    wanted = [*PEERS, *(PEERS_CUDA if device == "cuda" else ())]
    mark = folder / "made-with.json"
    made_with = [sys.version, running, *wanted]
    if mark.is_file() and json.loads(mark.read_text()) == made_with:
        return python
    print(f"Making the peers' environment in {folder} ...", file=sys.stderr, flush=True)
    _call([sys.executable, "-m", "venv", "--clear", str(folder)])
    site = _call([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    Path(site, "running_environment.pth").write_text(running + "\n")
    _call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])
    mark.write_text(json.dumps(made_with))
    return python


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command[:5])} ...` failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def environment(device: str, threads: int, cache: str) -> dict[str, str]:
    """Every contender: the same number of threads, an empty compile cache, no memory taken in advance."""
    variables = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"):
        variables[name] = str(threads)
    variables |= {
        "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONWARNINGS": "ignore",
    }
    if device == "cpu":
        variables["JAX_PLATFORMS"] = "cpu"
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


class Failed(Exception):
    """A contender's error, as it is reported."""

    def __init__(self, text: str, available: bool = True) -> None:
        super().__init__(text)
        self.available = available


class Worker:
    """A contender's process: `ask` sends a line and waits for the answer."""

    def __init__(self, python: str | Path, contender: Contender, spec: dict[str, Any]) -> None:
        self.contender = contender
        self.cache = tempfile.mkdtemp(prefix="pyrovae-speed-")
        given = {**spec, "module": contender.module, "build": contender.build, "options": contender.options}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [str(python), str(HERE / "worker.py"), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment(spec["device"], spec["threads"], self.cache),
            cwd=self.cache,
            start_new_session=True,
        )

    def ask(self, line: str = "", timeout: float = 900.0) -> dict[str, Any]:
        """Its answer. Failed when it gives up, dies or does not answer."""
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        try:
            if line:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], timeout)
            said = process.stdout.readline() if ready else ""
        except BrokenPipeError:
            ready, said = [True], ""
        if not ready:
            self.close()
            raise Failed(f"no answer within {timeout:.0f} s")
        if not said:
            self.errors.seek(0)
            lines = [text for text in self.errors.read().splitlines() if text.strip()]
            code = process.wait()
            self.close()
            raise Failed(f"the process ended with {code}: {' | '.join(lines[-2:])[-400:]}")
        answer: dict[str, Any] = json.loads(said)
        if "error" in answer:
            self.close()
            raise Failed(answer["error"], answer["available"])
        return answer

    def close(self) -> None:
        """End the process and what it started, and remove its compile cache."""
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self.process.stdin is not None:
                    with contextlib.suppress(BrokenPipeError):
                        self.process.stdin.close()
                self.process.wait(10)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session: nobody else's processes
        self.process.wait()
        shutil.rmtree(self.cache, ignore_errors=True)


def run_job(
    python: str | Path, job: Contender, spec: dict[str, Any], cache: Path, timeout: float = 1800.0
) -> dict[str, Any]:
    """Case e: wall time of a process from its start to its end, and what it said. `cache`: where kernels are kept."""
    with tempfile.TemporaryDirectory(prefix="pyrovae-speed-") as folder:
        command = [str(python), str(HERE / "jobs.py"), json.dumps({**spec, "job": job.build, **job.options})]
        began = time.perf_counter()
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=timeout,
                env=environment(spec["device"], spec["threads"], str(cache)),
                cwd=folder,
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"not done within {timeout:.0f} s") from error
        seconds = time.perf_counter() - began
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise Failed(last[:500], available="engine=" not in last)
    said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"seconds": seconds, **said}
