"""Tasks for Label Studio, and the labels that come back."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.command import Command

from pyrovae.app.jobs.label import read_job
from pyrovae.app.jobs.label.label_studio import interface, tasks, write_tasks
from pyrovae.data.label_studio import read_export
from pyrovae.errors import DataError


def annotation(*choices: str, cancelled: bool = False, name: str = "label") -> dict[str, Any]:
    """As the export of a project has it."""
    choice = {"id": "aB3", "from_name": name, "to_name": "text", "type": "choices", "origin": "manual"}
    result = [{**choice, "value": {"choices": [one]}} for one in choices]
    return {"id": 7, "completed_by": 1, "was_cancelled": cancelled, "ground_truth": False, "result": result}


def export(path: Path, *rows: tuple[str, list[dict[str, Any]]]) -> Path:
    exported = [{"id": i, "data": {"pyrovae_row": name}, "annotations": found} for i, (name, found) in enumerate(rows)]
    path.write_text(json.dumps(exported))
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    rows = [f"r{i},{i},<b>text & {i}</b>,{'a<b' if i % 2 else 'c'}" for i in range(6)] + [
        "r6,6,unlabelled,",
        "r7,7,too,",
    ]
    path.write_text("\n".join(["id,size,note,label", *rows]) + "\n")
    return path


def told(job: Any) -> pd.DataFrame:
    """What a fit might say of the two rows without a label."""
    table = pd.DataFrame({"id": job.names(), "predicted": "a<b", "probability": 0.75, "rank": pd.NA})
    table["margin"] = 0.5
    table.loc[6, ["rank", "probability"]] = [2, 0.25]
    table.loc[7, "rank"] = 1
    return table.astype({"rank": "Int64"})


def test_tasks_hold_rows_without_a_label_the_most_informative_first(texts: Path, tmp_path: Path) -> None:
    job = read_job(str(texts))
    num, beside = write_tasks(job, told(job), tmp_path / "tasks.json")
    found = json.loads((tmp_path / "tasks.json").read_text())
    assert num == 2 and found == tasks(job, told(job)) and len(found) == 8
    assert found[0]["data"] == {"pyrovae_row": "r7", "text": "size: 7\nnote: too"}
    prediction = found[1]["predictions"][0]
    assert prediction["score"] == 0.25 and prediction["model_version"].startswith("pyrovae ")
    choice = prediction["result"][0]
    assert choice["value"] == {"choices": ["a<b"]} and choice["type"] == "choices"
    view = ElementTree.fromstring(beside.read_text())  # the names of the prediction are those of the interface
    shown, chosen = view.find("Text"), view.find("Choices")
    assert shown is not None and chosen is not None
    assert shown.get("name") == choice["to_name"] == chosen.get("toName") and shown.get("value") == "$text"
    assert chosen.get("name") == choice["from_name"]
    assert [one.get("value") for one in chosen] == ["a<b", "c"] == list(job.labels.classes)
    assert read_export(tmp_path / "tasks.json") == {  # as an export has them, those that were known come back
        "r7": "", "r6": "", "r0": "c", "r1": "a<b", "r2": "c", "r3": "a<b", "r4": "c", "r5": "a<b"
    }  # fmt: skip


def test_images_are_in_their_tasks(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(5):
        Image.new("L", (4, 4), 50 * number).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "labels.csv").write_text("file,label\n0.png,a\n1.png,a\n2.png,b\n")
    job = read_job(str(tmp_path / "photos"), tmp_path / "labels.csv")
    table = pd.DataFrame({"file": job.names(), "predicted": "a", "probability": 0.5, "rank": [pd.NA] * 3 + [1, 2]})
    task = tasks(job, table.astype({"rank": "Int64"}))[0]
    kind, _, content = task["data"]["image"].partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(content).startswith(b"\x89PNG")
    assert task["data"]["pyrovae_row"] == "3.png" and '<Image name="image" value="$image"/>' in interface(job)


def test_labels_come_back_by_the_names_of_rows(texts: Path, tmp_path: Path) -> None:
    path = export(
        tmp_path / "export.json",
        ("r6", [annotation("c"), annotation("c"), annotation("a<b")]),
        ("r7", [annotation("c", cancelled=True), annotation()]),
        ("r0", [annotation("c"), annotation("d", name="another question")]),
    )
    assert read_export(path) == {"r6": "c", "r7": "", "r0": "c"}
    labels = read_job(str(texts), path).labels
    assert labels.text(labels.y)[6:] == ["c", ""] and labels.text(labels.y)[0] == "c"
    assert read_export(export(path, ("r6", [annotation("c"), annotation("d")]))) == {"r6": ""}


def test_rows_that_are_numbered_come_back_where_row_0_was_no_task(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.arange(20.0).reshape(10, 2), y=np.array([0, 1] + [-1] * 8))
    path = export(
        tmp_path / "export.json", ("1", [annotation("1")]), ("2", [annotation("0")]), ("3", [annotation("0")])
    )
    assert read_job(str(tmp_path / "rows.npz"), path).labels.y.tolist()[:4] == [-1, 1, 0, 0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("3", "format JSON"),
        ('[{"id": 1, "choice": "c"}]', "JSON-MIN"),
        ('[{"id": 4, "data": {"text": "a"}}]', "id 4.*no 'pyrovae_row'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(DataError, match=says):
        read_export(tmp_path / "export.json")


def test_labels_of_strange_rows_or_several_at_once_are_refused(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 1 ids have no row"):
        read_job(str(texts), export(tmp_path / "export.json", ("elsewhere", [annotation("c")])))
    with pytest.raises(DataError, match="several choices"):
        read_export(export(tmp_path / "export.json", ("r6", [annotation("c", "d")])))
    with pytest.raises(DataError, match="no file"):
        read_export(tmp_path / "none.json")


def test_odd_results_are_no_labels(tmp_path: Path) -> None:
    odd: list[Any] = [
        None,
        3,
        {"result": None},
        {"result": [None, {"type": "choices", "from_name": "label", "value": [1]}]},
    ]
    odd += [{"result": [{"type": "choices", "from_name": "label", "value": {"choices": [1]}}]}]
    assert read_export(export(tmp_path / "export.json", ("r6", odd), ("r7", None))) == {"r6": "", "r7": ""}  # type: ignore[arg-type]


def test_the_command_writes_tasks_and_an_interface(
    pyrovae: Command, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def label_rows(job: Any, options: Any, folder: Path, *, to: Path, **how: Any) -> Any:
        asked.append(to)
        return SimpleNamespace(table=told(job), report={"held_out": 0}, pictures=[], rounds=1)

    monkeypatch.setattr("pyrovae.app.jobs.label.label_rows", label_rows)
    words = ("label", texts, "--format", "label-studio", "--out", "for-studio.json")
    code, out, err = pyrovae(*words)
    assert code == 0, err
    assert "Tasks, 2 without a label: for-studio.json (interface: for-studio.xml)" in out
    assert len(json.loads((tmp_path / "for-studio.json").read_text())) == 8 and (tmp_path / "for-studio.xml").exists()
    assert asked == [Path("runs/rows-labels/predictions.csv")]  # since labels.csv there may be the page's
    code, _, err = pyrovae(*words)
    assert code == 2 and "exists" in err and len(asked) == 1
