"""`pyrovae fit FOLDER`: images of several sizes in folders that are their classes, and what is asked of such a run."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.command import Command

pytestmark = pytest.mark.slow

QUICK = ("--epochs", 2, "--hidden", 8, "--latent", 2, "--engine", "eager", "--proposal", "guide", "--num-samples", 20)


def photos(folder: Path, number: int = 45) -> None:
    """Bright and dark ones of several sizes, as PNG and JPEG."""
    random = np.random.default_rng(0)
    for i in range(number):
        kind = ("day", "night")[i % 2]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        size = random.integers(9, 30, 2)
        pixels = random.integers(0, 90, (*size, 3)) + (150 if kind == "day" else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{i:02d}.{('png', 'jpg')[i % 3 == 0]}")


def test_a_folder_of_images_is_fitted_and_asked(pyrovae: Command) -> None:
    photos(Path("photos"))
    code, _, err = pyrovae("fit", "photos")
    assert code == 2 and "Give --size 28" in err
    code, _, err = pyrovae("fit", "photos", "--size", 8, "--model", "m2", *QUICK)
    assert code == 0, err
    told = " ".join(err.split())
    assert (
        "test rows of 192 (unit)" in told
        and "likelihood normal" in told
        and "p(y)" in told
        and Path("runs/photos/reconstructions.png").exists()
    )
    code, _, err = pyrovae("evaluate", "runs/photos", "--num-samples", 20, "--proposal", "guide")
    assert code == 0, err
    code, _, err = pyrovae("encode", "runs/photos", "--out", "codes.csv")
    assert code == 0, err
    assert sorted(set(pd.read_csv("codes.csv")["label"])) == ["day", "night"]
    shutil.move("photos", "elsewhere")
    code, _, err = pyrovae("evaluate", "runs/photos", "--num-samples", 20, "--proposal", "guide")
    assert code == 2 and "not at" in err and "--data" in err
    code, _, err = pyrovae("evaluate", "runs/photos", "--data", "elsewhere", "--num-samples", 20, "--proposal", "guide")
    assert code == 0, err
    (Path("elsewhere") / "day" / "00.jpg").unlink()
    code, _, err = pyrovae("evaluate", "runs/photos", "--data", "elsewhere", "--num-samples", 20, "--proposal", "guide")
    assert code == 2 and "elsewhere has changed" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("photos", "--size", 8, "--label", "kind"), "--label: for tables, and photos is a folder of images"),
        (("photos", "--size", 2), "from 4 to 256"),
        (("digits", "--size", 8), "--size is for a folder of images"),
    ],
)
def test_what_folders_do_not_take(pyrovae: Command, words: tuple[object, ...], said: str) -> None:
    photos(Path("photos"), 4)
    code, _, err = pyrovae("fit", *words)
    assert code == 2 and said in " ".join(err.split())
