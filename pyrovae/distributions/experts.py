"""How the guide of several kinds of data joins what each of them says: by a product of experts, or a mixture of products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae._shapes import broadcast_shapes
from pyrovae.distributions.combine import experts_within, product_of_experts
from pyrovae.distributions.normals import MixtureOfNormals
from pyrovae.errors import PairError


class ProductOfExperts(nn.Module):
    """`q(z) = c prod_i q_i(z)` over the experts that have seen something: `product_of_experts` as a part of a model.

    Its forward method takes the experts, and for each of them which rows it has seen, as `product_of_experts` does.

    References:
        Wu and Goodman 2018, arXiv:1802.05335.

    Example:
        >>> import pyro.distributions as dist
        >>> prior, expert = (dist.Normal(m * torch.ones(3, 2), 1.0).to_event(1) for m in (0.0, 2.0))
        >>> pv.distributions.ProductOfExperts()([prior, expert], [None, torch.tensor([True, True, False])]).mean[:, 0]
        tensor([1., 1., 0.])
    """

    def __init__(self) -> None:  # without arguments, by which a run folder knows it
        super().__init__()

    def forward(self, experts: Sequence[Any], seen: Sequence[Tensor | None] | None = None) -> TorchDistribution:
        return product_of_experts(experts, seen)


class MixtureOfProducts(nn.Module):
    """`q(z) = (1/|S|) sum_(s in S) c_s q_0(z) prod_(i in s) q_i(z)`: a mixture over subsets s of the experts, each a product.

    S are the non-empty subsets of the experts that have seen something, with equal weights. Experts that count everywhere, as
    a prior does, are in each product; where no other has seen anything, their product is left, and where one alone has, the
    mixture is the product of experts. So each subset of the kinds of data learns to explain all of them, and an expert that is
    too sure of itself cannot overrule the others as it can in a product; but the mixture contains what single kinds say, and
    is wider than the posterior of a complete row. Its density is that of the whole mixture, and draws carry a gradient.

    Its forward method takes the experts, and for each of them which rows it has seen, boolean and `(*batch)`, or None for one
    that counts everywhere. M experts that may be missing have 2^M products. Without one that counts everywhere, a row of which
    no expert has seen anything has no distribution, and NaN for a density.

    Raises:
        PairError: There is no expert, one is not a Normal of vectors with independent elements, event shapes differ, or `seen`
            has another length, other rows, or an entry that is no boolean tensor; in the forward method.

    References:
        Sutter, Daunhawer and Vogt 2021, arXiv:2105.02470 (MoPoE). They train by a bound on this ELBO, with the mean of the KL
        terms of the products.

    Example:
        >>> import pyro.distributions as dist
        >>> prior, *experts = (dist.Normal(m * torch.ones(3, 1), 1.0).to_event(1) for m in (0.0, 2.0, -4.0))
        >>> seen = [None, torch.tensor([True, True, False]), torch.tensor([True, False, False])]
        >>> q = pv.distributions.MixtureOfProducts()([prior, *experts], seen)
        >>> q.mean.squeeze()  # of products with means 1, -2 and -2/3; with mean 1; of the prior
        tensor([-0.5556,  1.0000,  0.0000])
    """

    def __init__(self) -> None:  # without arguments, by which a run folder knows it
        super().__init__()

    def forward(self, experts: Sequence[Any], seen: Sequence[Tensor | None] | None = None) -> TorchDistribution:
        normals, counts = experts_within("MixtureOfProducts", experts, seen)
        if any(rows is not None and rows.is_floating_point() for rows in counts):
            raise PairError(
                "In a mixture an expert is a member of a product or it is not: give booleans as `seen`, such as weights > 0. "
                "Experts that count in part are for product_of_experts."
            )
        if len(experts[0].event_shape) != 1:
            raise PairError(
                f"MixtureOfProducts needs experts of vectors, got event_shape {tuple(experts[0].event_shape)}: give the family "
                "Normal(L) a number L."
            )
        optional = sum(rows is not None for rows in counts)
        # subsets as numbers, whose bits are the members; the empty one is a product only with an expert that is always there
        first = 1 if optional == len(counts) else 0
        subsets = torch.arange(first, 2**optional, device=normals[0].loc.device)
        precision, weighted = torch.zeros(()), torch.zeros(())
        possible = nothing = torch.ones_like(subsets, dtype=torch.bool)
        bit = 0
        for one, rows in zip(normals, counts):
            own = one.scale.square().reciprocal().unsqueeze(-2)  # (*batch, 1, L)
            if rows is not None:
                member, there = (subsets >> bit) % 2 == 1, rows.bool().unsqueeze(-1)
                possible, nothing = possible & (there | ~member), nothing & ~there
                own, bit = own * member.unsqueeze(-1).to(own.dtype), bit + 1
            precision, weighted = precision + own, weighted + own * one.loc.unsqueeze(-2)
        possible = torch.where(subsets == 0, nothing, possible)
        batch = broadcast_shapes(possible.shape, precision.shape[:-1])
        logits = torch.zeros_like(possible, dtype=precision.dtype).masked_fill(~possible, -torch.inf)
        wide = (*batch, precision.shape[-1])
        return MixtureOfNormals(
            logits.expand(batch), (weighted / precision).expand(wide), precision.rsqrt().expand(wide)
        )
