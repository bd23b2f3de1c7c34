"""Multilayer perceptrons, one-hot codes, wrappers of networks, and the checks of shapes that all networks share."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae._arguments import MOST, as_number, as_widths, index_of, told
from pyrovae._shapes import how_to_cast
from pyrovae.errors import ShapeError
from pyrovae.nets.normalising import activation_of


def as_size(shape: int | Sequence[int]) -> torch.Size:
    """The shape of one row as a torch.Size: `784` means `(784,)`, and `()` is a single number. Raises ShapeError."""
    listed = shape if isinstance(shape, Sequence) and not isinstance(shape, (str, bytes)) else (shape,)
    numbers = [index_of(n) for n in listed]
    if any(n is None or n < 1 for n in numbers):
        raise ShapeError(f"A shape must be a positive int or a tuple of positive ints, got {told(shape)}.")
    size = torch.Size([n for n in numbers if n is not None])
    if any(n > MOST for n in size):
        raise ShapeError(f"A shape has at most {MOST} elements along each dimension, got {told(shape)}.")
    return size


def as_length(name: str, number: int) -> int:
    """The size of a vector, or another number that becomes part of a shape, as a Python int. Raises ShapeError."""
    found = index_of(number)
    if found is None or not 1 <= found <= MOST:
        raise ShapeError(f"{name} must be a positive int of at most {MOST}, got {told(number)}.")
    return found


def as_parents(name: str, in_features: int | Sequence[int]) -> list[torch.Size]:
    """The shape of each parent of a network of vectors, of which there is at least one. Raises ShapeError."""
    sizes = as_size(in_features)
    if not sizes:
        raise ShapeError(
            f"{name} needs in_features, the size of its parent, or a tuple with that of each parent, got ()."
        )
    return [torch.Size([n]) for n in sizes]


def check_inputs(net: nn.Module, rows: tuple[Tensor, ...], shapes: Sequence[torch.Size], layer: nn.Module) -> None:
    """Raise ShapeError unless rows[i] has shape `(*batch, *shapes[i])` and the dtype of the first layer's weight.

    It reads shapes and dtypes only, no values, so the host never waits for the device.
    """
    name = type(net).__name__
    dtype: Any = layer.weight.dtype
    if len(rows) != len(shapes):
        raise ShapeError(
            f"{name} needs {len(shapes)} parent(s), one for each entry of in_features, got {len(rows)}. "
            "Build it with one entry of in_features for each parent."
        )
    for row, shape in zip(rows, shapes):
        wanted = ", ".join(["*batch", *map(str, shape)])
        if not isinstance(row, Tensor):
            raise ShapeError(f"{name} needs a tensor of shape ({wanted}), got {type(row).__name__}. Use torch.tensor.")
        if row.shape[-len(shape) :] != shape:
            raise ShapeError(
                f"{name} needs rows of shape ({wanted}), got {tuple(row.shape)}. "
                "Reshape them, or build the network for rows of that shape."
            )
        # under autocast, floating rows are cast by torch
        if row.dtype != dtype and not (row.is_floating_point() and torch.is_autocast_enabled(row.device.type)):
            raise ShapeError(
                f"{name} has {dtype} weights and needs rows of that dtype, got {row.dtype} {tuple(row.shape)}. "
                f"Cast them: {how_to_cast(dtype)}."
            )


class MLP(nn.Module):
    """`W_n a(... a(W_1 x_1 + V_1 x_2 + ... + b_1) ...) + b_n`: a multilayer perceptron of one or several parents.

    Inputs `(*batch, in_features)`, whose batch shapes broadcast; output `(*batch, *out_shape)`. With several parents the first
    layer is one Linear for each, summed. That equals one Linear of the concatenated parents, without copying a parent along
    the dimensions in which another one is enumerated.

    Args:
        in_features: Size of the parent, or a tuple with the size of each parent.
        out_shape: Shape of the output for one row, such as `family.param_shape`.
        hidden: Widths of the hidden layers, an int for one layer; `()` makes the network linear.
        activation: Makes an activation layer, such as `nn.ReLU`, `LayerNormed()` or `BatchNormed()`.

    Raises:
        ShapeError: A size is not a positive int, a parent has another trailing shape or dtype, or their number differs.
        OptionError: `hidden` holds something else than positive ints, or `activation` does not make a layer.

    References:
        Goodfellow, Bengio and Courville 2016, *Deep Learning*, chapter 6.

    Example:
        >>> net = pv.nets.MLP((4, 10), fam.Normal(2).param_shape, hidden=(32,))
        >>> net(torch.zeros(5, 4), torch.zeros(3, 5, 10)).shape
        torch.Size([3, 5, 2, 2])
    """

    def __init__(
        self,
        in_features: int | tuple[int, ...],
        out_shape: int | tuple[int, ...],
        hidden: int | Sequence[int] = (400,),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self._in_shapes = as_parents(type(self).__name__, in_features)
        self.in_features = tuple(in_features) if isinstance(in_features, Sequence) else in_features
        self.out_shape = as_size(out_shape)
        self.hidden = as_widths("hidden", hidden)
        self.activation = activation
        widths = (*self.hidden, self.out_shape.numel())
        # a sum needs one bias only
        self.first = nn.ModuleList(nn.Linear(n, widths[0], bias=i == 0) for i, (n,) in enumerate(self._in_shapes))
        self.rest = nn.Sequential()
        for n, m in pairwise(widths):
            self.rest.extend([activation_of(n, activation), nn.Linear(n, m)])

    def forward(self, *parents: Tensor) -> Tensor:
        check_inputs(self, parents, self._in_shapes, self.first[0])
        out: Tensor = self.first[0](parents[0])
        for layer, parent in zip(self.first[1:], parents[1:]):
            out = out + layer(parent)
        out = self.rest(out)
        return out.reshape((*out.shape[:-1], *self.out_shape))


def one_hot(y: Tensor, num_classes: int, dtype: torch.dtype | None = None) -> Tensor:
    """`1[y = c]` for `c = 0, ..., num_classes - 1`.

    A value that is no class (-1 or NaN for an unknown label) gives a row of zeros. It is a comparison with `arange`, because
    `torch.nn.functional.one_hot` reads values on the host and so cannot be traced or recorded in a CUDA graph.

    Args:
        y: Classes, of any dtype, shape `(*batch)`.
        num_classes: The number of classes.
        dtype: Dtype of the result; torch's default dtype if None.

    Returns:
        A floating tensor, shape `(*batch, num_classes)`.

    Example:
        >>> pv.nets.one_hot(torch.tensor([1, 0, -1]), 2)
        tensor([[0., 1.],
                [1., 0.],
                [0., 0.]])
    """
    classes = torch.arange(as_length("num_classes", num_classes), device=y.device)
    return (y.unsqueeze(-1) == classes).to(dtype or torch.get_default_dtype())


class Behind(nn.Module):
    """`net(front(x), *others)`: a network on the features that another network finds in its first parent.

    Where the other parents are enumerated, the features are still computed only once. The output is that of `net`, shape
    `(*batch, *out_shape)`.

    Args:
        front: Network of x, such as a `ConvEncoder` for images.
        net: Network of the features and the other parents.

    Example:
        >>> front = pv.nets.ConvEncoder((1, 8, 8), 16, channels=(4,))
        >>> net = pv.nets.Behind(front, pv.nets.MLP((16, 3), 2))
        >>> net(torch.zeros(5, 1, 8, 8), torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, front: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.front, self.net = front, net
        self.out_shape = getattr(net, "out_shape", None)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        result: Tensor = self.net(self.front(x), *others)
        return result


class Flat(nn.Module):
    """`x` as a vector: a front for networks of vectors, `(*batch, *in_shape)` to `(*batch, n)`.

    Args:
        in_shape: Shape of one row, an int or a tuple of ints.

    Raises:
        ShapeError: `in_shape` is no shape, or an input has another trailing shape.

    Example:
        >>> net = pv.nets.Behind(pv.nets.Flat((3, 4)), pv.nets.MLP(12, 2))
        >>> net(torch.zeros(5, 3, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(self, in_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.in_shape = as_size(in_shape)
        self.out_shape = as_size(self.in_shape.numel())

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[x.dim() - len(self.in_shape) :] != self.in_shape:
            wanted = ", ".join(["*batch", *map(str, self.in_shape)])
            raise ShapeError(
                f"Flat needs rows of shape ({wanted}), got {tuple(x.shape)}. Give the shape of one row as in_shape."
            )
        return x.flatten(x.dim() - len(self.in_shape)) if self.in_shape else x.unsqueeze(-1)


class Rescaled(nn.Module):
    """`net(factor * x, *others)`: brings its first parent to a scale at which a network learns well.

    Args:
        net: A network; the other parents and the output, `(*batch, *out_shape)`, are its own.
        factor: A number, such as 1 / n for counts from 0 to n.

    Raises:
        OptionError: `factor` is no finite number.

    References:
        LeCun et al. 1998, *Efficient BackProp*, section 4.3.

    Example:
        >>> net = pv.nets.Rescaled(pv.nets.MLP(4, 2), 1 / 255)
        >>> net(torch.full((5, 4), 255.0)).shape
        torch.Size([5, 2])
    """

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor if isinstance(factor, Tensor) else as_number("factor", factor)
        self.out_shape = getattr(net, "out_shape", None)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        scaled: Tensor = self.net(self.factor * x, *others)
        return scaled


class Log1p(nn.Module):
    """`net(log(1 + x), *others)`: brings counts and other non-negative values without an upper bound to a useful scale.

    Args:
        net: A network of x, `x > -1`; the other parents and the output, `(*batch, *out_shape)`, are its own.

    References:
        Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.

    Example:
        >>> net = pv.nets.Log1p(pv.nets.MLP(4, 2))
        >>> net(torch.tensor([[0.0, 3.0, 500.0, 80000.0]])).shape
        torch.Size([1, 2])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.out_shape = getattr(net, "out_shape", None)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        result: Tensor = self.net(torch.log1p(x), *others)
        return result


class WithMask(nn.Module):
    """`net(x_0, m, *others)` with 0 for NaN in x_0 and m = 1[x is observed]: an encoder network for rows with missing values.

    Args:
        net: A network whose first two parents have the shape of x, such as `MLP((D, D), ...)`, or `MLP((D, D, C), ...)` for an
            encoder with another parent, such as a class; the output is its own.

    References:
        Nazabal et al. 2020, arXiv:1807.03653, there without the mask.

    Example:
        >>> net = pv.nets.WithMask(pv.nets.MLP((3, 3), 2))
        >>> bool(net(torch.tensor([[1.0, float("nan"), 2.0]])).isfinite().all())
        True
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.out_shape = getattr(net, "out_shape", None)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        missing = torch.isnan(x)
        result: Tensor = self.net(torch.where(missing, x.new_zeros(()), x), (~missing).to(x.dtype), *others)
        return result


class Swapped(nn.Module):
    """`net(x_2, x_1, *others)`: exchanges the first two parents, for a wrapped network that treats its first parent specially.

    Args:
        net: A network of at least two parents; the output, `(*batch, *out_shape)`, is its own.

    Example:
        >>> counts = pv.nets.Log1p(pv.nets.MLP((4, 2), 3))  # Log1p applies to the first parent
        >>> net = pv.nets.Swapped(counts)
        >>> net(torch.zeros(5, 2), torch.ones(5, 4)).shape
        torch.Size([5, 3])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.out_shape = getattr(net, "out_shape", None)

    def forward(self, first: Tensor, second: Tensor, *others: Tensor) -> Tensor:
        result: Tensor = self.net(second, first, *others)
        return result


class Activated(nn.Module):
    """`a(net(*parents))`: a network that ends in an activation, as one stage of several.

    Args:
        net: A network; parents and output shape are its own.
        activation: Makes the activation layer a.

    Example:
        >>> stage = pv.nets.Activated(pv.nets.MLP(4, 16, hidden=()))
        >>> bool((stage(torch.randn(5, 4)) >= 0).all())
        True
    """

    def __init__(self, net: nn.Module, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.net, self.activation = net, activation
        self.out_shape = getattr(net, "out_shape", None)
        shape = () if self.out_shape is None else as_size(self.out_shape)
        self.last = activation_of(shape[0] if len(shape) == 1 else None, activation)  # an image has no units

    def forward(self, *parents: Tensor) -> Tensor:
        result: Tensor = self.last(self.net(*parents))
        return result
