"""How many threads fits and questions use: by the size of its products, stored with the run, and put back afterwards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.programs import binary
from torch import Tensor, nn
from torch.nn.functional import conv2d

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.batching.chunks import TensorSizes, chunk_size
from pyrovae.engine.threads import GRAIN, LONG, as_threads, threads_for
from pyrovae.fitted.files import read_run

pytestmark = pytest.mark.auto_engine


@pytest.fixture
def eight() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def vae() -> pv.VAE:
    return pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Normal(4), (8,)), pv.mlp(4, fam.Normal(2), (8,)))


@pytest.mark.parametrize(
    ("product", "available", "threads"),
    [
        (0, 8, 1),
        (GRAIN * 0.9, 8, 1),
        (GRAIN * 3, 8, 3),
        (GRAIN * 30, 8, 7),  # one core is left to others
        (LONG, 8, 8),
        (GRAIN * 30, 2, 1),
        (LONG, 2, 2),
        (LONG, 1, 1),
    ],
)
def test_the_rule(product: float, available: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(available)
    try:
        assert threads_for(product) == threads
    finally:
        torch.set_num_threads(before)


PRODUCTS: dict[str, tuple[Any, int]] = {
    "a layer": (lambda: nn.Linear(20, 30)(torch.ones(7, 20)), 2 * 7 * 20 * 30),
    "the larger of two": (lambda: torch.ones(2, 3) @ torch.ones(3, 4) @ torch.ones(4, 50), 2 * 2 * 4 * 50),
    "a batch of products": (lambda: torch.bmm(torch.ones(5, 2, 3), torch.ones(5, 3, 4)), 2 * 5 * 2 * 3 * 4),
    "a convolution": (lambda: conv2d(torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3), padding=1), 2 * 2 * 64 * 4 * 27),
    "none": (lambda: torch.ones(1000, 1000).exp().sum(), 0),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_operations_of_the_largest_product_are_counted(name: str) -> None:
    compute, operations = PRODUCTS[name]
    with TensorSizes() as seen, torch.no_grad():
        compute()
    assert seen.product == operations


def threads_of(fit: pv.Fit) -> int:
    with fit.scope():
        return torch.get_num_threads()


def inside(fit: pv.Fit) -> bool:
    fit.info["inside"] = torch.get_num_threads()
    return False


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("given", "used"), [(None, 1), (3, 3)])
def test_a_fit_uses_them_and_puts_their_number_back(given: int | None, used: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "epochs": 2,
        "engine": "eager",
        "seed": 0,
        "callbacks": [inside],
        "checkpoint": tmp_path / "run",
    }
    fit = pv.fit(vae(), torch.randn(30, 4), threads=given, **options)
    assert fit.info["inside"] == fit.settings["threads"] == read_run(tmp_path / "run")["settings"]["threads"] == used
    assert torch.get_num_threads() == 8
    assert threads_of(fit) == used


@pytest.mark.usefixtures("eight")
def test_a_resumed_fit_keeps_the_number_it_had(tmp_path: Path) -> None:
    x: Tensor = torch.randn(30, 4)
    options: dict[str, Any] = {"engine": "eager", "seed": 0, "checkpoint": tmp_path / "run"}
    pv.fit(vae(), x, epochs=2, threads=3, callbacks=[lambda f: True], **options)
    assert pv.fit(vae(), x, epochs=2, resume=True, **options).settings["threads"] == 3


@pytest.mark.usefixtures("eight")
def test_their_number_is_put_back_when_a_fit_fails() -> None:
    def fail(fit: pv.Fit) -> bool:
        raise RuntimeError("a user's mistake")

    with pytest.raises(RuntimeError, match="a user's mistake"):
        pv.fit(vae(), torch.randn(30, 4), epochs=1, engine="eager", threads=2, callbacks=[fail])
    assert torch.get_num_threads() == 8


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_other_numbers_are_refused(threads: Any) -> None:
    with pytest.raises(pv.OptionError, match="threads must be .*at least 1"):
        pv.fit(vae(), torch.randn(30, 4), epochs=1, threads=threads)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize("product", [GRAIN / 2, 3 * GRAIN, LONG])
def test_questions_follow_the_same_rule(product: float) -> None:
    fit = pv.fit(vae(), torch.randn(30, 4), epochs=1, engine="eager", seed=0)
    fit.settings["chunk_product"] = product
    assert threads_of(fit) == threads_for(product)
    fit.threads = 5
    assert threads_of(fit) == 5
    fit.threads = None
    del fit.settings["chunk_product"]  # as in a run of an earlier version
    assert threads_of(fit) == torch.get_num_threads() == 8


@pytest.mark.usefixtures("eight")
def test_the_operations_of_a_full_chunk_are_stored_with_the_run(tmp_path: Path) -> None:
    """The largest layer, from 8 to 4 means and 4 scales, costs 2 * 8 * 8 operations a row, and its tensors have 8 elements."""
    fit = pv.fit(vae(), torch.randn(30, 4), epochs=1, engine="eager", seed=0, checkpoint=tmp_path / "run")
    rows = chunk_size(8, torch.device("cpu"))
    assert fit.settings["chunk_product"] == pv.load(tmp_path / "run").settings["chunk_product"] == 128 * rows


@pytest.mark.slow
def test_a_question_gives_the_same_whatever_the_threads() -> None:
    x = torch.randn(30, 4)
    fit = pv.fit(vae(), x, epochs=1, engine="eager", seed=0)
    found = []
    for fit.threads in (1, 2):
        found.append(pv.importance(fit, x, num_samples=20, seed=0).log_likelihood)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [0, -1, 1025, 10**12, 10**30, 1.5, "2", True])
def test_threads_that_no_system_has_are_refused(threads: Any) -> None:
    with pytest.raises(pv.OptionError, match="threads must be .*at most 1024"):
        as_threads(threads)
    with pytest.raises(pv.OptionError, match="threads must be"):
        pv.fit(vae(), binary(), epochs=1, threads=threads)


def test_threads_may_be_any_whole_number_of_some() -> None:
    assert [as_threads(threads) for threads in (None, 1, np.int64(2), 1024)] == [None, 1, 2, 1024]
