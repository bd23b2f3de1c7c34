"""Values of rows that are in another plate, too, are `(N, *plates, *event)`, whatever dimensions plates have in a program."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv

ITEMS, NOISE = 3, 0.01


class Effects(nn.Module):
    """z of a row, u of a row and an item, x = z + u up to a noise of 0.01, with the rows in one of two dimensions."""

    def __init__(self, rows_dim: int) -> None:
        super().__init__()
        self.rows_dim, self.w = rows_dim, nn.Parameter(torch.zeros(()))

    def plates(self, x: Tensor) -> tuple[pyro.plate, pyro.plate]:
        return pyro.plate("data", len(x), dim=self.rows_dim), pyro.plate("items", ITEMS, dim=-3 - self.rows_dim)

    def as_placed(self, x: Tensor) -> Tensor:
        return x.T if self.rows_dim == -1 else x

    def model(self, x: Tensor) -> None:
        rows, items = self.plates(x)
        with rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        with rows, items:
            u = pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(u + z, NOISE), obs=self.as_placed(x))

    def guide(self, x: Tensor) -> None:
        rows, items = self.plates(x)
        mean = 0.75 * x.mean(1) + self.w
        with rows:
            z = pyro.sample("z", dist.Normal(mean if self.rows_dim == -1 else mean.unsqueeze(-1), 0.5))
        with rows, items:
            pyro.sample("u", dist.Normal(self.as_placed(x) - z, NOISE))


def fit(rows_dim: int, num: int) -> tuple[pv.Fit, Tensor]:
    x = torch.randn(num, ITEMS, generator=torch.Generator().manual_seed(0))
    return pv.fit(Effects(rows_dim), x, epochs=0, progress=False, seed=0), x


# as many rows as items, too, so that no shape says which dimension is which
CASES = pytest.mark.parametrize(("rows_dim", "num"), [(-1, 5), (-1, ITEMS), (-2, 5), (-2, ITEMS)])


@CASES
def test_given_values_reach_their_rows_and_items(rows_dim: int, num: int) -> None:
    fitted, _ = fit(rows_dim, num)
    z, u = 100 * torch.arange(num).float(), torch.arange(num * ITEMS).reshape(num, ITEMS).float()
    wanted = u + z[:, None]
    torch.testing.assert_close(pv.decode(fitted, {"z": z, "u": u}), wanted)
    given = {"z": z, "u": u}
    assert float((pv.generate(fitted, num, given=given, seed=0) - wanted).abs().max()) < 6 * NOISE  # false once in 10^7
    drawn = pv.simulate(fitted, num, given={"z": z}, seed=0)
    assert drawn["z"].shape == (num,) and drawn["u"].shape == drawn["x"].shape == (num, ITEMS)
    assert float((drawn["x"] - drawn["u"] - z[:, None]).abs().max()) < 6 * NOISE
    with pytest.raises(pv.DataError, match=r"'u' must have rows of shape \(3,\), got \(4,\)"):
        pv.generate(fitted, num, given={"u": torch.zeros(num, 4)})


@CASES
def test_arviz_has_predictions_at_the_draws_of_the_posterior(rows_dim: int, num: int) -> None:
    """They were at transposed draws where rows are as many as items, and an error elsewhere."""
    fitted, x = fit(rows_dim, num)
    tree = pv.to_arviz(fitted, x, num_samples=4, num_particles=50, proposal="guide", seed=0)
    posterior = {name: torch.from_numpy(tree["posterior"][name].values[0]) for name in ("z", "u")}
    predicted = torch.from_numpy(tree["posterior_predictive"]["x"].values[0])
    assert posterior["u"].shape == predicted.shape == (4, num, ITEMS)
    assert float((predicted - posterior["u"] - posterior["z"][..., None]).abs().max()) < 6 * NOISE
    by_hand = (
        dist.Normal(0.0, 1.0).log_prob(posterior["z"])
        + dist.Normal(0.0, 1.0).log_prob(posterior["u"]).sum(-1)
        + dist.Normal(posterior["u"] + posterior["z"][..., None], NOISE).log_prob(x).sum(-1)
    )
    torch.testing.assert_close(torch.from_numpy(tree["sample_stats"]["log_joint"].values[0]).float(), by_hand)
