"""Hierarchies of latent variables: what a level says when those above are held, and guides that are exact."""

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from support.pairs import unfitted
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.distributions import product_of_normals

BOUND = 5.0  # standard errors


# --- the product of two Normals --------------------------------------------------------------------------------------


def normal(*shape: int) -> Any:
    loc, scale = torch.randn(*shape, dtype=torch.float64), torch.rand(*shape, dtype=torch.float64) + 0.2
    return dist.Normal(loc, scale).to_event(1)


def test_product_of_normals_is_the_normalised_product() -> None:
    a, b = normal(3), normal(3)
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    product = (a.base_dist.log_prob(z[:, None]) + b.base_dist.log_prob(z[:, None])).exp()  # (4001, 3)
    wanted = product / torch.trapezoid(product, z, dim=0)
    found = product_of_normals(a, b)
    torch.testing.assert_close(found.base_dist.log_prob(z[:, None]).exp(), wanted, rtol=1e-9, atol=1e-12)
    precision = a.base_dist.scale**-2 + b.base_dist.scale**-2
    torch.testing.assert_close(found.base_dist.scale**-2, precision)


def test_product_of_normals_broadcasts_and_commutes() -> None:
    a, b = normal(5, 1, 2), normal(4, 2)
    found, other = product_of_normals(a, b), product_of_normals(b, a)
    assert found.batch_shape == (5, 4) and found.event_shape == (2,)
    torch.testing.assert_close(found.mean, other.mean)
    torch.testing.assert_close(found.variance, other.variance)
    wide = dist.Normal(torch.zeros(2).double(), 1e6).to_event(1)  # says nothing
    torch.testing.assert_close(product_of_normals(b, wide).mean, b.mean)
    sure = dist.Normal(torch.tensor([1.0, 2.0]), 1e-4).to_event(1)  # float32, the least scale of a family
    both = product_of_normals(sure, sure)
    assert both.mean.tolist() == [1.0, 2.0]
    torch.testing.assert_close(both.stddev, torch.full((2,), 1e-4 / math.sqrt(2)))


@pytest.mark.parametrize(
    "other", [normal(3), dist.Laplace(torch.zeros(2), 1.0).to_event(1), fam.FullNormal(2)(torch.zeros(5))]
)
def test_product_of_others_is_refused(other: Any) -> None:
    with pytest.raises(pv.PairError, match="product_of_normals needs Normals"):
        product_of_normals(normal(2), other)


# --- two levels whose posterior is known -----------------------------------------------------------------------------

A, S, B, T = torch.tensor([0.8, 0.0]).double(), 0.6, 1.5, 0.5  # z1 = A z2 + S e, x = B z1 + T e; dimension by dimension
UPPER = A**2 + S**2  # Var z1
WHOLE = B**2 * UPPER + T**2  # Var x


class Line(nn.Module):
    """N(slope parent, scale^2), without anything to learn."""

    def __init__(self, slope: Any, scale: Any) -> None:
        super().__init__()
        self.slope, self.scale = (torch.as_tensor(v, dtype=torch.float64).expand(2) for v in (slope, scale))

    def forward(self, parent: Tensor) -> Any:
        return dist.Normal(self.slope * parent, self.scale).to_event(1)


PRIOR = dist.Normal(torch.zeros(2).double(), torch.ones(2).double()).to_event(1)


def bottom_up() -> pv.HierarchicalVAE:
    """The guide is the posterior: q(z1|x) q(z2|z1)."""
    encoders = [Line(B * UPPER / WHOLE, (UPPER * T**2 / WHOLE).sqrt()), Line(A / UPPER, (S**2 / UPPER).sqrt())]
    return pv.HierarchicalVAE(PRIOR, [Line(A, S)], Line(B, T), encoders)


def ladder() -> pv.LadderVAE:
    """The guide is the posterior: what x says of z1, and of z2, is all that is to be added to the model."""
    evidence = [Line(1 / B, T / B), Line(A * B / WHOLE, (1 - (A * B) ** 2 / WHOLE).sqrt())]
    return pv.LadderVAE(PRIOR, [Line(A, S)], Line(B, T), [nn.Identity(), nn.Identity()], evidence)


@pytest.fixture(params=[bottom_up, ladder])
def exact(request: pytest.FixtureRequest) -> tuple[pv.Fit, Tensor]:
    x = WHOLE.sqrt() * torch.randn(500, 2, dtype=torch.float64)
    return unfitted(request.param(), x), x


def test_a_guide_of_levels_can_be_the_exact_posterior(exact: tuple[pv.Fit, Tensor]) -> None:
    fitted, x = exact
    found = pv.importance(fitted, x, num_samples=20, seed=0, proposal="guide")
    wanted = dist.Normal(torch.zeros(2).double(), WHOLE.sqrt()).to_event(1).log_prob(x)
    torch.testing.assert_close(found.log_likelihood, wanted)
    torch.testing.assert_close(found.elbo, wanted)


def test_every_level_is_encoded_and_its_active_units_counted(exact: tuple[pv.Fit, Tensor]) -> None:
    fitted, x = exact
    draws = 200
    for site, slope in (("z1", B * UPPER / WHOLE), ("z2", A * B / WHOLE)):
        means = pv.encode(fitted, x, site=site, num_samples=draws)
        assert (means - slope * x).abs().max() < BOUND * draws**-0.5  # of draws whose spread is at most 1
        again = pv.encode(fitted, x, site=site, num_samples=draws, seed=1)
        assert pv.active_units(means, again=again).tolist() == [True, site == "z1"]  # z2's second says nothing of x
    with pytest.raises(pv.PairError, match="'z1', 'z2'|'z2', 'z1'"):
        pv.encode(fitted, x)


def test_the_noise_of_averages_is_no_activity() -> None:
    signal = torch.tensor([0.0, 0.2]) * torch.randn(5000, 1)
    one, two = signal + 0.2 * torch.randn(5000, 2), signal + 0.2 * torch.randn(5000, 2)
    assert pv.active_units(one).tolist() == [True, True]
    assert pv.active_units(one, again=two).tolist() == [False, True]
    with pytest.raises(pv.ShapeError, match=r"and, again, \(5000, 1\)"):
        pv.active_units(one, again=two[:, :1])


def test_levels_that_are_held_stay_and_those_below_are_drawn(exact: tuple[pv.Fit, Tensor]) -> None:
    fitted, _ = exact
    num = 20_000
    top = torch.tensor([1.0, -2.0]).double()
    drawn = pv.simulate(fitted, num, given={"z2": top.expand(num, -1)}, seed=0)
    assert (drawn["z2"] == top).all()
    for site, mean, sd in (("z1", A * top, torch.full((2,), S)), ("x", A * B * top, B * S + 0 * top)):
        sd = sd if site == "z1" else ((B * S) ** 2 + T**2 + 0 * top).sqrt()
        assert ((drawn[site].mean(0) - mean).abs() < BOUND * sd / num**0.5).all()
        assert ((drawn[site].std(0) / sd - 1).abs() < BOUND / (2 * num) ** 0.5).all()
    assert torch.equal(pv.generate(fitted, num, given={"z2": top.expand(num, -1)}, seed=0), drawn["x"])
    means = pv.generate(fitted, num, given={"z2": top.expand(num, -1)}, mean=True, seed=0)
    torch.testing.assert_close(means, B * drawn["z1"])
    # z1 says all that z2 has to say of x
    z1, z2 = torch.randn(7, 2, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    torch.testing.assert_close(pv.decode(fitted, {"z1": z1, "z2": z2}), B * z1)
    torch.testing.assert_close(pv.decode(fitted, z1, latent="z1"), B * z1)
    assert torch.equal(pv.decode(fitted, {"z2": z2}, seed=3), pv.decode(fitted, z2, latent="z2", seed=3))
    below = pv.simulate(fitted, num, given={"z1": z1[:1].expand(num, -1)}, seed=0)["z2"]
    assert (below.mean(0).abs() < BOUND / num**0.5).all()  # what stands above comes from its prior: no conditioning


def test_wrong_values_for_levels_are_told(exact: tuple[pv.Fit, Tensor]) -> None:
    fitted, _ = exact
    with pytest.raises(pv.DataError, match=r"latent sites \['z[12]', 'z[12]'\], got \['z3'\]"):
        pv.generate(fitted, 3, given={"z3": torch.zeros(3, 2)})
    with pytest.raises(pv.DataError, match="num=3 rows, got {'z2': 1}"):
        pv.generate(fitted, 3, given={"z2": torch.zeros(1, 2)})
    with pytest.raises(pv.DataError, match="'z1' must have rows of shape"):
        pv.simulate(fitted, 3, given={"z1": torch.zeros(3, 4)})
    with pytest.raises(pv.DataError, match="got {'z2': 4}"):
        pv.decode(fitted, {"z1": torch.zeros(3, 2), "z2": torch.zeros(4, 2)})
    for z, latent in (({}, None), ({"z1": torch.zeros(3, 2)}, "z1")):
        with pytest.raises(pv.OptionError, match="at least one latent site"):
            pv.decode(fitted, z, latent=latent)
    with pytest.raises(pv.PairError, match="got 'x'"):
        pv.decode(fitted, {"x": torch.zeros(3, 2)})
    with pytest.raises(pv.DataError, match="'z2'.* are latent sites: pass a dict"):
        pv.decode(fitted, torch.zeros(3, 2), latent="z1", given={"z2": torch.zeros(3, 2)})


def test_closed_form_kl_goes_with_the_ladder_only() -> None:
    x = torch.randn(50, 2, dtype=torch.float64)
    loss = pv.Trace_ELBO(2000, kl="analytic")
    found = loss(ladder(), {"x": x}).elbo
    wanted = dist.Normal(torch.zeros(2).double(), WHOLE.sqrt()).to_event(1).log_prob(x).sum()
    assert abs(found - wanted) < BOUND * (2 * len(x) * 4 / 2000) ** 0.5  # of each draw's noise a few nats at most
    with pytest.raises(pv.PairError, match="order"):
        loss(bottom_up(), {"x": x})


# --- how they are put together ---------------------------------------------------------------------------------------


def widths(net: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]


def test_the_nets_of_the_papers() -> None:
    burda = pv.HierarchicalVAE.of_levels(fam.Bernoulli(784))
    assert [widths(q) for q in burda.encoders] == [
        [(784, 200), (200, 200), (200, 200)],
        [(100, 100), (100, 100), (100, 100)],
    ]
    assert widths(burda.lower) == [(50, 100), (100, 100), (100, 200)]
    assert widths(burda.likelihood) == [(100, 200), (200, 200), (200, 784)]
    sonderby = pv.LadderVAE.of_levels(fam.Bernoulli(784))
    hidden, levels = (512, 256, 128, 64, 32), (64, 32, 16, 8, 4)
    assert [widths(d) for d in sonderby.upward] == [[(n, m), (m, m)] for n, m in zip((784, *hidden), hidden)]
    assert [widths(q) for q in sonderby.evidence] == [[(m, 2 * z)] for m, z in zip(hidden, levels)]
    assert [widths(p) for p in sonderby.lower] == [
        [(z, m), (m, m), (m, 2 * below)] for z, m, below in zip(levels[1:], hidden[1:], levels)
    ]


def test_one_level_is_the_vae() -> None:
    x = torch.bernoulli(torch.full((9, 6), 0.5))
    parts: dict[str, Any] = {
        "prior": pv.priors.StandardNormal(2),
        "likelihood": pv.mlp(2, fam.Bernoulli(6), hidden=(4,)),
    }
    encoder = pv.mlp(6, fam.Normal(2), hidden=(4,))
    wanted = pv.log_likelihood(unfitted(pv.VAE(encoder=encoder, **parts), x), x, 5, seed=0, proposal="guide")
    for pair in (
        pv.HierarchicalVAE(lower=[], encoders=[encoder], **parts),
        pv.LadderVAE(lower=[], upward=[nn.Identity()], evidence=[encoder], **parts),
    ):
        assert torch.equal(pv.log_likelihood(unfitted(pair, x), x, 5, seed=0, proposal="guide"), wanted)


def test_wrong_numbers_of_parts_are_told() -> None:
    part = Line(1.0, 1.0)
    with pytest.raises(pv.PairError, match="L in encoders, got 2 lower, 2 encoders"):
        pv.HierarchicalVAE(PRIOR, [part] * 2, part, [part] * 2)
    with pytest.raises(pv.PairError, match="L in upward and in evidence, got 1 lower, 2 upward, 1 evidence"):
        pv.LadderVAE(PRIOR, [part], part, [part] * 2, [part])
    for kind in (pv.HierarchicalVAE, pv.LadderVAE):
        with pytest.raises(pv.ShapeError, match="as many hidden widths as levels"):
            kind.of_levels(fam.Bernoulli(6), levels=(3, 2), hidden=(8,))
        with pytest.raises(pv.ShapeError, match="family of vectors"):
            kind.of_levels(fam.Bernoulli((2, 3)), levels=(2,), hidden=(8,))


def test_evidence_that_is_no_normal_is_told() -> None:
    pair = pv.LadderVAE.of_levels(fam.Bernoulli(6), levels=(3, 2), hidden=(8, 8))
    pair.evidence[0] = pv.mlp(8, fam.Laplace(3), hidden=())
    with pytest.raises(pv.PairError, match="got Laplace"):
        pv.check_pair(pair, torch.zeros(4, 6))
