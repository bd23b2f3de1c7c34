"""What a script of this folder has measured: entries by name in one JSON file, to which several runs may add."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch


class Kept(dict[str, Any]):
    """The entries of earlier runs, or none where they are measured `again`; `keep` puts one into the file."""

    def __init__(self, path: Path, device: str, inside: str = "fits", *, again: bool = False, **about: Any) -> None:
        self.path, self.inside = path, inside
        threads = f"{torch.get_num_threads()} threads, {platform.machine()}"
        self.about = {"machine": f"{os.cpu_count()} cores, {threads}, {device}, torch {torch.__version__}", **about}
        super().__init__({} if again else self.on_disk())

    def on_disk(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text())[self.inside] if self.path.is_file() else {}
        return found

    def keep(self, name: str) -> None:
        # read again: another run may have added its own since
        entries = self.on_disk() | {name: self[name]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({**self.about, self.inside: entries}, indent=1) + "\n")
