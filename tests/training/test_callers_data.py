"""What a user hands over is never changed, whatever the user's own code does with what it is given."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.programs import OwnPrior, ssvae
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pyrovae as pv
import pyrovae.families as fam

OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 10, "seed": 0, "progress": False}


def rows(n: int = 30) -> Tensor:
    return torch.rand(n, 6) * 255


def vae(encoder: nn.Module | None = None, likelihood: nn.Module | None = None) -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(
        prior=pv.priors.StandardNormal(2),
        likelihood=likelihood or pv.mlp(2, fam.ContinuousBernoulli(6), hidden=(8,)),
        encoder=encoder or pv.mlp(6, fam.Normal(2), hidden=(8,)),
    )


def in_place(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"x": batch["x"].div_(255)}


def in_the_dict(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    batch["x"] /= 255
    return batch


def by_numpy(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    batch["x"].numpy()[:] /= 255
    return batch


def by_data(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    batch["x"].data.div_(255)
    return batch


def aside(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"x": batch["x"] / 255}


QUESTIONS: dict[str, Callable[[pv.Fit, Any], Any]] = {
    "importance": lambda f, x: pv.importance(f, x, 5, seed=0, proposal="guide").log_likelihood,
    "log_likelihood": lambda f, x: pv.log_likelihood(f, x, 5, seed=0, proposal="guide"),
    "prior_log_likelihood": lambda f, x: pv.prior_log_likelihood(f, x, 5, seed=0),
    "posterior": lambda f, x: pv.posterior(f, x, 1, num_particles=5, seed=0, proposal="guide"),
    "encode": pv.encode,
    "reconstruct": pv.reconstruct,
    "kl_by_site": lambda f, x: pv.kl_by_site(f, x)["z"],
    "evaluation_batch": lambda f, x: f.evaluation_batch(x)["x"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transform", "source", "engine"),
    [
        (in_place, "tensor", "eager"),
        (in_place, "validation", "eager"),
        (in_the_dict, "view", "eager"),
        (in_place, "numpy", "eager"),
        (in_place, "dataset", "traced"),
        pytest.param(in_the_dict, "tensor", "traced", marks=pytest.mark.slow),
    ],
)
def test_a_transform_may_write_into_what_it_is_given(transform: Any, source: str, engine: str) -> None:
    """The fit, its checks and every question are those of a transform that makes a new tensor; the rows stay."""
    x = rows()
    data: Any = {"view": x[:20], "numpy": x.numpy(), "dataset": TensorDataset(x)}.get(source, x)
    kept = x.clone()
    options = {**OPTIONS, "engine": engine, "validation": x if source == "validation" else 0.2}
    found = pv.fit(vae(), data, transform=transform, **options)
    wanted = pv.fit(vae(), data, transform=aside, **options)
    assert torch.equal(x, kept) and "engine_notes" not in found.settings
    assert [row["elbo"] for row in found.history] == [row["elbo"] for row in wanted.history]
    for ask in list(QUESTIONS.values()) if source == "tensor" else [pv.encode, pv.reconstruct]:
        assert torch.equal(ask(found, data), ask(wanted, data)) and torch.equal(x, kept)


@pytest.mark.parametrize("transform", [by_numpy, by_data])
def test_not_even_behind_torchs_back(transform: Any) -> None:
    x = rows()
    kept = x.clone()
    found = pv.fit(vae(), x, transform=transform, engine="eager", **OPTIONS)
    for ask in QUESTIONS.values():
        ask(found, x)
    assert torch.equal(x, kept)


class Writes(nn.Module):
    """A network that writes into its input: always, in training only, or for rows with a missing entry."""

    def __init__(self, net: nn.Module, when: str) -> None:
        super().__init__()
        self.net, self.when = net, when

    def forward(self, x: Tensor) -> Any:
        if self.when == "training" and self.training:
            x *= 0.5
        elif self.when == "layer":
            x = nn.functional.relu(x, inplace=True)
        elif self.when == "always":
            x.clamp_(max=0.5)
        elif self.when == "behind torch's back":
            x.data.mul_(0.5)
        elif self.when == "by NumPy":
            x.numpy()[:] = 0
        elif self.when == "missing" and x.isnan().any():
            x[x.isnan()] = 0
        return self.net(x)


class Halving(dist.Normal):
    """A distribution whose log-density writes into the value."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value.mul_(0.5))


class Model(nn.Module):
    """A pair whose model writes into what it observes, or whose likelihood does."""

    def __init__(self, family: Any = dist.Normal) -> None:
        super().__init__()
        self.loc, self.family = nn.Parameter(torch.zeros(6)), family

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            seen = x.sub_(x.mean(0)) if self.family is dist.Normal else x
            pyro.sample("x", self.family(self.loc, 1.0).to_event(1), obs=seen)

    def guide(self, x: Tensor) -> None:
        pass


def encoder() -> nn.Module:
    return pv.mlp(6, fam.Normal(2), hidden=(8,))


WRITERS: dict[str, tuple[Callable[[], Any], str]] = {
    "always": (lambda: vae(Writes(encoder(), "always")), "The guide writes into its argument 'x'"),
    "a layer in place": (
        lambda: vae(Writes(encoder(), "layer")),
        "The guide writes into its argument 'x'.*inplace=True",
    ),
    "in training only": (lambda: vae(Writes(encoder(), "training")), "The guide writes into its argument 'x'"),
    "missing entries": (
        lambda: vae(Writes(encoder(), "missing"), pv.observed_only(pv.mlp(2, fam.Normal(6), hidden=(8,)))),
        "The guide writes into its argument 'x'",
    ),
    "behind torch's back": (
        lambda: vae(Writes(encoder(), "behind torch's back")),
        "The pair writes into its argument 'x'",
    ),
    "by NumPy": (lambda: vae(Writes(encoder(), "by NumPy")), "The pair writes into its argument 'x'"),
    "the model": (Model, "The model writes into its argument 'x'"),
    "the likelihood": (lambda: Model(Halving), "The likelihood of site 'x' writes"),
}


@pytest.mark.parametrize(
    ("name", "engine"), [*((name, "eager") for name in WRITERS), ("always", "traced"), ("in training only", "traced")]
)
def test_a_pair_that_writes_into_its_arguments_is_refused(name: str, engine: str) -> None:
    """Before any step: the guide's writing would change what the model observes."""
    build, match = WRITERS[name]
    x = rows() / 255
    x[0, 0] = float("nan") if name == "missing entries" else 0.0
    kept = x.clone()
    with pytest.raises(pv.PairError, match=match):
        pv.fit(build(), x, engine=engine, **OPTIONS)
    if name != "in training only":
        with pytest.raises(pv.PairError, match=match):
            pv.check_pair(build(), x)
    assert torch.equal(x.nan_to_num(-1), kept.nan_to_num(-1))


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_notice_rows_that_the_fit_did_not_have(question: str) -> None:
    """An encoder that fills in missing entries, of rows that have none in the fit."""
    likelihood = pv.observed_only(pv.mlp(2, fam.Normal(6, scale=100.0), hidden=(8,)))
    fitted = pv.fit(vae(Writes(encoder(), "missing"), likelihood), rows(), engine="eager", **OPTIONS)
    for x in (rows(), rows().numpy()):
        x[-1, 0] = float("nan")
        kept = torch.as_tensor(x).clone()
        if question in ("prior_log_likelihood", "evaluation_batch"):  # they do not run the guide
            QUESTIONS[question](fitted, x)
        else:
            with pytest.raises(pv.PairError, match="The guide writes into its argument 'x'"):
                QUESTIONS[question](fitted, x)
        assert torch.equal(torch.as_tensor(x).nan_to_num(-1), kept.nan_to_num(-1))


class Overwrites(nn.Module):
    """A network of z that zeroes its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = pv.mlp(2, fam.Normal(6), hidden=(8,))

    def forward(self, z: Tensor) -> Any:
        return self.net(z if torch.is_grad_enabled() else z.zero_())


def test_given_values_stay() -> None:
    fitted = pv.fit(vae(likelihood=Overwrites()), torch.rand(30, 6), engine="eager", **OPTIONS)
    z = torch.ones(4, 2)
    pv.decode(fitted, z)
    pv.generate(fitted, 4, given={"z": z})
    pv.simulate(fitted, 4, given={"z": z.numpy()})
    assert torch.equal(z, torch.ones(4, 2))


def test_classify_leaves_rows_and_labels() -> None:
    x, y = torch.bernoulli(torch.full((40, 6), 0.4)), torch.arange(40) % 3
    y[12:] = -1
    data = {"x": x, "y": y}
    kept = {name: value.clone() for name, value in data.items()}

    def masked(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        batch["x"].mul_(batch["x"])
        return batch

    fitted = pv.fit(ssvae(), data, transform=masked, **OPTIONS)
    pv.classify(fitted, data, num_samples=5)
    assert all(torch.equal(data[name], kept[name]) for name in data)


def test_the_graph_leaves_rows() -> None:
    x = rows()
    kept = x.clone()
    pv.graph_text(vae(Writes(encoder(), "always")), {"x": x})
    assert torch.equal(x, kept)


def test_a_prior_of_ones_own_is_not_disturbed() -> None:
    """A program that writes into tensors of its own is as it was."""

    class Builds(OwnPrior):
        def forward(self) -> Any:
            scale = torch.zeros(2)
            scale[:] = 1.0
            return dist.Normal(self.loc, scale).to_event(1)

    pair = vae()
    pair.prior = Builds()
    assert len(pv.fit(pair, torch.rand(30, 6), **OPTIONS).history) == 2
