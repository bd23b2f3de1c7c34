"""Tasks for Label Studio, with what the model says of each row.

A task holds its row (an image, or the cells of a table as text), the row's name, and a prediction with its probability as the
score, by which Label Studio sorts; or, for a row with a label, this label as an annotation, so that an export has all labels.
It keeps the names, too, by which the labels find their rows, see `read_export`.

References:
    Label Studio, "Import pre-annotated data", https://labelstud.io/guide/predictions.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pandas as pd

from pyrovae._files import write_file
from pyrovae._version import __version__
from pyrovae.app.jobs.label.reading import Job
from pyrovae.app.jobs.label.views import Views
from pyrovae.data.label_studio import CONTROL, NAME


def tasks(job: Job, table: pd.DataFrame) -> list[dict[str, Any]]:
    """A task for each row, those without a label first, the most doubtful before others, in Label Studio's JSON format.

    Args:
        job: The rows.
        table: What `tabulate` says of them.
    """
    views = Views.of(job)
    kind = "image" if views.are_images else "text"
    first = table.sort_values("rank", kind="stable")  # which puts those without a rank last
    known = job.labels.text(job.labels.y)
    found: list[dict[str, Any]] = []
    for row, label, probability in zip(first.index.tolist(), first["predicted"], first["probability"]):
        chosen = {"choices": [known[row] or label]}
        result = [{"from_name": CONTROL, "to_name": kind, "type": "choices", "value": chosen}]
        task: dict[str, Any] = {"data": {NAME: table[job.id_column][row], kind: _content(views, row)}}
        if known[row]:
            task["annotations"] = [{"result": result}]
        else:
            score = float(probability)
            task["predictions"] = [{"model_version": f"pyrovae {__version__}", "score": score, "result": result}]
        found.append(task)
    return found


def _content(views: Views, row: int) -> str:
    if views.are_images:
        return f"data:image/png;base64,{base64.b64encode(views.image_of(row)).decode()}"
    cells = views.cells_of(row)
    return cells[0][1] if len(cells) == 1 else "\n".join(f"{name}: {value}" for name, value in cells)


def interface(job: Job) -> str:
    """The labelling interface of such tasks, to be pasted into the settings of a project."""
    image = job.dataset.image_shape is not None
    kind, tag = ("image", "Image") if image else ("text", "Text")
    choices = "".join(f"    <Choice value={quoteattr(label)}/>\n" for label in job.labels.classes)
    return (
        f'<View>\n  <{tag} name="{kind}" value="${kind}"/>\n'
        f'  <Choices name="{CONTROL}" toName="{kind}" choice="single-radio" showInLine="true">\n{choices}'
        "  </Choices>\n</View>\n"
    )


def write_tasks(job: Job, table: pd.DataFrame, path: Path) -> tuple[int, Path]:
    """Write the tasks, and their interface beside them: how many have no label, and the file of the interface."""
    found, beside = tasks(job, table), path.with_suffix(".xml")
    write_file(path, json.dumps(found, indent=1, ensure_ascii=False).encode())
    write_file(beside, interface(job).encode())
    return sum("predictions" in task for task in found), beside
