"""Pages in a real browser, by the keyboard: a session of labelling through the death of the server, and exploring a model."""

import csv
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from sklearn.datasets import load_digits
from support.browser import CHROMIUM, Browser

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.app.jobs.explore import Explorer
from pyrovae.app.jobs.explore.conditions import OfClass
from pyrovae.app.jobs.explore.shown import Pictures
from pyrovae.app.jobs.label import read_job
from pyrovae.app.jobs.label.session import Session
from pyrovae.app.pages.explore import explore_app
from pyrovae.app.pages.label import label_app
from pyrovae.app.pages.serve import address_of, listen

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

OPEN = "typeof state !== 'undefined' && state && !sending.length && state.rows.some(row => row.label === null)"
WORDS = ("--steps", "10", "--hidden", "8", "--latent", "2", "--passes", "2", "--engine", "eager", "--threads", "1")


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a page, and the process that serves it, which is killed at the end."""
    command = [sys.executable, "-m", "pyrovae", "label", "photos", "--page", *WORDS]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://127\.0\.0\.1:\d+/\S+/", process.stdout.readline())
            assert found is not None
            yield found.group(), process
        finally:
            process.kill()


class Idle:
    """A learner that never starts, and so takes no time."""

    busy = True

    def start(self, labels: list[str]) -> None: ...
    def poll(self) -> None: ...
    def close(self) -> None: ...


@contextmanager
def served_here(folder: Path, source: Path) -> Iterator[str]:
    """The address of a page that a thread of this process serves; its labels are in the folder."""
    session = Session(read_job(str(source), some=False), folder / "labels.csv", Idle())
    with served_by_a_thread(label_app(session, "token")) as url:
        yield url


@contextmanager
def served_by_a_thread(app: Any) -> Iterator[str]:
    """The address of an application whose token is "token"."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none"))
    with listen(0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield address_of(listening, "token")
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests, since to start it takes seconds."""
    with Browser() as started:
        yield started


def kept(folder: Path) -> dict[str, str]:
    with (folder / "labels.csv").open(newline="") as file:
        return {next(iter(line.values())): line["label"] for line in csv.DictReader(file)}


def label_with_keys(browser: Browser, truth: dict[str, str], num: int) -> None:
    """Label so many rows, each where the page puts the focus; a digit that has no button yet is typed into the field."""
    for _ in range(num):
        name = browser.wait(f"{OPEN} && document.activeElement.title")
        known = browser.value(f"state.classes.some(one => one.key === '{truth[name]}')")
        before = browser.value("state.progress.mine")
        browser.press(truth[name])
        if not known:
            assert browser.value("document.activeElement.id") == "typed"
            browser.press("Enter")
        browser.wait(f"!sending.length && state.progress.mine === {before + 1}")


def test_thirty_digits_by_keyboard_through_the_death_of_the_server(browser: Browser, tmp_path: Path) -> None:
    x, y = load_digits(return_X_y=True)
    x, y = x[y < 4], y[y < 4]  # of which the first labels have two of a class
    (tmp_path / "photos").mkdir()
    for number, row in enumerate(x[:100]):
        Image.fromarray((row.reshape(8, 8) / 16 * 255).astype(np.uint8)).save(tmp_path / "photos" / f"{number:03d}.png")
    truth = {f"{number:03d}.png": str(label) for number, label in enumerate(y[:100])}
    run = tmp_path / "runs" / "photos-labels"
    browser.become(1280, 860)
    with served(tmp_path) as (url, server):
        browser.open(url)
        label_with_keys(browser, truth, 15)
        browser.wait(f"{OPEN} && state.model.labels > 0", 120)  # the model's process is at work, or was
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        browser.press("1")  # which nobody can save, and of which the page says so
        browser.wait("document.getElementById('trouble').textContent.includes('does not answer')")
        assert browser.value("sending.length") == 1
    assert kept(run) == {name: truth[name] for name in kept(run)} and len(kept(run)) == 15
    with served(tmp_path) as (url, server):
        browser.value("window.onbeforeunload = null, sending.length = 0")
        browser.open(url)
        label_with_keys(browser, truth, 15)
        assert len(kept(run)) == 30 and all(truth[name] == label for name, label in kept(run).items())
        browser.press("Backspace")
        browser.wait("!sending.length && state.progress.mine === 29")
        assert len(kept(run)) == 29
        browser.wait("state.fits.length > 0 && state.rows.every(row => row.guess !== undefined)", 120)
        assert browser.value("document.querySelectorAll('#accuracy circle').length") >= 1
        browser.press("-")  # skips one
        browser.wait("!sending.length && state.rows.some(row => row.skipped)")
        browser.press("ArrowRight", shift=True)
        browser.press("ArrowRight", shift=True)
        chosen = browser.value("[...selected].length")
        assert chosen == 3
        browser.press("Enter")  # the guesses of three at once
        browser.wait(f"!sending.length && state.progress.mine === {29 + chosen}")
        os.kill(server.pid, signal.SIGINT)
        assert server.wait(60) == 130
    assert browser.failures == []


def test_nothing_in_a_table_is_taken_for_html(browser: Browser, tmp_path: Path) -> None:
    evil = "<img src=x onerror='document.title=1'><script>document.title=1</script>"
    rows = [f'{evil} {i},"{evil}",{i}' for i in range(12)]
    (tmp_path / "rows.csv").write_text("\n".join(["id,<b>note</b>,size", *rows]) + "\n")
    browser.become(400, 800, dark=True)
    with served_here(tmp_path, tmp_path / "rows.csv") as url:
        browser.open(url)
        browser.wait(OPEN)
        assert browser.value("document.querySelectorAll('#rows img, #rows script, #rows b b').length") == 0
        assert evil in browser.value("document.getElementById('rows').textContent")
        for letter in "+<i>x</i>":
            browser.press(letter)
        browser.press("Enter")
        browser.wait("!sending.length && state.progress.mine === 1")
        assert list(kept(tmp_path).values()) == ["<i>x</i>"]
        repeated = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat: true, bubbles: true}))"
        assert browser.value(f"(() => {{ const before = asked; {repeated}; return asked - before; }})()") == 0
        (tmp_path / "labels.csv").write_text("mine")
        browser.press("1")
        changed = "document.getElementById('trouble').textContent.includes('changed by another program')"
        browser.wait(changed)
        browser.value("refresh()")
        assert browser.value(changed)  # until a later step is done
        assert browser.value("document.querySelectorAll('#classes i, #rows .badge i').length") == 0
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")  # nothing is wider than a phone
        assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(23, 25, 28)"
        assert browser.value("document.title").startswith("Label") and browser.failures == []


def test_a_latent_space_is_explored_by_keyboard(browser: Browser) -> None:
    torch.manual_seed(0)
    x, c = torch.bernoulli(torch.full((40, 16), 0.4)), torch.arange(40) % 2
    pair = pv.CVAE(
        condition=pv.nets.OneHot(2),
        prior=pv.mlp(2, fam.Normal(2), hidden=()),
        likelihood=pv.mlp((2, 2), fam.Bernoulli(16), hidden=(8,)),
        encoder=pv.mlp((16, 2), fam.Normal(2), hidden=(8,)),
    )
    fitted = pv.fit(pair, {"x": x, "c": c}, epochs=0, engine="eager", progress=False)
    evil = "<img src=x onerror='document.title=1'>"
    given, views = OfClass((evil, "dog"), c), {"x": Pictures((4, 4), 0.0, 1.0)}
    explorer = Explorer(fitted, given, views, rows=lambda which: {"x": x[which], "c": c[which]}, num_rows=40, name=evil)
    ready, shown = "typeof now !== 'undefined' && now && !busy && !waiting", "document.querySelector('#shown img').src"
    browser.become(400, 800, dark=True)
    with served_by_a_thread(explore_app(explorer, "token")) as url:
        browser.open(url)
        browser.wait(ready)
        first, start = browser.value(shown), browser.value("values.z")
        assert browser.value("now.held.length") == 0 and first.startswith("data:image/png;base64,")
        browser.value("document.querySelector('.pad').focus()")
        for _ in range(5):
            browser.press("ArrowRight")
        browser.wait(f"{ready} && now.held.length === 1")
        along, across = browser.value("values.z")
        assert along > start[0] and across == pytest.approx(start[1])
        browser.value("document.getElementById('z-1').focus()")
        for _ in range(40):
            browser.press("ArrowUp")
        browser.wait(f"{ready} && now.values.z[1] > {across}")
        z = browser.value("now.values.z")
        expected = pv.decode(fitted, torch.tensor([z]), given={"c": torch.tensor([0])})[0]
        draw = "Object.assign(document.createElement('canvas'), { width: 4, height: 4 }).getContext('2d')"
        pixels = browser.value(
            f"(() => {{ const to = {draw}; to.drawImage(document.querySelector('#shown img'), 0, 0); "
            "return [...to.getImageData(0, 0, 4, 4).data].filter((_, i) => i % 4 === 0); })()"
        )
        np.testing.assert_allclose(pixels, expected * 255, atol=1.0)
        assert browser.value("document.getElementById('density').textContent").startswith("log p(z | c) = −")
        browser.value("document.getElementById('given-0').focus()")
        browser.press("d")  # of a menu, as everywhere
        browser.wait(f"{ready} && now.given.c === 'dog'")
        browser.value("document.getElementById('row').value = 99, document.getElementById('start').click()")
        browser.wait("document.getElementById('trouble').textContent.includes('from 0 to 39')")
        assert browser.value("now.given.c") == "dog" and browser.value("values.z") == z
        browser.value("document.getElementById('row').value = 6, document.getElementById('start').click()")
        browser.wait(f"{ready} && now.row === 6")
        assert browser.value("document.querySelectorAll('#shown img').length") == 2
        assert (
            browser.value("now.given.c") == evil
            and browser.value("document.getElementById('trouble').textContent") == ""
        )
        # what is done while a row is asked for is done after it: first the row and a move, then another row that is overtaken
        browser.value("document.getElementById('row').value = 7, document.getElementById('start').click()")
        browser.value("set(about.sites[0], 1, 0.125)")
        browser.wait(f"{ready} && now.row === 7 && now.values.z[1] === 0.125 && now.seed === seed")
        seven = pv.encode(fitted, {"x": x[7:8], "c": c[7:8]})[0].tolist()
        assert browser.value("now.values.z[0]") == pytest.approx(seven[0], rel=1e-3)
        browser.value("startFrom(3), startFrom(5), document.getElementById('reset').click()")
        browser.wait(f"{ready} && now.held.length === 0 && now.row === null")
        assert browser.value(shown) == first
        browser.value("startFrom(6)")
        browser.wait(f"{ready} && now.row === 6")
        assert browser.value("[nats(null, true), nats(null, false), nats(-1.5, true)].join()") == "∞,−∞,−1.50"
        browser.value("document.getElementById('reset').focus()")
        browser.press("Enter")
        browser.wait(f"{ready} && now.held.length === 0")
        assert browser.value(shown) == first and browser.value("values.z") == start
        assert browser.value("document.querySelectorAll('img').length") == 1
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(23, 25, 28)"
        assert browser.value("document.title") == f"Explore {evil}" and browser.failures == []
