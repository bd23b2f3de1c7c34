"""Options that somebody typed and that would change nothing: refused, with what to do in their place.

A run records a value for each of its options, also for those without a meaning there, and has to be opened again. So what has
none is refused here, where it is known what was typed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from pyrovae.app.catalogue import Model
from pyrovae.app.models import MODELS
from pyrovae.app.options import OPTIONS, Options
from pyrovae.errors import OptionError

if TYPE_CHECKING:
    from pyrovae.data import Dataset

OF_FILES = ("header", "data_root")
TYPED_FILES = (".parquet", ".xlsx", ".xls")
DOWNLOADED = ("mnist", "fashion-mnist")
OWN_PRIORS = {  # of models that have no --prior
    "gmvae": "a Normal for each cluster",
    "vade": "a Normal for each cluster",
    "nvae": "Normals, from coarse maps to fine ones",
    "vqvae": "an autoregressive one of codes",
    "categorical": "a uniform one of codes",
}


def without_widths(model: Model, net: str | None, images: bool) -> str:
    """What has no hidden layers whose widths could be chosen, as the beginning of a sentence; "" if there are such layers."""
    if model.grouped:
        return "residual cells have channels"
    if net == "conv":
        return "a convolutional net has channels"
    return "a residual net of images has channels" if net == "resnet" and images else ""


def refuse_unused(typed: Collection[str], grid: Sequence[Options], dataset: Dataset) -> None:
    """OptionError for an option that would change nothing, in none of the fits.

    Args:
        typed: the names of the options and parameters that were typed, such as "hidden".
        grid: the options of each fit, with their values, before anything else is decided.
        dataset: the data.
    """
    options, found = grid[0], _why_not(grid[0], dataset)
    others = [_why_not(each, dataset) for each in grid[1:]]
    for name in typed:
        if name in found and all(name in other for other in others):
            option = OPTIONS.get(name)
            flag = f"--{name.replace('_', '-')}" if option is None else option.flag
            value = "" if option is None else f" {option.shown(getattr(options, name))}"
            raise OptionError(f"{flag}{value} would change nothing: {found[name]}")


def _why_not(options: Options, dataset: Dataset) -> dict[str, str]:
    """Why options would change nothing, and what to do, by their names."""
    model = MODELS[options.model]
    found: dict[str, str] = {}
    if channels := without_widths(model, options.net, dataset.image_shape is not None):
        found["hidden"] = f"{channels} instead of widths. Leave it out, or choose --net mlp."
        if model.grouped:
            found["hidden"] = f"{channels} instead of widths. Leave it out; --groups and --latent are its sizes."
    elif options.hidden == () and options.net == "mlp":
        for name in ("dropout", "norm"):
            found[name] = "there are no hidden layers. Leave it out, or give --hidden."
    if model.grouped:
        found["net"] = f"--model {options.model} has residual cells of its own. Leave it out."
    if options.model in OWN_PRIORS:
        found["prior"] = f"the prior of --model {options.model} is {OWN_PRIORS[options.model]}. Leave it out."
    if model.quantised:
        one = "the guide of a code is a point, whose draws are all one, so that log p(x) is told by the ELBO. Leave it out."
        found |= {"num_samples": one, "proposal": one}
        if options.net == "conv":
            found["latent"] = (
                f"--model {options.model} has codes at a quarter of each side of an image with --net conv. Leave it out."
            )
    if not options.validation_fraction and options.keep == "best":
        found["keep"] = (
            "there are no validation rows to tell the best epoch by. Raise --validation-fraction, or leave it out."
        )
    if dataset.x_test is not None:
        found["test_fraction"] = f"{dataset.name} has test rows of its own. Leave it out."
    if str(dataset.source.get("path", "")).lower().endswith(TYPED_FILES):
        found["header"] = "such files name their columns in the first line. Leave it out, or save the table as .csv."
    if dataset.source.get("name") not in DOWNLOADED:
        found["data_root"] = f"it is for {' and '.join(DOWNLOADED)}. Leave it out."
    return found
