"""Memory that does not suffice: questions go on in smaller runs, and a fit says which batch size fits."""

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.batching import chunks, memory
from pyrovae.errors import OutOfMemoryError, short_of_memory

N = 40
FIT: dict[str, Any] = {"epochs": 1, "batch_size": 32, "seed": 0, "engine": "eager", "device": "cpu", "progress": False}
SAID = {
    "torch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "torch on a CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    "torch on Windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    "Python": MemoryError(),
}


class Small(nn.Module):
    """A layer for at most so many rows at once."""

    def __init__(self, error: BaseException = SAID["torch on a GPU"]) -> None:
        super().__init__()
        self.most, self.error, self.largest = 10**9, error, 0
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if rows > self.most:
            raise self.error
        self.largest = max(self.largest, rows)
        return self.linear(x)


def small_vae(error: BaseException = SAID["torch on a GPU"]) -> tuple[pv.VAE, Small]:
    torch.manual_seed(0)
    layer = Small(error)
    encoder = pv.Conditional(nn.Sequential(layer, nn.Linear(4, 4), nn.Unflatten(-1, (2, 2))), fam.Normal(2))
    return pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Normal(4), hidden=(4,)), encoder), layer


ROWS = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are in one run, at first."""
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 2**9)


def fitted_and_layer(error: BaseException = SAID["torch on a GPU"]) -> tuple[pv.Fit, Small]:
    pair, layer = small_vae(error)
    return pv.fit(pair, ROWS, **FIT), layer


QUESTIONS: dict[str, Any] = {
    "encode": lambda fit: pv.encode(fit, ROWS),
    "importance": lambda fit: pv.importance(fit, ROWS, num_samples=4, proposal="guide").log_likelihood,
    "reconstruct": lambda fit: pv.reconstruct(fit, ROWS, num_samples=2),
    "kl_by_site": lambda fit: pv.kl_by_site(fit, ROWS, num_samples=2)["z"],
    "posterior": lambda fit: pv.posterior(fit, ROWS, num_samples=2, num_particles=4, proposal="guide"),
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS.keys())
def test_a_question_goes_on_in_runs_that_fit(question: Any, one_chunk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, layer = fitted_and_layer()
    found, sizes = [], []
    for times in range(3):  # what the answer is in smaller runs from the start
        monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 2**9 >> times)
        layer.largest = 0
        torch.manual_seed(3)
        found.append(question(fit))
        sizes.append(layer.largest)
    assert sizes[0] > sizes[1] > sizes[2]
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 2**9)
    layer.most = sizes[2]
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match=r"Memory does not suffice \(CUDA out of memory.*fewer rows at once") as told:
        again = question(fit)
    assert [warning.filename for warning in told] == [__file__]
    assert torch.equal(again, found[2])
    after = torch.rand(())
    torch.manual_seed(3)
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 2**7)
    question(fit)
    assert torch.rand(()) == after  # torch's random state is that of a question in small runs


class Shared(nn.Module):
    """p(w) p(z) p(x | z, w), whose decoder has room for so many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.encode = Small(), nn.Linear(4, 4)

    def model(self, x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.layer(z) + 100 * w[..., None], 0.1).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("w", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), 1.0).to_event(1))


DRAWN: dict[str, Any] = {
    "generate": lambda fit, given: pv.generate(fit, N, given=given),
    "generate, several": lambda fit, given: pv.generate(fit, N, given=given, site=["x"])["x"],
    "simulate": lambda fit, given: pv.simulate(fit, N, given=given)["x"],
}


@pytest.mark.parametrize("question", DRAWN.values(), ids=DRAWN.keys())
def test_new_rows_are_drawn_in_parts_that_fit(question: Any) -> None:
    torch.manual_seed(0)
    pair = Shared()
    fit = pv.fit(pair, ROWS, **FIT)
    z = torch.randn(N, 4)
    with torch.no_grad():
        wanted = pair.layer.linear(z)
    pair.layer.most = N // 3
    with pytest.warns(UserWarning, match="fewer rows at once") as told:
        x = question(fit, {"z": z})
    assert [warning.filename for warning in told] == [__file__]
    shift = x - wanted  # 100 w, which is one for all rows, plus noise of 0.1
    assert x.shape == (N, 4) and float((shift - shift.mean()).abs().max()) < 0.6  # six standard deviations


def test_global_sites_of_rows_drawn_in_parts_have_one_value() -> None:
    torch.manual_seed(0)
    pair = Shared()
    fit = pv.fit(pair, ROWS, **FIT)
    pair.layer.most = 7
    with pytest.warns(UserWarning, match="fewer rows at once"):
        found = pv.simulate(fit, N, seed=3)
    assert {name: tuple(value.shape) for name, value in found.items()} == {"w": (), "z": (N, 4), "x": (N, 4)}
    assert len(found["z"].unique(dim=0)) == N
    with torch.no_grad():
        noise = found["x"] - 100 * found["w"] - fit.pair.layer.linear(found["z"])
    assert float(noise.abs().max()) < 0.6
    pair.layer.most = 0
    with (
        pytest.warns(UserWarning, match=r"Memory does not suffice \(CUDA out of memory"),
        pytest.raises(OutOfMemoryError, match=r"not suffice \(CUDA out of memory.*ask about fewer rows"),
    ):
        pv.generate(fit, N)


def test_decoded_values_are_the_same_in_parts() -> None:
    torch.manual_seed(0)
    pair = Shared()
    fit = pv.fit(pair, ROWS, **FIT)
    z, w = torch.randn(N, 4), {"w": torch.tensor(0.3)}
    whole = pv.decode(fit, z, given=w)
    pair.layer.most = 10
    with pytest.warns(UserWarning, match="fewer rows at once"):
        assert torch.equal(pv.decode(fit, z, given=w), whole)


@pytest.mark.parametrize("error", SAID.values(), ids=SAID.keys())
@pytest.mark.filterwarnings("ignore:Memory does not suffice")
def test_what_fits_nowhere_is_one_error(error: BaseException, one_chunk: None) -> None:
    fit, layer = fitted_and_layer(error)
    layer.most = 0
    with pytest.raises(OutOfMemoryError, match="ask about fewer rows"):
        pv.encode(fit, ROWS)
    layer.most = N
    assert pv.encode(fit, ROWS).shape == (N, 2)
    assert memory.halvings() == 0


def test_other_errors_are_not_tried_again() -> None:
    asked = []

    def question() -> None:
        asked.append(0)
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    with pytest.raises(RuntimeError, match="size of tensor"):
        memory.halving(question)()
    assert len(asked) == 1


def test_an_error_that_memory_led_to_counts() -> None:
    try:
        try:
            raise MemoryError
        except MemoryError as error:
            raise pv.DataError("The file cannot be read.") from error
    except pv.DataError as error:
        assert short_of_memory(error)
    assert not short_of_memory(pv.DataError("out of memory"))  # the words of a column, say
    one, two = ValueError("one"), KeyError("two")
    one.__context__, two.__cause__ = two, one  # as where an error is raised again from one that it has led to
    assert not short_of_memory(one)


@pytest.mark.filterwarnings("ignore:Memory does not suffice")
@pytest.mark.parametrize("most", [31, 16, 15, 4])
def test_a_fit_says_which_batch_size_fits(most: int, one_chunk: None) -> None:
    pair, layer = small_vae()
    layer.most = most
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    fits = max(size for size in (16, 8, 4, 2, 1) if size <= most)
    with pytest.raises(OutOfMemoryError, match=rf"one of {fits} does: set batch_size={fits}\."):
        pv.fit(pair, ROWS, **FIT)
    assert all(torch.equal(before[name], value) for name, value in pair.state_dict().items())
    assert pv.fit(pair, ROWS, **FIT | {"batch_size": fits}).history


@pytest.mark.filterwarnings("ignore:Memory does not suffice")
def test_a_fit_that_runs_short_later_leaves_its_run(tmp_path: Path, one_chunk: None) -> None:
    pair, layer = small_vae()

    def full(fit: pv.Fit) -> None:
        layer.most = 8 if len(fit.history) == 2 else layer.most

    how = FIT | {"epochs": 4, "checkpoint": tmp_path / "run", "checkpoint_every": 0}
    with pytest.raises(OutOfMemoryError, match="set batch_size=8.*still whole"):
        pv.fit(pair, ROWS, callbacks=[full], **how)
    assert not layer.linear.weight.grad_fn and layer.linear.weight.grad is None
    again, _ = small_vae()
    resumed = pv.fit(again, ROWS, resume=True, **how)
    other, _ = small_vae()
    whole = pv.fit(other, ROWS, **FIT | {"epochs": 4})
    assert [row["elbo"] for row in resumed.history] == [row["elbo"] for row in whole.history]


@pytest.mark.filterwarnings("ignore:Memory does not suffice")
def test_a_step_of_one_row_that_does_not_fit_is_no_matter_of_the_batch_size() -> None:
    pair, layer = small_vae()
    layer.most = 0
    with pytest.raises(OutOfMemoryError, match="not even a step of one row"):
        pv.fit(pair, ROWS, **FIT)


def test_validation_goes_on_in_smaller_chunks(one_chunk: None) -> None:
    pair, layer = small_vae()

    def full(fit: pv.Fit) -> None:
        layer.most = 16

    with pytest.warns(UserWarning, match="fewer rows at once") as told:
        fit = pv.fit(pair, ROWS, validation=ROWS, callbacks=[full], **FIT | {"epochs": 3, "batch_size": 10})
    assert len(told) == 1  # smaller from then on
    assert all(row["validation_elbo"] < 0 for row in fit.history)
