"""The command line: the main job and the questions, and one clear line, never a traceback, for every mistake."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.command import Command

import pyrovae as pv
from pyrovae import plots
from pyrovae.app import pictures
from pyrovae.app import results as results_of
from pyrovae.app import run as runs
from pyrovae.app.cli import entry
from pyrovae.app.scores import EVALUATION_SEED

# guide: a refined proposal takes longer than these fits
QUICK = ("--epochs", "2", "--hidden", "16", "--proposal", "guide", "--num-samples", "30")


@pytest.fixture
def run(pyrovae: Command, finished_run: Path) -> Path:
    """A run of `fit digits` with the options of QUICK, for this test alone."""
    return Path(shutil.copytree(finished_run, "runs/digits"))


@pytest.mark.slow
@pytest.mark.pictures
def test_the_main_job_ends_with_a_table_and_a_run_folder(pyrovae: Command) -> None:
    code, out, err = pyrovae("fit", "digits", "--epochs", 2, "--hidden", 16, "--num-samples", 100)
    assert code == 0 and "60 test rows, 100 refined draws a row" in out
    for words in (
        "ELBO, nats per row",
        "log p(x), nats per row",
        "k-hat > 0.50",
        "active units",
        "time of the fit",
        "±",
    ):
        assert words in out
    assert "ELBO" in err  # the progress bar
    files = {p.name for p in Path("runs/digits").iterdir()}
    assert files == {
        "weights.safetensors",
        "checkpoint.safetensors",
        "run.json",
        "history.csv",
        "log.jsonl",
        "graph.png" if shutil.which("dot") else "graph.gv",
        "training.png",
        "reconstructions.png",
        "samples.png",
        "latent.png",
    }
    results = json.loads(Path("runs/digits/run.json").read_text())["info"]["results"]
    assert f"{results['log_likelihood']:.2f}" in out and results["test_rows"] == 60
    assert len(pd.read_csv("runs/digits/history.csv")) == 2


@pytest.mark.slow
def test_a_second_run_gets_a_folder_of_its_own(pyrovae: Command, run: Path) -> None:
    before = (run / "weights.safetensors").read_bytes()
    assert pyrovae("fit", "digits", *QUICK, "--seed", 1)[0] == 0
    assert Path("runs/digits-2/run.json").exists() and (run / "weights.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_seed_repeats_a_run_exactly(pyrovae: Command) -> None:
    for name in ("a", "b"):
        assert pyrovae("fit", "digits", *QUICK, "--out", name, "--seed", 3)[0] == 0
    a, b = (json.loads(Path(name, "run.json").read_text()) for name in "ab")
    assert a["weights_sha256"] == b["weights_sha256"]
    del a["info"]["results"]["fit_seconds"], b["info"]["results"]["fit_seconds"]
    assert a["info"]["results"] == b["info"]["results"]


@pytest.mark.slow
@pytest.mark.digits(100)
@pytest.mark.pictures
def test_two_latent_dimensions_draw_a_manifold(pyrovae: Command) -> None:
    quick = ("--epochs", "2", "--proposal", "guide", "--num-samples", "30")
    assert pyrovae("fit", "digits", *quick, "--latent", 2, "--prior", "mixture", "--net", "conv")[0] == 0
    assert pyrovae("fit", "digits", *quick, "--net", "conv", "--hidden", 16)[0] == 2
    assert Path("runs/digits/manifold.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_refined_proposal_is_the_default_and_says_more_of_log_p_than_the_guide(pyrovae: Command, run: Path) -> None:
    found = {}
    for proposal in ("guide", "refined"):
        code, out, err = pyrovae(
            "evaluate", run, "--proposal", proposal, "--num-samples", 100, "--out", f"{proposal}.csv"
        )
        assert code == 0 and f"100 {proposal} draws a row" in out, err
        found[proposal] = pd.read_csv(f"{proposal}.csv")
    assert found["refined"]["k_hat"].median() < found["guide"]["k_hat"].median()
    _, out, _ = pyrovae("evaluate", run, "--num-samples", 100)
    assert "100 guide draws a row" in out  # as the run was fitted
    code, _, err = pyrovae("compare", run, run, "--proposal", "prior")
    assert code == 2 and "--proposal must be refined, laplace or guide, got " in err
    code, _, err = pyrovae("fit", "digits", "--proposal", "prior")
    assert code == 2 and "--proposal must be refined, laplace or guide, got prior" in err


@pytest.mark.slow
def test_evaluate_gives_the_fits_own_numbers(pyrovae: Command, run: Path) -> None:
    code, out, _ = pyrovae("evaluate", run, "--num-samples", 30, "--out", "rows.csv")
    results = json.loads((run / "run.json").read_text())["info"]["results"]
    assert code == 0 and f"{results['log_likelihood']:.2f}" in out
    rows = pd.read_csv("rows.csv", index_col="row")
    assert len(rows) == 60 and rows["log_likelihood"].mean() == pytest.approx(results["log_likelihood"])


@pytest.mark.slow
@pytest.mark.pictures
def test_generate_reconstruct_and_encode_write_what_they_say(pyrovae: Command, run: Path) -> None:
    assert pyrovae("generate", run, "-n", 64)[0] == 0 and (run / "generated.png").exists()
    assert pyrovae("generate", run, "-n", 5, "--out", "new.csv")[0] == 0
    new = pd.read_csv("new.csv")
    assert new.shape == (5, 64) and ((new >= 0) & (new <= 16) & (new == new.round())).all().all()
    assert pyrovae("reconstruct", run, "--out", "again.npy")[0] == 0
    assert np.load("again.npy").shape == (60, 64)
    assert pyrovae("reconstruct", run)[0] == 0
    assert pyrovae("encode", run, "--out", "z.csv")[0] == 0
    z = pd.read_csv("z.csv", index_col="row")
    assert z.shape == (300, 11) and z["label"].between(0, 9).all()
    few = ("--draws", 3, "--proposal", "guide", "--num-samples", 20)
    with pytest.warns(UserWarning, match="raise --num-samples, or take --proposal refined"):
        code, out, _ = pyrovae("encode", run, "--out", "draws.csv", *few)
    assert code == 0 and "300 rows, 3 draws of each: draws.csv" in out
    draws = pd.read_csv("draws.csv", index_col="row")
    assert list(draws.columns) == ["draw", *(f"z{i}" for i in range(10)), "label"]
    assert draws.index.tolist() == np.repeat(np.arange(300), 3).tolist() and draws["draw"].tolist() == [1, 2, 3] * 300
    assert (draws["label"] == z["label"].loc[draws.index]).all()
    with pytest.warns(UserWarning, match="raise --num-samples"):
        assert pyrovae("encode", run, "--out", "d.npy", *few)[0] == 0
    np.testing.assert_allclose(
        np.load("d.npy").reshape(900, 10), draws[[f"z{i}" for i in range(10)]], rtol=1e-4, atol=1e-6
    )
    for wrong, words in {
        -1: "--draws must be 0 or more",
        10**9: "at most 100000",
        10**5: "300,000,000 numbers",
    }.items():
        code, _, err = pyrovae("encode", run, "--draws", wrong)
        assert code == 2 and words in " ".join(err.split())


def write_table(path: Path, rows: int = 90) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(rows, 1))
    values = z @ rng.normal(size=(1, 4)) * 100 + 1000 + rng.normal(size=(rows, 4))
    frame = pd.DataFrame(values, columns=list("abcd"))
    frame["kind"] = np.where(z[:, 0] > 0, "up", "down")
    frame.to_csv(path, index=False)
    return frame


STANDARDISED = ("--likelihood", "normal")  # by default, columns are modelled in their own units


@pytest.mark.slow
def test_a_table_is_standardised_and_answers_in_its_own_units(pyrovae: Command) -> None:
    frame = write_table(Path("t.csv"))
    assert (
        pyrovae("fit", "t.csv", "--label", "kind", "--latent", 2, *STANDARDISED, *QUICK[:-2], "--num-samples", 30)[0]
        == 0
    )
    run = Path("runs/t")
    assert pyrovae("generate", run, "-n", 200, "--out", "new.csv")[0] == 0
    new = pd.read_csv("new.csv")
    assert list(new.columns) == list("abcd")
    spread = frame[list("abcd")].std()
    assert ((new.mean() - frame[list("abcd")].mean()).abs() < 2 * spread).all()
    # A density in the data's units: shifted by the sum of the log standard deviations of the training rows.
    info = json.loads((run / "run.json").read_text())["info"]
    opened = runs.open_run(run)
    raw = pv.importance(opened.fitted, opened.rows.test, 30, proposal="guide", seed=EVALUATION_SEED).summary()
    shift = float(torch.tensor(info["scaler"]["scale"]).log().sum())
    assert info["results"]["log_likelihood"] == pytest.approx(raw["log_likelihood"] - shift, abs=1e-4)
    assert pyrovae("evaluate", run)[0] == 0
    assert pyrovae("encode", run, "--out", "z.csv")[0] == 0
    assert pd.read_csv("z.csv")["kind"].tolist() == frame["kind"].tolist()  # by the name that the table has for it


@pytest.mark.slow
def test_a_stopped_run_is_resumed_to_the_same_end(pyrovae: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pyrovae("fit", "digits", *QUICK, "--out", "whole")[0] == 0
    fit = runs.fit

    def stopping(*args: Any, **kwargs: Any) -> Any:
        def press(fitted: pv.Fit) -> None:
            os.kill(os.getpid(), signal.SIGINT)

        return fit(*args, **kwargs | {"callbacks": [press]})

    monkeypatch.setattr(runs, "fit", stopping)
    code, _, err = pyrovae("fit", "digits", *QUICK, "--out", "stopped")
    assert code == 130 and "pyrovae fit --resume stopped" in err and "Traceback" not in err
    code, _, err = pyrovae("evaluate", "stopped")
    assert code == 2 and "has not finished" in err
    monkeypatch.setattr(runs, "fit", fit)
    code, out, err = pyrovae("fit", "--resume", "stopped")
    assert code == 0, err
    one, two = (json.loads(Path(name, "run.json").read_text())["weights_sha256"] for name in ("whole", "stopped"))
    assert one == two and "log p(x)" in out


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown data": (("fit", "digit"), "did you mean digits"),
    "unknown prior": (("fit", "digits", "--prior", "vampire"), "known: normal, learned-normal"),
    "unknown likelihood": (
        ("fit", "digits", "--likelihood", "bce"),
        "known: bernoulli, continuous-bernoulli, beta, normal",
    ),
    "unknown net": (("fit", "digits", "--net", "transformer"), "known: mlp, conv, resnet"),
    "unknown device": (("fit", "digits", "--device", "abacus"), "known: auto, cpu, cuda"),
    "hidden": (("fit", "digits", "--hidden", "wide"), "whole numbers"),
    "negative hidden": (("fit", "digits", "--hidden", "-5"), "positive"),
    "no latent": (("fit", "digits", "--latent", "0"), "positive"),
    "no epochs": (("fit", "digits", "--epochs", "-1"), "epochs"),
    "0 epochs": (("fit", "digits", "--epochs", "0"), "--epochs must be at least 1"),
    "0 rows": (("fit", "digits", "--batch-size", "0"), "--batch-size must be at least 1"),
    "no rate": (("fit", "digits", "--learning-rate", "0"), "--learning-rate must be positive"),
    "no draws": (("fit", "digits", "--num-samples", "0"), "--num-samples must be at least 1"),
    "warm-up": (("fit", "digits", "--kl-warmup", "-1"), "--kl-warmup"),
    "device without values": (("fit", "digits", "--device", "meta"), "known: auto, cpu, cuda"),
    "batch size": (("fit", "digits", "--batch-size", "5000"), "larger than"),
    "support": (("fit", "digits", "--likelihood", "bernoulli"), "outside the support of Bernoulli.*BetaBinomial"),
    "fraction": (("fit", "digits", "--test-fraction", "1.2"), "fraction"),
    "nothing to fit": (("fit",), "--resume"),
    "no file": (("fit", "nowhere.csv"), "no file"),
    "misspelt": (("fit", "tt.csv"), r"no file tt\.csv \(did you mean t\.csv\?\)"),
    "a folder": (
        ("fit", "nothing-here-is-a-run"),
        "holds no image: no file in it ends in .bmp.*Give the folder that contains",
    ),
    "misspelt run": (
        ("evaluate", "nothing-here-is-the-run"),
        r"none of that name \(did you mean nothing-here-is-a-run",
    ),
    "missing values of images": (
        ("fit", "gaps.npy"),
        r"NaN\) in 3 rows, the first in row 30 .*, column 5\..*observed_only",
    ),
    "empty": (("fit", "empty.csv"), "not a table|no rows|empty"),
    "damaged": (("fit", "bad.npz"), "bad.npz"),
    "no files of mnist": (("fit", "mnist", "--data-root", "nothing"), "train-images-idx3-ubyte.gz.*nothing"),
    "conv on a table": (("fit", "t.csv", "--label", "kind", "--net", "conv"), "image"),
    "no run": (("evaluate", "nothing"), "not a run folder"),
    "existing folder": (("fit", "digits", "--out", "nothing-here-is-a-run", *QUICK), "not empty"),
    "force on a folder that is no run": (
        ("fit", "digits", "--out", "nothing-here-is-a-run", "--force", *QUICK),
        "not a run folder",
    ),
    "resume nothing": (("fit", "--resume", "nothing"), "not a run folder"),
    "number": (("fit", "digits", "--latent", "ten"), "latent"),
    "option": (("fit", "digits", "--latnet", "10"), "--latnet"),
    "command": (("train",), "train"),
}


@pytest.mark.parametrize("case", list(MISTAKES.values()), ids=list(MISTAKES))
def test_a_mistake_gets_one_clear_error(pyrovae: Command, case: tuple[tuple[str, ...], str], monkeypatch: Any) -> None:
    write_table(Path("t.csv"))
    images = np.random.default_rng(0).random((60, 4, 4)).astype(np.float32)
    images[30:33, 1, 1] = np.nan
    np.save("gaps.npy", images)
    Path("empty.csv").write_text("")
    Path("bad.npz").write_bytes(b"PK garbage")
    Path("nothing").mkdir()
    Path("nothing-here-is-a-run").mkdir()
    Path("nothing-here-is-a-run/file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").absolute()))
    monkeypatch.setattr("torchvision.datasets.mnist.MNIST.mirrors", ["http://127.0.0.1:9/"])
    words, message = case
    code, out, err = pyrovae(*words)
    assert code == 2, out + err
    assert re.search(message, err.replace("\n", " "), re.DOTALL), err
    assert "Traceback" not in err and not out.strip()
    assert not Path("runs").exists()


def test_questions_to_a_run_refuse_what_cannot_be(pyrovae: Command, run: Path) -> None:
    Path("mine.csv").write_text("precious")
    for words, message in (
        (("encode", run, "--out", "mine.csv"), "exists"),
        (("generate", run, "--out", "new.gif"), "must be one of .png, .npy, .csv"),
        (("generate", run, "-n", 0), "at least 1"),
        (("generate", run, "--out", "no/folder/x.csv"), "no folder"),
        (("evaluate", run, "--num-samples", 0), "at least 1"),
        (("generate", run, "-n", 10**12), "1000000000000 rows at once are too many"),
        (("impute", run, "digits", "--draws", 10**12), "at most 100000, got 1000000000000"),
        (("encode", run, "--threads", 0), "threads must be at least 1 and at most 1024, got 0"),
        (("encode", run, "--threads", 10**12), "at most 1024, got 1000000000000"),
    ):
        code, _, err = pyrovae(*words)
        assert code == 2 and message in err and "Traceback" not in err
    assert Path("mine.csv").read_text() == "precious"


@pytest.mark.slow
def test_data_that_changed_since_the_fit_are_noticed(pyrovae: Command) -> None:
    write_table(Path("t.csv"))
    assert pyrovae("fit", "t.csv", "--label", "kind", "--latent", 2, *QUICK)[0] == 0
    write_table(Path("t.csv"), rows=91)
    code, _, err = pyrovae("evaluate", "runs/t")
    assert code == 2 and "has changed" in err


@pytest.mark.slow
def test_ctrl_c_from_a_terminal_leaves_a_resumable_run(tmp_path: Path) -> None:
    """The real thing, in a process of its own: SIGINT in the middle of a fit, exit code 130, and the run goes on."""
    words = [sys.executable, "-m", "pyrovae", "fit", "digits", "--hidden", "8", "--epochs", "2000", "--out", "run"]
    words += ["--engine", "eager"]  # so many steps would be compiled first
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if (tmp_path / "run" / "checkpoint.safetensors").exists():
            break
        time.sleep(0.1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume run" in err and "Traceback" not in err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"


@pytest.mark.slow
def test_log_p_of_the_first_rows_beside_the_elbo_of_all(pyrovae: Command, run: Path) -> None:
    code, out, _ = pyrovae("evaluate", run, "--num-samples", 30, "--rows", 50, "--out", "rows.csv")
    assert code == 0 and "first 50 rows" in out and len(pd.read_csv("rows.csv")) == 50


def test_resume_takes_no_other_options(pyrovae: Command, run: Path) -> None:
    code, _, err = pyrovae("fit", "--resume", run, "--epochs", 9, "--latent", 3)
    assert code == 2 and "--epochs" in err and "--latent" in err


def test_a_file_of_the_run_is_not_overwritten(pyrovae: Command, run: Path) -> None:
    before = (run / "history.csv").read_text()
    code, _, err = pyrovae("encode", run, "--out", run / "history.csv")
    assert code == 2 and "exists" in err and (run / "history.csv").read_text() == before


def test_rows_are_numbered_as_in_the_source(pyrovae: Command, run: Path) -> None:
    assert pyrovae("evaluate", run, "--num-samples", 30, "--out", "rows.csv")[0] == 0
    assert pyrovae("reconstruct", run, "--out", "again.csv")[0] == 0
    opened = runs.open_run(run)
    numbers = pd.read_csv("rows.csv")["row"].to_numpy(copy=True)
    assert torch.equal(opened.dataset.x[numbers], opened.rows.test)
    assert (pd.read_csv("again.csv")["row"].to_numpy() == numbers).all()


@pytest.mark.slow
def test_what_was_decided_is_said(pyrovae: Command) -> None:
    _, _, err = pyrovae("fit", "digits", *QUICK)
    said = " ".join(err.split())
    assert "210 training, 30 validation, 60 test rows of 64 (count)" in said and "likelihood beta-binomial" in said


def test_unfit_test_rows_are_refused_before_the_fit(pyrovae: Command) -> None:
    rng = np.random.default_rng(0)
    x, bad = rng.integers(0, 6, (60, 4)), rng.integers(0, 6, (10, 4))
    bad[7, 2] = 9
    np.savez("counts.npz", x=x, x_test=bad)
    code, _, err = pyrovae("fit", "counts.npz", "--likelihood", "binomial", "--total-count", 5, *QUICK)
    assert code == 2 and "9.0 in row 7, column 2" in err.replace("\n", " ") and not Path("runs").exists()


@pytest.mark.slow
def test_the_scale_is_that_of_the_training_rows(pyrovae: Command) -> None:
    write_table(Path("t.csv"))
    assert pyrovae("fit", "t.csv", "--label", "kind", "--latent", 2, *STANDARDISED, *QUICK)[0] == 0
    opened = runs.open_run(Path("runs/t"))
    rows, dataset = opened.rows, opened.dataset
    assert rows.train.mean(0).abs().max() < 1e-5 and (rows.train.std(0, unbiased=False) - 1).abs().max() < 1e-4
    both = torch.cat([rows.train, rows.validation, rows.test])
    assert both.mean(0).abs().max() > 1e-3 and len(both) == len(dataset.x)


@pytest.mark.slow
def test_8_bit_images_under_a_density_answer_in_their_own_units(pyrovae: Command) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 4, 4)).astype(np.uint8)
    pixels[0, 0, 0] = 255
    np.save("pixels.npy", pixels)
    np.save("reals.npy", pixels.astype(np.float32).reshape(60, 16) - 0.5)
    for name in ("pixels", "reals"):
        assert pyrovae("fit", f"{name}.npy", "--likelihood", "normal", *QUICK)[0] == 0
    one, two = (
        json.loads(Path("runs", name, "run.json").read_text())["info"]["results"]["log_likelihood"]
        for name in ("pixels", "reals")
    )
    assert one == pytest.approx(two, abs=1e-2)
    assert pyrovae("generate", "runs/pixels", "-n", 50, "--out", "new.npy")[0] == 0
    assert np.load("new.npy").mean() > 50


@pytest.mark.slow
def test_force_replaces_a_run_and_what_it_left_but_not_for_a_fit_that_is_refused(pyrovae: Command, run: Path) -> None:
    (run / "codes.csv").write_text("old")
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    code, _, err = pyrovae("fit", "digits", "--out", run, "--force", *QUICK, "--likelihood", "bernoulli")
    assert code == 2 and "outside the support" in err
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before
    assert pyrovae("fit", "digits", "--out", run, "--force", *QUICK, "--seed", 5)[0] == 0
    assert not (run / "codes.csv").exists() and (run / "latent.png").exists() and list(run.glob("graph.*"))
    assert (run / "weights.safetensors").read_bytes() != before["weights.safetensors"]


@pytest.mark.parametrize("columns", [1, 2, 8])
def test_a_title_is_no_wider_than_its_picture(columns: int) -> None:
    text = "E[x | z, y] at draws of p(z | y), by class y"
    axes = pictures.titled(plots.images(torch.rand(8, 16), (4, 4), columns), text)
    figure = axes.get_figure()
    figure.draw_without_rendering()
    found = axes.get_title(loc="left")
    assert " ".join(found.split()) == text and ("\n" in found) == (columns < 8)
    right = axes._left_title.get_window_extent().x1
    assert right <= figure.bbox.x1 + 1


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (
            (-76.0, -74.5),
            "10.00 ± 0.50 nats above test rows: 7.50 by log p(x), which the model has overfitted, and 2.50",
        ),
        ((-85.9, -82.0), "-85.90, no more above test rows than by chance (+0.10 ± 0.50)"),
        ((math.nan, math.nan), "no more above test rows than by chance"),
    ],
)
def test_what_is_said_of_overfitting(train: tuple[float, float], said: str) -> None:
    results = {"elbo": -86.0, "elbo_se": 0.4, "log_likelihood": -82.0, "train_elbo_se": 0.3, "proposal": "refined"}
    assert said in results_of.overfitting(results | dict(zip(("train_elbo", "train_log_likelihood"), train)))


def test_a_compilation_that_fails_is_told(pyrovae: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no compiler today")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    with pytest.warns(UserWarning, match="no compiler today.*goes on traced") as told:
        words = ["--engine", "compiled", "--epochs", 1, "--num-samples", 2, "--proposal", "guide"]
        assert pyrovae("fit", "digits", *words)[0] == 0
    (one,) = [warning for warning in told if "no compiler today" in str(warning.message)]
    said = entry.said_plainly(one.message, one.category, one.filename, one.lineno)
    assert said.startswith("Warning: engine='compiled'") and ".py" not in said
    settings = json.loads(Path("runs/digits/run.json").read_text())["settings"]
    assert any("no compiler today" in note for note in settings["engine_notes"]) and "compiled_step" not in settings


def test_warnings_of_others_keep_their_place() -> None:
    said = entry.said_plainly(UserWarning("odd"), UserWarning, "/elsewhere/library.py", 3)
    assert "library.py:3" in said and "odd" in said
