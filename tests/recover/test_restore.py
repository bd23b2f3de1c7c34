"""Rows given what is seen of them after a corruption: against the normal posterior, sums over all values, and a grid."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.comparisons import BOUND
from support.pairs import LinearGaussian, normal, unfitted, zeros
from support.programs import adgm, binary, labels
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.pair.batch import Batch

NAN = float("nan")
corrupt = pv.corruptions


def eager(pair: Any, data: Any) -> pv.Fit:
    return replace(unfitted(pair, data), settings={"engine": "eager"})


class Images(LinearGaussian):
    """z ~ N(0, I_2), x ~ N(W z + b, 0.7^2 I), an image of 4 x 4 pixels; the guide is three posterior sds off."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(columns=16, shift=3.0, spread=4.0)

    def likelihood(self, z: Tensor) -> Any:
        loc = (z @ self.weight.T + self.bias).unflatten(-1, (4, 4))
        return dist.Normal(loc, self.noise).to_event(2)

    def proposal(self, x: Tensor) -> Any:
        return super().proposal(x.flatten(1))


def posterior(pair: Images, a: Tensor, seen: Tensor, sd: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x given `seen = A x + sd e`."""
    whole = pair.marginal()
    there = ~seen.isnan()
    a, seen = a[there], seen[there]
    gain = (
        whole.covariance_matrix
        @ a.T
        @ torch.linalg.inv(a @ whole.covariance_matrix @ a.T + sd**2 * torch.eye(len(a), dtype=a.dtype))
    )
    return whole.mean + gain @ (seen - a @ whole.mean), whole.covariance_matrix - gain @ a @ whole.covariance_matrix


def matrix(corruption: Any) -> Tensor:
    return corruption.function(torch.eye(16, dtype=torch.float64).reshape(16, 4, 4)).reshape(16, -1).T


HOLES = torch.zeros(4, 4, dtype=torch.bool)
HOLES[1:3, 1:] = True
LINEAR = {
    "mask": (corrupt.Mask(HOLES), 0.0),
    "noise": (corrupt.Noise(0.5), 0.5),
    "scaled": (corrupt.Corruption(lambda x: -2 * x, 0.3, linear=True, elementwise=True), 0.3),
    "blur": (corrupt.Blur(0.8, sd=0.2), 0.2),
    "downsample": (corrupt.Downsample(2), 0.0),
    "own": (corrupt.Corruption(lambda x: x.sum(-1) - x[..., 0], 0.3, linear=True), 0.3),
}


@pytest.mark.parametrize("name", LINEAR)
def test_of_a_normal_row_after_a_linear_corruption_the_posterior_is_known(name: str) -> None:
    """16 means and 16 variances of draws, 16 of `mean` and of `sd`, 2 rows: 4.5 standard errors each, false alarms 1e-3."""
    pair, (corruption, sd) = Images(), LINEAR[name]
    x = pair.marginal().sample((2,)).unflatten(-1, (4, 4))
    seen = corruption(x)
    if name == "noise":
        seen[0, 0, 0] = NAN
    found = pv.restore(eager(pair, x), seen, corruption, 3000, num_particles=4000, moves=0, seed=0)
    assert found.exact and found.draws.shape == (3000, 2, 4, 4) and found.draws.dtype == torch.float64
    a = torch.eye(16, dtype=torch.float64) if name in ("mask", "noise") else matrix(corruption)
    for n in range(2):
        mean, cov = posterior(pair, a, seen[n].flatten(), sd)
        variance = cov.diagonal().clamp_min(0.0)
        draws, count = found.draws[:, n].flatten(1), 1 / (1 / 3000 + 1 / found.ess[n].item())
        assert ((draws.mean(0) - mean).abs() <= BOUND * (variance / count).sqrt() + 1e-6).all()
        assert ((draws.var(0) - variance).abs() <= BOUND * variance * math.sqrt(2 / count) + 1e-6).all()
        assert ((found.mean[n].flatten() - mean).abs() <= BOUND * (variance / count).sqrt() + 1e-6).all()
        assert ((found.sd[n].flatten() - variance.sqrt()).abs() <= BOUND * (variance / 2 / count).sqrt() + 1e-5).all()


class Bits(nn.Module):
    """z ~ N(0, 1), three bits with log-odds (2 z, -z, z + 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 1)

    def logits(self, z: Tensor) -> Tensor:
        return torch.cat([2 * z, -z, z + 1], -1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.logits(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


@pytest.mark.parametrize(
    "corruption", [corrupt.Noise(0.4), corrupt.Corruption(lambda x: 1 - 3 * x, 0.9, elementwise=True)]
)
def test_of_bits_every_value_is_summed_over(corruption: Any) -> None:
    """3 probabilities of each of 2 corruptions; 4.5 standard errors: false alarms 4e-5."""
    seen = torch.tensor([[0.6, NAN, -0.2]])
    found = pv.restore(eager(Bits(), seen.nan_to_num(0.0)), seen, corruption, 4000, num_particles=6000, moves=0, seed=0)
    z = torch.linspace(-8, 8, 4001)[:, None]
    values = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)  # (8, 3)
    log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Bernoulli(logits=Bits().logits(z)[:, None]).log_prob(values).sum(
        -1
    )
    likely = dist.Normal(corruption.function(values), corruption.sd).log_prob(seen.nan_to_num(0.0))[:, [0, 2]].sum(-1)
    p = (log_p.logsumexp(0) + likely).softmax(0) @ values
    count = 1 / (1 / 4000 + 1 / found.ess[0].item())
    error = BOUND * (p * (1 - p) / count).sqrt()
    assert found.draws.unique().tolist() == [0.0, 1.0] and found.exact
    assert ((found.draws[:, 0].mean(0) - p).abs() < error).all() and ((found.mean[0] - p).abs() < error).all()


class OneNormal(nn.Module):
    """z ~ N(0, 1), x ~ N(z 1, I) in two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(zeros())

    def likelihood(self, z: Tensor) -> Any:
        return normal(z.expand(*z.shape[:-1], 2), 0.0)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(zeros(1), 0.0))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(0.3 * x.sum(-1, keepdim=True), self.scale))


def on_a_grid(log_likelihood: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x ~ N(0, I + 1 1') with a likelihood, by a sum over the plane."""
    line = torch.linspace(-8, 10, 721, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    cov = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    weights = (dist.MultivariateNormal(zeros(2), cov).log_prob(x) + log_likelihood(x)).softmax(0)
    mean = weights @ x
    return mean, (weights @ (x - mean).square()).sqrt()


def test_what_is_saturated_lies_beyond_the_end() -> None:
    """Of 2 elements, the first at the upper end and the second inside: 4.5 standard errors of 4000 draws, and the grid."""
    clip = corrupt.Clip(-1.0, 1.5)
    seen = clip(torch.tensor([[2.5, 0.2], [-4.0, -9.0]], dtype=torch.float64))
    found = pv.restore(eager(OneNormal(), seen), seen, clip, 4000, num_particles=6000, moves=0, seed=0)
    assert (
        (found.draws[:, 0, 0] >= 1.5).all() and (found.draws[:, 0, 1] == 0.2).all() and (found.draws[:, 1] <= -1).all()
    )

    def both_below(x: Tensor) -> Tensor:
        return torch.where((x <= -1).all(-1), 0.0, -math.inf)

    wide = 0.03  # of the band that stands for the second element of the first row

    def one_above(x: Tensor) -> Tensor:
        return torch.where((x[:, 0] >= 1.5) & ((x[:, 1] - 0.2).abs() < wide), 0.0, -math.inf)

    for n, (log_likelihood, elements) in enumerate([(one_above, [0]), (both_below, [0, 1])]):
        mean, sd = on_a_grid(log_likelihood)
        count = 1 / (1 / 4000 + 1 / found.ess[n].item())
        for i in elements:
            assert (
                abs(found.draws[:, n, i].mean() - mean[i]) < BOUND * sd[i] / math.sqrt(count) + 0.02
            )  # the grid's step
            assert abs(found.mean[n, i] - mean[i]) < BOUND * sd[i] / math.sqrt(count) + 0.02
            assert abs(found.sd[n, i] - sd[i]) < BOUND * sd[i] / math.sqrt(count) + 0.02


def test_under_a_function_of_ones_own_x_is_drawn_beside_z() -> None:
    """Only x_1 x_2 + noise is seen: 4.5 standard errors of the mean product, and of the second moments."""
    product = corrupt.Corruption(lambda x: x.prod(-1, keepdim=True), sd=0.5)
    seen = torch.tensor([[2.0]], dtype=torch.float64)
    found = pv.restore(eager(OneNormal(), torch.zeros(1, 2).double()), seen, product, 3000, num_particles=6000, seed=0)
    line = torch.linspace(-8, 8, 801, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    cov = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    log_p = dist.MultivariateNormal(zeros(2), cov).log_prob(x) + dist.Normal(x.prod(-1), 0.5).log_prob(seen[0])
    weights = log_p.softmax(0)
    count = 1 / (1 / 3000 + 1 / found.ess[0].item())
    for of in (lambda x: x.prod(-1), lambda x: x.square().sum(-1)):
        exact = weights @ of(x)
        sd = (weights @ (of(x) - exact).square()).sqrt()
        assert abs(of(found.draws[:, 0]).mean() - exact) < BOUND * sd / math.sqrt(count)
    assert found.exact


def test_other_likelihoods_under_noise_are_taken_for_normals_and_it_is_said() -> None:
    torch.manual_seed(0)
    family = fam.Gamma(3)
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, family, hidden=(4,)), pv.mlp(3, fam.Normal(2), hidden=(4,)))
    x = torch.rand(4, 3) + 0.5
    found = pv.restore(eager(vae, x), x, corrupt.Noise(0.01), 5, num_particles=50, proposal="guide", seed=0)
    assert not found.exact and (found.mean - x).abs().max() < 0.1


def test_other_arguments_and_labels_are_kept() -> None:
    class Shifted(OneNormal):
        def model(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> None:  # type: ignore[override]
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.5]).double()), obs=y)
                z = pyro.sample("z", normal(zeros(1), -3.0))
                loc = z + c[:, None] + 10 * y[..., None]
                pyro.sample("x", normal(loc.expand(*loc.shape[:-1], 2), -2.0), obs=x)

        def guide(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> None:  # type: ignore[override]
            with pyro.plate("data", len(x)):
                if y is None:
                    logits = torch.zeros(len(x), 2).double() * self.scale
                    pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
                pyro.sample("z", normal(zeros(len(x), 1), -3.0))

    c = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
    y = torch.tensor([-1, 1, 0])
    clean = c[:, None] + torch.tensor([[10.0, 10.0], [10.0, 10.0], [0.0, 0.0]]).double()
    data: Batch = {"x": clean, "c": c, "y": y}
    fitted = pv.fit(Shifted(), data, epochs=1, engine="eager", progress=False)
    mask = corrupt.Mask(torch.tensor([False, True]))
    found = pv.restore(fitted, {"x": mask(clean), "c": c, "y": y}, mask, 20, site="x", num_particles=200, seed=0)
    assert (found.draws - clean).abs().max() < 2 and torch.equal(found.draws[:, :, 0], clean[:, 0].expand(20, 3))


def test_what_cannot_be_restored_is_refused_with_the_cure() -> None:
    pair = Images()
    x = pair.marginal().sample((2,)).unflatten(-1, (4, 4))
    fitted = eager(pair, x)
    with pytest.raises(pv.DataError, match=r"what the corruption makes of rows, of shape \(2, 2\), got \(4, 4\)"):
        pv.restore(fitted, x, corrupt.Downsample(2))
    with pytest.raises(pv.OptionError, match="give the corruption sd="):
        pv.restore(fitted, x, corrupt.Corruption(torch.square))
    with pytest.raises(pv.ShapeError, match=r"multiples of 3, got \(1, 4, 4\)"):
        pv.restore(fitted, x, corrupt.Downsample(3))
    with pytest.raises(pv.DataError, match="under the name of the argument, 'x'"):
        pv.restore(fitted, {"y": x}, corrupt.Noise(0.1))
    with pytest.raises(pv.OptionError, match="num_samples must be at least 1"):
        pv.restore(fitted, x, corrupt.Noise(0.1), 0)
    for wrong in (
        lambda: corrupt.Noise(-1.0),
        lambda: corrupt.Blur(0.0, 1.0),
        lambda: corrupt.Blur(1.0, 0.0),
        lambda: corrupt.Downsample(0),
        lambda: corrupt.Clip(),
        lambda: corrupt.Clip(1.0, 0.5),
    ):
        with pytest.raises(pv.OptionError):
            wrong()

    class Reads(OneNormal):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", normal(zeros(1), 0.0))
                pyro.sample("x", self.likelihood(z), obs=x)
                pyro.sample("w", dist.Normal(x[:, 0], 1.0), obs=torch.zeros_like(x[:, 0]))

    data = {"x": binary(4), "y": labels(4)}
    fitted = pv.fit(adgm(), data, epochs=1, engine="eager", progress=False)  # p(a | x, z, y)
    with pytest.raises(pv.PairError, match="Site 'a' of the model depends on 'x'"):
        pv.restore(fitted, data, corrupt.Noise(0.1), site="x")
    two = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(pv.PairError, match="Site 'w' of the model depends on 'x'"):
        pv.restore(eager(Reads(), two), two, corrupt.Noise(0.1), site="x")
