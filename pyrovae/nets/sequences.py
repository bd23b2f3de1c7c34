"""Networks of sequences: what their rest says at each step, and a step of a chain."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae.nets.mlp import as_length


class BackwardGRU(nn.Module):
    """`h_t = GRU(h_(t+1), [x_t, m_t])`: what x_t and all that follows say, for every t.

    A gap is zero in x_t, and so is its entry of the mask m_t, `1[x_t is observed]`. It begins at the last step of which
    something is observed, so that h does not depend on how many empty steps follow a sequence; at these, h_t is zero.

    Args:
        in_features: D, the size of x_t.
        width: H, the size of h_t.

    Raises:
        ShapeError: A number is not a positive int.

    References:
        Cho et al. 2014, arXiv:1406.1078. Krishnan, Shalit and Sontag 2017, arXiv:1609.09869, section 4.

    Example:
        >>> net = pv.nets.BackwardGRU(3, 8)
        >>> net(torch.zeros(5, 7, 3)).shape
        torch.Size([5, 7, 8])
    """

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.in_features, self.width = as_length("in_features", in_features), as_length("width", width)
        self.gru = nn.GRU(2 * self.in_features, self.width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        missing = torch.isnan(x)
        both = torch.cat([torch.where(missing, torch.zeros_like(x), x), (~missing).to(x.dtype)], -1)
        more = anything_from(x)
        # in the order of reading: the steps of a sequence from its end, and then what follows it
        last, t = more.sum(1, keepdim=True), torch.arange(x.shape[1], device=x.device)
        order = torch.where(more, last - 1 - t, t)[..., None]
        h: Tensor = self.gru(both.gather(1, order.expand_as(both)))[0]
        return torch.where(more[..., None], h.gather(1, order.expand_as(h)), 0.0)


class GatedStep(nn.Module):
    """`m = (1 - g) (A z + b) + g f(z)` and `s = C f(z) + d`: a step that is linear where the gate `g(z)` is closed.

    It starts at `A = I`, so that a value stays nearly as it is. Output `(*batch, 2, L)`: m and s, the parameters of the family
    `Normal(L)`.

    Args:
        size: L, the size of z.
        hidden: The width of the hidden layers of f and g.

    Raises:
        ShapeError: A number is not a positive int.

    References:
        Krishnan, Shalit and Sontag 2017, arXiv:1609.09869, section 5.

    Example:
        >>> step = pv.Conditional(pv.nets.GatedStep(2, 8), fam.Normal(2))
        >>> step(torch.zeros(5, 2)).event_shape
        torch.Size([2])
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.size, self.hidden = size, hidden = as_length("size", size), as_length("hidden", hidden)
        self.out_shape = torch.Size((2, size))
        self.gate = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, size))
        self.proposed = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, size))
        self.linear, self.scale = nn.Linear(size, size), nn.Linear(size, size)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(size))
            self.linear.bias.zero_()

    def forward(self, z: Tensor) -> Tensor:
        gate, proposed = torch.sigmoid(self.gate(z)), self.proposed(z)
        loc = (1 - gate) * self.linear(z) + gate * proposed
        return torch.stack([loc, self.scale(F.relu(proposed))], -2)


def anything_from(x: Tensor) -> Tensor:
    """`1[some entry of x_t, ..., x_T is not NaN]`, for every step t of every row.

    Args:
        x: Sequences, `(N, T, D)`.

    Returns:
        `(N, T)`, boolean.

    Example:
        >>> nan = float("nan")
        >>> pv.nets.anything_from(torch.tensor([[[nan], [1.0], [nan]]]))
        tensor([[ True,  True, False]])
    """
    seen = (~torch.isnan(x)).any(-1).to(torch.int8)
    return seen.flip(1).cumsum(1).flip(1) > 0
