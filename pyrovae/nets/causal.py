"""A transformer in which each place of a sequence sees only those before it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae.errors import OptionError
from pyrovae.nets.mlp import as_length


class _Block(nn.Module):
    """`h + attention(norm(h))`, then `h + mlp(norm(h))`; the mask lets place i see places 0 to i."""

    unseen: Tensor

    def __init__(self, length: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.register_buffer("unseen", torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        n = h.shape[-2]
        q, k, v = self.qkv(self.norms[0](h)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        scores = (q @ k.mT) * q.shape[-1] ** -0.5  # (N, heads, n, n)
        weights = scores.masked_fill(self.unseen[:n, :n], -torch.inf).softmax(-1)
        h = h + self.out((weights @ v).transpose(-2, -3).flatten(-2))
        changed: Tensor = h + self.mlp(self.norms[1](h))
        return changed


class CausalTransformer(nn.Module):
    """Logits of the next class at each place of a sequence, `f_i(k_0, ..., k_(i-1))`: a decoder-only transformer.

    Input: class numbers `(*batch, n)` with n at most `length`; output `(*batch, n, num_classes)`. Row i of the output depends
    on what is before place i, and not on k_i itself. All logits start at 0, so that all classes are equally probable.

    Args:
        num_classes: Number of classes K.
        length: Length of the whole sequence.
        width: Number of features of a place.
        layers: Number of blocks of attention and perceptron.
        heads: Number of heads of the attention, which divides `width`.

    Raises:
        ShapeError: A number is not a positive int.
        OptionError: `heads` does not divide `width`.

    References:
        Vaswani et al. 2017, arXiv:1706.03762; Radford et al. 2019, *Language models are unsupervised multitask learners*
        (normalisation before each layer).

    Example:
        >>> net = pv.nets.CausalTransformer(5, length=4, width=8, layers=1, heads=2)
        >>> net(torch.tensor([[0, 4, 2, 1]])).shape
        torch.Size([1, 4, 5])
    """

    def __init__(self, num_classes: int, length: int, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.num_classes, self.length = as_length("num_classes", num_classes), as_length("length", length)
        self.width, self.layers, self.heads = map(as_length, ("width", "layers", "heads"), (width, layers, heads))
        if width % heads:
            raise OptionError(f"CausalTransformer needs heads that divide width={width}, got heads={heads}.")
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.embedding = nn.Embedding(num_classes, width)
        self.blocks = nn.Sequential(*(_Block(length, width, heads) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))
        with torch.no_grad():
            self.embedding.weight.mul_(0.02)
            for parameter in self.head[1].parameters():
                parameter.zero_()

    def forward(self, k: Tensor) -> Tensor:
        flat = k.reshape(-1, k.shape[-1])
        before = self.embedding(flat[:, :-1])
        h = F.pad(before, (0, 0, 1, 0)) + self.places[: flat.shape[1]]
        h = torch.cat([h[:, :1] + self.start, h[:, 1:]], 1)
        out: Tensor = self.head(self.blocks(h))
        return out.reshape(*k.shape, self.num_classes)
