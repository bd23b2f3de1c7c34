"""--dropout: by default for perceptrons of a VAE of few rows, and where else somebody asks for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command import Command
from torch import nn

import pyrovae as pv
from pyrovae.app.decide import DROPOUT, decide
from pyrovae.app.models import MODELS, build
from pyrovae.app.options import Options
from pyrovae.data.load import read

COUNTS = np.random.default_rng(0).integers(0, 17, (60, 8, 8)).astype(np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npz"
    np.savez(path, x=COUNTS / 16.0, y=np.arange(60) % 3)
    return path


def layers(pair: Any) -> list[float]:
    return [layer.p for layer in pair.modules() if isinstance(layer, nn.Dropout)]


@pytest.mark.parametrize(
    ("given", "num_rows", "wanted"),
    [
        ({}, 8 * 64 - 1, DROPOUT),
        ({}, 8 * 64, 0.0),
        ({"net": "conv"}, 42, 0.0),
        ({"model": "gmvae"}, 42, 0.0),
        ({"dropout": 0.0}, 42, 0.0),
        ({"dropout": 0.4}, 60_000, 0.4),
        ({"dropout": 0.4, "net": "conv"}, 42, 0.4),
        ({"dropout": 0.4, "model": "gmvae"}, 42, 0.4),
    ],
)
def test_few_rows_have_dropout_and_whoever_asks_for_it(
    images: Path, given: dict[str, Any], num_rows: int, wanted: float
) -> None:
    dataset = read(str(images))
    options = decide(Options.of("fit", **given), dataset, num_rows)
    assert options.dropout == wanted and decide(options, dataset, num_rows) == options  # as a run that is resumed
    train = torch.zeros(4, *((8, 8) if options.net == "conv" else (64,)))
    found = layers(build(options, train, 3))
    assert found == [wanted] * len(found) and bool(found) == bool(wanted)


@pytest.mark.parametrize(("num_rows", "wanted"), [(2399, DROPOUT), (2400, 0.0)])
def test_wider_rows_may_be_more(num_rows: int, wanted: float, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.eye(300))
    assert decide(Options.of("fit"), read(str(tmp_path / "wide.npy")), num_rows).dropout == wanted


@pytest.mark.parametrize("model", [name for name, model in MODELS.items() if "dropout" in model.takes])
def test_every_model_that_takes_dropout_has_it_in_decoder_and_encoder(images: Path, model: str) -> None:
    several = model == "labels"  # is for tables with several columns of labels, and built as it is for others here
    given = Options.of("fit", model="vae" if several else model, dropout=0.3, likelihood="bernoulli")
    options = replace(decide(given, read(str(images)), 42), model=model)
    sizes = (2, 3) if several else ()
    pair: Any = build(options, torch.zeros(4, 64), 3, sizes=sizes)
    assert layers(pair.likelihood) == [0.3] and set(layers(pair)) == {0.3} and len(layers(pair)) > 1


def test_a_table_has_none_and_is_told_why(pyrovae: Command, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n" + "".join(f"{i % 7}.5,{i}.25\n" for i in range(60)))
    assert decide(Options.of("fit"), read(str(path)), 42).dropout == 0.0
    code, _, error = pyrovae("fit", str(path), "--dropout", "0.2")
    assert code == 2 and "--dropout does not go with the networks of a table" in " ".join(error.split())
    assert decide(Options.of("fit", dropout=0.2, prior="vamp"), read(str(path)), 42).dropout == 0.2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--dropout", "1"), "--dropout is a share from 0 to below 1, got 1.0."),
        (("--dropout", "-0.1"), "--dropout is a share from 0 to below 1, got -0.1."),
        (("--dropout", "0.2", "--model", "ladder"), "--dropout 0.2 does not go with --model ladder; it is for vae"),
        (("--dropout", "0.2", "--model", "m2", "--norm", "layer"), "--dropout does not go with --norm"),
    ],
)
def test_impossible_dropout_is_refused(pyrovae: Command, images: Path, given: tuple[str, ...], said: str) -> None:
    code, _, error = pyrovae("fit", str(images), *given)
    assert code == 2 and said in " ".join(error.split())


def test_a_run_with_dropout_is_the_same_after_loading(pyrovae: Command, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, _, error = pyrovae("fit", str(images), "--out", str(out), "--epochs", "1", "--num-samples", "10")
    assert code == 0, error
    fitted = pv.load(out)
    assert layers(fitted.pair) == [DROPOUT] * 2
    x = torch.zeros(2, 64)
    assert torch.equal(pv.encode(fitted, x), pv.encode(fitted, x))  # nothing is left out of answers
