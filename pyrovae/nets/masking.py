"""Which entries of a row are observed, as a function of their own values."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae.errors import OptionError


class SelfMasking(nn.Module):
    """`l_d = a_d (x_d - b_d)`: log-odds that entry d of a row is observed, which depend on its own value alone.

    Input `(*batch, *event_shape)`, output `(*batch, 1, *event_shape)`, the parameters of the family Bernoulli.

    Args:
        event_shape: The shape of a row, such as D or (D,).
        missing: "high" if high values are known to be missing more often, `a_d < 0`; "low" if low ones are, `a_d > 0`; None
            if nothing is known of the sign of a_d.

    Raises:
        OptionError: `missing` is something else.

    References:
        Ipsen, Mattei and Frellsen 2021, arXiv:2006.12871.

    Example:
        >>> net = pv.nets.SelfMasking(2, missing="high")
        >>> low, high = net(torch.tensor([[-3.0, 0.0], [3.0, 0.0]]))[:, 0, 0]
        >>> bool(low > high)
        True
    """

    def __init__(self, event_shape: int | tuple[int, ...], missing: str | None = None) -> None:
        super().__init__()
        if missing not in ("high", "low", None):
            raise OptionError(f"missing must be 'high', 'low' or None, got {missing!r}.")
        self.event_shape, self.missing = event_shape, missing
        shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        self.out_shape = torch.Size((1, *shape))
        self.slope = nn.Parameter(torch.zeros(shape))
        self.threshold = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        slope = self.slope if self.missing is None else F.softplus(self.slope)
        sign = -1 if self.missing == "high" else 1
        return (sign * slope * (x - self.threshold)).unsqueeze(-len(self.out_shape))


class MaskChannel(nn.Module):
    """`net([x_0, m])` with 0 for NaN in x_0 and m = 1[x is observed] as further channels: for encoders of images with holes.

    Args:
        net: A network of images of 2 C channels, such as `ConvEncoder((2 * C, H, W), ...)`; the output is its own.

    Example:
        >>> net = pv.nets.MaskChannel(pv.nets.ConvEncoder((2, 8, 8), 3))
        >>> image = torch.zeros(5, 1, 8, 8)
        >>> image[:, :, 2:4] = float("nan")
        >>> bool(net(image).isfinite().all())
        True
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.out_shape = getattr(net, "out_shape", None)

    def forward(self, x: Tensor) -> Tensor:
        missing = torch.isnan(x)
        both = torch.cat([torch.where(missing, x.new_zeros(()), x), (~missing).to(x.dtype)], -3)
        result: Tensor = self.net(both)
        return result
