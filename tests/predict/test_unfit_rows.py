"""Rows that a fitted pair does not take are refused by every question, in one error that names what is wrong, and where.

A table: each kind of pair, each way in which rows may be unfit, each question. Messages are looked at, since an error that is
right by accident helps nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.pairs import unfitted
from support.programs import ROWS, Row
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

KINDS = {  # what the discrete site that `classify` is asked about is called, or None
    "vae": None,
    "ssvae": "y",
    "stacked-ssvae": "y",
    "sdgm": "y",
    "two-labels": "y2",
    "cvae-label": None,
    "hierarchical-vae": None,
    "markov": None,
    "multimodal": None,
}
TAKES_GAPS = ("markov",)
BAD = 3  # the row that is spoiled, of eight
Asked = dict[str, Callable[[Any], Any]]


def whole_rows(row: Row) -> dict[str, Tensor]:
    """Eight rows of which everything is known."""
    data = row.data()
    data = data if isinstance(data, dict) else {"x": data}
    return {n: v[:8].nan_to_num(0.0) if v.is_floating_point() else v[:8].clamp_min(0) for n, v in data.items()}


def spoiled(data: dict[str, Tensor], takes_gaps: bool) -> dict[str, tuple[dict[str, Any], str]]:
    """Unfit rows by what is wrong with them, and what the message says."""
    found: dict[str, tuple[dict[str, Any], str]] = {}

    def with_value(argument: str, value: float) -> dict[str, Any]:
        changed = data[argument].clone()
        changed[(BAD, *(0 for _ in changed.shape[1:]))] = value
        return {**data, argument: changed}

    for name, value in data.items():
        if value.is_floating_point():
            found[f"infinite {name}"] = with_value(name, torch.inf), rf"'{name}' has 1 infinite value.*row {BAD}\)"
            if not takes_gaps:
                found[f"a gap in {name}"] = with_value(name, torch.nan), rf"'{name}' has 1 NaN.*row {BAD}\)"
            found[f"{name} too wide"] = {**data, name: torch.cat([value, value], -1)}, f"'{name}' must have rows of"
            found[f"text for {name}"] = {**data, name: np.array(["a"] * len(value))}, f"'{name}' must hold numbers"
        else:
            for label in (-2, 99):
                found[f"{label} in {name}"] = with_value(name, label), rf"'{name}\b.* {label} in row {BAD}\b"
            found[f"reals for {name}"] = {**data, name: value.numpy() + 0.5}, rf"'{name}' .*dtype int64"
    first = next(iter(data))
    found["no rows"] = {name: value[:0] for name, value in data.items()}, "at least one row"
    found["another argument"] = {**data, "other": data[first]}, r"does not take \['other'\]"
    if len(data) > 1:
        found["fewer rows of one"] = {**data, first: data[first][:5]}, "same number of rows"
    return found


def questions(fitted: pv.Fit, row: Row, site: str | None) -> Asked:
    asked: Asked = {
        "encode": lambda data: pv.encode(fitted, data, site=row.latent, num_samples=2),
        "reconstruct": lambda data: pv.reconstruct(fitted, data, site=row.observed, num_samples=2),
        "importance": lambda data: pv.importance(fitted, data, 2, proposal="guide", seed=0),
        "posterior": lambda data: pv.posterior(fitted, data, 2, num_particles=2, site=row.latent, proposal="guide"),
        "kl_by_site": lambda data: pv.kl_by_site(fitted, data, num_samples=2),
    }
    if site is not None:
        asked["classify"] = lambda data: pv.classify(fitted, data, site=site, num_samples=2)
    return asked


@pytest.mark.parametrize("kind", KINDS)
def test_every_question_refuses_them_and_says_why(kind: str) -> None:
    row, site = ROWS[kind], KINDS[kind]
    torch.manual_seed(0)
    data = whole_rows(row)
    asked = questions(unfitted(row.build(), data), row, site)
    for name, ask in asked.items():
        ask(data)
        for what, (unfit, says) in spoiled(data, kind in TAKES_GAPS).items():
            if name == "classify" and f" {site}" in what:  # its own labels are ignored
                continue
            if name != "encode" and what.split()[0] not in ("a", "infinite", "99"):  # all questions bind data alike
                continue
            with pytest.raises(pv.DataError) as told:  # any other error fails here
                ask(unfit)
            told.match(says)


@pytest.mark.parametrize("kind", ["ssvae", "two-labels", "cvae-label"])
def test_a_row_is_named_by_its_number_in_the_data(kind: str) -> None:
    """Rows are asked about in groups by what is known of them, and in each have other numbers."""
    row = ROWS[kind]
    torch.manual_seed(0)
    data = {name: value[-12:].clone() for name, value in row.data().items()}
    fitted = unfitted(row.build(), whole_rows(row))
    data["x"][11, 2] = torch.nan
    for ask in questions(fitted, row, KINDS[kind]).values():
        with pytest.raises(pv.DataError, match=r"'x' has 1 NaN in 1 row \(the first is row 11\)"):
            ask(data)


def test_of_two_arguments_with_gaps_the_one_is_named_that_the_pair_does_not_take() -> None:
    """The second kind of data of a pair may have gaps, the first may not."""
    row = ROWS["multimodal"]
    torch.manual_seed(0)
    pair = row.build()
    pair.encoder2 = pv.Conditional(pv.nets.WithMask(pv.nets.MLP((3, 3), (2, 2), hidden=(8,))), fam.Normal(2))
    data = whole_rows(row)
    fitted = unfitted(pair, data)
    data["x2"][1, 0] = torch.nan
    assert bool(pv.encode(fitted, data).isfinite().all())
    data["x1"][2, 0] = torch.nan
    with pytest.raises(pv.DataError, match="'x1' has 1 NaN"):
        pv.encode(fitted, data)


def with_gaps() -> pv.SSVAE:
    """Classes that x depends on, and a code that it does not, so that sums over classes are exact; entries may be missing."""
    torch.manual_seed(0)

    def masked(*shape: int) -> pv.nets.WithMask:
        return pv.nets.WithMask(pv.nets.MLP((6, 6), shape, hidden=(8,)))

    class OfClass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(2 * torch.randn(3, 6))

        def forward(self, z: Tensor, code: Tensor) -> Any:
            return fam.Bernoulli(6)((code @ self.logits + 0 * z.sum(-1, keepdim=True)).unsqueeze(-2))

    return pv.SSVAE(
        label_prior=pv.priors.Categorical(3),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.observed_only(OfClass()),
        encoder=FirstOnly(pv.Conditional(masked(2, 2), fam.Normal(2))),
        classifier=pv.Conditional(masked(3), fam.Categorical((), 3)),
        code=pv.nets.OneHot(3),
    )


class FirstOnly(nn.Module):
    """q(z | x) in the place of q(z | x, y)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, code: Tensor) -> Any:
        return self.encoder(x)


def test_where_gaps_are_left_out_of_the_likelihood_classes_follow_from_what_is_observed() -> None:
    pair, x = with_gaps(), torch.bernoulli(torch.full((5, 6), 0.5))
    x[torch.rand(5, 6) < 0.4] = torch.nan
    x[4] = torch.nan  # a row of which nothing is known
    fitted = unfitted(pair, {"x": x})
    seen = ~x.isnan()
    logits = pair.likelihood.get_parameter("likelihood.logits")
    log_p = torch.distributions.Bernoulli(logits=logits).log_prob(x.nan_to_num(0.0)[:, None])
    log_p = (log_p * seen[:, None]).sum(-1).detach()
    torch.testing.assert_close(
        pv.classify(fitted, x, num_samples=2000).joint.float(), log_p.softmax(-1), atol=0.1, rtol=0
    )


def test_a_density_that_overflows_is_told_and_no_answer() -> None:
    """The condition of row 3 is finite, and what the networks make of it is not."""
    row = ROWS["cvae-vector"]
    torch.manual_seed(0)
    data = whole_rows(row)
    fitted = unfitted(row.build(), data)
    data["c"][BAD] = 1e30
    told = f"of row {BAD} is undefined: .* means are over the other rows, {len(data['x']) - 1} of {len(data['x'])}"
    with pytest.warns(UserWarning, match=told):
        found = pv.log_likelihood(fitted, data, 3, proposal="guide", seed=0)
    others = torch.arange(len(found)) != BAD
    assert found.isnan().tolist() == (~others).tolist()
    with pytest.warns(UserWarning, match=told):
        every = pv.importance(fitted, data, 3, proposal="guide", seed=0)
    for column in (every.log_likelihood, every.standard_error, every.elbo, every.ess):
        assert column.isnan().tolist() == (~others).tolist()
    summary = every.summary()
    assert summary["undefined_rows"] == 1
    assert summary["log_likelihood"] == pytest.approx(found[others].mean().item())
    assert summary["elbo"] == pytest.approx(every.elbo[others].mean().item())
    strange = pv.anomaly_score(fitted, data, num_samples=3, proposal="guide", seed=0)
    assert strange.ranks[BAD] == 1 and strange.score[BAD] == torch.inf
    torch.testing.assert_close(strange.score[others], -found[others])
    both = {"reference": data, "num_samples": 3, "proposal": "guide", "seed": 0}
    typical = pv.anomaly_score(fitted, data, "typicality", **both).score
    assert typical.isinf().tolist() == (~others).tolist()


@pytest.mark.parametrize("number", [2.5, "3", None, True, 0, -1])
def test_numbers_of_rows_and_draws_are_whole_and_positive(number: Any) -> None:
    torch.manual_seed(0)
    row = ROWS["vae"]
    data = whole_rows(row)
    fitted = unfitted(row.build(), data)
    least = "at least 1, got 0" if number == 0 else "at least 1"
    for name, ask in {
        "num": lambda: pv.generate(fitted, number),
        "num ": lambda: pv.simulate(fitted, number),
        "num_samples": lambda: pv.encode(fitted, data, num_samples=number),
        "num_samples ": lambda: pv.reconstruct(fitted, data, num_samples=number),
        "num_samples  ": lambda: pv.importance(fitted, data, number),
        "num_samples   ": lambda: pv.kl_by_site(fitted, data, num_samples=number),
    }.items():
        with pytest.raises(pv.OptionError, match=f"^{name.strip()} must be .*{least}"):
            ask()
