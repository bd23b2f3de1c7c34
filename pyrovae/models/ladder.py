"""The ladder VAE: a hierarchy whose guide goes down the levels as the model does, and corrects it by evidence from x."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.conditionals import Conditional, mlp
from pyrovae.distributions import product_of_normals
from pyrovae.families import Family
from pyrovae.models.hierarchical import as_levels, check_levels, normals
from pyrovae.nets import MLP, Activated, LayerNormed
from pyrovae.priors import StandardNormal, as_prior


class LadderVAE(nn.Module):
    """Ladder VAE: model `p(z_L) p(z_(L-1)|z_L) ... p(x|z_1)`, guide `q(z_L|x) q(z_(L-1)|x,z_L) ... q(z_1|x,z_2)`.

    The data are x, `(N, *event)`. The sites are `z1`, next to the data, to `zL` at the top. A deterministic network first
    goes up: `d_0 = x`, `d_l = upward[l - 1](d_(l-1))`. Then the guide goes down: `q(z_L|x) = evidence[L - 1](d_L)`, and below
    the top `q(z_l|x,z_(l+1))` is the normalised product of the Normals `evidence[l - 1](d_l)` and `p(z_l|z_(l+1))`, whose
    precisions add. Model and guide draw in the same order, so that `Trace_ELBO(kl="analytic")` applies.

    Args:
        prior: `p(z_L)`, a distribution, or a module whose `forward()` returns one.
        lower: L - 1 conditionals from the data upwards: `lower[l - 1](z_(l+1))` is `p(z_l|z_(l+1))`, a diagonal Normal.
        likelihood: `p(x|z_1)`, a conditional called as `likelihood(z_1)`.
        upward: L networks from the data upwards.
        evidence: L conditionals from the data upwards, called as `evidence[l - 1](d_l)`; diagonal Normals below the top.

    Raises:
        PairError: The lengths of the lists do not match, or `prior` is neither a distribution nor a module; raised by the guide
            where a level below the top is not a diagonal Normal.

    References:
        Sønderby, Raiko, Maaløe, Sønderby and Winther 2016, arXiv:1602.02282.

    Example:
        >>> pair = pv.LadderVAE.of_levels(fam.Bernoulli(6), levels=(4, 2), hidden=(8, 8), layers=1)
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> loss = pv.Trace_ELBO(kl="analytic")
        >>> fitted = pv.fit(pair, x, loss=loss, epochs=1, engine="eager", progress=False)
        >>> pv.encode(fitted, x, site="z2").shape
        torch.Size([40, 2])
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
        levels: int | Sequence[int] = (64, 32, 16, 8, 4),
        hidden: int | Sequence[int] = (512, 256, 128, 64, 32),
        layers: int = 2,
        activation: Callable[[], nn.Module] = LayerNormed(nn.LeakyReLU),  # stateless  # noqa: B008
        head: Callable[[Conditional], Conditional] | None = None,
    ) -> LadderVAE:
        """A ladder of diagonal Normals with perceptrons between the levels.

        The defaults are the widths of the paper. The activation has layer normalisation in place of the paper's batch
        normalisation, without which the ladder hardly learns, and a leak of 0.01 instead of 0.1.

        Args:
            family: The family of x given z_1, for rows of event shape `(D,)`.
            levels: Dimensions of z_1, ..., z_L, from the data upwards; an int for one level.
            hidden: Width of the hidden layers of each level, on the way up and on the way down; an int for one level. The
                evidence of a level is a linear function of its last hidden layer on the way up.
            layers: Number of hidden layers of each level in each direction.
            activation: Builds the activation after each hidden layer.
            head: Applied to each conditional between the levels, and to the evidence. With `pv.batch_normed`, and
                `nets.BatchNormed(nn.LeakyReLU)` as activation, locations and scales are normalised as in the paper's code, and
                more levels are used; after the fit, `pv.recompute_statistics` takes the statistics of all rows.

        Returns:
            A `LadderVAE`.

        Raises:
            OptionError: `levels` or `hidden` holds something else than positive ints, `head` does not make a module of a
                conditional, or another argument cannot be.
            ShapeError: `levels` and `hidden` have different lengths, or the event of `family` is not a vector.

        Example:
            >>> pair = pv.LadderVAE.of_levels(fam.Bernoulli(6), levels=(4, 2), hidden=(8, 8))
            >>> len(pair.lower), len(pair.upward), len(pair.evidence)
            (1, 2, 2)
        """
        levels, hidden, layers = as_levels(family, levels, hidden, layers)
        widths = [(width,) * layers for width in hidden]
        seen = zip((family.event_shape[0], *hidden), hidden, widths)
        return cls(
            prior=StandardNormal(levels[-1]),
            lower=normals(levels[1:], levels[:-1], widths[1:], activation, head),
            likelihood=mlp(levels[0], family, widths[0], activation),
            upward=[Activated(MLP(n, m, width[1:], activation), activation) for n, m, width in seen],
            evidence=normals(hidden, levels, [()] * len(levels), activation, head),
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
