"""The picture of the labelling page in docs/guides/labels.md, from a session in a headless Chromium.

    python docs/make_page_picture.py

Writes 500 of scikit-learn's digits as images, serves `pyrovae label digits --page`, gives 76 of them their labels by the
keyboard, one after the other as the page asks for them, waits for the model, and takes a picture: docs/label-page.png. It takes
some minutes.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.browser import Browser  # noqa: E402

ROWS, LABELS = 500, 72
OPEN = "typeof state !== 'undefined' && state && !sending.length && state.rows.some(row => row.label === null)"
LEARNED = "state.model.status === 'ready' && state.rows.every(row => row.guess !== undefined)"


def main(path: Path, folder: Path) -> None:
    x, y = load_digits(return_X_y=True)
    (folder / "digits").mkdir()
    for number, row in enumerate(x[:ROWS]):
        pixels = (row.reshape(8, 8) / 16 * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "digits" / f"{number:03d}.png")
    command = [sys.executable, "-m", "pyrovae", "label", "digits", "--page", "--steps", "60", "--engine", "eager"]
    with (
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server,
        Browser(1180, 800) as browser,
    ):
        try:
            assert server.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+/\S+/", server.stdout.readline())
            assert found is not None
            browser.open(found.group())
            for done in range(LABELS):
                name = browser.wait(f"{OPEN} && state.progress.mine === {done} && document.activeElement.title")
                label = str(y[int(name.removesuffix(".png"))])
                known = browser.value(f"state.classes.some(one => one.key === '{label}')")
                browser.press(label)
                if not known:
                    browser.press("Enter")
                if done in (23, 47):  # a batch is done: wait for the model, as a person need not
                    browser.wait(f"{OPEN} && {LEARNED}", 900)
                    browser.value("send('next', {})")
            browser.wait(f"{OPEN} && {LEARNED}", 900)
            for _ in range(4):  # of the last batch, so that some have a label
                name = browser.wait(f"{OPEN} && document.activeElement.title")
                browser.press(str(y[int(name.removesuffix(".png"))]))
            browser.wait("!sending.length")
            browser.value("scrollTo(0, 0)")
            browser.picture(path)
        finally:
            server.kill()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(ROOT / "docs" / "label-page.png", Path(temporary))
