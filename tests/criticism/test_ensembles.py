"""Mixtures by scikit-learn's discriminant analysis and by their own clusters, edges by hand, and a pool by definition."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

import pyrovae as pv
from pyrovae.criticism.ensembles import PSEUDO_ROWS, _Calibrated
from pyrovae.criticism.mixtures import SHRINKAGE, WEIGHTS, _fitted
from pyrovae.criticism.normal_scores import NormalScores


@pytest.fixture(scope="module")
def clusters() -> tuple[Tensor, Tensor, Tensor]:
    """Rows of two long clusters, side by side, their classes, and two labels of each, at one end, with -1 elsewhere."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 2
    x = torch.randn(80, 2, generator=generator, dtype=torch.float64) * torch.tensor([4.0, 0.4])
    x[:4, 0] = 3.0 - 6.0 * y[:4] + torch.tensor([0.5, -0.5, -0.5, 0.5])
    x[:, 1] += 3 * y
    return x, y, torch.where(torch.arange(80) < 4, y, -1)


@pytest.fixture(scope="module")
def ensemble(clusters: tuple[Tensor, Tensor, Tensor]) -> pv.LabelEnsemble:
    return pv.LabelEnsemble(clusters[0], clusters[2])


# --- the mixture


def test_labelled_rows_alone_make_a_discriminant_analysis() -> None:
    """For many rows, beside which the prior's few count little."""
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(4000) % 3
    x[:, 0] += y
    x[:, 1] += x[:, 0]
    a, b = _fitted(x, y, 3)[0]
    model = LinearDiscriminantAnalysis().fit(x.numpy(), y.numpy())
    np.testing.assert_allclose((x @ a + b).softmax(-1).numpy(), model.predict_proba(x.numpy()), atol=0.01)


def test_rows_without_a_label_say_where_clusters_are(clusters: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, few = clusters
    found = [(x @ a + b).argmax(-1) for a, b in _fitted(x, few, 2)]
    right = {weight: (found[i * len(SHRINKAGE)] == y).double().mean() for i, weight in enumerate(WEIGHTS)}
    assert right[1.0] > 0.97 and right[0.0] < 0.9, right
    mixture = pv.LabelMixture(x, few)
    assert mixture.weights.sum().item() == pytest.approx(1) and len(mixture.weights) == len(WEIGHTS) * len(SHRINKAGE)
    torch.testing.assert_close(mixture(x)[4:], mixture.probabilities[4:])
    again = mixture.relabelled(torch.where(torch.arange(80) < 8, y, -1))
    assert torch.equal(again.probabilities, pv.LabelMixture(x, torch.where(torch.arange(80) < 8, y, -1)).probabilities)


def test_a_labelled_row_is_predicted_by_mixtures_without_its_label(clusters: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, few = clusters
    wrong = few.clone()
    wrong[2] = 1 - y[2]  # a slip: its own label does not vouch for it
    assert (
        pv.LabelMixture(x, few).probabilities[2].argmax() == pv.LabelMixture(x, wrong).probabilities[2].argmax() == y[2]
    )


def test_a_mixture_of_many_columns_takes_principal_components_and_any_scale() -> None:
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(200) % 2
    x = torch.randn(200, 70, generator=generator, dtype=torch.float64)
    x[:, 0] += 8 * y
    few = torch.where(torch.arange(200) < 100, y, -1)
    found = [pv.LabelMixture(scale * x, few) for scale in (1.0, 1e-200, 1e200)]
    assert (found[0].probabilities.argmax(-1) == y).double().mean() > 0.9
    for other in found[1:]:
        torch.testing.assert_close(other.probabilities, found[0].probabilities, atol=1e-6, rtol=0)
    same = pv.LabelMixture(torch.ones(6, 2), torch.tensor([0, 0, 0, 1, -1, -1]))  # rows that do not differ
    assert same.probabilities.isfinite().all() and same.probabilities[4, 0] > 0.5


# --- edges


def test_an_edge_has_its_direction_in_its_cell() -> None:
    image = torch.zeros(1, 14, 14)
    image[:, :, 7:] = (
        1  # brighter to the right: direction 0, in the column of cells in the middle, and a little beside it
    )
    found = pv.gradient_histograms(image, (14, 14)).reshape(8, 7, 7)
    assert found[0].sum() > 0 and found[1:].abs().max() < 1e-3
    columns = found[0].sum(0)
    assert columns[[0, 1, 5, 6]].max() < 1e-3 < columns[2] < columns[3]
    turned = pv.gradient_histograms(image.transpose(1, 2), (14, 14)).reshape(8, 7, 7)  # brighter downwards
    torch.testing.assert_close(turned[2], found[0].T)
    assert torch.equal(pv.gradient_histograms(-image, (14, 14)).reshape(8, 7, 7)[4], found[0])


def test_edges_do_not_see_contrast_or_other_images_and_move_less_than_pixels() -> None:
    images = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(3))
    images[:, 4:12, 4:12] += 2
    found = pv.gradient_histograms(images, (16, 16))
    torch.testing.assert_close(pv.gradient_histograms(1e-3 * images + 5, (16, 16)), found, atol=0.05, rtol=0)
    torch.testing.assert_close(pv.gradient_histograms(images[:1].flatten(1), (16, 16)), found[:1])
    rows = images[:, None].expand(-1, 3, -1, -1) * torch.tensor([0.5, 1.0, 0.2])[:, None, None]
    torch.testing.assert_close(pv.gradient_histograms(rows, (3, 16, 16)), found)  # the strongest channel
    smooth = torch.nn.functional.avg_pool2d(images[:, None], 3, 1, 1)[:, 0]
    moved = smooth.roll(1, 2)

    def far(one: Tensor, two: Tensor) -> float:
        """Squared distances of images that were moved, beside those of different ones."""
        return float((one - two).square().sum(1).mean() / (one[:-1] - one[1:]).square().sum(1).mean())

    edges = far(*(pv.gradient_histograms(x, (16, 16)) for x in (smooth, moved)))
    assert edges < far(smooth.flatten(1), moved.flatten(1))
    assert pv.gradient_histograms(torch.zeros(2, 8, 8), (8, 8)).abs().max() == 0  # no edge at all


def test_edges_of_an_image_are_the_same_beside_any_other_and_in_any_unit() -> None:
    images = torch.rand(3, 3, 6, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = pv.gradient_histograms(images, (3, 6, 8))
    for unit in (1e-300, 1e40, 1e300):
        scaled = images * torch.tensor([1.0, unit, 1.0], dtype=torch.float64)[:, None, None, None]
        torch.testing.assert_close(pv.gradient_histograms(scaled, (3, 6, 8)), found)
    torch.testing.assert_close(pv.gradient_histograms(images + 1e8, (3, 6, 8)), found, atol=1e-3, rtol=0)
    assert pv.gradient_histograms(images[:0], (3, 6, 8)).shape == (0, found.shape[1])
    torch.set_default_dtype(torch.float64)
    try:
        torch.testing.assert_close(pv.gradient_histograms(images, (3, 6, 8)), found)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("shape", [(16,), (1, 1, 4, 4), (-4, -4), (4.0, 4.0), 16, None, "ab"], ids=str)
def test_what_is_no_shape_of_an_image_is_refused(shape: Any, clusters: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(pv.ShapeError, match=r"image_shape is \(height, width\) or \(channels, height, width\), got"):
        pv.gradient_histograms(torch.zeros(2, 16), shape)
    if shape is not None:
        with pytest.raises(pv.ShapeError, match="image_shape is"):
            pv.LabelEnsemble(torch.zeros(80, 16), clusters[2], image_shape=shape)


def test_what_is_no_image_has_no_edges() -> None:
    with pytest.raises(pv.ShapeError, match=r"sides of 4 pixels or more, got \(3, 9\)"):
        pv.gradient_histograms(torch.zeros(2, 27), (3, 9))
    with pytest.raises(pv.ShapeError, match=r"need 64 numbers a row, got rows \(2, 63\)"):
        pv.gradient_histograms(torch.zeros(2, 63), (8, 8))
    with pytest.raises(pv.DataError, match="no gaps"):
        pv.gradient_histograms(torch.full((2, 64), math.nan), (8, 8))


# --- the ensemble


def test_weights_are_of_mean_scores_of_held_out_labels(
    clusters: tuple[Tensor, Tensor, Tensor], ensemble: pv.LabelEnsemble
) -> None:
    x, y, few = clusters
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    scores = NormalScores.of(x)(x)
    views = (standard, scores)
    fields = [pv.LabelField(rows, few) for rows in (x, *views)]
    field, process = (
        max(members, key=lambda one: one.score) for members in (fields, [pv.LabelProcess(rows, few) for rows in views])
    )
    mixture = max(
        (_Calibrated(pv.LabelMixture(rows, few), few, PSEUDO_ROWS[0]) for rows in views), key=lambda one: one.score
    )
    each = [field.probabilities, process.probabilities, mixture.probabilities]
    found = torch.stack([p[:4].gather(1, few[:4, None]).log().sum() for p in each])
    weights = list(ensemble.weights.values())
    assert sum(weights) == pytest.approx(1) and weights[3] > 0.1
    for i in (1, 2):
        assert math.log(weights[i] / weights[0]) == pytest.approx(float(found[i] - found[0]) * 3 / 4, abs=1e-4)
    assert (ensemble.probabilities.argmax(-1) == y).double().mean() > 0.9
    torch.testing.assert_close(ensemble(x)[4:], ensemble.probabilities[4:], atol=0.05, rtol=0)
    assert ensemble.score == pytest.approx(float(ensemble.probabilities[:4].gather(1, few[:4, None]).log().mean()))


class Told:
    """A member whose probabilities are given; other labels and rows give others."""

    def __init__(self, probabilities: Tensor) -> None:
        self.probabilities = probabilities

    def relabelled(self, y: Tensor) -> "Told":
        return Told(self.probabilities.flip(1))

    def __call__(self, x: Tensor) -> Tensor:
        return self.probabilities[: len(x)]


def test_a_member_has_the_temperature_of_its_held_out_labels() -> None:
    """The best of a fine grid: of those labels whose class has several, besides a part of a row of unknown class."""
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = torch.multinomial((logits / 1.7).softmax(-1), 1, generator=generator)[:, 0].clamp_max(1)
    y[0], y[30:] = 2, -1  # the only one of its class is not held out
    for pseudo_row in PSEUDO_ROWS:
        found = _Calibrated(Told(logits.softmax(-1)), y, pseudo_row)

        def penalised(temperature: float, pseudo_row: float = pseudo_row) -> float:
            logs = (logits[1:30] / temperature).log_softmax(-1)
            return float(logs.gather(1, y[1:30, None]).sum() + pseudo_row * logs.mean(1).mean())

        grid = torch.logspace(-1, 1, 2001).tolist()
        assert found.temperature == pytest.approx(max(grid, key=penalised), rel=2e-3)
        torch.testing.assert_close(found.probabilities, (logits / found.temperature).softmax(-1))
        assert torch.equal(found(logits[:7]), found.probabilities[:7])
        assert found.score == pytest.approx(float(found.probabilities[1:30].gather(1, y[1:30, None]).log().mean()))
        assert found.relabelled(y).temperature != found.temperature
    alone = _Calibrated(Told(logits.softmax(-1)), torch.where(torch.arange(40) < 1, 0, -1), 0.5)
    assert alone.temperature == 1 and math.isnan(alone.score)


def test_tails_of_a_column_do_not_count_where_ranks_say_more() -> None:
    """A class of small and one of large numbers, over twelve orders of magnitude, beside a column that says nothing."""
    generator = torch.Generator().manual_seed(6)
    y = torch.arange(120) % 2
    x = torch.randn(120, 2, generator=generator, dtype=torch.float64)
    x[:, 0] = (6 * (x[:, 0] + 2.5 * y)).exp()
    few = torch.where(torch.arange(120) < 24, y, -1)
    found = pv.LabelEnsemble(x, few)
    assert (found.probabilities.argmax(-1) == y)[24:].double().mean() > 0.85
    assert [found._process, found._mixture] == [1, 1]  # the scores, and not the standardised columns
    torch.testing.assert_close(found(x)[24:], found.probabilities[24:], atol=0.1, rtol=0)


def test_images_have_no_trees_and_are_seen_by_their_edges_where_these_say_more() -> None:
    """Squares anywhere and crosses anywhere: alike in pixels."""
    generator = torch.Generator().manual_seed(4)
    images, y = torch.zeros(60, 12, 12), torch.arange(60) % 2
    for image, kind, (down, across) in zip(images, y, torch.randint(0, 5, (60, 2), generator=generator)):
        if kind:
            image[down : down + 7, across : across + 7] = torch.eye(7) + torch.eye(7).flip(0)
        else:
            image[[down, down + 6], across : across + 7] = 1
            image[down : down + 7, [across, across + 6]] = 1
    few = torch.where(torch.arange(60) < 16, y, -1)
    found = pv.LabelEnsemble(images, few, image_shape=(12, 12))
    assert list(found.weights) == ["field", "process", "mixture"]
    assert (found.probabilities.argmax(-1) == y)[16:].double().mean() > 0.9
    torch.testing.assert_close(found(images)[16:], found.probabilities[16:], atol=0.05, rtol=0)
    assert (
        pv.LabelEnsemble(images[:, :3, :3], few, image_shape=(3, 3)).probabilities.isfinite().all()
    )  # too small for edges


def test_gaps_constant_columns_and_huge_numbers_are_taken(clusters: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, _ = clusters
    rows = torch.cat([x, torch.full((80, 1), 3.0), 1e200 * x[:, :1]], 1)
    rows[::7, 0], rows[::5, 1] = math.nan, math.nan
    before = rows.clone()
    found = pv.LabelEnsemble(rows, torch.where(torch.arange(80) < 30, y, -1))
    assert found.probabilities.isfinite().all() and (found.probabilities.argmax(-1) == y).double().mean() > 0.75
    assert torch.equal(rows.nan_to_num(0.0), before.nan_to_num(0.0))
    again = found.relabelled(torch.where(torch.arange(80) < 8, y, -1))
    assert torch.equal(again(rows[:3]), pv.LabelEnsemble(rows, torch.where(torch.arange(80) < 8, y, -1))(rows[:3]))
    alone = pv.LabelEnsemble(x, torch.where(torch.arange(80) < 2, y, -1))  # one label a class: none can be held out
    assert math.isnan(alone.score) and list(alone.weights.values()) == pytest.approx([0.25] * 4)


def test_rows_that_are_huge_alike_or_none_have_probabilities(
    clusters: tuple[Tensor, Tensor, Tensor], ensemble: pv.LabelEnsemble
) -> None:
    x, _, few = clusters
    rows = torch.cat([1e307 * x, torch.full_like(x[:, :1], 0.1)], 1)  # whose sums are infinite, and a constant column
    huge = pv.LabelEnsemble(rows, few)
    assert (huge.probabilities - ensemble.probabilities).abs().max() < 0.1
    new = rows[:5].clone()
    new[:, 2] = 7.0  # the column has said nothing, and is not listened to
    torch.testing.assert_close(huge(new), huge(rows[:5]))
    assert ensemble(x[:0]).shape == (0, 2)
    far = torch.tensor([[0.0, 1e305], [0.0, -1e305]], dtype=torch.float64)
    assert ensemble(far).isfinite().all()
    alike = pv.LabelEnsemble(x[:1].expand(9, -1), few[:9])
    assert alike(torch.cat([x[:9], far])).isfinite().all() and alike.probabilities.isfinite().all()


def test_what_an_ensemble_refuses(clusters: tuple[Tensor, Tensor, Tensor], ensemble: pv.LabelEnsemble) -> None:
    x, _, few = clusters
    with pytest.raises(pv.ShapeError, match=r"An ensemble needs rows .* got \(80, 2\) and \(79,\)"):
        pv.LabelEnsemble(x, few[1:])
    with pytest.raises(pv.DataError, match="An ensemble needs a label, got 80 rows, 0 labelled"):
        pv.LabelEnsemble(x, torch.full((80,), -1))
    with pytest.raises(pv.OptionError, match="num_neighbors must be at least 1, got 0"):
        pv.LabelEnsemble(x, few, num_neighbors=0)
    with pytest.raises(pv.OptionError, match="a whole number of at least 1, got 2.5"):
        pv.LabelEnsemble(x, few, num_neighbors=2.5)  # type: ignore[arg-type]
    with pytest.raises(pv.DataError, match="num_classes must be a whole number, got 2.0"):
        pv.LabelEnsemble(x, few, 2.0)  # type: ignore[arg-type]
    with pytest.raises(pv.ShapeError, match="rows of one number or more"):
        pv.LabelEnsemble(x[:, :0], few)
    with pytest.raises(pv.ShapeError, match=r"Images of shape \(2, 2\) cannot have 2 numbers a row"):
        pv.LabelEnsemble(x, few, image_shape=(2, 2))
    with pytest.raises(pv.ShapeError, match="A row of the ensemble has 2 numbers, got rows with 3"):
        ensemble(torch.zeros(4, 3))
    with pytest.raises(pv.ShapeError, match="A row of the mixture has 2 numbers, got rows with 3"):
        pv.LabelMixture(x, few)(torch.zeros(4, 3))
    with pytest.raises(pv.DataError, match="Rows of a mixture must have no gaps"):
        pv.LabelMixture(torch.where(x > 3, math.nan, x), few)
