"""Pictures of a run, and what they show: reconstructions, samples, codes."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae import plots
from pyrovae._lazily import Lazily
from pyrovae.app.catalogue import choose, part
from pyrovae.app.given import GivenCaptions
from pyrovae.app.models import MODELS
from pyrovae.app.run import Run
from pyrovae.errors import OptionError, PairError, counted
from pyrovae.pair.batch import take_rows
from pyrovae.pair.program import distribution_name
from pyrovae.predict.decode import decode
from pyrovae.predict.encode import encode
from pyrovae.predict.generate import generate, simulate
from pyrovae.predict.reconstruct import reconstruct

manifold = Lazily("sklearn.manifold")


def draw_pictures(run: Run) -> list[Path]:
    """Draw the training curve, reconstructions, samples and the latent space into the run folder, as PNG files."""
    paths = []
    for name, axes in pictures_of(run).items():
        paths.append(run.folder / f"{name}.png")
        plots.save(axes, paths[-1])
        for tracker in run.trackers:
            tracker.picture(name, paths[-1])
    return paths


def pictures_of(run: Run) -> dict[str, Any]:
    """The axes of the pictures of a run, by name: training, reconstructions, samples, levels, manifold, latent."""
    fitted, rows = run.fitted, run.rows
    units = "nats per row" if rows.scaler is None else "nats per row of standardised columns"
    made = {"training": plots.training_curve(fitted.history, units=units)}
    made["reconstructions"] = reconstruction_picture(run, 10)
    if rows.image_shape:
        made["samples"] = sample_picture(run)
        if run.levels:
            made["levels"] = level_picture(run)
    code = run.model.code
    latent = tuple(fitted.layout.site(code, role="latent", local=True).event_shape)
    everywhere = len(part("prior", str(run.options.prior)).guides) > 1  # its support is R^2: no sphere, no simplex
    plain = rows.classes is None and rows.given is None and not run.levels
    if latent == (2,) and rows.image_shape and plain and everywhere:
        # quantiles of the standard normal: cells of equal mass under it
        side = 16
        axis = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.02, 0.98, side))
        up, right = torch.meshgrid(axis, axis, indexing="ij")
        codes = torch.stack([right, up], -1).reshape(-1, 2)
        others = [site for site in fitted.layout.sites if site.role == "latent" and site.name != code]
        # where there is a pose, all are upright and in the middle
        grid = decode(fitted, {code: codes} | {site.name: codes.new_zeros(len(codes), *site.shape) for site in others})
        made["manifold"] = plots.manifold(rows.restore(grid).reshape(side, side, -1), rows.image_shape, grid=axis)
        given = ", ".join([code, *(f"{site.name} = 0" for site in others)])
        titled(made["manifold"], f"E[x | {given}] over a grid of {code}")
    codes, labels = codes_of_test_rows(run, MOST_POINTS)
    made["latent"] = plots.latent(codes, labels, name=code)
    titled(made["latent"], f"posterior means of {code}, {counted(len(codes), 'test row')}")
    return made


MOST_POINTS = 2000  # of a latent map


def codes_of_test_rows(run: Run, num: int) -> tuple[Tensor, Any]:
    """The posterior means of the first test rows, `(num, L)`, and their labels, if they have any."""
    picked = take_rows(run.rows.batch("test"), slice(0, num))
    labels = None if run.rows.labels is None else run.rows.labels[:num]
    return encode(run.fitted, picked, site=run.model.code).flatten(1), labels


def neighbour_maps(run: Run, num: int = 1000) -> dict[str, Any]:
    """The axes of two-dimensional maps of codes that keep neighbours together: by t-SNE, and by UMAP where it is installed.

    There are none of codes of one or two dimensions, which need no map, of code indices, and of fewer than 20 rows.
    """
    codes, labels = codes_of_test_rows(run, num)
    points = codes.cpu().double().numpy()
    if run.model.quantised or points.shape[1] <= 2 or len(points) < 20 or not (points != points[0]).any():
        return {}
    made = {
        "t-SNE": manifold.TSNE(2, perplexity=min(30.0, len(points) / 4), init="pca", random_state=0).fit_transform(
            points
        )
    }
    with suppress(ImportError):
        made["UMAP"] = import_module("umap").UMAP(random_state=0).fit_transform(points)
    drawn = {}
    for name, flat in made.items():
        axes = plots.latent(flat, labels, name=name)
        drawn[name] = titled(
            axes, f"{name} of the posterior means of {run.model.code}, {counted(len(flat), 'test row')}"
        )
    return drawn


def reconstruction_picture(run: Run, num: int) -> Any:
    """The first test rows and their reconstructions: `num` images, or the columns of 500 other rows."""
    rows = run.rows
    picked = take_rows(rows.batch("test"), slice(0, num if rows.image_shape else 500))
    shown, again = run.fitted.evaluation_batch(picked)["x"], rows.restore(reconstruct(run.fitted, picked))
    labels = None if rows.image_shape else class_columns(run.likelihood(), shown.shape[-1])
    columns = rows.columns if rows.schema is None else rows.schema.meanings
    axes: Any = plots.reconstructions(rows.restore(shown), again, rows.image_shape, columns=columns, labels=labels)
    if rows.image_shape:
        return titled(axes, "the first test rows, and E[x | z] at draws of q(z | x)")
    figure = axes[0].get_figure(root=True)
    first = f", {figure.get_suptitle()}" if figure.get_suptitle() else ""
    given = ", c" if "c" in picked else ""  # columns that the model is given
    what = f"{counted(len(again), 'test row')} and E[x | z{given}] at draws of q(z | x{given}){first}"
    figure.suptitle(what, x=0.01, ha="left", fontsize=10)
    return axes


def class_columns(likelihood: Any, num: int) -> list[bool] | None:
    """Which of the columns of a table the likelihood takes for classes, whose numbers have no mean."""
    inner = getattr(likelihood, "whole", likelihood)
    labels: list[bool] | None = getattr(inner, "labels", None)
    return [True] * num if distribution_name(inner) == "Categorical" else labels


LETTERS = 11  # of a title, in an inch


def titled(axes: Any, text: str) -> Any:
    """The axes of a picture, with lines that say what they show, as wide as the picture."""
    width = axes.get_figure().get_figwidth()
    wrapped = textwrap.fill(text, max(12, round(width * LETTERS)))
    axes.set_title(wrapped, loc="left", fontsize=9, parse_math=False)  # a caption in it is no formula
    return axes


MOST_COLUMNS = 20  # of a picture with one column for each class


def sample_picture(run: Run, num: int = 64, seed: int | None = 0) -> Any:
    """E[x | z] at draws of p(z): without the likelihood's noise one sees what z determines.

    For a model with classes or clusters E[x | z, y] at draws of p(z | y), with one column for each class, and for one that is
    given captions E[x | z, c], with one for each thing that a caption can tell.
    """
    rows = run.rows
    assert rows.image_shape is not None
    if isinstance(rows.given, GivenCaptions):
        told = rows.given.each()[:MOST_COLUMNS]
        tokens = rows.given.words.encode(told).repeat(8, 1)
        axes = plots.images(
            rows.restore(_means(run, len(tokens), seed, rows.given.argument(tokens))),
            rows.image_shape,
            len(told),
            names=told,
        )
        return titled(axes, "E[x | z, c] at draws of p(z | c), by caption c")
    if rows.classes is None:
        return titled(plots.images(rows.restore(_means(run, num, seed)), rows.image_shape), "E[x | z] at draws of p(z)")
    names = [str(name) for name in rows.classes[:MOST_COLUMNS]]
    codes = torch.arange(8 * len(names)) % len(names)
    if rows.argument is not None:
        drawn = _means(run, len(codes), seed, {rows.argument: codes})
    else:
        drawn = decode(run.fitted, codes, latent="y", seed=seed)
    axes = plots.images(rows.restore(drawn), rows.image_shape, len(names), names=names)
    return titled(axes, "E[x | z, y] at draws of p(z | y), by class y")


def level_picture(run: Run, num: int = 8, seed: int = 0) -> Any:
    """What each level adds: column k fixes the top k levels at one draw and resamples the rest, `num` times.

    The name of a column says which levels are fixed.
    """
    rows, top_down = run.rows, run.levels[::-1]
    assert rows.image_shape is not None
    one = simulate(run.fitted, 1, seed=seed)
    columns, names = [], []
    for number in range(len(top_down)):
        held = {site: one[site].expand(num, *one[site].shape[1:]) for site in top_down[:number]}
        columns.append(_means(run, num, seed, held))
        names.append(
            f"{top_down[0]}-{top_down[number - 1].removeprefix('z')}" if number > 1 else "".join(held) or "none"
        )
    axes = plots.images(rows.restore(torch.stack(columns, 1).flatten(0, 1)), rows.image_shape, len(names), names=names)
    return titled(axes, "E[x | z], by the levels that are held at one draw")


def _means(run: Run, num: int, seed: int | None, given: Mapping[str, Tensor] | None = None) -> Tensor:
    try:
        return generate(run.fitted, num, given=given, mean=True, seed=seed)
    except PairError:  # classes have no mean
        return generate(run.fitted, num, given=given, seed=seed)


def draw_rows(
    run: Run,
    num: int,
    *,
    wanted: str | None = None,
    conditions: Tensor | None = None,
    mean: bool = False,
    seed: int | None = 0,
) -> tuple[Tensor, Tensor | None]:
    """New rows, `(num, D)`, in the units of the data, and their class numbers, `(num,)`, if the model has labelled classes.

    Args:
        wanted: the name of the class of all rows; by default the rows are of each class in turn.
        conditions: the columns, or the words, that the model is given, `(num, C)`, for a run that has such.
        mean: E[x | z] at draws of z, instead of draws of x.
    """
    rows = run.rows
    if mean and run.options.likelihood == "categorical":
        raise OptionError("--mean needs a likelihood with a mean, and this run's draws classes: leave it out.")

    def drawn(given: Mapping[str, Tensor] | None = None) -> Tensor:
        return rows.restore(generate(run.fitted, num, given=given, mean=mean, seed=seed))

    if rows.given is not None and conditions is not None:
        if wanted is not None:
            how = "c=..." if isinstance(rows.given, GivenCaptions) else "FILE"
            raise OptionError(
                f"--class is for models of labelled classes; what this run's model is given, --given {how} says."
            )
        return drawn(rows.given.argument(conditions)), None
    if rows.argument is None or rows.classes is None:
        if wanted is not None:
            those = ", ".join(name for name, model in MODELS.items() if model.labels is not None)
            raise OptionError(f"--class is for models of labelled classes ({those}), and this run is of another model.")
        return drawn(), None
    names = [str(name) for name in rows.classes]
    codes = torch.arange(max(0, num)) % len(names)
    if wanted is not None:
        codes[:] = names.index(choose("class", wanted, names))
    return drawn({rows.argument: codes}), codes


def draw_labelled_rows(
    run: Run, num: int, *, wanted: str | None = None, mean: bool = False, seed: int | None = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """New rows, `(num, D)`, in the units of the data, of a model with several columns of labels, and their class numbers.

    Args:
        wanted: the classes of some columns, such as "species=adelie,sex=male"; the others take each of their classes in turn.
        mean: E[x | z] at draws of z, instead of draws of x.
    """
    columns = {column.name: column for column in run.rows.several}
    held: dict[str, str] = {}
    for said in (wanted or "").split(","):
        if not said.strip():
            continue
        name, found, value = (text.strip() for text in said.partition("="))
        if not found or name in held:
            raise OptionError(f"--class {wanted}: write each column once, as in {next(iter(columns))}=CLASS.")
        held[choose("class column", name, columns)] = value
    free = [column for name, column in columns.items() if name not in held]
    combinations = list(itertools.product(*(range(len(column.classes)) for column in free)))
    turn = torch.tensor(combinations, dtype=torch.int64)[torch.arange(max(0, num)) % len(combinations)]
    codes = {column.name: turn[:, place] for place, column in enumerate(free)}
    for name, value in held.items():
        known = [str(one) for one in columns[name].classes]
        codes[name] = torch.full((max(0, num),), known.index(choose(f"class {name}", value, known)))
    given = {column.argument: codes[name] for name, column in columns.items()}
    rows = run.rows.restore(generate(run.fitted, num, given=given, mean=mean, seed=seed))
    return rows, {name: codes[name] for name in columns}


def conditions_of(run: Run, given: str | None, num: int, seed: int | None) -> Tensor | None:
    """What a run's model is given, for each row to draw: what --given says, or else what training rows have, at random."""
    rows = run.rows
    if rows.given is None:
        if given is not None:
            raise OptionError(
                "--given is for runs that were fitted with --condition, and this one was not: leave it out."
            )
        return None
    if given is not None:
        return rows.given.rows(given, num)
    random = torch.Generator().manual_seed(0 if seed is None else seed)
    known = rows.given.parts["train"]
    return known[torch.randint(len(known), (max(0, num),), generator=random)]
