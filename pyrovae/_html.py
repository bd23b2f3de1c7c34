"""What a notebook shows of an object: a short table in HTML, every text of it escaped."""

from __future__ import annotations

import html
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

MOST_LETTERS = 80  # of one cell


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]], notes: Iterable[str] = ()) -> str:
    """A table with a title above and notes below; texts of more than 80 letters are cut."""
    head = "".join(f"<th>{_cell(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    below = "".join(f"<div><code>{html.escape(note)}</code></div>" for note in notes)
    return f"<div><b>{html.escape(title)}</b><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}</div>"


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 3] + "...")


class Shown:
    """A part of a model that a notebook shows as a table of its constructor's arguments, which it keeps as attributes."""

    def _repr_html_(self) -> str:
        kind: Any = type(self)
        names = [name for name in inspect.signature(kind).parameters if hasattr(self, name)]
        weights = sum(p.numel() for p in self.parameters()) if hasattr(self, "parameters") else 0
        values = [getattr(self, name) for name in names]
        rows = [(name, tuple(v) if isinstance(v, tuple) else v) for name, v in zip(names, values)]
        first = (kind.__doc__ or "").strip().splitlines()[:1]
        return table(kind.__name__, ("argument", "value"), [*rows, ("weights", weights)], first)
