"""Fits of models that infer labels, where no row has a label, or none that of a class: one warning, which says what to do."""

import re
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.programs import (
    CLASSES,
    adgm,
    binary,
    gmvae,
    graded,
    labels,
    multimodal,
    sdgm,
    some_labels,
    ssregression,
    ssvae,
    stacked,
    two_kinds,
    two_labels,
    vae,
)
from torch import Tensor

import pyrovae as pv

HOW: dict[str, Any] = {"epochs": 1, "batch_size": 20, "engine": "eager", "progress": False, "seed": 0}


def _told(pair: Any, data: Any, **options: Any) -> list[str]:
    """The warnings of labels, at the line that calls fit."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        pv.fit(pair, data, **HOW | options)
    assert all(one.filename == __file__ for one in found if "No training row" in str(one.message))
    return [str(one.message) for one in found if "No training row" in str(one.message)]


class ByHand:
    """Two groups on a line, as users write them: a class that only some rows have."""

    def model(self, x: Tensor, group: Tensor | None = None) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            group = pyro.sample("group", dist.Categorical(logits=torch.zeros(2)), obs=group)
            pyro.sample("x", dist.Normal(loc[group], 1.0), obs=x)

    def guide(self, x: Tensor, group: Tensor | None = None) -> None:
        logits = pyro.param("logits", torch.zeros(2))
        with pyro.plate("data", len(x)):
            if group is None:
                pyro.sample("group", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


@pytest.mark.parametrize("absent", [False, True], ids=["unknown", "not given"])
@pytest.mark.parametrize("build", [ssvae, adgm, sdgm, stacked, graded])
def test_without_a_label_classes_are_clusters(build: Any, absent: bool) -> None:
    data = {"x": binary()} if absent else {"x": binary(), "y": torch.full((40,), -1)}
    (told,) = _told(build(), data)
    assert "y is unknown in all of them" in told and "pv.GMVAE" in told
    assert not _told(build(), data, epochs=0)  # of which nothing is learned


def test_of_several_labels_each_is_told_and_numbers_are_no_classes() -> None:
    data = some_labels()
    told = _told(two_labels(), {**data, "y1": torch.full_like(data["y1"], -1)})
    assert len(told) == 1 and "y1 is unknown in all of them" in told[0]
    assert len(_told(two_labels(), {"x": data["x"]})) == 2
    (told_numbers,) = _told(ssregression(), {"x": binary()})
    assert "No training row has a value of y" in told_numbers and "clusters" not in told_numbers
    (by_hand,) = _told(ByHand(), {"x": torch.linspace(-2, 2, 40)})
    assert "group is unknown in all of them" in by_hand


@pytest.mark.parametrize("known", [12, 40], ids=["some", "all"])
@pytest.mark.parametrize("build", [ssvae, adgm, sdgm, stacked])
def test_a_class_without_a_labelled_row_is_named(build: Any, known: int) -> None:
    y = labels(known=known)
    assert not _told(build(), {"x": binary(), "y": y})
    (told,) = _told(build(), {"x": binary(), "y": torch.where(y == 1, 0, y)})
    assert re.search(rf"has the label y of class 1, of {CLASSES} classes", told)


def test_several_classes_are_listed_and_by_hand_too() -> None:
    (told,) = _told(ByHand(), {"x": torch.linspace(-2, 2, 40), "group": torch.arange(40) % 2 - 1})  # unknown, or 0
    assert "label group of class 1, of 2 classes" in told
    (told,) = _told(ssvae(), {"x": binary(), "y": torch.where(labels() == 2, 2, -1)})
    assert "the 2 classes 0, 1" in told and CLASSES == 3


def test_what_is_no_label_is_not_spoken_of() -> None:
    assert not _told(vae(), binary()) and not _told(gmvae(), binary())
    assert not _told(multimodal(), two_kinds())
