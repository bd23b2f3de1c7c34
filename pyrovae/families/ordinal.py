"""Families of ordered classes."""

from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae.distributions.categorical import Categorical
from pyrovae.distributions.numerics import log1mexp
from pyrovae.families.base import Elementwise, positive


class OrderedLogistic(Elementwise):
    """P(x_d <= k) = s(c_dk - e_d) for ordered classes k = 0, ..., num_classes - 1; e the parameters, s the logistic function.

    The cutpoints c_d0 < c_d1 < ... of each dimension are learned: the first one, and softplus gaps of at least 1e-4.
    They start where e = 0 makes all classes equally probable. params: (*batch, 1, *event_shape); x, coded as integers:
    (*batch, *event_shape). Raises ShapeError, and OptionError if num_classes is not an int of at least 2.
    McCullagh 1980, Journal of the Royal Statistical Society B 42(2).
    """

    num_params = 1
    raw_gaps: Tensor

    def __init__(self, event_shape: int | Sequence[int], num_classes: int) -> None:
        super().__init__(event_shape)
        self.num_classes = positive(self, "num_classes", num_classes, least=2)
        start = torch.logit(torch.arange(1, num_classes, dtype=torch.float64) / num_classes)
        gaps = torch.log(torch.expm1(start.diff() - 1e-4)).to(torch.get_default_dtype())
        self.first = nn.Parameter(start[0].to(gaps.dtype).expand(self.event_shape).clone())
        several = nn.Parameter(gaps.expand(*self.event_shape, -1).clone()) if num_classes > 2 else None
        self.register_parameter("raw_gaps", several)

    def cutpoints(self) -> tuple[Tensor, Tensor]:
        """c: (*event_shape, num_classes - 1), and the gaps between them, (*event_shape, num_classes - 2)."""
        first = self.first.unsqueeze(-1)
        if self.num_classes == 2:
            return first, first[..., :0]
        gaps = F.softplus(self.raw_gaps) + 1e-4
        return torch.cat([first, first + gaps.cumsum(-1)], -1), gaps

    def link(self, predictor: Tensor) -> TorchDistributionMixin:
        cutpoints, gaps = self.cutpoints()
        above = cutpoints - predictor.unsqueeze(-1)
        # log(s(c_k - e) - s(c_{k-1} - e)) as in `log_sigmoid_difference`, without the ends that are infinite
        at_most = F.pad(F.logsigmoid(above) + F.pad(log1mexp(gaps), (1, 0)), (0, 1))
        return Categorical(logits=at_most + F.pad(F.logsigmoid(-above), (1, 0)))
