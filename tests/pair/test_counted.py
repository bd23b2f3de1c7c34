"""`poutine.scale` and `pyro.factor`: what they make of the ELBO is said before a fit, in numbers, and of no other pair."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from support.programs import ROWS
from torch import Tensor, nn

import pyrovae as pv

HOW: dict[str, Any] = {"epochs": 1, "engine": "eager", "progress": False, "seed": 0}
X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """z ~ N(0, 1), x ~ N(z w, 1), of which parts count as often as is said, and to which a factor may be added."""

    def __init__(
        self,
        x: float = 1.0,
        z: float = 1.0,
        q: float = 1.0,
        local: Callable[[Linear, Tensor], Tensor] | None = None,
        shared: Callable[[Linear], Tensor] | None = None,
        infer: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.x, self.z, self.q, self.local, self.shared, self.infer = x, z, q, local, shared, infer
        self.w = nn.Parameter(torch.ones(3))
        self.encoder = nn.Linear(3, 1)

    def scaled(self, scale: float) -> AbstractContextManager[Any]:
        return nullcontext() if scale == 1.0 else poutine.scale(scale=scale)

    def add(self, value: Tensor) -> None:
        if self.infer is None:
            pyro.factor("f", value)
        else:
            pyro.sample("f", pyro.distributions.Unit(value), obs=value.new_empty(0), infer=self.infer)

    def model(self, x: Tensor) -> None:
        if self.shared is not None:
            self.add(self.shared(self))
        with pyro.plate("data", len(x)):
            with self.scaled(self.z):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with self.scaled(self.x):
                pyro.sample("x", dist.Normal(z.unsqueeze(-1) * self.w, 1.0).to_event(1), obs=x)
            if self.local is not None:
                self.add(self.local(self, z))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)), self.scaled(self.q):
            pyro.sample("z", dist.Normal(self.encoder(x).squeeze(-1), 0.8))

    def errors(self, found: pv.Importance) -> Tensor:
        """What log p(x) is off by for each row of X."""
        w = self.w.detach()
        exact = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + torch.outer(w, w)).log_prob(X).double()
        return found.log_likelihood - exact


def said_of(pair: Any, by: Callable[[Any], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        by(pair)
    assert all(one.filename == __file__ for one in caught)  # at the call
    return [str(one.message) for one in caught]


ASKED = {
    "check_pair": lambda pair: pv.check_pair(pair, X),
    "fit": lambda pair: pv.fit(pair, X, **HOW),
}
SCALES: dict[str, tuple[dict[str, Any], str]] = {
    "a likelihood": ({"x": 0.5}, r"site 'x' counts 0.5 times\. .*no bound on log p\(x\).*kl.beta\(2\)"),
    "a KL term": ({"z": 0.25, "q": 0.25}, r"site 'z' counts 0.25 times in model and guide\. .*kl.beta\(0.25\)"),
    "a prior": ({"z": 0.25}, r"site 'z' counts 0.25 times in the model and 1 times in the guide\. .*objective_only"),
    "different ones": (
        {"x": 3.0, "z": 2.0, "q": 2.0},
        r"'z' counts 2 times in model and guide, and site 'x' counts 3 times",
    ),
    "all sites": ({"x": 0.1, "z": 0.1, "q": 0.1}, r"All sites count 0.1 times .*leave the scale out"),
}


@pytest.mark.parametrize("by", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize(("scales", "said"), SCALES.values(), ids=SCALES)
def test_a_scale_is_named_with_its_number_and_its_cure(scales: dict[str, Any], said: str, by: Any) -> None:
    (told,) = said_of(Linear(**scales), by)
    assert re.search(said, told), told


def test_weights_of_rows_are_a_weighted_sum() -> None:
    weights = torch.linspace(0.5, 2.0, 30)

    class Weighted(Linear):
        def model(self, x: Tensor, weight: Tensor) -> None:  # type: ignore[override]
            with poutine.scale(scale=weight):
                super().model(x)

        def guide(self, x: Tensor, weight: Tensor) -> None:  # type: ignore[override]
            with poutine.scale(scale=weight):
                super().guide(x)

    with pytest.warns(UserWarning, match="Rows count between 0.5 and 2 times .*sum with these weights"):
        pv.check_pair(Weighted(), {"x": X, "weight": weights})


@pytest.mark.parametrize("by", ASKED.values(), ids=ASKED)
def test_a_factor_is_named_with_its_number(by: Any) -> None:
    (of_rows,) = said_of(Linear(local=lambda _, z: -3 * torch.ones_like(z)), by)
    assert (
        "Site 'f' is a factor (pyro.factor), whose number, -3 for a row here, is part of the ELBO and of log p(x)"
        in of_rows
    )
    (of_all,) = said_of(Linear(shared=lambda pair: -3 * pair.w.square().sum()), by)
    assert "of all rows together, whose number, -9 here, is part of what a fit calls the ELBO" in of_all
    assert "objective_only" in of_rows and "objective_only" in of_all


def test_what_is_said_of_the_numbers_is_so() -> None:
    """The reported ELBO counts scales and factors; importance sampling counts factors of rows, and no scale."""
    plain, scaled = Linear(), Linear(x=0.5)
    factor, shared = (
        Linear(local=lambda _, z: -3 * torch.ones_like(z)),
        Linear(shared=lambda pair: -3 * pair.w.square().sum()),
    )
    fits = {}
    for name, pair in {"plain": plain, "scaled": scaled, "factor": factor, "shared": shared}.items():
        pair.load_state_dict(plain.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fits[name] = pv.fit(pair, X, **{**HOW, "epochs": 0})
    for name, shift in {"plain": 0.0, "scaled": 0.0, "factor": -3.0, "shared": 0.0}.items():
        found = pv.importance(fits[name], X, num_samples=500, seed=0)
        off = plain.errors(found) - shift
        assert off.abs().max() < 1, name
        assert (off / found.standard_error).abs().max() < 5, name  # of 30 rows: false once in 60,000
        assert ("with the factors 'f'" in repr(found)) == (name == "factor")
    bounds = {name: pv.elbo(pv.terms(fit.pair, {"x": X}, 200)).elbo.item() / 30 for name, fit in fits.items()}
    assert bounds["factor"] == pytest.approx(bounds["plain"] - 3, abs=0.3)
    assert bounds["shared"] == pytest.approx(bounds["plain"] - 9 / 30, abs=0.3)
    log_p = pv.importance(fits["plain"], X, num_samples=500, seed=0).log_likelihood.mean().item()
    assert bounds["scaled"] > log_p + 0.5  # so no bound it is


@pytest.mark.parametrize(
    "penalty",
    [{"local": lambda _, z: -z.square()}, {"shared": lambda pair: -3 * pair.w.square().sum()}],
    ids=["rows", "all"],
)
def test_the_cure_of_a_penalty_is_one(penalty: dict[str, Any]) -> None:
    pair = Linear(**penalty, infer={"objective_only": True})
    assert said_of(pair, lambda one: pv.check_pair(one, X)) == []
    plain = Linear()
    plain.load_state_dict(pair.state_dict())
    bounds = []
    for one in (pair, plain):
        torch.manual_seed(0)
        bounds.append(pv.Trace_ELBO()(one, {"x": X}))
    torch.testing.assert_close(bounds[0].elbo, bounds[1].elbo)
    assert bounds[0].objective < bounds[1].objective
    found = pv.importance(pv.fit(pair, X, **HOW), X, seed=0)
    assert (pair.errors(found) / found.standard_error).abs().max() < 5


def test_the_cure_of_a_scale_is_one() -> None:
    """loss=pv.Trace_ELBO(kl=pv.kl.beta(2)) ascends twice what half a likelihood makes of the ELBO."""
    scaled, plain = Linear(x=0.5), Linear()
    plain.load_state_dict(scaled.state_dict())
    torch.manual_seed(0)
    tempered = pv.Trace_ELBO(kl="analytic")(scaled, {"x": X}).objective
    torch.manual_seed(0)
    weighed = pv.Trace_ELBO(kl=pv.kl.beta(2))(plain, {"x": X}).objective
    here, there = (torch.autograd.grad(o, list(p.parameters())) for o, p in ((2 * tempered, scaled), (weighed, plain)))
    for one, other in zip(here, there):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ROWS)
def test_no_other_pair_is_warned_of(name: str) -> None:
    row = ROWS[name]
    torch.manual_seed(0)
    pair, data = row.build(), row.data()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pv.check_pair(pair, data)
    assert not [
        str(one.message) for one in caught if "poutine.scale" in str(one.message) or "factor" in str(one.message)
    ]


def test_a_plate_that_draws_some_of_its_rows_is_no_scale() -> None:
    class Columns(nn.Module):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                with pyro.plate("columns", 3, subsample=torch.tensor([0, 2]), dim=-2) as some:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x.T[some])

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x.mean(-1), pyro.param("s", torch.ones(()))))

    assert said_of(Columns(), ASKED["check_pair"]) == []
    with poutine.scale(scale=2.0):
        assert "count 2 times" in "".join(said_of(Columns(), ASKED["check_pair"]))


def test_a_factor_is_shown_as_what_it_is_and_is_not_drawn() -> None:
    pair = Linear(local=lambda _, z: -z.square())
    with pytest.warns(UserWarning, match="is a factor"):
        fitted = pv.fit(pair, X, **HOW)
    assert "f  factor     per row\n" in str(fitted.layout) + "\n"
    assert pv.generate(fitted, 4).shape == (4, 3)  # of x, the only site that is drawn
    with pytest.raises(pv.PairError, match="'f' is a factor .*no distribution: write a likelihood"):
        pv.bdmc(fitted, X[:3])
    report = pv.criticise(fitted, X, num_rows=30, num_samples=30, proposal="guide", only=["log_likelihood"])
    assert "with the factors 'f'" in report["log p(x)"].says


def test_a_factor_of_weights_leaves_all_questions_open() -> None:
    with pytest.warns(UserWarning, match="is a factor"):
        fitted = pv.fit(Linear(shared=lambda pair: -pair.w.square().sum()), X, **HOW)
    report = pv.criticise(
        fitted, X, num_rows=30, num_samples=30, proposal="guide", only=["predictive_checks", "active_units"]
    )
    assert "none" not in {finding.verdict for finding in report.findings}
    assert pv.bdmc(fitted, X[:3], num_temperatures=10, num_chains=2).lower.shape == (3,)


class Masked(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1), with the exact posterior as guide; rows with |x| > 1 keep the site z, others mask it."""

    def __init__(self, model: str, guide: str) -> None:
        super().__init__()
        self.how = {"model": model, "guide": guide}
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def draw(self, side: str, x: Tensor, loc: Tensor, scale: float) -> Tensor:
        fn, kept = dist.Normal(loc.expand(x.shape), scale), x.abs() > 1
        if self.how[side] == "handler":
            with poutine.mask(mask=kept):
                return pyro.sample("z", fn)
        made = {"": fn, "itself": fn.mask(kept), "all": fn.mask(False)}
        return pyro.sample("z", made[self.how[side]])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.draw("model", x, torch.zeros_like(x), 1.0), 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            self.draw("guide", x, self.weight * x, 0.5**0.5)


SOME = torch.tensor([-2.0, -0.5, 0.3, 1.7], dtype=torch.float64)


def told_of(pair: nn.Module, x: Tensor) -> tuple[pv.Fit, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = pv.fit(pair, x, epochs=0, device="cpu", engine="eager", progress=False)
    return fitted, [str(one.message) for one in caught if "is masked" in str(one.message)]


@pytest.mark.parametrize(("model", "share"), [("handler", "2 of 4"), ("itself", "2 of 4"), ("all", "4 of 4")])
def test_a_prior_that_is_masked_alone_is_flat_and_improper(model: str, share: str) -> None:
    """The estimate is that of log of the integral of p(x | z) over z, which is log 1 here, and it is said what it is."""
    fitted, told = told_of(Masked(model, ""), SOME)
    assert len(told) == 1 and "'z' is masked in the model and not in the guide" in told[0], told
    assert share in told[0] and "improper" in told[0] and "mask it alike" in told[0]
    found = pv.importance(fitted, SOME, num_samples=20_000, proposal="guide", seed=0).log_likelihood
    exact = dist.Normal(0.0, 2**0.5).log_prob(SOME)
    flat = torch.zeros(4, dtype=torch.bool) | (SOME.abs() <= 1) | (model == "all")
    assert torch.allclose(found[~flat], exact[~flat])
    assert (found[flat].abs() < 0.1).all() and (found[flat] > exact[flat] + 1).all()


def test_a_guide_that_is_masked_alone_gives_no_bound() -> None:
    """Its draws are weighed as if q had density 1: the number is log E_q[p(x, z)]."""
    fitted, told = told_of(Masked("", "handler"), SOME)
    assert len(told) == 1 and "masked in the guide and not in the model, at 2 of 4" in told[0], told
    assert "estimates of log p(x) are wrong" in told[0] and "take the mask out of the guide" in told[0]
    found = pv.importance(fitted, SOME, num_samples=20_000, proposal="guide", seed=0).log_likelihood
    exact = dist.Normal(0.0, 2**0.5).log_prob(SOME)
    masked = SOME.abs() <= 1
    # log p(x) + log E_q[q], which for a Normal of variance v is -log(4 pi v) / 2
    assert torch.allclose(found[masked], exact[masked] - 0.5 * torch.tensor(4 * torch.pi * 0.5).log(), atol=0.02)


@pytest.mark.parametrize("how", [("", ""), ("handler", "handler"), ("handler", "itself"), ("all", "all")])
def test_masks_that_are_alike_are_not_told_of(how: tuple[str, str]) -> None:
    assert told_of(Masked(*how), SOME)[1] == []


def test_a_site_with_a_mask_of_what_is_observed_is_told_of_where_the_guide_has_none() -> None:
    """`obs_mask` masks the latent site that Pyro makes of it, which a guide masks, too, or draws where nothing is asked."""

    def pair(masks: bool) -> nn.Module:
        class Partly(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.loc = nn.Parameter(torch.zeros((), dtype=torch.float64))

            def model(self, x: Tensor) -> None:
                with pyro.plate("data", len(x)):
                    z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0), obs=x * 0, obs_mask=x.abs() > 1)
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

            def guide(self, x: Tensor) -> None:
                with pyro.plate("data", len(x)), poutine.mask(mask=x.abs() <= 1 if masks else True):
                    pyro.sample("z_unobserved", dist.Normal(self.loc.expand(x.shape), 1.0))

        return Partly()

    assert told_of(pair(True), SOME)[1] == []
    (said,) = told_of(pair(False), SOME)[1]
    assert "'z_unobserved' is masked in the model and not in the guide, at 2 of 4" in said
