"""Rows of which some lack an argument: one sum, in which each is counted rightly, and nothing is computed in vain."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.by_hand import against_by_hand, minibatch
from support.programs import CLASSES, adgm, binary, labels, sdgm, ssvae
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.batching.batches import GroupedBatches, group_sizes
from pyrovae.pair.batch import group_rows


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("known", [0, 15, 40], ids=["unlabelled", "mixed", "labelled"])
def test_it_equals_the_sum_over_classes_written_by_hand(known: int, dtype: torch.dtype, tolerance: float) -> None:
    for ours, by_hand in against_by_hand(known, dtype):
        assert (ours - by_hand).abs().max() <= tolerance * by_hand.abs().max()


def test_labelled_rows_are_decoded_once_and_unlabelled_ones_once_for_each_class() -> None:
    pair = ssvae()
    data = {"x": binary(), "y": labels(known=12)}
    decoded = []
    pair.likelihood.register_forward_hook(lambda module, parents, out: decoded.append(out.batch_shape.numel()))
    loss, inputs = minibatch(pair, data)
    decoded.clear()
    loss(inputs, {})
    assert sorted(decoded) == [12, 28 * CLASSES]


@pytest.mark.parametrize("build", [ssvae, adgm, sdgm])
def test_the_density_does_not_depend_on_alpha(build: Any) -> None:
    data = {"x": binary(), "y": labels(known=12)}
    pair = build()
    fitted = pv.fit(pair, data, epochs=1, batch_size=20, seed=0)
    found = []
    for alpha in (0.1, 1000.0):
        pair.alpha = alpha
        found.append((pv.log_likelihood(fitted, data, 20, seed=0, proposal="guide"), minibatch(pair, data)[0]))
    assert torch.equal(found[0][0], found[1][0])
    inputs = minibatch(pair, data)[1]
    values = []
    for alpha, (_, loss) in zip((0.1, 1000.0), found):
        pair.alpha = alpha
        torch.manual_seed(3)
        values.append(loss(inputs, {}))
    assert values[0][0] == values[1][0]  # the bound that the history shows
    assert values[0][1] < values[1][1]  # the loss, which counts the classifier's term


class Coin(nn.Module):
    """p(y) p(x|y) with nothing drawn, so that every loss is exact: x: (N,), y: (N,) or None."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.net = nn.Parameter(torch.tensor([-1.0, 1.5])), nn.Linear(1, 2)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.3, 0.7])), obs=y)
            pyro.sample("x", dist.Normal((pv.nets.one_hot(y, 2) * self.loc).sum(-1), 1.0), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        if y is None:
            with pyro.plate("data", len(x)):
                logits = self.net(x[..., None])
                pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def test_the_elbo_of_rows_whose_label_is_unknown_averages_over_the_guide() -> None:
    """And log p(x) sums over y: nothing is drawn, so that both are exact."""
    pair = Coin()
    x, y = torch.randn(20), torch.tensor([0, 1] * 5 + [-1] * 10)
    found = pv.importance(
        pv.fit(pair, {"x": x, "y": y}, epochs=1, batch_size=20, seed=0), {"x": x, "y": y}, 3, proposal="guide"
    )
    with torch.no_grad():
        q = torch.log_softmax(pair.net(x[:, None]), -1)
        joint = dist.Normal(pair.loc, 1.0).log_prob(x[:, None]) + torch.tensor([0.3, 0.7]).log()
    known = joint[torch.arange(20), y.clamp_min(0)]
    wanted = torch.where(y < 0, (q.exp() * (joint - q)).sum(-1), known).double()
    torch.testing.assert_close(found.elbo, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.log_likelihood, torch.where(y < 0, joint.logsumexp(-1), known).double())
    assert (found.elbo[10:] < found.log_likelihood[10:]).all() and (found.log_likelihood - found.elbo).max() > 0.1


def test_labelled_rows_drawn_more_often_leave_the_bound_unbiased() -> None:
    pair = Coin()
    data = {"x": torch.randn(20), "y": torch.tensor([0, 1, 1, 0] + [-1] * 16)}
    loss, inputs = minibatch(pair, data)
    whole = loss(inputs, {})
    # every pair of one labelled and four unlabelled rows in turn, where a step in proportion would have one in five
    found = [
        loss({"0": inputs["0"][4 * (i % 4) : 4 * (i % 4) + 4], "1": inputs["1"][j : j + 1]}, {})
        for i in range(4)
        for j in range(4)
    ]
    for k in (0, 1):
        assert torch.stack([values[k] for values in found]).mean().item() == pytest.approx(whole[k].item(), rel=1e-6)


def test_rows_that_count_more_make_the_bound_biased() -> None:
    """What is maximised is the sum of the bounds of both kinds of rows, the one of labelled rows times the weight. The ELBO
    that is reported counts each row once."""
    pair = Coin()
    data = {"x": torch.randn(20), "y": torch.tensor([0, 1, 1, 0] + [-1] * 16)}
    loss, inputs = minibatch(pair, data)
    parts = {key: replace(loss, groups={key: loss.groups[key]})({key: inputs[key]}, {}) for key in inputs}
    loss.groups = {key: replace(one, weight=4.0 if "y" in one.names else 1.0) for key, one in loss.groups.items()}
    elbo, descended = loss(inputs, {})
    assert [one.names for one in loss.groups.values()] == [("x",), ("x", "y")]
    unlabelled, labelled = parts.values()
    assert elbo.item() == pytest.approx((unlabelled[0] + labelled[0]).item(), rel=1e-6)
    assert descended.item() == pytest.approx((unlabelled[1] + 4 * labelled[1]).item(), rel=1e-6)
    with torch.no_grad():
        known = dist.Normal(pair.loc[data["y"][:4]], 1.0).log_prob(data["x"][:4])
        known = (known + torch.tensor([0.3, 0.7]).log()[data["y"][:4]]).sum()
    assert labelled[1].item() == pytest.approx(-known.item() / 20, rel=1e-5)  # in nats per row of all rows


def test_a_fit_goes_where_the_weight_pulls(tmp_path: Path) -> None:
    """p(x) = N(m, 1) of all rows; those of which w is known have mean 2, the others 0: the optimum is the weighted mean."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.Parameter(torch.zeros(()))

        def model(self, x: Tensor, w: Tensor | None = None) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.m, 1.0), obs=x)

        def guide(self, x: Tensor, w: Tensor | None = None) -> None:
            pass

    known = torch.arange(30) < 6
    data = {"x": torch.where(known, 2.0, 0.0), "w": torch.where(known, 1.0, torch.nan)}
    how: dict[str, Any] = {"epochs": 12, "batch_size": 30, "engine": "eager", "seed": 0, "progress": False}
    how["optimizer"] = lambda leaves: torch.optim.SGD(leaves, lr=0.8)
    folder = tmp_path / "run"
    kept: Any = {"checkpoint": folder}
    for weight, wanted in (({}, 6 * 2 / 30), ({"w": 24 / 6}, 1.0), ({"": 0.5}, 6 * 2 / 18)):
        pair = Mean()
        fitted = pv.fit(pair, data, **how, group_weight=weight, **(kept if "" in weight else {}))
        assert pair.m.item() == pytest.approx(wanted, abs=1e-3)
        assert fitted.settings.get("group_weight") == ([weight.get("", 1.0), weight.get("w", 1.0)] if weight else None)
    alike = {"checkpoint": tmp_path / "alike", "group_weight": {"w": 1.0}}
    pv.fit(Mean(), data, **how, **alike)
    pv.fit(Mean(), data, **how, **{**alike, "group_weight": None}, resume=True)
    with pytest.raises(pv.CheckpointError, match="other group_weight"):
        pv.fit(Mean(), data, **how, group_weight={"": 0.7}, **kept, resume=True)
    with pytest.raises(pv.CheckpointError, match="other group_weight"):
        pv.fit(Mean(), data, **how, **kept, resume=True)


class Shared(nn.Module):
    """p(m) prod p(x|m) p(y|m), m global, y known in some rows: conjugate, so that its posterior is known."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        m = pyro.sample("m", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 2.0), obs=x)
            if y is not None:
                pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.sample("m", dist.Normal(self.loc, self.log_scale.exp()))


@pytest.mark.slow
def test_what_belongs_to_no_row_is_drawn_once_and_counted_once() -> None:
    x = 0.7 + 2 * torch.randn(60)
    y = torch.where(torch.arange(60) < 20, 0.7 + torch.randn(60), torch.nan)
    pair = Shared()
    loss, inputs = minibatch(pair, {"x": x, "y": y})
    torch.manual_seed(0)
    m = dist.Normal(pair.loc, pair.log_scale.exp()).rsample().detach()
    wanted = -(
        dist.Normal(0.0, 1.0).log_prob(m)
        - dist.Normal(pair.loc, 1.0).log_prob(m)
        + dist.Normal(m, 2.0).log_prob(x).sum()
        + dist.Normal(m, 1.0).log_prob(y[:20]).sum()
    )
    torch.manual_seed(0)
    assert loss(inputs, {})[1].item() == pytest.approx(wanted.item() / 60, rel=1e-5)

    precision = 1 + 60 / 4 + 20
    exact = (x.sum() / 4 + y[:20].sum()) / precision, precision**-0.5
    fitted = pv.fit(
        pair, {"x": x, "y": y}, epochs=200, batch_size=30, schedule=pv.schedules.one_cycle(0.1), seed=1,
        loss=pv.Trace_ELBO(10),
    )  # fmt: skip
    assert fitted.layout.shared == ["m"]
    assert pair.loc.item() == pytest.approx(exact[0].item(), abs=0.03)
    assert pair.log_scale.exp().item() == pytest.approx(exact[1], rel=0.1)


@pytest.mark.slow
def test_answers_stand_where_their_rows_stand() -> None:
    data = {"x": binary(), "y": labels(known=40)}
    data["y"][torch.arange(40) % 3 != 0] = -1
    fitted = pv.fit(ssvae(), data, epochs=2, batch_size=20, seed=0, transform=None)
    known = data["y"] >= 0
    several = pv.importance(fitted, data, 4000, seed=0, proposal="guide")
    for rows in (known, ~known):
        alone = pv.importance(fitted, {n: v[rows] for n, v in data.items()}, 4000, seed=1, proposal="guide")
        apart = (several.log_likelihood[rows] - alone.log_likelihood).abs()
        error = (several.standard_error[rows].square() + alone.standard_error.square()).sqrt()
        assert (apart < 6 * error + 1e-3).all()  # 40 rows at 6 sd: one false alarm in 10^7
    one = {n: v[:1] for n, v in data.items()}
    assert torch.allclose(pv.encode(fitted, data, site="z")[:1], pv.encode(fitted, one, site="z"), atol=1e-5)
    assert pv.posterior(fitted, data, 1, site="z", num_particles=5, proposal="guide").shape == (1, 40, 2)
    without = {"x": data["x"]}
    assert (
        pv.log_likelihood(fitted, without, 50, seed=0, proposal="guide")
        > pv.log_likelihood(fitted, data, 50, seed=0, proposal="guide")
    )[known].all()


def test_a_run_is_saved_with_the_layouts_of_all_groups(tmp_path: Path) -> None:
    data = {"x": binary(), "y": labels(known=12)}
    fitted = pv.fit(ssvae(), data, epochs=1, batch_size=20, seed=0)
    assert [sorted(layout.arguments) for layout in fitted.layouts] == [["x"], ["x", "y"]]
    pv.save(fitted, tmp_path / "run")
    loaded = pv.load(tmp_path / "run")
    assert loaded.layouts == fitted.layouts
    assert pv.generate(loaded, 4, given={"y": torch.tensor([0, 1, 2, 0])}).shape == (4, 6)


def test_rows_of_a_step_and_epochs() -> None:
    pair = ssvae()
    data = {"x": binary(), "y": labels(known=8)}
    default = pv.fit(pair, data, epochs=2, batch_size=20, seed=0)
    assert default.settings["group_size"] == [16, 5]
    chosen = pv.fit(pair, data, epochs=3, batch_size=20, seed=0, group_size={"y": 8})
    assert chosen.settings["group_size"] == [16, 8]
    assert chosen.history[-1]["steps"] == 6  # an epoch is a pass over the 32 unlabelled rows
    alone = pv.fit(pair, {**data, "y": labels(known=40)}, epochs=1, batch_size=20, seed=0, group_size={"y": 8})
    assert alone.settings["batch_size"] == 8 and alone.history[-1]["steps"] == 5  # one group: its size is the batch's
    groups = group_rows(pair, data)
    batches = GroupedBatches({g.names[-1]: g.rows for g in groups}, {"x": 16, "y": 5}, seed=0)
    seen: dict[str, list[int]] = {"x": [], "y": []}
    for _ in range(4):
        batches.begin_epoch()
        while len(batches):
            for name, index in batches.deal().items():
                seen[name] += index.tolist()
    assert sorted(seen["x"]) == sorted(4 * list(range(8, 40)))
    assert set(seen["y"]) == set(range(8)) and max(map(seen["y"].count, range(8))) - 5 <= 1


@pytest.mark.slow
def test_engines_take_the_same_steps() -> None:
    data = {"x": binary(), "y": labels(known=12)}
    reached = []
    for engine in ("eager", "traced"):
        torch.manual_seed(0)
        fitted = pv.fit(ssvae(), data, epochs=4, batch_size=20, seed=0, validation=data, engine=engine)
        assert "engine_notes" not in fitted.settings
        reached.append([h[name] for h in fitted.history for name in ("elbo", "validation_elbo")])
    assert reached[0] == pytest.approx(reached[1], rel=1e-4)


def test_what_cannot_be_is_said() -> None:
    x, y = binary(), labels(known=12)

    def refuses(error: type[Exception], words: str, data: Any = None, pair: Any = None, **options: Any) -> None:
        with pytest.raises(error, match=words):
            pv.fit(pair or ssvae(), data or {"x": x, "y": y}, **{"epochs": 1, "batch_size": 20, "seed": 0, **options})

    refuses(pv.OptionError, "group_size names 'w'", group_size={"w": 5})
    refuses(pv.OptionError, "rows per step by group, a dict of .*got 8", group_size=8)
    refuses(pv.OptionError, "from 1 to 12", group_size={"y": 13})
    refuses(pv.OptionError, "from 1 to 12", group_size={"y": 0})
    refuses(pv.OptionError, "group_weight names 'w'", group_weight={"w": 5})
    refuses(pv.OptionError, "each row counts by group, a dict of .*got 8", group_weight=8)
    for weight in (0, -1.0, float("nan"), float("inf"), True, "5", None):
        refuses(pv.OptionError, r"group_weight=\{'y': .*\} must be a positive number", group_weight={"y": weight})
    rows = torch.utils.data.TensorDataset(x, y)
    refuses(pv.DataError, "pass arrays", data=rows)
    measured = {"x": torch.randn(20), "y": torch.where(torch.arange(20) < 5, torch.randn(20), torch.nan)}
    refuses(pv.OptionError, "site 'm' belongs to no row", data=measured, pair=Shared(), group_weight={"y": 2.0})
    refuses(pv.OptionError, "come in groups: use Trace_ELBO", data=measured, pair=Shared(), loss=pv.IWELBO(3))
    with pytest.raises(pv.DataError, match="known"):
        fitted = pv.fit(ssvae(), {"x": x, "y": y}, epochs=1, batch_size=20, seed=0)
        pv.generate(fitted, 2, given={"y": torch.tensor([0, -1])})
    with pytest.raises(pv.OptionError, match="positive"):
        ssvae(alpha=0.0)
    wrong = y.clone()
    wrong[9] = 7
    refuses(pv.DataError, "the first is 7 in row 9.*model for 8 classes, 0 to 7", data={"x": x, "y": wrong})
    wrong[:9] = -1  # row 9 is now the first of its group, and row 9 of the data
    refuses(pv.DataError, "the first is 7 in row 9", data={"x": x, "y": wrong})


class Bottom(Shared):
    """And z of each row: the guide runs a second time, at detached draws, where a gradient wants log q alone."""

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        super().model(x, y)
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        super().guide(x, y)
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0 * x, 1.0))


def test_every_group_has_a_part_in_the_gradient_of_what_is_shared() -> None:
    """d E log p(y | m) / d loc of group 2 flows through the draw of group 1, with either gradient, at the same noise."""
    data = {"x": torch.randn(20), "y": torch.where(torch.arange(20) < 5, 3 + torch.randn(20), torch.nan)}
    pair = Bottom()
    slopes = []
    for gradient in ("standard", "sticking_the_landing"):
        loss, inputs = minibatch(pair, data, pv.Trace_ELBO(2000, gradient=gradient))
        torch.manual_seed(0)
        slopes.append(torch.autograd.grad(loss(inputs, {})[1], pair.loc)[0].item())
    # left out is the score at 2,000 draws: sd 1 / sqrt(2000) / 20 rows = 1.1e-3, 5 of it
    assert slopes[0] == pytest.approx(slopes[1], abs=6e-3) and abs(slopes[0]) > 0.5


class Anchored(nn.Module):
    """p(anchor | w) p(x | w) p(y | 2 w), with nothing drawn; a latent v for all rows where u is known."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.loc = nn.Parameter(torch.tensor(0.7)), torch.tensor(0.4)

    def model(self, x: Tensor, y: Tensor | None = None, u: Tensor | None = None) -> None:
        pyro.sample("anchor", dist.Normal(self.w, 1.0), obs=torch.tensor(5.0))
        pyro.factor("ridge", -(self.w**2))
        v = pyro.sample("v", dist.Normal(0.0, 1.0)) if u is not None else None
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.w, 1.0), obs=x)
            if y is not None:
                pyro.sample("y", dist.Normal(2 * self.w, 1.0), obs=y)
            if u is not None:
                pyro.sample("u", dist.Normal(v, 1.0), obs=u)

    def guide(self, x: Tensor, y: Tensor | None = None, u: Tensor | None = None) -> None:
        if u is not None:
            pyro.sample("v", dist.Normal(self.loc, 0.1))


@pytest.mark.filterwarnings("ignore:Site .* is a factor")  # which is asked for here
@pytest.mark.parametrize("known", ["", "y", "yu"], ids=["one group", "two groups", "four groups"])
def test_what_is_observed_for_all_rows_counts_once(known: str) -> None:
    data = {"x": torch.randn(8)}
    if "y" in known:
        data["y"] = torch.where(torch.arange(8) < 4, torch.randn(8), torch.nan)
    if "u" in known:
        data["u"] = torch.where(torch.arange(8) % 2 == 0, torch.randn(8), torch.nan)
    pair = Anchored()
    loss, inputs = minibatch(pair, data)
    torch.manual_seed(0)
    found = -8 * loss(inputs, {})[0].item()
    w = pair.w.detach()
    wanted = dist.Normal(w, 1.0).log_prob(torch.tensor(5.0)) - w**2 + dist.Normal(w, 1.0).log_prob(data["x"]).sum()
    if "y" in known:
        wanted = wanted + dist.Normal(2 * w, 1.0).log_prob(data["y"][:4]).sum()
    if "u" in known:
        torch.manual_seed(0)
        q = dist.Normal(pair.loc, 0.1)
        v = q.sample()
        wanted = wanted + dist.Normal(v, 1.0).log_prob(data["u"][::2]).sum()
        wanted = wanted + dist.Normal(0.0, 1.0).log_prob(v) - q.log_prob(v)
    assert found == pytest.approx(-wanted.item(), rel=1e-5)

    # the bound of held-out rows, computed group by group, counts it once as well; v has a draw of its own there
    fitted = pv.fit(pair, data, epochs=1, batch_size=8, learning_rate=1e-12, validation=data, seed=0)
    history = fitted.history[-1]
    assert history["validation_elbo"] == pytest.approx(wanted.item() / 8, abs=0.3 if "u" in known else 1e-4)


@pytest.mark.filterwarnings("ignore:Site .* is a factor")  # which is asked for here
def test_terms_of_the_objective_alone_are_in_no_elbo() -> None:
    """Inside the plate and outside, for the bound of training and for that of held-out rows."""

    class Ridge(Anchored):
        def model(self, x: Tensor, y: Tensor | None = None, u: Tensor | None = None) -> None:
            super().model(x, y, u)
            only = {"objective_only": True}
            pyro.sample("far", dist.Unit(-1e4 * self.w**2), obs=torch.empty(0), infer=only)
            with pyro.plate("rows", len(x), dim=-1):
                pyro.sample(
                    "near", dist.Unit((-1e4 * self.w**2).expand(len(x))), obs=torch.empty(len(x), 0), infer=only
                )

    x = torch.randn(8)
    plain, ridge = Anchored(), Ridge()
    for loss in (pv.Trace_ELBO(), pv.IWELBO(5)):
        one, other = (
            pv.fit(pair, x, epochs=1, batch_size=8, learning_rate=1e-12, validation=x, seed=0, loss=loss).history[-1]
            for pair in (plain, ridge)
        )
        assert one["elbo"] == pytest.approx(other["elbo"], rel=1e-5)
        assert one["validation_elbo"] == pytest.approx(other["validation_elbo"], rel=1e-5)
        assert pv.check_pair(ridge, {"x": x}) is not None


def test_what_is_shared_must_be_reparameterised() -> None:
    class Switch(Shared):
        def model(self, x: Tensor, y: Tensor | None = None) -> None:
            m = pyro.sample("m", dist.Poisson(torch.ones(())))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(m, 2.0), obs=x)
                if y is not None:
                    pyro.sample("y", dist.Normal(m, 1.0), obs=y)

        def guide(self, x: Tensor, y: Tensor | None = None) -> None:
            pyro.sample("m", dist.Poisson(self.log_scale.exp() + self.loc.exp()))

    measured = {"x": torch.randn(20), "y": torch.where(torch.arange(20) < 5, torch.randn(20), torch.nan)}
    with pytest.raises(pv.PairError, match="not reparameterised"):
        pv.fit(Switch(), measured, epochs=1, batch_size=10)


def test_at_most_sixteen_groups_and_no_row_of_nothing() -> None:
    class Many(nn.Module):
        def model(self, a: Any = None, b: Any = None, c: Any = None, d: Any = None, e: Any = None) -> None: ...

        guide = model

    batch = {n: torch.where(torch.rand(400) < 0.5, torch.randn(400), torch.nan) for n in "abcde"}
    with pytest.raises(pv.DataError, match="at most 16"):
        group_rows(Many(), batch)
    with pytest.raises(pv.DataError, match="nothing observed"):
        group_rows(Many(), {n: v for n, v in batch.items() if n in "ab"})
    assert group_sizes(group_rows(ssvae(), {"x": binary(), "y": labels(known=1)}), ["y"], 8, {}) == [8, 1]


def test_check_pair_takes_rows_of_both_kinds() -> None:
    layout = pv.check_pair(ssvae(), {"x": binary(), "y": labels(known=12)})
    assert {s.name: s.enumerated for s in layout.sites} == {"y": "guide", "z": None, "x": None}
    broken = ssvae()
    broken.classifier = pv.mlp(6, fam.Categorical((), CLASSES + 1), hidden=(8,))
    with pytest.raises(pv.PairError):
        pv.check_pair(broken, {"x": binary(), "y": labels(known=12)})


@pytest.mark.slow
def test_a_classifier_learns_through_the_graph() -> None:
    """Two clusters with one labelled row each: the unlabelled ones carry the labels over."""
    torch.manual_seed(1)
    which = torch.arange(200) % 2
    x = torch.bernoulli(torch.where(which[:, None] == 1, 0.85, 0.15).expand(200, 6))
    y = torch.full((200,), -1)
    y[:2] = which[:2]
    pair = pv.SSVAE(
        pv.priors.Categorical(2), pv.priors.StandardNormal(1), pv.mlp((1, 2), fam.Bernoulli(6), hidden=(16,)),
        pv.mlp((6, 2), fam.Normal(1), hidden=(16,)), pv.mlp(6, fam.Categorical((), 2), hidden=(16,)), pv.nets.OneHot(2),
    )  # fmt: skip
    fitted = pv.fit(pair, {"x": x, "y": y}, epochs=24, batch_size=50, learning_rate=0.03, seed=0)
    found = pv.encode(fitted, {"x": x}, site="y")
    assert (found == which).double().mean() > 0.9


@pytest.mark.slow
def test_a_step_of_groups_and_classes_is_traced_in_bfloat16() -> None:
    """Gradients that meet in another order round otherwise, which is not to be taken for a graph that is not true."""
    fitted = pv.fit(
        ssvae(), {"x": binary(), "y": labels(known=20)}, epochs=2, batch_size=20, engine="traced", precision="bfloat16"
    )
    assert "engine_notes" not in fitted.settings
