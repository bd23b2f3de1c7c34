"""Calibration, scores and acquisition: by hand, by scikit-learn, and by simulation."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor

import pyrovae as pv
from pyrovae import acquisition, calibration, plots

# confidence 0.6 right, 0.7 wrong, 0.9 right, 0.95 right, and one of unknown label
P = torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1], [0.05, 0.95], [0.5, 0.5]], dtype=torch.float64)
Y = torch.tensor([0, 0, 0, 1, -1])


def simulated(n: int = 20_000, temperature: float = 1.0, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Labels drawn from softmax(l / T), and what a classifier says that takes T for 1."""
    logits = 2 * torch.randn(n, classes, dtype=torch.float64)
    return logits.softmax(-1), torch.distributions.Categorical(logits=logits / temperature).sample()


# --- calibration -----------------------------------------------------------------------------------------------------


def test_reliability_by_hand() -> None:
    # two bins of equal width: all in the upper one; ten: (0.5, 0.6], (0.6, 0.7], (0.8, 0.9], (0.9, 1]
    found = calibration.reliability(P, Y, num_bins=2)
    assert found.counts.tolist() == [4.0]
    assert found.error == pytest.approx(abs(0.75 - (0.6 + 0.7 + 0.9 + 0.95) / 4))
    found = calibration.reliability(P, Y, num_bins=10)
    torch.testing.assert_close(found.confidence, torch.tensor([0.6, 0.7, 0.9, 0.95], dtype=torch.float64))
    assert found.accuracy.tolist() == [1, 0, 1, 1] and found.counts.tolist() == [1, 1, 1, 1]
    assert found.error == pytest.approx((0.4 + 0.7 + 0.1 + 0.05) / 4)
    found = calibration.reliability(P, Y, num_bins=2, bins="mass")
    torch.testing.assert_close(found.confidence, torch.tensor([0.65, 0.925], dtype=torch.float64))
    assert found.accuracy.tolist() == [0.5, 1]
    assert calibration.expected_calibration_error(P, Y, num_bins=2, bins="mass") == pytest.approx((0.15 + 0.075) / 2)


def test_equal_confidences_stay_together() -> None:
    p = torch.tensor([[0.8, 0.2]] * 5 + [[0.1, 0.9]])
    found = calibration.reliability(p, torch.zeros(6, dtype=torch.long), num_bins=3, bins="mass")
    assert found.counts.tolist() == [5, 1]


@pytest.mark.parametrize("bins", ["width", "mass"])
def test_calibrated_simulation(bins: str) -> None:
    """Nothing but sampling noise, whose size is known: 4.5 standard errors a bin and of the sum, false alarms 2e-4."""
    p, y = simulated()
    found = calibration.reliability(p, y, bins=bins)
    error = (found.confidence * (1 - found.confidence) / found.counts).sqrt()
    assert ((found.accuracy - found.confidence).abs() < 4.5 * error + 1e-9).all()
    share = found.counts / found.counts.sum()
    noise = (share * error).sum() * math.sqrt(2 / math.pi)
    spread = ((share * error).square().sum() * (1 - 2 / math.pi)).sqrt()
    assert abs(found.error - noise) < 4.5 * spread
    assert found.counts.sum() == len(y) and (found.confidence.diff() > 0).all()
    if bins == "mass":
        assert found.counts.max() - found.counts.min() <= 1
    p, y = simulated(temperature=2.0)
    assert calibration.expected_calibration_error(p, y, bins=bins) > 0.1


def test_scores() -> None:
    assert calibration.brier_score(P, Y) == pytest.approx(2 * (0.4**2 + 0.7**2 + 0.1**2 + 0.05**2) / 4)
    assert calibration.log_score(P, Y) == pytest.approx(-np.log([0.6, 0.3, 0.9, 0.95]).mean())
    p, y = simulated(500)
    theirs = metrics.brier_score_loss(y.numpy(), p.numpy(), labels=range(4), scale_by_half=False)
    assert calibration.brier_score(p, y) == pytest.approx(theirs, rel=1e-12)
    # classes that do not occur
    assert calibration.log_score(p, torch.ones(500)) == pytest.approx(-p[:, 1].log().mean().item())


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_temperature_is_found(true: float) -> None:
    # a row tells Var(logit) about 1/T, 0.3 to 3 here: 4.5 standard errors of 20,000 rows are at most 5 %
    p, y = simulated(temperature=true)
    found = calibration.fit_temperature(p, y)
    assert found == pytest.approx(true, rel=0.05)
    mended = calibration.with_temperature(p, found)
    assert torch.equal(mended.argmax(-1), p.argmax(-1))
    scores = [calibration.log_score(calibration.with_temperature(p, found * factor), y) for factor in (0.99, 1.0, 1.01)]
    assert scores[1] < min(scores[0], scores[2])
    assert calibration.expected_calibration_error(mended, y) < 0.02
    torch.testing.assert_close(calibration.with_temperature(p, 1.0), p)


def test_temperature_of_saturated_probabilities_does_not_depend_on_their_dtype() -> None:
    torch.manual_seed(0)
    guess = torch.randint(3, (400,))
    y = torch.where(torch.rand(400) < 0.9, guess, (guess + 1) % 3)
    p = (400.0 * torch.nn.functional.one_hot(guess, 3).double()).softmax(-1)  # 0 in float32, 2e-174 in float64
    found = [calibration.fit_temperature(of, y) for of in (p, p.float())]
    assert found[0] == found[1]
    for of in (p, p.float()):
        mended = calibration.with_temperature(of, found[0])
        assert mended.dtype == of.dtype
        # 9 rows in 10 are right, as the mended probabilities say
        assert calibration.expected_calibration_error(mended, y) < 0.01


def test_temperature_has_bounds() -> None:
    p, _ = simulated(50)
    assert calibration.fit_temperature(p, p.argmax(-1)) == pytest.approx(0.01, rel=1e-3)
    assert calibration.fit_temperature(p, p.argmin(-1)) == pytest.approx(100, rel=1e-3)
    sure = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert math.isfinite(calibration.log_score(sure, torch.tensor([0, 1])))
    assert calibration.fit_temperature(sure, torch.tensor([0, 1])) == pytest.approx(100, rel=1e-3)


def test_errors() -> None:
    for wrong, label, error, words in [
        (P, Y[:3], pv.ShapeError, r"\(5, 2\) and \(3,\)"),
        (P.log(), Y, pv.DataError, "logits.softmax"),
        (P, Y + 1, pv.DataError, "0 to 1, or -1 where unknown; 1 are not, the first is 2"),
        (P, Y + 0.5, pv.DataError, "5 are not"),
        (P, torch.full((5,), -1), pv.DataError, "No row has a label"),
    ]:
        for function in (
            calibration.reliability,
            calibration.brier_score,
            calibration.log_score,
            calibration.fit_temperature,
        ):
            with pytest.raises(error, match=words):
                function(wrong, label)
    with pytest.raises(pv.OptionError, match="bins must be one of 'width', 'mass', got 'equal'"):
        calibration.reliability(P, Y, bins="equal")
    with pytest.raises(pv.OptionError, match="num_bins"):
        calibration.reliability(P, Y, num_bins=0)
    with pytest.raises(pv.OptionError, match="positive"):
        calibration.with_temperature(P, 0.0)


# --- acquisition -----------------------------------------------------------------------------------------------------


def test_entropy() -> None:
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    wanted = [math.log(2), 0.0, -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))]
    torch.testing.assert_close(acquisition.entropy(p), torch.tensor(wanted))
    assert acquisition.entropy(p.reshape(3, 1, 2)).shape == (3, 1)


def test_information_gain_by_hand() -> None:
    sure = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    p = torch.stack([sure, torch.full((2, 2), 0.5), torch.tensor([[0.9, 0.1], [0.5, 0.5]])], 1)  # (S = 2, N = 3, C = 2)

    def h(q: float) -> float:
        return -(q * math.log(q) + (1 - q) * math.log(1 - q))

    wanted = torch.tensor([math.log(2), 0.0, h(0.7) - (h(0.9) + h(0.5)) / 2])
    torch.testing.assert_close(acquisition.information_gain(p), wanted)
    same = torch.rand(1, 50, 3).softmax(-1).expand(7, -1, -1)
    gain = acquisition.information_gain(same)
    assert (gain >= 0).all() and gain.max() < 1e-6


def test_information_gain_is_the_mutual_information() -> None:
    p = torch.randn(6, 20, 4, dtype=torch.float64).softmax(-1)
    joint = p / 6  # p(member, label)
    wanted = (joint * (joint / (joint.sum(0, keepdim=True) * joint.sum(-1, keepdim=True))).log()).sum((0, 2))
    torch.testing.assert_close(acquisition.information_gain(p), wanted, rtol=1e-10, atol=1e-12)


def test_acquisition_errors() -> None:
    for wrong in (torch.rand(3, 4), torch.full((1, 3, 2), 0.5)):
        with pytest.raises(pv.ShapeError, match="S >= 2 members"):
            acquisition.information_gain(wrong)
    with pytest.raises(pv.DataError, match=r"2 rows do not; the first is \[0\]"):
        acquisition.entropy(torch.tensor([[0.5, 0.6], [float("nan"), 0.5]]))
    with pytest.raises(pv.ShapeError, match="int64"):
        acquisition.entropy(torch.ones(3, 1, dtype=torch.long))


# --- the diagram -----------------------------------------------------------------------------------------------------


def test_reliability_diagram() -> None:
    found = calibration.reliability(P, Y, num_bins=10)
    ax = plots.reliability(found.confidence, found.accuracy, found.counts)
    diagonal, curve = ax.get_lines()
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_allclose(curve.get_xydata(), np.stack([found.confidence, found.accuracy], 1))
    assert f"error {found.error:.3f}" in ax.get_title(loc="left")
    whiskers = np.array(ax.collections[1].get_segments())[:, :, 1]
    # Wilson's interval of 1 out of 1, and of 0 out of 1
    z = 1.96**2
    np.testing.assert_allclose(whiskers[0], [1 / (1 + z), 1], atol=1e-9)
    np.testing.assert_allclose(whiskers[1], [0, z / (1 + z)], atol=1e-9)


def test_reliability_diagram_errors() -> None:
    with pytest.raises(pv.ShapeError, match=r"\(2,\), \(2,\) and \(1,\)"):
        plots.reliability([0.5, 0.6], [1, 1], [1])
    with pytest.raises(pv.DataError, match="got 0 rows"):
        plots.reliability([0.5], [0.5], [0])


@pytest.mark.parametrize(("right", "total"), [(0, 6), (6, 6), (1, 2), (50, 60), (999, 1000), (0, 1)])
def test_the_interval_of_a_share_inverts_the_score_test(right: int, total: int) -> None:
    share = right / total
    low, high = pv.calibration.share_interval(share, total)
    assert 0 <= low <= share <= high <= 1 and high - low > 0
    for end in (low, high):  # where the test of p = end just rejects: (share - p)^2 = z^2 p (1 - p) / n
        if 0 < end < 1:
            assert (share - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / total)
    assert low == 0 if right == 0 else low > 0
    wider = pv.calibration.share_interval(share, total, level=0.99)
    assert wider[0] <= low and wider[1] >= high
    assert pv.calibration.share_interval(0.0, 0) == (0.0, 1.0)
