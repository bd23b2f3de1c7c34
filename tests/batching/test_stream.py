"""Data that stay where they are: a Dataset or DataLoader is streamed through the same engine, to the same result."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

import pyrovae as pv
import pyrovae.families as fam


def rows(n: int = 40) -> Tensor:
    torch.manual_seed(5)
    return torch.bernoulli(torch.full((n, 6), 0.4))


def vae() -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
    )


class Lazy(Dataset[Any]):
    """Rows made one at a time, as from a file: `form` says as what."""

    def __init__(self, x: Tensor, form: str = "tensor") -> None:
        self.x, self.form, self.asked = x, form, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        self.asked += 1
        x = self.x[i]
        return {"tensor": x, "array": x.double().numpy(), "tuple": (x, i % 3), "dict": {"x": x}}[self.form]


def history(fit: pv.Fit) -> list[float]:
    return [row[name] for row in fit.history for name in ("elbo", "validation_elbo") if name in row]


OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 12, "seed": 1, "learning_rate": 0.01}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "engine"),
    [("tensor", "eager"), ("tensor", "traced"), ("array", "eager"), ("tuple", "eager"), ("dict", "eager")],
)
def test_a_streamed_fit_is_the_resident_one(form: str, engine: str) -> None:
    """The same order of rows, the same noise, the same weights, bit for bit; a label that the model does not take is left."""
    x = rows()
    one, two = vae(), vae()
    resident = pv.fit(one, x, engine=engine, validation=0.25, **OPTIONS)
    data = Lazy(x, form)
    streamed = pv.fit(two, data, engine=engine, validation=0.25, **OPTIONS)
    assert history(streamed) == history(resident)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    assert data.asked > 3 * 24 and streamed.settings["validation_split"] == resident.settings["validation_split"]


def test_a_loaders_workers_and_collate_are_used() -> None:
    x = rows()
    one, two = vae(), vae()
    pv.fit(one, 1 - x, **OPTIONS)
    loader = DataLoader(
        TensorDataset(x), batch_size=12, num_workers=1, collate_fn=lambda items: 1 - torch.stack([i[0] for i in items])
    )
    options = {k: v for k, v in OPTIONS.items() if k != "batch_size"}  # the loader's
    fit = pv.fit(two, loader, **options)
    assert fit.settings["batch_size"] == 12
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


@pytest.mark.parametrize("stop", [1, 2])
def test_a_streamed_fit_resumes_bit_for_bit(tmp_path: Path, stop: int) -> None:
    x = Lazy(rows())
    options = {**OPTIONS, "epochs": 4, "schedule": pv.schedules.kl_warmup(3)}
    whole, again = vae(), vae()
    true = pv.fit(whole, x, **options)
    run = tmp_path / "run"
    pv.fit(vae(), x, checkpoint=run, callbacks=[lambda f: len(f.history) == stop], **options)
    found = pv.fit(again, x, checkpoint=run, resume=True, **options)
    assert history(found) == history(true)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    with pytest.raises(pv.CheckpointError, match="other data"):
        pv.fit(vae(), Lazy(1 - rows()), checkpoint=run, resume=True, **options)


def test_several_arguments_and_a_transform() -> None:
    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 6))

        def model(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.weight[y], 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor, y: Tensor) -> None:
            pass

    x = rows()
    data = TensorDataset(x, torch.arange(40) % 3)
    options: dict[str, Any] = {**OPTIONS, "transform": lambda b: {**b, "x": 2 * b["x"] + torch.rand_like(b["x"])}}
    one, two = Conditional(), Conditional()
    pv.fit(one, {"x": x, "y": torch.arange(40) % 3}, **options)
    pv.fit(two, data, **options)
    assert torch.equal(one.weight, two.weight) and bool((one.weight != 0).all())


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        while True:
            yield torch.zeros(6)


BAD: dict[str, tuple[Any, str]] = {
    "no order": (Endless(), "Endless has no length and no order.*map-style"),
    "empty": (TensorDataset(torch.empty(0, 6)), "empty"),
    "too few": (Lazy(rows()), "batch_size=50 is larger than the 40"),
}


def drawn(sampler: Any) -> Any:
    return DataLoader(TensorDataset(rows()), batch_size=50, sampler=sampler)


class Reversed(Sampler[int]):
    def __iter__(self) -> Any:
        return iter(range(39, -1, -1))

    def __len__(self) -> int:
        return 40


class Pairs(Sampler[list[int]]):
    def __iter__(self) -> Any:
        return iter([[0, 1], [2, 3]])


BAD |= {
    "weights": (drawn(WeightedRandomSampler([1.0] * 40, 40)), r"WeightedRandomSampler.*Subset\(dataset, indices\)"),
    "replacement": (drawn(RandomSampler(rows(), replacement=True)), "RandomSampler.*Subset"),
    "a part at random": (drawn(RandomSampler(rows(), num_samples=7)), "RandomSampler.*Subset"),
    "ranks": (drawn(DistributedSampler(Lazy(rows()), 2, 0)), "DistributedSampler.*Subset"),
    "a sampler of one's own": (drawn(Reversed()), "sampler=Reversed.*Subset"),
    "a sampler of a part": (drawn(SequentialSampler(range(7))), "SequentialSampler.*Subset"),
    "batches of one's own": (DataLoader(TensorDataset(rows()), batch_sampler=Pairs()), "batch_sampler=Pairs.*Subset"),
    "no batches": (DataLoader(TensorDataset(rows()), batch_size=None), "batch_size=None.*Subset"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_streamed_is_refused(name: str) -> None:
    data, match = BAD[name]
    with pytest.raises(pv.DataError, match=match):
        pv.fit(vae(), data, epochs=1, batch_size=50)


def test_values_outside_the_support_are_found_in_the_first_rows() -> None:
    with pytest.raises(pv.DataError, match="outside the support"):
        pv.fit(vae(), Lazy(rows() + 0.5), **OPTIONS)


PICKED = [3, 30, 7, 8, 21, 22, 2, 39]
LOADERS: dict[str, Callable[[Any], Any]] = {
    "a sampler of indices": lambda data: DataLoader(data, batch_size=4, sampler=SubsetRandomSampler(PICKED)),
    "in batches": lambda data: DataLoader(data, batch_sampler=BatchSampler(SubsetRandomSampler(PICKED), 4, True)),
    "a subset": lambda data: DataLoader(Subset(data, PICKED), batch_size=4, shuffle=True, drop_last=True),
    "a dataset": lambda data: Subset(data, PICKED),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (i > 1)) for i, name in enumerate(LOADERS)]
)
def test_the_rows_of_a_sampler_are_the_rows_of_the_fit(name: str) -> None:
    """Rows that a loader leaves out are neither trained on nor held out."""
    x = rows()
    source = LOADERS[name](TensorDataset(x))
    options = {**OPTIONS, "batch_size": 4, "validation": 0.25, "engine": "eager"}
    found = pv.fit(vae(), source, **options)
    assert history(found) == history(pv.fit(vae(), x[PICKED], **options))
    assert found.settings["num_rows"] == 6
    held_out = pv.fit(vae(), x, **{**options, "validation": source})
    assert history(held_out) == history(pv.fit(vae(), x, **{**options, "validation": x[PICKED]}))


def test_a_batch_sampler_gives_the_batch_size() -> None:
    loader = DataLoader(TensorDataset(rows()), batch_sampler=BatchSampler(RandomSampler(rows()), 8, False))
    assert pv.fit(vae(), loader, epochs=1, engine="eager").settings["batch_size"] == 8


def answers(fitted: pv.Fit, data: Any) -> list[Tensor]:
    """One answer of each question about rows."""
    return [
        pv.importance(fitted, data, 5, seed=0, proposal="guide").elbo,
        pv.log_likelihood(fitted, data, 5, seed=0, proposal="guide"),
        pv.prior_log_likelihood(fitted, data, 5, seed=0),
        pv.posterior(fitted, data, 1, num_particles=5, seed=0, proposal="guide"),
        pv.encode(fitted, data),
        pv.reconstruct(fitted, data),
        pv.kl_by_site(fitted, data)["z"],
        fitted.evaluation_batch(data)["x"],
    ]


@pytest.mark.parametrize(
    "form", ["tensor", *(pytest.param(form, marks=pytest.mark.slow) for form in ("array", "tuple", "dict"))]
)
def test_questions_take_datasets_and_loaders(form: str) -> None:
    x = rows()
    fitted = pv.fit(vae(), x, epochs=1, engine="eager")
    for source in (Lazy(x, form), DataLoader(Lazy(x, form), batch_size=7, shuffle=True)):
        for one, other in zip(answers(fitted, source), answers(fitted, x)):
            assert torch.equal(one, other)
        assert str(pv.check_pair(vae(), source)) == str(fitted.layout)
    assert torch.equal(pv.encode(fitted, LOADERS["a sampler of indices"](Lazy(x))), pv.encode(fitted, x[PICKED]))
    with pytest.raises(pv.DataError, match="WeightedRandomSampler"):
        pv.encode(fitted, BAD["weights"][0])


def test_nothing_is_drawn_from_the_callers_state() -> None:
    pair, data = vae(), Lazy(rows())
    before = torch.get_rng_state()
    pv.fit(pair, data, **OPTIONS)
    assert torch.equal(before, torch.get_rng_state())


class Ending(Lazy):
    """A row that ends the process that loads it, unless that is the one of the fit."""

    def __getitem__(self, i: int) -> Any:
        if i == 7 and get_worker_info() is not None:
            os._exit(1) if self.form == "exits" else os.kill(os.getpid(), signal.SIGKILL)
        return self.x[i]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("how", ["exits", "is killed"])
def test_a_worker_that_ends_is_one_error(how: str) -> None:
    loader = DataLoader(Ending(rows(), how), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(pv.DataError, match=r"A process that loads rows has ended.*num_workers=0 says more"):
        pv.fit(vae(), loader, **OPTIONS)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield rows()
        os._exit(1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_worker_that_ends_between_batches_is_one_error() -> None:
    loader = DataLoader(Endless(), batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(pv.DataError, match=r"A process that loads rows has ended"):
        pv.fit(vae(), loader, steps=20, **{name: value for name, value in OPTIONS.items() if name != "epochs"})


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_what_cannot_be_sent_to_workers_is_one_error() -> None:
    class Local(Lazy):
        pass

    loader = DataLoader(Local(rows()), num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(pv.DataError, match=r"cannot be sent to them.*top level of a module"):
        pv.fit(vae(), loader, **OPTIONS)
