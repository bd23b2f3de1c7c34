"""What the page's model says of the rows, and the process in which it is fitted while people go on labelling."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from pyrovae.app.jobs.label.job import PREDICTIONS, label_rows, steps_before
from pyrovae.app.jobs.label.reading import Job
from pyrovae.app.jobs.label.training import STEPS, decide_labelling
from pyrovae.app.jobs.label.writing import Answer
from pyrovae.app.options import Options
from pyrovae.criticism.ensembles import Weights
from pyrovae.data.labels import Labels, as_labels, refuse_labels
from pyrovae.errors import DataError, PyrovaeError, shortened

SHARE = 0.2  # of the steps of `pyrovae label`, where these are many, so that people need not wait


@dataclass(frozen=True)
class Learned:
    """What a fit says.

    Args:
        labels: how many labels it has learned from.
        predicted: the most probable label of each row, as text.
        probability: its probability, of each row.
        margin: by which it is above that of the next label, of each row.
        report: the numbers of rows that were predicted without their labels, see `held_out_report`.
        judged: of these rows, the probability of the label that they have, and whether that is the most probable one.
    """

    labels: int
    predicted: list[str]
    probability: list[float]
    margin: list[float]
    report: dict[str, Any]
    judged: dict[int, tuple[float, bool]]


class Learner(Protocol):
    """Something that fits a model to labels in the background."""

    @property
    def busy(self) -> bool:
        """Whether it is at work."""
        ...

    def start(self, labels: list[str]) -> None:
        """Start to learn from labels, one a row, "" where unknown."""
        ...

    def poll(self) -> Learned | str | None:
        """What it has learned since it was last asked, or why it could not, in a sentence; None for nothing new."""
        ...

    def close(self) -> None:
        """End it, whatever it is doing."""
        ...


def why_not(labels: list[str]) -> str:
    """Why a classifier cannot learn from these labels, "" if it can."""
    try:
        refuse_labels(as_labels(labels))
    except DataError as error:
        return str(error)
    return ""


def quick(options: Options, job: Job, before: int = 0) -> Options:
    """The options with everything decided, by default with the steps of `pyrovae label` up to 300, or a fifth if that is more.

    Args:
        before: the steps of the model that the run has, which goes on unless the options say how many steps there are.

    Raises:
        OptionError: a value is impossible.
    """
    goes_on = before > 0 and options.steps is None
    decided = decide_labelling(replace(options, steps=before) if goes_on else options, job)
    steps = int(decided.steps or 0)
    if options.steps is None:
        steps = min(steps, max(STEPS[0], round(SHARE * steps)))
    return replace(decided, steps=steps)


def learn(job: Job, labels: list[str], options: Options, folder: Path, **how: Any) -> Learned:
    """Fit, or go on with the run in the folder, see `label_rows`, whose arguments `how` are.

    Raises:
        PyrovaeError: as `label_rows` does.
    """
    known = as_labels(labels)
    job = replace(job, labels=known)
    quickly = quick(options, job, 0 if how.get("fresh") else steps_before(folder, job))
    answer = label_rows(job, quickly, folder, to=folder / PREDICTIONS, force=True, progress=False, **how)
    table = answer.table
    return Learned(
        labels=len(known.known),
        predicted=table["predicted"].tolist(),
        probability=table["probability"].tolist(),
        margin=table["margin"].tolist(),
        report=answer.report,
        judged=_judged(answer, known),
    )


def _judged(answer: Answer, labels: Labels) -> dict[int, tuple[float, bool]]:
    """The rows that were predicted without their labels, with the probability of these."""
    found = answer.info.get("cross_validation")
    if not found:
        held = answer.table.iloc[answer.info["held_out"]]
        right = held["predicted"] == held["label"]
        # of a wrong prediction only the most probable label is in the table: the others share the rest
        rest = (1 - held["probability"]) / max(1, len(labels.classes) - 1)
        values = held["probability"].where(right, rest)
        return {int(row): (float(p), bool(ok)) for row, p, ok in zip(held.index, values, right)}
    rows = torch.tensor(found["rows"])
    q, f = (torch.tensor(found[name]) if name in found else None for name in ("classifier", "ensemble"))
    fitted = answer.report.get("weights")
    p = (Weights(**fitted) if fitted else Weights.default(q, f)).pooled(q, f)
    y = labels.y[rows]
    values, right = p.gather(1, y[:, None])[:, 0].tolist(), (p.argmax(1) == y).tolist()
    return dict(zip(rows.tolist(), zip(values, right)))


class Worker:
    """A `Learner` in a process of its own, so that the page answers while it computes.

    It ends with the process that started it, however that ends; what it writes into the run folder is whole at all times.

    Args:
        job: the rows.
        options: as of `Options.of("label", ...)`.
        folder: of the run.
        how: arguments of `label_rows`: `device`, `engine`, `threads`, `fresh`.
    """

    def __init__(self, job: Job, options: Options, folder: Path, **how: Any) -> None:
        # as bytes, since torch would hand tensors over in shared memory, of which a container has little
        self._arguments = pickle.dumps((job, options, folder, how))
        self._process: Any = None
        self._connection: Connection | None = None
        self._sending: threading.Thread | None = None
        self.busy = False

    def start(self, labels: list[str]) -> None:
        self.busy = True
        # aside, since the process takes its arguments only when it has imported torch
        self._sending = threading.Thread(target=self._send, args=(labels,), daemon=True)
        self._sending.start()

    def _send(self, labels: list[str]) -> None:
        with suppress(OSError):  # it has ended already, as `poll` will find
            if self._connection is None:
                context = multiprocessing.get_context("spawn")
                self._connection, other = context.Pipe()
                self._process = context.Process(target=_work, args=(other,), daemon=True)
                self._process.start()
                other.close()
                # not among the arguments, since a process that is ended while it reads these leaves a traceback
                self._connection.send_bytes(self._arguments)
            self._connection.send(labels)

    def poll(self) -> Learned | str | None:
        if not self.busy or self._sending is None or self._sending.is_alive():
            return None
        try:
            if self._connection is None:
                raise EOFError
            if not self._connection.poll():
                return None
            found: Learned | str = self._connection.recv()
        except (EOFError, OSError):
            self.close()
            return "The process that fits the model has ended, perhaps for want of memory. More labels start it again."
        self.busy = False
        return found

    def close(self) -> None:
        if self._process is not None:
            with suppress(AttributeError, ValueError):  # it has not been started yet, and ends with this process
                self._process.kill()
                self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process, self._connection, self.busy = None, None, False


def _work(connection: Connection) -> None:
    """Fit to each list of labels that comes, after what is fitted to them, until none comes any more."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the process that serves the page, with which this one ends
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        job, options, folder, how = pickle.loads(connection.recv_bytes())
    except (EOFError, OSError):  # the page has ended
        return
    while True:
        try:
            labels = connection.recv()
        except EOFError:
            return
        try:
            found: Learned | str = learn(job, labels, options, folder, **how)
            how.pop("fresh", None)
        except (PyrovaeError, OSError, RuntimeError, MemoryError) as error:
            found = f"The model could not be fitted: {shortened(error)}"
        connection.send(found)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
