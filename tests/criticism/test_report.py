"""The report on a fit: nothing is wrong with a healthy pair, and each planted fault is found and named."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from support.pairs import LinearGaussian, linear_gaussian, unfitted
from support.programs import ONE_OF_EACH_KIND, ROWS
from torch import Tensor

import pyrovae as pv
from pyrovae.criticism.aggregate import aggregate_posterior
from pyrovae.criticism.findings import Finding, grade, judged
from pyrovae.criticism.report import QUESTIONS

QUICK: dict[str, Any] = {"num_rows": 300, "num_samples": 200, "proposal": "guide"}


def rows(pair: LinearGaussian, num: int, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return pair.marginal().sample((num,))


def worth_a_look(report: pv.Report) -> set[str]:
    return {finding.name for finding in report.of("look", "bad")}


@pytest.fixture(scope="module")
def healthy() -> pv.Report:
    torch.manual_seed(0)
    pair, x, fitted = linear_gaussian(300)
    return pv.criticise(fitted, x, train=rows(pair, 600), **QUICK)


@pytest.mark.slow
def test_nothing_is_wrong_with_the_exact_posterior(healthy: pv.Report) -> None:
    """By chance a verdict changes in at most 1 of 100 such reports; this one is always the same."""
    assert healthy.verdict == "ok" and not worth_a_look(healthy) and not healthy.of("none")
    assert {finding.part for finding in healthy.findings} == {"bounds", "predictions", "latent variables", "guide"}
    tested = [finding for finding in healthy.findings if finding.p_value is not None]
    assert len(tested) > 8 and all(f.adjusted is not None and f.adjusted >= f.p_value for f in tested)
    assert not any(finding.advice for finding in healthy.findings)


def test_a_report_is_json_and_text(healthy: pv.Report) -> None:
    told = json.loads(json.dumps(healthy.to_json(), allow_nan=False))
    assert [entry["name"] for entry in told["findings"]] == [finding.name for finding in healthy.findings]
    assert told["about"]["rows"] == 300 and told["about"]["training_rows"] == 600
    assert all(finding.name in str(healthy) for finding in healthy.findings)
    assert healthy["log p(x)"].part == "bounds" and "Criticism: ok" in healthy._repr_html_()
    with pytest.raises(KeyError, match="is none of"):
        healthy["nothing"]


@pytest.mark.slow
def test_a_guide_with_half_the_variance_is_named() -> None:
    pair, x, fitted = linear_gaussian(300, spread=0.5)
    report = pv.criticise(fitted, x, train=rows(pair, 600), **QUICK)
    found = report["calibration of the guide, z"]
    assert found.verdict == "bad" and "the guide is too narrow" in found.advice
    # others say the same of the guide; model and data are as they were
    others = {"joint coverage of the guide", "calibration of the guide, log p(x | z)", "log p(x)"}
    assert worth_a_look(report) == {found.name, *others}


def test_a_guide_that_is_off_to_one_side_is_named() -> None:
    _, x, fitted = linear_gaussian(300, shift=0.5)
    report = pv.criticise(fitted, x, only=("simulation_based_calibration", "symmetry"), **QUICK)
    assert report["bias of the guide, z"].verdict == "bad"
    assert "the guide is too high" in report["calibration of the guide, z"].advice


@pytest.mark.slow
def test_a_collapsed_unit_is_named() -> None:
    torch.manual_seed(0)
    pair = LinearGaussian(latent=3)
    pair.weight[:, 1] = 0
    x = rows(pair, 900)
    report = pv.criticise(unfitted(pair, x), x[:300], train=x[300:], **QUICK)
    found = report["active units of z"]
    assert worth_a_look(report) == {found.name}
    assert found.verdict == "look" and found.curves["idle"] == [1] and "z[1] does not" in found.says


def test_a_site_without_any_active_unit_is_bad() -> None:
    torch.manual_seed(0)
    pair = LinearGaussian()
    pair.weight[:] = 0
    report = pv.criticise(
        unfitted(pair, x := rows(pair, 200)), x, only=("active_units", "rate_and_distortion"), **QUICK
    )
    assert [finding.verdict for finding in report.findings] == ["bad", "bad"]
    assert "The site z has collapsed" in report["active units of z"].advice


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "named"), [(0.5, "too narrow"), pytest.param(2.0, "too wide", marks=pytest.mark.slow)]
)
def test_a_mis_scaled_likelihood_is_named(factor: float, named: str) -> None:
    torch.manual_seed(0)
    pair = LinearGaussian()
    x = rows(pair, 900)
    pair.noise *= factor  # the guide is the exact posterior of this model
    report = pv.criticise(unfitted(pair, x), x[:300], train=x[300:], **QUICK)
    found = report["predictive intervals"]
    assert found.verdict == "bad" and f"The likelihood is {named}" in found.advice
    assert not {n for n in worth_a_look(report) if "guide" in n or "copies" in n}


@pytest.mark.parametrize("rare", ["row", "prior"])
def test_a_class_that_only_one_side_has_does_not_shift_the_units_of_the_next_site(rare: str) -> None:
    """Both sides are of one distribution but for one fifth class: by chance p is below 1e-6 with probability 1e-6."""

    def drawn(with_rare: bool) -> dict[str, Tensor]:
        y = torch.arange(400) % 4
        y[0] = 4 if with_rare else 0
        return {"y": y, "z": torch.randn(400, 2)}

    torch.manual_seed(0)
    evidence: Any = SimpleNamespace(
        posterior=[{name: value[None] for name, value in drawn(rare == "row").items()}],
        parts=[SimpleNamespace(rows=range(400))],
        simulate=lambda *_: SimpleNamespace(latent=drawn(rare == "prior")),
        seed=0,
    )
    (found,) = aggregate_posterior(evidence)
    assert found.p_value is not None and found.p_value > 1e-6
    assert found.values["largest_shift"] < 1


@pytest.mark.slow
def test_a_prior_at_odds_with_the_aggregate_posterior_is_named() -> None:
    torch.manual_seed(0)
    pair = LinearGaussian()
    pair.noise = 0.3
    z = dist.Normal(0.0, 0.2).sample((900, 2)) + torch.tensor([[-2.0, 0.0], [2.0, 0.0]])[torch.arange(900) % 2]
    x = pair.likelihood(z.double()).sample()
    report = pv.criticise(unfitted(pair, x), x[:300], train=x[300:], **QUICK)
    found = report["aggregate posterior"]
    assert found.verdict == "bad" and "The prior is at odds" in found.advice
    assert not {n for n in worth_a_look(report) if "guide" in n or "intervals" in n or "copies" in n}


@pytest.mark.slow
def test_test_rows_that_stand_in_training_are_named() -> None:
    pair, x, fitted = linear_gaussian(300)
    train = torch.cat([rows(pair, 600), x[40:60]])
    report = pv.criticise(fitted, x, train=train, **QUICK)
    found = report["copies of training rows"]
    assert worth_a_look(report) == {found.name}
    assert found.verdict == "bad" and found.curves["copied_rows"] == list(range(40, 60))


def test_rows_that_repeat_by_nature_are_no_copies() -> None:
    """Of 6 yes-or-no columns there are 64 rows, so that test rows stand in training as often as training rows do."""
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((500, 6), 0.4))
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, pv.families.Bernoulli(6)), pv.mlp(6, pv.families.Normal(2)))
    found = pv.criticise(unfitted(vae, x), x[:100], train=x[100:], only=("copies",))["copies of training rows"]
    assert found.values["share"] > 0.9 and found.verdict == "ok"


@pytest.mark.parametrize("labelled", [0, 5, 100])
def test_labels_of_one_side_are_no_overfitting(labelled: int) -> None:
    """Rows of one distribution, of which log p(x, y) is log 3 below log p(x) or more."""
    torch.manual_seed(0)
    pair = pv.SSVAE(
        label_prior=pv.priors.Categorical(3),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.mlp((2, 3), pv.families.Bernoulli(6), hidden=(8,)),
        encoder=pv.mlp((6, 3), pv.families.Normal(2), hidden=(8,)),
        classifier=pv.mlp(6, pv.families.Categorical((), 3), hidden=(8,)),
        code=pv.nets.OneHot(3),
    )
    x, y = torch.bernoulli(torch.full((200, 6), 0.4)), torch.arange(200) % 3
    held, train = (
        {"x": x[:100], "y": y[:100]},
        {"x": x[100:], "y": torch.where(torch.arange(100) < labelled, y[100:], -1)},
    )
    fitted = pv.fit(pair, train, epochs=0, engine="eager", progress=False)
    report = pv.criticise(fitted, held, train=train, only=("overfitting",), **QUICK)
    found = report["overfitting of the model"].values
    assert abs(found["difference"]) < 5 * found["difference_se"]


def test_overfitting_is_told_in_nats_and_whose_it_is() -> None:
    """The weights are those of principal components of 12 training rows in 20 columns; the guide is exact."""
    torch.manual_seed(0)
    true = LinearGaussian(latent=2, columns=20)
    x = true.marginal().sample((312,))
    train, held = x[:12], x[12:]
    pair = LinearGaussian(latent=8, columns=20)
    centred = train - train.mean(0)
    _, s, v = torch.linalg.svd(centred, full_matrices=False)
    pair.noise = 0.3
    pair.weight[:] = v[:8].T * (s[:8].square() / 12 - 0.09).clamp_min(0).sqrt()
    pair.bias[:] = train.mean(0)
    report = pv.criticise(unfitted(pair, x), held, train=train, only=("overfitting",), **QUICK)
    model, guide = report["overfitting of the model"], report["overfitting of the guide"]
    exact = pair.marginal().log_prob(train).mean() - pair.marginal().log_prob(held).mean()
    assert model.verdict == "bad" and model.values["difference"] == pytest.approx(exact.item(), abs=0.01)
    assert guide.verdict == "ok" and guide.values["guide"] == pytest.approx(0, abs=0.01)


@pytest.mark.usefixtures("quick_reports")
@pytest.mark.slow
@pytest.mark.parametrize("name", [*ONE_OF_EACH_KIND, "discrete", "regression", "ssregression", "nvae", "not-miwae"])
def test_pairs_of_every_kind_can_be_criticised(name: str) -> None:
    torch.manual_seed(0)
    row = ROWS[name]
    data = row.data()
    fitted = pv.fit(row.build(), data, epochs=1, engine="eager", progress=False)
    report = pv.criticise(fitted, data, train=data, num_rows=12, num_samples=20, proposal="guide")
    assert report["log p(x)"].values["rows"] == 12
    if row.latent is not None:
        assert len(report.findings) > 10 and any(f.name.startswith("active units") for f in report.findings)
    json.dumps(report.to_json(), allow_nan=False)


def test_a_question_that_cannot_be_asked_says_why() -> None:
    """The model observes a function of x, so that no row can be drawn from it."""
    pair, x, _ = linear_gaussian(50)
    plain = pair.model

    def model(x: Tensor) -> None:
        plain(x + 0 * x.mean())

    reading = pv.Pair(model, pair.guide)
    report = pv.criticise(unfitted(reading, x), x, only=("symmetry", "log_likelihood"), **QUICK)
    assert report["symmetry"].verdict == "none" and "observes a part or a function" in report["symmetry"].says
    assert report["log p(x)"].verdict == "ok"


def test_questions_and_numbers_are_checked() -> None:
    _, x, fitted = linear_gaussian(20)
    with pytest.raises(pv.OptionError, match=r"copies.*got 'nothing'"):
        pv.criticise(fitted, x, only=("nothing",))
    with pytest.raises(pv.OptionError, match="num_rows must be at least 2"):
        pv.criticise(fitted, x, num_rows=1)
    with pytest.raises(pv.DataError, match="at least two rows"):
        pv.criticise(fitted, x[:1])
    with pytest.raises(pv.OptionError, match="proposal must be one of"):
        pv.criticise(fitted, x, proposal="prior")
    asked: list[str] = []
    pv.criticise(fitted, x, only=("copies", "active_units"), say=asked.append)
    assert asked == ["copies", "active units"] and set(asked) <= {name.replace("_", " ") for name in QUESTIONS}


def test_holms_correction_is_that_of_all_tests_together() -> None:
    found = [Finding(str(p), "", "", "", "bad", "try", p_value=p) for p in (0.004, 0.0001, 0.5)]
    found.append(Finding("no test", "", "", "", "look", "try"))
    after = judged(found, level=0.01)
    assert [f.adjusted for f in after] == [0.008, pytest.approx(0.0003), 0.5, None]
    assert [f.verdict for f in after] == ["bad", "bad", "ok", "look"] and after[2].advice == ""
    # 0.007 alone is significant, and is not beside two others
    alone = [Finding("a", "", "", "", "bad", p_value=0.007)]
    assert judged(alone)[0].verdict == "bad"
    assert judged([*alone, *found[:1], *found[2:3]])[0].verdict == "ok"
    assert [grade(size, 0.1, 0.5) for size in (0.05, 0.1, 0.5, float("nan"))] == ["ok", "look", "bad", "none"]


@pytest.mark.slow
def test_a_gap_is_told_from_its_cause() -> None:
    """A guide that is one posterior sd off loses 1/2 nat a unit by amortisation, and nothing by its family."""
    _, x, fitted = linear_gaussian(20, shift=1.0)
    fitted.settings["engine"] = "eager"
    gap = pv.criticise(fitted, x, only=("inference_gap",), num_samples=300)["inference gap"]
    assert gap.values["amortisation_gap"] == pytest.approx(gap.values["gap"], abs=0.15)
    assert gap.values["approximation_gap"] == pytest.approx(0, abs=0.1)
    assert gap.verdict != "ok" and "The encoder does not find" in gap.advice


def test_a_gap_is_not_excused_by_a_draw_far_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean KL terms of a few draws are as large as the largest of them, which the gap, of other draws, need not have."""
    _, x, fitted = linear_gaussian(20, shift=1.0)
    ask = {"only": ("inference_gap",), "num_samples": 300, "proposal": "guide"}
    plain = pv.criticise(fitted, x, **ask)["inference gap"]

    def far_out(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        terms = pv.kl_by_site(*arguments, **options)
        return {name: term.index_fill(0, torch.tensor([3]), 1e6) for name, term in terms.items()}

    monkeypatch.setattr("pyrovae.criticism.bounds.kl_by_site", far_out)
    gap = pv.criticise(fitted, x, **ask)["inference gap"]
    assert gap.values["rate"] > 1e4 and plain.values["rate"] < 100
    assert gap.verdict == plain.verdict != "ok"


@pytest.mark.slow
def test_log_p_is_checked_by_annealing() -> None:
    """Within 4.5 standard errors of the mean of 8 rows: false alarms 7e-6, for this seed none."""
    _, x, fitted = linear_gaussian(20, shift=1.0)
    fitted.settings["engine"] = "eager"
    found = pv.criticise(fitted, x, only=("annealed",), num_samples=300)["annealed importance sampling"]
    assert found.verdict == "ok" and abs(found.values["difference"]) < 4.5 * found.values["difference_se"] + 0.01
