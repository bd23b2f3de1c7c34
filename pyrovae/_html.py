"""What a notebook, or a terminal, shows of an object: a short table, in HTML with every text of it escaped."""

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


def plain(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The same table as text, for a terminal: columns one below the other, numbers to four digits."""
    cells = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    return "\n".join([title, *(f"  {line}" for line in lines)])


class Told:
    """An answer for many rows: printed, it is the short table that a notebook shows, and not all of its tensors."""

    def _told(self) -> tuple[Any, ...]:
        """Title, header and rows."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return plain(*self._told())

    def _repr_html_(self) -> str:
        return table(*self._told())


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
