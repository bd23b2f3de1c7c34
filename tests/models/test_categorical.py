"""The VAE of discrete codes: relaxed in a fit, discrete for every question, its temperature by a schedule."""

import itertools
import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.training.schedules import Step

CODES = (2, 3)


def rows(n: int = 40) -> Tensor:
    return torch.bernoulli(torch.full((n, 6), 0.4))


def codes(family: Any = None) -> pv.CategoricalVAE:
    torch.manual_seed(0)
    family = family or fam.RelaxedOneHotCategorical(CODES, temperature=0.7)
    return pv.CategoricalVAE(
        pv.priors.OneHotCategorical(CODES), pv.mlp(6, fam.Bernoulli(6), hidden=(4,)), pv.mlp(6, family, hidden=(4,))
    )


def bits(family: Any = None) -> pv.CategoricalVAE:
    torch.manual_seed(0)
    encoder = pv.mlp(6, family or fam.RelaxedBernoulli(3), hidden=(4,))
    return pv.CategoricalVAE(pv.priors.Bernoulli(3), pv.mlp(3, fam.Bernoulli(6), hidden=(4,)), encoder)


def exact_log_p(pair: pv.CategoricalVAE, x: Tensor, every: Tensor) -> Tensor:
    """log p(x), all codes summed."""
    with torch.no_grad():
        log_x = pair.likelihood(every.flatten(1)).expand((len(x), len(every))).log_prob(x[:, None])
        return (log_x + pair.prior().log_prob(every)).logsumexp(1)


def all_codes() -> Tensor:
    return fam.OneHotCategorical(CODES)(torch.zeros(CODES)).enumerate_support(False)


def all_bits() -> Tensor:
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)


@pytest.mark.parametrize(("build", "every"), [(codes, all_codes), (bits, all_bits)], ids=["codes", "bits"])
def test_questions_see_the_discrete_guide(build: Any, every: Any, tmp_path: Path) -> None:
    """log p(x) by importance sampling is that of the sum over all codes, and the ELBO is below it, also after loading."""
    x = rows()
    fitted = pv.fit(build(), x, epochs=3, batch_size=20, seed=0)
    truth = exact_log_p(fitted.pair, x, every())
    pv.save(fitted, tmp_path / "run")
    for fit in (fitted, pv.load(tmp_path / "run")):
        assert fit.pair.training  # which a fit, not a question, heeds
        found = pv.importance(fit, x, 3000, seed=0, proposal="guide")
        assert ((found.log_likelihood - truth).abs() < 6 * found.standard_error + 1e-4).all()
        assert found.elbo.mean() < truth.mean()
        draws = pv.posterior(fit, x, 5, seed=0, proposal="guide")
        assert set(draws.unique().tolist()) <= {0.0, 1.0}
        probabilities = pv.encode(fit, x)
        torch.testing.assert_close(probabilities, fit.pair.eval().encoder(x).mean)
        fit.pair.train()
        assert pv.generate(fit, 7).shape == (7, 6) and pv.reconstruct(fit, x).shape == x.shape
    summed = pv.Pair(fitted.pair.model, pyro.infer.config_enumerate(fitted.pair.guide, "parallel"))
    if build is codes:
        again = pv.fit(summed, x, epochs=0)
        torch.testing.assert_close(
            pv.log_likelihood(again, x, 1, proposal="guide").float(), truth, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("held_out", [False, True])
def test_the_history_names_what_is_relaxed(held_out: bool) -> None:
    x = rows()
    how: dict[str, Any] = {"epochs": 2, "batch_size": 20, "seed": 0, "validation": rows(10) if held_out else None}
    history = pv.fit(codes(), x, **how).history
    assert all(row["relaxed_elbo"] != row["elbo"] and math.isfinite(row["elbo"]) for row in history)
    if held_out:
        assert all(row["elbo"] != row["validation_elbo"] for row in history)
    for family in (fam.RelaxedOneHotCategorical(CODES, hard=True), fam.OneHotCategorical(CODES)):
        assert "relaxed_elbo" not in pv.fit(codes(family), x, **how).history[-1]


def test_the_elbo_of_a_relaxed_fit_is_that_of_the_discrete_guide() -> None:
    """After a fit that moves nothing: the mean over training rows and draws of log w, false alarms 2e-9."""
    x = rows()
    fitted = pv.fit(codes(), x, epochs=30, batch_size=40, seed=0, learning_rate=1e-12)
    found = torch.tensor([row["elbo"] for row in fitted.history])
    run = pv.importance(fitted, x, 2000, seed=1, proposal="guide")
    spread = pv.log_weights(pv.terms(fitted.pair.eval(), {"x": x}, 500)).std(0).norm() / len(x)
    assert found.std() == 0  # the same noise every time
    assert (found[0] - run.elbo.mean()).abs() < 6 * spread


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_the_temperature_falls_by_the_schedule(engine: str, tmp_path: Path) -> None:
    x, schedule = rows(), pv.schedules.cooling(1.0, 0.25, epochs=2)
    how: dict[str, Any] = {"epochs": 4, "batch_size": 20, "seed": 0, "engine": engine}
    pair = codes()
    fitted = pv.fit(pair, x, schedule=schedule, **how)
    assert "engine_notes" not in fitted.settings
    expected = [schedule(Step(2 * epoch + 1, 2, 8))["temperature"] for epoch in range(4)]
    assert [row["temperature"] for row in fitted.history] == pytest.approx(expected)
    assert float(pair.encoder.family.current_temperature) == pytest.approx(0.25)  # type: ignore[union-attr, arg-type]
    held = codes(fam.RelaxedOneHotCategorical(CODES, temperature=1.0))
    pv.fit(held, x, **how)
    assert float(held.encoder.family.current_temperature) == 1.0  # type: ignore[union-attr, arg-type]
    assert not torch.equal(pair.likelihood.net.rest[-1].weight, held.likelihood.net.rest[-1].weight)  # type: ignore
    other = codes()
    pv.fit(other, x, schedule=schedule, checkpoint=tmp_path / "run", callbacks=[lambda f: len(f.history) == 1], **how)
    resumed = codes()
    pv.fit(resumed, x, schedule=schedule, checkpoint=tmp_path / "run", resume=True, **how)
    assert all(torch.equal(a, b) for a, b in zip(pair.state_dict().values(), resumed.state_dict().values()))


def test_cooling_in_closed_form() -> None:
    schedule = pv.schedules.cooling(2.0, 0.5, epochs=4)
    for number in range(0, 60, 7):
        wanted = max(0.5, 2.0 * math.exp(-math.log(4) * number / 40))
        assert schedule(Step(number, 10, 60))["temperature"] == pytest.approx(wanted)


def test_what_cannot_be_meant_is_refused() -> None:
    x = rows()
    with pytest.raises(pv.OptionError, match="no family of the pair in training.*RelaxedOneHotCategorical"):
        pv.fit(codes(fam.OneHotCategorical(CODES)), x, epochs=1, schedule=pv.schedules.cooling())
    with pytest.raises(pv.OptionError, match="no family of the pair in training mode"):
        pv.fit(codes().eval(), x, epochs=1, schedule=pv.schedules.cooling())
    for pair, loss in itertools.product(
        (codes(), codes(fam.StraightThroughOneHotCategorical(CODES)), bits()),
        (pv.Trace_ELBO(gradient="sticking_the_landing"), pv.IWELBO(3, "doubly_reparameterised")),
    ):
        with pytest.raises(pv.PairError, match="'z' is relaxed, or discrete"):
            loss(pair, {"x": x})
    with pytest.raises(pv.ShapeError, match="got one of single numbers"):
        pv.CategoricalVAE(pv.priors.Categorical(3), nn.Identity(), nn.Identity())
    for wrong in ({"start": 0.0}, {"end": -1.0}, {"epochs": 0}, {"end": math.inf}):
        with pytest.raises(pv.OptionError, match="must be a positive number, got"):
            pv.schedules.cooling(**wrong)
    with pytest.raises(pv.OptionError, match="temperature=0.0 at step 0; it must be finite and positive"):
        pv.fit(codes(), x, epochs=1, schedule=lambda step: {"temperature": 0.0})
    with pytest.raises(pv.ShapeError, match=r"one event shape, got \(2, 3\) and \(3, 2\)"):
        pv.CategoricalVAE(
            pv.priors.OneHotCategorical(CODES), nn.Identity(), pv.mlp(6, fam.OneHotCategorical((3, 2)), hidden=())
        )
    with pytest.raises(pv.PairError, match="A prior is a distribution, or a module"):
        pv.CategoricalVAE("uniform", nn.Identity(), nn.Identity())  # type: ignore[arg-type]
    with pytest.raises(pv.PairError, match=r"'z' is not reparameterised.*kl=None"):
        pv.fit(codes(fam.OneHotCategorical(CODES)), x, epochs=1, loss=pv.Trace_ELBO(kl="analytic"))


def test_looking_at_a_pair_in_training_mode_sees_the_discrete_guide() -> None:
    """Without a layout, too, where `terms` has a look first; what it then returns is relaxed."""
    pair, x = codes(), rows(5)
    run = pv.terms(pair, {"x": x}, num_particles=3)
    assert len(run.sites["z"].value.unique()) > 2 and pair.training
    pair.eval()
    assert set(pv.terms(pair, {"x": x}, num_particles=3).sites["z"].value.unique().tolist()) == {0.0, 1.0}
