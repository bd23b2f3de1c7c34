"""Families for images of discrete grey or colour levels."""

import math
from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrovae.distributions.discretized import DiscretizedLogistic as DiscretizedLogisticMass
from pyrovae.distributions.discretized import DiscretizedLogisticMixture as Mixture
from pyrovae.errors import ShapeError
from pyrovae.families.base import Elementwise, Family, positive, soft_exp


def _scale(raw: Tensor) -> Tensor:
    # at raw = 0 the scale is 0.14, on the range from -1 to 1; the bounds are e^-7 and e^7
    return soft_exp(raw - 2, math.exp(7))


class DiscretizedLogistic(Elementwise):
    """`P(x_d = k)`, the mass of a logistic density on [-1, 1] in the k-th of `levels` bins: grey values 0, ..., 255.

    Parameters `(*batch, 2, *event_shape)`: the location on [-1, 1], and r, with scale `exp(7 tanh((r - 2) / 7))`. Rows
    `(*batch, *event_shape)`: whole numbers from 0 to levels - 1, such as grey values k (not k / 255). The two outermost
    bins take the mass beyond -1 and 1.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.
        levels: The number of levels.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.
        OptionError: `levels` is not an int of at least 2.

    References:
        Salimans et al. 2017, arXiv:1701.05517; Kingma et al. 2016, arXiv:1606.04934.

    Example:
        >>> decoder = pv.mlp(2, fam.DiscretizedLogistic((8, 8)), hidden=(16,))
        >>> x = decoder(torch.zeros(5, 2)).sample()
        >>> x.shape, bool((0 <= x).all() and (x <= 255).all())
        (torch.Size([5, 8, 8]), True)
    """

    num_params = 2

    def __init__(self, event_shape: int | Sequence[int], levels: int = 256) -> None:
        super().__init__(event_shape)
        self.levels = positive(self, "levels", levels, least=2)

    def link(self, loc: Tensor, raw: Tensor) -> TorchDistributionMixin:
        return DiscretizedLogisticMass(loc, _scale(raw), self.levels)


class DiscretizedLogisticMixture(Family):
    """`p(image) = prod_pixels sum_k w_k prod_c P(x_c = . | m_kc, s_kc, x_1, ..., x_(c-1))`: colour images.

    Each pixel is a mixture of discretised logistics; its channels share the component, and the location of channel c is
    `m_c + sum_(j<c) tanh(a_cj) y_j`, with `y_j` the level of channel j rescaled to [-1, 1]. The locations of the components
    differ at the start, since equal components would get equal gradients. Parameters `(*batch, Q, H, W)`,
    `Q = K (1 + 2 C + C (C - 1) / 2)`: 100 for K = 10 components and C = 3 channels. Rows `(*batch, C, H, W)`: whole numbers
    from 0 to levels - 1.

    Args:
        event_shape: Shape of one image, `(C, H, W)`.
        levels: The number of levels.
        num_components: The number of components K.

    Raises:
        ShapeError: `event_shape` is not `(C, H, W)`, or `params` has another trailing shape.
        OptionError: `levels` is not an int of at least 2, or `num_components` is not a positive int.

    References:
        Salimans et al. 2017, arXiv:1701.05517.

    Example:
        >>> family = fam.DiscretizedLogisticMixture((3, 8, 8), num_components=2)
        >>> family.param_shape
        torch.Size([20, 8, 8])
        >>> decoder = pv.conv(2, family, channels=(4,))
        >>> decoder(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 3, 8, 8])
    """

    def __init__(self, event_shape: Sequence[int], levels: int = 256, num_components: int = 10) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 3:
            raise ShapeError(
                f"DiscretizedLogisticMixture needs an event_shape (C, H, W), got {tuple(self.event_shape)}. "
                "Give grey images one channel, (1, H, W)."
            )
        self.levels = positive(self, "levels", levels, least=2)
        self.num_components = positive(self, "num_components", num_components)

    @property
    def param_shape(self) -> torch.Size:
        channels = self.event_shape[0]
        per_component = 1 + 2 * channels + channels * (channels - 1) // 2
        return torch.Size((self.num_components * per_component, *self.event_shape[1:]))

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        self.check(params)
        k, c = self.num_components, self.event_shape[0]
        per_component = params.unflatten(-3, (k, -1))
        raw_loc, raw_scale = per_component[..., 1 : 1 + c, :, :], per_component[..., 1 + c : 1 + 2 * c, :, :]
        # components that start equal would get equal gradients and stay equal
        apart = (2 * torch.arange(k, device=params.device) + 1 - k).to(params.dtype) / k
        loc = raw_loc + apart[:, None, None, None]
        coefficients = torch.tanh(per_component[..., 1 + 2 * c :, :, :])
        return Mixture(per_component[..., 0, :, :], loc, _scale(raw_scale), coefficients, self.levels)
