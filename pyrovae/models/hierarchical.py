"""A hierarchy of latent variables whose guide infers each level from the one below."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae._arguments import MOST_LAYERS, as_count, as_widths, told
from pyrovae.conditionals import Conditional, mlp
from pyrovae.errors import OptionError, PairError, ShapeError
from pyrovae.families import Family, Normal
from pyrovae.families.base import as_family
from pyrovae.priors import StandardNormal, as_prior


class HierarchicalVAE(nn.Module):
    """Hierarchical VAE: model `p(z_L) p(z_(L-1)|z_L) ... p(x|z_1)`, guide `q(z_1|x) q(z_2|z_1) ... q(z_L|z_(L-1))`.

    The data are x, `(N, *event)`. The sites are `z1`, next to the data, to `zL` at the top. The guide goes from the bottom up.
    With one level it is a `VAE`.

    Args:
        prior: `p(z_L)`, a distribution, or a module whose `forward()` returns one.
        lower: L - 1 conditionals from the data upwards: `lower[l - 1](z_(l+1))` is `p(z_l|z_(l+1))`.
        likelihood: `p(x|z_1)`, a conditional called as `likelihood(z_1)`.
        encoders: L conditionals from the data upwards: `encoders[0](x)` is `q(z_1|x)`, and `encoders[l](z_l)` is
            `q(z_(l+1)|z_l)`.

    Raises:
        PairError: The lengths of `lower` and `encoders` do not match, or `prior` is neither a distribution nor a module.

    References:
        Rezende, Mohamed and Wierstra 2014, arXiv:1401.4082; Burda, Grosse and Salakhutdinov 2016, arXiv:1509.00519.

    Example:
        >>> pair = pv.HierarchicalVAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     lower=[pv.mlp(2, fam.Normal(4), hidden=(8,))],
        ...     likelihood=pv.mlp(4, fam.Bernoulli(6), hidden=(8,)),
        ...     encoders=[pv.mlp(6, fam.Normal(4), hidden=(8,)), pv.mlp(4, fam.Normal(2), hidden=(8,))],
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(pair, x, epochs=1, engine="eager", progress=False)
        >>> pv.encode(fitted, x, site="z2").shape
        torch.Size([40, 2])
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
        levels: int | Sequence[int] = (100, 50),
        hidden: int | Sequence[int] = (200, 100),
        layers: int = 2,
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> HierarchicalVAE:
        """A hierarchy of diagonal Normals with perceptrons between the levels.

        The defaults are the two stochastic layers of Burda et al., D-200-200-100-100-100-50.

        Args:
            family: The family of x given z_1, for rows of event shape `(D,)`.
            levels: Dimensions of z_1, ..., z_L, from the data upwards; an int for one level.
            hidden: Width of the hidden layers between each level and the one below it (x for the first), in either direction;
                an int for one level.
            layers: Number of hidden layers between two levels.
            activation: Builds the activation after each hidden layer.

        Returns:
            A `HierarchicalVAE`.

        Raises:
            ShapeError: `levels` and `hidden` have different lengths, or the event of `family` is not a vector.
            OptionError: `levels` or `hidden` holds something else than positive ints, or another argument cannot be.

        Example:
            >>> pair = pv.HierarchicalVAE.of_levels(fam.Bernoulli(6), levels=(4, 2), hidden=(8, 8))
            >>> len(pair.lower), len(pair.encoders)
            (1, 2)
        """
        levels, hidden, layers = as_levels(family, levels, hidden, layers)
        below, widths = (family.event_shape[0], *levels[:-1]), [(width,) * layers for width in hidden]
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
    """Raise PairError unless `lower` has one conditional fewer than there are levels, and each other list one per level."""
    for name, parts in {"lower": lower, **others}.items():
        if not isinstance(parts, Iterable) or not all(isinstance(one, nn.Module) for one in parts):
            raise PairError(f"{name} of a hierarchy is a list of modules, from the data upwards, got {told(parts)}.")
    wanted = len(lower) + 1
    if any(len(parts) != wanted for parts in others.values()):
        got = ", ".join(f"{len(parts)} {name}" for name, parts in {"lower": lower, **others}.items())
        raise PairError(
            f"A hierarchy of L levels needs L - 1 conditionals in lower and L in {' and in '.join(others)}, got {got}. "
            "List them from the data upwards."
        )


def as_levels(
    family: Family, levels: int | Sequence[int], hidden: int | Sequence[int], layers: int
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The dimensions of the levels, their widths and their numbers of layers, as `of_levels` takes them.

    Raises:
        OptionError: One is no positive int.
        ShapeError: They disagree, or the family is not one of vectors.
    """
    event = getattr(as_family(family), "event_shape", ())
    levels, hidden = as_widths("levels", levels, one="level"), as_widths("hidden", hidden, one="level")
    if not levels or len(levels) != len(hidden) or len(event) != 1:
        raise ShapeError(
            "of_levels needs a family of vectors, such as Bernoulli(784), and as many hidden widths as levels, got "
            f"{family}, levels={levels} and hidden={hidden}. Flatten images, or call the constructor."
        )
    return levels, hidden, as_count("layers", layers, most=MOST_LAYERS)


def normals(
    parents: Sequence[int],
    children: Sequence[int],
    widths: Sequence[tuple[int, ...]],
    activation: Callable[[], nn.Module],
    head: Callable[[Conditional], Conditional] | None = None,
) -> list[Conditional]:
    """`p(child | parent)`, a diagonal Normal of a perceptron, for each pair of sizes."""
    made = [mlp(n, Normal(m), width, activation) for n, m, width in zip(parents, children, widths)]
    if head is None:
        return made
    changed = [head(one) for one in made] if callable(head) else []
    if len(changed) < len(made) or not all(isinstance(one, nn.Module) for one in changed):
        raise OptionError(
            f"head takes a conditional and returns one, such as pv.batch_normed, and {head!r} does not: for options of "
            "pv.batch_normed use functools.partial."
        )
    return changed
