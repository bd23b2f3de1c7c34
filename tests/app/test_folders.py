"""`pyrovae fit FOLDER`: images of several sizes in folders that are their classes, and what is asked of such a run.

A run of images is asked about folders of other images, too.
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from support.command import Command, invoke

from pyrovae.app.jobs.batch import batch_of
from pyrovae.app.jobs.images import Folder
from pyrovae.app.rows import source_rows
from pyrovae.app.run import open_run
from pyrovae.errors import DataError, OptionError

pytestmark = pytest.mark.slow

DRAWS = ("--proposal", "guide", "--num-samples", 20)
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


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of photos, and other photos, of which one is green."""
    folder = tmp_path_factory.mktemp("photos")
    photos(folder / "photos")
    code, _, err = invoke("fit", folder / "photos", "--size", 8, "--model", "m2", *QUICK, "--out", folder / "run")
    assert code == 0, err
    photos(folder / "new", 12)
    green = np.zeros((20, 20, 3), dtype=np.uint8)
    green[..., 1] = 255
    Image.fromarray(green).save(folder / "new" / "day" / "green.png")
    return folder


def test_outliers_among_images_are_named_by_their_files(asked: Path, tmp_path: Path) -> None:
    code, out, err = invoke("outliers", asked / "run", asked / "new", *DRAWS, "--out", tmp_path / "strange.csv")
    assert code == 0, err
    found = pd.read_csv(tmp_path / "strange.csv")
    names = sorted(path.relative_to(asked / "new").as_posix() for path in (asked / "new").rglob("*.*g"))
    assert found["file"].tolist() == names and len(names) == 13
    assert found.loc[found["rank"] == 1, "file"].tolist() == ["day/green.png"] and "day/green.png" in out


def test_questions_about_tables_are_asked_of_a_folder_of_images(asked: Path, tmp_path: Path) -> None:
    for question, told in (("encode", "z0"), ("evaluate", "log_likelihood"), ("classify", "label predicted")):
        draws = {"encode": (), "evaluate": DRAWS, "classify": ("--num-samples", 20)}[question]
        code, _, err = invoke(question, asked / "run", asked / "new", *draws, "--out", tmp_path / f"{question}.csv")
        assert code == 0, err
        found = pd.read_csv(tmp_path / f"{question}.csv")
        assert found.columns[:2].tolist() == ["row", "file"] and told in found and found["file"][0] == "day/00.jpg"
    code, out, err = invoke("evaluate", asked / "run", asked / "photos", *DRAWS, "--out", tmp_path / "same.csv")
    trained = len(open_run(asked / "run").rows.train)
    assert code == 0 and f"{trained} of 45 rows are training rows of the run" in " ".join(out.split()), err
    assert set(found["label"]) == {"day", "night"}  # of the folders, as in the run
    run = open_run(asked / "run")
    blocks = list(Folder(run, asked / "photos", "label", 7).blocks())
    rows = torch.cat([batch_of(run, block)["x"] for block in blocks])
    torch.testing.assert_close(rows, source_rows(run.dataset, run.rows)["x"])
    assert [name for block in blocks for name in block.frame["file"]] == list(run.dataset.ids or ())


def test_folders_whose_names_are_no_classes_are_no_labels(asked: Path, tmp_path: Path) -> None:
    shutil.copytree(asked / "new" / "day", tmp_path / "mixed" / "dusk")
    shutil.copytree(asked / "new" / "night", tmp_path / "mixed" / "night")
    (block,) = Folder(open_run(asked / "run"), tmp_path / "mixed", "label", 50).blocks()
    assert block.frame.columns.tolist() == ["file"] and block.pixels is not None and block.pixels.shape == (13, 192)


def test_what_a_folder_of_images_cannot_be_asked(asked: Path, tmp_path: Path) -> None:
    code, _, err = invoke("impute", asked / "run", asked / "new", "--out", tmp_path / "filled.csv")
    assert code == 2 and "missing cells are those of a table: images have none" in " ".join(err.split())
    pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["a", "b"]).to_csv(
        tmp_path / "t.csv", index=False
    )
    assert invoke("fit", tmp_path / "t.csv", *QUICK, "--out", tmp_path / "of-table")[0] == 0
    for question in ("encode", "outliers"):
        code, _, err = invoke(question, tmp_path / "of-table", asked / "new")
        assert code == 2 and "the run was fitted to 2 columns, and not to images: give a table" in " ".join(err.split())
    assert invoke("fit", "digits", *QUICK, "--out", tmp_path / "digits")[0] == 0
    with pytest.raises(OptionError, match="digits, whose pixels are not of 8 bits"):
        Folder(open_run(tmp_path / "digits"), asked / "new", "label", 5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        Folder(open_run(asked / "run"), tmp_path / "empty", "label", 5)


def test_images_that_were_taken_as_they_are_have_their_size_and_their_colours(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for folder, shape in (("gray", (8, 8)), ("wide", (8, 9)), ("coloured", (8, 8, 3))):
        (tmp_path / folder).mkdir()
        for i in range(40 if folder == "gray" else 2):
            Image.fromarray(random.integers(0, 255, shape).astype(np.uint8)).save(tmp_path / folder / f"{i:02d}.png")
    assert invoke("fit", tmp_path / "gray", *QUICK, "--out", tmp_path / "run")[0] == 0
    run = open_run(tmp_path / "run")
    for folder, said in (
        ("wide", r"00.png is 9 x 8, and the model takes images of 8 x 8"),
        ("coloured", "has colours"),
    ):
        with pytest.raises(DataError, match=said):
            next(Folder(run, tmp_path / folder, "label", 5).blocks())
    (block, *_) = Folder(run, tmp_path / "gray", "label", 30).blocks()
    np.testing.assert_allclose(block.pixels, run.dataset.x[:30].numpy(), atol=1e-7)
