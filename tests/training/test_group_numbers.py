"""Numbers of groups that a model indexes by: what is no group is refused, and -1 is not taken for the last one."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.errors import DataError, PairError

G, QUICK = 4, {"epochs": 1, "engine": "eager", "progress": False, "seed": 0}


class Groups(nn.Module):
    """p(u) prod_n p(y_n | u_(g_n)), a mean for each group."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(G)), nn.Parameter(torch.zeros(G))

    def chosen(self, u: Tensor, g: Tensor) -> Tensor:
        return u[..., g]

    def model(self, y: Tensor, g: Tensor) -> None:
        with pyro.plate("groups", G):
            u = pyro.sample("u", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(self.chosen(u, g), 0.5), obs=y)

    def guide(self, y: Tensor, g: Tensor) -> None:
        with pyro.plate("groups", G):
            pyro.sample("u", dist.Normal(self.loc, self.log_scale.exp()))


class ByView(Groups):
    def chosen(self, u: Tensor, g: Tensor) -> Tensor:
        return u[..., g[:, None]][..., 0]


class Offsets(Groups):
    """Whole numbers that are no index may be negative."""

    def chosen(self, u: Tensor, g: Tensor) -> Tensor:
        return u[..., 0, None] + g


def rows(**changed: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"y": torch.randn(300), "g": torch.arange(300) % G, **changed}


def gap() -> Tensor:
    g = torch.arange(300) % G
    g[250] = g[270] = -1  # as pandas codes a missing category; beyond the first minibatch
    return g


@pytest.mark.parametrize("pair", [Groups, ByView])
def test_a_missing_group_is_not_the_last_one(pair: type[nn.Module]) -> None:
    with pytest.raises(DataError, match=r"'g': 2 of 300 values are negative, the first is -1 in row 250.*the last one"):
        pv.fit(pair(), rows(g=gap()), batch_size=50, **QUICK)
    fitted = pv.fit(pair(), rows(), **QUICK)
    with pytest.raises(DataError, match="the first is -1 in row 250"):
        pv.log_likelihood(fitted, rows(g=gap()), 5, seed=0)
    with pytest.raises(DataError, match="the first is -1 in row 1"):
        pv.generate(fitted, 2, given={"g": torch.tensor([0, -1])})


def test_whole_numbers_that_are_no_index_may_be_negative() -> None:
    fitted = pv.fit(Offsets(), rows(g=gap()), **QUICK)
    assert pv.log_likelihood(fitted, rows(g=gap()), 5, seed=0).isfinite().all()


def test_numbers_that_no_group_has_are_told_by_their_argument() -> None:
    with pytest.raises(PairError, match="'g' goes from 1 to 4: classes and groups are numbered from 0"):
        pv.fit(Groups(), rows(g=torch.arange(300) % G + 1), **QUICK)
    with pytest.raises(PairError, match=r"make integers: g\.long\(\)"):
        pv.fit(Groups(), rows(g=(torch.arange(300) % G).float()), **QUICK)


def test_a_pair_without_latent_sites_of_rows_has_a_posterior_of_its_own() -> None:
    fitted = pv.fit(Groups(), rows(), **QUICK)
    for ask in (lambda: pv.encode(fitted, rows()), lambda: pv.posterior(fitted, rows(), num_samples=5)):
        with pytest.raises(PairError, match=r"'u' of all rows together; .* pv\.global_posterior"):
            ask()
