"""An ensemble is the average of its members' densities, and answers as any fit does."""

import math
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from support.programs import ROWS, vae
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.errors import OptionError


def fit(seed: int, x: Tensor) -> pv.Fit:
    torch.manual_seed(seed)
    return pv.fit(vae(), x, epochs=20, batch_size=20, learning_rate=0.03, seed=seed, engine="eager", progress=False)


@pytest.fixture(scope="module")
def data() -> Tensor:
    torch.manual_seed(0)
    return torch.bernoulli(torch.full((40, 6), 0.4))


@pytest.fixture(scope="module")
def fits(data: Tensor) -> list[pv.Fit]:
    return [fit(seed, data) for seed in range(3)]


@pytest.fixture(scope="module")
def together(fits: list[pv.Fit]) -> pv.Fit:
    return pv.ensemble(fits)


def test_log_p_is_that_of_the_average_density(fits: list[pv.Fit], together: pv.Fit, data: Tensor) -> None:
    """Within 5 standard errors of both estimates in each of 10 rows, twice: false alarms 1e-5."""
    each = [pv.importance(one, data[:10], 2000, proposal="guide", seed=1) for one in fits]
    log_p = torch.stack([one.log_likelihood for one in each])
    average = log_p.logsumexp(0) - math.log(3)
    error = torch.stack([one.standard_error for one in each]).amax(0)
    assert ((log_p - average).abs() > 0.02).any()  # members differ by more than what is claimed
    for proposal in ("guide", "refined"):
        found = pv.importance(together, data[:10], 2000, proposal=proposal, seed=0)
        assert found.proposal == proposal
        both = (found.standard_error.square() + error.square()).sqrt()
        assert ((found.log_likelihood - average).abs() < 5 * both + 1e-4).all()
        bound = torch.stack([one.elbo for one in each]).mean().item()
        assert found.elbo.mean().item() == pytest.approx(bound, abs=0.05)


def test_what_is_drawn_is_drawn_by_one_member(fits: list[pv.Fit], together: pv.Fit) -> None:
    z = torch.zeros(5, 2)
    means = [pv.generate(one, 5, given={"z": z}, mean=True)[0] for one in fits]
    for seed in range(4):
        found = pv.generate(together, 5, given={"z": z}, mean=True, seed=seed)
        assert torch.allclose(found, found[0].expand(5, -1), atol=1e-6)
        assert sum(torch.allclose(found[0], mean, atol=1e-5) for mean in means) == 1
    each = pv.generate(together, 5, given={"z": z}, mean=True, each_row=True, seed=0)
    assert len(each.unique(dim=0)) > 1
    members = pv.global_posterior(together, 600, seed=0)["member"].bincount(minlength=3)
    assert ((members - 200).abs() < 60).all()  # sd 11.5 each: false alarms 6e-7


def test_it_is_saved_and_loaded(together: pv.Fit, data: Tensor, tmp_path: Path) -> None:
    loaded = pv.load(pv.save(together, tmp_path / "run"))
    answers = [pv.log_likelihood(one, data, 20, proposal="guide", seed=0) for one in (together, loaded)]
    assert torch.equal(*answers)
    assert pv.reconstruct(loaded, data, seed=0).shape == (40, 6)
    assert pv.posterior(loaded, data, 5, num_particles=50, seed=0).shape == (5, 40, 2)


def test_classes_are_those_of_the_average_joint_density() -> None:
    row = ROWS["ssvae"]
    data = row.data()
    fits = []
    for seed in range(2):
        torch.manual_seed(seed)
        options = {"epochs": 5, "batch_size": 20, "learning_rate": 0.02, "seed": seed, "engine": "eager"}
        fits.append(pv.fit(row.build(), data, progress=False, **options))
    # log p(x, y) of rows with each label
    x, labels = data["x"][:6], range(3)
    joint = torch.stack(
        [
            torch.stack(
                [
                    pv.log_likelihood(one, {"x": x, "y": torch.full((6,), y)}, 2000, proposal="guide", seed=0)
                    for y in labels
                ]
            )
            for one in fits
        ]
    )
    wanted = joint.logsumexp(0).softmax(0).T
    found = pv.classify(pv.ensemble(fits), x, site="y", num_samples=2000, proposal="guide", seed=1)
    assert torch.allclose(found.joint, wanted, atol=0.03)


def unlike(likelihood: Any = None, prior: Any = None) -> pv.VAE:
    net = likelihood or pv.mlp(2, fam.Bernoulli(6), hidden=(4,))
    return pv.VAE(prior or pv.priors.StandardNormal(2), net, pv.mlp(6, fam.Normal(2), hidden=(4,)))


def untrained(pair: pv.VAE, x: Tensor, **options: Any) -> pv.Fit:
    return pv.fit(pair, x, epochs=0, engine="eager", progress=False, **options)


def test_members_of_the_same_shapes_that_differ_in_what_they_compute(data: Tensor) -> None:
    """Activations, also of layers of torch; numbers of priors; and functions, which may differ in what they enclose."""

    def sequential(activation: nn.Module) -> pv.Conditional:
        return pv.Conditional(nn.Sequential(nn.Linear(2, 6), activation, nn.Unflatten(-1, (1, 6))), fam.Bernoulli(6))

    def normal(scale: float) -> Any:
        return dist.Normal(torch.zeros(2), torch.full((2,), scale)).to_event(1)

    alike = untrained(unlike(), data)
    for one, other in (
        (alike, untrained(unlike(pv.mlp(2, fam.Bernoulli(6), hidden=(4,), activation=nn.Tanh)), data)),
        (untrained(unlike(prior=normal(1.0)), data), untrained(unlike(prior=normal(2.0)), data)),
        (untrained(unlike(sequential(nn.ReLU())), data), untrained(unlike(sequential(nn.Tanh())), data)),
        (untrained(unlike(sequential(nn.LeakyReLU(0.1))), data), untrained(unlike(sequential(nn.LeakyReLU())), data)),
    ):
        with pytest.raises(OptionError, match="of one structure"):
            pv.ensemble([one, other])

    with pytest.raises(OptionError, match="of one structure"):
        pv.weights.Ensemble([unlike(sequential(nn.ReLU())), unlike(sequential(nn.Tanh()))])

    def scaled(by: float) -> Any:
        return lambda batch: {"x": (batch["x"] * by).round()}

    with pytest.raises(OptionError, match="the same object"):
        pv.ensemble([untrained(unlike(), data, transform=scaled(by)) for by in (0.3, 1.0)])
    same = scaled(1.0)
    assert pv.ensemble([untrained(unlike(), data, transform=same) for _ in "ab"]).transform is same


def test_layers_that_take_no_weights_of_all_members_at_once(data: Tensor) -> None:
    """Such pairs are refused, whether they would fail or answer wrongly, as weight_norm would."""

    def after(layer: nn.Module) -> nn.Module:
        net = nn.Sequential(nn.Linear(2, 4), layer, nn.Linear(4, 6), nn.Unflatten(-1, (1, 6)))
        return pv.Conditional(net, fam.Bernoulli(6))

    for build in (
        lambda: after(weight_norm(nn.Linear(4, 4))),
        lambda: after(nn.PReLU(4)),
        lambda: after(nn.GroupNorm(2, 4)),
    ):
        with pytest.raises(OptionError, match="layer normalisation"):
            pv.ensemble([untrained(unlike(build()), data) for _ in "ab"])
    images = data[:, :4].reshape(-1, 1, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    encoder = [pv.conv((1, 4, 4), fam.Normal(2), channels=(2,)) for _ in "ab"]
    likelihood = [pv.conv(2, fam.Bernoulli((1, 4, 4)), channels=(2,)) for _ in "ab"]
    pairs = [pv.VAE(pv.priors.StandardNormal(2), *parts) for parts in zip(likelihood, encoder)]
    with pytest.raises(OptionError, match="convolutions"):
        pv.ensemble([untrained(pair, images) for pair in pairs])
    assert pv.ensemble([untrained(unlike(after(nn.LayerNorm(4))), data) for _ in "ab"])


@pytest.mark.parametrize("family", [fam.LogNormal, fam.Beta, fam.Multinomial, fam.PowerSpherical])
def test_families_whose_support_has_no_zeros(family: Any) -> None:
    """The layers are tried on rows that the model draws, where it can."""
    x = torch.rand(10, 6) * 0.8 + 0.1
    x = (x * 9).round() if family is fam.Multinomial else x / x.norm(dim=1, keepdim=True)
    assert pv.ensemble([untrained(unlike(pv.mlp(2, family(6), hidden=(4,))), x) for _ in "ab"])


def test_members_that_are_not_alike(fits: list[pv.Fit], data: Tensor) -> None:
    for few in ([], fits[:1], [fits[0], "other"], None, fits[0]):
        with pytest.raises(OptionError, match="at least two fits"):
            pv.ensemble(few)  # type: ignore[arg-type]
    wider = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6), hidden=(9,)), pv.mlp(6, fam.Normal(2)))
    with pytest.raises(OptionError, match="one structure"):
        pv.ensemble([fits[0], pv.fit(wider, data, epochs=1, engine="eager", progress=False)])
    with pytest.raises(OptionError, match="no ensembles"):
        pv.ensemble([pv.ensemble(fits)] * 2)
    with pytest.raises(OptionError, match="at least two modules"):
        pv.weights.Ensemble([vae(), pv.Pair(print, print)])
    functions = [pv.fit(ROWS["bare-functions"].build(), data, epochs=1, engine="eager", progress=False) for _ in "ab"]
    with pytest.raises(OptionError, match=r"pyro\.param"):
        pv.ensemble(functions)
    other = pv.fit(vae(), torch.rand(40, 6).round(), epochs=1, engine="eager", transform=nn.Identity(), progress=False)
    with pytest.raises(OptionError, match="transform"):
        pv.ensemble([fits[0], other])
