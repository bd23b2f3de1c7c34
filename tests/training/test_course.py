"""A fit that diverged with numbers that stayed finite is said to have diverged, and by everything that is asked of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.programs import binary, vae
from torch import Tensor

import pyrovae as pv
from pyrovae.fitted.diverged import diverged
from pyrovae.training.course import Course

HOW: dict[str, Any] = {"epochs": 6, "batch_size": 10, "seed": 0, "device": "cpu", "progress": False}


def real(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))


def of_reals(scale: Any = "shared") -> pv.VAE:
    torch.manual_seed(0)
    family = pv.families.Normal(3, scale=scale)
    return pv.VAE(
        pv.priors.StandardNormal(2), pv.mlp(2, family, hidden=(8,)), pv.mlp(3, pv.families.Normal(2), hidden=(8,))
    )


DIVERGING: dict[str, Any] = {
    "a rate for counts": lambda **more: pv.fit(vae(), binary(), learning_rate=1e4, **HOW, **more),
    "a rate for reals": lambda **more: pv.fit(of_reals(), real(), learning_rate=3.0, **HOW, **more),
    "with validation rows": lambda **more: pv.fit(vae(), binary(), learning_rate=1e4, validation=0.2, **HOW, **more),
    "the best epoch": lambda **more: pv.fit(
        vae(), binary(), learning_rate=1e4, validation=0.2, keep_best=True, **HOW, **more
    ),
    "free bits": lambda **more: pv.fit(
        vae(), binary(), learning_rate=1e3, loss=pv.Trace_ELBO(kl=pv.kl.free_bits(0.5)), **HOW, **more
    ),
    "an IWELBO": lambda **more: pv.fit(vae(), binary(), learning_rate=1e4, loss=pv.IWELBO(3), **HOW, **more),
    "a full batch": lambda **more: pv.fit(vae(), binary(), learning_rate=1e4, **HOW | {"batch_size": 40}, **more),
}


@pytest.mark.parametrize("name", DIVERGING)
def test_a_fit_that_ends_far_below_its_start_has_diverged(name: str) -> None:
    with pytest.warns(UserWarning, match="The fit diverged: its ELBO was .* lower the learning rate"):
        fitted = DIVERGING[name]()
    known = fitted.settings["diverged"]
    assert known["end"] < 2 * known["start"] and "before the first step" in diverged(fitted)


def outlying() -> Tensor:
    """Rows of which the last is all but impossible, so that means over all rows are far below most minibatches."""
    rows = real()
    rows[-1] = 1e3
    return rows


def heavy() -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(600, 3, generator=random) * torch.exp(2 * torch.randn(600, 1, generator=random))


SOUND: dict[str, Any] = {
    "five steps on rows with heavy tails": lambda: pv.fit(
        of_reals(), heavy(), **HOW | {"epochs": 1, "batch_size": 120}
    ),
    "sixty of them": lambda: pv.fit(of_reals(), heavy(), **HOW | {"epochs": 12, "batch_size": 120}),
    "an ordinary fit": lambda: pv.fit(vae(), binary(), **HOW),
    "of one step": lambda: pv.fit(vae(), binary(), **HOW | {"epochs": 1, "batch_size": 40}),
    "of no step": lambda: pv.fit(vae(), binary(), **HOW | {"epochs": 0}),
    "an outlier, which few minibatches have": lambda: pv.fit(of_reals(1.0), outlying(), **HOW),
    "free bits, at whose floor the ELBO is low": lambda: pv.fit(
        vae(), binary(), learning_rate=0.05, loss=pv.Trace_ELBO(kl=pv.kl.free_bits(20.0)), **HOW | {"epochs": 40}
    ),
    "no weight of KL terms": lambda: pv.fit(
        vae(), binary(), learning_rate=0.05, schedule=lambda step: {"kl": 0.0}, **HOW | {"epochs": 40}
    ),
}


@pytest.mark.filterwarnings("ignore:.* far from")
@pytest.mark.parametrize("name", SOUND)
def test_a_fit_that_went_well_has_not(name: str) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fitted = SOUND[name]()
    assert "diverged" not in fitted.settings and not diverged(fitted)
    assert not [one for one in told if "diverged" in str(one.message)]


class History:
    """What `Course.end` reads of a fit."""

    def __init__(self, *elbos: float, **settings: Any) -> None:
        self.history = [{"epoch": number, "elbo": elbo} for number, elbo in enumerate(elbos, 1)]
        self.settings = settings


@pytest.mark.parametrize(
    ("elbos", "settings", "expected"),
    [
        ((-90.0, -50.0, -49.0), {}, False),
        ((-90.0, -50.0, -300.0), {}, True),  # what it had gained, and more, is lost at the end
        ((-90.0, -50.0, -300.0), {"best_epoch": 2}, False),  # whose weights are kept
        ((-90.0, -50.0, -54.0), {}, False),
        ((-100.4, -100.1, -100.4), {}, False),  # less than a nat
        ((-3000.0, -200.0, -120.0), {}, False),  # after a bad start
    ],
)
def test_what_was_gained_and_is_lost_counts(elbos: Any, settings: dict[str, Any], expected: bool) -> None:
    course, fitted = Course(relaxed=False), History(*elbos, **settings)
    course.start = -100.0
    course.late = list(elbos)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        course.end(fitted, elbo=True)  # type: ignore[arg-type]
    assert ("diverged" in fitted.settings) == expected


@pytest.mark.parametrize(("steps", "end", "expected"), [(5, -205.0, False), (5, -1e6, True), (50, -205.0, True)])
def test_few_steps_are_judged_with_care(steps: int, end: float, expected: bool) -> None:
    """Of rows with heavy tails another minibatch alone may be twice as bad; these are numbers of such a fit."""
    course, fitted = Course(relaxed=False), History(end)
    fitted.history[0]["steps"] = steps
    course.start, course.late = -91.2, [end]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        course.end(fitted, elbo=True)  # type: ignore[arg-type]
    assert ("diverged" in fitted.settings) == expected


def test_a_run_folder_and_a_resumed_fit_know_of_it(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="The fit diverged"):
        whole = DIVERGING["a rate for reals"]()
    with pytest.warns(UserWarning, match="The fit diverged"):
        pv.fit(of_reals(), real(), learning_rate=3.0, checkpoint=tmp_path / "run", **HOW | {"epochs": 2})
    with pytest.warns(UserWarning, match="The fit diverged"):
        pv.fit(of_reals(), real(), learning_rate=3.0, checkpoint=tmp_path / "run", resume=True, **HOW)
    assert pv.load(tmp_path / "run").settings["diverged"] == whole.settings["diverged"]


@pytest.mark.filterwarnings("ignore:The fit diverged")
def test_answers_do_not_ask_for_more_draws_of_a_fit_that_diverged() -> None:
    fitted = DIVERGING["a rate for reals"]()
    rows = real()[:5]
    with pytest.warns(
        UserWarning, match="the fit diverged: .* More draws do not help: lower the learning rate"
    ) as told:
        pv.posterior(fitted, rows, num_samples=20)
    assert "raise num_particles" not in str(told[0].message)
    report = pv.criticise(fitted, rows, num_samples=50, proposal="guide", only=("log_likelihood", "active_units"))
    first, *others = report.findings
    assert (first.name, first.verdict) == ("course of the fit", "bad") and "learning rate" in first.advice
    assert not any(finding.advice for finding in others)


@pytest.mark.filterwarnings("ignore:Before the fit")
@pytest.mark.parametrize(("scale", "what"), [(1e12, "gradient of"), (1e25, "log-density")])
def test_data_that_are_too_large_to_begin_with_are_to_be_standardised(scale: float, what: str) -> None:
    with pytest.raises(
        (pv.PairError, pv.DataError), match=rf"{what}.*the data reach .*Standardise them: units = pv.data"
    ):
        pv.fit(of_reals("net"), real(scale), **HOW)


@pytest.mark.filterwarnings("ignore:Before the fit")
def test_a_fit_to_data_far_from_what_a_network_expects_is_not_said_to_diverge() -> None:
    """It starts as badly as it goes on, and another warning names the cure."""
    assert "diverged" not in pv.fit(of_reals(), real(1e4), **HOW).settings
