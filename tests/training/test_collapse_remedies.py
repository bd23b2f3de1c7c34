"""Remedies for posterior collapse: floors and balances of KL terms, cycles of their weight, an inference that leads."""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.programs import GlobalAndLocal, Ladder, bare_functions, binary, gmvae, reals, vae
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.fitted.spec import from_spec, to_spec
from pyrovae.objectives.kl_functions import KLFunction, Minibatch, num_arguments, repr_of
from pyrovae.training.schedules import Step

ENGINES = ["eager", "traced", "compiled"]
TERMS = {  # K = 2 particles, N = 3 rows
    "theta": torch.tensor([1.0, 3.0]),
    "z1": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
    "z2": torch.full((2, 3), 0.1),
}


class BottomUp(Ladder):
    """q(z1 | x) q(z2 | z1): the guide draws z1 first, the model z2."""

    def __init__(self) -> None:
        super().__init__()
        self.q1, self.q2 = pv.mlp(6, fam.Normal(3), hidden=(8,)), pv.mlp(3, fam.Normal(2), hidden=(8,))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", self.q1(x))
            pyro.sample("z2", self.q2(z1))


def half_labelled() -> tuple[pv.SSVAE, Tensor]:
    """A pair, and y of 40 rows, of which the first 20 are not known."""
    torch.manual_seed(0)
    pair = pv.SSVAE(
        label_prior=pv.priors.Categorical(3),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.mlp((2, 3), fam.Bernoulli(6), hidden=(8,)),
        classifier=pv.mlp(6, fam.Categorical((), 3), hidden=(8,)),
        encoder=pv.mlp((6, 3), fam.Normal(2), hidden=(8,)),
        code=pv.nets.OneHot(3),
    )
    return pair, torch.where(torch.arange(40) < 20, -1, torch.arange(40) % 3)


# --- functions of the KL terms ---------------------------------------------------------------------------------------


def same(found: Any, wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], torch.as_tensor(wanted[name]), msg=name)


def test_free_bits_floors_the_mean_of_each_site() -> None:
    same(
        pv.kl.free_bits(2.5)(TERMS), {"theta": [2.5, 2.5], "z1": [[3.5], [3.5]], "z2": [[2.5], [2.5]]}
    )  # means 2, 3.5 and 0.1, over rows and particles
    same(pv.kl.free_bits({"z2": 0.5})(TERMS), {**TERMS, "z2": [[0.5], [0.5]]})


def test_balancing_is_proportional_to_the_means_and_ends_with_the_warmup() -> None:
    a, b = 3.5 + 0.01, 0.1 + 0.01
    mean = (a + b) / 2
    found = pv.kl.balanced()(TERMS, torch.tensor(0.7))
    same(found, {**TERMS, "z1": TERMS["z1"] * a / mean, "z2": TERMS["z2"] * b / mean})
    mean = (a + b / 4) / 2
    found = pv.kl.balanced({"z2": 4})(TERMS, torch.tensor(0.0))
    same(found, {**TERMS, "z1": TERMS["z1"] * a / mean, "z2": TERMS["z2"] * b / 4 / mean})
    same(pv.kl.balanced()(TERMS, torch.tensor(1.0)), TERMS)
    same(pv.kl.balanced()({"theta": TERMS["theta"]}, torch.tensor(0.5)), {"theta": TERMS["theta"]})


def test_balancing_has_no_gradient_in_its_shares() -> None:
    kl = torch.tensor([[1.0, 2.0]], requires_grad=True)
    found = pv.kl.balanced()({"z1": kl, "z2": torch.zeros(1, 2)}, torch.tensor(0.5))
    (gradient,) = torch.autograd.grad(found["z1"].sum(), kl)
    torch.testing.assert_close(gradient, torch.full((1, 2), 2 * 1.51 / 1.52))


def test_a_chain_is_one_after_the_other() -> None:
    both = pv.kl.chain(pv.kl.balanced(), pv.kl.free_bits(0.5), lambda terms: terms)
    weight = torch.tensor(0.5)
    minibatch = Minibatch(pv.terms(vae(), {"x": binary()}), 40)
    same(both(TERMS, weight, minibatch), pv.kl.free_bits(0.5)(pv.kl.balanced()(TERMS, weight)))


def test_a_function_gets_the_weight_where_it_asks_for_it() -> None:
    seen: list[float] = []

    def with_weight(terms: dict[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
        assert weight.dim() == 0 and weight.dtype == torch.float64
        seen.append(float(weight))
        return terms

    pair, x = vae().double(), binary().double()
    for kl_weight in (None, 0.25, torch.tensor(0.5, dtype=torch.float64)):
        pv.Trace_ELBO(kl=with_weight)(pair, {"x": x}, kl_weight=kl_weight)
    assert seen == [1.0, 0.25, 0.5]
    assert num_arguments(lambda terms, weight=None: terms) == num_arguments(lambda *terms: terms[0]) == 1


CHAIN = pv.kl.chain(pv.kl.balanced({"z2": 2}), pv.kl.free_bits({"z1": 0.5, "z2": 0.1}))


@pytest.mark.parametrize("function", [pv.kl.free_bits(0.5), pv.kl.balanced(), CHAIN], ids=repr)
def test_settings_are_recorded(function: KLFunction) -> None:
    loss = pv.Trace_ELBO(kl=function)
    assert to_spec(from_spec(to_spec(function))) == to_spec(function)
    assert "0x" not in repr(loss) and repr_of(from_spec(to_spec(function))) == repr(function) in repr(loss)


def test_a_fit_with_another_floor_is_not_resumed(tmp_path: Path) -> None:
    x = binary()

    def fit(nats: float, **options: Any) -> pv.Fit:
        return pv.fit(
            vae(),
            x,
            epochs=2,
            batch_size=20,
            seed=0,
            loss=pv.Trace_ELBO(kl=pv.kl.free_bits(nats)),
            checkpoint=tmp_path / "run",
            **options,
        )

    fit(0.5, callbacks=[lambda f: True])
    with pytest.raises(pv.CheckpointError, match="loss"):
        fit(0.25, resume=True)
    assert len(fit(0.5, resume=True).history) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.kl.free_bits(-1.0), "at least 0.*got -1.0"),
        (lambda: pv.kl.free_bits({"z": float("nan")}), "at least 0.*got nan for 'z'"),
        (lambda: pv.kl.balanced({"z": 0}), "positive.*got 0 for 'z'"),
        (lambda: pv.kl.chain(lambda a, b, c, d: a), r"wants \['a', 'b', 'c', 'd'\]"),
        (lambda: pv.Trace_ELBO(kl=lambda a, b, c, d: a), r"wants \['a', 'b', 'c', 'd'\]"),
        (lambda: pv.schedules.kl_cycles(0), "cycles must be at least 1, got 0"),
        (lambda: pv.schedules.kl_cycles(math.inf), "cycles must be a whole number .*got inf"),
        (lambda: pv.kl.balanced(2.0), "a dict by site"),  # type: ignore[arg-type]
        (lambda: pv.kl.chain(0.5), "functions"),  # type: ignore[arg-type]
        (lambda: pv.schedules.kl_cycles(ramp=1.5), "ramp must be .*got 1.5"),
        (lambda: pv.schedules.lagging(0), "steps must be at least 1, got 0"),
        (lambda: pv.schedules.lagging(epochs=0), "epochs must be a positive number, got 0"),
    ],
)
def test_unfit_options_get_one_clear_error(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(pv.OptionError, match=message):
        make()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("function", [pv.kl.free_bits({"u": 1.0}), pv.kl.chain(pv.kl.balanced({"u": 1.0}))], ids=repr)
def test_an_unknown_site_gets_one_clear_error(function: KLFunction, engine: str) -> None:
    with pytest.raises(pv.PairError, match=re.escape(repr(function)) + r" names \['u'\].*latent: \['z'\]"):
        pv.fit(vae(), binary(), epochs=1, loss=pv.Trace_ELBO(kl=function), engine=engine)


def test_sites_may_be_observed_in_some_rows() -> None:
    """The KL term of y is that of the rows whose y is not known."""
    pair, y = half_labelled()
    loss = pv.Trace_ELBO(kl=pv.kl.free_bits({"y": 0.5}))
    fitted = pv.fit(pair, {"x": binary(), "y": y}, epochs=2, batch_size=20, loss=loss)
    assert len(fitted.history) == 2


def test_floors_and_balances_of_local_and_global_sites_leave_the_elbo_alone() -> None:
    torch.manual_seed(0)
    pair, x = GlobalAndLocal(), reals()
    bounds = []
    for kl in (lambda terms: terms, pv.kl.free_bits(1e3), pv.kl.balanced()):
        torch.manual_seed(1)
        bounds.append(pv.Trace_ELBO(3, kl=kl)(pair, {"x": x}, num_rows=400, kl_weight=0.5))
    assert torch.equal(bounds[0].elbo, bounds[1].elbo) and torch.equal(bounds[0].elbo, bounds[2].elbo)
    # one local site alone has its own weight
    torch.testing.assert_close(bounds[0].objective, bounds[2].objective)
    plain = pv.Trace_ELBO(3, kl="analytic")
    torch.manual_seed(1)
    likelihood = plain(pair, {"x": x}, num_rows=400, kl_weight=0.0).objective
    torch.testing.assert_close(bounds[1].objective, likelihood - 0.5 * (1e3 + 400 * 1e3))


# --- a guide that draws from the data upwards ------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3])
def test_terms_as_drawn_are_those_of_kl_none(particles: int) -> None:
    torch.manual_seed(0)
    pair, x = BottomUp().double(), binary().double()
    found = []
    for kl in (None, lambda terms: terms):
        torch.manual_seed(1)
        bound = pv.Trace_ELBO(particles, kl=kl)(pair, {"x": x}, num_rows=100, kl_weight=0.3)
        grads = torch.autograd.grad(bound.objective, list(pair.parameters()))
        found.append([bound.elbo, bound.objective.detach(), *grads])
    for a, b in zip(*found):
        assert b.abs().max() > 1e-6 and (a - b).abs().max() <= 1e-10 * b.abs().max()


@pytest.mark.slow
@pytest.mark.usefixtures("without_inductor")
def test_engines_agree_on_balanced_free_bits_under_a_warmup() -> None:
    """The weight passes 1 within the fit: a graph that had baked in a branch would go on balancing."""
    x = binary().double()
    found = {}
    for engine in ("eager", "compiled"):
        torch.manual_seed(0)
        pair = BottomUp().double()
        loss = pv.Trace_ELBO(kl=pv.kl.chain(pv.kl.balanced(), pv.kl.free_bits(0.1)))
        schedule = pv.schedules.kl_warmup(2)
        pv.fit(
            pair, x, epochs=4, batch_size=10, seed=0, learning_rate=0.01, loss=loss, schedule=schedule, engine=engine
        )
        found[engine] = torch.cat([p.detach().flatten() for p in pair.parameters()])
    torch.testing.assert_close(found["compiled"], found["eager"], rtol=1e-9, atol=1e-9)


# --- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cycles", "ramp", "total"), [(4, 0.5, 100), (3, 1.0, 50), (1, 0.25, 7), (5, 0.8, 13), (4, 0.5, 8)]
)
def test_kl_cycles_in_closed_form(cycles: int, ramp: float, total: int) -> None:
    schedule = pv.schedules.kl_cycles(cycles, ramp)
    starts = [math.ceil(Fraction(c * total, cycles)) for c in range(cycles + 1)]
    for first, end in pairwise(starts):
        weights = [schedule(Step(n, 10.0, total))["kl"] for n in range(first, end)]
        assert weights == [pytest.approx(min(1.0, i / (ramp * (end - 1 - first)))) for i in range(end - first)]
        assert weights[0] == 0 and weights[-1] == 1
    assert schedule(Step(total, 10.0, total)) == schedule(Step(total - 1, 10.0, total))  # no new cycle at the end
    with pytest.raises(pv.OptionError, match="fewer cycles"):
        schedule(Step(0, 1.0, 2 * cycles - 1))


def test_lagging_in_closed_form() -> None:
    schedule = pv.schedules.lagging(steps=4, epochs=2)
    weights = [schedule(Step(n, 5.5, 100))["model"] for n in range(16)]
    assert weights == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1]  # 2 epochs are 11 steps


def test_schedules_are_recorded() -> None:
    for schedule in (pv.schedules.kl_cycles(3, 0.25), pv.schedules.lagging(7, 2.5)):
        assert to_spec(from_spec(to_spec(schedule))) == to_spec(schedule)
        assert vars(from_spec(to_spec(schedule))) == vars(schedule)


# --- inference that leads --------------------------------------------------------------------------------------------

LAG = pv.schedules.lagging(steps=4, epochs=2)
STEPS = 4  # an epoch
Factory = Callable[[list[Tensor]], torch.optim.Optimizer]


def moved(engine: str, make: Callable[[], Any], **options: Any) -> tuple[list[dict[str, bool]], dict[str, Tensor]]:
    """Which parameters each step moved, and where they are in the end. A step is an epoch of 40 rows, or of 10 of them."""
    torch.manual_seed(0)
    pair = make()
    past = {n: p.detach().clone() for n, p in pair.named_parameters()}
    found: list[dict[str, bool]] = []

    def look(fitted: pv.Fit) -> None:
        now = {n: p.detach().clone() for n, p in pair.named_parameters()}
        found.append({n: not torch.equal(now[n], past[n]) for n in now})
        past.update(now)

    x = binary().to(next(pair.parameters()).dtype)
    pv.fit(pair, x, callbacks=[look], engine=engine, seed=0, **{"epochs": 10, "batch_size": 40, **options})
    return found, past


def lag(step: Step) -> dict[str, float]:
    """`lagging(4, 2)` as if four steps were an epoch: one step an epoch, so that a callback sees each."""
    return LAG(step._replace(per_epoch=STEPS))


@pytest.mark.slow
@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize(
    ("make", "engine"),
    [
        (Ladder, "eager"),
        (Ladder, "traced"),
        pytest.param(Ladder, "compiled", marks=pytest.mark.slow),
        (BottomUp, "eager"),
        pytest.param(BottomUp, "traced", marks=pytest.mark.slow),
    ],
)
def test_only_the_last_inner_step_moves_what_only_the_model_uses(engine: str, make: Callable[[], Any]) -> None:
    steps, _ = moved(engine, make, schedule=lag)
    for number, which in enumerate(steps):
        for name, has_moved in which.items():
            inner = number < 8 and number % 4 != 3
            assert has_moved is (name.startswith(("q1", "q2")) or not inner), (number, name)


def test_what_guide_and_model_share_is_the_guides() -> None:
    """A VampPrior reads the encoder; its pseudo-inputs are the model's alone."""
    x = binary()

    def make() -> pv.VAE:
        encoder = pv.mlp(6, fam.Normal(2), hidden=(8,))
        return pv.VAE(pv.priors.VampPrior(encoder, x[:3]), pv.mlp(2, fam.Bernoulli(6), hidden=(8,)), encoder)

    first = moved("eager", make, schedule=lag, epochs=1)[0][0]
    assert {name.split(".")[0] for name, has_moved in first.items() if not has_moved} == {"likelihood", "prior"}
    assert all(has_moved for name, has_moved in first.items() if "encoder" in name)


OPTIMIZERS: dict[str, Factory | None] = {
    "the default": None,
    "AdamW, groups of their own": lambda p: torch.optim.AdamW(
        [{"params": p[2:], "lr": 0.02, "weight_decay": 0.3}, {"params": p[:2], "betas": (0.8, 0.99)}], lr=0.01
    ),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
}


@pytest.mark.slow
@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_engines_lag_alike(name: str) -> None:
    optimizer, rate = OPTIMIZERS[name], pv.schedules.one_cycle(0.02)
    schedule = [LAG, pv.schedules.kl_warmup(2), *([] if name == "the default" else [rate])]
    options: dict[str, Any] = {"schedule": schedule, "optimizer": optimizer, "batch_size": 10, "epochs": 3}
    _, true = moved("eager", lambda: BottomUp().double(), **options)
    _, found = moved("compiled", lambda: BottomUp().double(), **options)
    for parameter, value in true.items():
        torch.testing.assert_close(found[parameter], value, rtol=1e-9, atol=1e-9, msg=parameter)


def test_a_lag_is_as_the_steps_by_hand() -> None:
    """Adam by torch on the same gradients, the model's rate set to 0 in the inner steps."""
    torch.manual_seed(0)
    pair, x = BottomUp().double(), binary().double()
    options: dict[str, Any] = {"epochs": 10, "batch_size": 40, "seed": 0, "learning_rate": 0.01, "engine": "eager"}
    own = [p for n, p in pair.named_parameters() if not n.startswith(("q1", "q2"))]
    made: list[torch.optim.Optimizer] = []

    class ByHand(torch.optim.Adam):
        number = 0

        def step(self, closure: Any = None) -> Any:
            self.param_groups[1]["lr"] = 0.01 * LAG(Step(self.number, STEPS, 10))["model"]
            self.number += 1
            return super().step(closure)

    def by_hand(leaves: list[Tensor]) -> torch.optim.Optimizer:
        ids = {id(p) for p in own}
        made.append(ByHand([{"params": [p for p in leaves if id(p) not in ids]}, {"params": own}], lr=0.01))
        return made[0]

    start = {n: v.clone() for n, v in pair.state_dict().items()}
    pv.fit(pair, x, optimizer=by_hand, **options)
    wanted = {n: v.clone() for n, v in pair.state_dict().items()}
    pair.load_state_dict(start)
    pv.fit(pair, x, schedule=lag, **options)
    assert made and any(not torch.equal(wanted[n], start[n]) for n in wanted)
    for name, value in pair.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize(("engine", "stop"), [("compiled", 1), ("traced", 2)], ids=["lagging", "after it"])
def test_a_lagging_fit_resumes_bit_for_bit(tmp_path: Path, engine: str, stop: int) -> None:
    x = binary()
    optimizer = OPTIMIZERS["AdamW, groups of their own"]
    options: dict[str, Any] = {"epochs": 4, "batch_size": 12, "seed": 2, "engine": engine, "schedule": LAG}

    def make() -> BottomUp:
        torch.manual_seed(0)
        return BottomUp()

    whole, again = make(), make()
    pv.fit(whole, x, optimizer=optimizer, **options)
    run = tmp_path / "run"
    callbacks = [lambda f: len(f.history) == stop]
    pv.fit(make(), x, optimizer=optimizer, checkpoint=run, callbacks=callbacks, **options)
    resumed = pv.fit(again, x, optimizer=optimizer, checkpoint=run, resume=True, **options)
    assert len(resumed.history) == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_the_history_tells_the_rate_of_the_fit() -> None:
    for optimizer in (None, lambda leaves: torch.optim.Adam(leaves[::-1], lr=1e-3)):
        fitted = pv.fit(Ladder(), binary(), epochs=3, batch_size=40, schedule=lag, optimizer=optimizer, seed=0)
        assert [h["learning_rate"] for h in fitted.history] == [1e-3] * 3
        assert fitted.settings["optimizer"]["lr"] == 1e-3


def test_bare_parameters_and_groups_of_rows_lag() -> None:
    fitted = pv.fit(bare_functions(), reals(), epochs=2, batch_size=10, schedule=LAG, seed=0)
    assert len(fitted.history) == 2
    pair, y = half_labelled()
    before = {n: p.detach().clone() for n, p in pair.named_parameters()}
    pv.fit(pair, {"x": binary(), "y": y}, epochs=1, batch_size=40, schedule=lag, seed=0)
    assert all(
        torch.equal(p, before[n]) is n.startswith("likelihood") for n, p in pair.named_parameters() if "prior" not in n
    )


def test_without_the_weight_nothing_is_set_apart() -> None:
    made: list[torch.optim.Optimizer] = []

    def keep(leaves: list[Tensor]) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(leaves, lr=0.01))
        return made[-1]

    for schedule in (None, pv.schedules.kl_cycles(1), LAG):
        pv.fit(gmvae(), binary(), epochs=1, batch_size=20, optimizer=keep, schedule=schedule, seed=0)
    plain, cycles, lagging = (optimizer.param_groups for optimizer in made)
    assert (
        len(plain) == len(cycles) == 1
        and plain[0].keys() == cycles[0].keys() == torch.optim.Adam([torch.zeros(1)]).param_groups[0].keys()
    )
    assert [len(g["params"]) for g in lagging] != [len(plain[0]["params"])] and len(lagging) == 2
    assert sum(len(g["params"]) for g in lagging) == len(plain[0]["params"])


class Shared(nn.Module):
    """x ~ N(z, scale), q(z | x) = N(loc x, scale): every parameter is the guide's."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.learned = learned  # by the guide, or by the model

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z if self.learned else z + self.loc
            pyro.sample("x", dist.Normal(loc, self.log_scale.exp()), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if self.learned:
                pyro.sample("z", dist.Normal(self.loc * x, self.log_scale.exp()))
            else:
                pyro.sample("z", dist.Normal(x / 2, 1.0))


class NoRate(torch.optim.Optimizer):
    def __init__(self, leaves: list[Tensor]) -> None:
        super().__init__(leaves, {})

    def step(self, closure: Any = None) -> Any: ...


@pytest.mark.parametrize(
    ("pair", "options", "error", "message"),
    [
        (Shared(True), {}, pv.PairError, "the guide uses all parameters"),
        (Shared(False), {}, pv.PairError, "only the model uses any parameters"),
        (None, {"optimizer": NoRate}, pv.OptionError, "NoRate has none"),
        (
            None,
            {"optimizer": lambda leaves: torch.optim.Adam(leaves[-1:])},
            pv.OptionError,
            "the optimizer trains none of them",
        ),
    ],
)
def test_where_nothing_can_lag(pair: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    data = binary() if pair is None else torch.randn(40)
    with pytest.raises(error, match=message):
        pv.fit(pair or Ladder(), data, epochs=1, batch_size=20, schedule=LAG, **options)


def test_a_floor_in_nats_a_row_refuses_a_plate_that_scales_by_itself() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", 1000, subsample=x):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", 1000, subsample=x):
                pyro.sample("z", dist.Normal(self.loc, 1.0))

    with pytest.raises(pv.PairError, match="subsample scale of its own"):
        pv.Trace_ELBO(kl=pv.kl.free_bits(0.5))(Scaled(), {"x": torch.randn(10)})
