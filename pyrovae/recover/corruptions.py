"""Corruptions: what happened to the rows that are seen. Each is a function f and noise, `x_seen = f(x) + sd e`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_count, as_function, as_number, number_of, told
from pyrovae.errors import OptionError, ShapeError

__all__ = ["Blur", "Clip", "Corruption", "Downsample", "Mask", "Noise"]


class Corruption:
    """`x_seen = f(x) + sd e`, e standard normal: a function of one's own, for `pv.restore`.

    Called with rows, a corruption returns them corrupted, with new noise. Entries that are not seen at all are NaN.

    Args:
        function: f, on rows `(*batch, *event)`; it may return rows of another shape.
        sd: The standard deviation of the noise, a number, or a tensor that broadcasts to seen rows.
        linear: Whether f is linear, `f(a x + b y) = a f(x) + b f(y)`. Then restoring is exact for a Normal likelihood, and
            quicker.
        elementwise: Whether f treats each element by itself. Then restoring is exact for likelihoods of few values, such as
            Bernoulli.

    Raises:
        OptionError: `sd` is negative.

    Example:
        >>> squared = pv.corruptions.Corruption(torch.square, sd=0.1, elementwise=True)
        >>> squared.function(torch.tensor([-2.0, 1.0])), squared(torch.zeros(5, 2)).shape
        (tensor([4., 1.]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        sd: float | Tensor = 0.0,
        *,
        linear: bool = False,
        elementwise: bool = False,
    ) -> None:
        _check_sd(sd)
        self.function, self.sd, self.linear, self.elementwise = (
            as_function("function", function, "rows"),
            sd,
            linear,
            elementwise,
        )

    def __call__(self, x: Tensor) -> Tensor:
        seen = self.function(x)
        return seen + torch.as_tensor(self.sd).to(seen) * torch.randn_like(seen)


class Mask(Corruption):
    """Some entries are not seen, which are NaN in the rows that are given; the others are seen as they are.

    Args:
        hidden: Which entries a call hides, a bool tensor that broadcasts to rows; `pv.restore` does not need it.

    Example:
        >>> hidden = torch.tensor([True, False])
        >>> pv.corruptions.Mask(hidden)(torch.ones(2, 2))
        tensor([[nan, 1.],
                [nan, 1.]])
    """

    def __init__(self, hidden: Tensor | None = None) -> None:
        super().__init__(self._hide, linear=True, elementwise=True)
        self.hidden = hidden

    def _hide(self, x: Tensor) -> Tensor:
        return x if self.hidden is None else x.masked_fill(self.hidden.to(x.device), torch.nan)


class Noise(Corruption):
    """`x_seen = x + sd e`.

    Args:
        sd: The standard deviation of the noise, a number, or a tensor that broadcasts to rows.

    Example:
        >>> noisy = pv.corruptions.Noise(0.3)(torch.zeros(1000))
        >>> 0.2 < float(noisy.std()) < 0.4
        True
    """

    def __init__(self, sd: float | Tensor) -> None:
        super().__init__(lambda x: x, sd, linear=True, elementwise=True)


class Blur(Corruption):
    """Each pixel is an average of its neighbours, weighted by a Gaussian, and noise is added.

    Args:
        width: The standard deviation of the Gaussian, in pixels of the last two dimensions of a row.
        sd: The standard deviation of the noise, positive: without any, blurring loses nothing but digits.

    Raises:
        OptionError: A number is not positive.

    Example:
        >>> image = torch.zeros(1, 5, 5)
        >>> image[0, 2, 2] = 1.0
        >>> pv.corruptions.Blur(0.7, sd=0.01).function(image)[0, 2]
        tensor([0.0070, 0.1182, 0.3248, 0.1182, 0.0070])
    """

    def __init__(self, width: float, sd: float | Tensor) -> None:
        self.width = as_number("width of Blur", width, above=0)
        _check_sd(sd)
        if not bool((torch.as_tensor(sd) > 0).all()):
            raise OptionError(f"Blur needs a width and an sd above 0, got {width} and {sd}.")
        super().__init__(self._blur, sd, linear=True)

    def _blur(self, x: Tensor) -> Tensor:
        if x.dim() < 2:
            raise ShapeError(
                f"Blur needs images, whose last two dimensions are height and width, got {tuple(x.shape)}."
            )
        rows, columns = (self._kernel(size, x) for size in x.shape[-2:])
        return rows @ x @ columns.T

    def _kernel(self, size: int, like: Tensor) -> Tensor:
        place = torch.arange(size, dtype=like.dtype, device=like.device)
        return (-0.5 * ((place[:, None] - place) / self.width) ** 2).softmax(-1)


class Downsample(Corruption):
    """Each square of `factor x factor` pixels is seen as one, their mean; with noise, if there is any.

    Args:
        factor: The length of a square's side. Height and width, the last two dimensions of a row, are multiples of it.
        sd: The standard deviation of the noise.

    Raises:
        OptionError: `factor` is less than 1.
        ShapeError: When called: height or width is no multiple of the factor.

    Example:
        >>> pv.corruptions.Downsample(2)(torch.arange(16.0).reshape(1, 4, 4))
        tensor([[[ 2.5000,  4.5000],
                 [10.5000, 12.5000]]])
    """

    def __init__(self, factor: int, sd: float | Tensor = 0.0) -> None:
        self.factor = as_count("factor", factor)
        super().__init__(self._mean, sd, linear=True)

    def _mean(self, x: Tensor) -> Tensor:
        f = self.factor
        if x.dim() < 2 or x.shape[-1] % f or x.shape[-2] % f:
            raise ShapeError(
                f"Downsample({f}) needs images whose height and width, the last two dimensions, are multiples of {f}, got "
                f"{tuple(x.shape)}. Choose another factor, or crop them."
            )
        height, width = x.shape[-2] // f, x.shape[-1] // f
        return x.reshape(*x.shape[:-2], height, f, width, f).mean((-3, -1))


class Clip(Corruption):
    """Saturation: `x_seen = min(max(x, low), high)`. What is seen at an end was there or beyond it.

    Args:
        low: The lower end; None if there is none.
        high: The upper end; None if there is none.

    Raises:
        OptionError: There is no end, or the lower one is not below the upper one.

    Example:
        >>> pv.corruptions.Clip(high=1.0)(torch.tensor([0.5, 3.0]))
        tensor([0.5000, 1.0000])
    """

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        low, high = (end if end is None else as_number(name, end) for name, end in (("low", low), ("high", high)))
        if (low is None and high is None) or (low is not None and high is not None and not low < high):
            raise OptionError(f"Clip needs at least one end, and low below high, got {low} and {high}.")
        super().__init__(lambda x: x.clamp(low, high), elementwise=True)
        self.low, self.high = low, high


def _check_sd(sd: Any) -> None:
    """OptionError for what is no standard deviation: a number, or a tensor of them."""
    wrong = number_of(sd) is None and not (isinstance(sd, Tensor) and sd.dtype != torch.bool)
    if wrong or not bool(((torch.as_tensor(sd) >= 0) & torch.isfinite(torch.as_tensor(sd))).all()):
        raise OptionError(f"sd is a standard deviation, a number or a tensor, finite and not negative, got {told(sd)}.")
