"""The import rule of the house, read from the source: who may import whom. See docs/architecture.md."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyrovae"

# A room may import itself and the rooms named here.
BASE = {
    "errors",
    "_arguments",
    "_dispatch",
    "_files",
    "_foreign",
    "_html",
    "_json",
    "_launch",
    "_lazily",
    "_letters",
    "_moments",
    "_near",
    "_shapes",
    "_version",
    "_weighing",
    "_zuko",
}
NETS = BASE | {"nets", "distributions"}
PAIR = BASE | {"pair"}
TRAINING = PAIR | {"weights", "objectives", "guides", "engine", "batching", "fitted", "training"}
RULES = {
    "errors": set(),
    "_arguments": {"errors", "_near"},
    "_html": set(),
    "_json": set(),
    "_files": {"errors", "_near"},
    "_moments": set(),
    "_near": set(),
    "_foreign": set(),
    "_sources": {"errors", "_near", "_foreign"},
    "_version": set(),
    "_launch": set(),
    "_dispatch": set(),
    "_lazily": {"_near"},
    "_letters": set(),
    "_shapes": set(),
    "_weighing": set(),
    "_start": {"_launch"},
    "_zuko": set(),
    # models: what a graph is made of
    "distributions": BASE,
    "nets": BASE,
    "families": NETS,
    "conditionals": NETS | {"families"},
    "priors": NETS | {"families"},
    "normalised": NETS | {"families", "conditionals"},
    "models": NETS | {"families", "conditionals", "priors"},
    # inference: what is done with any pair
    "pair": BASE,
    "weights": PAIR,
    "objectives": PAIR,
    "guides": PAIR | {"weights", "objectives"},
    "engine": PAIR | {"objectives"},
    "batching": PAIR | {"objectives", "engine"},
    "fitted": PAIR | {"weights", "objectives", "engine", "batching"},
    "training": TRAINING,
    "criticism": TRAINING | {"distributions", "predict"},
    "predict": TRAINING | {"distributions"},
    "recover": TRAINING | {"distributions", "predict", "criticism"},
    "plots": TRAINING | {"criticism", "predict", "recover"},
}
# applications: the only rooms that see both
APPLICATIONS = {"__init__", "__main__", "app", "closed_form", "data", "sklearn", "tables"}
APPLICATIONS_MAY = set(RULES) | APPLICATIONS


def test_no_module_has_the_name_of_what_is_called() -> None:
    """Whoever imports pyrovae.NAME first would find the module where `pv.NAME` is meant."""
    import pyrovae

    assert not [name for name in pyrovae.__all__ if (PACKAGE / f"{name}.py").exists()]


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    """The room of `pyrovae.training.fit` is training; of `pyrovae` itself, __init__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def module_name(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[tuple[str, ast.AST]]:
    """Modules of this package that a file imports, `from pyrovae import families` read as pyrovae.families."""
    found: list[tuple[str, ast.AST]] = []
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names if alias.name.split(".")[0] == "pyrovae"]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module or "") if part)
            if origin.split(".")[0] == "pyrovae":
                for alias in node.names:
                    nested = f"{origin}.{alias.name}"
                    path_of = PACKAGE.parent / nested.replace(".", "/")
                    is_module = path_of.with_suffix(".py").exists() or (path_of / "__init__.py").exists()
                    found.append((nested if is_module else origin, node))
    return found


def allowed(importer: str) -> set[str]:
    name = room(importer)
    if name in APPLICATIONS:
        return APPLICATIONS_MAY
    assert name in RULES, f"{importer} stands in a room that has no rule: add it to RULES and to docs/architecture.md"
    return RULES[name] | {name}


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    importer = module_name(path)
    wrong = [name for name, _ in imports(path) if room(name) not in allowed(importer)]
    assert not wrong, f"{importer} may not import {wrong}"


def test_no_import_cycles() -> None:
    graph = {module_name(p): {n for n, _ in imports(p)} - {module_name(p)} for p in files()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import cycle: {' -> '.join([*path[path.index(name) :], name])}"
        if name in done or name not in graph:
            return
        for other in graph[name]:
            visit(other, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_inside_a_function(path: Path) -> None:
    functions = [
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    inside = [n.lineno for f in functions for n in ast.walk(f) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert not inside, f"imports inside functions at lines {inside}"


def test_the_reader_sees_what_is_forbidden(tmp_path: Path) -> None:
    """The rule would notice: an inference room that names a model, absolutely, relatively, or through the package."""
    for line in ("from pyrovae.models import VAE", "from ..models.vae import VAE", "from pyrovae import priors"):
        fake = PACKAGE / "engine" / "step.py"
        probe = tmp_path / "step.py"
        probe.write_text(line)
        found = [n for n, _ in imports_as(probe, fake)]
        assert any(room(n) not in allowed("pyrovae.engine.step") for n in found), line


def imports_as(text_from: Path, place: Path) -> list[tuple[str, ast.AST]]:
    class Placed(type(place)):  # type: ignore[misc]
        def read_text(self, *args: object, **kwargs: object) -> str:
            return text_from.read_text()

    return imports(Placed(place))
