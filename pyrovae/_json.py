"""JSON from anybody: values of bounded depth and memory, and ValueError for everything else."""

from __future__ import annotations

import json
from typing import Any

DEEPEST = 100  # an entry inside of another; each takes some calls
# Objects and lists, up to which any file is read. Beyond, each must have so many bytes of the file: as Python's, they take some
# 200, and what takes far more memory than its file can be made to take all.
FREELY, BYTES_EACH = 1_000_000, 20


def of_json(content: str | bytes) -> Any:
    """A JSON value.

    Raises:
        ValueError: it is no JSON; it is so deep that what walks through it, or only prints it, would fail; or it has so many
            small parts that it would take far more memory than its file.
        RecursionError: it is deeper than Python's reader goes.
    """
    count: Any = content.count
    opening = "{[" if isinstance(content, str) else b"{["  # those in texts count, too
    number = count(opening[:1]) + count(opening[1:])
    if number > FREELY and number * BYTES_EACH > len(content):
        raise ValueError(f"it has {number:,} objects and lists in {len(content) / 2**20:.0f} MiB")
    value = json.loads(content)
    depth, level = 0, [value]
    while level:  # without recursion
        depth += 1
        inner = [one for one in level if isinstance(one, dict | list)]
        level = [part for one in inner for part in (one.values() if isinstance(one, dict) else one)]
    if depth > DEEPEST:
        raise ValueError(f"its entries are inside of one another more than {DEEPEST} times")
    return value
