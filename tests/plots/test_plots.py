"""What the pictures show, read back from the axes, and that they draw without pyplot."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.image import imread
from sklearn.decomposition import PCA

from pyrovae import plots
from pyrovae.errors import DataError, OptionError, ShapeError
from pyrovae.plots import findings


def shown(ax):
    """The picture on the axes, gray values in 0..1."""
    (image,) = ax.get_images()
    return np.asarray(image.get_array())[..., 0]


def history(elbos, **others):
    return [{"epoch": i + 1, "elbo": e} | {k: v[i] for k, v in others.items()} for i, e in enumerate(elbos)]


@pytest.mark.parametrize("path", sorted(Path(plots.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_plots_import_neither_pyplot_nor_another_part_of_pyrovae(path):
    tree = ast.parse(path.read_text())
    imported = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    imported += [f"{'.' * n.level}{n.module}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not [name for name in imported if "pyplot" in name]
    own = [name for name in imported if name.startswith((".", "pyrovae")) and not name.startswith("pyrovae.plots.")]
    assert set(own) <= {"pyrovae._arguments", "pyrovae._letters", "pyrovae._moments", "pyrovae.errors"}


def test_training_curve_draws_the_history():
    ax = plots.training_curve(history([-9.0, -8.0, -7.5], validation_elbo=[-9.5, None, -8.0], kl_weight=[0.5, 1, 1]))
    training, validation = ax.get_lines()
    np.testing.assert_array_equal(training.get_xydata(), [[1, -9], [2, -8], [3, -7.5]])
    np.testing.assert_array_equal(validation.get_xydata(), [[1, -9.5], [3, -8]])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["training", "validation", "KL weight below 1"]
    assert "nats per row" in ax.get_title(loc="left")


def test_training_curve_is_not_flattened_by_its_first_epochs():
    elbos = [-5000.0, -900.0, *np.linspace(-110, -100, 38)]
    ax = plots.training_curve(history(elbos))
    low, high = ax.get_ylim()
    assert -125 < low < -110 and -100 < high < -95
    assert [t.get_text() for t in ax.texts] == ["the first 2 epochs lie below"]


@pytest.mark.parametrize("elbos", [[*np.linspace(-110, -100, 39), -5000.0], np.linspace(-110, -100, 40), [-900.0, -1]])
def test_training_curve_cuts_nothing_but_first_epochs(elbos):
    ax = plots.training_curve(history(elbos))
    assert ax.get_ylim()[0] < min(elbos) and not ax.texts


@pytest.mark.parametrize("elbos", [[], [float("nan")] * 3])
def test_training_curve_without_values(elbos):
    with pytest.raises(DataError, match=f"got {len(elbos)} epochs"):
        plots.training_curve(history(elbos))


def test_images_are_one_mosaic():
    x = torch.arange(5 * 6.0).reshape(5, 6)
    picture = shown(plots.images(x, (2, 3), columns=3))
    assert picture.shape == (2 * 2 + 1, 3 * 3 + 2)
    np.testing.assert_allclose(picture[:2, 4:7], x[1].reshape(2, 3) / 29)  # the second of the first row
    np.testing.assert_allclose(picture[3:, 4:7], x[4].reshape(2, 3) / 29)
    assert (picture[2] == 1).all() and (picture[:, 3] == 1).all() and (picture[3:, 8:] == 1).all()  # paper


def test_names_stand_above_the_columns_of_a_mosaic():
    ax = plots.images(np.zeros((5, 6)), (2, 3), columns=3, names=["a", "b", "c"])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    assert ax.get_xticks().tolist() == [1, 5, 9]  # the middles of three pixels
    with pytest.raises(ShapeError, match="3 columns"):
        plots.images(np.zeros((5, 6)), (2, 3), columns=3, names=["a", "b"])


def test_images_white_and_colour():
    gray = np.full((1, 4), 0.5)
    assert (shown(plots.images(gray, (2, 2))) == 0.5).all()  # values in [0, 1] are not stretched
    assert (shown(plots.images(gray, (1, 2, 2), vmax=2.0)) == 0.25).all()
    colour = np.stack([np.full((2, 2), value) for value in (0.1, 0.2, 0.3)])[None]
    (image,) = plots.images(colour, (3, 2, 2)).get_images()
    np.testing.assert_allclose(image.get_array()[0, 0], [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: plots.images(np.zeros((2, 5)), (2, 3)), ShapeError),
        (lambda: plots.images(np.zeros((2, 6)), (6,)), ShapeError),
        (lambda: plots.images(np.zeros((2, 8)), (2, 2, 2)), ShapeError),
        (lambda: plots.images(np.zeros((0, 6)), (2, 3)), DataError),
        (lambda: plots.images(np.zeros((2, 6)), (2, 3), columns=0), OptionError),
        (lambda: plots.reconstructions(np.zeros((2, 6)), np.zeros((2, 5)), (2, 3)), ShapeError),
        (lambda: plots.reconstructions(np.zeros((2, 6, 1)), np.zeros((2, 6, 1))), ShapeError),
        (lambda: plots.reconstructions(np.zeros((0, 6)), np.zeros((0, 6))), DataError),
        (lambda: plots.reconstructions(np.zeros((2, 2)), np.zeros((2, 2)), columns=["a"]), ShapeError),
        (lambda: plots.reconstructions(np.zeros((2, 2)), np.zeros((2, 2)), ax=Figure().subplots()), ShapeError),
        (lambda: plots.manifold(np.zeros((2, 3, 4)), (2, 2)), ShapeError),
        (lambda: plots.manifold(np.zeros((2, 2, 4)), (2, 2), grid=[0, 1, 2]), ShapeError),
        (lambda: plots.manifold(np.zeros((2, 2, 4)), (2, 2), grid=[1, 0]), ShapeError),
        (lambda: plots.latent(np.zeros(3)), ShapeError),
        (lambda: plots.latent(np.zeros((3, 2)), labels=[0, 1]), ShapeError),
        (lambda: plots.latent(np.full((3, 2), np.nan)), DataError),
    ],
)
def test_what_does_not_fit_is_refused(call, error):
    with pytest.raises(error):
        call()


def test_captions_stand_above_their_pictures():
    x = np.random.default_rng(0).random((5, 6, 12))
    ax = plots.captioned(x, (6, 12), list("abcde"), columns=3)
    (image,) = ax.images
    for number, text in enumerate(ax.texts):
        row, column = divmod(number, 3)
        x0, y0 = column * 13, row * 10 + 3  # a gap of one pixel, a line of three
        seen = image.get_array()[y0 : y0 + 6, x0 : x0 + 12, 0]
        np.testing.assert_allclose(seen, x[number])
        assert text.get_text() == "abcde"[number]
        at = text.get_position()
        assert x0 < at[0] < x0 + 12 and y0 - 4 < at[1] < y0
    with pytest.raises(ShapeError, match="5 images need as many captions, got 1"):
        plots.captioned(x, (6, 12), ["a"])
    with pytest.raises(OptionError, match="columns must be at least 1, got 0"):
        plots.captioned(x, (6, 12), list("abcde"), columns=0)


def test_reconstructions_stand_below_their_originals():
    x = np.linspace(0, 1, 12 * 4).reshape(12, 4)  # 12 pictures: two bands of ten
    ax = plots.reconstructions(x, x / 2, (2, 2))
    picture = shown(ax)
    tick_rows = [int(np.floor(tick)) for tick in ax.get_yticks()]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["original", "reconstruction"] * 2
    for band, first in enumerate((0, 10)):
        for row, scale in ((0, 1.0), (1, 0.5)):
            top = tick_rows[2 * band + row]
            np.testing.assert_allclose(picture[top : top + 2, 3:5], scale * x[first + 1].reshape(2, 2))
    assert picture[tick_rows[2], 6:].min() == 1.0  # paper behind the last pair


@pytest.mark.slow
def test_reconstructions_of_a_table():
    x = torch.randn(50, 3)
    x_hat = x.clone()
    x_hat[:, 1] = x[:, 1].mean()
    x[0, 0] = torch.nan
    axes = plots.reconstructions(x, x_hat, columns=["a", "b", "c"])
    assert [ax.get_title(loc="left") for ax in axes] == ["a, R² = 1.00", "b, R² = 0.00", "c, R² = 1.00"]
    assert [len(ax.collections[0].get_offsets()) for ax in axes] == [49, 50, 50]
    np.testing.assert_allclose(axes[2].collections[0].get_offsets(), np.stack([x[:, 2], x_hat[:, 2]], 1))
    own = Figure().subplots(1, 3)
    assert plots.reconstructions(x, x_hat, ax=own).tolist() == own.tolist()
    assert len(plots.reconstructions(np.zeros((4, 30)), np.zeros((4, 30)))) == 12


def test_manifold_has_the_origin_at_the_bottom_left():
    grid = np.array([-2.0, 0.0, 2.0])
    decoded = np.stack([np.stack([np.full(4, 0.3 * i + 0.1 * j) for j in range(3)]) for i in range(3)])
    ax = plots.manifold(decoded, (2, 2), grid=grid)
    picture = shown(ax)
    assert picture.shape == (8, 8)  # three pictures of 2 pixels and two gaps of 1
    np.testing.assert_allclose(picture[::-3, ::3], [[0.3 * i + 0.1 * j for j in range(3)] for i in range(3)])
    labels = [t.get_text().replace("\N{MINUS SIGN}", "-") for t in ax.get_xticklabels()]
    where = dict(zip(map(float, labels), ax.get_xticks()))
    assert where[-2.0] == 0.5 and where[0.0] == 3.5 and where[2.0] == 6.5  # the middles of the pictures
    assert dict(zip(map(float, labels), ax.get_yticks()))[-2.0] == 6.5  # rows are counted from the top
    assert len(plots.manifold(decoded, (2, 2)).get_xticks()) == 0


def test_latent_colours_by_label():
    z = torch.arange(24.0).reshape(12, 2)
    labels = np.repeat([0, 1, -1], 4)
    ax = plots.latent(z, labels)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["0", "1", "unknown"]
    (points,) = ax.collections
    order = points.get_offsets()[:, 0].argsort()
    colours = points.get_facecolors()[order, :3]
    wanted = to_rgba_array([plots.PALETTE[0], plots.PALETTE[1], plots.UNKNOWN])[:, :3]
    np.testing.assert_allclose(colours, wanted.repeat(4, axis=0))
    assert plots.latent(z).get_legend() is None


def test_latent_projects_more_than_two_dimensions():
    z = np.random.default_rng(0).normal(size=(200, 5)) * [5, 3, 1, 1, 1]
    pca = PCA(2, svd_solver="full").fit(z)
    ax = plots.latent(torch.tensor(z))
    for label, share in zip((ax.get_xlabel(), ax.get_ylabel()), pca.explained_variance_ratio_):
        assert f"({share:.0%} of the variance)" in label
    (points,) = ax.collections
    drawn, wanted = np.asarray(points.get_offsets()), pca.transform(z)
    np.testing.assert_allclose(drawn[drawn[:, 0].argsort()], wanted[wanted[:, 0].argsort()], atol=1e-9)


def test_latent_of_one_dimension_many_classes_and_one_point():
    ax = plots.latent(np.random.default_rng(0).normal(size=(100, 1)), ["a", "b"] * 50)
    assert ax.get_ylabel() == "density" and len(ax.patches) == 2
    many = plots.latent(np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 12)
    handles = many.get_legend().legend_handles
    assert len({(h.get_color(), h.get_marker()) for h in handles}) == 12
    for rows in (1, 10):  # nothing varies
        assert "(0% of the variance)" in plots.latent(np.ones((rows, 3))).get_xlabel()


def test_given_axes_are_used():
    figure = Figure()
    axes = figure.subplots(2, 2)
    x = np.random.default_rng(0).random((4, 6))
    assert plots.training_curve(history([-2, -1]), ax=axes[0, 0]) is axes[0, 0]
    assert plots.images(x, (2, 3), ax=axes[0, 1]) is axes[0, 1]
    assert plots.reconstructions(x, x, (2, 3), ax=axes[1, 0]) is axes[1, 0]
    assert plots.latent(x, ax=axes[1, 1]) is axes[1, 1]


@pytest.mark.slow
def test_save(tmp_path):
    x = np.random.default_rng(0).random((4, 3))
    path = plots.save(plots.reconstructions(x, x), tmp_path / "new" / "table.png")
    assert path == tmp_path / "new" / "table.png" and min(imread(path).shape[:2]) > 300
    one = plots.save(plots.images(x, (1, 3)), str(tmp_path / "one.png"), dpi=50)
    assert imread(one).std() > 0.05  # something is drawn
    with pytest.raises(OptionError, match="PNG"):
        plots.save(plots.images(x, (1, 3)), tmp_path / "one.svg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "one.png"]


def test_classes_are_right_or_wrong_and_have_no_variance_to_explain() -> None:
    x = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 0.0]])
    axes = plots.reconstructions(x, np.array([[0.0, 1.0], [1.0, 2.5], [2.0, 0.0]]), labels=[True, False])
    assert [ax.get_title(loc="left") or ax.get_title() for ax in axes] == [
        "column 0, 100% right",
        "column 1, R² = 0.88",
    ]
    with pytest.raises(ShapeError, match="2 columns .*got 1"):
        plots.reconstructions(x, x, labels=[True])


def test_captions_of_several_lines_have_room() -> None:
    pictures = np.zeros((3, 16))
    one, two = (plots.captioned(pictures, (4, 4), [text] * 3) for text in ("cat", "a.png\ncat"))
    heights = [ax.get_images()[0].get_array().shape[0] for ax in (one, two)]
    assert heights[1] > heights[0] and two.texts[0].get_text() == "a.png\ncat"


def test_the_units_of_a_curve_are_said() -> None:
    ax = plots.training_curve([{"epoch": 1, "elbo": -1.0}], units="bits")
    assert ax.get_title(loc="left") == "ELBO (bits)"


ODD = ["$\\frac{", "a $x_{ b $", "_hidden", "two\nlines", "long " * 60, "100 $"]


def test_names_from_the_data_are_drawn_as_they_are(tmp_path):
    """No formula, where matplotlib sees one between dollars; nothing left out of a legend; no line as long as the picture."""
    x = torch.rand(12, len(ODD))
    drawn = plots.latent(x, [ODD[i % len(ODD)] for i in range(12)])
    assert plots.save(drawn, tmp_path / "latent.png", dpi=30).exists()
    assert plots.save(plots.reconstructions(x[:, :2], x[:, :2], columns=ODD[:2]), tmp_path / "x.png", dpi=30).exists()
    wanted = [r"\$\frac{", r"a \$x_{ b \$", " _hidden", "two lines", f"{('long ' * 60)[:31]}…", r"100 \$"]
    found = {
        "latent": [text.get_text() for text in drawn.get_legend().get_texts()],
        "images": plots.images(torch.rand(6, 4), (2, 2), len(ODD), names=ODD).get_xticklabels(),
        "scores": findings.scores({name: [0.0] for name in ODD}).get_yticklabels(),
        "departures": findings.departures([0, 1], [-1, -1], [1, 1], {n: [0, 0] for n in ODD})
        .get_legend()
        .get_texts()[1:],
        "distributions": findings.distributions({n: [0.0, 1.0] for n in ODD}, "value").get_legend().get_texts(),
    }
    for name, texts in found.items():
        assert sorted(one if isinstance(one, str) else one.get_text() for one in texts) == sorted(wanted), name
