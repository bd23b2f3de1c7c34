"""The picture of the page of `pyrovae explore` in docs/guides/explore.md, from a headless Chromium.

    python docs/make_explore_picture.py

Fits `pyrovae fit digits --latent 2`, serves `pyrovae explore`, starts from row 16, moves the point on the map by arrow keys,
and takes a picture: docs/explore-page.png. It takes half a minute.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.browser import Browser  # noqa: E402

ROW, STEPS = 16, 4
FIT = ("fit", "digits", "--latent", "2", "--epochs", "150", "--proposal", "guide", "--num-samples", "50")
READY = "typeof now !== 'undefined' && now && !busy && !waiting"


def main(path: Path, folder: Path) -> None:
    python = [sys.executable, "-m", "pyrovae"]
    subprocess.run([*python, *FIT], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    command = [*python, "explore", "runs/digits"]
    with (
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server,
        Browser(1180, 760) as browser,
    ):
        try:
            assert server.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+/\S+/", server.stdout.readline())
            assert found is not None
            browser.open(found.group())
            browser.wait(READY)
            browser.value(f"$('row').value = {ROW}, $('start').click()")
            browser.wait(f"{READY} && now.row === {ROW}")
            browser.value("document.querySelector('.pad').focus()")
            for _ in range(STEPS):
                browser.press("ArrowLeft")
            browser.value("document.activeElement.blur()")
            browser.wait(READY)
            browser.picture(path)
        finally:
            server.kill()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(ROOT / "docs" / "explore-page.png", Path(temporary))
