"""What pyrovae calls of MLflow, as it answers: a server in memory, which can be away, or never answer."""

import math
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

MOST = sys.float_info.max  # in whose place MLflow's databases keep no infinite value


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Param(NamedTuple):
    key: str
    value: str


class RunTag(NamedTuple):
    key: str
    value: str


class Server:
    """The runs of a server, and how it answers."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, str] = {}
        self.active: Any = None
        self.error: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.calls: list[str] = []

    def points(self, run_id: str, name: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in self.runs[run_id]["metrics"] if m.key == name]


class MlflowClient:
    """The methods have MLflow's arguments under MLflow's names."""

    server: Server

    def __init__(self, tracking_uri: str | None = None) -> None:
        self.uri = tracking_uri

    def _call(self, name: str) -> Server:
        self.server.answers.wait()
        if self.server.error is not None:
            raise self.server.error
        self.server.calls.append(name)
        return self.server

    def get_experiment_by_name(self, name: str) -> Any:
        found = self._call("get_experiment_by_name").experiments.get(name)
        return None if found is None else SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str) -> str:
        experiments = self._call("create_experiment").experiments
        return experiments.setdefault(name, str(len(experiments)))

    def create_run(self, experiment_id: str, tags: dict[str, str], run_name: str | None = None) -> Any:
        runs = self._call("create_run").runs
        run_id = f"run{len(runs)}"
        runs[run_id] = {"experiment": experiment_id, "tags": dict(tags), "name": run_name, "metrics": [], "params": {}}
        runs[run_id] |= {"status": "RUNNING", "artifacts": {}}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def get_run(self, run_id: str) -> Any:
        run = self._call("get_run").runs[run_id]
        return SimpleNamespace(data=SimpleNamespace(params=dict(run["params"]), tags=dict(run["tags"])))

    def search_runs(self, experiment_ids: list[str], filter_string: str, max_results: int) -> list[Any]:
        wanted = filter_string.removeprefix("tags.`pyrovae.fit` = '").removesuffix("'")
        runs = self._call("search_runs").runs.items()
        found = [n for n, r in runs if r["tags"].get("pyrovae.fit") == wanted and r["experiment"] in experiment_ids]
        return [SimpleNamespace(info=SimpleNamespace(run_id=run_id)) for run_id in found[:max_results]]

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        return [m for m in self._call("get_metric_history").runs[run_id]["metrics"] if m.key == key]

    def log_batch(
        self, run_id: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = (), tags: Sequence[RunTag] = ()
    ) -> None:
        assert len(metrics) <= 1000 and len(params) <= 100
        run = self._call("log_batch").runs[run_id]
        for param in params:
            if run["params"].setdefault(param.key, param.value) != param.value:
                raise ValueError(f"{param.key} has a value already")
        run["metrics"] += [
            m._replace(value=min(max(m.value, -MOST), MOST)) if math.isinf(m.value) else m for m in metrics
        ]
        run["tags"] |= {tag.key: tag.value for tag in tags}

    def update_run(self, run_id: str, status: str) -> None:
        self._call("update_run").runs[run_id]["status"] = status

    def set_terminated(self, run_id: str, status: str) -> None:
        self._call("set_terminated").runs[run_id]["status"] = status

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        self._call("log_text").runs[run_id]["artifacts"][artifact_file] = text.encode()

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str) -> None:
        path = Path(local_path)
        self._call("log_artifact").runs[run_id]["artifacts"][f"{artifact_path}/{path.name}"] = path.read_bytes()


def installed(patch: pytest.MonkeyPatch) -> Server:
    """Let `import mlflow` find this one."""
    server = Server()
    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.__spec__ = SimpleNamespace(name="mlflow")  # type: ignore[assignment]
    module.MlflowClient = type("MlflowClient", (MlflowClient,), {"server": server})  # type: ignore[attr-defined]
    module.active_run = lambda: server.active  # type: ignore[attr-defined]
    for kind in (Metric, Param, RunTag):
        setattr(entities, kind.__name__, kind)
    patch.setitem(sys.modules, "mlflow", module)
    patch.setitem(sys.modules, "mlflow.entities", entities)
    return server
