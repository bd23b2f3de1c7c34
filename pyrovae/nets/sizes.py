"""Networks around counts whose rows differ in size, such as cells sequenced at different depths."""

import math

import torch
from torch import Tensor, nn

from pyrovae._arguments import MOST, as_count, as_number
from pyrovae.errors import ShapeError


class SizeFactor(nn.Module):
    """Means `s D softmax(net(z, ...))` of counts, `log s = a + b z_k`: one latent dimension is the size of a row.

    The parameters of families of unbounded counts, `(*batch, P, D)`, begin with the log-means of the columns. Here those of the
    network only say how a row's total is shared among them, and s, the mean of the D means, is how large it is. With
    z_k ~ N(0, 1), and a and b the mean and standard deviation of the log-sizes of the data, rows drawn from the model differ in
    size as the data do from the first step on. With `parent=1` the size is not latent but given, as a condition.

    Args:
        net: A decoder's network, whose output is `(*batch, P, D)`; parents are its own.
        centre: a, the logarithm of the size of a row with z_k = 0.
        spread: b.
        parent: Which of the parents holds the size: 0 is the first.
        place: k, the place in that parent, counted from 0, or from the end if negative.

    Raises:
        OptionError: A number is none, or `spread` is not positive.
        ShapeError: A call's parent has no such place.

    References:
        Lopez et al. 2018, doi:10.1038/s41592-018-0229-2, where the size is a latent variable with a log-normal prior.

    Example:
        >>> family = fam.NegativeBinomial(300)
        >>> net = pv.nets.SizeFactor(pv.nets.MLP(4, family.param_shape), centre=2.0, spread=0.5)
        >>> decoder = pv.Conditional(net, family)
        >>> z = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
        >>> decoder(z).mean.mean(-1).log().detach()
        tensor([2.0000, 3.0000])
    """

    def __init__(
        self, net: nn.Module, centre: float = 0.0, spread: float = 1.0, parent: int = 0, place: int = 0
    ) -> None:
        super().__init__()
        self.net, self.centre, self.spread = net, as_number("centre", centre), as_number("spread", spread, above=0)
        self.parent, self.place = as_count("parent", parent, least=0), as_count("place", place, least=-MOST)
        self.out_shape = getattr(net, "out_shape", None)

    def forward(self, *parents: Tensor) -> Tensor:
        width = parents[self.parent].shape[-1] if self.parent < len(parents) else 0
        if not -width <= self.place < width:
            raise ShapeError(
                f"SizeFactor finds the size at place {self.place} of parent {self.parent}, and got parents of shapes "
                f"{[tuple(parent.shape) for parent in parents]}."
            )
        size = self.centre + self.spread * parents[self.parent][..., self.place]
        out: Tensor = self.net(*parents)
        shares = torch.log_softmax(out[..., :1, :], -1) + math.log(out.shape[-1])
        return torch.cat([shares + size[..., None, None], out[..., 1:, :]], -2)


class SizeFromTotal(nn.Module):
    """`net(x, ...)` with `(log(t / D) - a) / b` added to the first output: an encoder that starts with the size of a row.

    t is the total of a row of counts, to which missing cells (NaN) contribute as the others do on average; a and b are those of
    `SizeFactor`. The first output of a Normal's network is the mean of the first latent dimension.

    Args:
        net: An encoder's network; the parents, of which x is the first, and the output are its own.
        centre: a.
        spread: b.

    Raises:
        OptionError: A number is none, or `spread` is not positive.
        ShapeError: The network has no `out_shape`.

    Example:
        >>> net = pv.nets.SizeFromTotal(pv.nets.Log1p(pv.nets.MLP(3, (2, 4))), centre=0.0, spread=0.5)
        >>> x = torch.tensor([[1.0, 1.0, 1.0], [8.0, 4.0, 0.0]])
        >>> (net(x) - net.net(x))[:, 0, 0].detach()
        tensor([0.0000, 2.7726])
    """

    def __init__(self, net: nn.Module, centre: float = 0.0, spread: float = 1.0) -> None:
        super().__init__()
        self.net, self.centre, self.spread = net, as_number("centre", centre), as_number("spread", spread, above=0)
        self.out_shape = torch.Size(getattr(net, "out_shape", ()))
        if not self.out_shape:
            raise ShapeError(f"SizeFromTotal needs a network with an out_shape, and {type(net).__name__} has none.")

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        out: Tensor = self.net(x, *others)
        size = (log_size(x).to(out.dtype) - self.centre) / self.spread
        numbers = out.flatten(-len(self.out_shape))
        first = torch.zeros_like(numbers[..., :1]) + size.unsqueeze(-1)
        added = torch.cat([first, torch.zeros_like(numbers[..., 1:])], -1)
        return out + added.reshape(out.shape)


def log_size(x: Tensor) -> Tensor:
    """`log(t / D)` of rows of counts, `(*batch, D)`, whose total is t, at least half a count: `(*batch)`.

    Missing cells (NaN) are left out of total and number.

    Example:
        >>> from pyrovae.nets.sizes import log_size
        >>> log_size(torch.tensor([[1.0, 3.0], [float("nan"), 2.0]])).exp()
        tensor([2., 2.])
    """
    known = ~torch.isnan(x)
    number = known.sum(-1).clamp_min(1)
    total = torch.where(known, x, x.new_zeros(())).sum(-1).clamp_min(0.5)
    return torch.log(total / number)
