"""Two kinds of data with one code: a product of experts is the posterior where every expert is right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from support.pairs import unfitted
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.distributions import product_of_experts, product_of_normals

NAN = float("nan")


def normal(loc: Tensor | float, scale: Tensor | float) -> Any:
    return dist.Normal(torch.as_tensor(loc).double(), torch.as_tensor(scale).double()).to_event(1)


# --- the product -----------------------------------------------------------------------------------------------------


def test_a_product_of_experts_is_proportional_to_the_product_of_those_that_have_seen_something() -> None:
    """Up to a constant of z, and for each row with its own experts."""
    torch.manual_seed(0)
    experts = [normal(torch.randn(4, 2), torch.rand(4, 2) + 0.3) for _ in range(3)]
    seen = [None, torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])]
    found = product_of_experts(experts, seen)
    z = torch.randn(50, 4, 2, dtype=torch.float64)
    weights = [torch.ones(4) if s is None else s.double() for s in seen]
    total = sum(w * d.log_prob(z) for w, d in zip(weights, experts))
    constant = found.log_prob(z) - total
    assert torch.allclose(constant, constant[:1].expand_as(constant), atol=1e-9)
    assert torch.allclose(found.mean[3], experts[0].mean[3]) and torch.allclose(
        found.variance[3], experts[0].variance[3]
    )
    both = product_of_normals(experts[0], experts[1])
    assert torch.allclose(product_of_experts(experts[:2]).mean, both.mean)
    assert torch.allclose(product_of_experts(experts[:2]).variance, both.variance)


@pytest.mark.parametrize(
    ("experts", "seen", "said"),
    [
        ([], None, "got none"),
        ([normal([0.0], 1.0), dist.Laplace(torch.zeros(1), 1.0).to_event(1)], None, r"Laplace \(1,\)"),
        ([normal([0.0], 1.0), normal([0.0, 1.0], 1.0)], None, r"Normal \(1,\) and Normal \(2,\)"),
        ([normal([0.0], 1.0)], [None, None], "1 experts need as many entries of `seen`, got 2"),
    ],
)
def test_what_is_no_product(experts: list[Any], seen: Any, said: str) -> None:
    with pytest.raises(pv.PairError, match=said):
        product_of_experts(experts, seen)


# --- the graph -------------------------------------------------------------------------------------------------------


class Line(nn.Module):
    """`p(x | z) = N(a z, s^2)`, or with `of_z` the same as a function of z: `N(x / a, (s / a)^2)`."""

    def __init__(self, slope: float, scale: float, of_z: bool) -> None:
        super().__init__()
        self.slope, self.scale, self.of_z = nn.Parameter(torch.tensor(slope, dtype=torch.float64)), scale, of_z

    def forward(self, given: Tensor) -> Any:
        if self.of_z:
            return dist.Normal(given / self.slope, self.scale / self.slope).to_event(1)
        return dist.Normal(self.slope * given, self.scale).to_event(1)


def lines(joint: Any = None) -> pv.MultimodalVAE:
    prior = dist.Normal(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)).to_event(1)
    return pv.MultimodalVAE(
        prior, Line(1.5, 0.6, False), Line(0.8, 0.4, False), Line(1.5, 0.6, True), Line(0.8, 0.4, True), joint
    )


def rows() -> dict[str, Tensor]:
    """Eight rows with both kinds, with one of them, and with none."""
    torch.manual_seed(1)
    x1, x2 = torch.randn(2, 8, 1, dtype=torch.float64)
    x1[4:6], x2[2:4], x1[6:], x2[6:] = NAN, NAN, NAN, NAN
    return {"x1": x1, "x2": x2}


def true_log_p(data: dict[str, Tensor]) -> Tensor:
    slopes, noise = torch.tensor([1.5, 0.8]).double(), torch.tensor([0.36, 0.16]).double()
    covariance = slopes[:, None] * slopes + noise.diag()
    found = []
    for pair in torch.cat([data["x1"], data["x2"]], 1):
        here = ~pair.isnan()
        own = covariance[here][:, here]
        x = pair[here]
        quadratic = x @ torch.linalg.solve(own, x) if len(x) else x.new_zeros(())
        logdet = torch.logdet(own) if len(x) else x.new_zeros(())
        found.append(-0.5 * (quadratic + logdet + len(x) * math.log(2 * math.pi)))
    return torch.stack(found)


def test_with_right_experts_the_guide_is_the_posterior_whatever_is_missing() -> None:
    """So every draw has the same weight, log p of what was observed, and rows without anything have log p = 0."""
    data = rows()
    found = pv.importance(unfitted(lines(), data), data, 20, proposal="guide", seed=0)
    assert torch.allclose(found.log_likelihood, true_log_p(data), atol=1e-9)
    assert torch.allclose(found.elbo, true_log_p(data), atol=1e-9)


def test_a_mixture_of_products_gives_the_same_log_p_by_importance_sampling() -> None:
    """It is the posterior where one kind is there or none; complete rows have a lower ELBO. False alarms: 1 in 100,000."""
    data = rows()
    guide = unfitted(lines(pv.distributions.MixtureOfProducts()), data)
    found = pv.importance(guide, data, 4000, proposal="guide", seed=0)
    true, complete = true_log_p(data), slice(0, 2)
    assert torch.allclose(found.log_likelihood[2:], true[2:], atol=1e-9)
    assert torch.allclose(found.elbo[2:], true[2:], atol=1e-9)
    error = found.standard_error[complete]
    assert bool((error > 1e-4).all()) and bool((error < 0.05).all())
    assert bool(((found.log_likelihood - true)[complete].abs() < 4.5 * error).all())
    assert bool((found.elbo < true - 0.05)[complete].all())


def test_one_kind_is_drawn_given_the_other() -> None:
    """E[x2 | x1] and its variance, in closed form; rows that lack nothing stay as they are."""
    data = rows()
    imputed = pv.impute(unfitted(lines(), data), data, 4000, num_particles=4000, proposal="guide", seed=0)
    x1 = data["x1"][2:4]
    gain = 0.8 * 1.5 / (1.5**2 + 0.36)
    variance = 0.8**2 + 0.16 - gain * 0.8 * 1.5
    draws = imputed.draws["x2"][:, 2:4]
    error = 5 * math.sqrt(variance / 4000)  # false alarms: fewer than 1 in 100,000
    assert torch.allclose(draws.mean(0), gain * x1, atol=error)
    assert torch.allclose(draws.var(0), torch.full_like(x1, variance), rtol=5 * math.sqrt(2 / 4000))
    assert torch.equal(imputed.complete(7)["x1"][:4], data["x1"][:4])


# --- hiding kinds ----------------------------------------------------------------------------------------------------


def test_rows_keep_one_of_the_kinds_that_they_have() -> None:
    """Each kind is kept alone in a third of the complete rows; a row that has one kind keeps it. Five standard errors."""
    torch.manual_seed(0)
    x1, x2 = torch.zeros(9000, 2), torch.zeros(9000)
    x1[6000:], x2[3000:6000] = NAN, NAN  # complete, without x2, without x1
    hidden = pv.transforms.HideKinds("x1", "x2")({"x1": x1, "x2": x2})
    has1, has2 = ~hidden["x1"].isnan().all(1), ~hidden["x2"].isnan()
    assert bool((has1 | has2).all())
    error = 5 * math.sqrt(2 / 9 / 3000)
    for share in ((has1 & has2)[:3000], (has1 & ~has2)[:3000], (~has1 & has2)[:3000]):
        assert abs(share.double().mean().item() - 1 / 3) < error
    assert bool(has1[3000:6000].all()) and not bool(has2[3000:6000].any())
    assert bool(has2[6000:].all()) and not bool(has1[6000:].any())
    assert not bool(x1[:6000].isnan().any())  # the rows that were given are not changed
    always = pv.transforms.HideKinds("x1", "x2", probability=1.0)({"x1": x1, "x2": x2})
    assert not bool((~always["x1"].isnan().all(1) & ~always["x2"].isnan()).any())


@pytest.mark.parametrize(
    ("arguments", "probability", "said"),
    [
        (("x1",), None, "two or more"),
        (("x1", "x1"), None, "two or more"),
        ((["x1", "x2"],), None, "one after the other"),
        (("x1", 2), None, "two or more"),
        (("x1", "x2"), 1.5, "from 0 to 1"),
        (("x1", "x2"), "0.5", "from 0 to 1"),
    ],
)
def test_what_cannot_be_hidden(arguments: tuple[Any, ...], probability: Any, said: str) -> None:
    with pytest.raises(pv.OptionError, match=said):
        pv.transforms.HideKinds(*arguments, probability=probability)


def test_classes_are_a_kind_of_data_as_floats() -> None:
    """As integers they have no mark for what is hidden, which is told before the fit."""
    torch.manual_seed(0)
    one, two = pv.mlp(1, fam.Normal(3), hidden=(4,)), pv.mlp(1, fam.Categorical((), 3), hidden=(4,))
    net = nn.Sequential(pv.nets.OneHot(3), nn.Linear(3, 2), nn.Unflatten(-1, (2, 1)))
    experts = pv.mlp(3, fam.Normal(1), hidden=(4,)), pv.Conditional(net, fam.Normal(1))
    pair = pv.MultimodalVAE(pv.priors.StandardNormal(1), one, two, *experts)
    data = {"x1": torch.randn(20, 3), "x2": torch.randint(3, (20,))}
    hide = pv.transforms.HideKinds("x1", "x2")
    with pytest.raises(pv.DataError, match=r"'x2' is int64: give it as floats"):
        pv.fit(pair, data, epochs=1, transform=hide, progress=False)
    data["x2"] = torch.where(torch.arange(20) < 5, NAN, data["x2"])
    fitted = pv.fit(pair, data, epochs=1, transform=hide, engine="eager", progress=False)
    found = pv.importance(fitted, data, 500, proposal="laplace", seed=0)
    exact = pv.quadrature(fitted, data).log_likelihood
    assert bool(((found.log_likelihood - exact).abs() < 5 * found.standard_error + 1e-6).all())
    drawn = pv.impute(fitted, data, seed=0).complete(0)["x2"]
    assert set(drawn.tolist()) <= {0.0, 1.0, 2.0} and torch.equal(drawn[5:], data["x2"][5:])


def small(latent: int = 2, joint: Any = None) -> pv.MultimodalVAE:
    one, two = pv.mlp(latent, fam.Normal(3), hidden=(8,)), pv.mlp(latent, fam.Bernoulli(4), hidden=(8,))
    experts = pv.mlp(3, fam.Normal(latent), hidden=(8,)), pv.mlp(4, fam.Normal(latent), hidden=(8,))
    return pv.MultimodalVAE(pv.priors.StandardNormal(latent), one, two, *experts, joint)


def test_a_mixture_is_fitted_by_traced_steps_and_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = {"x1": torch.randn(40, 3), "x2": torch.bernoulli(torch.full((40, 4), 0.5))}
    data["x2"][:10], data["x1"][10:15] = NAN, NAN
    pair = small(joint=pv.distributions.MixtureOfProducts())
    fitted = pv.fit(pair, data, epochs=2, batch_size=20, seed=0, engine="traced", progress=False)
    assert "engine_notes" not in fitted.settings  # the trace serves
    assert all(torch.isfinite(p).all() for p in pair.parameters())
    pv.save(fitted, tmp_path / "run")
    again = pv.load(tmp_path / "run")
    assert isinstance(again.pair.joint, pv.distributions.MixtureOfProducts)  # type: ignore[attr-defined]
    one, two = (pv.importance(fit, data, 5, proposal="guide", seed=0).log_likelihood for fit in (fitted, again))
    assert torch.equal(one, two) and bool(torch.isfinite(one).all())


@pytest.mark.parametrize(
    ("joint", "said"),
    [(pv.distributions.MixtureOfProducts, "got the class MixtureOfProducts"), ("mopoe", "got 'mopoe'")],
)
def test_what_cannot_join_experts_is_told_at_once(joint: Any, said: str) -> None:
    with pytest.raises(pv.PairError, match=said):
        small(joint=joint)


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_kinds_are_hidden_in_training_alone(engine: str) -> None:
    torch.manual_seed(0)
    data = {"x1": torch.randn(40, 3), "x2": torch.bernoulli(torch.full((40, 4), 0.5))}
    data["x2"][:10] = NAN
    given = {name: values.clone() for name, values in data.items()}
    hide = pv.transforms.HideKinds("x1", "x2")
    fitted = pv.fit(small(), data, epochs=3, batch_size=20, seed=0, transform=hide, engine=engine, progress=False)
    assert all(math.isfinite(row["elbo"]) for row in fitted.history)
    seen = fitted.evaluation_batch(data)
    for name, values in data.items():
        assert torch.equal(seen[name].nan_to_num(-9), values.nan_to_num(-9))
        assert torch.equal(values.nan_to_num(-9), given[name].nan_to_num(-9))
    completed = pv.impute(fitted, data, seed=0).complete(0)
    assert set(completed) == {"x1", "x2"} and torch.equal(completed["x1"], data["x1"])


def test_an_argument_that_is_not_there_is_told_before_the_fit() -> None:
    data = {"x1": torch.randn(20, 3), "x2": torch.zeros(20, 4)}
    with pytest.raises(pv.DataError, match=r"no argument 'x3', only \['x1', 'x2'\]"):
        pv.fit(small(), data, epochs=1, transform=pv.transforms.HideKinds("x1", "x3"), progress=False)
