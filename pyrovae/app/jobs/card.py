"""The model card of a run: what it is, how good, what was checked, and how to load it, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyrovae._json import of_json
from pyrovae._lazily import Lazily
from pyrovae.app.models import MODELS
from pyrovae.app.results import Shown, remarks_on_results, results_table
from pyrovae.errors import CheckpointError, counted
from pyrovae.fitted.files import WEIGHTS
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.folder import load
from pyrovae.fitted.spec import renamed

yaml = Lazily("yaml")

CHECKED = "check.json"
MOST_ELEMENTS = 6  # of a tuple that is written out
ADVICE = "The weights were learned from rows, and may tell of them whatever a model can learn by heart."


def model_card(
    folder: Path,
    run: Mapping[str, Any],
    info: Mapping[str, Any],
    repo: str,
    license: str | None,
    files: Sequence[str],
    added: Sequence[str],
) -> str:
    """The card of a run.

    Args:
        folder: the run folder.
        run: its run.json.
        info: what is pushed of the entry `info`.
        repo: user/name.
        license: as the user gave it.
        files: the files that are pushed.
        added: those among them that are pushed only because the user asked for them.
    """
    try:
        fitted = load(folder)
    except CheckpointError:  # it has parts of the user's own, which are not run for this
        fitted = None
    kind = str(info.get("options", {}).get("model", "vae"))
    parts = [
        f"# {repo.partition('/')[2]}",
        f"A variational autoencoder, fitted by pyrovae {run.get('pyrovae', '')}.",
        "## Data",
        _data(run, info),
        "## Model",
        _model(run, fitted),
        *_picture("samples.png", "What the model draws", files),
        "## How good it is",
        _numbers(run, info, kind),
        *_picture("training.png", "The ELBO of each epoch", files),
        *_findings(folder),
        "## How to load it",
        _loading(repo, "data" in info),
        "## License",
        license if license is not None else "None was given, so that others may not use it without asking.",
        f"---\n{ADVICE} {_added(added)}",
    ]
    head: dict[str, Any] = {"library_name": "pyrovae", "tags": ["pyrovae", "pyro", "variational-autoencoder", kind]}
    if license is not None:
        head = {"license": license, **head}
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n\n".join(parts) + "\n"


def _data(run: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """How many rows of what shape, and what the columns are where that is told; never a value."""
    arguments = run.get("untransformed") or run["layout"]["arguments"]
    shapes = ", ".join(
        f"{_plain(name)} of shape ({', '.join(map(str, shape))})" for name, (shape, _) in arguments.items()
    )
    data, results = info.get("data", {}), info.get("results", {})
    said = counted(run["settings"]["num_rows"], "training row") if run["settings"].get("num_rows") else "Training rows"
    said += f": {shapes}."
    if data.get("name"):
        said = f"The data set {_plain(data['name'])}. {said}"
    if results.get("test_rows"):
        said += f" {counted(results['test_rows'], 'test row was', 'test rows were')} held out."
    if columns := data.get("columns"):
        lines = [(str(one.get("name")), str(one.get("kind"))) for one in columns if isinstance(one, dict)]
        said += "\n\n" + _markdown(Shown("", ("column", "kind"), tuple(lines)))
    return said


def _model(run: Mapping[str, Any], fitted: Fit | None) -> str:
    lines = [] if fitted is None else fitted.factorisations()
    code = as_code(renamed(run["pair"]))
    said = "\n\n".join(_fenced(kind, text) for kind, text in (("text", "\n".join(lines)), ("python", code)) if text)
    if fitted is None:
        said += "\n\nIt has parts of its author's own: build the pair as the author did, and pass it to `pv.load`."
    return said


def _numbers(run: Mapping[str, Any], info: Mapping[str, Any], kind: str) -> str:
    results = info.get("results")
    if not isinstance(results, dict) or "log_likelihood" not in results:
        return "The curve of the fit is in `history.csv`; no test rows were judged."
    probability = MODELS[kind].probability if kind in MODELS else "p(x)"
    try:
        shown, remarks = results_table(results, probability), remarks_on_results(results)
    except KeyError:  # an earlier version recorded other numbers
        lines = tuple((name, f"{value:.4g}") for name, value in results.items() if isinstance(value, int | float))
        shown, remarks = Shown("", ("quantity", "value"), lines), []
    what = "± is the standard error over test rows; shares have 95 % intervals."
    return "\n\n".join([_markdown(shown), what, "\n".join(f"- {line}" for line in remarks)]).rstrip()


def _findings(folder: Path) -> list[str]:
    """What `pyrovae check` found, if it was asked after the fit."""
    path = folder / CHECKED
    if path.is_symlink() or not path.is_file() or path.stat().st_mtime < (folder / WEIGHTS).stat().st_mtime:
        return []
    try:
        found = of_json(path.read_text())["findings"]
        lines = tuple((str(one["verdict"]), str(one["name"]), str(one["says"])) for one in found)
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return ["## What was checked", _markdown(Shown("", ("", "question", "answer"), lines))]


def _loading(repo: str, described: bool) -> str:
    code = f'import pyrovae as pv\n\nfitted = pv.load("hub:{repo}")\nx = pv.generate(fitted, 64)'
    also = "Its commands, such as `pyrovae evaluate`, work where it was fitted, and for those who have the same data"
    command = f"`pyrovae pull {repo}` copies it into a run folder. " + (
        f"{also}: `--data FILE`." if described else "Commands that need the data that it was fitted to cannot use it."
    )
    return f"```sh\npip install 'pyrovae[hub]'\n```\n\n```python\n{code}\n```\n\n{command}\n\nOpening it runs no code."


def _added(names: Sequence[str]) -> str:
    if names:
        return f"Its author has added {', '.join(map(_plain, names))}."
    return "What was pushed with this page holds no rows, codes of rows or places of files."


def _picture(name: str, what: str, files: Sequence[str]) -> list[str]:
    return [f"![{what}]({name})"] if name in files else []


def _fenced(language: str, code: str) -> str:
    """A block of code, which nothing in it ends."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"


def _plain(text: object) -> str:
    """A text in one line that is no Markdown or HTML: names of columns and sites come from anybody."""
    one_line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", one_line)


def _markdown(shown: Shown) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(_plain, cells)) + " |"

    title = [f"{shown.title}:\n"] if shown.title else []
    return "\n".join([*title, line(shown.columns), line(["---"] * len(shown.columns)), *map(line, shown.lines)])


def as_code(spec: Any) -> str:
    """A specification (`fitted/spec.py`) as Python code, with the arguments of the outermost call on lines of their own."""
    if not isinstance(spec, dict) or not spec.get("args"):
        return _inline(spec)
    lines = [f"    {name}={_inline(value)}," for name, value in spec["args"].items()]
    return "\n".join([f"{_called(spec)}(", *lines, ")"])


def is_short(parts: Sequence[Any]) -> bool:
    """Whether a tuple is written out. Long ones, and those of fractions, are of the data or of the weights."""
    return len(parts) <= MOST_ELEMENTS and not any(isinstance(part, float) for part in parts)


def _called(spec: Mapping[str, Any]) -> str:
    name = str(spec.get("class", spec.get("external", "")))
    return name.replace("pyrovae.", "pv.", 1) if name.startswith("pyrovae.") else name.rpartition(".")[2]


def _inline(value: Any) -> str:
    """A part of it in one line."""
    if not isinstance(value, dict):
        return repr(value)
    if "tuple" in value:
        parts = value["tuple"]
        return f"({', '.join(map(_inline, parts))}{',' if len(parts) == 1 else ''})" if is_short(parts) else "(...)"
    if "dict" in value:
        return "{" + ", ".join(f"{name!r}: {_inline(one)}" for name, one in value["dict"].items()) + "}"
    if "type" in value:
        return str(value["type"]).rpartition(".")[2]
    if "class" in value or "external" in value:
        if "args" not in value:  # a function
            return _called(value)
        given = value["args"]  # None where they are not told
        arguments = "..." if given is None else ", ".join(f"{name}={_inline(one)}" for name, one in given.items())
        return f"{_called(value)}({arguments})"
    return "..."
