"""Enumerated sites: equal to Pyro's TraceEnum_ELBO and to sums written by hand, for any program, and refused where wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pairs import ENUMERATED, MIXTURE_GLOBAL, Row, described, largest_difference, ours, pyros, relative_difference
from torch import Tensor

import pyrovae as pv
from pyrovae.infer.enumeration import expected
from pyrovae.infer.objectives import count
from pyrovae.pair import param_scope

TOLERANCE = 1e-10
MANY = 50  # rows of the whole data set that the batch stands for


def named(rows: list[Row]) -> Any:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys() and len(a) > 1
    for name in b:
        assert b[name].abs().max() > 1e-6, f"{name} is zero: nothing is compared"
        assert relative_difference(a[name], b[name]) <= TOLERANCE, name


@pytest.fixture(autouse=True)
def own_param_store() -> Iterator[None]:
    with param_scope({}):
        yield


def enumerated(row: Row, pair: Any, batch: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Ours, with -log q of the sites drawn without reparameterisation left in the gradient, as Pyro's DiCE leaves it.

    Its gradient has expectation zero; ours, as Pyro's own Trace_ELBO, does without.
    """
    found = ours(row, pair, batch, **options)
    if not row.score:
        return found
    beta, particles = options.get("kl_weight", 1.0), options.get("particles", 1)
    layout = described(pair, batch)
    torch.manual_seed(1)
    run = pv.terms(pair, batch, particles, layout=layout)
    rows = options.get("num_rows") or run.num_rows
    direct = torch.zeros((), dtype=torch.float64)
    for name, term in run.sites.items():
        if term.q is not None and term.q.score is not None:
            part = expected(term.q.scaled, term.q.plates, name, run).sum()
            direct = direct + beta * count(term, run, rows) * part / particles
    named = dict(pair.named_parameters())
    more = torch.autograd.grad(direct, list(named.values()), materialize_grads=True)
    return {**found, **{name: found[name] + g for name, g in zip(named, more)}}


# --- against Pyro ----------------------------------------------------------------------------------------------------


@named([*ENUMERATED, MIXTURE_GLOBAL])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("num_rows", [None, MANY])
def test_trace_enum_elbo(row: Row, particles: int, num_rows: int | None) -> None:
    pair, batch = row.build()
    if row is MIXTURE_GLOBAL and num_rows:
        with pytest.raises(pv.PairError, match="'s' is summed out .*batch_size=len"):
            ours(row, pair, batch, particles=particles, num_rows=num_rows)
        return
    a = enumerated(row, pair, batch, particles=particles, num_rows=num_rows)
    assert_equal(a, pyros(row, pair, batch, particles=particles, num_rows=num_rows))


@named(ENUMERATED)
def test_subsample_scale_of_its_own(row: Row) -> None:
    # Plate "data" says N/B itself: `num_rows` must not say it again.
    pair, batch = row.build()
    pair.total = MANY
    a = ours(row, pair, batch, num_rows=MANY)
    pair.total = None
    assert_equal(a, ours(row, pair, batch, num_rows=MANY))


@named([row for row in ENUMERATED if "mixture" not in row.name and row.name != "both_sides"])
@pytest.mark.parametrize("particles", [1, 3])
def test_kl_weight_with_pyro_means(row: Row, particles: int) -> None:
    # Pyro takes one scale only for all that a site of the model is summed with: those are below.
    pair, batch = row.build()
    options: dict[str, Any] = {"particles": particles, "num_rows": MANY, "kl_weight": 0.3}
    assert_equal(enumerated(row, pair, batch, **options), pyros(row, pair, batch, **options))


def test_comparison_can_fail() -> None:
    row = ENUMERATED[0]
    pair, batch = row.build()
    reference = pyros(row, pair, batch, num_rows=MANY)
    wrong = [ours(row, pair, batch), ours(row, pair, batch, num_rows=MANY, kl_weight=0.5)]
    layout = described(pair, batch)
    torch.manual_seed(1)
    # a fold by logsumexp over the guide's y loses the classifier
    by_sum = pv.log_weights(pv.terms(pair, batch, layout=layout)).sum() * MANY / len(batch["x"])
    assert torch.autograd.grad(by_sum, pair.classify, allow_unused=True, retain_graph=True)[0] is None
    assert abs(by_sum + reference["value"]) > 1e-4 * abs(by_sum)
    for found in wrong:
        assert max(largest_difference(found, reference)) > 1e-4
