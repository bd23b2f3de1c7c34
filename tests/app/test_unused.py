"""An option that was typed changes something, or is refused with what to do in its place."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from support.command import Command

from pyrovae.app.decide import decide
from pyrovae.app.models import MODELS
from pyrovae.app.options import Options
from pyrovae.app.rows import make_rows, split_rows
from pyrovae.app.run import _built
from pyrovae.app.search import recipes_for
from pyrovae.app.unused import refuse_unused
from pyrovae.data import Dataset
from pyrovae.errors import OptionError
from pyrovae.pair.parameters import named_tensors


def images() -> Dataset:
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 5, (60, 64), generator=random).float()
    return Dataset(
        "images", x, "count", image_shape=(8, 8), total_count=4, y=torch.arange(60) % 3, source={"name": "images"}
    )


def made(options: Options, dataset: Dataset) -> str:
    """What options make of data: a checksum of the names, shapes and values of all weights, and the parts' own words."""
    split = split_rows(dataset, options)
    decided = decide(options, dataset, len(split.train))
    torch.manual_seed(0)
    pair: Any = _built(decided, make_rows(dataset, split, decided))
    found = hashlib.sha256(repr(pair).encode())
    for name, tensor in named_tensors(pair, buffers=True).items():
        found.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.detach().numpy().tobytes())
    return found.hexdigest()


OF_GRAPHS: dict[str, tuple[Any, ...]] = {  # each with values that are no default of any model
    "hidden": ((16,),),
    "latent": (3,),
    "prior": ("laplace", "learned-normal"),
    "guide": ("low-rank",),
    "likelihood": ("poisson",),
    "total_count": (7,),
    "dropout": (0.3,),
    "norm": ("layer",),
    "levels": ((5, 3),),
    "clusters": (4,),
    "groups": ((1, 1),),
    "categories": (5,),
    "estimator": ("straight-through",),
}


@pytest.mark.parametrize("net", ["mlp", "conv", "resnet"])
@pytest.mark.parametrize("model", MODELS)
def test_an_option_of_the_graph_changes_it_or_is_refused(model: str, net: str) -> None:
    dataset, plain = images(), Options.of("fit", model=model, net=net)
    try:
        before = made(plain, dataset)
    except OptionError:
        return  # the model has other networks
    for name, values in OF_GRAPHS.items():
        for value in values:
            options = Options.of("fit", model=model, net=net, **{name: value})
            try:
                refuse_unused([name], [options], dataset)
                after = made(options, dataset)
            except OptionError as refused:
                assert name.replace("_", "-") in str(refused)
                continue
            assert after != before, (model, net, name, value)


@pytest.mark.digits(100)
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("--net", "resnet", "--hidden", "400"),
            "a residual net of images has channels instead of widths. Leave it out",
        ),
        (("--net", "resnet", "--hidden", "30"), "--hidden 30 would change nothing"),
        (("--net", "conv", "--hidden", "400"), "a convolutional net has channels"),
        (("--model", "nvae", "--hidden", "400"), "--groups and --latent are its sizes"),
        (("--model", "nvae", "--net", "mlp"), "residual cells of its own"),
        (("--model", "gmvae", "--prior", "normal"), "a Normal for each cluster"),
        (("--model", "vqvae", "--num-samples", 10), "whose draws are all one"),
        (("--model", "vqvae", "--proposal", "laplace"), "whose draws are all one"),
        (("--model", "vqvae", "--net", "conv", "--latent", "10"), "a quarter of each side"),
        (("--hidden", ",", "--dropout", 0.2), "there are no hidden layers"),
        (("--keep", "best", "--validation-fraction", 0), "no validation rows"),
        (("--data-root", "."), "it is for mnist and fashion-mnist"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "sweep"])
def test_what_changes_nothing_is_refused(pyrovae: Command, command: str, words: tuple[Any, ...], told: str) -> None:
    offered = {
        "--num-samples",
        "--proposal",
        "--hidden",
        "--net",
        "--prior",
        "--latent",
        "--dropout",
        "--keep",
        "--data-root",
    }
    if command == "sweep" and not set(words[::2]) <= offered:
        return
    code, _, err = pyrovae(command, "digits", *words)
    assert code == 2 and told in " ".join(err.split()) and "would change nothing" in " ".join(err.split()), err
    assert not Path("runs").exists()


def test_an_option_of_files_that_is_not_for_this_one_is_refused(pyrovae: Command) -> None:
    pytest.importorskip("pyarrow")
    pd.DataFrame({"a": range(20), "b": range(20), "label": ["x", "y", None, None] * 5}).to_parquet("rows.parquet")
    for command in ("fit", "label"):
        code, _, err = pyrovae(command, "rows.parquet", "--no-header")
        assert code == 2 and "such files name their columns" in " ".join(err.split()), err
        code, _, err = pyrovae(command, "rows.parquet", "--data-root", ".")
        assert code == 2 and "it is for mnist and fashion-mnist" in " ".join(err.split()), err
    assert not Path("runs").exists()


def test_test_rows_of_the_data_leave_no_fraction_to_choose() -> None:
    dataset = Dataset("rows", torch.rand(20, 3), "real", x_test=torch.rand(5, 3), source={"name": "rows"})
    with pytest.raises(OptionError, match="--test-fraction 0.3 would change nothing: rows has test rows of its own"):
        refuse_unused(["test_fraction"], [Options.of("fit", test_fraction=0.3)], dataset)


def test_what_does_change_something_is_not_refused() -> None:
    dataset = images()
    every = list(Options().to_json("fit"))
    refuse_unused([name for name in every if name not in ("data_root",)], [Options.of("fit")], dataset)
    refuse_unused(["hidden"], [Options.of("fit", net="resnet")], Dataset("rows", torch.rand(20, 3), "real", {}))


def test_an_option_that_changes_one_fit_of_several_is_not_refused() -> None:
    dataset = images()
    grid = [Options.of("fit", model=model, num_samples=10) for model in ("vqvae", "vae")]
    refuse_unused(["num_samples"], grid, dataset)
    refuse_unused(["num_samples"], grid[::-1], dataset)
    with pytest.raises(OptionError, match="--num-samples 10 would change nothing"):
        refuse_unused(["num_samples"], grid[:1] * 2, dataset)


def test_a_search_does_not_try_widths_where_there_are_none() -> None:
    dataset = images()
    dataset = Dataset("images", dataset.x.repeat(4, 1), "count", {}, image_shape=(8, 8), total_count=4)
    tried = [recipes_for(Options.of("fit", search="small", net=net), dataset) for net in ("mlp", "resnet", "conv")]
    assert ["wider networks" in one for one in tried] == [True, False, False]
