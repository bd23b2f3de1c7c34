"""Rows that come batch by batch: the fit of the same rows in memory, whatever the batches in which they come."""

import gc
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from support.programs import ssvae, vae
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.batching.batches import Batches
from pyrovae.batching.incoming import Counted
from pyrovae.training.fit_options import Every

HOW: dict[str, Any] = {"seed": 1, "learning_rate": 0.01, "engine": "eager", "progress": False}


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrovae.batching.incoming.STEPS", 10)


def rows(n: int = 40) -> Tensor:
    torch.manual_seed(5)
    return torch.bernoulli(torch.full((n, 6), 0.4))


def small() -> pv.VAE:
    torch.manual_seed(0)
    return vae()


def weights(data: Any, **how: Any) -> list[Tensor]:
    pair = small()
    pv.fit(pair, data, **HOW, **how)
    return list(pair.state_dict().values())


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def in_order(batch_size: int = 12) -> Iterator[Tensor]:
    """The minibatches of a fit to rows in memory, without end."""
    x, order = rows(), Batches(40, batch_size, seed=1)
    while True:
        order.begin_epoch()
        while len(order):
            yield x[order.deal()]


@pytest.fixture(scope="module")
def resident() -> list[Tensor]:
    """The weights of three passes over rows in memory, 10 steps of 12 of the 40 rows."""
    return weights(rows(), epochs=3, batch_size=12)


def cut(sizes: list[int]) -> Iterator[Tensor]:
    """The same rows in batches of other sizes, all of which lie in the same memory, one after the other."""
    taken = torch.cat(list(itertools.islice(in_order(), 12)))
    memory = torch.empty(max(sizes), 6)
    for size in itertools.cycle(sizes):
        found, taken = taken[:size], taken[size:]
        if not len(found):
            return
        memory[: len(found)] = found
        yield memory[: len(found)]


SOURCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "an iterator": (in_order, {"steps": 10}),
    "a number of rows": (in_order, {"steps": 10, "num_rows": 40}),
    "passes": (lambda: in_order, {"epochs": 3, "num_rows": 40}),
    "small batches": (lambda: cut([5]), {"steps": 10, "batch_size": 12}),
    "batches of all sizes": (lambda: cut([30, 1, 12, 7, 12]), {"steps": 10, "batch_size": 12}),
    "arrays by argument": (lambda: ({"x": x.double().numpy()} for x in in_order()), {"steps": 10}),
    "a list": (lambda: [{"x": x} for x in itertools.islice(in_order(), 10)], {"epochs": 1}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_batches_give_the_fit_of_rows_in_memory(name: str, resident: list[Tensor]) -> None:
    """Bit for bit: the same rows in the same order, and the same noise; the number of rows changes nothing without a site
    that belongs to no row."""
    make, how = SOURCES[name]
    assert equal(weights(make(), **how), resident)


def test_engines_take_batches(resident: list[Tensor]) -> None:
    pair = small()
    pv.fit(pair, in_order(), steps=10, **(HOW | {"engine": "traced"}))
    for one, other in zip(pair.state_dict().values(), resident, strict=True):
        torch.testing.assert_close(one, other)


class Drawn(IterableDataset[Tensor]):
    """Rows without end, drawn by torch."""

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.bernoulli(torch.full((6,), 0.3))


def drawn() -> Iterator[dict[str, Tensor]]:
    while True:
        yield {"x": torch.bernoulli(torch.full((8, 6), 0.3))}


@pytest.mark.parametrize(
    ("source", "stop"), [(drawn, "within an epoch"), (DataLoader(Drawn(), batch_size=8), "after an epoch")]
)
def test_a_fit_to_drawn_batches_resumes_bit_for_bit(source: Any, stop: str, tmp_path: Path) -> None:
    """What the source draws is apart from the noise of the fit, and is drawn again when it is wound forward."""
    true = weights(source, steps=13)
    how: dict[str, Any] = {"steps": 13, "checkpoint": tmp_path / "run"}
    if stop == "after an epoch":
        weights(source, callbacks=[lambda fitted: True], **how)
    else:
        with pytest.raises(ZeroDivisionError):
            weights(lambda: broken(source, 6), checkpoint_every="5 steps", **how)
    assert equal(weights(source, resume=True, **how), true)


def broken(source: Any, after: int) -> Iterator[Any]:
    yield from itertools.islice(iter(source() if callable(source) else source), after)
    raise ZeroDivisionError


def test_a_finished_fit_goes_on_with_more_steps(tmp_path: Path) -> None:
    """Also from the middle of what is now an epoch."""
    true = weights(drawn, steps=25)
    how: dict[str, Any] = {"checkpoint": tmp_path / "run"}
    weights(drawn, steps=13, **how)
    pair = small()
    fitted = pv.fit(pair, drawn, steps=25, resume=True, **how, **HOW)
    assert [row["steps"] for row in fitted.history] == [10, 13, 20, 25]
    assert equal(list(pair.state_dict().values()), true)


def test_a_bare_iterator_is_not_resumed(tmp_path: Path) -> None:
    how: dict[str, Any] = {"steps": 3, "checkpoint": tmp_path / "run"}
    weights(drawn(), **how)
    with pytest.raises(pv.CheckpointError, match=r"bare iterator \(generator\) cannot be resumed.*a function"):
        weights(drawn(), resume=True, **how)
    with pytest.raises(pv.CheckpointError, match="other data"):
        weights(lambda: ({"x": 1 - x["x"]} for x in drawn()), resume=True, **how)


def test_a_failing_step_is_told_without_its_rows() -> None:
    """The rows that made the loss infinite are gone, so that no step is taken again."""
    huge: dict[str, Any] = {"optimizer": lambda leaves: torch.optim.SGD(leaves, lr=1e38)}
    with pytest.raises(pv.NotFiniteError, match="In epoch 1, step .+ not finite; the weights are those of the start"):
        pv.fit(small(), drawn(), steps=13, **HOW, **huge)


@pytest.mark.parametrize(("first", "second"), [(13, 15), (7, 9)])
def test_more_steps_within_the_last_epoch_are_taken(first: int, second: int, tmp_path: Path) -> None:
    how: dict[str, Any] = {"checkpoint": tmp_path / "run"}
    weights(drawn, steps=first, **how)
    assert equal(weights(drawn, steps=second, resume=True, **how), weights(drawn, steps=second))


class Counting(IterableDataset[Tensor]):
    """Rows of which it is known how many they are."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from X[:18]

    def __len__(self) -> int:
        return 18


@pytest.mark.parametrize(("batch_size", "steps"), [(None, 7), (2, 18), (9, 4), (18, 2)])
def test_passes_over_a_loader_have_its_rows(batch_size: int | None, steps: int) -> None:
    fitted = pv.fit(small(), DataLoader(Counting(), batch_size=5), epochs=2, batch_size=batch_size, **HOW)
    assert fitted.history[-1]["steps"] == steps  # 2 passes over 18 rows, in whole batches
    with pytest.raises(pv.DataError, match="larger than the 18 rows"):
        pv.fit(small(), DataLoader(Counting(), batch_size=5), epochs=1, batch_size=19, **HOW)


def test_no_step_needs_no_length() -> None:
    assert pv.fit(small(), drawn, epochs=0, **HOW).history == []


class Once:
    """Looks as if it could be started again, and cannot."""

    def __init__(self) -> None:
        self.batches = iter([rows(), rows()])

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.batches


X = rows()
NAN = X.clone()
NAN[3, 2] = torch.nan

BAD: dict[str, tuple[Callable[[], Any], dict[str, Any], type[Exception], str]] = {
    "ends": (lambda: iter([X] * 3), {"steps": 5}, pv.DataError, r"ended after 3 batches.*can be started again"),
    "passes of an iterator": (lambda: iter([X]), {"epochs": 2, "num_rows": 40}, pv.DataError, "ended after 1 batch"),
    "once": (Once, {"steps": 5}, pv.DataError, "no batch when it was started for pass 2. It can be read only once"),
    "nothing": (lambda: iter([]), {"steps": 5}, pv.DataError, "no batch"),
    "makes no batches": (lambda: lambda: 3, {"steps": 5}, pv.DataError, "must make an iterable of batches.*int"),
    "makes a tensor": (lambda: lambda: X, {"steps": 5}, pv.DataError, "must make an iterable of batches.*Tensor"),
    "makes a batch": (lambda: lambda: {"x": X}, {"steps": 5}, pv.DataError, "must make an iterable of batches.*dict"),
    "takes arguments": (lambda: lambda n: [X] * n, {"steps": 5}, pv.DataError, "called without arguments.*'n'"),
    "network": (lambda: torch.nn.Linear(6, 2), {"epochs": 1}, pv.DataError, "must hold numbers, got Linear"),
    "sparse": (lambda: iter([X, X.to_sparse()]), {"steps": 2}, pv.DataError, r"Batch 2: .*x.to_dense\(\)"),
    "to validate": (drawn, {"steps": 2, "validation": iter([X])}, pv.DataError, "validation must be rows at hand"),
    "shape": (lambda: iter([X, X[:, :5]]), {"steps": 2}, pv.DataError, r"Batch 2 has rows of x: \(5,\).*\(6,\)"),
    "dtype": (lambda: iter([X, X.long()]), {"steps": 2}, pv.DataError, "Batch 2 has rows of x.*int64.*float32"),
    "name": (lambda: iter([{"x": X}, {"y": X}]), {"steps": 2}, pv.DataError, r"Batch 2: .*takes \(x\)"),
    "empty batch": (lambda: iter([X, X[:0]]), {"steps": 2}, pv.DataError, "Batch 2: The data are empty"),
    "NaN": (lambda: iter([X, NAN]), {"steps": 2}, pv.DataError, "1 NaN.*row 43"),
    "outside": (lambda: iter([X, X, 3 * X]), {"steps": 3}, pv.DataError, "outside the support.*row 8[0-9]"),
    "length": (drawn, {}, pv.OptionError, "need steps="),
    "passes of unknown length": (drawn, {"epochs": 2}, pv.OptionError, "how many there are is not known: give steps"),
    "two lengths": (drawn, {"epochs": 2, "steps": 3}, pv.OptionError, "both were given"),
    "a share": (drawn, {"steps": 3, "validation": 0.2}, pv.OptionError, "rows of their own"),
    "steps of rows": (lambda: X, {"steps": 3}, pv.OptionError, "steps=3 is for rows that come batch by batch"),
    "total of rows": (lambda: X, {"epochs": 1, "num_rows": 3}, pv.OptionError, "num_rows=3 is for rows"),
    "few rows": (lambda: [{"x": X}], {"epochs": 1, "batch_size": 50}, pv.DataError, "larger than the 40"),
    "row by row": (Drawn, {"steps": 3}, pv.DataError, r"DataLoader\(dataset, batch_size=128\)"),
    "group size": (drawn, {"steps": 3, "group_size": {"": 4}}, pv.OptionError, "leave it out"),
    "penalty": (drawn, {"steps": 3, "penalty": lambda pair: torch.zeros(())}, pv.OptionError, "give num_rows="),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_fitted_is_refused(name: str) -> None:
    make, how, kind, match = BAD[name]
    with pytest.raises(kind, match=match):
        pv.fit(small(), make(), **HOW, **how)


def test_a_model_of_gaps_takes_the_first_gap_late() -> None:
    def gappy() -> pv.VAE:
        encoder = pv.Conditional(pv.nets.WithMask(pv.nets.MLP((6, 6), (2, 2), hidden=(4,))), fam.Normal(2))
        return pv.VAE(pv.priors.StandardNormal(2), pv.observed_only(pv.mlp(2, fam.Bernoulli(6))), encoder)

    fitted = pv.fit(gappy(), iter([X, X, NAN, X, NAN]), steps=5, **HOW)
    assert fitted.history[0]["steps"] == 5
    with pytest.raises(pv.DataError, match="outside the support"):  # also once there was a gap
        pv.fit(gappy(), iter([X, NAN, 3 * X]), steps=3, **HOW)


def test_rows_of_several_kinds_are_told_to_be_at_hand() -> None:
    y = torch.arange(40) % 3
    with pytest.raises(pv.DataError, match="Batch 2 has rows whose 'y' is unknown"):
        pv.fit(ssvae(), iter([{"x": X, "y": y}, {"x": X, "y": y - 1}]), steps=2, **HOW)


def test_a_global_site_counts_once_for_the_number_of_rows_given() -> None:
    """The posterior of a mean under N(0, 1) is N(sum x / (N + 1), 1 / (N + 1)), of the N rows that the batches stand for."""

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = torch.nn.Parameter(torch.tensor(0.0))

        def model(self, x: Tensor) -> None:
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            pyro.sample("mean", dist.Normal(0.0, self.log_scale.exp()))

    zeros = torch.zeros(4)
    with pytest.raises(pv.OptionError, match="Site 'mean' belongs to no row.*give num_rows"):
        pv.fit(Mean(), lambda: iter([zeros]), steps=1, **HOW)
    for total in (4, 99):
        pair, loss = Mean(), pv.Trace_ELBO(num_particles=500)
        pv.fit(pair, lambda: iter([zeros]), steps=80, num_rows=total, loss=loss, **(HOW | {"learning_rate": 0.1}))
        wanted = -0.5 * torch.tensor(total + 1.0).log().item()
        # the last steps of Adam move by 0.1 at most, and 500 draws give the scale to 3 %
        assert float(pair.log_scale.detach()) == pytest.approx(wanted, abs=0.35)


def test_the_first_rows_tell_of_drift() -> None:
    """Rows that turn round: the ELBO of the first falls, while that of those that come rises again."""

    def turning() -> Iterator[Tensor]:
        for step in itertools.count():
            yield torch.full((16, 6), float(step >= 20))

    fitted = pv.fit(small(), turning(), steps=60, **(HOW | {"learning_rate": 0.1}))
    _, before, *_, after = (row["first_rows_elbo"] for row in fitted.history)
    assert after < before - 5 and fitted.history[-1]["elbo"] > after + 5
    drawn_lines = pv.plots.training_curve(fitted.history).get_lines()
    assert {line.get_label() for line in drawn_lines} == {"training", "first rows"}


@pytest.mark.parametrize(("total", "per_epoch"), [(250, 100.0), (10, 10 / 3), (7, 7.0), (0, 5.0)])
def test_the_steps_of_epochs_add_up(total: int, per_epoch: float) -> None:
    counted = Counted(total, per_epoch)
    taken = 0
    for epoch in range(1, 5):
        counted.begin_epoch()
        while len(counted):
            counted.deal()
            taken += 1
        assert taken == min(total, int(epoch * per_epoch + 1e-9))


@pytest.mark.parametrize(
    ("given", "seconds", "steps"),
    [(30, 30.0, None), (0.0, 0.0, None), ("10min", 600.0, None), ("1.5 h", 5400.0, None), ("500 steps", None, 500)],
)
def test_how_often_a_checkpoint_is_written(given: Any, seconds: float | None, steps: int | None) -> None:
    wanted = tuple(float("inf") if value is None else value for value in (seconds, steps))
    assert (Every.of(given).seconds, Every.of(given).steps) == wanted


@pytest.mark.parametrize("given", ["often", "10 days", "0 steps", "1.5 steps", -1, None, True, "nan"])
def test_impossible_times_of_checkpoints_are_refused(given: Any) -> None:
    with pytest.raises(pv.OptionError, match="checkpoint_every must be a number of seconds, or a text"):
        pv.fit(small(), X, epochs=1, checkpoint_every=given, **HOW)


def test_questions_take_no_batches() -> None:
    fitted = pv.fit(small(), X, epochs=1, **HOW)
    with pytest.raises(pv.DataError, match="batch by batch are for pv.fit"):
        pv.encode(fitted, iter([X]))


def test_shards_of_webdataset_as_the_guide_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are taken, all rows of a pass once, and a fit that goes on sees the batches of one that was not stopped."""
    pytest.importorskip("webdataset")
    monkeypatch.chdir(tmp_path)
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "streams.md").read_text()
    (block,) = re.findall(r"^```py\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)

    def build() -> pv.VAE:
        torch.manual_seed(0)
        return pv.VAE(
            pv.priors.StandardNormal(2), pv.mlp(2, fam.Normal(4), hidden=(4,)), pv.mlp(4, fam.Normal(2), hidden=(4,))
        )

    space: dict[str, Any] = {"pv": pv, "np": np, "build": build}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a pass that does not end leaves WebDataset's file open
        exec(compile(block, "streams.md", "exec"), space)
        assert space["fitted"].settings["batch_size"] == 64
        rows = np.concatenate([batch["x"] for batch in space["shards"]()])
        assert rows.shape == (300, 4) and len(np.unique(rows[:, 0])) == 300
        how: dict[str, Any] = {"seed": 0, "engine": "eager", "progress": False}
        whole = pv.fit(build(), space["shards"], steps=12, **how)
        pv.fit(build(), space["shards"], steps=7, checkpoint="run", **how)
        again = pv.fit(build(), space["shards"], steps=12, checkpoint="run", resume=True, **how)
        weights = [torch.cat([p.detach().flatten() for p in fit.pair.parameters()]) for fit in (whole, again)]
        assert torch.equal(*weights)
        del space
        gc.collect()
