"""Families of grey and colour levels."""

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
    # 0.14 of the range from -1 to 1 at the start, from e^-7 to e^7
    return soft_exp(raw - 2, math.exp(7))


class DiscretizedLogistic(Elementwise):
    """P(x_d = k) for k = 0, ..., levels - 1: a logistic density on [-1, 1], summed over the levels; see distributions.

    x are integers, as Binomial's counts are: grey values 0 ... 255, not k / 255. The first parameter is the location on
    [-1, 1]; the scale is exp(7 tanh((r - 2) / 7)), r the second one. params: (*batch, 2, *event_shape); x: (*batch,
    *event_shape). Raises ShapeError, and OptionError if levels is not an int of at least 2.
    Salimans et al. 2017, arXiv:1701.05517; Kingma et al. 2016, arXiv:1606.04934.
    """

    num_params = 2

    def __init__(self, event_shape: int | Sequence[int], levels: int = 256) -> None:
        super().__init__(event_shape)
        self.levels = positive(self, "levels", levels, least=2)

    def link(self, loc: Tensor, raw: Tensor) -> TorchDistributionMixin:
        return DiscretizedLogisticMass(loc, _scale(raw), self.levels)


class DiscretizedLogisticMixture(Family):
    """p(image) = prod over pixels of a mixture of discretised logistics, whose channels depend on earlier channels.

    The location of channel c is m_c + sum_{j < c} tanh(a_cj) y_j, y_j the level of channel j on [-1, 1]; a pixel's
    channels share their component. x in {0, ..., levels - 1}: (*batch, C, H, W), event_shape (C, H, W).
    params: (*batch, Q, H, W) with Q = num_components (1 + 2 C + C (C - 1) / 2): 100 for 10 components of 3 channels.
    The locations of the components start apart. Raises ShapeError if the event is no image, and OptionError.
    Salimans et al. 2017, arXiv:1701.05517.
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
        # equal components would get equal gradients for ever
        apart = (2 * torch.arange(k, device=params.device) + 1 - k).to(params.dtype) / k
        loc = raw_loc + apart[:, None, None, None]
        coefficients = torch.tanh(per_component[..., 1 + 2 * c :, :, :])
        return Mixture(per_component[..., 0, :, :], loc, _scale(raw_scale), coefficients, self.levels)
