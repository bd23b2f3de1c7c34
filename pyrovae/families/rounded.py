"""A family for the numeric columns of tables: each in its own units, on a linear or log scale, rounded, within bounds."""

import math
from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn import functional as F

from pyrovae._arguments import as_number, number_of, told
from pyrovae.distributions.rounded import RoundedNormal as RoundedNormalDensity
from pyrovae.distributions.rounded import Scale
from pyrovae.errors import OptionError
from pyrovae.families.base import Elementwise

Numbers = float | None | Sequence[float | None]


class RoundedNormal(Elementwise):
    """`t_d(x_d) ~ N(m_d, s_d^2)`, recorded to multiples of a step and within bounds: the numeric columns of a table.

    `t(x) = (x - centre) / spread`, or `(log(x + offset) - centre) / spread` for columns that have an offset, so that a
    network works with standardised numbers while rows stay in the units of the data. Densities are per unit of the data:
    `N(t(x); m, s^2) dt/dx` without a step, and with one the mean density over the numbers that are recorded as x. Then a
    bound takes what lies beyond it, so that zeros of counts or amounts have a probability of their own. With step 1, the
    density is a probability.

    Parameters `(*batch, 2, *event_shape)`: the mean m and r, with `s = softplus(r) + floor`, on the scale of t.
    Rows `(*batch, *event_shape)`, in the units of the data.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.
        centre: What t subtracts: a number, or one for each element. The same holds for the other arguments.
        spread: What t divides by, positive.
        offset: What is added before the logarithm, 0 for positive numbers; None for a linear scale.
        step: What x is recorded to, such as 0.1 for numbers with one decimal; 0 for exact numbers.
        low: The smallest value that can occur; None if there is no bound.
        high: The largest value that can occur; None if there is no bound.
        floor: Lower bound of s, positive, on the scale of t.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.
        OptionError: An argument has another length than a row has elements, or is out of range.

    References:
        Heitjan 1989, Statistical Science 4(2), on rounded data; Tobin 1958, Econometrica 26(1), on bounds.

    Example:
        >>> scales = {"centre": (170.0, 1.2), "spread": (9.0, 0.8), "step": (1.0, 0.1)}
        >>> family = fam.RoundedNormal(2, **scales, offset=(None, 0.1), low=(None, 0.0))  # heights in cm, and amounts
        >>> people = family(torch.zeros(3, 2, 2)).sample()
        >>> people.shape, bool((people[:, 1] >= 0).all())
        (torch.Size([3, 2]), True)
    """

    num_params = 2
    centres: Tensor
    spreads: Tensor
    logs: Tensor
    offsets: Tensor
    steps: Tensor
    lows: Tensor
    highs: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        centre: float | Sequence[float] = 0.0,
        spread: float | Sequence[float] = 1.0,
        offset: Numbers = None,
        step: float | Sequence[float] = 0.0,
        low: Numbers = None,
        high: Numbers = None,
        floor: float = 1e-2,
    ) -> None:
        super().__init__(event_shape)
        self.centre, self.spread, self.offset, self.step, self.low, self.high = centre, spread, offset, step, low, high
        self.floor = as_number("floor of RoundedNormal", floor, above=0, cure="A scale of 0 has no density.")
        inf = math.inf
        self._keep("centres", centre, 0.0)
        self._keep("spreads", spread, 1.0, positive=True)
        self._keep("logs", [value is not None for value in self._listed("offset", offset)], False)
        self._keep("offsets", offset, 0.0)
        self._keep("steps", step, 0.0)
        self._keep("lows", low, -inf)
        self._keep("highs", high, inf)
        if bool((self.steps < 0).any()):
            raise OptionError(f"RoundedNormal needs steps of 0 or more, got {step!r}.")
        if bool((self.lows >= self.highs).any()):
            raise OptionError(f"RoundedNormal needs low below high, got low={low!r} and high={high!r}.")
        self.any_steps = bool((self.steps > 0).any())
        self.any_bounds = bool(((self.steps > 0) & (self.lows.isfinite() | self.highs.isfinite())).any())

    def _listed(self, name: str, given: Numbers) -> list[float | None]:
        n = self.event_shape.numel()
        values = list(given) if isinstance(given, Sequence) else [given] * n
        if len(values) != n:
            raise OptionError(f"RoundedNormal needs one {name} for each of {n} elements, got {len(values)}.")
        return values

    def _keep(self, name: str, given: Numbers, otherwise: float | bool, positive: bool = False) -> None:
        values = [otherwise if value is None else value for value in self._listed(name, given)]
        flags = isinstance(otherwise, bool)
        found = [value if flags else number_of(value) for value in values]
        if any(value is None or math.isnan(value) or (positive and not 0 < value < math.inf) for value in found):
            raise OptionError(
                f"RoundedNormal needs {name} to be {'positive ' if positive else ''}numbers, got {told(given)}."
            )
        kept = torch.tensor(found, dtype=torch.bool if isinstance(otherwise, bool) else torch.get_default_dtype())
        self.register_buffer(name, kept.reshape(self.event_shape), persistent=False)

    @property
    def measured(self) -> Scale:
        """The scale of each element, as tensors of shape `(*event_shape)`."""
        numbers = (self.centres, self.spreads, self.logs, self.offsets, self.steps, self.lows, self.highs)
        return Scale(*numbers, any_steps=self.any_steps, any_bounds=self.any_bounds)

    def link(self, loc: Tensor, raw: Tensor) -> TorchDistributionMixin:
        return RoundedNormalDensity(loc, F.softplus(raw) + self.floor, self.measured)

    def features(self, x: Tensor) -> Tensor:
        """t(x), `(*batch, *event_shape)`: what an encoder sees of x."""
        return self.measured.standardise(x)
