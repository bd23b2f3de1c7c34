"""The README's Python runs as it stands, block after block, and its commands are commands."""

import re
from pathlib import Path

import pytest

from pyrovae.app import cli

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    assert len(blocks("python")) == 6
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), space)
    assert (tmp_path / "runs" / "readme" / "weights.safetensors").exists()


def test_the_commands_exist() -> None:
    known = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    used = set(re.findall(r"^(?:\S*/)?pyrovae (\w+)", "\n".join(blocks("sh")), re.MULTILINE))
    assert used == known


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"\b[A-Z]+_[A-Z]+_?TABLE|MEASURED|\bSETUP\b|\bDEMO\b", README)


def test_the_two_commands_stand_at_the_top() -> None:
    first = blocks("sh")[0]
    assert "make demo" in first and "make test" in first
