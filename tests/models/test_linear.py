"""The exact guide of a linear VAE, with gaps in its rows."""

import pytest
import torch

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.errors import PairError
from pyrovae.models.linear import LinearPosterior


@pytest.mark.parametrize("scale", ["column", "shared"])
def test_the_elbo_is_log_p_of_what_a_row_has(scale: str) -> None:
    likelihood = pv.mlp(3, fam.Normal(5, scale=scale), hidden=()).double()
    vae = pv.VAE(pv.priors.StandardNormal(3), pv.observed_only(likelihood), LinearPosterior(likelihood)).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    x[0, :3], x[1, 4], x[2] = torch.nan, torch.nan, torch.nan
    weight, bias = (part.detach() for part in likelihood.net.parameters())
    noise = likelihood(torch.zeros(3, dtype=torch.float64)).stddev.detach()
    covariance = weight @ weight.T + noise.square().expand(5).diag()
    exact = []
    for row in x:
        known = ~row.isnan()
        some = torch.distributions.MultivariateNormal(bias[known], covariance[known][:, known]) if known.any() else None
        exact.append(some.log_prob(row[known]) if some is not None else torch.zeros((), dtype=torch.float64))
    fitted = pv.fit(vae, x, epochs=0, progress=False)
    found = pv.importance(fitted, x, num_samples=4, proposal="guide", seed=0)
    torch.testing.assert_close(found.log_likelihood, torch.stack(exact).to(found.log_likelihood.dtype))
    torch.testing.assert_close(found.elbo, found.log_likelihood)


def test_it_follows_the_likelihood_as_it_is_learned() -> None:
    likelihood = pv.mlp(1, fam.Normal(3, scale="column"), hidden=())
    vae = pv.VAE(pv.priors.StandardNormal(1), pv.observed_only(likelihood), LinearPosterior(likelihood))
    x = torch.randn(50, 1) @ torch.tensor([[1.0, -2.0, 0.5]]) + 0.1 * torch.randn(50, 3)
    x[::5, 1] = torch.nan
    fitted = pv.fit(vae, x, epochs=5, learning_rate=0.05, engine="eager", progress=False, seed=0)
    found = pv.importance(fitted, x, num_samples=3, proposal="guide", seed=0)
    torch.testing.assert_close(found.elbo, found.log_likelihood, atol=1e-3, rtol=1e-4)
    assert fitted.history[-1]["elbo"] > fitted.history[0]["elbo"]


def test_a_likelihood_with_hidden_layers_is_refused() -> None:
    with pytest.raises(PairError, match="needs a linear likelihood, .* with 2 linear layers"):
        LinearPosterior(pv.mlp(2, fam.Normal(3, scale="column"), hidden=(4,)))
    with pytest.raises(PairError, match="needs a linear likelihood"):
        LinearPosterior(pv.mlp(2, fam.Normal(3), hidden=()))
