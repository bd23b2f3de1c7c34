"""What a model masks is missing: what stands in its place is no data to any question."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.pair.masks import masked_out
from pyrovae.pair.simulated import simulated

PLACEHOLDER = 50.0
W, NOISE, MEAN = torch.tensor([1.0, 0.8, -0.6, 0.5]), 0.5, torch.tensor([0.5, 0.0, 1.0, -1.0])


class Masked(nn.Module):
    """z ~ N(0, 1), x ~ N(MEAN + z W, NOISE) where seen; the guide is the exact posterior."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.shift = kind, nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor, seen: Tensor) -> None:
        rows = pyro.plate("data", len(x), dim=-1)
        with rows:
            z = pyro.sample("z", dist.Normal(self.shift, 1.0))
        if self.kind == "columns":
            with pyro.plate("columns", 4, dim=-2), rows, poutine.mask(mask=seen.T):
                pyro.sample("x", dist.Normal(MEAN[:, None] + z * W[:, None], NOISE), obs=x.T)
            return
        normal = dist.Normal(MEAN + z.unsqueeze(-1) * W, NOISE)
        with rows, poutine.mask(mask=seen[:, 0] if self.kind == "rows" else True):
            fn = normal if self.kind == "rows" else normal.mask(seen)
            pyro.sample("x", fn.to_event(1), obs=x)

    def guide(self, x: Tensor, seen: Tensor) -> None:
        known = seen * W / NOISE**2
        precision = 1 + (known * W).sum(-1)
        off = (torch.where(seen, x, MEAN) - MEAN) * known
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((off.sum(-1) + self.shift) / precision, precision.rsqrt()))


def rows(kind: str, num: int = 200) -> dict[str, Tensor]:
    torch.manual_seed(1)
    x = MEAN + torch.randn(num, 1) * W + NOISE * torch.randn(num, 4)
    seen = torch.rand(num, 1 if kind == "rows" else 4).expand(num, 4) > 0.3
    return {"x": torch.where(seen, x, torch.tensor(PLACEHOLDER)), "seen": seen.contiguous()}


def fit(kind: str, data: dict[str, Tensor]) -> pv.Fit:
    return pv.fit(Masked(kind), data, epochs=0, seed=0, progress=False)


@pytest.mark.parametrize("kind", ["entries", "rows", "columns"])
def test_a_right_model_with_masks_is_not_blamed(kind: str) -> None:
    """Model and guide are exact, so that one report in a hundred has a verdict by chance; the seed is one of the others."""
    data = rows(kind)
    only = ["log_likelihood", "predictive_checks", "predictive_intervals", "simulation_based_calibration", "symmetry"]
    how: dict[str, Any] = {"num_samples": 50, "proposal": "guide", "seed": 0}
    report = pv.criticise(fit(kind, data), data, only=only, **how)
    assert {finding.name for finding in report.findings} >= {"calibration of the guide, z", "bias of the guide, z"}
    assert [str(finding) for finding in report.findings if finding.verdict not in ("ok", "none")] == []
    if kind == "columns":  # entries in a plate of their own are asked nothing of
        return
    means = report["means of columns"].says
    assert "50" not in means.split(" in the data")[0]


def test_densities_of_masked_entries_are_nan() -> None:
    data = rows("entries", 30)
    found = pv.entry_densities(fit("entries", data), data, num_samples=50, seed=0)
    assert torch.equal(found.log_density.isnan(), ~data["seen"])
    assert torch.equal(found.leave_one_out.isnan(), ~data["seen"])


@pytest.mark.parametrize("kind", ["entries", "columns"])
def test_arviz_is_not_given_what_stands_in_the_place_of_masked_entries(kind: str) -> None:
    data = rows(kind, 30)
    tree = pv.to_arviz(fit(kind, data), data, num_samples=3, num_particles=20, seed=0)
    observed = torch.from_numpy(tree["observed_data"]["x"].values)
    assert torch.equal(observed.isnan(), ~data["seen"]) and torch.equal(observed[data["seen"]], data["x"][data["seen"]])


@pytest.mark.parametrize("kind", ["entries", "rows"])
def test_a_guide_asleep_reads_what_stands_in_the_place_of_masked_entries(kind: str) -> None:
    data = rows(kind, 50)
    pair = Masked(kind)
    asleep = simulated(pair, data, pv.check_pair(pair, data)).rows["x"]
    assert bool((asleep[~data["seen"]] == PLACEHOLDER).all())
    assert not bool((asleep[data["seen"]] == data["x"][data["seen"]]).any())
    assert pv.fit(pair, data, epochs=1, loss=pv.WakeSleep(), progress=False, seed=0).history[-1]["elbo"] < 0


@pytest.mark.parametrize("kind", ["entries", "rows", "columns"])
def test_placeholders_are_not_far_from_what_a_likelihood_expects(kind: str) -> None:
    data = rows(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.check_pair(Masked(kind), data)
        pv.fit(Masked(kind), data, epochs=1, progress=False, seed=0)
    if kind != "columns":
        data["x"] = data["x"] * 1e4
        with pytest.warns(UserWarning, match="rows are far from that"):
            pv.fit(Masked(kind), data, epochs=1, progress=False, seed=0)


def test_masks_of_all_kinds() -> None:
    value, normal = torch.zeros(3, 2), dist.Normal(torch.zeros(3, 2), 1.0)
    by_row = torch.tensor([True, False, True])
    by_entry = torch.tensor([[True, False], [True, True], [False, True]])
    cases: list[tuple[Any, Any, Tensor | None]] = [
        (normal.to_event(1), None, None),
        (normal.to_event(1), True, None),
        (normal.mask(True).to_event(1), None, None),
        (normal.to_event(1), False, torch.ones(3, 2, dtype=torch.bool)),
        (normal.to_event(1), by_row, ~by_row[:, None].expand(3, 2)),
        (normal.mask(by_entry).to_event(1), None, ~by_entry),
        (normal.to_event(1).mask(by_row), None, ~by_row[:, None].expand(3, 2)),
        (normal.mask(by_entry).to_event(1), by_row, ~(by_entry & by_row[:, None])),
    ]
    for fn, mask, wanted in cases:
        found = masked_out(fn, mask, value)
        assert (found is None) == (wanted is None)
        if found is not None and wanted is not None:
            assert torch.equal(found.expand(3, 2), wanted)


@pytest.mark.parametrize("num", [4, 7])
def test_rows_come_first_where_a_plate_is_to_the_left_of_theirs(num: int) -> None:
    """Also where there are as many rows as columns, so that no shape says which is which."""
    data = rows("columns")
    data["seen"] = torch.ones_like(data["seen"])
    fitted = fit("columns", data)
    given = {"seen": torch.ones(num, 4, dtype=torch.bool)}
    z = torch.linspace(-30, 30, num)
    for found in (
        pv.generate(fitted, num, given={**given, "z": z}, seed=0),
        pv.simulate(fitted, num, given={**given, "z": z}, seed=0)["x"],
    ):
        assert found.shape == (num, 4)
        assert float((found - MEAN - z[:, None] * W).abs().max()) < 6 * NOISE  # false once in 10^7
    mean = pv.generate(fitted, num, given={**given, "z": z}, mean=True)
    torch.testing.assert_close(mean, MEAN + z[:, None] * W)
