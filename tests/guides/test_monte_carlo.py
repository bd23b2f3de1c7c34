"""Monte Carlo EM: chains are draws of each row's posterior, step sizes are tuned, and the model reaches exact EM's optimum."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.pairs import LinearGaussian
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

ROWS = 400  # of the same x, so that their chains are as many draws of one posterior


def gamma_poisson(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(x.new_tensor(2.0), x.new_tensor(1.0)))
        pyro.sample("x", dist.Poisson(z), obs=x)


def two_places(x: Tensor) -> None:
    """z ~ N(0, 1), y in {0, 1}, x ~ N(z + 3 y, 1), the rows at a dimension of their own: the class is summed out."""
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1, 1), 1.0))
        y = pyro.sample("y", dist.Categorical(logits=x.new_zeros(1, 1, 2)))
        pyro.sample("x", dist.Normal(z + 3 * y, 1.0), obs=x[:, None])


def exact_two_places(x: float) -> tuple[float, float]:
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    log_p = -z.square() / 2 + torch.stack([-(x - z - 3 * y).square() / 2 for y in (0, 1)]).logsumexp(0)
    p = log_p.softmax(0)
    mean = (p * z).sum()
    return mean.item(), (p * (z - mean).square()).sum().sqrt().item()


CASES: dict[str, tuple[Callable[[Tensor], None], float, tuple[float, float]]] = {
    "of positive numbers": (gamma_poisson, 4.0, (6 / 2, math.sqrt(6) / 2)),
    "beside a class": (two_places, 1.0, exact_two_places(1.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_chains_are_draws_of_the_posterior(case: str) -> None:
    """The mean of 400 independent chains, and their variance, within 5 standard errors: alarm in 1 of 10^6 runs."""
    model, value, (mean, sd) = CASES[case]
    x = torch.full((ROWS,), value)
    pair = pv.monte_carlo_em(model, x, num_leapfrog=3)
    rows = pair.indexed(x)
    for _ in range(40):
        with torch.no_grad():
            pair.guide(**rows)
    u = pair.chain[:, 0].double()
    z = u.exp() if case == "of positive numbers" else u
    fourth = ((z - mean) / sd).pow(4).mean().item()
    assert abs(z.mean().item() - mean) < 5 * sd / ROWS**0.5
    assert abs(z.var().item() / sd**2 - 1) < 5 * math.sqrt((fourth - 1) / ROWS)
    # of 400 rows, each by some 20 trajectories: a standard error of about 0.003
    assert abs(pair.in_history()["acceptance"] - 0.9) < 0.05


def linear(latent: int = 1) -> pv.VAE:
    likelihood = pv.mlp(latent, fam.Normal(4, scale="column"), hidden=())
    return pv.VAE(pv.priors.StandardNormal(latent), likelihood, pv.mlp(4, fam.Normal(latent), hidden=()))


def linear_rows() -> Tensor:
    torch.manual_seed(3)
    return torch.randn(80, 1) @ torch.tensor([[1.0, -1.0, 0.7, 0.3]]) + 0.6 * torch.randn(80, 4)


def log_p(vae: Any, x: Tensor) -> float:
    with torch.no_grad():
        normal = vae.likelihood(torch.tensor([[0.0], [1.0]])).base_dist
        weight, noise = (normal.loc[1] - normal.loc[0])[:, None], normal.scale.expand(2, 4)[0]
        covariance = weight @ weight.T + noise.square().diag()
        return dist.MultivariateNormal(normal.loc[0], covariance).log_prob(x).mean().item()


def test_the_model_reaches_the_optimum_of_exact_em() -> None:
    """Within 0.02 nats a row of the maximum, where the start is more than one nat below it."""
    x, vae = linear_rows(), linear()
    best = pv.linear_em(x, latent=1).history[-1]["elbo"]
    assert log_p(vae, x) < best - 1
    pair = pv.monte_carlo_em(vae, x, num_leapfrog=2)
    frozen = {name: value.clone() for name, value in vae.encoder.named_parameters()}
    fitted = pv.fit(
        pair, pair.indexed(x), epochs=70, schedule=pv.schedules.one_cycle(0.15), engine="eager", progress=False, seed=0
    )
    assert best - 0.02 < log_p(vae, x) < best + 1e-4
    assert all(torch.equal(value, frozen[name]) for name, value in vae.encoder.named_parameters())
    last = fitted.history[-1]
    assert abs(last["acceptance"] - 0.9) < 0.05 and 0.1 < last["step_size"] < 2
    # E log p(x, z) under the posterior is log p(x) less its entropy
    with torch.no_grad():
        normal = vae.likelihood(torch.tensor([[0.0], [1.0]])).base_dist
        precision = 1 + ((normal.loc[1] - normal.loc[0]) / normal.scale[0]).square().sum()
    entropy = 0.5 * math.log(2 * math.pi * math.e) - 0.5 * precision.log().item()
    assert abs(last["elbo"] - (log_p(vae, x) - entropy)) < 0.3


def test_a_fit_goes_on_as_if_it_had_not_stopped_and_is_read_again(tmp_path: Path) -> None:
    x = linear_rows()

    def started() -> Any:
        torch.manual_seed(0)
        return pv.monte_carlo_em(linear(), x, num_leapfrog=2)

    options: dict[str, Any] = {"batch_size": 30, "seed": 1, "engine": "eager", "progress": False}
    whole = started()
    pv.fit(whole, whole.indexed(x), epochs=4, **options)
    part = started()
    options |= {"checkpoint": tmp_path / "run"}
    pv.fit(part, part.indexed(x), epochs=2, **options)
    again = started()
    fitted = pv.fit(again, again.indexed(x), epochs=4, resume=True, **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert whole.visits.min() >= 3 and not torch.equal(whole.chain, started().chain)
    read = pv.load(tmp_path / "run")
    assert isinstance(read.pair, pv.guides.MonteCarloEM)
    assert torch.equal(pv.encode(read, again.indexed(x)), pv.encode(fitted, again.indexed(x)))
    assert torch.equal(read.pair.chain, again.chain)


def test_a_traced_step_moves_the_same_chains() -> None:
    """The end of a trajectory is written into buffers by the traced program, too."""
    x, ends = linear_rows(), []
    for engine in ("eager", "traced"):
        torch.manual_seed(0)
        pair = pv.monte_carlo_em(linear(), x, num_leapfrog=1)
        before = pair.chain.clone()
        pv.fit(pair, pair.indexed(x), epochs=2, batch_size=40, engine=engine, seed=0, progress=False)
        assert (pair.visits == 2).all() and not torch.equal(pair.chain, before)
        ends.append(pair.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)


def test_rows_without_a_number_get_a_refined_prior() -> None:
    torch.manual_seed(0)
    known = LinearGaussian()
    x = known.marginal().sample((20,))
    pair = pv.monte_carlo_em(known, x, num_leapfrog=2)
    pair.model(x=x)  # by keywords, and
    pair.eval()
    with pyro.poutine.trace() as traced:
        pair.guide(x)  # in order
    assert list(traced.trace.nodes["z"]["value"].shape) == [20, 2]
    found = pv.importance(unfitted(pair, x), x, 200, seed=0)
    apart = found.log_likelihood - known.marginal().log_prob(x)
    assert (apart.abs() < 5 * found.standard_error).all() and apart.mean().abs() < 0.05
    assert found.standard_error.mean() < 0.2


def unfitted(pair: Any, x: Tensor) -> pv.Fit:
    return pv.Fit(pair=pair, layout=pv.check_pair(pair, x))


class TestRefusals:
    def test_a_step_with_rows_that_have_no_number(self) -> None:
        x = linear_rows()
        pair = pv.monte_carlo_em(linear(), x)
        with pytest.raises(pv.PairError, match=r"pair\.indexed\(data\)"):
            pv.fit(pair, x, epochs=1, engine="eager", progress=False)

    def test_other_rows_than_those_it_knows(self) -> None:
        pair = pv.monte_carlo_em(linear(), linear_rows())
        with pytest.raises(pv.DataError, match="knows 80 rows, got 79"):
            pair.indexed(linear_rows()[1:])

    @pytest.mark.parametrize(
        ("option", "value"),
        [("num_leapfrog", 0), ("num_trajectories", 1.5), ("acceptance", 1.0), ("num_leapfrog", True)],
    )
    def test_an_option_that_cannot_be(self, option: str, value: Any) -> None:
        with pytest.raises(pv.OptionError, match=option):
            pv.monte_carlo_em(linear(), linear_rows(), **{option: value})

    def test_models_without_a_vector_for_each_row(self) -> None:
        x = torch.zeros(5)

        def shared(x: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def counts(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Poisson(torch.ones(())))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def beside(x: Tensor) -> None:
            with pyro.plate("others", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x, 1.0))

        def nothing(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        def numbered(x: Tensor, index: Tensor) -> None:
            gamma_poisson(x)

        for model, words in (
            (shared, "share"),
            (counts, "finite support"),
            (beside, "others"),
            (nothing, "no continuous"),
        ):
            with pytest.raises(pv.PairError, match=words):
                pv.monte_carlo_em(model, x)
        with pytest.raises(pv.OptionError, match="'index' already"):
            pv.monte_carlo_em(numbered, {"x": x, "index": x})
        with pytest.raises(pv.PairError, match="got int"):
            pv.monte_carlo_em(3, x)
