"""Monte Carlo EM: chains are draws of each row's posterior, step sizes are tuned, and the model reaches exact EM's optimum."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.pairs import LinearGaussian
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.guides.hmc import trajectory

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


class Edge(NamedTuple):
    u: Tensor

    def log_density(self) -> Tensor:
        """Standard normal, which is 0 above 2 and infinite below -2."""
        u = self.u[:, 0]
        return (-u.square() / 2).where(u <= 2, -math.inf).where(u >= -2, math.inf)


def test_a_chain_leaves_densities_of_zero_and_never_enters_infinite_ones() -> None:
    """As that of a Gamma below 1 at a value that was rounded to 0, where a chain would stay for ever."""
    torch.manual_seed(0)
    start = torch.tensor([[0.0], [3.0]]).repeat(200, 1)
    moved, log_ratio = trajectory(
        Edge(start),
        log_density=Edge.log_density,
        gradient=lambda at: -at.u,
        move=Edge,
        step_size=torch.full((400,), 1.5),
        unit=1.0,
        num_leapfrog=2,
    )
    after, infinite = moved.log_density(), moved.u[:, 0] < -2
    inside = after.isfinite()
    assert infinite.any() and (log_ratio[infinite] == -math.inf).all()
    assert inside[1::2].any() and (log_ratio[1::2][inside[1::2]] == 0).all()


def test_chains_that_overshoot_come_back() -> None:
    """z ~ Gamma(1/2, 1) with a steep likelihood: steps out of the right tail lead to where z is rounded to 0."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(x.new_tensor(0.5), x.new_tensor(1.0)))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    torch.manual_seed(0)
    x = torch.ones(200)
    pair = pv.monte_carlo_em(model, x, num_leapfrog=3)
    with torch.no_grad():
        pair.chain.fill_(4.0)
        for _ in range(10):
            pair.guide(**pair.indexed(x))
    assert pair.chain.abs().max() < 50


def test_the_gradient_of_a_support_that_the_model_learns() -> None:
    """z ~ U(0, t), x ~ N(z, 0.3): d log p(x) / dt, within 5 standard errors (alarm in 1 of 10^6 runs)."""
    theta = torch.nn.Parameter(torch.tensor(1.0))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(x.new_zeros(()), theta))
            pyro.sample("x", dist.Normal(z, 0.3), obs=x)

    torch.manual_seed(0)
    x = torch.full((ROWS,), 0.9)
    normal = dist.Normal(0.0, 0.3)
    mass = (normal.cdf(x[0]) - normal.cdf(x[0] - theta)) / theta
    (wanted,) = torch.autograd.grad(mass.log(), [theta])
    pair = pv.monte_carlo_em(model, x, num_leapfrog=3)
    for _ in range(15):
        with torch.no_grad():
            pair.guide(**pair.indexed(x))
    found = []
    for _ in range(4):
        run = pv.terms(pair, pair.indexed(x))
        each = pv.log_weights(run)[0].reshape(20, -1).mean(1)
        found.append(torch.stack([torch.autograd.grad(one, [theta], retain_graph=True)[0] for one in each]))
        assert run.sites["z"].q is not None and (run.sites["z"].q.log_prob == 0).all()
    means = torch.stack(found).mean(0)
    assert abs(means.mean() - wanted) < 5 * means.std() / 20**0.5


def test_rows_that_observe_a_site_have_no_chain_for_it() -> None:
    def model(x: Tensor, z: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0), obs=z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.zeros(6)
    data = {"x": x, "z": torch.tensor([1.0, 2.0, 3.0] + 3 * [math.nan])}
    pair = pv.monte_carlo_em(model, data)
    pair.guide(**{name: value[:3] for name, value in pair.indexed(data).items()})
    pair.guide(x=x[3:], index=torch.arange(3, 6))
    assert (pair.chain[:3] == 0).all() and (pair.chain[3:] != 0).all() and (pair.visits == 1).all()


@pytest.mark.parametrize("make", [pv.monte_carlo_em, pv.per_row])
def test_rows_may_be_float64_and_numbers_any_whole_ones(make: Any) -> None:
    x = torch.rand(5, dtype=torch.float64)
    pair = make(lambda x: gamma_poisson(x.round()), x)
    for dtype in (torch.int32, torch.uint8, torch.int64):
        pair.guide(x=x, index=torch.arange(5).to(dtype))
    assert all(value.dtype == torch.float32 for value in pair.state_dict().values())


def test_log_q_of_a_share_that_was_rounded_to_one() -> None:
    """The density of the coordinate that was drawn, and not of one computed back from its value."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(torch.ones(2)))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    x = torch.ones(4)
    pair = pv.per_row(model, x)
    with torch.no_grad():
        pair.loc.fill_(25.0)  # z = 1 - 10^-11
        pair.log_scale.zero_()
        q = pv.terms(pair, pair.indexed(x)).sites["z"].q
    # log N(u; 25, 1) + u, and u is within 5 of 25
    assert q is not None and ((q.log_prob > 25 - 5 - 0.92 - 12.5) & (q.log_prob < 30)).all()


class TestFitsThatWouldGoWrong:
    @pytest.fixture
    def pair(self) -> Any:
        return pv.monte_carlo_em(linear(), linear_rows())

    def refused(self, pair: Any, error: Any, words: str, index: Any = None, **options: Any) -> None:
        rows = pair.indexed(linear_rows())
        rows["index"] = rows["index"] if index is None else index
        before = pair.chain.clone()
        with pytest.raises(error, match=words):
            pv.fit(pair, rows, epochs=1, engine="eager", progress=False, **options)
        assert torch.equal(pair.chain, before)

    def test_in_evaluation_mode(self, pair: Any) -> None:
        self.refused(pair.eval(), pv.OptionError, "stand still in evaluation mode")

    def test_in_several_processes(self, pair: Any) -> None:
        with pytest.raises(pv.OptionError, match="take one process"):
            pair.check_fit(None, pv.Trace_ELBO(), 2)
        pv.per_row(linear(), linear_rows()).check_fit(None, pv.Trace_ELBO(), 2)

    @pytest.mark.parametrize("loss", [pv.WakeSleep(), pv.RWS(3, sleep=0.5)])
    def test_by_rows_that_the_model_draws(self, pair: Any, loss: Any) -> None:
        self.refused(pair, pv.OptionError, "teaches the guide by rows that the model draws", loss=loss)

    @pytest.mark.parametrize(
        ("index", "error", "words"),
        [
            (torch.zeros(80, dtype=torch.int64), pv.DataError, "79 rows have the number of another row, as 0"),
            (torch.arange(80) + 1, pv.DataError, "from 0 to 79.* 1 row has others"),
            (torch.arange(80) - 90, pv.DataError, "80 rows have others"),
            (torch.arange(80.0), pv.DataError, "whole numbers from 0 to 79"),
            (torch.arange(80) > 3, pv.DataError, "whole numbers"),
            (torch.arange(80)[:, None], pv.DataError, r"of shape \(80, 1\)"),
        ],
    )
    def test_by_other_numbers(self, pair: Any, index: Tensor, error: Any, words: str) -> None:
        self.refused(pair, error, words, index)


class Notes(pv.VAE):
    noted: Any = None

    def in_history(self) -> Any:
        return self.noted


def test_what_a_module_notes_are_numbers_under_names_of_its_own() -> None:
    vae = Notes(pv.priors.StandardNormal(1), pv.mlp(1, fam.Normal(4), hidden=()), pv.mlp(4, fam.Normal(1), hidden=()))

    def fitted() -> pv.Fit:
        return pv.fit(vae, linear_rows(), epochs=1, engine="eager", progress=False)

    vae.noted = {"size": torch.tensor(2.0)}
    assert fitted().history[-1]["size"] == 2.0
    for noted, words in (({"elbo": 0.0}, "history has already"), ({"size": "large"}, "is no number")):
        vae.noted = noted
        with pytest.raises(pv.PairError, match=words):
            fitted()


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
