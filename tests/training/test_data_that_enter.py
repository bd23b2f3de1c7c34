"""What a fit and its questions do with data and pairs as they come: of another dtype, in a tuple, with gradients."""

import traceback
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from support.programs import ROWS as ROWS
from support.programs import labels, reals, ssvae, vae
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 20, "progress": False, "engine": "eager", "seed": 0}


# --- float64 ---------------------------------------------------------------------------------------------------------


def in_float64(values: Any) -> Any:
    return values.double().numpy() if values.is_floating_point() else values.numpy()


LIBRARY = (
    "vae",
    "vae-mixture-prior",
    "cvae-label",
    "gmvae",
    "ssvae",
    "ssvae-ordinal",
    "ssregression",
    "adgm",
    "ladder-vae",
)
OWN = ("global-and-local", "regime-summed-out", "pyro-module", "discrete")


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY + OWN)
def test_a_pair_in_float64_takes_arrays_in_float64(name: str, tmp_path: Any) -> None:
    row = ROWS[name]
    pair, data = row.build().double(), row.data()
    data = {n: in_float64(v) for n, v in (data if isinstance(data, dict) else {"x": data}).items()}
    pv.check_pair(pair, {n: v[:20] for n, v in data.items()})
    fitted = pv.fit(pair, data, **QUICK)
    given = {"c": data["c"][:3]} if "c" in data else None
    assert pv.generate(fitted, 3, given=given, site="x").dtype == torch.float64
    assert pv.importance(fitted, data, num_samples=2, proposal="guide").log_likelihood.isfinite().all()
    codes = pv.encode(fitted, data, site=row.latent)
    assert codes.dtype == torch.float64 and torch.get_default_dtype() == torch.float32
    assert pv.reconstruct(fitted, data, site="x").dtype == torch.float64
    if row.rebuilds:
        loaded = pv.load(pv.save(fitted, tmp_path / "run"))
        assert torch.equal(pv.encode(loaded, data, site=row.latent), codes)
        assert all(p.dtype == torch.float64 for p in loaded.pair.parameters())


def test_a_dataset_in_float64_is_streamed_to_a_pair_in_float64() -> None:
    rows = torch.utils.data.TensorDataset(reals().double())
    fitted = pv.fit(vae(fam.Normal(6)).double(), rows, **QUICK)
    assert pv.encode(fitted, rows).dtype == torch.float64
    assert pv.encode(pv.fit(vae(fam.Normal(6)), rows, **QUICK), rows).dtype == torch.float32


# --- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), torch.tensor(3), -3, 2**63 - 1], ids=repr)
def test_any_whole_number_is_a_seed(seed: Any, tmp_path: Any) -> None:
    fits = [pv.fit(vae(fam.Normal(6)), reals(), **{**QUICK, "seed": one}) for one in (seed, int(seed))]
    assert type(fits[0].settings["seed"]) is int
    draws = [pv.generate(fits[0], 2, seed=one) for one in (seed, int(seed))]
    assert torch.equal(*draws)
    pv.save(fits[0], tmp_path / "run")


@pytest.mark.parametrize("seed", [1.5, "a", True, 2**70, [3]], ids=repr)
def test_what_is_no_whole_number_is_no_seed(seed: Any) -> None:
    with pytest.raises(pv.OptionError, match="seed must be a whole number"):
        pv.fit(vae(fam.Normal(6)), reals(), **{**QUICK, "seed": seed})
    fitted = pv.fit(vae(fam.Normal(6)), reals(), **QUICK)
    with pytest.raises(pv.OptionError, match="seed must be a whole number"):
        pv.generate(fitted, 2, seed=seed)


# --- forms of data ---------------------------------------------------------------------------------------------------


@pytest.mark.auto_engine
def test_a_tuple_has_the_arguments_in_their_order() -> None:
    torch.manual_seed(0)
    x, y = torch.bernoulli(torch.full((40, 6), 0.4)), labels()
    pairs = [ssvae(), ssvae()]
    pairs[1].load_state_dict(pairs[0].state_dict())
    histories = [pv.fit(pair, data, **QUICK).history for pair, data in zip(pairs, ((x, y), {"x": x, "y": y}))]
    assert histories[0][0]["elbo"] == histories[1][0]["elbo"]
    with pytest.raises(pv.DataError, match=r"takes \(x\), got a tuple of 2 arrays. Pass a dict"):
        pv.fit(vae(), (x, y), **QUICK)
    with pytest.raises(pv.DataError, match=r"same number of rows, got .*40.*39"):
        pv.fit(ssvae(), (x, y[:39]), **QUICK)


def test_data_that_require_a_gradient_get_none() -> None:
    x = reals().requires_grad_()
    fitted = pv.fit(vae(fam.Normal(6)), x, **QUICK)
    pv.encode(fitted, x)
    assert x.grad is None and x.requires_grad


@pytest.mark.parametrize("shape", [(40, 1), (40,)], ids=["a column", "one number a row"])
def test_labels_in_a_column_are_told_to_be_squeezed(shape: tuple[int, ...]) -> None:
    data = {"x": torch.bernoulli(torch.full((40, 6), 0.4)), "y": labels().reshape(shape)}
    if len(shape) == 1:
        pv.check_pair(ssvae(), data)
        return
    for ask in (pv.check_pair, lambda pair, data: pv.fit(pair, data, **QUICK)):
        with pytest.raises(pv.PairError, match=r"if y\.squeeze\(1\), of shape \(N,\), takes the place of y") as caught:
            ask(ssvae(), data)
        assert "Sample Sites:" not in "".join(traceback.format_exception(caught.value))


# --- what stands in the place of a distribution ----------------------------------------------------------------------


class Torchs(nn.Module):
    def forward(self, z: Tensor) -> Any:
        return torch.distributions.Independent(
            torch.distributions.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 6), 1.0), 1
        )


class Words(nn.Module):
    def forward(self, z: Tensor) -> Any:
        return "normal"


class Silent(dist.Normal):  # type: ignore[misc]
    """A distribution that does not say where its values are."""

    @property
    def support(self) -> Any:
        raise NotImplementedError


class Wordless(dist.TorchDistribution):  # type: ignore[misc]
    """Such a distribution that a user wrote from nothing."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape[:-1], loc.shape[-1:])

    def log_prob(self, value: Tensor) -> Tensor:
        return -(value - self.loc).abs().sum(-1)


class Made(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.net, self.make = nn.Linear(2, 6), make

    def forward(self, z: Tensor) -> Any:
        return self.make(self.net(z))


INSTEAD = {
    "a network": (nn.Linear(2, 6), r"'x' needs a distribution, got a tensor of shape \(\d+, 6\).*pv.Conditional"),
    "of torch": (Torchs(), "'x' has a Independent of torch.distributions.*Use that of pyro.distributions"),
    "words": (Words(), "'x' needs a distribution, got str"),
}


@pytest.mark.parametrize("case", INSTEAD.values(), ids=INSTEAD.keys())
def test_what_is_no_distribution_is_told(case: tuple[Any, str]) -> None:
    likelihood, message = case
    pair = pv.VAE(pv.priors.StandardNormal(2), likelihood, pv.mlp(6, fam.Normal(2), hidden=(4,)))
    for ask in (pv.check_pair, lambda pair, data: pv.fit(pair, data, **QUICK)):
        with pytest.raises(pv.PairError, match=message) as caught:
            ask(pair, reals())
        assert "Sample Sites:" not in "".join(traceback.format_exception(caught.value))


def test_an_encoder_that_is_a_network_is_told() -> None:
    pair = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Normal(6), hidden=(4,)), nn.Linear(6, 2))
    with pytest.raises(pv.PairError, match="'z' needs a distribution, got a tensor"):
        pv.fit(pair, reals(), **QUICK)


@pytest.mark.parametrize("make", [lambda loc: Silent(loc, 1.0).to_event(1), Wordless], ids=["Silent", "Wordless"])
@pytest.mark.filterwarnings("ignore:.*does not define `support`:UserWarning")
def test_a_likelihood_need_not_say_its_support(make: Any) -> None:
    pair = pv.VAE(pv.priors.StandardNormal(2), Made(make), pv.mlp(6, fam.Normal(2), hidden=(4,)))
    pv.check_pair(pair, reals())
    fitted = pv.fit(pair, reals(), validation=0.2, **QUICK)
    assert pv.importance(fitted, reals(), num_samples=2, proposal="guide").log_likelihood.isfinite().all()


def test_errors_of_a_program_have_their_own_words_only() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ torch.ones(3, 6), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(pv.PairError, match="mat1 and mat2 shapes") as caught:
        pv.check_pair(pv.Pair(model, guide), reals())
    assert "Sample Sites:" not in "".join(traceback.format_exception(caught.value))
