"""The labels in an export of Label Studio.

References:
    Label Studio, "Task format", https://labelstud.io/guide/task_format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyrovae._json import of_json
from pyrovae._near import absent, expanded
from pyrovae.errors import DataError

CONTROL, NAME = "label", "pyrovae_row"  # of the choices in Label Studio, and of the row's name among a task's data


def read_export(path: str | Path) -> dict[str, str]:
    """The labels in an export of Label Studio, in its format JSON: the label of each row by its name.

    Where several people have labelled a row, it is what most of them say, and "" in a tie. Skipped tasks have no label.

    Raises:
        DataError: The file is not such an export, or a task has several choices.

    Example:
        >>> import json, pathlib
        >>> from pyrovae.data.label_studio import read_export
        >>> choice = {"type": "choices", "from_name": "label", "value": {"choices": ["cat"]}}
        >>> task = {"data": {"pyrovae_row": "a.png"}, "annotations": [{"result": [choice]}]}
        >>> _ = pathlib.Path("export.json").write_text(json.dumps([task]))
        >>> read_export("export.json")
        {'a.png': 'cat'}
    """
    path = expanded(path)
    if not path.is_file():
        raise DataError(f"{absent(path, ('.json', '.csv'))}. Give a table of labels, or an export of Label Studio.")
    try:
        exported = of_json(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path} is not JSON ({error}). Export from Label Studio in the format JSON.") from error
    if not isinstance(exported, list) or not all(
        isinstance(task, dict) and isinstance(task.get("data"), dict) for task in exported
    ):
        raise DataError(
            f"{path} is not an export of Label Studio in the format JSON, a list of tasks with their data (JSON-MIN leaves "
            "out what is needed). Export it anew."
        )
    said: dict[str, list[str]] = {}
    for task in exported:
        name = task["data"].get(NAME)
        if not isinstance(name, str | int):
            raise DataError(
                f"{path}: a task (id {task.get('id')}) has no {NAME!r} among its data, by which its row is known. Import the "
                "tasks that `pyrovae label --format label-studio` writes."
            )
        said.setdefault(str(name), []).extend(_choices(path, str(name), task.get("annotations")))
    return {name: _most(labels) for name, labels in said.items()}


def _choices(path: Path, name: str, annotations: Any) -> Iterable[str]:
    """The choice of each annotation that was not cancelled."""
    for annotation in annotations if isinstance(annotations, list) else ():
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        results = annotation.get("result")
        chosen = [
            choice
            for one in (results if isinstance(results, list) else ())
            if isinstance(one, dict) and one.get("type") == "choices" and one.get("from_name") == CONTROL
            for choice in _texts(one.get("value"))
        ]
        if len(chosen) > 1:
            raise DataError(
                f"{path}: {name} has several choices in one annotation, {chosen[0]!r} and {chosen[1]!r}. Keep one."
            )
        yield from chosen


def _most(labels: list[str]) -> str:
    counts = Counter(labels).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return ""
    return counts[0][0]


def _texts(value: Any) -> list[str]:
    choices = value.get("choices") if isinstance(value, dict) else None
    return [choice.strip() for choice in choices if isinstance(choice, str)] if isinstance(choices, list) else []
