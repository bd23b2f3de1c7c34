"""Families for ordered classes."""

import math
from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae._arguments import as_choice
from pyrovae.distributions.categorical import Categorical
from pyrovae.distributions.numerics import log1mexp
from pyrovae.families.base import Elementwise, positive, soft_exp


class OrderedLogistic(Elementwise):
    """`P(x_d <= k) = s((c_dk - e_d) / t_d)`, s the logistic function: ordered classes k = 0, ..., C - 1, such as grades.

    Parameters `(*batch, P, *event_shape)`: the predictor e, and with `scale="net"` the scale t, between 1/e and e, by
    `log t = tanh(raw / 2)`; else t = 1 and P = 1. Rows `(*batch, *event_shape)`: class numbers. The cutpoints
    `c_d0 < c_d1 < ...` of each element are learned, as the first one and softplus gaps of at least 1e-4. At the start all
    classes are equally probable at e = 0 and t = 1.

    With a scale of its own a row may be sure of a grade in the middle, or prefer both ends, which e alone cannot say.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.
        num_classes: The number of classes C.
        scale: "column", one for all rows, which the cutpoints then are in units of; or "net", one for each row.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.
        OptionError: `num_classes` is not an int of at least 2, or `scale` is unknown.

    References:
        McCullagh 1980, Journal of the Royal Statistical Society B 42(2), with the scale in section 6.

    Example:
        >>> family = fam.OrderedLogistic((), num_classes=4)
        >>> family(torch.zeros(1)).probs.detach()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
        >>> grader = pv.mlp(784, family, hidden=(16,))
        >>> grader(torch.zeros(5, 784)).sample().shape
        torch.Size([5])
    """

    raw_gaps: Tensor

    def __init__(self, event_shape: int | Sequence[int], num_classes: int, scale: str = "column") -> None:
        super().__init__(event_shape)
        self.num_classes = positive(self, "num_classes", num_classes, least=2)
        self.scale = as_choice("scale of OrderedLogistic", scale, ("column", "net"))
        self.num_params = 2 if self.scale == "net" else 1
        start = torch.logit(torch.arange(1, num_classes, dtype=torch.float64) / num_classes)
        gaps = torch.log(torch.expm1(start.diff() - 1e-4)).to(torch.get_default_dtype())
        own = {"memory_format": torch.contiguous_format}  # a clone alone keeps a stride of 0 where there is one element
        self.first = nn.Parameter(start[0].to(gaps.dtype).expand(self.event_shape).clone(**own))
        several = nn.Parameter(gaps.expand(*self.event_shape, -1).clone(**own)) if num_classes > 2 else None
        self.register_parameter("raw_gaps", several)

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Set the cutpoints so that at e = 0 each class is as probable as it is frequent among rows.

        Half a row is added to the count of each class, so that one that does not occur has a place, too. Cutpoints far from
        where they belong take a fit hundreds of steps to move.

        Args:
            x: Rows of class numbers, `(N, *event_shape)`; NaN is missing.

        Example:
            >>> family = fam.OrderedLogistic((), num_classes=2)
            >>> family.start_from(torch.tensor([0.0, 1.0, 1.0, 1.0, torch.nan]))
            >>> family(torch.zeros(1)).probs.detach()
            tensor([0.3000, 0.7000])
        """
        counts = torch.stack([(x == k).double().sum(0) for k in range(self.num_classes)], -1) + 0.5  # (*event_shape, C)
        shares = counts.cumsum(-1)[..., :-1] / counts.sum(-1, keepdim=True)
        cutpoints = torch.logit(shares).to(self.first.device)
        self.first.copy_(cutpoints[..., 0])
        if self.num_classes > 2:
            gaps = (cutpoints.diff() - 1e-4).clamp_min(1e-4)
            self.raw_gaps.copy_(gaps + torch.log(-torch.expm1(-gaps)))  # the inverse of softplus

    def cutpoints(self) -> tuple[Tensor, Tensor]:
        """The cutpoints and the gaps between them.

        Returns:
            c, `(*event_shape, C - 1)`, and its differences, `(*event_shape, C - 2)`.
        """
        first = self.first.unsqueeze(-1)
        if self.num_classes == 2:
            return first, first[..., :0]
        gaps = F.softplus(self.raw_gaps) + 1e-4
        return torch.cat([first, first + gaps.cumsum(-1)], -1), gaps

    def link(self, predictor: Tensor, raw_scale: Tensor | None = None) -> TorchDistributionMixin:
        cutpoints, gaps = self.cutpoints()
        above = cutpoints - predictor.unsqueeze(-1)
        if raw_scale is not None:
            precision = soft_exp(-raw_scale / 2, math.e).unsqueeze(-1)
            above, gaps = above * precision, gaps * precision
        # log(s(c_k - e) - s(c_{k-1} - e)) as in `log_sigmoid_difference`, leaving out the infinite outer cutpoints
        at_most = F.pad(F.logsigmoid(above) + F.pad(log1mexp(gaps), (1, 0)), (0, 1))
        return Categorical(logits=at_most + F.pad(F.logsigmoid(-above), (1, 0)))

    def features(self, x: Tensor) -> Tensor:
        """Class numbers brought to [-1, 1], of the shape of x."""
        return 2 * x / (self.num_classes - 1) - 1
