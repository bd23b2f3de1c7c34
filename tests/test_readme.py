"""What the README says holds: its Python runs and prints what it says, its commands exist, its links lead somewhere."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import pyrovae as pv
from pyrovae.app import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


NUMBER = r"-?\d+\.\d+"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*effective:UserWarning")  # of proposals of few steps
def test_the_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    assert len(blocks("python")) == 3
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), space)
    assert (tmp_path / "runs" / "readme" / "weights.safetensors").exists()
    printed, told = capsys.readouterr().out, blocks("text")[0]
    assert re.sub(NUMBER, "#", printed) == re.sub(NUMBER, "#", told)
    # fits differ a little between machines and versions of torch
    assert list(map(float, re.findall(NUMBER, printed))) == pytest.approx(
        list(map(float, re.findall(NUMBER, told))), abs=1.0
    )


def test_the_graph_is_that_of_the_package() -> None:
    """The last Python block is the source of `pv.VAE`, but for docstrings and comments on it."""

    def bare(source: str) -> str:
        [graph] = [node for node in ast.parse(textwrap.dedent(source)).body if isinstance(node, ast.ClassDef)]
        if ast.get_docstring(graph) is not None:
            graph.body = graph.body[1:]
        return ast.unparse(graph)

    assert bare(blocks("python")[-1]) == bare(inspect.getsource(pv.VAE))


def test_the_commands_exist_and_none_is_left_out() -> None:
    known = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    named = set(re.findall(r"(?:^|^\$ |`)(?:\S*/)?pyrovae (\w+)", README, re.MULTILINE))
    assert named == known


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"\b[A-Z]+_[A-Z]+_?TABLE|MEASURED|\bSETUP\b|\bDEMO\b|\bTODO\b", README)


def test_the_two_commands_are_at_the_top() -> None:
    first = blocks("sh")[0]
    assert "make demo" in first and "make test" in first


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/results.md"])
def test_what_is_linked_or_named_is_there(name: str) -> None:
    """Links and pictures, relative to the page, and in code the paths of files of the project."""
    text = (ROOT / name).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not ((ROOT / name).parent / link).exists()]
    paths = re.findall(r"`((?:tests|benchmarks|docs|examples|pyrovae|\.ci)/[\w./-]+)", text)
    missing += [path for path in paths if "NAME" not in path and "_build" not in path and not (ROOT / path).exists()]
    assert not missing
