"""The pictures that a run leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae import plots
from pyrovae.app.catalogue import CONDITION, choose, part
from pyrovae.app.models import MODELS
from pyrovae.app.options import read_options
from pyrovae.app.rows import Rows
from pyrovae.app.scores import levels_of, model_of
from pyrovae.data import Dataset
from pyrovae.errors import OptionError, PairError
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.batch import take_rows
from pyrovae.predict.decode import decode
from pyrovae.predict.encode import encode
from pyrovae.predict.generate import generate, simulate
from pyrovae.predict.reconstruct import reconstruct


def patterns(rows: Rows) -> dict[str, dict[str, Tensor]]:
    """Two rows of each kind that the model tells apart, by what is to be said of them: without and with a label of its own."""
    given = take_rows(rows.batch("train"), slice(0, 2))
    if rows.argument in (None, CONDITION):
        return {"": given}
    known = torch.zeros(2, dtype=torch.int64)  # any class: the graph is that of all
    return {"": {"x": given["x"]}, f"where {rows.argument} is known": {**given, str(rows.argument): known}}


def draw_pictures(fitted: Fit, rows: Rows, folder: Path) -> list[Path]:
    """Training curve, reconstructions, samples and the latent space, as PNG files."""
    made = {"training.png": plots.training_curve(fitted.history)}
    made["reconstructions.png"] = reconstruction_picture(fitted, rows, 10)
    if rows.image_shape:
        made["samples.png"] = sample_picture(fitted, rows)
        if levels_of(fitted):
            made["levels.png"] = level_picture(fitted, rows)
    code = model_of(fitted).code
    latent = tuple(fitted.layout.site(code, role="latent", local=True).event_shape)
    everywhere = len(part("prior", read_options(fitted.info).prior).guides) > 1  # not on a sphere, nor a simplex
    if latent == (2,) and rows.image_shape and rows.classes is None and everywhere and not levels_of(fitted):
        # Quantiles of the standard normal: cells of equal mass under it.
        side = 16
        axis = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.02, 0.98, side))
        up, right = torch.meshgrid(axis, axis, indexing="ij")
        grid = decode(fitted, torch.stack([right, up], -1).reshape(-1, 2))
        made["manifold.png"] = plots.manifold(rows.restore(grid).reshape(side, side, -1), rows.image_shape, grid=axis)
    picked = fitted.evaluation_batch(take_rows(rows.batch("test"), slice(0, 2000)))
    labels = None if rows.labels is None else rows.labels[:2000]
    made["latent.png"] = plots.latent(encode(fitted, picked, site=code).flatten(1), labels, name=code)
    for name, axes in made.items():
        plots.save(axes, folder / name)
    return [folder / name for name in made]


def reconstruction_picture(fitted: Fit, rows: Rows, num: int) -> Any:
    shown = fitted.evaluation_batch(take_rows(rows.batch("test"), slice(0, num if rows.image_shape else 500)))
    again = rows.restore(reconstruct(fitted, shown))
    return plots.reconstructions(rows.restore(shown["x"]), again, rows.image_shape, columns=rows.columns)


MOST_COLUMNS = 20  # of a picture with a column a class


def sample_picture(fitted: Fit, rows: Rows, num: int = 64, seed: int | None = 0) -> Any:
    """E[x | z] at draws of the prior: noise of the likelihood left out, so that what z determines can be seen.

    Of models with classes or clusters E[x | z, y] at draws of p(z | y), a column for each.
    """
    assert rows.image_shape is not None
    if rows.classes is None:
        return plots.images(rows.restore(_means(fitted, num, seed)), rows.image_shape)
    names = [str(name) for name in rows.classes[:MOST_COLUMNS]]
    codes = torch.arange(8 * len(names)) % len(names)
    if rows.argument is not None:
        drawn = _means(fitted, len(codes), seed, {rows.argument: codes})
    else:
        drawn = decode(fitted, codes, latent="y", seed=seed)
    return plots.images(rows.restore(drawn), rows.image_shape, len(names), names=names)


def level_picture(fitted: Fit, rows: Rows, num: int = 8, seed: int = 0) -> Any:
    """What each level says: E[x | z1] of `num` draws a column. The first holds no level, the next the top one at its value in
    one draw of all, and so on; its name says which are held, and what varies in it is said below them."""
    assert rows.image_shape is not None
    top_down = levels_of(fitted)[::-1]
    one = simulate(fitted, 1, seed=seed)
    columns, names = [], []
    for number in range(len(top_down)):
        held = {site: one[site].expand(num, *one[site].shape[1:]) for site in top_down[:number]}
        columns.append(_means(fitted, num, seed, held))
        names.append(
            f"{top_down[0]}-{top_down[number - 1].removeprefix('z')}" if number > 1 else "".join(held) or "none"
        )
    return plots.images(rows.restore(torch.stack(columns, 1).flatten(0, 1)), rows.image_shape, len(names), names=names)


def _means(fitted: Fit, num: int, seed: int | None, given: Mapping[str, Tensor] | None = None) -> Tensor:
    try:
        return generate(fitted, num, given=given, mean=True, seed=seed)
    except PairError:  # classes have no mean
        return generate(fitted, num, given=given, seed=seed)


def draw_rows(
    fitted: Fit, rows: Rows, num: int, *, wanted: str | None = None, mean: bool = False, seed: int | None = 0
) -> tuple[Tensor, Tensor | None]:
    """New rows in the data's own units, and of a model of labelled classes their class numbers: each class in turn, or the
    one that is `wanted` by its name."""
    if rows.argument is None or rows.classes is None:
        if wanted is not None:
            those = ", ".join(name for name, model in MODELS.items() if model.labels is not None)
            raise OptionError(f"--class is for models of labelled classes ({those}), and this run is of another model.")
        return rows.restore(_drawn(fitted, num, mean, seed)), None
    names = [str(name) for name in rows.classes]
    codes = torch.arange(max(0, num)) % len(names)
    if wanted is not None:
        codes[:] = names.index(choose("class", wanted, names))
    return rows.restore(_drawn(fitted, num, mean, seed, {rows.argument: codes})), codes


def _drawn(fitted: Fit, num: int, mean: bool, seed: int | None, given: Mapping[str, Tensor] | None = None) -> Tensor:
    if mean and read_options(fitted.info).likelihood == "categorical":
        raise OptionError("--mean needs a likelihood that has one, and this run's draws classes: leave it out.")
    return generate(fitted, num, given=given, mean=mean, seed=seed)


def all_codes(fitted: Fit, dataset: Dataset, rows: Rows) -> Tensor:
    """E_q[z | x] of every row of the source in its own order, test rows of a set of its own last."""

    def every(first: Tensor | None, rest: Tensor | None) -> Tensor:
        return torch.cat([part for part in (first, rest) if part is not None])

    x = every(dataset.x, dataset.x_test)
    scaled = rows.scaler.apply(x) if rows.scaler is not None else x
    batch = {"x": scaled.reshape(len(scaled), *rows.train.shape[1:])}
    if rows.argument == CONDITION:
        batch[CONDITION] = every(dataset.y, dataset.y_test)
    return encode(fitted, fitted.evaluation_batch(batch), site=model_of(fitted).code).flatten(1)
