"""`gradient_variance` against variances that are known: of draws, of rows that are drawn without replacement, and none."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.comparisons import BOUND
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

NUM_ROWS, SCALE = 20, 0.6


class Shift(nn.Module):
    """z ~ N(0, 1), x | z ~ N(z + a, 1), guide N(b, SCALE^2); or, tied, a is b."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.b = self.a if tied else nn.Parameter(torch.tensor(-0.4, dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.a), 1.0))
            pyro.sample("x", dist.Normal(z + self.a, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.b, SCALE))


def rows() -> Tensor:
    return 2 * torch.randn(NUM_ROWS, dtype=torch.float64)


def test_variances_are_those_that_are_known() -> None:
    """The gradient is -(x - z - a) in a, and -(x - 2 z - a), or with KL in closed form -(x - z - a - b), in b.

    24 numbers: false alarms 1.6e-4.
    """
    x, pair, num = rows(), Shift(), 60
    losses = {"A": pv.Trace_ELBO(), "B": pv.Trace_ELBO(4, kl="analytic")}
    found = pv.gradient_variance(pair, x, losses, batch_size=[5, NUM_ROWS], num_batches=num, seed=1)
    for size in (5, NUM_ROWS):
        of_rows = x.var().item() / size * (1 - size / NUM_ROWS)  # a mean of rows drawn without replacement
        for loss, particles, parameters, slope in (("A", 1, "model", 1), ("A", 1, "guide", 2), ("B", 4, "guide", 1)):
            noise = found.of(loss, parameters, size)
            of_draws = (slope * SCALE) ** 2 / (size * particles)
            assert abs(noise.variance - of_rows - of_draws) <= BOUND * noise.error < 1.5 * noise.variance
            # half a squared difference of normals has twice its mean squared as variance, and there are `num` of them
            assert noise.of_draws == pytest.approx(of_draws, rel=BOUND * (2 / num) ** 0.5)
            mean = x.mean().item() - 0.3 + (0.8 if parameters == "guide" else 0.4)
            tolerance = BOUND * 2 * abs(mean) * (noise.variance / num) ** 0.5 + BOUND**2 * noise.variance / num
            assert noise.squared_norm == pytest.approx(mean**2, abs=tolerance)
        assert found.of("A", "model", size).of_draws > 2 * found.of("B", "model", size).of_draws
    assert (pair.a.item(), pair.b.item()) == pytest.approx((0.3, -0.4))


def test_an_exact_guide_leaves_no_noise_of_draws_to_sticking_the_landing() -> None:
    class Exact(Shift):
        """The guide's parameters are such that it is the posterior, N((x - a) / 2, 1 / 2)."""

        def __init__(self) -> None:
            super().__init__()
            self.slope, self.log_variance = (nn.Parameter(torch.tensor(v).double().log()) for v in (0.5, 0.5))
            self.b = nn.Parameter(torch.tensor(-0.15, dtype=torch.float64))

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.slope.exp() * x + self.b, (0.5 * self.log_variance).exp()))

    losses = {"plain": pv.Trace_ELBO(), "landing": pv.Trace_ELBO(gradient="sticking_the_landing")}
    found = pv.gradient_variance(Exact(), rows(), losses, batch_size=10, num_batches=10, seed=0)
    plain, landing = (found.of(name, "guide") for name in losses)
    assert landing.of_draws < 1e-20 * plain.of_draws and landing.squared_norm < 1e-20
    assert plain.of_draws > 1e-3


def test_parameters_of_both_sides_are_a_group_of_their_own() -> None:
    found = pv.gradient_variance(Shift(tied=True), rows(), [pv.Trace_ELBO()], batch_size=[2, 5], num_batches=4, seed=0)
    assert [(row.parameters, row.batch_size) for row in found.rows] == [("shared", 2), ("shared", 5)]
    with pytest.raises(pv.OptionError, match="There are 2 entries"):
        found.of(repr(pv.Trace_ELBO()), "shared")
    assert "Trace_ELBO(num_particles=1, kl=None)" in str(found) and "<table>" in found._repr_html_()


def test_a_seed_repeats_it_and_the_random_state_stays() -> None:
    options: dict[str, Any] = {"batch_size": 5, "num_batches": 4}
    state, x, losses = torch.get_rng_state(), torch.arange(NUM_ROWS).double(), {"elbo": pv.Trace_ELBO()}
    one, two = (pv.gradient_variance(Shift(), x, losses, seed=3, **options) for _ in range(2))
    assert one == two and torch.equal(torch.get_rng_state(), state)
    assert pv.gradient_variance(Shift(), x, losses, **options) != one


def test_groups_of_rows_and_transforms_are_those_of_a_fit() -> None:
    class Labelled(Shift):
        def model(self, x: Tensor, y: Tensor | None = None) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(self.a), 1.0))
                pyro.sample("x", dist.Normal(z + self.a, 1.0), obs=x)
                if y is not None:
                    pyro.sample("y", dist.Normal(self.a, 1.0), obs=y)

        def guide(self, x: Tensor, y: Tensor | None = None) -> None:
            super().guide(x)

    x = rows()
    y = torch.where(torch.arange(NUM_ROWS) < 8, x, torch.nan)
    fitted = pv.fit(Labelled(), {"x": x, "y": y}, epochs=0, progress=False)
    found = pv.gradient_variance(fitted, {"x": x, "y": y}, [pv.Trace_ELBO()], batch_size=10, num_batches=4, seed=0)
    assert [row.parameters for row in found.rows] == ["model", "guide"] and all(row.variance > 0 for row in found.rows)


@pytest.mark.parametrize(
    ("losses", "options", "words"),
    [
        ([], {}, "There is no loss"),
        ("ELBO", {}, "losses is a list"),
        (pv.Trace_ELBO(), {}, "losses is a list"),
        ([pv.Trace_ELBO(), pv.Trace_ELBO()], {}, "print alike"),
        ([pv.Trace_ELBO()], {"num_batches": 5}, "must be even"),
        ([pv.Trace_ELBO()], {"num_batches": 2}, "at least 4"),
        ([pv.Trace_ELBO()], {"batch_size": []}, "or a list of such, got"),
        ([pv.Trace_ELBO()], {"batch_size": None}, "or a list of such, got None"),
        ([pv.Trace_ELBO()], {"num_batches": None}, "must be even.*got None"),
        ([pv.Trace_ELBO()], {"batch_size": 0}, "batch_size must be a whole number"),
        ([pv.Trace_ELBO()], {"batch_size": 2.5}, "batch_size must be a whole number"),
    ],
)
def test_what_is_refused(losses: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(pv.OptionError, match=words):
        pv.gradient_variance(Shift(), rows(), losses, **options)


def test_more_rows_than_there_are_is_an_error_of_the_data() -> None:
    with pytest.raises(pv.DataError, match="larger than the 20 training rows"):
        pv.gradient_variance(Shift(), rows(), [pv.Trace_ELBO()], batch_size=21, num_batches=4)


def test_running_means_stay_as_they_are() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.Unflatten(-1, (2, 1)))
    encoder = pv.Conditional(net, fam.Normal(1))
    vae = pv.VAE(pv.priors.StandardNormal(1), pv.mlp(1, fam.Normal(2), hidden=(3,)), encoder)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    pv.gradient_variance(vae, torch.randn(20, 2), [pv.Trace_ELBO()], batch_size=10, num_batches=4, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
