"""YAML from anybody: plain values of bounded size, and one error for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from pyrovae._near import absent
from pyrovae.errors import DataError, shortened

MOST_BYTES = 16 * 2**20  # 50,000 columns take 5 MiB
MOST_EVENTS = (
    1_500_000  # starts, ends and values, each of which takes memory; 50,000 columns of four categories have 600,000
)
MOST_DEPTH = 50  # of lists and entries within one another; those of columns are three deep
MOST_BITS = 1_000  # of a whole number: longer ones are no floating numbers, and Python may not print them


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, in C where PyYAML has that, which takes a third of the time, and without endless numbers."""

    def construct_yaml_int(self, node: Any) -> int:
        value: int = super().construct_yaml_int(node)
        if value.bit_length() > MOST_BITS:
            raise ValueError(f"a whole number has {value.bit_length()} bits")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _refuse_large(text: str) -> None:
    """ValueError for what fills any memory: aliases, and many small values; and for nesting, for which C has no limit."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, _Loader)):
        if number > MOST_EVENTS:
            raise ValueError(f"it has more than {MOST_EVENTS:,} values, lists and entries")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases (*name) are not read: write the values out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise ValueError(f"it is nested more than {MOST_DEPTH} deep")


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file, in UTF-8.

    Args:
        path: The file.
        what: What it says, as an error calls it.

    Raises:
        DataError: It is no file, too large, or not such YAML.
    """
    if not path.is_file():
        raise DataError(f"{absent(path, ('.yaml', '.yml'))}: it is to say {what}.")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES // 2**20} MiB")
        text = path.read_text(encoding="utf-8-sig")
        _refuse_large(text)
        return yaml.load(text, _Loader)
    # of damaged numbers, dates and tags it raises whatever Python does
    except (OSError, yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError, RecursionError) as error:
        raise DataError(f"cannot read {what} in {path}: {shortened(error)}.") from error
