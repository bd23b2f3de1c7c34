"""Gaussian processes of labels: by scikit-learn's logistic regression, by fits without the held-out rows, and by definition."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import pyrovae as pv
from pyrovae.criticism import processes
from pyrovae.criticism.processes import LINEAR, OFFSET, _chosen, _fitted, _kernels


@pytest.fixture(scope="module")
def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Rows of which the square of the first column decides the class, their classes, and 16 of these with -1 elsewhere."""
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (x[:, 0].abs() > 0.7).long()
    few = torch.where(torch.arange(60) < 16, y, -1)
    return x, y, few


@pytest.fixture(scope="module")
def process(rows: tuple[Tensor, Tensor, Tensor]) -> pv.LabelProcess:
    return pv.LabelProcess(rows[0], rows[2])


def test_a_linear_kernel_is_a_logistic_regression_with_a_quadratic_penalty() -> None:
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(30) % 3
    variance = LINEAR[1]
    found = _fitted(x @ x.T, (1.0, variance), torch.nn.functional.one_hot(y).double(), torch.zeros(1, 30).bool())
    a, b, f = (part[1] for part in found)
    columns = torch.cat([variance**0.5 * x, torch.full((30, 1), OFFSET**0.5, dtype=x.dtype)], 1).numpy()
    model = LogisticRegression(fit_intercept=False, tol=1e-8, max_iter=1000).fit(columns, y.numpy())
    torch.testing.assert_close(f[0].softmax(-1), torch.from_numpy(model.predict_proba(columns)), atol=1e-3, rtol=0)
    torch.testing.assert_close(variance * x @ x.T @ a[0] + b[0], f[0], atol=1e-3, rtol=0)


def test_a_held_out_row_is_predicted_as_if_it_were_not_there(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y = rows[0][:20], torch.nn.functional.one_hot(rows[1][:20]).double()
    kernel = list(_kernels(x, x))[-1][0]
    out = torch.arange(20) % 4 == 0
    inside = _fitted(kernel, [10.0], y, out[None])[2][0][0][out]
    a, b, _ = (part[0] for part in _fitted(kernel[~out][:, ~out], [10.0], y[~out], torch.zeros(1, 15).bool()))
    wanted = (10 * kernel[out][:, ~out] @ a[0] + b[0]).softmax(-1)
    torch.testing.assert_close(inside.softmax(-1), wanted, atol=5e-3, rtol=0)


def test_held_out_labels_choose_kernels_that_fit(rows: tuple[Tensor, Tensor, Tensor], process: pv.LabelProcess) -> None:
    x, y, _ = rows
    assert process.weights[len(LINEAR) :].sum() > 0.9  # no line parts these classes
    assert (process.probabilities.argmax(-1) == y)[16:].double().mean() > 0.8
    assert process.weights.sum().item() == pytest.approx(1) and process.held_out.tolist() == list(range(16))
    torch.testing.assert_close(process(x)[16:], process.probabilities[16:])
    assert (process(x)[:16].argmax(-1) == y[:16]).all()  # which has seen these labels
    own = process.probabilities[:16].gather(1, y[:16, None]).log().mean()
    assert (
        process.score == pytest.approx(own.item())
        and process.score < process(x)[:16].gather(1, y[:16, None]).log().mean()
    )


def test_units_of_all_columns_and_their_place_change_nothing(
    rows: tuple[Tensor, Tensor, Tensor], process: pv.LabelProcess
) -> None:
    far = pv.LabelProcess(1e3 * rows[0] + 1e6, rows[2])
    torch.testing.assert_close(far.probabilities, process.probabilities, atol=1e-3, rtol=0)
    same = pv.LabelProcess(torch.ones(6, 2), torch.tensor([0, 0, 0, 1, -1, -1]))  # rows that do not differ
    assert same.probabilities.isfinite().all() and same.probabilities[4, 0] > 0.5


def test_other_labels_have_the_process_that_they_would_have_anew(
    rows: tuple[Tensor, Tensor, Tensor], process: pv.LabelProcess
) -> None:
    x, _, few = rows
    before, other = process.probabilities.clone(), torch.where(torch.arange(60) < 4, -1, few)
    again, anew = process.relabelled(other), pv.LabelProcess(x, other)
    assert torch.equal(again.probabilities, anew.probabilities) and torch.equal(process.probabilities, before)


def test_a_class_with_one_label_keeps_it() -> None:
    x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    process = pv.LabelProcess(x, torch.tensor([0, -1, 1, -1]))
    assert math.isnan(process.score) and len(process.held_out) == 0
    assert process.probabilities.argmax(-1).tolist() == [0, 0, 1, 1]


def test_of_many_labels_some_are_used_one_of_each_class_and_the_rest_in_proportion() -> None:
    y = torch.cat(
        [torch.zeros(60), torch.ones(30), torch.full((9,), 2), torch.full((1,), 3), torch.full((50,), -1)]
    ).long()
    rows = _chosen(y, 20)
    assert torch.bincount(y[rows]).tolist() == [11, 6, 2, 1]
    assert (rows.diff() > 0).all() and rows[10] > 20  # not the first of a table
    assert torch.equal(_chosen(y, 100), torch.arange(100)) and torch.equal(_chosen(y, 20), rows)


def test_of_many_labels_a_rare_class_keeps_two_so_that_each_is_predicted_without_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyrovae.criticism.processes.MOST_LABELS", 20)
    x = torch.randn(62, 3, generator=torch.Generator().manual_seed(0))
    y = torch.cat([torch.arange(60) % 2, torch.tensor([2, 2])])
    process = pv.LabelProcess(x, y)
    assert len(process.held_out) == 20 and {60, 61} < set(process.held_out.tolist())


def test_many_labels_keep_the_frequencies_of_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MOST_LABELS", 40)
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(2))
    y = (torch.arange(400) % 10 == 0).long()  # whatever x is
    process = pv.LabelProcess(x, y)
    assert 0.05 < process(x)[:, 1].mean() < 0.15
    assert len(process.held_out) == 40 and process.labels.tolist() == y[process.held_out].tolist()


def test_functions_have_the_highest_density_under_every_kernel() -> None:
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x /= x.square().sum(1).mean().sqrt()
    y = torch.nn.functional.one_hot(torch.arange(60) % 4).double()
    out = torch.stack([torch.arange(60) < 0, torch.arange(60) % 5 == 0])
    for kernel, variances in _kernels(x, x):
        for a, b, f in zip(*_fitted(kernel, variances, y, out)):
            error = (y - f.softmax(-1)) * ~out[
                ..., None
            ]  # where the gradient is 0, f = K error + b and b = 10 sum(error)
            torch.testing.assert_close(a, error, atol=1e-2, rtol=0)
            torch.testing.assert_close(b / OFFSET, error.sum(1, keepdim=True), atol=2e-2, rtol=0)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_rows_may_be_of_any_scale(scale: float) -> None:
    x, y = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]]).double(), torch.tensor([0, 0, -1, 1, 1, -1])
    with torch.inference_mode():
        found = pv.LabelProcess(scale * x, y)
    torch.testing.assert_close(found.probabilities, pv.LabelProcess(x, y).probabilities)


def test_what_a_process_refuses(rows: tuple[Tensor, Tensor, Tensor], process: pv.LabelProcess) -> None:
    x, _, few = rows
    with pytest.raises(pv.ShapeError, match=r"got \(60, 2\) and \(59,\)"):
        pv.LabelProcess(x, few[1:])
    with pytest.raises(pv.DataError, match="A process needs two rows or more, got 1"):
        pv.LabelProcess(x[:1], few[:1])
    with pytest.raises(pv.DataError, match="A process needs a label, got 60 rows, 0 labelled"):
        pv.LabelProcess(x, torch.full((60,), -1))
    with pytest.raises(pv.DataError, match="Labels of a process must be class numbers"):
        pv.LabelProcess(x, few.double())
    with pytest.raises(pv.DataError, match="must have no gaps"):
        pv.LabelProcess(torch.where(x > 1, math.nan, x), few)
    with pytest.raises(pv.DataError, match="Rows of a process must be finite"):
        pv.LabelProcess(torch.where(x > 1, math.inf, x), few)
    with pytest.raises(pv.ShapeError, match="A row of the process has 2 numbers, got rows with 3"):
        process(torch.zeros(4, 3))


@pytest.mark.parametrize("most", [400, 1])
def test_problems_that_are_solved_one_after_the_other_have_the_same_solution(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory would be short, as with hundreds of classes: by variances, and then by folds."""
    torch.manual_seed(0)
    x, y = torch.randn(30, 2), torch.arange(30) % 3
    together = pv.LabelProcess(x, y)
    monkeypatch.setattr(processes, "MOST_UNKNOWNS", most)
    apart = pv.LabelProcess(x, y)
    torch.testing.assert_close(apart.probabilities, together.probabilities, atol=2e-3, rtol=0)
    torch.testing.assert_close(apart.weights, together.weights, atol=2e-2, rtol=0)
