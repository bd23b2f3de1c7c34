"""Of a few graphs an estimator keeps the one that is best in rows held out."""

from typing import Any

import numpy as np
import pytest
import torch

from pyrovae.errors import NotFiniteError, OptionError
from pyrovae.models.linear import LinearPosterior
from pyrovae.sklearn import VAEDensity, VAEImputer, _graphs
from pyrovae.sklearn._search import GROUPS, Start, best_fit, hidden_in_turn
from pyrovae.tables import recipe

QUICK: dict[str, Any] = {"max_iter": 2, "hidden_layer_sizes": (8,), "proposal": "guide", "random_state": 0}


def line(num: int = 200, columns: int = 5, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(num, 2)) @ random.normal(size=(2, columns)) + 0.3 * random.normal(size=(num, columns))


def with_gaps(x: np.ndarray, share: float = 0.2) -> np.ndarray:
    gaps = np.random.default_rng(1).random(x.shape) < share
    gaps[gaps.all(1)] = False
    return np.where(gaps, np.nan, x)


class Told:
    """What stands for a fit."""

    def __init__(self, name: str) -> None:
        self.name, self.info = name, dict[str, Any]()


def search(scores: dict[str, float | None]) -> tuple[Told, list[str]]:
    """The fit that is kept where these are the scores; None: it cannot be fitted. And the starts that were judged."""
    judged: list[str] = []

    def fit(start: Start) -> Any:
        if scores[start.name] is None:
            raise NotFiniteError("It diverged.")
        return Told(start.name)

    def judge(fitted: Any, rows: torch.Tensor) -> torch.Tensor:
        judged.append(fitted.name)
        return torch.full((len(rows),), float(scores[fitted.name] or 0.0))

    starts = [Start(name, lambda x: x) for name in scores]
    kept: Any = best_fit(starts, fit, judge, torch.zeros(3, 2))
    return kept, judged


def test_the_start_with_the_highest_score_is_kept() -> None:
    kept, _ = search({"first": -2.0, "second": -1.0, "third": -3.0})
    assert kept.name == "second" and kept.info["search"] == {"first": -2.0, "second": -1.0, "third": -3.0}
    assert search({"first": -1.0, "second": -1.0})[0].name == "first"
    assert search({"first": float("nan"), "second": -9.0})[0].name == "second"
    kept, judged = search({"first": -1.0, "second": None})
    assert kept.name == "first" and kept.info["search"] == {"first": -1.0} and judged == ["first"]
    kept, judged = search({"only": -1.0})
    assert kept.info == {} and judged == []
    with pytest.raises(NotFiniteError):
        search({"first": None, "second": -1.0})


@pytest.mark.parametrize(("scores", "kept"), [((2.0, -1.0, 1.0), "first"), ((1.0, 0.5, 1.5), "second")])
def test_a_start_that_has_to_lead_does_so_by_its_standard_error(scores: tuple[float, ...], kept: str) -> None:
    """By 0.67 +- 0.88, and by 1.0 +- 0.29."""
    of = {"first": torch.zeros(3), "second": torch.tensor(scores)}
    starts = [Start("first", lambda x: x), Start("second", lambda x: x, leads=True)]

    def judge(fitted: Any, rows: torch.Tensor) -> torch.Tensor:
        return of[fitted.name]

    def fit(start: Start) -> Any:
        return Told(start.name)

    found: Any = best_fit(starts, fit, judge, torch.zeros(3, 2))
    assert found.name == kept
    starts[1] = Start("second", lambda x: x)
    found = best_fit(starts, fit, judge, torch.zeros(3, 2))
    assert found.name == "second"


def test_each_observed_entry_is_hidden_once() -> None:
    rows = torch.from_numpy(with_gaps(line(40, 7), 0.4))
    times = torch.zeros(rows.shape)
    groups = list(hidden_in_turn(rows, 0))
    for holed, where in groups:
        times += where
        assert torch.equal(holed.isnan(), rows.isnan() | where)
        assert torch.equal(holed[~holed.isnan()], rows[~holed.isnan()])
        most = torch.ceil((~rows.isnan()).sum(1) / GROUPS)
        assert bool((where.sum(1) <= most).all())
    assert len(groups) == GROUPS and torch.equal(times, (~rows.isnan()).float())


@pytest.mark.parametrize("kind", [VAEDensity, VAEImputer])
def test_a_default_graph_does_not_see_the_rows_that_judge_it(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts as a density of its rows, so that its first epochs would look better than they are."""
    seen: list[torch.Tensor] = []
    made = _graphs.copies

    def copies(x: torch.Tensor, *how: Any) -> Any:
        seen.append(x)
        return made(x, *how)

    monkeypatch.setattr(_graphs, "copies", copies)
    model = kind(**QUICK).fit(line())
    judges = model._held_out_by(int(np.random.RandomState(0).randint(2**31 - 1)), 200)
    held_out = model._scaled(line())[judges]
    assert len(judges) == 20 and seen
    for x in seen:
        assert len(x) == 180
        assert not bool((x.unsqueeze(0) == held_out.unsqueeze(1)).all(-1).any())


def test_a_density_says_what_it_compared() -> None:
    found = VAEDensity(**QUICK).fit(line(400, 2)).fit_.info["search"]
    flow, mixture = "a mixture and a flow as prior", "a mixture as prior"
    assert list(found) == [flow, f"{flow}, with little noise", mixture, _graphs.RANDOM_START]
    assert all(np.isfinite(score) for score in found.values())
    assert "search" not in VAEDensity(search="none", **QUICK).fit(line(400, 2)).fit_.info
    assert "search" not in VAEDensity(n_components=2, **QUICK).fit(line()).fit_.info
    assert "search" not in VAEDensity(validation_fraction=None, **QUICK).fit(line()).fit_.info
    assert "search" not in VAEDensity(**QUICK).fit(line(60)).fit_.info  # too few rows to judge by


@pytest.mark.parametrize("kind", [VAEDensity, VAEImputer])
@pytest.mark.parametrize("given", ["small", True, None])
def test_a_search_that_is_none(kind: Any, given: Any) -> None:
    with pytest.raises(OptionError, match="search must be 'auto' or 'none', got"):
        kind(search=given, **QUICK).fit(line(20))


@pytest.mark.parametrize("num", [60, 200])
def test_an_imputer_keeps_one_normal_where_that_is_the_truth(num: int) -> None:
    """What it fills in is the mean of the missing given the observed entries, of the Normal of EM."""
    rows = with_gaps(line(num))
    model = VAEImputer(**QUICK).fit(rows)
    assert isinstance(model.fit_.pair.encoder, LinearPosterior) and model.n_iter_ == recipe.EM_STEPS
    x = model._scaled(rows)
    learned = np.setdiff1d(np.arange(num), model._held_out_by(int(np.random.RandomState(0).randint(2**31 - 1)), num))
    mean, covariance = recipe.normal_of_observed(x[learned])
    exact = model._unscaled(recipe._given_the_rest(x, mean, covariance)[0])
    gaps = np.isnan(rows)
    filled = model.transform(rows)
    assert np.abs((filled - exact)[gaps] / np.nanstd(rows)).max() < 0.15  # the error of the mean of 400 draws
    assert np.array_equal(filled[~gaps], rows[~gaps])


def test_an_imputer_keeps_the_vae_where_a_line_says_nothing() -> None:
    """Two clusters, in which the columns are correlated, and not in all rows: a circle has no line through it."""
    random = np.random.default_rng(0)
    angle = random.uniform(0, 2 * np.pi, 300)
    circle = np.column_stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)])
    rows = with_gaps(circle + 0.05 * random.normal(size=circle.shape), 0.1)
    model = VAEImputer(max_iter=2, proposal="laplace", n_particles=50, random_state=0).fit(rows)
    found = model.fit_.info["search"]
    assert found["a Normal with full covariance"] < max(found.values())
    assert not isinstance(model.fit_.pair.encoder, LinearPosterior)
    alone = [VAEImputer(**QUICK | {"search": "none", "random_state": seed}).fit(rows) for seed in (0, 1)]
    assert all(isinstance(one.fit_.pair.encoder, type(model.fit_.pair.encoder)) for one in alone)
    assert not np.array_equal(*(one.transform(rows) for one in alone))
