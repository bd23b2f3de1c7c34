"""A loss that becomes NaN: the error says where it came from, and `on_nan` says what becomes of the fit."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from support.programs import binary, vae
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.engine.program import clip_by_norm
from pyrovae.training import trainer
from pyrovae.training.not_finite import step_or_back, without_what_is_not_finite

OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 10, "seed": 0, "device": "cpu", "progress": False}


class Breaking(nn.Module):
    """x ~ N(z, 1), whose scale is the logarithm of -1 in some runs of the model: those in `at`, counted from 0."""

    def __init__(self, at: tuple[int, ...]) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))
        self.at, self.runs = at, -1

    def model(self, x: Tensor) -> None:
        if torch.is_grad_enabled():
            self.runs += 1
        sign = -1.0 if self.runs in self.at and torch.is_grad_enabled() else math.e
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, torch.log(x.new_tensor(sign))).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc.expand(len(x), 2), 1.0).to_event(1))


ROWS = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def runs_before_the_first_step() -> int:
    counted = Breaking(())
    pv.fit(counted, ROWS, **OPTIONS | {"epochs": 0}, engine="eager")
    return counted.runs + 1


@pytest.mark.filterwarnings("ignore:Site .* is a factor")  # which is asked for here
def test_the_error_names_site_and_operation() -> None:
    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
                pyro.factor("penalty", (self.loc * 1e3).exp().sum().expand(len(x)) * 1e-3)

        guide = Breaking.guide

    with pytest.raises(pv.NotFiniteError) as failed:
        pv.fit(Overflowing(), ROWS, learning_rate=0.1, engine="eager", **OPTIONS)
    said = str(failed.value)
    assert "the first inf is a result of exp" in said and "site 'penalty'" in said, said
    assert "test_not_finite.py, line" in said and "on_nan='rollback'" in said


def test_gradients_are_zero_where_one_of_them_is_not_finite() -> None:
    leaves = [torch.zeros(2), torch.zeros(3)]
    whole, broken = torch.tensor([3.0, 4.0]), torch.tensor([0.0, math.nan, 1.0])
    clip = without_what_is_not_finite(None)
    assert [g.tolist() for g in clip(leaves, [whole, broken])] == [[0.0, 0.0], [0.0, 0.0, 0.0]]
    assert all(torch.equal(a, b) for a, b in zip(clip(leaves, [whole, leaves[1]]), [whole, leaves[1]]))
    clip = without_what_is_not_finite(lambda leaves, grads: clip_by_norm(leaves, grads, 1.0))
    assert [g.tolist() for g in clip(leaves, [broken[:2], whole])] == [[0.0, 0.0], [0.0, 0.0]]
    assert torch.allclose(torch.cat(list(clip(leaves, [whole, leaves[1]])))[:2], whole / 5)


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_a_fit_without_nan_is_the_same_whatever_becomes_of_nan(engine: str) -> None:
    fits = []
    for on_nan in ("stop", "skip", "rollback"):
        torch.manual_seed(0)
        fits.append(pv.fit(vae(), binary(), on_nan=on_nan, engine=engine, **OPTIONS))
    for fitted in fits[1:]:
        assert [row["elbo"] for row in fitted.history] == [row["elbo"] for row in fits[0].history]


def test_steps_without_a_finite_loss_are_skipped_and_counted() -> None:
    before = runs_before_the_first_step()
    made = Breaking((before + 1, before + 2))
    fitted = pv.fit(made, ROWS, on_nan="skip", engine="eager", **OPTIONS | {"epochs": 2})
    assert [row["skipped"] for row in fitted.history] == [2, 0]
    assert all(math.isfinite(row["elbo"]) for row in fitted.history) and torch.isfinite(made.loc).all()
    with pytest.raises(pv.NotFiniteError):  # a whole epoch
        pv.fit(Breaking(tuple(range(before, before + 4))), ROWS, on_nan="skip", engine="eager", **OPTIONS)


class Normalised(nn.Module):
    """x ~ N(f(z), 1) with z = g(x): what it keeps of the rows is in `norm`, and rows with y = 1 are infinite there."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.loc = norm, nn.Linear(2, 2)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))  # as causal masks have
        self.register_buffer("switch", torch.tensor(0.0))  # from the second epoch on, which comes after all checks

    def model(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        loc = self.loc(self.norm(x / (1 - y * self.switch * self.training).unsqueeze(-1)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


class Codes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.codes = nn.Linear(2, 2), pv.nets.VQ(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.codes(self.before(x).unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm1d(2), Codes], ids=["batch norm", "codebook"])
def test_a_step_that_is_skipped_leaves_running_averages_as_they_were(norm: Any, engine: str) -> None:
    pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    made = Normalised(norm())
    rows = {"x": ROWS, "y": (torch.arange(40) == 7).float()}
    fitted = pv.fit(
        made, rows, on_nan="skip", engine=engine, callbacks=[lambda fitted: bool(made.switch.fill_(1.0) < 0)], **OPTIONS
    )
    assert [row["skipped"] for row in fitted.history] == [0, 1, 1, 1]
    averages = {name: buffer for name, buffer in made.named_buffers() if name != "mask"}
    assert len(averages) > 2 and all(torch.isfinite(buffer).all() for buffer in averages.values()), averages
    if "norm.num_batches_tracked" in averages:
        assert averages["norm.num_batches_tracked"] == 4 + 3 * 3, "of the steps that were taken"


class Writing:
    """An engine whose steps write what they are given into buffers."""

    def __init__(self) -> None:
        self.count, self.mean, self.mask = torch.tensor(3), torch.tensor([1.0]), torch.tensor([-math.inf])

    def step(self, inputs: Any, weights: Any) -> Tensor:
        self.count.add_(1)
        self.mean.fill_(inputs["mean"])
        return torch.tensor(inputs["elbo"])


@pytest.mark.parametrize(
    ("elbo", "mean", "taken"),
    [(-1.0, 2.0, True), (-1.0, math.nan, False), (math.nan, 2.0, False), (-math.inf, 2.0, False)],
)
def test_a_step_that_is_not_finite_leaves_all_buffers_as_before(elbo: float, mean: float, taken: bool) -> None:
    engine: Any = Writing()
    found = step_or_back(engine, {"elbo": elbo, "mean": mean}, {}, [engine.count, engine.mean, engine.mask])
    assert found.isfinite() == math.isfinite(elbo)
    assert (engine.count.item(), engine.mean.item()) == ((4, mean) if taken else (3, 1.0))
    assert engine.mask.item() == -math.inf


def test_a_fit_goes_back_and_on_with_half_the_learning_rate(tmp_path: Path) -> None:
    before = runs_before_the_first_step()
    made = Breaking((before + 5,))
    with pytest.warns(
        UserWarning, match="In epoch 2, step 6, the loss is not finite: the fit goes on from epoch 1, with 0.5"
    ):
        fitted = pv.fit(made, ROWS, on_nan="rollback", engine="eager", checkpoint=tmp_path / "run", **OPTIONS)
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3, 4]
    assert [row["learning_rate"] for row in fitted.history] == [1e-3, 5e-4, 5e-4, 5e-4]
    assert fitted.settings["rollbacks"] == 1 and pv.load(tmp_path / "run", pair=Breaking(())).settings["rollbacks"] == 1


def test_what_is_kept_of_a_fit_lacks_the_epochs_that_were_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In many short epochs the last good state may be some epochs old; and a fit that is resumed knows of its returns."""
    monkeypatch.setattr(trainer, "MANY_EPOCHS", 1)
    made, how = runs_before_the_first_step() + 4 * 5, {"engine": "eager", **OPTIONS, "epochs": 7}

    def stop(fitted: pv.Fit) -> None:
        if len(fitted.history) == 7:
            raise ZeroDivisionError

    stop.only_looks = True  # type: ignore[attr-defined]
    for on_nan, kept in (("stop", 1), ("rollback", 7)):
        log, run = tmp_path / f"{on_nan}.jsonl", tmp_path / on_nan
        more: dict[str, Any] = {"checkpoint": run, "checkpoint_every": "4 steps", "on_nan": on_nan}
        with warnings.catch_warnings(), pytest.raises((pv.NotFiniteError, ZeroDivisionError)):
            warnings.simplefilter("ignore")
            pv.fit(Breaking((made,)), ROWS, callbacks=[pv.tracking.JSONLines(log), stop], **more, **how)
        epochs = [json.loads(line)["epoch"] for line in log.read_text().splitlines()]
        assert epochs == list(range(1, kept + 1)), (on_nan, epochs)
    fitted = pv.fit(Breaking(()), ROWS, checkpoint=run, resume=True, on_nan="rollback", **how)
    assert fitted.settings["rollbacks"] == 1 and len(fitted.history) == 7


def test_a_scheduled_rate_is_halved_too() -> None:
    before = runs_before_the_first_step()
    how: dict[str, Any] = {"schedule": lambda step: {"lr": 0.01}, "engine": "eager"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = pv.fit(Breaking((before + 1, before + 6)), ROWS, on_nan="rollback", **how, **OPTIONS)
    assert [row["learning_rate"] for row in fitted.history] == [0.0025] * 4
    assert fitted.settings["rollbacks"] == 2


def test_a_fit_goes_back_five_times_and_no_more() -> None:
    before = runs_before_the_first_step()
    with (
        warnings.catch_warnings(record=True) as warned,
        pytest.raises(pv.NotFiniteError, match="after 5 returns") as failed,
    ):
        warnings.simplefilter("always")
        pv.fit(Breaking(tuple(range(before, 1000))), ROWS, on_nan="rollback", engine="eager", **OPTIONS)
    assert len(warned) == 5 and "on_nan" not in str(failed.value)
    assert "scale of its Normal is not finite" in str(failed.value) and "a result of log" in str(failed.value)


def test_what_becomes_of_nan_is_named() -> None:
    with pytest.raises(pv.OptionError, match="on_nan must be one of 'stop', 'skip', 'rollback', got 'ignore'"):
        pv.fit(vae(), binary(), on_nan="ignore", **OPTIONS)


def test_a_loss_that_is_finite_when_it_is_taken_again_is_no_step_that_was_too_large() -> None:
    broken = Breaking((runs_before_the_first_step() + 6,))  # that run only, and not the one that explains it
    with pytest.raises(pv.NotFiniteError, match="the loss is not finite .taken again, the step is finite"):
        pv.fit(broken, ROWS, **OPTIONS, engine="eager")
