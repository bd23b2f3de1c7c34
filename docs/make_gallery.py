"""The pictures and printed results of the gallery: runs the examples and keeps what each of them prints and draws.

    python docs/make_gallery.py              # every example; the longest, clustering, takes seven minutes of a core
    python docs/make_gallery.py ladder nvae  # some of them

For an example NAME it writes docs/gallery/NAME.txt, the lines that were printed, and its pictures as small PNGs under the
names that the example gave them. The page docs/gallery/NAME.md includes these files; building the site runs no example.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
GALLERY = Path(__file__).parent / "gallery"
WIDTH, COLOURS = 900, 64  # of a picture


def shrink(path: Path, target: Path) -> None:
    """A picture of at most WIDTH pixels with a palette: a tenth of the size, and enough for a page."""
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((WIDTH, 2 * WIDTH), Image.Resampling.LANCZOS)
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)


def make(name: str, smoke: bool) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *(["--smoke"] if smoke else [])]
    environment = {**os.environ, "MPLBACKEND": "agg"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE)
        if done.returncode:
            raise SystemExit(f"{name}.py failed; what it printed:\n{done.stdout}")
        (GALLERY / f"{name}.txt").write_text(done.stdout)
        for picture in sorted(Path(folder).rglob("*.png")):
            shrink(picture, GALLERY / picture.name)
    print(f"{name}: {len(done.stdout.splitlines())} lines", flush=True)


def main() -> None:
    known = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="examples to run, without .py; default all of them")
    parser.add_argument("--smoke", action="store_true", help="a few seconds each, to see that they run")
    options = parser.parse_args()
    if unknown := set(options.names) - set(known):
        parser.error(f"no such example: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    GALLERY.mkdir(exist_ok=True)
    for name in options.names or known:
        make(name, options.smoke)


if __name__ == "__main__":
    main()
