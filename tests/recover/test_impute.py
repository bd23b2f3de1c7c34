"""Missing entries drawn given the observed ones: against closed forms, in every form of data, for pairs of every kind."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from support.comparisons import BOUND
from support.pairs import LinearGaussian, normal, unfitted, zeros
from support.told import told
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.criticism.resampling import resampled
from pyrovae.distributions import ObservedOnly
from pyrovae.recover.gaps import entries

NAN = float("nan")


def eager(pair: Any, data: Any) -> pv.Fit:
    return replace(unfitted(pair, data), settings={"engine": "eager"})


class Gappy(LinearGaussian):
    """z ~ N(0, I), x ~ N(W z + b, s^2 I) with gaps left out; the guide takes gaps for zeros and is twice too wide."""

    runs = 0

    def likelihood(self, z: Tensor) -> Any:
        self.runs += 1
        return ObservedOnly(super().likelihood(z))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.proposal(x.nan_to_num(0.0)))

    def given(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the missing entries of a row given the others."""
        whole, o = self.marginal(), ~row.isnan()
        cov = whole.covariance_matrix
        gain = cov[~o][:, o] @ torch.linalg.inv(cov[o][:, o])
        return whole.mean[~o] + gain @ (row[o] - whole.mean[o]), cov[~o][:, ~o] - gain @ cov[o][:, ~o]


def gappy(rows: int = 6) -> tuple[Gappy, Tensor, pv.Fit]:
    torch.manual_seed(0)
    pair = Gappy(spread=4.0)
    x = pair.marginal().sample((rows,))
    x[0, :2] = x[1, 3] = x[2, 1:] = x[3] = NAN
    return pair, x, eager(pair, x)


@pytest.mark.parametrize("proposal", ["guide", "refined"])
def test_draws_have_the_moments_of_the_conditional_normal(proposal: str) -> None:
    """6 rows, 11 missing entries: 11 means and 11 variances at 7e-6 false alarms each."""
    pair, x, fitted = gappy()
    found = pv.impute(fitted, x, 2000, num_particles=4000, proposal=proposal, moves=0, seed=0)
    assert found.draws.shape == (2000, 6, 5) and found.draws.dtype == torch.float64
    for n in range(3):
        mean, cov = pair.given(x[n])
        drawn, variance = found.draws[:, n, x[n].isnan()], cov.diagonal()
        count = 1 / (1 / 2000 + 1 / found.ess[n].item())
        assert ((drawn.mean(0) - mean).abs() < BOUND * (variance / count).sqrt()).all()
        assert ((drawn.var(0) - variance).abs() < BOUND * variance * math.sqrt(2 / count)).all()
        exact = BOUND * (variance / found.ess[n]).sqrt()  # no noise of x: the mean is one of E[x | z]
        assert ((found.mean[n, x[n].isnan()] - mean).abs() < exact + BOUND * (variance / 2000).sqrt()).all()
    assert found.ess[4:].isnan().all() and not found.ess[:4].isnan().any()


def test_a_row_of_which_nothing_is_observed_is_a_draw_from_the_model() -> None:
    """5 means and 15 covariances at 7e-6 false alarms each, by a marginal that no proposal enters."""
    pair, x, fitted = gappy()
    draws = pv.impute(fitted, x[3:4], 4000, num_particles=5, seed=0).draws[:, 0]
    whole = pair.marginal()
    covariance, variance = whole.covariance_matrix, whole.covariance_matrix.diagonal()
    assert ((draws.mean(0) - whole.mean).abs() < BOUND * (variance / 4000).sqrt()).all()
    error = ((covariance**2 + variance[:, None] * variance) / 4000).sqrt()
    assert ((draws.T.cov() - covariance).abs() < BOUND * error).all()


def test_rows_without_a_gap_cost_nothing_and_observed_entries_stay() -> None:
    pair, x, fitted = gappy()
    whole = x[4:]
    before = pair.runs
    found = pv.impute(fitted, whole, 3, seed=0)
    assert pair.runs == before and repr(found) == "Imputation(3 draws of 0 missing entries in 0 of 2 rows)"
    assert torch.equal(found.draws, whole.expand(3, 2, 5)) and torch.equal(found.mean, whole)
    assert torch.equal(found.complete(1), whole) and not found.missing.any() and (found.sd == 0).all()
    found = pv.impute(fitted, x, 25, num_particles=50, proposal="guide", seed=0)
    again = pv.impute(fitted, x, 25, num_particles=50, proposal="guide", seed=0)
    seen = ~x.isnan()
    for k in range(25):
        assert torch.equal(found.complete(k)[seen], x[seen]) and torch.equal(found.complete(k), found.draws[k])
        assert torch.equal(found.complete(k), again.complete(k))
    assert torch.equal(found.missing, ~seen) and found.draws.isfinite().all()
    low, high = found.interval(0.9)
    assert torch.equal(low[seen], x[seen]) and (low[~seen] < high[~seen]).all() and (found.sd[~seen] > 0).all()


def test_ends_of_an_interval_are_at_positions_p_times_one_more_than_the_draws() -> None:
    _, x, fitted = gappy()
    found = pv.impute(fitted, x[:1], 19, num_particles=50, proposal="guide", seed=0)
    low, high = found.interval(0.9)
    assert torch.equal(low, found.draws.amin(0)) and torch.equal(high, found.draws.amax(0))
    low, high = found.interval(0.5)
    ordered = found.draws.sort(0).values
    torch.testing.assert_close(low, ordered[4])
    torch.testing.assert_close(high, ordered[14])
    with pytest.raises(pv.OptionError, match="level 0.95 need at least 39 draws, got 19"):
        found.interval(0.95)
    with pytest.raises(pv.OptionError, match="draws 0 to 18, got 19"):
        found.complete(19)


def test_data_come_back_in_the_form_in_which_they_were_given() -> None:
    vae, x = small_vae(fam.Poisson(3), torch.poisson(torch.full((8, 3), 4.0)))
    x[0, 1] = x[2, 0] = x[2, 2] = NAN
    fitted = eager(vae, x)
    options: dict[str, Any] = {"num_samples": 2, "num_particles": 30, "proposal": "guide", "seed": 0}
    drawn = pv.impute(fitted, x, **options).draws[1]
    array = x.double().numpy()
    found = pv.impute(fitted, array, **options)
    assert found.complete(1).dtype == np.float64 and (found.complete(1) == drawn.numpy()).all()
    assert np.isnan(array).sum() == 3  # as it was
    masked = np.ma.array(np.nan_to_num(array, nan=7).astype(np.int32), mask=np.isnan(array))
    found = pv.impute(fitted, masked, **options)
    assert found.complete(1).dtype == np.int32 and (found.complete(1) == drawn.numpy()).all()
    assert found.complete().dtype == np.float64  # a mean of counts is no count
    frame = pd.DataFrame(array, columns=["a", "b", "c"], index=list("hgfedcba"))
    frame["a"] = frame["a"].astype("Int64")
    frame["b"] = frame["b"].astype("float32")
    found = pv.impute(fitted, frame, **options)
    back = found.complete(1)
    assert list(back.dtypes) == list(frame.dtypes) and list(back.index) == list("hgfedcba")
    assert (back.to_numpy(dtype=float) == drawn.double().numpy()).all() and frame.isna().sum().sum() == 3
    assert str(found.complete()["a"].dtype) == "Float64"
    assert (pv.impute(fitted, {"x": array}, **options).complete(1)["x"] == drawn.numpy()).all()
    assert (pv.impute(fitted, (array,), **options).complete(1)[0] == drawn.numpy()).all()
    assert torch.equal(pv.impute(fitted, torch.utils.data.StackDataset(x=x), **options).complete(1)["x"], drawn)
    assert torch.equal(pv.impute(fitted, x.tolist(), **options).complete(1), drawn)


def small_vae(family: Any, x: Tensor) -> tuple[pv.VAE, Tensor]:
    torch.manual_seed(0)
    net: nn.Module = pv.nets.WithMask(pv.nets.MLP((3, 3), (2, 2), hidden=(4,)))
    if x.dim() == 4:
        net = pv.nets.MaskChannel(pv.nets.ConvEncoder((2, 4, 4), (2, 2), channels=(2,), hidden=(4,)))
    likelihood = pv.observed_only(pv.Conditional(pv.nets.MLP(2, family.param_shape, hidden=(4,)), family))
    return pv.VAE(pv.priors.StandardNormal(2), likelihood, pv.Conditional(net, fam.Normal(2))), x


def test_an_image_with_holes() -> None:
    x = torch.bernoulli(torch.full((3, 1, 4, 4), 0.5))
    x[0, :, 1:3, 1:3] = NAN
    vae, _ = small_vae(fam.Bernoulli((1, 4, 4)), x)
    found = pv.impute(eager(vae, x), x, 5, num_particles=40, seed=0)
    assert found.draws.shape == (5, 3, 1, 4, 4) and found.draws.unique().tolist() == [0.0, 1.0]
    assert torch.equal(found.draws[:, :, :, 0], x[:, :, 0].expand(5, 3, 1, 4))
    assert ((found.mean > 0) & (found.mean < 1))[0, 0, 1:3, 1:3].all()


def test_classes_of_a_table_get_their_most_frequent_class() -> None:
    columns = fam.Columns([fam.Normal(()), fam.Categorical((), num_classes=3), fam.Bernoulli(())])
    x = torch.tensor([[0.5, 2.0, 1.0], [NAN, NAN, NAN], [0.1, NAN, 0.0]])
    vae, _ = small_vae(columns, x)
    with torch.no_grad():
        for parameter in vae.likelihood.parameters():
            parameter.zero_()
        vae.likelihood.likelihood.net.rest[-1].bias[4] = 4.0  # type: ignore[union-attr, index]
    found = pv.impute(eager(vae, x), x, 40, num_particles=40, proposal="guide", seed=0)
    assert found.draws[:, 1:, 1].unique().tolist()[-1] <= 2 and found.draws[:, 1, 2].unique().tolist() == [0.0, 1.0]
    counts = found.draws[:, 2, 1].long().bincount(minlength=3)
    assert found.mean[2, 1] == counts.argmax() and counts.max() > 30
    low, _ = found.interval(0.5)
    assert low[1:, 1].isnan().all() and not low[:, [0, 2]].isnan().any() and low[0, 1] == 2
    assert found.sd[2, 1].isnan() and found.sd[1, 0] > 0


class TwoClasses(nn.Module):
    """y ~ Bernoulli(0.3), z ~ N(0, 1), x ~ N(m_y + z, 0.5^2 I) in three dimensions; y summed out under the guide."""

    means = torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 3.0]], dtype=torch.float64)

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(zeros())

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.7, 0.3], dtype=x.dtype)), obs=y)
            z = pyro.sample("z", normal(zeros(1), 0.0))
            loc = self.means[y] + z
            pyro.sample("x", ObservedOnly(normal(loc, math.log(0.5))), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            if y is None:
                logits = torch.stack([0 * self.logit, self.logit]).expand(len(x), 2)
                y = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("z", normal(0.0 * self.means[y][..., :1] + zeros(1), 0.3))

    def given(self, row: Tensor) -> tuple[float, Tensor]:
        """P(y = 1) and the means of the third entry in either class, given the first two."""
        cov = 1 + 0.25 * torch.eye(3, dtype=row.dtype)
        o = [0, 1]
        each = dist.MultivariateNormal(self.means[:, o], cov[o][:, o]).log_prob(row[o]) + torch.tensor([0.7, 0.3]).log()
        gain = cov[2, o] @ torch.linalg.inv(cov[o][:, o])
        return each.softmax(0)[1].item(), self.means[:, 2] + (row[o] - self.means[:, o]) @ gain


def test_with_classes_summed_out_the_class_is_drawn_with_the_rest() -> None:
    """A mean of 3000 draws, from candidates that are worth as many, at 7e-6 false alarms for each proposal."""
    pair, row = TwoClasses(), torch.tensor([0.1, 0.3, NAN], dtype=torch.float64)
    x = torch.stack([row, torch.zeros(3, dtype=torch.float64)])
    p, means = pair.given(row)
    wanted, spread = means[0] * (1 - p) + means[1] * p, 2.0
    assert 0.1 < p < 0.9
    for proposal in ("guide", "refined"):
        found = pv.impute(eager(pair, x), x, 3000, num_particles=4000, proposal=proposal, moves=0, seed=0)
        error = spread * math.sqrt(1 / 3000 + 1 / found.ess[0].item())
        assert abs(found.draws[:, 0, 2].mean() - wanted) < BOUND * error
        assert abs(found.mean[0, 2] - wanted) < BOUND * error


@pytest.mark.slow
def test_labels_that_the_pair_infers_stay_unknown_and_known_ones_count() -> None:
    pair, nan = TwoClasses(), NAN
    x = torch.tensor([[0.1, 0.3, nan]] * 3, dtype=torch.float64)
    y = torch.tensor([-1, 0, 1])
    fitted = pv.fit(pair, {"x": x.nan_to_num(0.0), "y": y}, epochs=1, engine="eager", progress=False)
    found = pv.impute(fitted, {"x": x, "y": y}, 500, num_particles=500, moves=0, seed=0)
    _, means = pair.given(x[0])
    assert torch.equal(found.draws["y"], y.expand(500, 3)) and torch.equal(found.complete(2)["y"], y)
    drawn = found.draws["x"][:, 1:, 2].mean(0)
    spread = 0.6 * math.sqrt(2 / 500)  # two means at 7e-6 false alarms each
    assert ((drawn - means).abs() < BOUND * spread).all()


class TwoViews(nn.Module):
    """z ~ N(0, 1), a ~ N(z, 0.1^2), b ~ N(z 1, 0.1^2 I) in two dimensions; either may be absent."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Parameter(zeros())

    def model(self, a: Tensor | None = None, b: Tensor | None = None) -> None:
        size = len(a) if a is not None else len(b)  # type: ignore[arg-type]
        with pyro.plate("data", size):
            z = pyro.sample("z", normal(zeros(1), 0.0))
            if a is not None:
                pyro.sample("a", dist.Normal(z[..., 0], 0.1), obs=a)
            if b is not None:
                pyro.sample("b", ObservedOnly(normal(z.expand(*z.shape[:-1], 2), math.log(0.1))), obs=b)

    def guide(self, a: Tensor | None = None, b: Tensor | None = None) -> None:
        seen = a[:, None] if a is not None else b.nan_to_num(0.0)[:, :1]  # type: ignore[union-attr]
        with pyro.plate("data", len(seen)):
            pyro.sample("z", normal(seen, self.spread - 1.0))


@pytest.mark.slow
def test_an_argument_that_rows_lack_is_drawn_given_the_others() -> None:
    a = torch.tensor([1.5, NAN, -0.5, 0.2], dtype=torch.float64)
    b = torch.tensor([[NAN, NAN], [0.3, NAN], [-0.5, NAN], [0.2, 0.1]], dtype=torch.float64)
    fitted = pv.fit(TwoViews(), {"a": a, "b": b}, epochs=1, engine="eager", progress=False)
    found = pv.impute(fitted, {"a": a, "b": b}, 30, num_particles=300, seed=0)
    draws = found.draws
    assert draws["a"].shape == (30, 4) and draws["b"].shape == (30, 4, 2) and draws["b"].isfinite().all()
    assert (draws["a"][:, 1] - 0.3).abs().max() < 1 and (draws["b"][:, 0] - 1.5).abs().max() < 1  # 5 sd and more
    assert draws["a"][:, 1].std() > 0.05 and found.mean["b"][0].sub(1.5).abs().max() < 0.2
    assert torch.equal(found.complete(3)["a"], draws["a"][3]) and torch.equal(draws["a"][:, 2], a[2].expand(30))


class Bayesian(nn.Module):
    """b ~ N(0, 1), one for all rows; z ~ N(0, 0.1^2); x ~ N(b + z, 0.1^2 I)."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(zeros())

    def model(self, x: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(zeros(), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(zeros(1), math.log(0.1)))
            loc = (b[..., None] + z).expand(*torch.broadcast_shapes(b[..., None].shape, z.shape)[:-1], 2)
            pyro.sample("x", ObservedOnly(normal(loc, math.log(0.1))), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("b", dist.Normal(self.loc, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(zeros(1), math.log(0.1)))


def test_all_rows_of_a_draw_share_the_global_sites() -> None:
    x = torch.full((4, 2), NAN, dtype=torch.float64)
    found = pv.impute(eager(Bayesian(), x), x, 60, num_particles=60, seed=0).draws
    assert found.mean((1, 2)).std() > 0.6  # sd 1; a ratio of 0.6 at 60 draws: false alarms below 1e-6
    assert (found - found.mean((1, 2), keepdim=True)).std() < 0.25
    x[:, 0] = 0.5
    found = pv.impute(eager(Bayesian(), x), x, 20, num_particles=60, proposal="guide", seed=0)
    assert found.draws.isfinite().all() and found.ess.isfinite().all()


class InPieces(nn.Module):
    """x ~ N(z 1, I) in four dimensions, written as the sites that `parts` adds."""

    def __init__(self, parts: Any, seen: Any = lambda x: x.nan_to_num(0.0)) -> None:
        super().__init__()
        self.parts, self.seen, self.scale = parts, seen, nn.Parameter(zeros())

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal(zeros(1), 0.0))
            self.parts(z, x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", normal(self.seen(x).mean(-1, keepdim=True), self.scale))


def wide(z: Tensor, size: int) -> Any:
    return normal(z.expand(*z.shape[:-1], size), -2.0)


def slices(z: Tensor, x: Tensor) -> None:
    pyro.sample("left", ObservedOnly(wide(z, 1)), obs=x[:, :1])
    pyro.sample("right", ObservedOnly(wide(z, 3)), obs=x[:, 1:])


def transposed(z: Tensor, x: Tensor) -> None:
    with pyro.plate("columns", 4, dim=-2):
        pyro.sample("x", ObservedOnly(dist.Normal(z[..., 0], math.exp(-2.0))), obs=x.T)


def filled(z: Tensor, x: Tensor) -> None:
    loc = z.expand(*z.shape[:-1], 4)
    pyro.sample("x", dist.Normal(loc, math.exp(-2.0)).mask(~x.isnan()).to_event(1), obs=x.nan_to_num(0.0))


@pytest.mark.parametrize("parts", [slices, transposed, filled])
def test_sites_that_observe_parts_of_an_argument_or_leave_gaps_out_by_a_mask(parts: Any) -> None:
    x = torch.tensor([[0.5, NAN, 0.5, NAN], [NAN, NAN, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    found = pv.impute(eager(InPieces(parts), x), x, 20, num_particles=400, seed=0)
    gaps = x.isnan()
    wanted = torch.tensor([[0.5], [-1.0], [1.0]]).expand(3, 4)
    assert (found.draws - wanted)[:, gaps].abs().max() < 1.2  # sd 0.17
    assert torch.equal(found.draws[:, ~gaps], x[~gaps].expand(20, -1))
    assert found.sd[gaps].min() > 0.05


def test_a_latent_site_in_another_plate_is_drawn_by_the_guide() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(zeros())

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1), pyro.plate("steps", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(zeros(), 1.0))
                pyro.sample("x", ObservedOnly(dist.Normal(z, 0.5)), obs=x.T)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1), pyro.plate("steps", 3, dim=-2):
                pyro.sample("z", dist.Normal(0.8 * x.T.nan_to_num(0.0), self.scale.exp()))

    x = torch.tensor([[2.0, NAN, -2.0], [NAN, 0.0, 0.0]], dtype=torch.float64)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = pv.impute(eager(Steps(), x), x, 300, num_particles=500, seed=0)
    assert ["'z' is in other plates" in message for message in told(said)] == [True]
    gaps = found.draws[:, [0, 1], [1, 0]]  # N(0, 1.25), and the other steps say nothing
    assert (gaps.mean(0).abs() < BOUND * math.sqrt(1.25 / 150)).all() and ((gaps.var(0) - 1.25).abs() < 0.9).all()
    draws = pv.posterior(eager(Steps(), x), x, 5, num_particles=50, proposal="guide", seed=0)
    assert draws.shape == (5, 2, 3)


@pytest.mark.parametrize("layout", ["rows", "columns", "every other row", "turned"])
def test_where_values_stand_in_an_argument_whatever_its_memory_looks_like(layout: str) -> None:
    base = torch.randn(6, 4, 3)
    x = {
        "rows": base,
        "columns": torch.randn(4, 3, 6).permute(2, 0, 1),
        "every other row": torch.randn(12, 4, 3)[::2],
        "turned": torch.randn(6, 3, 4).transpose(1, 2),
    }[layout]
    flat = torch.arange(x.numel()).reshape(x.shape)
    for part in (lambda t: t, lambda t: t[:, 1:3], lambda t: t[..., 0], lambda t: t.transpose(1, 2)):
        found = entries(part(x), x)
        assert found is not None and torch.equal(found, part(flat))
    filled, gap = x.clone(), x.clone()
    gap[0, 1] = NAN
    whole = entries(filled, gap)
    assert whole is not None and torch.equal(whole, flat)
    assert entries(x + 1, x) is None and entries(torch.zeros(()), x) is None
    shared = x[:1].expand(6, 4, 3)
    assert torch.equal(entries(shared, shared), flat) and entries(shared[:, :2], shared) is None


def test_what_cannot_be_imputed_is_refused_with_the_cure() -> None:
    x = torch.tensor([[0.5, NAN, 0.3], [0.1, 0.2, 0.3]], dtype=torch.float64)
    torch.manual_seed(0)
    pair = LinearGaussian(columns=3)
    with pytest.raises(pv.DataError, match=r"1 NaN in 1 row \(the first is row 0\).*observed_only"):
        pv.impute(eager(pair, x.nan_to_num(0.0)), x)
    own = InPieces(lambda z, x: pyro.sample("x", OwnJoint(z.expand(*z.shape[:-1], 3)), obs=x))
    with pytest.raises(pv.PairError, match=r"elements of a OwnJoint depend.*sample_missing"):
        pv.impute(eager(own, x), x, num_particles=20, proposal="guide")

    class Condition(InPieces):
        def model(self, x: Tensor, c: Tensor) -> None:
            super().model(x)

        def guide(self, x: Tensor, c: Tensor) -> None:
            super().guide(x)

    data = {"x": torch.zeros(2, 4, dtype=torch.float64), "c": x[:, 1]}
    with pytest.raises(pv.DataError, match="'c' has missing entries, and no site of the model observes them"):
        pv.impute(eager(Condition(slices), data), data)
    _, x, fitted = gappy()
    with pytest.raises(pv.OptionError, match="num_samples must be at least 1"):
        pv.impute(fitted, x, 0)
    with pytest.raises(pv.OptionError, match="proposal must be one of"):
        pv.impute(fitted, x, proposal="mean")


class OwnJoint(dist.TorchDistribution):  # type: ignore[misc]
    """A distribution of whole rows that takes NaN, and does not say how to draw some elements given others."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return type(self)(self.loc.expand(*batch_shape, -1))

    def log_prob(self, value: Tensor) -> Tensor:
        return -(value - self.loc).square().nan_to_num(0.0).sum(-1)


class OwnConditional(OwnJoint):
    """The same, which says that missing elements are the mean of the observed ones."""

    def sample_missing(self, value: Tensor) -> Tensor:
        return value.nanmean(-1, keepdim=True).expand(*self.batch_shape, *self.event_shape)


def test_a_distribution_may_say_how_to_draw_some_elements_given_the_others() -> None:
    x = torch.tensor([[0.5, NAN, 0.3], [0.1, 0.2, 0.3]], dtype=torch.float64)
    own = InPieces(lambda z, x: pyro.sample("x", OwnConditional(z.expand(*z.shape[:-1], 3)), obs=x))
    found = pv.impute(eager(own, x), x, 3, num_particles=20, proposal="guide", seed=0)
    torch.testing.assert_close(found.draws[:, 0, 1], torch.full((3,), 0.4, dtype=torch.float64))


@pytest.mark.slow
def test_few_candidates_are_told_and_their_draws_moved() -> None:
    """Moves leave p(z | x) as it is, and part draws that were chosen twice."""
    pair, x, fitted = gappy()
    with pytest.warns(UserWarning, match="In 3 rows fewer than 10 draws of the proposal count"):
        still = pv.impute(fitted, x, 20, num_particles=4, proposal="refined", moves=0, seed=0)
    part = fitted.parts(x[:1])[0]
    (stuck,) = resampled(fitted, part, 20, ["z"], 4, "refined")
    (moved,) = resampled(fitted, part, 20, ["z"], 4, "refined", moves=10, ess_below=40)
    assert len(stuck.values["z"][:, 0].unique(dim=0)) <= 4 < 18 <= len(moved.values["z"][:, 0].unique(dim=0))
    assert still.ess[0] <= 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pv.impute(fitted, x[:1], 600, num_particles=30, proposal="refined", moves=10, seed=0)
    mean, cov = pair.given(x[0])
    drawn = found.draws[:, 0, :2]  # 2 means and 2 variances; the chains are short, so an allowance of a tenth of an sd
    assert ((drawn.mean(0) - mean).abs() < 0.1 * cov.diagonal().sqrt() + BOUND * (cov.diagonal() / 600).sqrt()).all()
    assert ((drawn.var(0) / cov.diagonal()).log().abs() < 0.1 + BOUND * math.sqrt(2 / 600)).all()


def test_a_transform_comes_first() -> None:
    _, x, fitted = gappy()
    shifted = replace(fitted, transform=lambda batch: {"x": batch["x"] + 1})
    found = pv.impute(shifted, x, 2, num_particles=20, proposal="guide", seed=0)
    seen = ~x.isnan()
    assert torch.equal(found.complete(0)[seen], (x + 1)[seen]) and torch.equal(found.draws[1], found.complete(1))
