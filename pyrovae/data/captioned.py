"""`captioned`: a data set of images with a caption of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pyrovae.data.captions import CAPTIONS, Captions, measure
from pyrovae.data.dataset import Dataset
from pyrovae.errors import DataError


def captioned(dataset: Dataset, captions: Captions | None = None) -> Dataset:
    """The same images, with a caption of each as what a model is given: `Dataset.c`, and `Dataset.c_test`.

    Args:
        dataset: Gray images.
        captions: How captions are made; by default by limits of the images themselves, those of the test set left out.

    Raises:
        DataError: The rows are no gray images, or their pixels are negative or not finite.

    Example:
        >>> from pyrovae.data import captioned, load
        >>> digits = captioned(load("digits"))
        >>> digits.captions.vocabulary.decode(digits.c[:2]), digits.c.shape
        (['straight mid-sized zero', 'thick small upright one'], torch.Size([1797, 12]))
    """
    shape = dataset.image_shape
    if shape is None or (len(shape) == 3 and shape[0] > 1):
        what = "no images" if shape is None else f"images of {shape[0]} channels"
        raise DataError(f"Captions describe gray images, and the rows of {dataset.name} are {what}.")
    images = dataset.x.reshape(-1, *shape[-2:])
    measured = measure(images)
    made = Captions.of_measures(measured, _classes(dataset)) if captions is None else captions
    tokens = made.vocabulary.encode(made.describe_measures(measured, dataset.y))
    test = None
    if dataset.x_test is not None:
        described = made.describe(dataset.x_test.reshape(-1, *shape[-2:]), dataset.y_test, stream=1)
        test = made.vocabulary.encode(described)
    source = {**dataset.source, CAPTIONS: made.to_json()}
    return replace(dataset, c=tokens, c_test=test, captions=made, source=source)


def _classes(dataset: Dataset) -> Sequence[str | int] | None:
    """The names of the classes of a data set, which are numbers where it names none; None without labels."""
    if dataset.y is None or dataset.classes is not None:
        return dataset.classes if dataset.y is not None else None
    return range(int(max(y.max() for y in (dataset.y, dataset.y_test) if y is not None)) + 1)
