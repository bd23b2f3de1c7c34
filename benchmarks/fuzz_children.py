"""Processes of `fuzz.py`: cases of a reader one after another in a child, with limits, and a second look at what went wrong."""

from __future__ import annotations

import contextlib
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
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyrovae as pv

SECONDS = 10  # of the CPU that a case may take
WAITING = 600  # seconds of the clock in which a child must say something, for what waits and takes no time of the CPU
TIMES, CONSTANT = 10, 512 * 2**20  # of memory that a case may take: a multiple of the file, and a constant
SPACE = 6 * 2**30  # of addresses that a child may have besides those that it starts with
MOST_CASES, MOST_GROWTH = 20_000, 2**29  # of a child, and of its memory, after which another one goes on
WRONG = ("other", "slow", "big", "ran")
RUNNING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")
MEMORY = Path("/dev/shm")

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
        self.whole = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        self.folders = {path for path in self.folder.rglob("*") if path.is_dir()}
        self.seen = {path: self._stamp(path, new=True) for path in self.whole}

    @staticmethod
    def _stamp(path: str | Path, new: bool = False) -> tuple[int, ...]:
        if new:  # dated so that whatever is written later shows: two writes may fall into one tick of the clock
            os.utime(path, ns=(0, 0))
        found = os.lstat(path)
        return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode

    def restore(self) -> None:
        """Make the files whole again, as new files: what still reads an old one is left alone."""
        here: set[str] = set()
        for place, folders, files in os.walk(self.folder):
            for name in folders:
                path = os.path.join(place, name)
                if Path(path) not in self.folders:
                    shutil.rmtree(path, ignore_errors=True)
            here.update(os.path.join(place, name) for name in files)
        wanted = {str(path): path for path in self.whole}
        for path in here - wanted.keys():
            with contextlib.suppress(OSError):  # it went with its folder
                os.unlink(path)
        for name, path in wanted.items():
            if name not in here or self._stamp(path) != self.seen[path]:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                path.write_bytes(self.whole[path])
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
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            _answer(name, reader, copy, cases, seed, until, write)
        finally:
            os._exit(7)
    os.close(write)
    rest, number, ended = b"", None, ""
    heard, used = time.monotonic(), None
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while not ended:
            if not select.select([pipe], [], [], 1)[0]:
                used = _cpu(child) if used is None else used  # when nothing was heard for a second
                if _cpu(child) - used > SECONDS or time.monotonic() - heard > WAITING:
                    os.kill(child, signal.SIGKILL)
                    ended = "slow"
                continue
            heard, used = time.monotonic(), None
            got = os.read(pipe.fileno(), 2**20)
            ended = "" if got else "other"
            *lines, rest = (rest + got).split(b"\n")
            for line in lines:
                told = json.loads(line)
                number = told if isinstance(told, int) else None
                if isinstance(told, list):
                    yield Outcome(*told)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number is not None:  # a case that was begun and has not ended
        yield Outcome(number, ended, f"exit code {status}", "killed" if ended == "slow" else f"exit code {status}")
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
    first = None
    os.write(write, f"{cases[0]}\n".encode())
    for number, following in zip(cases, [*cases[1:], None]):
        ran.clear()
        found, size = _one(name, reader, copy, number, seed)
        if ran:
            found = found._replace(outcome="ran", said=ran[0])
        elif found.outcome not in WRONG and found.seconds > SECONDS:
            found = found._replace(outcome="slow")
        elif found.outcome not in WRONG and found.memory > TIMES * size + CONSTANT:
            found = found._replace(outcome="big", said=f"{found.memory / 2**20:.0f} MiB: {found.said}")
        now = _resident()[0]
        first = now if first is None else first
        copy.restore()
        last = found.outcome in WRONG or now - first > MOST_GROWTH or time.monotonic() > until or following is None
        told = json.dumps(found._replace(left=now - first))
        os.write(write, (f"{told}\n" if last else f"{told}\n{following}\n").encode())  # one switch to the parent a case
        if last:
            break
    os._exit(0)


def _one(name: str, reader: Reader, copy: Copy, number: int, seed: int) -> tuple[Outcome, int]:
    """A case, and the size of its file."""
    reads, size = reader(copy.folder, random.Random(f"{name} {seed} {number}"))
    with contextlib.suppress(OSError):  # sets the largest resident set to the present one
        Path("/proc/self/clear_refs").write_text("5")
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
    return Outcome(number, outcome, kind, said[:600], time.process_time() - began, _resident()[1] - before), size


def _cpu(process: int) -> float:
    """Seconds of the CPU that a process has used; 0 where it has gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _place(error: BaseException) -> tuple[str, int | None]:
    """The last function of pyrovae that an error went through, and the line there."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/pyrovae/" in frame.filename]
    if not ours:
        return "?", 0
    return f"{ours[-1].filename.rpartition('/pyrovae/')[2].removesuffix('.py')}.{ours[-1].name}", ours[-1].lineno


def _resident() -> tuple[int, int]:
    """Bytes of memory of this process: now, and the most since `clear_refs`."""
    status = Path("/proc/self/status").read_bytes()
    now, most = (int(re.search(rb"%s:\s+(\d+)" % key, status)[1]) for key in (b"VmRSS", b"VmHWM"))  # type: ignore[index]
    return now * 1024, most * 1024
