"""Processes of `fuzz.py`: cases of a reader one after another in a child, with limits, and a second look at what went wrong."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyrovae as pv

SECONDS = 10  # of the CPU that a case may take
WAITING = 600  # seconds of the clock in which a child must say something, for what waits and takes no time of the CPU
TIMES, CONSTANT = 10, 512 * 2**20  # of memory that a case may take: a multiple of the file, and a constant
PAUSE = 0.2  # seconds between two looks at what a child has said
SPACE = 6 * 2**30  # of addresses that a child may have besides those that it starts with
MOST_CASES, MOST_GROWTH = 20_000, 2**29  # of a child, and of its memory, after which another one goes on
WRONG = ("other", "slow", "big", "ran")
RUNNING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")
MEMORY = Path("/dev/shm")
MEMORY_LINES = re.compile(rb"^Vm(RSS|HWM):\s+(\d+)", re.MULTILINE)

Reader = Callable[[Path, "random.Random | None"], tuple[Callable[[], Any], int]]


class Outcome(NamedTuple):
    """What came of a case."""

    number: int
    outcome: str
    kind: str  # of what was raised: its type, and where in pyrovae
    said: str
    seconds: float = 0.0  # of the CPU
    memory: int = 0  # bytes, the largest resident set above that before the case
    left: int = 0  # bytes by which the child has grown since its first case


class Copy:
    """A folder with whole files, which each case may change, in memory where the system has such folders."""

    def __init__(self, home: Path, leave_out: tuple[str, ...] = ()) -> None:
        within = str(MEMORY) if os.access(MEMORY, os.W_OK) else None
        self.top = Path(tempfile.mkdtemp(prefix="fuzzing", dir=within))
        self.folder = self.top / "files"
        shutil.copytree(home, self.folder, ignore=shutil.ignore_patterns(*leave_out))
        self.whole = {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        self.folders = {str(path) for path in self.folder.rglob("*") if path.is_dir()}
        self.seen = {path: self._stamp(path, new=True) for path in self.whole}

    @staticmethod
    def _stamp(path: str, new: bool = False) -> tuple[int, ...]:
        if new:  # dated so that whatever is written later shows: two writes may fall into one tick of the clock
            os.utime(path, ns=(0, 0))
        found = os.lstat(path)
        return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode

    def restore(self) -> None:
        """Make the files whole again, as new files: what still reads an old one is left alone."""
        here: set[str] = set()
        for place, folders, files in os.walk(self.folder):
            for name in folders:
                path = f"{place}/{name}"
                if path not in self.folders:
                    shutil.rmtree(path, ignore_errors=True)
            here.update(f"{place}/{name}" for name in files)
        for path in here - self.whole.keys():
            with contextlib.suppress(OSError):  # it went with its folder
                os.unlink(path)
        for path, content in self.whole.items():
            if path not in here or self._stamp(path) != self.seen[path]:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                if path in here:
                    os.unlink(path)
                with open(path, "wb") as file:
                    file.write(content)
                self.seen[path] = self._stamp(path, new=True)

    def remove(self) -> None:
        shutil.rmtree(self.top, ignore_errors=True)


def outcomes(name: str, reader: Reader, copy: Copy, cases: range, seed: int, until: float) -> Iterator[Outcome]:
    """What comes of one case after another; what goes wrong among others is tried once more in a child of its own."""
    left = list(cases)
    while left and time.monotonic() < until:
        wrong = None
        for found in _of_child(name, reader, copy, left[:MOST_CASES], seed, until):
            left.pop(0)
            if found.outcome in WRONG:
                wrong = found
            else:
                yield found
        copy.restore()
        if wrong is not None:
            (again,) = _of_child(name, reader, copy, [wrong.number], seed, float("inf"))
            yield again if again.outcome in WRONG else wrong._replace(said=f"only after other cases: {wrong.said}")
            copy.restore()


def _of_child(name: str, reader: Reader, copy: Copy, cases: list[int], seed: int, until: float) -> Iterator[Outcome]:
    """What a child says of its cases up to the first that goes wrong; of that, how the child ended where it says nothing."""
    told = copy.top / "told"  # a file, and no pipe, so that the parent need not wake for each case
    told.write_bytes(b"")
    child = os.fork()
    if child == 0:
        try:
            _answer(name, reader, copy, cases, seed, until, os.open(told, os.O_WRONLY | os.O_APPEND))
        finally:
            os._exit(7)
    rest, number, killed = b"", None, False
    heard, used = time.monotonic(), None
    with told.open("rb", buffering=0) as file, open(os.pidfd_open(child), "rb", buffering=0) as process:
        ended = False
        while not ended:
            ended = bool(select.select([process], [], [], PAUSE)[0])
            got = file.read()
            *lines, rest = (rest + got).split(b"\n")
            for line in lines:
                one = json.loads(line)
                number = one if isinstance(one, int) else None
                if isinstance(one, list):
                    yield Outcome(*one)
            if got:
                heard, used = time.monotonic(), None
            elif not ended and time.monotonic() - heard > 1:
                used = _cpu(child) if used is None else used  # when nothing was heard for a second
                if _cpu(child) - used > SECONDS or time.monotonic() - heard > WAITING:
                    os.kill(child, signal.SIGKILL)
                    killed = True
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number is not None:  # a case that was begun and has not ended
        yield Outcome(
            number, "slow" if killed else "other", f"exit code {status}", "killed" if killed else f"exit code {status}"
        )
    elif status and status != -signal.SIGKILL:
        raise SystemExit(f"{name}: a child ended with {status} between two cases")


def _answer(name: str, reader: Reader, copy: Copy, cases: list[int], seed: int, until: float, write: int) -> None:
    ran: list[str] = []

    def watch(event: str, arguments: Any) -> None:
        if event in RUNNING:
            ran.append(f"{event} {str(arguments)[:100]}")
        elif event == "exec" and "fuzzing" in str(getattr(arguments[0], "co_filename", "")):
            ran.append(f"{event} {arguments[0]}")

    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + SPACE
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.addaudithook(watch)
    warnings.simplefilter("ignore")
    gc.freeze()  # what is there stays, and need not be looked at again
    first = None
    os.write(write, f"{cases[0]}\n".encode())
    for number, following in zip(cases, [*cases[1:], None]):
        ran.clear()
        found, size, now = _one(name, reader, copy, number, seed)
        if ran:
            found = found._replace(outcome="ran", said=ran[0])
        elif found.outcome not in WRONG and found.seconds > SECONDS:
            found = found._replace(outcome="slow")
        elif found.outcome not in WRONG and found.memory > TIMES * size + CONSTANT:
            found = found._replace(outcome="big", said=f"{found.memory / 2**20:.0f} MiB: {found.said}")
        first = now if first is None else first
        copy.restore()
        last = found.outcome in WRONG or now - first > MOST_GROWTH or time.monotonic() > until or following is None
        told = json.dumps(found._replace(left=now - first))
        os.write(write, (f"{told}\n" if last else f"{told}\n{following}\n").encode())
        if last:
            break
    os._exit(0)


def _one(name: str, reader: Reader, copy: Copy, number: int, seed: int) -> tuple[Outcome, int, int]:
    """A case, the size of its file, and the memory of the process after it."""
    reads, size = reader(copy.folder, random.Random(f"{name} {seed} {number}"))
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "wb", buffering=0) as file:
        file.write(b"5")  # sets the largest resident set to the present one
    before, began = _resident()[0], time.process_time()
    outcome, kind, said = "result", "", ""
    try:
        reads()
    except pv.PyrovaeError as error:
        outcome, said = "refused", f"{type(error).__name__}: {error}"
        kind = f"{type(error).__name__} at {_place(error)[0]}"
        if "\x1b" in said or len(said) > 5_000:
            outcome, said = "other", f"a message of {len(said)} characters: {said[:200]!r}"
    except BaseException as error:
        place, line = _place(error)
        outcome, kind = "other", f"{type(error).__name__} at {place}:{line}"
        said = f"{kind}: {str(error)[:200]}"
    seconds, (now, most) = time.process_time() - began, _resident()
    return Outcome(number, outcome, kind, said[:600], seconds, most - before), size, now


def _cpu(process: int) -> float:
    """Seconds of the CPU that a process has used; 0 where it has gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _place(error: BaseException) -> tuple[str, int]:
    """The last function of pyrovae that an error went through, and the line there."""
    place, trace = ("?", 0), error.__traceback__
    while trace is not None:  # by hand, as the module `traceback` reads the lines of all files
        code = trace.tb_frame.f_code
        if "/pyrovae/" in code.co_filename:
            file = code.co_filename.rpartition("/pyrovae/")[2].removesuffix(".py")
            place = f"{file}.{code.co_name}", trace.tb_lineno
        trace = trace.tb_next
    return place


def _resident() -> tuple[int, int]:
    """Bytes of memory of this process: now, and the most since `clear_refs`."""
    with open("/proc/self/status", "rb", buffering=0) as file:
        found = dict(MEMORY_LINES.findall(file.read()))
    return int(found[b"RSS"]) * 1024, int(found[b"HWM"]) * 1024
