"""Several processes that take the steps of one fit: one process's gradients, the same weights in all, and a way on."""

import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.processes import in_processes
from support.programs import binary, vae
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.engine import ranks
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import param_scope
from pyrovae.training import together
from pyrovae.training.bind import bind
from pyrovae.training.checks import check
from pyrovae.training.fit_options import FitOptions
from pyrovae.training.groups import group
from pyrovae.training.monitor import Monitor
from pyrovae.training.plan import Plan, plan
from pyrovae.training.trainer import Trainer

HOW: dict[str, Any] = {"batch_size": 20, "device": "cpu", "progress": False, "engine": "eager"}


class Draw(dist.Normal):
    """A Normal whose draws are made of given noise."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor) -> None:
        super().__init__(loc, scale)
        self.noise = noise

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * self.noise

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Draw":
        return Draw(*(t.expand(batch_shape) for t in (self.loc, self.scale, self.noise)))


class Both(nn.Module):
    """A class that some rows have, a latent variable of each row and one that all share; the noise is part of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(3, 2), nn.Linear(4, 4)
        self.shared = nn.Parameter(torch.tensor([0.3, -0.2]))

    def model(self, x: Tensor, noise: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(2)), obs=y)
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            shape = torch.broadcast_shapes(z.shape[:-1], y.shape[:-1])
            loc = self.decoder(torch.cat([z.expand(*shape, 1), y.expand(*shape, 2)], -1)) * w
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, noise: Tensor, y: Tensor | None = None) -> None:
        pyro.sample("w", Draw(self.shared, self.shared.exp(), torch.tensor([0.5, -1.0])).to_event(1))
        with pyro.plate("data", len(x)):
            loc, scale, logits = self.encoder(torch.cat([x, x**2], -1)).split([1, 1, 2], -1)
            if y is None:
                q = dist.OneHotCategorical(logits=logits)
                pyro.sample("y", q, infer={"enumerate": "parallel"})
            pyro.sample("z", Draw(loc, scale.exp(), noise).to_event(1))


def options(**given: Any) -> FitOptions:
    names: dict[str, Any] = dict.fromkeys(FitOptions.__dataclass_fields__)
    default = {
        "learning_rate": 1e-3,
        "on_nan": "stop",
        "callbacks": (),
        "checkpoint_every": 30.0,
        "seed": 0,
        "epochs": 1,
    }
    return FitOptions(**{**names, **default, "resume": False, "force": False, **HOW, **given})


def planned(pair: Any, data: Any, **given: Any) -> tuple[Fit, Plan]:
    chosen, fitted = options(**given), Fit(pair, layout=Layout((), 0, {}))
    rows = bind(pair, data, chosen)
    groups = group(pair, rows, chosen)
    with param_scope(fitted.store):
        rows.place()
        return fitted, plan(fitted, rows, groups, check(fitted, rows, groups, chosen), chosen)


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def become(patch: pytest.MonkeyPatch, number: int, size: int) -> None:
    patch.setattr(ranks, "rank", lambda: number)
    patch.setattr(ranks, "world_size", lambda: size)


@pytest.mark.parametrize(("size", "labelled"), [(2, 8), (3, 8)])
def test_ranks_take_the_gradient_of_one_process(
    size: int, labelled: int, float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows with and without a class, in shares that are not equal, with a latent variable that all rows share."""
    torch.manual_seed(size)
    y = nn.functional.one_hot(torch.arange(30) % 2, 2).double()
    y[labelled:] = torch.nan
    data = {"x": torch.randn(30, 2), "noise": torch.randn(30, 1)} | ({"y": y} if labelled else {})
    pair = Both()
    how: dict[str, Any] = {"batch_size": 11, "penalty": lambda pair: pair.shared.square().sum() * 3}
    if 0 < labelled < 30:
        how |= {"group_size": {"y": 5, "": 7}, "group_weight": {"y": 1.0}}
    _, alone = planned(pair, data, **how)
    alone.batches.begin_epoch()
    dealt = alone.batches.deal()
    names = list(alone.program.parameters)

    def gradient(chosen: Plan, rows: dict[str, Tensor]) -> list[Tensor]:
        elbo, loss = chosen.program.objective(rows, {})
        return [elbo, *torch.autograd.grad(loss, [chosen.program.parameters[name] for name in names])]

    wanted = gradient(alone, dealt)
    each = []
    for number in range(size):
        become(monkeypatch, number, size)
        _, own = planned(pair, data, **how)
        each.append(gradient(own, {name: ranks.shard(rows) for name, rows in dealt.items()}))
    for name, whole, *shares in zip(["ELBO", *names], wanted, *each):
        torch.testing.assert_close(torch.stack(shares).mean(0), whole, rtol=1e-12, atol=1e-12, msg=name)
    assert not torch.allclose(each[0][1], wanted[1], rtol=1e-3)  # or nothing would have been averaged


def test_shares_are_disjoint_and_equal_to_within_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows, size in [(12, 4), (13, 4), (4, 4), (7, 1), (128, 3)]:
        shares = []
        for number in range(size):
            become(monkeypatch, number, size)
            shares.append(ranks.shard(torch.arange(rows)))
        assert torch.equal(torch.cat(shares), torch.arange(rows))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_rank_has_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    for number in range(1, 40):
        become(monkeypatch, number, 40)
        seeds += [ranks.own_seed(seed, step) for seed in range(3) for step in (0, 1)]
    assert len(set(seeds)) == len(seeds)


def test_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 0, 32)
    with pytest.raises(
        pv.OptionError, match="32 processes share the rows of each step, and a step takes 20: start fewer"
    ):
        planned(vae(), binary())
    become(monkeypatch, 0, 2)
    with pytest.raises(pv.OptionError, match="VQ moves its codes .* take one process, or pv.nets.FSQ"):
        together.check_shares({"": 20}, ["VQ"])
    with pytest.raises(pv.OptionError, match="Rows share 'w', .* all of them in one process: take one, or Trace_ELBO"):
        x = torch.randn(20, 2)
        planned(Both(), {"x": x, "noise": x[:, :1], "y": x.softmax(-1).round()}, loss=pv.IWELBO(2))


def test_validation_rows_are_shared_out(float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over ranks is what one process finds, also where there are fewer rows of a group than ranks."""
    torch.manual_seed(0)
    y = nn.functional.one_hot(torch.arange(30) % 2, 2).double()
    y[8:] = torch.nan
    data = {"x": torch.randn(30, 2), "noise": torch.randn(30, 1), "y": y}
    held_out = {name: value[6:16] for name, value in data.items()}  # of 2 rows y is known
    fitted, _ = planned(Both(), data)
    source = bind(fitted.pair, data, options()).training
    with param_scope(fitted.store):
        alone = Monitor(fitted, source, held_out, "eager").measure()
        said: list[list[Tensor]] = [[], []]
        for number in range(3):
            become(monkeypatch, number, 3)
            monkeypatch.setattr(ranks, "total", lambda values: said[0].append(values) or values)
            Monitor(fitted, source, held_out, "eager").measure()
        become(monkeypatch, 0, 3)
        monkeypatch.setattr(ranks, "total", lambda values: torch.stack(said[0]).sum(0))
        bound, divergences, _ = Monitor(fitted, source, held_out, "eager").measure()
    assert bound == pytest.approx(alone[0], rel=1e-12)
    assert divergences == pytest.approx(alone[1], rel=1e-12)


class Normed(nn.Module):
    """A network with running means, which each rank has of its own rows."""

    def __init__(self, family: fam.Family) -> None:
        super().__init__()
        self.out_shape = family.param_shape
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2 * family.event_shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).reshape(*x.shape[:-1], *self.out_shape)  # type: ignore[no-any-return]


def pair_of(number: int) -> pv.VAE:
    """With weights that depend on the rank, as where nobody has set a seed."""
    torch.manual_seed(number)
    likelihood = pv.mlp(2, fam.Bernoulli(6), hidden=(8,))
    return pv.VAE(pv.priors.StandardNormal(2), likelihood, pv.Conditional(Normed(fam.Normal(2)), fam.Normal(2)))


def rows() -> Tensor:
    return torch.bernoulli(torch.full((40, 6), 0.4), generator=torch.Generator().manual_seed(0))


def said(fitted: pv.Fit) -> tuple[list[Tensor], list[dict[str, float]]]:
    tensors = [t.detach() for t in (*fitted.pair.parameters(), *fitted.pair.buffers())]
    return tensors, [{k: v for k, v in row.items() if k != "seconds"} for row in fitted.history]


def same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    tensors = all(torch.allclose(x, y, rtol=tolerance, atol=tolerance) for x, y in zip(a[0], b[0], strict=True))
    return tensors and (tolerance > 0 or a[1] == b[1])


def stopped_halfway(number: int, step: int, **how: Any) -> str:
    """What a fit says that the second rank stops in the midst of an epoch."""
    take, every = Trainer._step, ranks.ASK_EVERY

    def taking(trainer: Trainer) -> None:
        take(trainer)
        if trainer.step == step and number == 1:
            os.kill(os.getpid(), signal.SIGINT)

    Trainer._step, ranks.ASK_EVERY = taking, 0.0  # type: ignore[method-assign]
    try:
        pv.fit(pair_of(number), rows(), **how)
    except KeyboardInterrupt as stop:
        return str(stop)
    finally:
        Trainer._step, ranks.ASK_EVERY = take, every  # type: ignore[method-assign]
    return "nothing"


def noisy(fitted: pv.Fit) -> None:
    with torch.no_grad():
        for parameter in fitted.pair.parameters():
            parameter.add_(torch.randn_like(parameter))


def fits(number: int, folder: Path) -> dict[str, Any]:
    """What a rank has of several fits."""
    more: dict[str, Any] = {**HOW, "validation": 0.2, "batch_size": 9, "clip_norm": 1.0}
    found: dict[str, Any] = {}
    found["whole"] = said(pv.fit(pair_of(number), rows(), epochs=2, seed=0, **more))
    kept = more | {"checkpoint": folder / "run"}
    stop: Any = lambda fitted: len(fitted.history) == 1 and number == 1  # noqa: E731
    found["stopped"] = len(pv.fit(pair_of(number), rows(), epochs=2, seed=0, callbacks=[stop], **kept).history)
    found["resumed"] = said(pv.fit(pair_of(9), rows(), epochs=2, resume=True, **kept))
    found["traced"] = said(pv.fit(pair_of(number), rows(), epochs=2, seed=0, **more | {"engine": "traced"}))
    try:
        pv.fit(pair_of(number), rows() * (1 - number), epochs=1, seed=0, **more)
    except pv.DataError as error:
        found["other rows"] = str(error)
    try:
        pv.fit(pair_of(number), rows(), epochs=1, seed=0, **kept)
    except pv.CheckpointError as error:
        found["taken"] = str(error)
    halfway = more | {"checkpoint": folder / "halfway"}
    found["halfway"] = stopped_halfway(number, 5, epochs=2, seed=0, **halfway)
    found["from there"] = said(pv.fit(pair_of(9), rows(), epochs=2, resume=True, **halfway))
    for who in (0, 1):
        calls = [noisy] if number >= who else []  # in both, of which each has noise of its own, and in the second alone
        found["changed", who] = said(pv.fit(pair_of(number), rows(), epochs=1, seed=0, callbacks=calls, **more))
    for name, own in {
        "epochs": 1 + number,
        "checkpoint": (None, "x")[number],
        "on_nan": ("skip", "stop")[number],
    }.items():
        try:
            pv.fit(pair_of(number), rows(), **{"epochs": 1, "seed": 0, **more, name: own})
        except (pv.OptionError, pv.DataError) as error:
            found["other", name] = str(error)
    for on_nan in ("stop", "skip", "rollback"):
        value = [0.0]

        def penalty(pair: Any, value: list[float] = value) -> Tensor:
            return next(pair.parameters()).sum() * value[0]  # type: ignore[no-any-return]

        def spoil(fitted: pv.Fit, value: list[float] = value) -> None:
            value[0] = float("nan") if number else 0.0

        try:
            how: dict[str, Any] = {**HOW, "epochs": 2, "penalty": penalty, "callbacks": [spoil]}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "In epoch .* the fit goes on")
                fitted = pv.fit(pair_of(number), rows(), on_nan=on_nan, **how)
            found[on_nan], found["any seed"] = said(fitted)[0], fitted.settings["seed"]
        except pv.NotFiniteError as error:
            found[on_nan] = str(error)
    return found


def test_two_processes_fit_together(tmp_path: Path) -> None:
    first, second = in_processes(lambda number: fits(number, tmp_path))
    assert isinstance(first, dict) and isinstance(second, dict), (first, second)
    for name in ("whole", "resumed", "traced"):
        assert same(first[name], second[name]), name
    # a stop that one rank asks for stops both, and what was stopped goes on as if it had not been
    assert first["stopped"] == second["stopped"] == 1
    assert same(first["resumed"], first["whole"])
    assert same(first["traced"], first["whole"], 1e-4)
    # nor if that was in the midst of an epoch, when each rank has running means and ELBOs of its own
    assert "stopped in epoch 2, after step 5" in first["halfway"] and first["halfway"] == second["halfway"]
    assert same(first["from there"], first["whole"]) and same(second["from there"], first["whole"])
    for who in (0, 1):
        assert same(first["changed", who], second["changed", who])
    assert not same(first["changed", 0], first["changed", 1], 1e-2)
    for name in ("epochs", "checkpoint", "on_nan"):
        for found in (first, second):
            assert found["other", name].startswith(f"Process 1 has other {name} than process 0: give all processes")
    torch.manual_seed(0)
    alone = pv.fit(pair_of(0), rows(), epochs=2, seed=0, validation=0.2, **HOW | {"batch_size": 9})
    assert not same(said(alone), first["whole"], 1e-4)
    assert [row["steps"] for row in alone.history] == [row["steps"] for row in first["whole"][1]]
    assert first["any seed"] == second["any seed"]
    for found in (first, second):
        assert found["other rows"].startswith("Process 1 has other data, validation than process 0: give all processes")
        assert "run exists and is not empty" in found["taken"]
        assert found["rollback"] == first["rollback"] and "after 5 returns to an earlier epoch" in found["rollback"]
        assert found["stop"] == first["stop"] and "In epoch 2, step 4, the loss is not finite" in found["stop"]
    # what is not finite in one rank counts in no other
    assert all(
        torch.equal(a, b) and torch.isfinite(a).all() for a, b in zip(first["skip"], second["skip"], strict=True)
    )
    run = pv.load(tmp_path / "run", pair_of(3))  # by one process
    assert same(said(run), first["resumed"])
    kept: dict[str, Any] = {**HOW, "batch_size": 9, "validation": 0.2, "clip_norm": 1.0, "checkpoint": tmp_path / "run"}
    on = pv.fit(pair_of(5), rows(), epochs=3, resume=True, **kept)
    assert len(on.history) == 3 and said(on)[1][:2] == first["resumed"][1]


def lost(number: int, folder: Path) -> str:
    def die(fitted: pv.Fit) -> None:
        if number == 1 and len(fitted.history) == 2:
            os._exit(9)

    try:
        pv.fit(vae(), rows(), epochs=9, seed=0, checkpoint=folder, checkpoint_every=0, callbacks=[die], **HOW)
    except pv.RankError as error:
        return str(error)
    return "nothing"


def test_a_process_that_is_killed_ends_the_others_with_a_run_to_go_on_with(tmp_path: Path) -> None:
    first, second = in_processes(lambda number: lost(number, tmp_path / "run"))
    assert second == "it ended without a word"
    assert first.startswith("Another of the 2 processes of this fit was lost, and this one cannot go on without it (")
    assert first.endswith(f"The run in {tmp_path / 'run'} can be resumed, by any number of processes.")
    fitted = pv.fit(vae(), rows(), epochs=9, seed=0, checkpoint=tmp_path / "run", resume=True, **HOW)
    assert len(fitted.history) == 9
