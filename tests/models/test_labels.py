"""Several labels, each known of some rows: bounds, gradients and class probabilities as sums over classes written out."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.by_hand import Noise, minibatch
from support.pairs import unfitted
from support.programs import binary, several_labels, some_labels, two_labels
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.pair.batch import group_rows
from pyrovae.pair.program import arguments

C1, C2, ROWS = 3, 2, 8
PAIRS = list(itertools.product(range(C1), range(C2)))


def rows_of(sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Two rows for each set of labels that may be known."""
    rows = torch.arange(2 ** (len(sizes) + 1))
    found = {"x": binary(len(rows))}
    for place, size in enumerate(sizes):
        found[f"y{place + 1}"] = torch.where((rows >> place) % 2 == 1, (rows // 2) % size, -1)
    return found


class Given(nn.Module):
    """The pair with z = m + s * noise, for noise of each combination of classes and row, `(CL, ..., C1, N, L)`."""

    def __init__(self, pair: pv.LabelsVAE, data: dict[str, Tensor], noise: Tensor) -> None:
        super().__init__()
        self.pair, self.data, self.noise = pair, data, noise
        self.optional_arguments = pair.optional_arguments

    def model(self, x: Tensor, **known: Tensor | None) -> Any:
        return self.pair.model(x, **known)

    def guide(self, x: Tensor, **known: Tensor | None) -> Any:
        names = self.optional_arguments
        rows = torch.stack([(self.data[n] >= 0) == (known.get(n) is not None) for n in names]).all(0)
        noise = self.noise[..., rows, :]
        for place, name in reversed(list(enumerate(names))):  # known ones have no dimension of their own
            if known.get(name) is not None:
                noise = noise.select(-3 - place, 0)
        return Noise(noise)(self.pair.guide)(x, **known)


def by_hand(pair: pv.LabelsVAE, data: dict[str, Tensor], noise: Tensor) -> Tensor:
    """-(1/N) of the sum over rows of what a fit maximises, one combination of classes after another."""
    total = torch.zeros(())
    sizes = [code.num_classes for code in pair.codes]
    for row in range(len(data["x"])):
        x, known = data["x"][row], [int(data[name][row]) for name in pair.optional_arguments]
        q = [classifier(x) for classifier in pair.classifiers]
        total = total + sum(pair.alpha * q[i].log_prob(torch.tensor(y)) for i, y in enumerate(known) if y >= 0)
        for classes in itertools.product(*map(range, sizes)):
            if any(y not in (-1, c) for y, c in zip(known, classes)):
                continue
            labels = [torch.tensor(c) for c in classes]
            codes = [code(y) for code, y in zip(pair.codes, labels)]
            log_q = sum((q[i].log_prob(labels[i]) for i, y in enumerate(known) if y < 0), torch.zeros(()))
            eps = noise[tuple(c if y < 0 else 0 for c, y in zip(classes[::-1], known[::-1]))][row]
            r = pair.encoder(x, *codes)
            z = r.base_dist.loc + r.base_dist.scale * eps
            log_p = sum(prior().log_prob(y) for prior, y in zip(pair.label_priors, labels)) + pair.prior().log_prob(z)
            log_p = log_p + pair.likelihood(z, *codes).log_prob(x)
            total = total + log_q.exp() * (log_p - r.log_prob(z) - log_q)
    return -total / len(data["x"])


@pytest.mark.parametrize("sizes", [(3,), (3, 2), (2, 3, 2)], ids=str)
def test_the_objective_and_its_gradient_are_sums_over_the_classes_of_what_is_unknown(sizes: tuple[int, ...]) -> None:
    """In each group of rows, from all labels known to none."""
    torch.set_default_dtype(torch.float64)
    try:
        data, noise = rows_of(sizes), torch.randn(*sizes[::-1], 2 ** (len(sizes) + 1), 2)
        given = Given(several_labels(sizes, alpha=3.0), data, noise)
        loss, inputs = minibatch(given, data)
        assert len(inputs) == 2 ** len(sizes)
        pair, parameters = given.pair, list(given.pair.parameters())
        ours, theirs = loss(inputs, {})[1], by_hand(pair, data, noise)
        torch.testing.assert_close(ours, theirs)
        for one, other in zip(*(torch.autograd.grad(value, parameters) for value in (ours, theirs))):
            torch.testing.assert_close(one, other)
    finally:
        torch.set_default_dtype(torch.float32)


def test_with_one_label_it_is_m2() -> None:
    """The same networks, data and draws give the same bound."""
    one, data = several_labels((3,)), rows_of((3,))
    m2 = pv.SSVAE(
        one.label_priors[0], one.prior, one.likelihood, one.encoder, one.classifiers[0], one.codes[0], alpha=2.0
    )
    theirs = {"x": data["x"], "y": data["y1"]}
    losses = []
    for pair, rows in ((one, data), (m2, theirs)):
        loss, inputs = minibatch(pair, rows)
        torch.manual_seed(0)
        losses.append(loss(inputs, {})[1])
    torch.testing.assert_close(*losses)


class Prior(nn.Module):
    """q(z | x, y1, y2) = p(z)."""

    def forward(self, x: Tensor, *codes: Tensor) -> Any:
        batch = torch.broadcast_shapes(*(value.shape[:-1] for value in (x, *codes)))
        return dist.Normal(x.new_zeros(*batch, 2), 1.0).to_event(1)


def without_z() -> pv.LabelsVAE:
    """x does not depend on z, so that every draw of z has the same weight and sums over classes are exact."""
    torch.manual_seed(2)
    pair = two_labels()
    pair.encoder = Prior()
    with torch.no_grad():
        pair.likelihood.net.first[0].weight.zero_()  # type: ignore[union-attr, operator, index]
        for layer in pair.likelihood.net.first[1:]:  # type: ignore[union-attr, operator, index]
            layer.weight.mul_(4)  # so that labels matter
    return pair


def joint(pair: pv.LabelsVAE, x: Tensor) -> Tensor:
    """`p(x, y1, y2)` of every pair of classes, `(N, C1, C2)`."""
    found = torch.zeros(len(x), C1, C2, dtype=torch.float64)
    for c1, c2 in PAIRS:
        y1, y2 = torch.tensor(c1), torch.tensor(c2)
        log_p = pair.likelihood(torch.zeros(2), pair.codes[0](y1), pair.codes[1](y2)).log_prob(x)
        log_p = log_p + pair.label_priors[0]().log_prob(y1) + pair.label_priors[1]().log_prob(y2)
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
        guide = pair.classifiers[0 if site == "y1" else 1](data["x"]).probs
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
    means = [
        pair.likelihood(torch.zeros(2), pair.codes[0](y1[0]), pair.codes[1](torch.tensor(c))).mean for c in range(C2)
    ]
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
    with pytest.raises(pv.OptionError, match="alpha.*must be a positive number, got 0"):
        two_labels(alpha=0)


@pytest.mark.parametrize("left_out", ["label_priors", "classifiers", "codes"])
def test_each_label_needs_all_of_its_parts(left_out: str) -> None:
    pair = two_labels()
    parts = {name: list(getattr(pair, name)) for name in ("label_priors", "classifiers", "codes")}
    others = {"prior": pair.prior, "likelihood": pair.likelihood, "encoder": pair.encoder}
    with pytest.raises(pv.OptionError, match=rf"Each label needs.*'{left_out}': 1"):
        pv.LabelsVAE(**others, **parts | {left_out: parts[left_out][:1]})
    with pytest.raises(pv.OptionError, match="there must be a label"):
        pv.LabelsVAE(**others, **{name: [] for name in parts})


def test_a_label_that_the_pair_does_not_have_is_told() -> None:
    data = some_labels(ROWS)
    with pytest.raises(pv.DataError, match="y3"):
        pv.check_pair(two_labels(), data | {"y3": data["y2"]})
    with pytest.raises(TypeError, match="are y1, y2, got y3"):
        two_labels().model(data["x"], y3=data["y2"])


def wrapped(pair: pv.LabelsVAE) -> dict[str, Any]:
    return {
        "itself": pair,
        "two functions": pv.Pair(pair.model, pair.guide),
        "behind a handler": pv.Pair(pyro.poutine.scale(pair.model, scale=1.0), functools.partial(pair.guide)),
        "weights with a prior": pv.bayesian(pair),
    }


@pytest.mark.parametrize("how", wrapped(two_labels()))
def test_the_labels_of_a_pair_are_known_however_it_is_wrapped(how: str) -> None:
    pair = wrapped(two_labels())[how]
    assert [(name, p.default) for name, p in arguments(pair).items()][1:] == [("y1", None), ("y2", None)]
    assert len(group_rows(pair, some_labels(ROWS))) == 4
