"""Networks of rows with holes: which entries are observed, and encoders that see a part of a row."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae._arguments import as_choice, as_number
from pyrovae.errors import OptionError, ShapeError
from pyrovae.nets.mlp import as_size


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
        if missing is not None:
            as_choice("missing", missing, ("high", "low"), also=" or None")
        shape = as_size(event_shape)
        self.event_shape, self.missing = event_shape, missing
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


class RandomMask(nn.Module):
    """`net(x_s, *others)`: in training, an encoder sees a random part x_s of each row, and a fit asks it for the whole.

    At each visit a row loses entries, each with the same probability r, which is drawn for the row uniformly from 0 to `most`;
    they are NaN for the network. The likelihood is not touched: the bound of a fit is that of whole rows under the guide
    `q(z | x_s)`, averaged over the hidden entries, still a bound on log p(x), if one that is further away. In evaluation mode,
    in which all questions are asked, nothing is hidden.

    A guide with such a network is random elsewhere than at its sites, as with dropout, so that the gradients
    "sticking_the_landing" and "doubly_reparameterised" are not for it.

    Args:
        net: A network whose first parent is x with NaN in it, such as `WithMask` or `MaskChannel`; the output is its own.
        most: The largest share r, above 0 and at most 1.

    Raises:
        OptionError: `most` is no such number; or when first called in evaluation mode, as at the beginning of a fit: the
            network makes NaN of NaN.
        ShapeError: When called: x is not of floating-point numbers.

    References:
        Vincent, Larochelle, Bengio and Manzagol 2008, doi:10.1145/1390156.1390294 (what a part says of the whole). Im, Ahn,
        Memisevic and Bengio 2017, arXiv:1511.06406 (the bound under a corrupted guide).

    Example:
        >>> net = pv.nets.RandomMask(pv.nets.WithMask(pv.nets.MLP((4, 4), (2, 3))), most=0.5)
        >>> net(torch.ones(5, 4)).unique(dim=0).shape[0] > 1, net.eval()(torch.ones(5, 4)).unique(dim=0).shape[0]
        (True, 1)
    """

    def __init__(self, net: nn.Module, most: float = 0.5) -> None:
        super().__init__()
        self.net, self.most = net, as_number("most, the largest share of hidden entries,", most, above=0, most=1)
        self.out_shape = getattr(net, "out_shape", None)
        self._tried = False

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise ShapeError(f"RandomMask hides entries by NaN, which {x.dtype} does not have: give it x.float().")
        if self.training:
            one_a_row = (*x.shape[:1], *(1 for _ in x.shape[1:]))
            share = self.most * torch.rand(one_a_row, dtype=x.dtype, device=x.device)
            x = x.masked_fill(torch.rand_like(x) < share, torch.nan)
        elif not self._tried:
            self._tried = True
            if bool(self.net(torch.full_like(x, torch.nan), *others).isnan().any()):
                raise OptionError(
                    f"RandomMask hides entries by NaN, and {type(self.net).__name__} makes NaN of them: put WithMask or "
                    "MaskChannel between them, RandomMask(WithMask(MLP((D, D), ...)))."
                )
        result: Tensor = self.net(x, *others)
        return result
