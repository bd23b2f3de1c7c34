"""What a release says of itself in several places is the same in all of them."""

import ast
import configparser
import re
from pathlib import Path

import yaml

import pyrovae as pv
from pyrovae.app import cli

ROOT = Path(__file__).parents[1]
OF_CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base", "graphviz": "python-graphviz"}


def setup() -> configparser.ConfigParser:
    read = configparser.ConfigParser()
    read.read(ROOT / "setup.cfg")
    return read


def named(requirements: list[str]) -> dict[str, str]:
    """Requirements by name, in lower case."""
    parts = [re.fullmatch(r"([\w.-]+)\s*(.*)", line.strip().lower()) for line in requirements]
    return {part[1]: part[2].replace(" ", "") for part in parts if part is not None}


def recipe() -> dict[str, dict[str, list[str]]]:
    """The conda recipe, without its variables."""
    text = (ROOT / "docs/packaging/meta.yaml").read_text()
    return dict(yaml.safe_load(re.sub(r"\{[{%].*?[%}]\}", "", text)))


def test_the_version_is_the_same_everywhere() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == pv.__version__
    assert f'{{% set version = "{pv.__version__}" %}}' in (ROOT / "docs/packaging/meta.yaml").read_text()
    released = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert released[0] == pv.__version__


def test_the_conda_recipe_needs_what_the_package_needs() -> None:
    wanted = named([line for line in setup()["options"]["install_requires"].splitlines() if line])
    found = named(recipe()["requirements"]["run"])
    assert found.pop("python") == setup()["options"]["python_requires"]
    assert found == {OF_CONDA.get(name, name): bound for name, bound in wanted.items()}


def test_the_image_runs_the_demo_and_takes_extras_that_there_are() -> None:
    text = (ROOT / "Dockerfile").read_text()
    command = [*ast.literal_eval(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0])]
    command += ast.literal_eval(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[0])
    assert " ".join(command) in (ROOT / "Makefile").read_text().partition("\ndemo:")[2].partition("\n\n")[0]
    assert command[1] in {one.name or one.callback.__name__ for one in cli.app.registered_commands if one.callback}
    extras = re.findall(r"/src\[([\w,]+)\]", text)[0].split(",")
    assert set(extras) <= set(setup()["options.extras_require"])
    copied = {name for line in re.findall(r"^COPY (.*) /\S+$", text, re.MULTILINE) for name in line.split()}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert copied == kept and all((ROOT / name).exists() for name in copied)


def test_each_optional_package_that_a_message_names_is_an_extra() -> None:
    texts = [
        path.read_text()
        for path in [*(ROOT / "pyrovae").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    ]
    extras = {name for text in texts for name in re.findall(r"pip install '(?:pyrovae|\.)\[(\w+)\]'", text)}
    assert {"hub", "tensorboard", "arrow"} <= extras <= set(setup()["options.extras_require"])
