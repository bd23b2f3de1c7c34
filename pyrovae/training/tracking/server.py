"""The tracker that talks to a server, MLflow, from a thread of its own."""

from __future__ import annotations

import json
import math
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyrovae._lazily import Lazily
from pyrovae._version import __version__
from pyrovae.fitted.fitted import Fit
from pyrovae.training.tracking.tracker import Row, Tracker, need_package, numbers_in, plain, settings_of

mlflow = Lazily("mlflow")
entities = Lazily("mlflow.entities")

IDLE = 5.0  # seconds without a call after which the thread ends; the next call starts another
PATIENCE = 20.0  # seconds that the end of a fit waits for a server
MOST_METRICS, MOST_PARAMS, LONGEST_PARAM, LONGEST_NAME = (
    1000,
    100,
    500,
    250,
)  # that MLflow takes at once, or in one text
UNDONE = "pyrovae.undone"  # the tag about epochs that were undone
NOT_IN_NAMES = re.compile(r"[^\w\-. /]", re.ASCII)  # what MLflow takes in no name


class MLflow(Tracker):
    """The curves, settings, tables and pictures of a fit as a run of MLflow.

    The names of metrics are those of the history, and the step is the epoch. All is sent by a thread of its own, so that the
    fit waits for no server; its end waits for at most 20 seconds. A fit that is resumed goes on in its run, which is found by
    the first epoch. Points of epochs that were undone, as by `on_nan="rollback"`, stay, since MLflow removes none: an epoch
    that was taken again has a second, later point, and the tag "pyrovae.undone" says which epochs were undone. Needs
    `pip install 'pyrovae[mlflow]'`.

    Args:
        uri: A tracking server, such as "http://127.0.0.1:5000", or a database; by default what MLflow is set to.
        experiment: The experiment that the run is in; it is made if there is none.
        name: The name of the run; by default MLflow chooses one.
        run_id: A run to write into. By default that of `mlflow.start_run()`, if there is one under way and no `uri` is given,
            and else a new one.

    Raises:
        MissingPackageError: MLflow is not installed.

    Example:
        >>> tracker = pv.tracking.MLflow("http://127.0.0.1:5000", name="first")  # doctest: +SKIP
        >>> fitted = pv.fit(vae, x, callbacks=[tracker])  # doctest: +SKIP
        >>> tracker.table(pv.importance(fitted, x_test).summary())  # doctest: +SKIP
        >>> tracker.picture("samples", pv.plots.images(pv.generate(fitted, 64), (8, 8)))  # doctest: +SKIP
    """

    def __init__(
        self,
        uri: str | None = None,
        *,
        experiment: str = "pyrovae",
        name: str | None = None,
        run_id: str | None = None,
    ) -> None:
        super().__init__()
        need_package("mlflow", "mlflow")
        self.uri, self.experiment, self.name, self.run_id = uri, experiment, name, run_id
        self._sender = _Sender()
        self._ends = True  # whether the run is ended with the fit
        self._client: Any = None
        self._waiting: list[Row] = []  # rows that are not sent yet
        self._lock = threading.Lock()
        self._sent: dict[int, float] = {}  # the ELBO of each epoch that the server has
        self._undone: set[int] = set()  # those of which it has another value, too
        self._told = False  # whether the run has a tag about these
        self._fit = ""  # the first epoch of the fit that the run is of
        self._run: str | None = None

    def begin(self, fitted: Fit) -> None:
        active = mlflow.active_run() if self.uri is None and self.run_id is None else None
        known = self.run_id if active is None else active.info.run_id
        self._ends = active is None
        first, settings = self.first, settings_of(fitted)
        again, self._fit = first == self._fit, first
        resumed = again or len(fitted.history) > 1  # a fit may have gone back to its first epoch
        settings.pop("rollbacks", None)  # their number may grow, and a parameter of MLflow keeps its value
        self._waiting = []  # rows of a fit before this one go where that fit goes
        self._send(lambda: self._open(known or (self._run if again else None), first, resumed, settings))

    def write(self, rows: Sequence[Row]) -> None:
        waiting = self._waiting
        with self._lock:
            waited = bool(waiting)
            waiting += [dict(row) for row in rows]
        if not waited:  # else what is under way takes these along
            self._send(lambda: self._send_rows(waiting))
        self._look()

    def finish(self, fitted: Fit, error: BaseException | None) -> None:
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        last = self.last
        self._send(lambda: self._tell_undone(last))
        if self._ends:
            self._send(lambda: self._client.set_terminated(self._run, status))
        self._wait()

    def write_table(self, name: str, values: Mapping[str, Any]) -> None:
        found, kept, step = numbers_in(values), plain(values), self.last
        self._send(lambda: self._log({f"{name}/{key}": value for key, value in found.items()}, step, time.time()))
        self._send(
            lambda: self._client.log_text(self._run, json.dumps(kept, indent=1, default=str), f"{_name(name)}.json")
        )
        self._wait()

    def write_picture(self, name: str, content: bytes) -> None:
        self._send(lambda: self._send_picture(name, content))
        self._wait()

    # in the thread

    def _open(self, known: str | None, first: str, resumed: bool, settings: Mapping[str, Any]) -> None:
        """Make a run, or go on with the one that has this fit already."""
        self._client = client = mlflow.MlflowClient(tracking_uri=self.uri)  # here, since a database is asked at once
        tags = {"pyrovae.fit": first, "pyrovae.version": __version__}
        place = None if known is not None else self._experiment()
        if known is None and resumed:
            found = client.search_runs([place], filter_string=f"tags.`pyrovae.fit` = '{first}'", max_results=1)
            known = found[0].info.run_id if found else None
        self._sent, self._undone, self._told = {}, set(), False
        taken = {}  # what the run has already, of which MLflow takes no other value
        if known is None:
            self._run = client.create_run(place, run_name=self.name, tags=tags).info.run_id
        else:
            self._run, data = known, client.get_run(known).data
            taken, self._told = data.params, UNDONE in data.tags
            if resumed:
                for one in sorted(client.get_metric_history(known, "elbo"), key=lambda one: one.timestamp):
                    self._note(int(one.step), float(one.value))
            client.log_batch(known, tags=[entities.RunTag(*tag) for tag in tags.items()])
            if self._ends:
                client.update_run(known, status="RUNNING")
        new = {_name(key): str(value)[:LONGEST_PARAM] for key, value in settings.items()}
        params = [entities.Param(key, value) for key, value in new.items() if key not in taken]
        for start in range(0, len(params), MOST_PARAMS):
            client.log_batch(self._run, params=params[start : start + MOST_PARAMS])

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        return str(self._client.create_experiment(self.experiment) if found is None else found.experiment_id)

    def _send_rows(self, waiting: list[Row]) -> None:
        with self._lock:
            rows = waiting.copy()
            waiting.clear()
        now, metrics = time.time(), []
        for row in rows:
            epoch = int(row["epoch"])
            if epoch not in self._sent or not _same(self._sent[epoch], row["elbo"]):
                self._note(epoch, row["elbo"])
                when = now - (rows[-1]["seconds"] - row["seconds"])
                metrics += self._metrics({n: v for n, v in row.items() if n != "epoch"}, epoch, when)
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._run, metrics=metrics[start : start + MOST_METRICS])

    def _note(self, epoch: int, elbo: float) -> None:
        """Note what the server has of an epoch; where it had another value, that one was undone."""
        if not _same(self._sent.setdefault(epoch, elbo), elbo):
            self._undone.add(epoch)
        self._sent[epoch] = elbo

    def _tell_undone(self, last: int) -> None:
        """Say in a tag which epochs were undone, in a fit that ended with epoch `last`."""
        undone = sorted(self._undone | {epoch for epoch in self._sent if epoch > last})
        if undone or self._told:
            said = f"{len(undone)} epochs" + (f" between {undone[0]} and {undone[-1]}" if undone else "")
            tag = entities.RunTag(UNDONE, f"{said}; the fit ended with epoch {last}")
            self._client.log_batch(self._run, tags=[tag])
            self._told = True

    def _log(self, values: Row, step: int, when: float) -> None:
        self._client.log_batch(self._run, metrics=self._metrics(values, step, when))

    def _metrics(self, values: Row, step: int, when: float) -> list[Any]:
        return [entities.Metric(_name(key), float(value), int(1000 * when), step) for key, value in values.items()]

    def _send_picture(self, name: str, content: bytes) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"{_name(name).replace('/', '_')}.png"
            path.write_bytes(content)
            self._client.log_artifact(self._run, str(path), "pictures")

    # beside it

    def _send(self, call: Callable[[], Any]) -> None:
        self._sender.send(call)

    def _wait(self) -> None:
        if not self._sender.wait(PATIENCE) and self._sender.error is None:
            self.give_up(f"its server did not answer within {PATIENCE:.0f} seconds.")
        self._look()

    def _look(self) -> None:
        if self._sender.error is not None and not self.failed:
            self.give_up(self._sender.error)


class _Sender:
    """Calls, one after the other, in a thread of their own, until one fails; the process may end meanwhile."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._calls: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None  # there is none while there is nothing to do
        self._lock = threading.Lock()

    def send(self, call: Callable[[], Any]) -> None:
        with self._lock:
            self._calls.put(call)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pyrovae tracker", daemon=True)
                self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait until all calls are done; False if it takes longer."""
        done = threading.Event()
        self.send(done.set)
        until = time.monotonic() + seconds
        while not done.wait(0.05):
            if self.error is not None or time.monotonic() > until:
                return False
        return True

    def _run(self) -> None:
        while self.error is None:
            try:
                call = self._calls.get(timeout=IDLE)
            except queue.Empty:
                with self._lock:
                    if self._calls.empty():
                        self._thread = None
                        return
                continue
            try:
                call()
            except Exception as error:  # whatever a server or MLflow raises
                self.error = error


def _same(elbo: float, other: float) -> bool:
    """Whether two values are one to MLflow, whose databases keep an infinite one as the largest float."""
    return (math.isnan(elbo) and math.isnan(other)) or _finite(elbo) == _finite(other)


def _finite(value: float) -> float:
    return min(max(value, -sys.float_info.max), sys.float_info.max) if math.isinf(value) else value


def _name(name: str) -> str:
    """A name that MLflow takes, which treats it as a path: no empty parts, and none that lead up."""
    parts = [part if part.strip(".") else "_" * max(1, len(part)) for part in NOT_IN_NAMES.sub("_", name).split("/")]
    return "/".join(parts)[:LONGEST_NAME]
