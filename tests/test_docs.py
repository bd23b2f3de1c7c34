"""The documentation is complete and its code runs: every public name, every example, every page, every block of a guide."""

import ast
import contextlib
import functools
import importlib
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pyro
import pytest
import sklearn.datasets
import torch
import typer
from sklearn.utils import Bunch

import pyrovae as pv
from pyrovae.app import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)
WITH_CODE = [DOCS / "start.md", DOCS / "engines.md", *sorted((DOCS / "guides").glob("*.md"))]
# rooms with an __all__
LISTED = ("families", "priors", "nets", "distributions", "plots", "sklearn", "weights", "guides")
HOMES = (
    *LISTED,
    "schedules",
    "baselines",
    "kl",
    "penalties",
    "transforms",
    "acquisition",
    "calibration",
    "corruptions",
    "disentanglement",
    "tracking",
)
DIRECTIVE = re.compile(r"^\.\. (?:autoclass|autofunction|autoexception|py:data):: (\S+)$", re.MULTILINE)


def room_of(home: str) -> Any:
    return importlib.import_module(f"pyrovae.{home}") if home in LISTED else getattr(pv, home)


def public(home: str) -> list[str]:
    """The names in a room's __all__, else its own functions and classes."""
    room = room_of(home)
    own = [
        name
        for name, value in vars(room).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == room.__name__
    ]
    return [name for name in getattr(room, "__all__", own) if not name.startswith("_")]


def lookup(path: str) -> Any:
    """pyrovae.families.Normal -> the class; AttributeError where there is none."""
    first, *names = path.split(".")
    found = importlib.import_module(first)
    for name in names:
        found = room_of(name) if found is pv and name in LISTED else getattr(found, name)
    return found


def documented() -> dict[str, Any]:
    """What the reference has an entry for, by the name in that entry."""
    text = "\n".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))
    names = DIRECTIVE.findall(text)
    assert len(names) == len(set(names)), "a name has two entries"
    return {name: lookup(name) for name in names}


def test_the_reference_has_every_public_name() -> None:
    entries = documented()
    known = {id(value) for value in entries.values() if not isinstance(value, str)}
    names = {f"pyrovae.{name}": getattr(pv, name) for name in pv.__all__ if not inspect.ismodule(getattr(pv, name))}
    for home in HOMES:
        names |= {f"pyrovae.{home}.{name}": getattr(room_of(home), name) for name in public(home)}
    missing = [name for name, value in names.items() if name not in entries and id(value) not in known]
    assert not missing, f"add to docs/reference: {', '.join(missing)}"


def plain(docstring: str) -> str:
    """A docstring without its examples and without what stands between backticks."""
    return re.sub(r"`[^`]*`", "", re.sub(r"^ *(?:>>>|\.\.\. ).*$", "", docstring, flags=re.MULTILINE))


def test_no_docstring_has_a_substitution() -> None:
    """Outside backticks, |l| is markup: Sphinx looks for a substitution of that name."""
    substitution = re.compile(r"(?<!\w)\|\w[^|]*\|(?!\w)")
    assert substitution.search(plain("1 + exp(-|l|)")) and not substitution.search(plain("q(z|x) and p(x | z)"))
    for name, value in documented().items():
        parts = [value, *vars(value).values()] if inspect.isclass(value) else [value]
        for part in parts:
            found = substitution.search(plain(getattr(part, "__doc__", None) or ""))
            assert not found, f"{name}: put {found[0]} between backticks"


def test_the_summaries_name_the_entries_below_them() -> None:
    for page in sorted((DOCS / "reference").glob("*.md")):
        text = page.read_text()
        summary = re.findall(r"^   (pyrovae\.\S+)$", text, re.MULTILINE)
        assert set(summary) <= set(DIRECTIVE.findall(text)), page.name


def test_the_gallery_has_every_example() -> None:
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")}
    pages = {path.stem: path.read_text() for path in (DOCS / "gallery").glob("*.md") if path.stem != "index"}
    assert set(pages) == examples
    index = (DOCS / "gallery" / "index.md").read_text()
    for name, text in pages.items():
        assert f"../../examples/{name}.py" in text
        assert f":link: {name}\n" in index
    shown = set(re.findall(r"[\w-]+\.png", "\n".join(pages.values())))
    assert shown == {path.name for path in (DOCS / "gallery").glob("*.png")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_refers_to_is_there(page: Path) -> None:
    text = page.read_text()
    linked = re.findall(r"\{doc\}`(?:[^`<]*<)?([\w./-]+)>?`", text)
    linked += [name for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL) for name in toctree(tree)]
    for name in linked:
        assert (page.parent / f"{name}.md").exists(), f"{page.name} refers to the page {name}"
    included = re.findall(r"\{(?:literal)?include\} (\S+)", text) + re.findall(r"!\[[^\]]*\]\((\S+?)\)", text)
    included += re.findall(r"\{figure\} (\S+)", text)
    for name in included:
        assert (page.parent / name).exists(), f"{page.name} shows the file {name}"


NAME = r"(?:pv|fam)(?:\.[A-Za-z_]\w*)+"  # a public name as pages and examples write it


def named(text: str) -> Any:
    """What a page means by a name such as pv.priors.Laplace or fam.Normal."""
    return lookup(re.sub("^pv", "pyrovae", re.sub("^fam", "pyrovae.families", text)))


def calls(page: Path) -> list[tuple[str, ast.Call]]:
    """The calls of public names between single backticks, where these hold an expression: (what stands there, the call)."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found: list[tuple[str, ast.Call]] = []
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        with contextlib.suppress(SyntaxError):
            nodes = ast.walk(ast.parse(span, mode="eval"))
            found += [(span, node) for node in nodes if isinstance(node, ast.Call)]
    return [(span, call) for span, call in found if re.fullmatch(NAME, ast.unparse(call.func))]


def test_the_names_in_pages_are_there() -> None:
    for page in PAGES:
        for name in set(re.findall(rf"(?<![\w./]){NAME}", page.read_text())):
            assert named(name) is not None, f"{page.name}: {name}"


def test_the_calls_in_the_text_of_pages_have_arguments_that_there_are() -> None:
    assert len(calls(DOCS / "reference" / "index.md")) > 30  # else nothing is looked at
    for page in PAGES:
        for span, call in calls(page):
            names = {word.arg: None for word in call.keywords if word.arg}
            try:
                inspect.signature(named(ast.unparse(call.func))).bind_partial(*[None for _ in call.args], **names)
            except TypeError as error:
                pytest.fail(f"{page.name} has `{span}`: {error}")


def test_the_commands_in_pages_have_options_that_there_are() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    options = {name: {o for p in c.params for o in (*p.opts, *p.secondary_opts)} for name, c in commands.items()}
    seen = 0
    for page in (ROOT / "README.md", *PAGES):
        for block in re.findall(r"```(?:console|sh)\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                called = re.match(r"(?:\$ )?(?:[\w./-]+ )*?(?:\S*/)?pyrovae ([a-z]+)(.*)", line)
                if called:
                    words = shlex.split(called[2], comments=True)
                    given = {word.split("=")[0] for word in words if re.match(r"-\D", word)}
                    assert given <= options[called[1]], f"{page.name}: {line}"
                    seen += len(given)
    assert seen > 50  # else nothing is looked at


def toctree(body: str) -> list[str]:
    return [line for line in body.split("\n") if line and not line.startswith(":")]


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            listed |= {(page.parent / f"{name}.md").resolve() for name in toctree(tree)}
    assert {str(page.relative_to(DOCS)) for page in PAGES if page.resolve() not in listed} == set()


DIGITS = functools.cache(sklearn.datasets.load_digits)


def few_digits(number: int, return_X_y: bool = False) -> Any:
    """The first, which say as much of whether code runs."""
    data, target = DIGITS().data[:number], DIGITS().target[:number]
    return (data, target) if return_X_y else Bunch(data=data, target=target)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_reports")
@pytest.mark.filterwarnings("ignore:.*k-hat:UserWarning", "ignore:.*effective:UserWarning")  # of proposals of few steps
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_code_of_a_guide_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # all rows, and those to train on: guides that number rows in other places, too, need more of them
    rows, train = (700, 450) if page.stem in ("labels", "missing") else (300, 200)
    monkeypatch.setattr(sklearn.datasets, "load_digits", functools.partial(few_digits, rows))
    space: dict[str, object] = {"__name__": "guide"}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)):
        block = re.sub(r"epochs=1?20\b", "epochs=2", block)  # of the first program, and of questionnaires
        block = re.sub(r"num_temperatures=100\b", "num_temperatures=10", block)
        block = block.replace("1797", str(rows)).replace("1400", str(train))
        torch.manual_seed(0)
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), space)
    pyro.clear_param_store()  # pv.SVI, like Pyro's, keeps its parameters there


def test_the_start_names_the_two_commands() -> None:
    text = (DOCS / "start.md").read_text()
    assert "make demo" in text and "make test" in text
