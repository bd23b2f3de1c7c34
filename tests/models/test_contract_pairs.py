"""A row in the table of programs is a test suite: every way of writing a pair fits, answers, saves and loads."""

import warnings
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from support.programs import ONE_OF_EACH_KIND, ROWS, Discrete, Row
from support.told import told

import pyrovae as pv
from pyrovae.criticism import proposals
from pyrovae.pair.batch import as_batch
from pyrovae.pair.parameters import param_scope, trainable

# Whether a traced fit repeats and resumes does not depend on the graph: these stand for all, since to trace takes long.
TRACED = ("vae", "ssvae", "registered-modules")
pytestmark = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=name, marks=[] if name in ONE_OF_EACH_KIND else [pytest.mark.slow])
        for name, row in ROWS.items()
    ],
    scope="module",
)


def engine_of(row: Row) -> str:
    return "traced" if any(row is ROWS[name] for name in TRACED) else "eager"


def short_fit(row: Row) -> tuple[pv.Fit, Any]:
    """A fit of the row's pair, and its data; always the same."""
    pyro.set_rng_seed(0)
    data = row.data()
    return pv.fit(row.build(), data, epochs=2, batch_size=16, seed=1, engine=engine_of(row)), data


@pytest.fixture(scope="module")
def fitted(row: Row) -> tuple[pv.Fit, Any]:
    """The short fit, for all tests that only ask it something."""
    return short_fit(row)


def test_check_pair_accepts_it_and_leaves_it_alone(row: Row) -> None:
    pair = row.build()
    before = torch.get_rng_state()
    layout = pv.check_pair(pair, row.data())
    torch.set_rng_state(before)
    assert any(s.role == "observed" for s in layout.sites)
    assert not pyro.get_param_store().keys()
    assert len(str(layout).splitlines()) == len(layout.sites)


def test_fit_moves_every_parameter_and_keeps_the_global_store_empty(row: Row) -> None:
    pair = row.build()
    data = row.data()
    start = pv.fit(pair, data, epochs=1, batch_size=40, seed=1, learning_rate=1e-12, engine="eager")
    before = {name: t.detach().clone() for name, t in tensors(start).items()}
    fitted = pv.fit(pair, data, epochs=3, batch_size=16, seed=1, learning_rate=0.05, engine="eager")
    after = tensors(fitted)
    assert before.keys() == after.keys()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not still, f"these did not move: {still}"
    assert not pyro.get_param_store().keys()
    assert all(torch.isfinite(torch.tensor(list(h.values()))).all() for h in fitted.history)


def tensors(fitted: pv.Fit) -> dict[str, torch.Tensor]:
    with param_scope(fitted.store):
        return trainable(fitted.pair)


@pytest.mark.slow
def test_two_fits_from_one_seed_are_equal(row: Row, fitted: tuple[pv.Fit, Any]) -> None:
    one, two = fitted[0], short_fit(row)[0]
    assert [h["elbo"] for h in one.history] == [h["elbo"] for h in two.history]


def test_a_second_fit_does_not_disturb_the_first(row: Row, fitted: tuple[pv.Fit, Any]) -> None:
    first, data = fitted
    before = pv.log_likelihood(first, data, 20, seed=0, proposal="guide")
    pv.fit(row.build(), data, epochs=2, batch_size=16, seed=2, engine="eager")
    assert torch.equal(before, pv.log_likelihood(first, data, 20, seed=0, proposal="guide"))


def test_importance_answers_for_every_row_and_any_chunking(row: Row, fitted: tuple[pv.Fit, Any]) -> None:
    fit, data = fitted
    found = pv.importance(fit, data, num_samples=30, seed=0, proposal="guide")
    for values in (found.log_likelihood, found.standard_error, found.elbo, found.ess):
        assert values.shape == (40,) and torch.isfinite(values).all()
    assert found.k_hat.shape == (40,) and not torch.isnan(found.k_hat).any()
    # Jensen, per row and draw set: the log of a mean is at least the mean of the logs.
    assert (found.log_likelihood >= found.elbo - 1e-9).all()
    assert ((found.ess >= 1 - 1e-9) & (found.ess <= 30 + 1e-6)).all()


def test_a_proposal_is_refined_for_rows_of_every_pair_with_continuous_sites(
    row: Row, fitted: tuple[pv.Fit, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps are enough here: estimates have no bias whatever the proposal, and their accuracy is tested elsewhere."""
    monkeypatch.setattr(proposals, "STEPS", 4)
    fit, data = fitted
    few = {name: value[:12] for name, value in data.items()} if isinstance(data, dict) else data[:12]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = pv.importance(fit, few, 30, seed=0)
    codes = isinstance(fit.pair, pv.VQVAE)
    discrete = row.build is Discrete or isinstance(fit.pair, pv.CategoricalVAE)
    assert found.proposal == ("guide" if row.latent is None or discrete or codes else "refined")
    several = isinstance(fit.pair, pv.LabelsVAE)  # of which rows without both labels have no refined proposal
    why = "several enumerated sites" if several else "'z' is a single point" if codes else "'z' is not continuous"
    assert [why in message for message in told(said)] == [True] * (discrete or codes or several)
    for values in (found.log_likelihood, found.elbo, found.ess):
        assert values.shape == (12,) and torch.isfinite(values).all()


def test_evaluation_changes_nothing(row: Row, fitted: tuple[pv.Fit, Any]) -> None:
    fit, data = fitted
    before = {name: t.detach().clone() for name, t in tensors(fit).items()}
    pv.importance(fit, data, num_samples=5, proposal="guide")
    pv.reconstruct(fit, data, site=row.observed)
    pv.generate(fit, 40, given=given(fit, data), site=row.observed)
    assert all(torch.equal(before[name], t) for name, t in tensors(fit).items())
    assert not any(t.grad is not None and t.grad.abs().sum() > 0 for t in after_grad(fit))


def after_grad(fitted: pv.Fit) -> list[torch.Tensor]:
    values = list(tensors(fitted).values())
    for value in values:
        value.grad = None
    pv.importance(
        fitted, {n: torch.zeros(2, *s, dtype=d) for n, (s, d) in fitted.layout.arguments.items()}, 2, proposal="guide"
    )
    return values


def given(fitted: pv.Fit, data: Any) -> dict[str, torch.Tensor]:
    """Arguments that no site observes must be given to generate."""
    observed = {s.argument for layout in fitted.layouts for s in layout.sites}
    return {
        name: value
        for name, value in as_batch(fitted.pair, data).items()
        if name not in observed and name in fitted.layout.arguments
    }


def test_generate_draws_new_rows(row: Row, fitted: tuple[pv.Fit, Any]) -> None:
    fit, data = fitted
    made = pv.generate(fit, 40, given=given(fit, data), site=row.observed, seed=5)
    batch = as_batch(fit.pair, data)
    # labels, where there are any, stand first
    observed = [s for s in fit.layout.sites if s.role == "observed" and s.argument is not None][-1]
    assert made.shape == batch[str(observed.argument)].shape
    assert torch.isfinite(made).all() and not torch.equal(made, batch[str(observed.argument)])
    assert torch.equal(made, pv.generate(fit, 40, given=given(fit, data), site=row.observed, seed=5))


def test_encode_and_posterior_have_a_row_per_row(row: Row, fitted: tuple[pv.Fit, Any]) -> None:
    fit, data = fitted
    if row.latent is None:
        with pytest.raises(pv.PairError, match="has none"):
            pv.encode(fit, data)
        return
    codes = pv.encode(fit, data, site=row.latent, num_samples=3)
    draws = pv.posterior(fit, data, 1, site=row.latent, num_particles=10, proposal="guide")
    assert len(codes) == 40 and draws.shape == (1, *codes.shape)
    assert torch.isfinite(codes).all() and torch.isfinite(draws).all()


def test_save_and_load_give_the_same_answers(row: Row, fitted: tuple[pv.Fit, Any], tmp_path: Path) -> None:
    fit, data = fitted
    pv.save(fit, tmp_path / "run")
    torch.manual_seed(99)  # another initialisation
    if not row.rebuilds:
        with pytest.raises(pv.CheckpointError, match="pair="):
            pv.load(tmp_path / "run")
    loaded = pv.load(tmp_path / "run", pair=None if row.rebuilds else row.build())
    for seed in (0, 1):
        assert torch.equal(
            pv.log_likelihood(fit, data, 7, seed=seed, proposal="guide"),
            pv.log_likelihood(loaded, data, 7, seed=seed, proposal="guide"),
        )
    assert loaded.history == fit.history and loaded.layout == fit.layout
    assert not pyro.get_param_store().keys()


@pytest.mark.slow
def test_a_stopped_fit_resumed_equals_an_uninterrupted_one(row: Row, tmp_path: Path) -> None:
    data = row.data()
    options: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 12,  # 40 rows: the last batch is carried over
        "seed": 4,
        "validation": data,
        "patience": 5,
        "schedule": [pv.schedules.one_cycle(0.02), pv.schedules.kl_warmup(2)],
        "clip_norm": 5.0,
        "engine": engine_of(row),
    }
    torch.manual_seed(7)
    whole = pv.fit(row.build(), data, **options)
    torch.manual_seed(7)
    pv.fit(row.build(), data, checkpoint=tmp_path / "run", callbacks=[lambda f: len(f.history) == 1], **options)
    torch.manual_seed(1234)
    resumed = pv.fit(row.build(), data, checkpoint=tmp_path / "run", resume=True, **options)
    one, two = tensors(whole), tensors(resumed)
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    strip = [{k: v for k, v in h.items() if k != "seconds"} for h in whole.history]
    assert strip == [{k: v for k, v in h.items() if k != "seconds"} for h in resumed.history]
    assert len(resumed.history) == 3
