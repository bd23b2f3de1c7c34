"""Inverses of the autoregressive transforms of zuko."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrovae._shapes import broadcast_shapes
from pyrovae._zuko import zuko


def inverse(t: Any, y: Tensor) -> Tensor:
    """The x with `t(x) = y`, for a transform t of `pyrovae.nets.flows`, `(*batch, L)`.

    Feature i of an autoregressive transform depends on those before it, so that the inverse takes a pass for each of them.
    zuko computes all L features in each of L passes; here a pass computes those alone whose turn it is.
    """
    if isinstance(t, zuko().transforms.ComposedTransform):
        return functools.reduce(lambda x, part: inverse(part, x), reversed(t.transforms), y)
    if not isinstance(t, zuko().transforms.AutoregressiveTransform):
        only: Tensor = t.inv(y)  # of a single feature
        return only
    module, context = t.meta.func.__self__, t.meta.args[0]
    first, *layers, last = module.hyper
    size, weight = y.shape[-1], first.mask * first.weight
    given = first.bias if context is None else F.linear(context, weight[:, size:], first.bias)  # the same in each pass
    x = list(y.new_zeros(*broadcast_shapes(y.shape[:-1], given.shape[:-1]), size).unbind(-1))
    for features in module.turns:
        hidden = F.linear(torch.stack(x, -1), weight[:, :size]) + given
        for layer in layers:
            hidden = layer(hidden)
        outputs = slice(features.start * module.total, features.stop * module.total)
        phi = F.linear(hidden, (last.mask * last.weight)[outputs], last.bias[outputs]).unflatten(-1, (-1, module.total))
        found = module.univariate(*zuko().utils.unpack(phi, module.shapes)).inv(y[..., features])
        x[features] = found.unbind(-1)
    return torch.stack(x, -1)
