"""`pyrovae report`: one page with everything that is known of a run."""

import base64
import io
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.command import Command
from support.pages import whole_page

from pyrovae import plots
from pyrovae.app import run as runs
from pyrovae.app.jobs import report as reporting
from pyrovae.app.options import Options
from pyrovae.app.pages import html
from pyrovae.app.pages import report as pages
from pyrovae.criticism import report as questions
from pyrovae.data import load

QUICK = ("--num-samples", 30, "--rows", 20)


@pytest.fixture
def run(pyrovae: Command, finished_run: Path) -> Path:
    """A run of `fit digits` of two epochs, for this test alone."""
    return Path(shutil.copytree(finished_run, "runs/digits"))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_reports")
def test_a_report_holds_the_run_its_check_and_other_runs(pyrovae: Command, run: Path) -> None:
    """Its numbers are those of `evaluate`, and a copy of the run is neither better nor worse than it."""
    shutil.copytree(run, "runs/a <b> & c")
    code, out, err = pyrovae("report", run, "--with", "runs/a <b> & c", *QUICK)
    assert code == 0, err
    assert "Page: runs/digits/report.html" in out
    text = (run / "report.html").read_text()
    page = whole_page(text)
    assert {link.removeprefix("#") for link in page.links} <= set(page.names)
    assert {"numbers", "comparison", "graph", "curves", "samples", "codes", "check", "options"} <= set(page.names)
    assert "classes" not in page.names  # a model without classes
    assert text.count("<figcaption>") >= 5 and 'name="viewport"' in text
    assert "runs/a &lt;b&gt; &amp; c" in text and "0.00 ± 0.00" in text and "p(z) p(x | z)" in text
    _, table, _ = pyrovae("evaluate", run, "--num-samples", 30, "--proposal", "guide")
    found = re.search(r"log p\(x\), nats per row[^-]*(-\d+\.\d+ ± \d+\.\d+)", table)
    assert found and found[1] in text


@pytest.mark.parametrize("kind", ["numbers", "mixed"])
def test_a_report_on_a_table_holds_its_columns(pyrovae: Command, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconstructions of a table are several axes, one a column, and of numbers and classes those of different plots."""
    monkeypatch.setattr(questions, "QUESTIONS", {})
    ends = {
        "numbers": [f",{n % 7}.25" for n in range(40)],
        "mixed": [f",{'rose' if n % 3 else 'tulip'}" for n in range(40)],
    }
    lines = [f"{n * 0.37 % 5:.2f},{n * 0.73 % 3:.2f}{end}" for n, end in enumerate(ends[kind])]
    Path("flowers.csv").write_text("\n".join(["length,width,last", *lines]))
    options = Options.of("fit", epochs=1, hidden=(8,), latent=2, proposal="guide", num_samples=5)
    runs.fit_run(load("flowers.csv"), options, Path("run"), engine="eager", progress=False)
    code, out, err = pyrovae("report", "run", *QUICK, "--proposal", "guide")
    assert code == 0 and "Page: run/report.html" in out, err
    text = Path("run/report.html").read_text()
    assert {"curves", "samples", "codes"} <= set(whole_page(text).names)
    assert all(f'alt="{name}"' in text for name in ("training", "reconstructions", "latent"))


@pytest.mark.usefixtures("finished_run")
def test_mistakes_are_told_before_any_work(pyrovae: Command, run: Path) -> None:
    for words, said in (
        (("nowhere",), "not a run folder"),
        ((run, "--with", "nowhere"), "not a run folder"),
        ((run, "--out", "page.txt"), ".html"),
        ((run, "--out", "nowhere/page.html"), "there is no folder"),
        ((run, "--rows", 1), "--rows must be at least 2, got 1"),
    ):
        code, out, err = pyrovae("report", *words)
        assert code == 2 and said in err and not out
    Path("mine.html").write_text("mine")
    code, _, err = pyrovae("report", run, "--out", "mine.html")
    assert code == 2 and "mine.html exists" in err and Path("mine.html").read_text() == "mine"


def test_a_picture_of_several_axes_is_one_picture_of_the_page() -> None:
    """Reconstructions of a table have axes for each column."""
    axes = plots.reconstructions(torch.rand(5, 3), torch.rand(5, 3), columns=["a", "b", "c"])
    shown = html.picture(axes, "reconstructions")
    content = base64.b64decode(shown.partition("base64,")[2].rstrip('">'))
    assert content.startswith(b"\x89PNG") and shown.startswith('<img alt="reconstructions"')


def png(width: int) -> bytes:
    with io.BytesIO() as file:
        Image.new("1", (width, 2)).save(file, "PNG")
        return file.getvalue()


def test_a_large_picture_can_be_moved_on_a_telephone() -> None:
    narrow, wide = (html.picture_of(png(width), "x") for width in (html.LARGE, html.LARGE + 1))
    assert narrow.startswith("<img ") and wide.startswith('<div class="wide"><img class="large" ')


@pytest.mark.parametrize("labels", [None, [0, 1, 1]])
def test_a_map_of_codes_is_read_by_whether_it_has_labels(labels: list[int] | None) -> None:
    axes = plots.latent(torch.eye(3), labels)
    assert ("Where colours part" in pages.caption("latent", axes)) is (labels is not None)


def test_every_picture_has_a_sentence_on_how_to_read_it() -> None:
    names = {name for _, group in pages.GROUPS.values() for name in group}
    assert set(pages.CAPTIONS) == names | {"columns", "labelled"}  # of a table, and of rows with labels


@pytest.mark.slow
@pytest.mark.digits(120)
def test_a_report_on_a_classifier_and_on_an_interrupted_fit(pyrovae: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class probabilities have their picture; a fit without a table of results gets one."""
    monkeypatch.setattr(questions, "QUESTIONS", {})
    plain = ("--labelled", 30, "--hidden", 8, "--engine", "eager", "--epochs", 1, "--proposal", "guide")
    code, _, err = pyrovae("fit", "digits", "--model", "m2", *plain, "--num-samples", 20, "--out", "run")
    assert code == 0, err
    opened = runs.open_run(Path("run"))
    told = opened.fitted.info.pop("results")
    found = reporting.report_on(opened, num_rows=20, num_samples=20, proposal="guide")
    assert found.results[0].lines[:2] == reporting.results_table(told, "p(x)").lines[:2]
    assert set(found.pictures) == {"training", "reconstructions", "samples", "latent", "t-SNE", "reliability"}
    assert all(path.name.startswith("graph") for path in found.graph_files)
    assert 'id="classes"' in pages.page(found)
