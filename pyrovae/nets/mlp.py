"""Perceptrons, one-hot coding, and the checks of shapes that all networks share."""

import operator
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae.errors import ShapeError


def as_size(shape: int | Sequence[int]) -> torch.Size:
    """The shape of one row: `784` and `(784,)` are `(784,)`, `()` is a number. Raises ShapeError."""
    try:
        size = torch.Size([operator.index(n) for n in (shape if isinstance(shape, Sequence) else (shape,))])
    except TypeError:
        size = torch.Size([0])
    if any(n < 1 for n in size):
        raise ShapeError(f"A shape is a positive int or a tuple of them, got {shape!r}.")
    return size


def check_rows(net: nn.Module, rows: tuple[Tensor, ...], shapes: Sequence[torch.Size], layer: nn.Module) -> None:
    """Raises ShapeError unless rows[i] has shape (*batch, *shapes[i]) and the dtype of the first layer's weight.

    Reads shapes and dtypes only: no value is looked at, so an accelerator is never waited for.
    """
    name = type(net).__name__
    dtype: Any = layer.weight.dtype
    if len(rows) != len(shapes):
        raise ShapeError(
            f"{name} needs {len(shapes)} parent(s), one for each of in_features, got {len(rows)}. "
            "Build it with one entry of in_features for each parent."
        )
    for row, shape in zip(rows, shapes):
        wanted = ", ".join(["*batch", *map(str, shape)])
        if not isinstance(row, Tensor):
            raise ShapeError(f"{name} needs a tensor of shape ({wanted}), got {type(row).__name__}. Use torch.tensor.")
        if row.shape[-len(shape) :] != shape:
            raise ShapeError(
                f"{name} needs rows of shape ({wanted}), got {tuple(row.shape)}. "
                "Reshape them, or build the network for the shape that comes."
            )
        # autocast casts floating rows itself
        if row.dtype != dtype and not (row.is_floating_point() and torch.is_autocast_enabled(row.device.type)):
            cure = {torch.float32: ".float()", torch.float64: ".double()"}.get(dtype, f".to({dtype})")
            raise ShapeError(
                f"{name} has {dtype} weights and needs rows of that dtype, got {row.dtype} {tuple(row.shape)}. "
                f"Cast them: `{cure}`."
            )


class MLP(nn.Module):
    """W_n a(... a(W_1 x_1 + V_1 x_2 + ... + b_1) ...) + b_n: a perceptron of one or several parents.

    parents: (*batch, in_features), their batch shapes broadcast; result: (*batch, *out_shape). `in_features` is an
    int, or a tuple with one int for each parent: the first layer is then one Linear per parent, summed, which equals
    one Linear of the concatenated parents and does not copy a parent along the dims in which another one is
    enumerated. `hidden=()` is linear. Raises ShapeError if a parent has another trailing shape or dtype, or if the
    number of parents is another one. Goodfellow, Bengio & Courville 2016, *Deep Learning*, chapter 6.
    """

    def __init__(
        self,
        in_features: int | tuple[int, ...],
        out_shape: int | tuple[int, ...],
        hidden: Sequence[int] = (400,),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features) if isinstance(in_features, Sequence) else in_features
        self.out_shape = as_size(out_shape)
        self.hidden = tuple(hidden)
        self.activation = activation
        self._in_shapes = [as_size(n) for n in as_size(self.in_features)]
        widths = (*self.hidden, self.out_shape.numel())
        # one bias is enough for a sum
        self.first = nn.ModuleList(nn.Linear(n, widths[0], bias=i == 0) for i, (n,) in enumerate(self._in_shapes))
        self.rest = nn.Sequential()
        for n, m in pairwise(widths):
            self.rest.extend([activation(), nn.Linear(n, m)])

    def forward(self, *parents: Tensor) -> Tensor:
        check_rows(self, parents, self._in_shapes, self.first[0])
        out: Tensor = self.first[0](parents[0])
        for layer, parent in zip(self.first[1:], parents[1:]):
            out = out + layer(parent)
        out = self.rest(out)
        return out.reshape((*out.shape[:-1], *self.out_shape))


def one_hot(y: Tensor, num_classes: int, dtype: torch.dtype | None = None) -> Tensor:
    """1[y = c] for c = 0, ..., num_classes - 1. y: (*batch), of any dtype; result: (*batch, num_classes), floating.

    A label outside of the classes (an unknown one: -1 or NaN) is a row of zeros. `dtype` is torch's default one if it
    is not given. It is a comparison with `arange`, since `torch.nn.functional.one_hot` reads values on the host and
    so can be neither traced nor captured.
    """
    classes = torch.arange(num_classes, device=y.device)
    return (y.unsqueeze(-1) == classes).to(dtype or torch.get_default_dtype())


class Behind(nn.Module):
    """net(front(x), *others): what `front` finds in x, an image's features, say, beside other parents.

    x and others as `front` and `net` take them; result: (*batch, *out_shape), that of `net`. Where the others are enumerated
    the front is computed once.
    """

    def __init__(self, front: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.front, self.net = front, net
        self.out_shape = getattr(net, "out_shape", None)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        result: Tensor = self.net(self.front(x), *others)
        return result


class Rescaled(nn.Module):
    """net(factor * x, *others): brings inputs to a scale at which a network starts well, counts 0..n by 1/n, say.

    x: (*batch, in_features), others as `net` takes them; result as that of `net`.
    LeCun et al. 1998, *Efficient BackProp*, section 4.3.
    """

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor
        self.out_shape = getattr(net, "out_shape", None)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        scaled: Tensor = self.net(self.factor * x, *others)
        return scaled


class Log1p(nn.Module):
    """net(log(1 + x), *others): counts and other non-negative values without a bound, at a scale at which it starts well.

    x: (*batch, in_features), x > -1, others as `net` takes them; result as that of `net`.
    Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.out_shape = getattr(net, "out_shape", None)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        result: Tensor = self.net(torch.log1p(x), *others)
        return result


class WithMask(nn.Module):
    """net(x with 0 for NaN, 1 where x is observed and 0 where it is missing): an encoder's network for rows with gaps.

    x: (*batch, in_features), NaN where missing; `net` takes two parents of that shape, as `MLP((D, D), ...)` does.
    Nazabal et al. 2020, arXiv:1807.03653, with the mask beside the zeros.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.out_shape = getattr(net, "out_shape", None)

    def forward(self, x: Tensor) -> Tensor:
        missing = torch.isnan(x)
        result: Tensor = self.net(torch.where(missing, x.new_zeros(()), x), (~missing).to(x.dtype))
        return result


class Swapped(nn.Module):
    """net(x_2, x_1, *others): the first two parents the other way round, where what stands before a net is for the second.

    Parents as `net` takes them, but for their order; result as that of `net`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.out_shape = getattr(net, "out_shape", None)

    def forward(self, first: Tensor, second: Tensor, *others: Tensor) -> Tensor:
        result: Tensor = self.net(second, first, *others)
        return result


class LayerNormed:
    """Makes activations for a network: a((u - mean(u)) / sd(u)), mean and sd over the units of a layer, each row alone.

    Give it as `activation` to networks of vectors, `MLP` and `ResidualMLP`: nets.LayerNormed(nn.LeakyReLU); of an image it
    would see one line only. It keeps the levels of a deep hierarchy in scale with one another, as batch normalisation does,
    and leaves rows independent. It has no weights of its own: the next linear layer has them. Ba, Kiros & Hinton 2016,
    arXiv:1607.06450.
    """

    def __init__(self, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        self.activation = activation

    def __call__(self) -> nn.Module:
        return nn.Sequential(_LayerNorm(), self.activation())


class _LayerNorm(nn.Module):
    """(u - mean(u)) / sd(u) over the last dimension, of whatever size."""

    def forward(self, u: Tensor) -> Tensor:
        return F.layer_norm(u, u.shape[-1:])


class Activated(nn.Module):
    """a(net(*parents)): a network that ends in an activation, one stage of several. Shapes as those of `net`."""

    def __init__(self, net: nn.Module, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.net, self.activation, self.last = net, activation, activation()
        self.out_shape = getattr(net, "out_shape", None)

    def forward(self, *parents: Tensor) -> Tensor:
        result: Tensor = self.last(self.net(*parents))
        return result
