"""A hierarchy of latent variables, each level inferred from the one below."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.conditionals import Conditional, mlp
from pyrovae.errors import PairError, ShapeError
from pyrovae.families import Family, Normal
from pyrovae.priors import StandardNormal, as_prior


class HierarchicalVAE(nn.Module):
    """p(zL) p(zL-1|zL) ... p(z1|z2) p(x|z1) with guide q(z1|x) q(z2|z1) ... q(zL|zL-1), bottom up. x: (N, *event).

    z1 stands nearest the data. `lower` are L - 1 conditionals, lower[l - 1](z_{l+1}) = p(z_l | z_{l+1}), and `encoders` are L,
    encoders[0](x) = q(z1|x) and encoders[l](z_l) = q(z_{l+1}|z_l); else PairError. L = 1 is the `VAE`.
    Rezende, Mohamed & Wierstra 2014, arXiv:1401.4082; Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519.
    """

    def __init__(
        self,
        prior: nn.Module | Distribution,
        lower: Sequence[nn.Module],
        likelihood: nn.Module,
        encoders: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        check_levels(lower=lower, encoders=encoders)
        self.prior, self.likelihood = as_prior(prior), likelihood
        self.lower, self.encoders = nn.ModuleList(lower), nn.ModuleList(encoders)

    @classmethod
    def of_levels(
        cls,
        family: Family,
        levels: Sequence[int] = (100, 50),
        hidden: Sequence[int] = (200, 100),
        layers: int = 2,
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> HierarchicalVAE:
        """Diagonal Normals of perceptrons: z_l has levels[l - 1] dimensions, x | z1 is of `family`, rows of event_shape (D,).

        Between z_l and what stands below it, z_{l-1} or x, lie `layers` hidden layers of hidden[l - 1] units either way. The
        defaults are the two stochastic layers of Burda et al., D-200-200-100-100-100-50. Raises ShapeError.
        """
        below = check_sizes(family, levels, hidden)
        widths = [(width,) * layers for width in hidden]
        return cls(
            prior=StandardNormal(levels[-1]),
            lower=normals(levels[1:], levels[:-1], widths[1:], activation),
            likelihood=mlp(levels[0], family, widths[0], activation),
            encoders=normals(below, levels, widths, activation),
        )

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            z = pyro.sample(f"z{len(self.encoders)}", self.prior())  # the top, (N, L)
            for level in range(len(self.lower), 0, -1):
                z = pyro.sample(f"z{level}", self.lower[level - 1](z))
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            z = x
            for level, encoder in enumerate(self.encoders, 1):
                z = pyro.sample(f"z{level}", encoder(z))
            return z


def check_levels(lower: Sequence[nn.Module], **others: Sequence[nn.Module]) -> None:
    """PairError unless there is one of each other part for a level, and one conditional of `lower` between two levels."""
    wanted = len(lower) + 1
    if any(len(parts) != wanted for parts in others.values()):
        got = ", ".join(f"{len(parts)} {name}" for name, parts in {"lower": lower, **others}.items())
        raise PairError(
            f"A hierarchy of L levels needs L - 1 conditionals in lower and L in {' and in '.join(others)}, got {got}. "
            "List them from the data upwards."
        )


def check_sizes(family: Family, levels: Sequence[int], hidden: Sequence[int]) -> tuple[int, ...]:
    """The size of what stands below each level: that of x, and of all levels but the top. Raises ShapeError."""
    if not levels or len(levels) != len(hidden) or len(family.event_shape) != 1:
        raise ShapeError(
            "of_levels needs a family of vectors, as Bernoulli(784), and as many hidden widths as levels, got "
            f"{family}, levels={tuple(levels)} and hidden={tuple(hidden)}. Flatten images, or give the parts yourself."
        )
    return (family.event_shape[0], *levels[:-1])


def normals(
    parents: Sequence[int],
    children: Sequence[int],
    widths: Sequence[tuple[int, ...]],
    activation: Callable[[], nn.Module],
) -> list[Conditional]:
    """p(child | parent), diagonal Normals of perceptrons, for each parent."""
    return [mlp(n, Normal(m), width, activation) for n, m, width in zip(parents, children, widths)]
