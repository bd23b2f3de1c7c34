"""Two labels, each known of some rows: bounds, gradients and class probabilities as sums over classes written out."""

from __future__ import annotations

import itertools
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from support.by_hand import Noise, minibatch
from support.pairs import unfitted
from support.programs import some_labels, two_labels
from torch import Tensor, nn

import pyrovae as pv

C1, C2, ROWS = 3, 2, 8
PAIRS = list(itertools.product(range(C1), range(C2)))


class Given(nn.Module):
    """The pair with z = m + s * noise, for noise of each pair of classes and row, `(C2, C1, N, L)`."""

    def __init__(self, data: dict[str, Tensor], noise: Tensor) -> None:
        super().__init__()
        self.pair, self.data, self.noise = two_labels(alpha=3.0), data, noise

    def model(self, x: Tensor, y1: Tensor | None = None, y2: Tensor | None = None) -> Any:
        return self.pair.model(x, y1, y2)

    def guide(self, x: Tensor, y1: Tensor | None = None, y2: Tensor | None = None) -> Any:
        rows = ((self.data["y1"] >= 0) == (y1 is not None)) & ((self.data["y2"] >= 0) == (y2 is not None))
        noise = self.noise[:, :, rows]
        return Noise(noise if y1 is None else noise[:, 0])(self.pair.guide)(x, y1, y2)


def by_hand(pair: pv.TwoLabelVAE, data: dict[str, Tensor], noise: Tensor) -> Tensor:
    """-(1/N) of the sum over rows of what a fit maximises, one pair of classes after another."""
    total = torch.zeros(())
    for row in range(ROWS):
        x, known = data["x"][row], [int(data[name][row]) for name in ("y1", "y2")]
        q = [pair.classifier1(x), pair.classifier2(x)]
        total = total + sum(3.0 * q[i].log_prob(torch.tensor(y)) for i, y in enumerate(known) if y >= 0)
        for classes in PAIRS:
            if any(y not in (-1, c) for y, c in zip(known, classes)):
                continue
            y1, y2 = map(torch.tensor, classes)
            open_ones = [i for i, y in enumerate(known) if y < 0]
            log_q = sum((q[i].log_prob(torch.tensor(classes[i])) for i in open_ones), torch.zeros(()))
            eps = noise[classes[1] if known[1] < 0 else 0, classes[0] if known[0] < 0 else 0, row]
            r = pair.encoder(x, pair.code1(y1), pair.code2(y2))
            z = r.base_dist.loc + r.base_dist.scale * eps
            log_p = pair.label_prior1().log_prob(y1) + pair.label_prior2().log_prob(y2) + pair.prior().log_prob(z)
            log_p = log_p + pair.likelihood(z, pair.code1(y1), pair.code2(y2)).log_prob(x)
            total = total + log_q.exp() * (log_p - r.log_prob(z) - log_q)
    return -total / ROWS


def test_the_objective_and_its_gradient_are_sums_over_the_classes_of_what_is_unknown() -> None:
    """In each of the four groups of rows: both labels known, either, and none."""
    torch.set_default_dtype(torch.float64)
    try:
        data, noise = some_labels(ROWS), torch.randn(C2, C1, ROWS, 2)
        given = Given(data, noise)
        loss, inputs = minibatch(given, data)
        assert len(inputs) == 4
        pair, parameters = given.pair, list(given.pair.parameters())
        ours, theirs = loss(inputs, {})[1], by_hand(pair, data, noise)
        torch.testing.assert_close(ours, theirs)
        for one, other in zip(*(torch.autograd.grad(value, parameters) for value in (ours, theirs))):
            torch.testing.assert_close(one, other)
    finally:
        torch.set_default_dtype(torch.float32)


class Prior(nn.Module):
    """q(z | x, y1, y2) = p(z)."""

    def forward(self, x: Tensor, *codes: Tensor) -> Any:
        batch = torch.broadcast_shapes(*(value.shape[:-1] for value in (x, *codes)))
        return dist.Normal(x.new_zeros(*batch, 2), 1.0).to_event(1)


def without_z() -> pv.TwoLabelVAE:
    """x does not depend on z, so that every draw of z has the same weight and sums over classes are exact."""
    torch.manual_seed(2)
    pair = two_labels()
    pair.encoder = Prior()
    with torch.no_grad():
        pair.likelihood.net.first[0].weight.zero_()  # type: ignore[union-attr, operator, index]
        for layer in pair.likelihood.net.first[1:]:  # type: ignore[union-attr, operator, index]
            layer.weight.mul_(4)  # so that labels matter
    return pair


def joint(pair: pv.TwoLabelVAE, x: Tensor) -> Tensor:
    """`p(x, y1, y2)` of every pair of classes, `(N, C1, C2)`."""
    found = torch.zeros(len(x), C1, C2, dtype=torch.float64)
    for c1, c2 in PAIRS:
        y1, y2 = torch.tensor(c1), torch.tensor(c2)
        log_p = pair.likelihood(torch.zeros(2), pair.code1(y1), pair.code2(y2)).log_prob(x)
        log_p = log_p + pair.label_prior1().log_prob(y1) + pair.label_prior2().log_prob(y2)
        found[:, c1, c2] = log_p.detach().double().exp()
    return found


def test_classes_follow_from_bayes_rule_given_the_other_label_where_it_is_known() -> None:
    pair, data = without_z(), some_labels(ROWS)
    fitted, p = unfitted(pair, {"x": data["x"]}), joint(pair, data["x"])
    about = {"num_samples": 2, "seed": 0}
    for site, other, axis in (("y1", "y2", 2), ("y2", "y1", 1)):
        alone = p.sum(axis)
        found = pv.classify(fitted, data["x"], site=site, **about)  # type: ignore[arg-type]
        torch.testing.assert_close(found.joint, alone / alone.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
        guide = (pair.classifier1 if site == "y1" else pair.classifier2)(data["x"]).probs
        torch.testing.assert_close(found.guide, guide.detach().double(), rtol=1e-4, atol=1e-6)
        known = data[other] >= 0
        given = p.movedim(axis, 1)[torch.arange(ROWS), data[other].clamp_min(0)]
        wanted = torch.where(known[:, None], given, alone)
        both = pv.classify(fitted, data, site=site, **about)  # type: ignore[arg-type]  # its own labels are ignored
        torch.testing.assert_close(both.joint, wanted / wanted.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
        assert (both.joint - found.joint)[known].abs().max() > 0.02  # the labels depend on each other given x
    with pytest.raises(pv.PairError, match="has 'y1', 'y2'; no name was given"):
        pv.classify(fitted, data["x"])


def test_log_p_sums_over_what_is_unknown() -> None:
    pair, data = without_z(), some_labels(ROWS)
    p = joint(pair, data["x"])
    p = torch.where((data["y1"] >= 0)[:, None, None], p[torch.arange(ROWS), data["y1"].clamp_min(0)][:, None], p)
    columns = p[torch.arange(ROWS), :, data["y2"].clamp_min(0)][:, :, None]
    p = torch.where((data["y2"] >= 0)[:, None, None], columns, p)
    p = p / torch.where(data["y1"] >= 0, C1, 1)[:, None, None] / torch.where(data["y2"] >= 0, C2, 1)[:, None, None]
    found = pv.importance(unfitted(pair, data), data, 2, proposal="guide", seed=0)
    torch.testing.assert_close(found.log_likelihood, p.sum((1, 2)).log(), rtol=1e-4, atol=1e-4)


def test_rows_are_drawn_given_both_labels_or_one_of_them() -> None:
    """Means given y1 alone are those over p(y2). False alarms: 1 in 100,000 (six means of 4000 bits at 5 sd)."""
    pair = without_z()
    fitted = unfitted(pair, some_labels(ROWS))
    n = 4000
    y1 = torch.ones(n, dtype=torch.long)
    means = [pair.likelihood(torch.zeros(2), pair.code1(y1[0]), pair.code2(torch.tensor(c))).mean for c in range(C2)]
    both = pv.generate(fitted, 3, given={"y1": y1[:3], "y2": y1[:3]}, mean=True)
    torch.testing.assert_close(both, means[1].detach().expand(3, -1))
    wanted = (0.6 * means[0] + 0.4 * means[1]).detach()
    drawn = pv.generate(fitted, n, given={"y1": y1}, site="x", seed=0)
    assert bool(((drawn.mean(0) - wanted).abs() < 5 * (wanted * (1 - wanted) / n).sqrt()).all())


def test_a_number_that_is_no_class_is_told_as_such() -> None:
    """And not as a pair that only runs on so many rows."""
    data = some_labels(ROWS)
    data["y1"][0] = 3
    with pytest.raises(pv.PairError, match=r"Site 'y1\|x' of the model"):
        pv.check_pair(two_labels(), data)
    data["y1"][0] = -2
    with pytest.raises(pv.DataError, match=r"'y1\|x'.*outside the support of Categorical.*is -2 in row 0"):
        pv.fit(two_labels(), data, epochs=1, progress=False)


def test_gaps_that_reach_a_class_are_told_by_their_argument() -> None:
    """A class is drawn given them, which torch refuses in words of its own before any density is looked at."""
    data = some_labels(ROWS)
    data["x"][7, 2] = torch.nan
    with pytest.raises(pv.PairError, match="'x' has NaN, which this pair does not take"):
        pv.check_pair(two_labels(), data)


def test_alpha_has_to_be_positive() -> None:
    with pytest.raises(pv.OptionError, match="alpha.*must be positive, got 0"):
        two_labels(alpha=0)
