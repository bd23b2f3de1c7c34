"""The ladder: a hierarchy whose guide goes down the levels as the model does, and corrects it by what it saw on the way up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.conditionals import mlp
from pyrovae.distributions import product_of_normals
from pyrovae.families import Family
from pyrovae.models.hierarchical import check_levels, check_sizes, normals
from pyrovae.nets import MLP, Activated, LayerNormed
from pyrovae.priors import StandardNormal, as_prior


class LadderVAE(nn.Module):
    """p(zL) p(zL-1|zL) ... p(x|z1) with guide q(zL|x) q(zL-1|x,zL) ... q(z1|x,z2), top down. x: (N, *event).

    Upwards without a draw: d_l = upward[l - 1](d_{l-1}), d_0 = x. Then q(zL|x) = evidence[L - 1](d_L), and q(z_l|x,z_{l+1}) is
    the normalised product of the evidence N(z_l; d_l) = evidence[l - 1](d_l) and the model's own p(z_l|z_{l+1}) =
    lower[l - 1](z_{l+1}), precisions added. `upward` are L networks, `evidence` L conditionals and `lower` L - 1, else
    PairError; below the top evidence and lower give Normals of independent elements, else PairError when they meet.
    Model and guide draw in one order, so Trace_ELBO(kl="analytic") goes with it.
    Sonderby, Raiko, Maaloe, Sonderby & Winther 2016, arXiv:1602.02282.
    """

    def __init__(
        self,
        prior: nn.Module | Distribution,
        lower: Sequence[nn.Module],
        likelihood: nn.Module,
        upward: Sequence[nn.Module],
        evidence: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        check_levels(lower=lower, upward=upward, evidence=evidence)
        self.prior, self.likelihood = as_prior(prior), likelihood
        self.lower, self.upward, self.evidence = map(nn.ModuleList, (lower, upward, evidence))

    @classmethod
    def of_levels(
        cls,
        family: Family,
        levels: Sequence[int] = (64, 32, 16, 8, 4),
        hidden: Sequence[int] = (512, 256, 128, 64, 32),
        layers: int = 2,
        activation: Callable[[], nn.Module] = LayerNormed(nn.LeakyReLU),  # it has no state  # noqa: B008
    ) -> LadderVAE:
        """Diagonal Normals of perceptrons: z_l has levels[l - 1] dimensions, x | z1 is of `family`, rows of event_shape (D,).

        Level l has `layers` hidden layers of hidden[l - 1] units on the way up, whose last d_l the evidence reads by one
        linear layer, and as many on the way down. The defaults are the widths of the paper, with layer in place of batch
        normalisation, without which it hardly learns, and a leak of 0.01, not 0.1. Raises ShapeError.
        """
        below = check_sizes(family, levels, hidden)
        widths = [(width,) * layers for width in hidden]
        seen = zip((below[0], *hidden), hidden, widths)
        return cls(
            prior=StandardNormal(levels[-1]),
            lower=normals(levels[1:], levels[:-1], widths[1:], activation),
            likelihood=mlp(levels[0], family, widths[0], activation),
            upward=[Activated(MLP(n, m, width[1:], activation), activation) for n, m, width in seen],
            evidence=normals(hidden, levels, [()] * len(levels), activation),
        )

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            z = pyro.sample(f"z{len(self.evidence)}", self.prior())  # the top, (N, L)
            for level in range(len(self.lower), 0, -1):
                z = pyro.sample(f"z{level}", self.lower[level - 1](z))
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        evidence, d = [], x
        for upward, seen in zip(self.upward, self.evidence):
            d = upward(d)
            evidence.append(seen(d))
        with pyro.plate("data", len(x)):
            z = pyro.sample(f"z{len(evidence)}", evidence[-1])
            for level in range(len(self.lower), 0, -1):
                z = pyro.sample(f"z{level}", product_of_normals(evidence[level - 1], self.lower[level - 1](z)))
            return z
