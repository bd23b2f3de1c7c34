"""What needs no model is answered without the libraries that take seconds to import."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pyrovae as pv
from pyrovae.data.named import UNPACKED

HEAVY = (
    "torch",
    "pyro",
    "numpy",
    "pandas",
    "scipy",
    "sklearn",
    "matplotlib",
    "torchvision",
    "arviz_base",
    "xarray",
    "zuko",
    "safetensors",
    "tensorboard",
    "huggingface_hub",
)
ANSWER = """
import contextlib, io, json, sys
from pyrovae._start import main

heavy, cases = set(json.loads(sys.argv[1])), json.loads(sys.argv[2])
before = set()
for name, words in cases.items():
    said, code = io.StringIO(), 0
    sys.argv = ["pyrovae", *words]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    cases[name] = code, sorted(heavy & (set(sys.modules) - before)), said.getvalue()
    before = set(sys.modules)  # so that what one case imports is not laid at the door of the next
print(json.dumps(cases))
"""
QUESTIONS = {
    "help": ("--help",),
    "nothing": (),
    "help of fit": ("fit", "--help"),
    "help of label": ("label", "--help"),
    "version": ("--version",),
    "names": ("list",),
}
MISTAKES = {
    "an option that is none": ("fit", "--no-such-option"),
    "a command that is none": ("fitt",),
    "a value of another kind": ("fit", "digits", "--epochs", "many"),
    "a value that cannot be": ("fit", "digits", "--epochs", "-1"),
    "widths that are none": ("fit", "digits", "--hidden", "a,b"),
    "data that are unknown": ("fit", "digit"),
    "a file that is not there": ("fit", "rows.csv"),
    "data that are unknown, of a sweep": ("sweep", "digit"),
    "data that are unknown, to label": ("label", "digit"),
    "a part that is unknown": ("fit", "digits", "--prior", "vampire"),
    "a part that is unknown, of a sweep": ("sweep", "digits", "--prior", "normal,vampire"),
    "a model that is unknown": ("fit", "digits", "--model", "m3"),
    "a tracker that is none": ("fit", "digits", "--track", "wandb"),
    "a time that is none": ("label", "digits", "--time", "soon"),
    "a run that is none": ("evaluate", "nowhere"),
    "a run that is none, among two": ("compare", "nowhere", "neither"),
    "a run that is none, to resume": ("fit", "--resume", "nowhere"),
}


Answers = dict[
    str, tuple[int, list[str], str]
]  # the exit code, the heavy modules that were imported, and what was said


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The answers to all questions and mistakes, one after the other in one process."""
    words = json.dumps(HEAVY), json.dumps({**QUESTIONS, **MISTAKES})
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, *words],
        cwd=tmp_path_factory.mktemp("empty"),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_is_answered_without_torch(answers: Answers, name: str) -> None:
    code, heavy, said = answers[name]
    assert not heavy and len(said) > 10 and (code == 0 or name == "nothing"), said


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_without_torch(answers: Answers, name: str) -> None:
    code, heavy, said = answers[name]
    assert code == 2 and not heavy and "Error: " in said, said


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, pyrovae as pv; pv.errors, pv.PyrovaeError, pv.__all__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_found_when_it_is_asked_for() -> None:
    assert all(getattr(pv, name) is not None for name in pv.__all__)
    assert pv.VAE is pv.models.VAE and callable(pv.data.load)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        pv.nothing  # noqa: B018


def assigned(tree: ast.Module, name: str) -> ast.expr:
    """What a module assigns to a name."""
    (found,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name]
    return found


def test_the_names_that_are_imported_late_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(pv.__file__).read_text())
    seen = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes, public = (ast.literal_eval(assigned(tree, name)) for name in ("_HOMES", "__all__"))
    late = {name: home for home, names in homes.items() for name in names.split()}
    assert late == {name: home for name, home in seen.items() if home != "pyrovae"}
    assert set(seen) <= set(public) and dir(pv) == sorted(pv.__all__)


FIT = """
import sys, torch, pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import load
try:
    load("mnist", data_root=".")  # of files that are damaged
except pv.DataError as error:
    assert "damaged" in str(error)
vae = pv.VAE(pv.priors.MixtureOfNormals(2, 3), pv.mlp(2, fam.Normal(3)), pv.mlp(3, fam.Normal(2)))
fitted = pv.fit(vae, torch.rand(40, 3), epochs=2, engine="traced", validation=0.25, progress=False)
assert fitted.settings["engine"] == "traced" and "engine_notes" not in fitted.settings
net = {"hidden": (512,)}
wide = pv.VAE(pv.priors.StandardNormal(8), pv.mlp(8, fam.Bernoulli(64), **net), pv.mlp(64, fam.Normal(8), **net))
fitted = pv.fit(wide, torch.rand(40, 64).round(), epochs=1, engine="traced", progress=False)
pv.load(pv.save(fitted, "wide"))  # counts the elements of products, so large that it looks at them
late = ("torch._dynamo", "torch._inductor", "sympy", "torchvision", "pandas", "sklearn", "scipy", "matplotlib")
print(*(name for name in late if name in sys.modules))
"""


def test_a_traced_fit_is_made_and_opened_without_the_compiler(tmp_path: Path) -> None:
    """Whose import takes longer than that of all else but torch; and reading images without torchvision, which imports it."""
    for file in UNPACKED:
        (tmp_path / file).write_bytes(b"")
    done = subprocess.run([sys.executable, "-c", FIT], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == []


COMMAND = """
import sys
sys.argv = "pyrovae fit table.csv --epochs 2 --num-samples 20 --search none --prior full-mixture --test-fraction 0.05".split()
from pyrovae._start import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
late = ("torch._dynamo", "torch._inductor", "sympy", "triton", "torchvision")
print("imported:", *(name for name in late if name in sys.modules))
"""


@pytest.mark.slow
def test_a_table_is_fitted_without_the_compiler(tmp_path: Path) -> None:
    """Of more than twenty columns, whose proposals take second derivatives; so many rows that building it looks at sizes."""
    random = np.random.default_rng(0)
    columns = {f"c{i}": np.exp(random.normal(size=400)).round(i % 4) for i in range(22)}
    pd.DataFrame(columns).to_csv(tmp_path / "table.csv", index=False)
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "Run folder" in done.stdout and done.stdout.splitlines()[-1].split() == ["imported:"]
