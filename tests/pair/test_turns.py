"""Fits and questions in several threads take turns, and give what they give one after the other."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import joblib
import pyro
import pyro.distributions as dist
import pytest
import torch
from support.programs import binary, vae
from torch import Tensor

import pyrovae as pv
from pyrovae.pair.turns import lent_turn, turn

WAIT = 60  # seconds until a test that hangs has failed
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 10, "engine": "eager", "progress": False}


def bare() -> pv.Pair:
    """A pair whose parameters are all in the param store."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.zeros(6))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc + z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", lambda: torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale).to_event(1))

    return pv.Pair(model, guide)


def seeded(build: Callable[[], Any], seed: int) -> Any:
    torch.manual_seed(seed)
    return build()


def answers(fitted: pv.Fit, x: Tensor) -> list[Tensor]:
    return [
        torch.tensor([row["elbo"] for row in fitted.history]),
        pv.importance(fitted, x, 20, seed=0, proposal="guide").log_likelihood,
        pv.encode(fitted, x),
        pv.generate(fitted, 5, seed=0),
    ]


def in_threads(tasks: list[Callable[[], Any]], how: str) -> list[Any]:
    if how == "joblib":
        return list(joblib.Parallel(n_jobs=3, backend="threading")(joblib.delayed(task)() for task in tasks))
    with ThreadPoolExecutor(3) as pool:
        return [future.result(WAIT) for future in [pool.submit(task) for task in tasks]]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pool", "joblib"])
def test_fits_and_questions_in_threads_are_those_one_after_the_other(how: str) -> None:
    x = binary()
    builds = [vae, bare, bare]

    def tasks(pairs: list[Any]) -> list[Callable[[], Any]]:
        return [lambda p=p, i=i: answers(pv.fit(p, x, seed=i, **OPTIONS), x) for i, p in enumerate(pairs)]

    alone = [task() for task in tasks([seeded(b, i) for i, b in enumerate(builds)])]
    together = in_threads(tasks([seeded(b, i) for i, b in enumerate(builds)]), how)
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_questions_beside_a_fit() -> None:
    """Both are right, and so is the fit."""
    x = binary()
    asked, shared = pv.fit(seeded(vae, 0), x, seed=0, **OPTIONS), {**OPTIONS, "epochs": 8}
    alone = pv.fit(seeded(bare, 1), x, seed=1, **shared)
    pair = seeded(bare, 1)
    tasks: list[Callable[[], Any]] = [lambda: pv.fit(pair, x, seed=1, **shared)]
    tasks += [lambda: answers(asked, x)] * 4
    fitted, *found = in_threads(tasks, "pool")
    assert [row["elbo"] for row in fitted.history] == [row["elbo"] for row in alone.history]
    for one in found:
        assert all(torch.equal(a, b) for a, b in zip(one, answers(asked, x), strict=True))


@pytest.mark.parametrize("build", [vae, bare])
def test_a_callback_may_wait_for_threads_that_ask_and_fit(build: Callable[[], Any]) -> None:
    """Threads that the callback starts, one that was waiting before, and the callback itself ask the fit that called it."""
    x = binary()
    wanted = pv.fit(seeded(build, 0), x, seed=0, **OPTIONS)
    waiting: list[threading.Thread] = []
    started = threading.Event()

    def callback(fitted: pv.Fit) -> None:
        here = pv.encode(fitted, x)
        for thread in waiting:
            thread.join(WAIT)
            assert not thread.is_alive()
        waiting.clear()
        inner = seeded(bare, 3)
        there, _ = in_threads(
            [
                lambda: pv.encode(fitted, x),
                lambda: pv.fit(inner, x, seed=3, callbacks=[lambda _: bool(pv.encode(fitted, x) is None)], **OPTIONS),
            ],
            "pool",
        )
        assert torch.equal(here, there)

    def before(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if not started.is_set():  # while the fit has its turn, another thread begins to wait for it
            started.set()
            waiting.append(threading.Thread(target=lambda: pv.encode(wanted, x), daemon=True))
            waiting[0].start()
        return batch

    fitted = pv.fit(seeded(build, 0), x, seed=0, transform=before, callbacks=[callback], **OPTIONS)
    assert [row["elbo"] for row in fitted.history] == [row["elbo"] for row in wanted.history]
    assert all(torch.equal(a, b) for a, b in zip(answers(fitted, x), answers(wanted, x), strict=True))


def test_an_error_gives_the_turn_back() -> None:
    x = binary()

    def breaks(fitted: pv.Fit) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pv.fit(seeded(vae, 0), x, callbacks=[breaks], **OPTIONS)
    with pytest.raises(pv.DataError):
        pv.fit(seeded(vae, 0), x + 0.5, **OPTIONS)
    (fitted,) = in_threads([lambda: pv.fit(seeded(vae, 0), x, **OPTIONS)], "pool")
    assert len(fitted.history) == 2


def test_a_lent_turn_ends_when_its_borrowers_have_finished() -> None:
    order: list[str] = []
    taken = threading.Event()

    def borrow() -> None:
        with turn():
            taken.set()
            order.append("borrowed")
            threading.Event().wait(0.05)
            order.append("returned")

    thread = threading.Thread(target=borrow, daemon=True)
    with turn():
        thread.start()
        order.append("mine")
        with lent_turn():
            assert taken.wait(WAIT)
        order.append("mine again")
    thread.join(WAIT)
    assert order == ["mine", "borrowed", "returned", "mine again"]


def test_two_fits_of_the_same_modules_at_once_are_refused() -> None:
    x, pair = binary(), seeded(vae, 0)
    whole = pv.fit(seeded(vae, 0), x, seed=0, **OPTIONS)
    said: list[str] = []

    def other() -> None:
        try:
            pv.fit(pair, x, seed=1, **OPTIONS)
        except pv.PairError as error:
            said.append(str(error))

    def beside(fitted: pv.Fit) -> None:  # a fit lends its turn to other threads here
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(WAIT)

    fitted = pv.fit(pair, x, seed=0, callbacks=[beside], **OPTIONS)
    assert len(said) == 2 and all("Another thread is fitting the same modules" in one for one in said)
    assert [row["elbo"] for row in fitted.history] == [row["elbo"] for row in whole.history]
    other()  # once the first is at its end, the second may begin
    assert len(said) == 2


def test_a_callback_may_fit_the_same_modules() -> None:
    x, pair = binary(), seeded(vae, 0)
    inner = pv.fit(pair, x, seed=0, callbacks=[lambda fitted: bool(pv.fit(pair, x, seed=1, **OPTIONS))], **OPTIONS)
    assert inner.stopped == "a callback stopped it"
    assert pv.fit(pair, x, seed=0, **OPTIONS).history
