"""fit: what one step does, what a fit promises, and what it says of unfit data and options."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from safetensors.torch import load_file
from support.programs import bare_functions, binary, reals, vae
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.batching.batches import Batches
from pyrovae.batching.splits import Split
from pyrovae.engine.adam import Adam
from pyrovae.pair.parameters import place
from pyrovae.training import plan, trainer
from pyrovae.training.schedules import Step


class Mean(nn.Module):
    """x ~ N(m, 1), z ~ N(0, 1) unused by x and drawn from its prior: the ELBO per row is log N(x; m, 1), no noise."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.m, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))


def sgd(rate: float) -> Any:
    return lambda leaves: torch.optim.SGD(leaves, lr=rate)


# --- one step --------------------------------------------------------------------------------------------------------


def test_one_step_descends_the_mean_negative_elbo_per_row() -> None:
    x = torch.randn(50) + 3
    pair = Mean()
    pv.fit(pair, x, epochs=1, batch_size=50, optimizer=sgd(0.1))
    # d/dm of -(1/N) sum log N(x_n; m, 1) at m = 0 is -mean(x)
    assert pair.m.item() == pytest.approx(0.1 * x.mean().item(), rel=1e-5)


def test_a_minibatch_stands_for_all_rows_and_a_penalty_counts_once() -> None:
    x = torch.full((60,), 2.0)
    pair = Mean()
    pv.fit(pair, x, epochs=1, batch_size=60, optimizer=sgd(0.1), penalty=lambda p: 30 * p.m)
    # 30 m nats for the whole data set are 30 / 60 a row
    assert pair.m.item() == pytest.approx(0.1 * (2.0 - 0.5), rel=1e-5)


def test_the_gradient_is_clipped_by_its_global_norm() -> None:
    pair = vae()
    before = [p.detach().clone() for p in pair.parameters()]
    pv.fit(pair, binary(), epochs=1, batch_size=40, optimizer=sgd(1.0), clip_norm=0.01)
    moved = torch.cat([(p - b).flatten() for p, b in zip(pair.parameters(), before)])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_default_is_one_fused_adam_for_all_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.optim.Adam] = []

    class Spy(Adam):
        def __init__(self, *options: Any) -> None:
            super().__init__(*options)
            made.append(self)

    monkeypatch.setattr(plan, "Adam", Spy)
    pair = vae()
    pv.fit(pair, binary(), epochs=1, batch_size=20)
    ((group,),) = [one.param_groups for one in made]
    assert len(group["params"]) == len(list(pair.parameters()))
    (usual,) = torch.optim.Adam([torch.zeros(1)], lr=1e-3, fused=True).param_groups
    assert {**group, "params": None} == {**usual, "params": None}


@pytest.mark.slow
def test_a_step_never_reads_a_value_on_the_host() -> None:
    class Counter(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.reads += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    counter = Counter()
    seen = []

    def at_epoch_end(fitted: pv.Fit) -> None:
        seen.append(counter.reads)

    with counter:
        pv.fit(vae(), binary(200), epochs=3, batch_size=4, callbacks=[at_epoch_end], clip_norm=1.0)
        one_epoch = seen[2] - seen[1]
        assert torch.ones(()).item() == 1.0 and counter.reads > seen[2]  # the counter counts
    assert one_epoch < 30, f"{one_epoch} reads in an epoch of 50 steps"


@pytest.mark.slow
@pytest.mark.auto_engine
def test_kl_weight_and_learning_rate_reach_the_step_and_stay_out_of_the_elbo() -> None:
    x = binary()
    weighted = pv.fit(vae(), x, epochs=4, batch_size=40, seed=0, schedule=lambda s: {"kl": 0.25 * s.number, "lr": 0.0})
    assert [h["kl_weight"] for h in weighted.history] == [0.0, 0.25, 0.5, 0.75]
    assert [h["learning_rate"] for h in weighted.history] == [0.0] * 4
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    plain = pv.fit(weighted.pair, x, epochs=4, batch_size=40, seed=0, schedule=lambda s: {"lr": 0.0})
    # A rate of 0 moves nothing, so both saw the same weights and noise: the weight must not show.
    assert [h["elbo"] for h in weighted.history] == [h["elbo"] for h in plain.history]


def test_a_kl_weight_of_zero_leaves_the_prior_untrained() -> None:
    pair = vae(prior=pv.priors.MixtureOfNormals(2, 3))
    before = pair.prior.loc.detach().clone()
    pv.fit(pair, binary(), epochs=2, batch_size=20, schedule=lambda s: {"kl": 0.0})
    assert torch.equal(before, pair.prior.loc)


# --- the loop --------------------------------------------------------------------------------------------------------


def test_batches_have_one_shape_and_rows_their_turn() -> None:
    batches = Batches(num_rows=10, batch_size=4, seed=0)
    counts, sizes = torch.zeros(10, dtype=torch.long), []
    for _ in range(6):
        batches.begin_epoch()
        for _ in range(len(batches)):
            rows = batches.deal()
            sizes.append(len(rows))
            counts[rows] += 1
    assert set(sizes) == {4} and len(sizes) == 6 * 10 // 4
    assert counts.max() - counts.min() <= 1


def test_schedules_end_where_they_should() -> None:
    steps = [Step(n, 10.0, 100) for n in range(100)]
    rates = [pv.schedules.one_cycle(0.1)(s)["lr"] for s in steps]
    assert rates[0] == pytest.approx(0.004) and max(rates) == pytest.approx(0.1, rel=1e-2)
    assert rates[-1] == pytest.approx(0.1 / 25e4) and rates.index(max(rates)) in (29, 30)
    weights = [pv.schedules.kl_warmup(5)(s)["kl"] for s in steps]
    assert weights[0] == 0 and weights[25] == pytest.approx(0.5) and weights[50:] == [1.0] * 50


def test_patience_stops_and_keeps_the_best_weights() -> None:
    x, other = torch.full((20,), 5.0), torch.full((20,), 1.0)  # the fit walks past the held-out mean
    pair = Mean()
    fitted = pv.fit(pair, x, epochs=100, batch_size=20, optimizer=sgd(0.05), validation=other, patience=3, seed=0)
    scores = [h["validation_elbo"] for h in fitted.history]
    best = max(range(len(scores)), key=scores.__getitem__)
    assert len(scores) == best + 1 + 3 < 100 and "validation" in fitted.stopped
    assert fitted.settings["best_epoch"] == best + 1
    assert abs(pair.m.item() - 1.0) < 0.15
    per_row = dist.Normal(pair.m.detach(), 1.0).log_prob(other).mean().item()
    assert scores[best] == pytest.approx(per_row, rel=1e-5)


def test_the_best_epoch_is_kept_without_stopping_at_it() -> None:
    x, other = torch.full((20,), 5.0), torch.full((20,), 1.0)
    kept = {}
    for keep in (True, False):
        pair = Mean()
        how = {
            "epochs": 30,
            "batch_size": 20,
            "optimizer": sgd(0.05),
            "validation": other,
            "seed": 0,
            "engine": "eager",
        }
        fitted = pv.fit(pair, x, keep_best=keep, **how)
        assert len(fitted.history) == 30 and not fitted.stopped
        kept[keep] = pair.m.item()
    scores = [h["validation_elbo"] for h in fitted.history]
    assert abs(kept[True] - 1.0) < 0.15 and kept[False] > 3.0
    assert max(scores) > scores[-1] + 1
    with pytest.raises(pv.OptionError, match="keep_best needs rows to judge by"):
        pv.fit(Mean(), x, epochs=1, keep_best=True)


def test_a_fit_that_keeps_its_best_epoch_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """Stopped after the best epoch: its weights are in the checkpoint."""
    x, other = torch.full((20,), 5.0), torch.full((20,), 1.0)
    how = {"epochs": 30, "batch_size": 20, "optimizer": sgd(0.05), "validation": other, "seed": 0, "engine": "eager"}
    whole, parts = Mean(), Mean()
    pv.fit(whole, x, keep_best=True, **how)
    run = {"keep_best": True, "checkpoint": tmp_path / "run", "checkpoint_every": 0.0, **how}

    def interrupt(fit: pv.Fit) -> None:
        if len(fit.history) == 20:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pv.fit(parts, x, callbacks=[interrupt], **run)
    pv.fit(Mean(), x, resume=True, **{**run, "epochs": 30})
    resumed = pv.load(tmp_path / "run", Mean())
    assert torch.equal(resumed.pair.m, whole.m)


MANY: dict[str, Any] = {
    **{"epochs": 37, "batch_size": 10, "keep_best": True, "validation": torch.full((20,), 1.0), "engine": "eager"},
    **{"learning_rate": 1e-3, "seed": 0, "progress": False},
}


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty epochs are many, of 100 for users, and ten steps far apart, of 25."""
    monkeypatch.setattr(trainer, "MANY_EPOCHS", 20)
    monkeypatch.setattr(trainer, "STEPS_BETWEEN", 10)


def measured(fit: pv.Fit) -> list[int]:
    return [int(row["epoch"]) for row in fit.history if "validation_elbo" in row]


@pytest.mark.usefixtures("many")
def test_many_short_epochs_are_measured_every_ten_steps() -> None:
    x, every = torch.full((20,), 5.0), list(range(1, 38))
    fitted = pv.fit(Mean(), x, **MANY)
    assert measured(fitted) == [*every[:20], 25, 30, 35, 37]  # two steps an epoch; and the last
    assert [row["epoch"] for row in fitted.history] == every and all("elbo" in row for row in fitted.history)
    assert fitted.settings["best_epoch"] in measured(fitted)
    assert measured(pv.fit(Mean(), x, **MANY, callbacks=[lambda fit: None])) == every
    assert measured(pv.fit(Mean(), x, **MANY, patience=49)) == every
    assert measured(pv.fit(Mean(), x, **MANY, patience=50)) == measured(fitted)
    assert measured(pv.fit(Mean(), x.repeat(10), **{**MANY, "batch_size": 20})) == every  # ten steps


@pytest.mark.usefixtures("many")
def test_a_fit_of_many_short_epochs_resumes_to_the_same_history(tmp_path: Path) -> None:
    x = torch.linspace(0, 5, 20)
    whole = pv.fit(Mean(), x, **MANY)

    def press(step: Step) -> dict[str, float]:
        if step.number == 52 and not (tmp_path / "pressed").exists():  # the first of the two steps of epoch 27
            (tmp_path / "pressed").touch()
            os.kill(os.getpid(), signal.SIGINT)
        return {"lr": 1e-3}

    how = {**MANY, "checkpoint": tmp_path / "run", "schedule": press}
    with pytest.raises(KeyboardInterrupt, match="can be resumed"):
        pv.fit(Mean(), x, **how)
    resumed = pv.fit(Mean(), x, **how, resume=True)
    assert measured(resumed) == measured(whole)
    assert [row["elbo"] for row in resumed.history] == [row["elbo"] for row in whole.history]
    assert resumed.settings["best_epoch"] == whole.settings["best_epoch"]
    assert torch.equal(resumed.pair.m, whole.pair.m)


@pytest.mark.usefixtures("many")
def test_a_fit_that_goes_on_for_longer_ends_like_one_that_was_as_long_from_the_start(tmp_path: Path) -> None:
    """The best epoch, too: what was measured only as the last epoch of the first part does not count."""
    x = torch.linspace(0, 2.5, 20)
    whole = pv.fit(Mean(), x, **{**MANY, "epochs": 60})
    for epochs in (15, 33, 60):
        grown = pv.fit(Mean(), x, **{**MANY, "epochs": epochs}, checkpoint=tmp_path / "run", resume=epochs > 15)
    assert grown.settings["best_epoch"] == whole.settings["best_epoch"]
    assert torch.equal(grown.pair.m, whole.pair.m)


@pytest.mark.usefixtures("many")
def test_patience_ends_a_fit_at_an_epoch_that_was_measured() -> None:
    x, other = torch.full((30,), 5.0), torch.full((20,), 1.0)
    fitted = pv.fit(Mean(), x, **{**MANY, "epochs": 400, "validation": other, "learning_rate": 2e-2}, patience=51)
    assert 51 < len(fitted.history) < 400 and "validation_elbo" in fitted.history[-1]


def test_a_validation_fraction_is_held_out_and_recorded() -> None:
    x = torch.arange(40.0)
    seen: list[float] = []

    def spy(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.extend(batch["x"].tolist())
        return batch

    fitted = pv.fit(
        Mean(), x, epochs=2, batch_size=6, validation=0.25, seed=3, transform=spy, learning_rate=1e-6, engine="eager"
    )
    split = fitted.settings["validation_split"]
    assert fitted.settings["num_rows"] == 30 and split["seed"] == 3 and len(split["checksum"]) == 64


TRUTHS = [np.bool_(True), np.array(True), np.float32(1.0) > 0, torch.tensor(True), torch.tensor([True])]
UNTRUTHS = [np.bool_(False), torch.tensor(False), 1, 2.5, "stopped", np.float32(1.0), torch.tensor(1.0), [True]]


@pytest.mark.parametrize("answer", TRUTHS + UNTRUTHS, ids=repr)
def test_a_callback_stops_the_fit_by_any_kind_of_truth_and_nothing_else(answer: Any) -> None:
    fitted = pv.fit(vae(), binary(40), epochs=2, engine="eager", callbacks=[lambda f: answer])
    assert len(fitted.history) == (1 if any(answer is truth for truth in TRUTHS) else 2)


def test_numbers_that_callbacks_write_are_saved_with_the_history(tmp_path: Path) -> None:
    values = [3, 0.5, True, np.float32(0.5), np.int64(3), torch.tensor(0.5), torch.tensor([2.0])]

    def write(fitted: pv.Fit) -> None:
        fitted.history[-1] |= {str(number): value for number, value in enumerate(values)}

    fitted = pv.fit(Mean(), torch.randn(4), epochs=1, engine="eager", callbacks=[write], checkpoint=tmp_path / "run")
    assert [fitted.history[-1][str(number)] for number in range(7)] == [3, 0.5, 1, 0.5, 3, 0.5, 2]
    assert pv.load(tmp_path / "run", pair=Mean()).history == fitted.history


@pytest.mark.parametrize("value", ["good", "3", None, [1.0, 2.0], torch.ones(2), {"a": 1}])
def test_what_callbacks_write_besides_numbers_is_refused(value: Any) -> None:
    def write(fitted: pv.Fit) -> None:
        fitted.history[-1]["mine"] = value

    with pytest.raises(pv.OptionError, match="into the history as 'mine', .*: write a number"):
        pv.fit(Mean(), torch.randn(4), epochs=1, engine="eager", callbacks=[write])


def test_callbacks_see_each_epoch_and_may_stop() -> None:
    epochs: list[int] = []
    fitted = pv.fit(
        vae(),
        binary(),
        epochs=9,
        batch_size=20,
        callbacks=[lambda f: epochs.append(len(f.history)), lambda f: len(f.history) == 4],
    )
    assert epochs == [1, 2, 3, 4] and "callback" in fitted.stopped


@pytest.mark.slow
@pytest.mark.auto_engine
def test_a_seed_repeats_a_fit_and_the_global_random_state_is_left_alone() -> None:
    pair = vae()
    start = {n: p.detach().clone() for n, p in pair.named_parameters()}
    x = binary()
    torch.manual_seed(5)
    after = torch.rand(1)
    torch.manual_seed(5)
    one = pv.fit(pair, x, epochs=2, batch_size=16, seed=8).history[-1]["elbo"]
    assert torch.equal(after, torch.rand(1))
    with torch.no_grad():
        for n, p in pair.named_parameters():
            p.copy_(start[n])
    assert pv.fit(pair, x, epochs=2, batch_size=16, seed=8).history[-1]["elbo"] == one


def test_transform_is_fresh_in_training_and_fixed_at_evaluation() -> None:
    gray = torch.rand(30, 6)
    fitted = pv.fit(vae(), gray, epochs=1, batch_size=10, transform=pv.transforms.Binarize(), seed=0)
    one, two = fitted.evaluation_batch(gray)["x"], fitted.evaluation_batch(gray)["x"]
    assert torch.equal(one, two) and set(one.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(*(pv.transforms.Binarize()({"x": gray})["x"] for _ in range(2)))


# --- stopping --------------------------------------------------------------------------------------------------------


def bomb(after: int) -> Any:
    """A transform that makes the data NaN at one step. It counts its calls, which only an eager step repeats."""
    calls = {"n": 0}

    def explode(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        calls["n"] += 1
        return {"x": batch["x"] * float("nan")} if calls["n"] == after else batch

    return explode


def test_nan_names_epoch_and_step_and_keeps_the_last_good_epoch(tmp_path: Path) -> None:
    x = torch.randn(40) + 1
    options: dict[str, Any] = {"epochs": 5, "batch_size": 10, "seed": 0, "engine": "eager"}
    # The transform runs 3 times before the first step, on the first batch, on two rows and on all, and once after the first
    # epoch, on the rows whose KL terms are monitored.
    with pytest.raises(pv.NotFiniteError, match="epoch 1, step 2.*those of the start, as no epoch was good"):
        pv.fit(Mean(), x, transform=bomb(3 + 2), **options)
    with pytest.raises(pv.NotFiniteError, match=r"epoch 3, step 9.*epoch 2, the last good epoch.*run"):
        pv.fit(Mean(), x, transform=bomb(3 + 1 + 9), checkpoint=tmp_path / "run", **options)
    reference = Mean()
    pv.fit(reference, x, callbacks=[lambda f: len(f.history) == 2], **options)
    assert torch.equal(load_file(tmp_path / "run" / "weights.safetensors")["m"], reference.m.detach())


@pytest.mark.slow
@pytest.mark.auto_engine
def test_ctrl_c_leaves_a_run_that_resumes_to_the_same_end(tmp_path: Path) -> None:
    x = binary()
    options: dict[str, Any] = {"epochs": 6, "batch_size": 12, "seed": 2, "schedule": pv.schedules.one_cycle(0.02)}
    torch.manual_seed(0)
    whole = vae()
    history = pv.fit(whole, x, **options).history

    steps = {"n": 0}
    handler = signal.getsignal(signal.SIGINT)

    def press(step: Step) -> dict[str, float]:
        steps["n"] += 1
        if steps["n"] == 12:  # in the middle of an epoch
            os.kill(os.getpid(), signal.SIGINT)
        return pv.schedules.one_cycle(0.02)(step)

    stopping = {**options, "schedule": press}
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt, match="can be resumed"):
        pv.fit(vae(), x, checkpoint=tmp_path / "run", **stopping)
    steps["n"] = 100
    again = vae()
    resumed = pv.fit(again, x, checkpoint=tmp_path / "run", resume=True, **stopping)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))
    assert [h["elbo"] for h in resumed.history] == [h["elbo"] for h in history]
    assert signal.getsignal(signal.SIGINT) is handler


# --- bad input -------------------------------------------------------------------------------------------------------


def with_nan() -> Tensor:
    x = torch.randn(40, 6)
    x[7, 2] = float("nan")
    x[9, 1] = float("nan")
    return x


def with_infinity() -> Tensor:
    x = torch.randn(40, 6)
    x[3, 0] = float("inf")
    return x


BAD_DATA: dict[str, tuple[Any, Any, str]] = {
    "empty": (fam.Bernoulli(6), torch.zeros(0, 6), "empty"),
    "nan": (fam.Normal(6), with_nan(), r"2 NaN in 2 rows \(the first is row 7\).*observed_only"),
    "infinity": (fam.Normal(6), with_infinity(), r"1 infinite value in 1 row \(the first is row 3\)"),
    "gray for Bernoulli": (fam.Bernoulli(6), torch.rand(40, 6), "Bernoulli.*0 or 1.*Binarize.*or ContinuousBernoulli"),
    "counts for Bernoulli": (
        fam.Bernoulli(6),
        torch.arange(240.0).reshape(40, 6) % 17,
        "outside the support of Bernoulli.*BetaBinomial with total_count=16",
    ),
    "counts too large": (
        fam.Binomial(6, 5),
        torch.arange(240.0).reshape(40, 6) % 17,
        r"integers from 0 to 5\); the first is 6.0 in row 1, column 0",
    ),
    "reals for BetaBinomial": (fam.BetaBinomial(6, 16), torch.randn(40, 6), "Normal fits"),
    "wrong shape": (fam.Bernoulli(6), torch.zeros(40, 5), r"\(\*batch, 6\).*\(16, 5\)"),
}


@pytest.mark.parametrize("case", list(BAD_DATA.values()), ids=list(BAD_DATA))
def test_unfit_data_get_one_clear_error_before_any_step(case: tuple[Any, Any, str]) -> None:
    family, x, message = case
    pair = vae(family)
    before = [p.detach().clone() for p in pair.parameters()]
    with pytest.raises(pv.PyrovaeError, match=message):
        pv.fit(pair, x, epochs=1, batch_size=16)
    assert all(torch.equal(p, b) for p, b in zip(pair.parameters(), before))
    assert not pyro.get_param_store().keys()


def test_binarize_names_values_that_are_no_probabilities() -> None:
    with pytest.raises(pv.DataError, match="255"):
        pv.fit(vae(), torch.full((40, 6), 255.0), epochs=1, transform=pv.transforms.Binarize(), batch_size=8)


BAD_OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "batch size": ({"batch_size": 41}, pv.DataError, "batch_size=41 is larger than the 40"),
    "fewer epochs than none": ({"epochs": -1}, pv.OptionError, "epochs"),
    "engine": ({"engine": "warp"}, pv.OptionError, "known: auto, eager"),
    "device": ({"device": "abacus"}, pv.OptionError, "known: auto, cpu, cuda"),
    "patience alone": ({"patience": 3}, pv.OptionError, "validation"),
    "resume alone": ({"resume": True}, pv.OptionError, "checkpoint"),
    "loss": ({"loss": "elbo"}, pv.OptionError, "Trace_ELBO"),
    "Pyro's other loss": ({"loss": pyro.infer.RenyiELBO()}, pv.OptionError, "RenyiELBO is not supported"),
    "schedule": ({"schedule": lambda s: {"beta": 1.0}}, pv.OptionError, "known: lr, kl"),
    "schedule that changes": ({"schedule": lambda s: {"kl": 1.0} if s.number else {}}, pv.OptionError, "same weights"),
    "schedule that is NaN": ({"schedule": lambda s: {"lr": float("nan")}}, pv.OptionError, "finite"),
    "optimizer": ({"optimizer": lambda leaves: None}, pv.OptionError, "torch optimizer"),
    "validation fraction": ({"validation": 1.5}, pv.OptionError, "fraction"),
    "clip": ({"clip_norm": -1.0}, pv.OptionError, "clip_norm"),
}


@pytest.mark.parametrize("case", list(BAD_OPTIONS.values()), ids=list(BAD_OPTIONS))
def test_an_unknown_option_gets_one_clear_error(case: tuple[dict[str, Any], type[Exception], str]) -> None:
    options, error, message = case
    with pytest.raises(error, match=message):
        pv.fit(vae(), binary(), **{"epochs": 2, "batch_size": 16, **options})


def test_pyros_losses_are_translated() -> None:
    x = binary()
    torch.manual_seed(0)
    one = pv.fit(vae(), x, epochs=2, batch_size=16, seed=0, loss=pyro.infer.TraceMeanField_ELBO())
    torch.manual_seed(0)
    two = pv.fit(vae(), x, epochs=2, batch_size=16, seed=0, loss=pv.Trace_ELBO(kl="analytic"))
    assert one.history[-1]["elbo"] == two.history[-1]["elbo"]


def test_a_guide_with_a_parameter_a_row_is_refused() -> None:
    """An AutoGuide over local latents: shuffled rows would mix its parameters up, silently where N = B."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    for batch_size in (20, 40):
        with pytest.raises(pv.PairError, match="one parameter a row"):
            pv.fit(pv.Pair(model, AutoNormal(model)), torch.randn(40), epochs=1, batch_size=batch_size)


def test_a_callable_kl_has_one_name_in_every_process() -> None:
    """The loss is part of what must be equal when a fit is resumed."""

    def once() -> pv.Trace_ELBO:
        def floor(kl: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.clamp_min(0.1) for name, value in kl.items()}

        return pv.Trace_ELBO(kl=floor)

    assert repr(once()) == repr(once())


# --- traps -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.auto_engine
def test_a_callback_sees_the_parameters_in_use_and_cannot_change_the_fit(tmp_path: Path) -> None:
    x = reals()
    plain = pv.fit(bare_functions(), x, epochs=3, batch_size=10, seed=0)
    seen: list[float] = []

    def look(fitted: pv.Fit) -> None:
        seen.append(
            pv.importance(fitted, x, 50, proposal="guide").elbo.mean().item()
        )  # unseeded: draws from the state in use
        pv.save(fitted, tmp_path / f"epoch-{len(fitted.history)}")

    watched = pv.fit(bare_functions(), x, epochs=3, batch_size=10, seed=0, callbacks=[look])
    assert [h["elbo"] for h in watched.history] == [h["elbo"] for h in plain.history]
    after = pv.importance(watched, x, 50, seed=0, proposal="guide").elbo.mean().item()
    assert seen[-1] == pytest.approx(after, abs=1.0) and seen[0] < seen[-1]
    saved = load_file(tmp_path / "epoch-3" / "weights.safetensors")
    assert set(saved) == {"weight", "scale", "guide_weight", "guide_scale"}


@pytest.mark.parametrize("prior", [pv.priors.StandardNormal(2), dist.Normal(torch.zeros(2), 1.0).to_event(1)])
def test_placing_a_pair_reaches_everything_it_draws_with(prior: Any) -> None:
    pair = vae(prior=prior)
    with pyro.validation_enabled(False):  # values on this device cannot be looked at
        place(pair, torch.device("meta"))
        assert all(t.device.type == "meta" for t in [*pair.buffers(), *pair.parameters()])
        assert pair.prior().mean.device.type == "meta"


def test_ctrl_c_after_nan_keeps_the_last_good_state(tmp_path: Path) -> None:
    x = torch.randn(40) + 1

    def poison(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        calls["n"] += 1
        if calls["n"] == calls["at"]:
            os.kill(os.getpid(), signal.SIGINT)
            return {"x": batch["x"] * float("nan")}
        return batch

    calls = {"n": 0, "at": -1}
    options: dict[str, Any] = {"batch_size": 10, "seed": 0, "transform": poison, "engine": "eager"}
    pv.fit(Mean(), x, epochs=1, **options)
    before_training = calls["n"] - 5  # an epoch is 4 steps, and after the first one rows are watched
    calls = {"n": 0, "at": before_training + 1 + 10}  # in the third epoch
    with pytest.raises(pv.NotFiniteError, match="step 10"):
        pv.fit(Mean(), x, epochs=5, checkpoint=tmp_path / "run", **options)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "diverged"
    assert torch.isfinite(load_file(tmp_path / "run" / "checkpoint.safetensors")["weights/m"])
    kept = pv.load(tmp_path / "run", Mean(), transform=poison)
    assert len(kept.history) == 2 and "step 10" in kept.stopped


def test_a_validation_elbo_that_is_nan_stops_the_fit() -> None:
    class Late(Mean):
        def model(self, x: Tensor) -> None:
            super().model(x if torch.is_grad_enabled() or fitting["not yet"] else x * float("nan"))

    fitting = {"not yet": True}

    def begin(step: Step) -> dict[str, float]:
        fitting["not yet"] = step.number < 4
        return {"lr": 0.01}

    options: dict[str, Any] = {"epochs": 5, "batch_size": 10, "engine": "eager"}
    with pytest.raises(pv.NotFiniteError, match="validation rows"):
        pv.fit(Late(), torch.randn(40), validation=torch.randn(9), schedule=begin, **options)


class Noisy(nn.Module):
    """Dropout and batch norm in the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.linear = nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 4)
        self.out_shape = (2, 2)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.drop(self.norm(x.reshape(-1, 6)))
        return self.linear(flat).reshape(*x.shape[:-1], 2, 2)


def noisy() -> pv.VAE:
    return pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.Conditional(Noisy(), fam.Normal(2)))


@pytest.mark.slow
@pytest.mark.auto_engine
def test_questions_and_validation_are_asked_in_evaluation_mode_and_change_nothing() -> None:
    x = binary()
    pair = noisy()
    fitted = pv.fit(pair, x, epochs=2, batch_size=20, seed=0, validation=binary())
    before = {n: b.clone() for n, b in pair.named_buffers()}
    assert torch.equal(pv.encode(fitted, x), pv.encode(fitted, x)) and pair.training  # no dropout, and back to training
    pv.importance(fitted, x, 20, proposal="guide")
    pv.reconstruct(fitted, x)
    assert all(torch.equal(before[n], b) for n, b in pair.named_buffers())
    still = pv.fit(pair, x, epochs=3, batch_size=20, seed=0, validation=x, schedule=lambda s: {"lr": 0.0})
    # The weights stand still and the validation noise is the same at every epoch; batch statistics settle in training only.
    with torch.no_grad():
        pair.encoder.net.norm.momentum = 0.0  # type: ignore[union-attr]
    again = pv.fit(pair, x, epochs=3, batch_size=20, seed=1, validation=x, schedule=lambda s: {"lr": 0.0})
    assert len({h["validation_elbo"] for h in again.history}) == 1 and len(still.history) == 3


@pytest.mark.slow
@pytest.mark.auto_engine
def test_dropout_batch_norm_and_two_groups_resume_bit_for_bit(tmp_path: Path) -> None:
    x = binary()

    def groups(leaves: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW([{"params": leaves[:3], "lr": 0.01}, {"params": leaves[3:], "lr": 0.02}], amsgrad=True)

    options: dict[str, Any] = {"epochs": 4, "batch_size": 12, "seed": 0, "optimizer": groups, "validation": 0.2}
    torch.manual_seed(0)
    whole = noisy()
    pv.fit(whole, x, **options)
    torch.manual_seed(0)
    pv.fit(noisy(), x, **options, checkpoint=tmp_path / "run", callbacks=[lambda f: len(f.history) == 2])
    again = noisy()
    pv.fit(again, x, **options, checkpoint=tmp_path / "run", resume=True)
    one, two = whole.state_dict(), again.state_dict()
    assert all(torch.equal(one[n], two[n]) for n in one) and "encoder.net.norm.running_mean" in one


def test_a_learning_rate_schedule_reaches_every_group() -> None:
    rates: list[list[float]] = []
    made: list[torch.optim.Optimizer] = []

    def groups(leaves: list[Tensor]) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam([{"params": leaves[:2]}, {"params": leaves[2:]}], lr=1.0))
        return made[0]

    pv.fit(
        vae(),
        binary(),
        epochs=1,
        batch_size=40,
        optimizer=groups,
        schedule=lambda s: {"lr": 0.125},
        callbacks=[lambda f: rates.append([g["lr"] for g in made[0].param_groups])],
    )
    assert rates == [[0.125, 0.125]]


def test_a_resumed_fit_takes_the_recorded_seed(tmp_path: Path) -> None:
    x = binary()
    options: dict[str, Any] = {"epochs": 4, "batch_size": 10, "validation": 0.25, "checkpoint": tmp_path / "run"}
    first = pv.fit(vae(), x, **options, callbacks=[lambda f: len(f.history) == 2])
    resumed = pv.fit(vae(), x, **options, resume=True)
    assert resumed.settings["seed"] == first.settings["seed"] and len(resumed.history) == 4


def test_validation_rows_are_not_trained_on() -> None:
    x = torch.arange(40.0)
    trained: set[float] = set()

    def spy(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if begun["n"]:
            trained.update(batch["x"].tolist())
        return batch

    begun = {"n": 0}

    def begin(step: Step) -> dict[str, float]:
        begun["n"] = 1
        return {"lr": 1e-9}

    fitted = pv.fit(
        Mean(),
        x,
        epochs=1,
        batch_size=6,
        validation=0.25,
        seed=3,
        transform=spy,
        schedule=begin,
        callbacks=[lambda f: begun.update(n=0)],
        engine="eager",
    )
    split = Split.from_json(fitted.settings["validation_split"])
    held_out = set(x[split.validation].tolist())
    # The validation pass of the epoch shows the spy the held-out rows, and only them besides the training rows.
    assert len(held_out) == 10 and trained - held_out <= set(x[split.train].tolist())
    assert not held_out & set(x[split.train].tolist())
    exact = dist.Normal(0.0, 1.0).log_prob(x[split.validation]).mean().item()
    assert fitted.history[0]["validation_elbo"] == pytest.approx(exact, rel=1e-4)


def test_a_question_about_other_data_is_refused() -> None:
    fitted = pv.fit(vae(), binary(), epochs=1, batch_size=20)
    with pytest.raises(pv.DataError, match="outside the support of Bernoulli"):
        pv.importance(fitted, torch.full((5, 6), 3.0), proposal="guide")
    with pytest.raises(pv.DataError, match=r"rows of shape \(6,\)"):
        pv.encode(fitted, torch.zeros(5, 7))
    assert torch.equal(pv.encode(fitted, np.zeros((5, 6))), pv.encode(fitted, torch.zeros(5, 6)))


def test_questions_see_what_the_transform_makes() -> None:
    gray = torch.rand(30, 6)
    fitted = pv.fit(vae(), gray, epochs=1, batch_size=10, transform=pv.transforms.Binarize(), seed=0)
    drawn = fitted.evaluation_batch(gray)["x"]
    plain = dataclasses.replace(fitted, transform=None)
    assert torch.equal(
        pv.log_likelihood(fitted, gray, 9, seed=0, proposal="guide"),
        pv.log_likelihood(plain, drawn, 9, seed=0, proposal="guide"),
    )
    assert torch.equal(pv.encode(fitted, gray), pv.encode(plain, drawn))
    assert torch.equal(pv.reconstruct(fitted, gray), pv.reconstruct(plain, drawn))


class Left(nn.Module):
    """Right for (N, D), wrong beside other particles: a softmax over dim 1, counted from the left."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 6), pv.mlp(6, fam.Normal(2), hidden=(8,))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.softmax(self.decoder(z), dim=1), 0.1).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))


@pytest.mark.slow
def test_a_pair_that_mistakes_the_particle_dimension_is_found_and_run_one_by_one() -> None:
    x = torch.softmax(torch.randn(30, 6), -1)
    with pytest.warns(UserWarning, match="'x' has another log-density among several particles"):
        pv.check_pair(Left(), x)
    fitted = pv.fit(Left(), x, epochs=2, batch_size=10, seed=0)
    alone = torch.stack([pv.importance(fitted, x, 1, seed=s, proposal="guide").elbo for s in range(200)]).mean().item()
    with pytest.warns(UserWarning, match="one at a time"):
        found = pv.importance(fitted, x, 200, seed=0, proposal="guide").elbo.mean().item()
    with pytest.warns(UserWarning, match="one at a time"):
        assert pv.posterior(fitted, x, 1, num_particles=10, proposal="guide").shape == (1, 30, 2)
    assert found == pytest.approx(alone, abs=0.16)  # 5 standard errors of the difference; run together it is 4 off
    with pytest.raises(pv.PairError, match="another log-density"):
        pv.fit(Left(), x, epochs=2, batch_size=10, loss=pv.Trace_ELBO(num_particles=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0.0}, "between 0 and 1"),
        ({"validation": 1}, "between 0 and 1"),
        ({"transform": lambda b: b["x"]}, "dict of tensors"),
        ({"schedule": 0.5}, "function of the step"),
        ({"schedule": lambda s: None}, "dict of weights"),
        ({"callbacks": print}, "list of functions"),
        ({"info": {"a": torch.zeros(1)}}, "JSON"),
        ({"penalty": lambda p: 1.0}, "0-d tensor"),
        ({"epochs": 2.5}, "whole number"),
    ],
)
def test_a_hook_of_the_wrong_kind_gets_one_clear_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(pv.PyrovaeError, match=message):
        pv.fit(vae(), binary(), **{"epochs": 2, "batch_size": 16, **options})


def test_numpy_numbers_and_small_data_are_fine() -> None:
    fitted = pv.fit(vae(), binary(), epochs=np.int64(2))
    assert fitted.settings["batch_size"] == 40 and len(fitted.history) == 2
    assert repr(fitted).startswith("Fit(VAE of z, x: 2 epochs, ELBO -")


# --- no epochs


def test_a_fit_of_no_epochs_takes_the_weights_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pair, x = vae(), binary(40)
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    options: dict[str, Any] = {"batch_size": 20, "seed": 0, "engine": "eager"}
    asked = {"validation": x[:10], "patience": 2, "callbacks": [lambda fitted: pytest.fail("there is no epoch")]}
    as_it_is = pv.fit(pair, x, epochs=0, **options, **asked)
    assert as_it_is.history == [] and not as_it_is.stopped
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())
    with as_it_is.scope():
        wanted = pair.encoder(x).mean
    assert torch.equal(pv.encode(as_it_is, x), wanted)
    assert "0 epochs" in repr(as_it_is) and as_it_is._repr_html_()
    loaded = pv.load(pv.save(as_it_is, tmp_path / "saved"))
    assert torch.equal(pv.encode(loaded, x), wanted) and not pv.collapsed(loaded)
    with pytest.raises(pv.DataError, match="outside the support"):
        pv.fit(pair, x + 0.5, epochs=0, **options)
    # and it is where a longer fit begins
    pv.fit(pair, x, epochs=0, checkpoint=tmp_path / "run", **options)
    resumed = pv.fit(pair, x, epochs=2, checkpoint=tmp_path / "run", resume=True, **options)
    torch.manual_seed(0)
    straight = pv.fit(vae(), x, epochs=2, **options)
    assert [row["elbo"] for row in resumed.history] == [row["elbo"] for row in straight.history]


@pytest.mark.parametrize("epochs", [0.5, None, True, "3"])
def test_impossible_numbers_of_epochs_are_refused(epochs: Any) -> None:
    with pytest.raises(pv.OptionError, match="epochs must be a whole number of at least 0"):
        pv.fit(vae(), binary(40), epochs=epochs)
