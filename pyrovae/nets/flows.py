"""Invertible networks by zuko: they map a context to a transform of torch's kind, with `call_and_ladj`."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae._arguments import MOST_LAYERS, as_choice, as_count, as_widths
from pyrovae._zuko import zuko

KINDS = ("nsf", "maf", "iaf", "coupling")
BINS = 8  # of a spline


def _inverse(self: Any, y: Tensor) -> Tensor:
    """The inverse spline of Durkan et al. 2019, equation 29, with a discriminant that rounding cannot make negative."""
    inside, x0, x1, y0, y1, d0, d1, s = self.bin(self.searchsorted(self.vertical, y) - 1)
    rise = inside * (y - y0)
    bend = rise * (d0 + d1 - 2 * s)
    a, b, c = (y1 - y0) * (s - d0) + bend, (y1 - y0) * d0 - bend, -s * rise
    z = 2 * c / (-b - (b.square() - 4 * a * c).clamp_min(1e-20).sqrt())
    return torch.where(inside, x0 + z * (x1 - x0), y)


@functools.cache
def _spline() -> Any:
    return type("Spline", (zuko().transforms.MonotonicRQSTransform,), {"_inverse": _inverse})


def transform(features: int, context: int, kind: str, transforms: int, hidden: int | Sequence[int]) -> nn.Module:
    """t: R^features to R^features, of `transforms` layers; `module(c)` returns t, for a context c `(*batch, context)` or None.

    Kinds: "nsf", autoregressive splines; "maf" and "iaf", autoregressive and affine, which differ only in the direction in
    which the caller uses t; "coupling", affine couplings, two passes in the other direction. All start near the identity, and
    the order of the features is reversed from one layer to the next. Raises OptionError for another kind and for numbers that
    are not positive.
    """
    as_choice("kind of a flow", kind, KINDS)
    transforms, hidden = as_count("transforms", transforms, most=MOST_LAYERS), as_widths("hidden", hidden)
    more: dict[str, Any] = {}
    if kind == "nsf":
        more = {"univariate": _spline(), "shapes": [(BINS,), (BINS,), (BINS - 1,)]}
    elif kind == "coupling":
        # an autoregressive flow of two passes, since zuko's own coupling reads its mask on the host
        more = {"passes": 2}
    flow = zuko().flows.MAF(features, context, transforms=transforms, hidden_features=hidden, **more)
    made: nn.Module = flow.transform
    with torch.no_grad():
        part: Any
        for part in made.modules():
            hyper = getattr(part, "hyper", None)
            if hyper is not None:  # its last layer gives shifts, log-scales and bends, which start small
                for parameter in hyper[-1].parameters():
                    parameter.mul_(0.01)
            order = getattr(part, "order", None)
            if order is not None:  # the features of each pass of `inverse`, which are adjacent
                places = [(order == turn).nonzero() for turn in range(int(order.max()) + 1)]
                part.turns = [slice(int(place.min()), int(place.max()) + 1) for place in places]
    return made
