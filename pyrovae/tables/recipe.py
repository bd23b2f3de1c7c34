"""A VAE for a table without settings: it starts as a Gaussian mixture of the numbers, and learns what that leaves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from pyrovae import families, nets, priors
from pyrovae._arguments import as_count, as_seed, as_widths
from pyrovae.conditionals import Conditional
from pyrovae.distributions import observed_only
from pyrovae.errors import OptionError
from pyrovae.models import CVAE, VAE
from pyrovae.pair.arrays import as_tensor
from pyrovae.tables.schema import Schema

KINDS = ("mixture", "flow", "normal")
COVARIANCES = {"full": ("full",), "any": ("full", "tied", "diag", "spherical")}
FLOOR = 1e-2  # of the noise of each number, in standard deviations
NOISE = 0.1  # of each number at the start, in standard deviations
LEAST_NOISE = 1.5 * FLOOR  # of a number at the start, where others determine it
MOST_COMPONENTS = 15
ROWS_EACH = 10  # for each component of which less is learned than a covariance
MOST_ROWS = 5000  # that it is started from
EM_STEPS = 30  # of the Normal by which gaps are filled before the mixture
MOST_EXTRA = 8  # latent dimensions for columns of classes


def vae(
    schema: Schema,
    rows: Tensor,
    *,
    latent: int | None = None,
    hidden: int | Sequence[int] = (64,),
    prior: str | nn.Module = "mixture",
    gaps: bool | None = None,
    ordered: bool = False,
    covariance: str = "full",
    narrow: bool = False,
    seed: int = 0,
) -> VAE:
    """A VAE for the rows of a table, `p(z) prod_d p(x_d | z)`, which starts as a Gaussian mixture of its numbers.

    The latent variable has a dimension for each column of numbers and up to eight more for columns of classes. The prior is a
    mixture of Normals with full covariances, at the start that of `GaussianMixture` with as many components as BIC finds best.
    The decoder starts by copying z to the numbers, plus noise, and the encoder by copying them back; what a mixture of Normals
    leaves, curved shapes, tails and the classes, is learned by networks beside the copies. So a fit starts near where a mixture
    ends: it differs by the noise, a tenth of a standard deviation, which has to shrink where rows lie closer to a shape.

    Args:
        schema: What the columns are.
        rows: Training rows, `(N, D)`, as `Schema.encode` gives them; NaN is missing.
        latent: The number of latent dimensions; by default as said.
        hidden: Widths of the hidden layers of both networks, at least one; an int for one.
        prior: "mixture"; "flow", the mixture behind a spline flow; "normal", N(0, I); or a prior of your own over as many
            dimensions.
        gaps: Whether cells may be missing; by default whether some of these rows have a gap.
        ordered: Whether the likelihood of ordinal columns is `OrderedLogistic`, which uses their order, with a scale for each
            row (`scale="net"`); else each value has a probability of its own.
        covariance: Of the mixture at the start: "full", or "any", where BIC also chooses among those that all components share,
            diagonal ones and multiples of the identity, as few rows of many columns need. They are learned as full ones.
        narrow: Whether a number that the others determine, or that has few values, starts with as little noise as the mixture
            leaves it, at least 1.5 hundredths of its standard deviation; of few rows a mixture is narrow by chance.
        seed: Seed of the mixture.

    Returns:
        A `VAE`. Missing cells are left out of its density, also of rows that come later; its encoder is told of them if the
        training rows have some.

    Raises:
        OptionError: `prior` or `covariance` is unknown.

    References:
        McLachlan and Peel 2000, *Finite Mixture Models*; Tomczak and Welling 2018, arXiv:1705.07120, on mixtures as priors.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"x": [0.1, 0.4, 1.2, 3.3, 2.9, 0.7], "y": [1.0, 1.3, 2.5, 7.1, 6.0, 1.4]})
        >>> schema = pv.tables.infer(table)
        >>> rows = schema.encode(table)
        >>> model = pv.tables.vae(schema, rows, hidden=(8,))
        >>> fitted = pv.fit(model, rows, epochs=2, engine="eager", progress=False, seed=0)
        >>> schema.decode(pv.generate(fitted, 3, seed=0)).columns.tolist()
        ['x', 'y']
    """
    rows, hidden = as_tensor("rows", rows), as_widths("hidden", hidden, some=True)
    family = schema.family(rows, floor=FLOOR, ordered=ordered, scale="net")
    n = len(schema.numbers)
    size = latent_size(schema) if latent is None else as_count("latent", latent, also=", or None")
    seed = as_seed(seed, least=0, most=2**32 - 1)
    if covariance not in COVARIANCES:
        raise OptionError(f"tables.vae needs covariance to be 'full' or 'any', got {covariance!r}.")
    copied = n if size >= n else 0
    seen = families.Features(family, mask=bool(rows.isnan().any()) if gaps is None else gaps)
    guide = families.FullNormal(size) if size > 1 else families.Normal(size)
    decoder = nets.Skip(nets.MLP(size, tuple(family.param_shape), hidden, nn.ELU), copied)
    encoder = nets.Skip(nets.MLP(seen.num_features, tuple(guide.param_shape), hidden, nn.ELU), copied)
    likelihood = Conditional(decoder, family)
    begun, noise = _prior(prior, size, _without_gaps(family.features(rows)[:, :copied], seed), seed, covariance, narrow)
    made = VAE(
        prior=begun,
        likelihood=observed_only(likelihood),
        encoder=Conditional(nets.Behind(seen, encoder), guide),
    )
    _name_columns(made, schema)
    if copied:
        _start_as_copies(decoder, encoder, size, noise)
    return made


def cvae(
    schema: Schema,
    rows: Tensor,
    condition: int,
    *,
    latent: int | None = None,
    hidden: int | Sequence[int] = (64,),
    gaps: bool | None = None,
    ordered: bool = False,
) -> CVAE:
    """A conditional VAE for the rows of a table, `p(z|c) prod_d p(x_d | z, c)`, which starts by copying the numbers.

    z has as many dimensions as in `vae`. The prior p(z|c) is a Normal whose mean and covariance are those of a network of c; at
    the start the decoder copies z to the numbers and the encoder copies them back, so that the prior's network learns how the
    numbers depend on c, and the others what that leaves.

    Args:
        schema: What the modelled columns are.
        rows: Training rows, `(N, D)`, as `Schema.encode` gives them; NaN is missing.
        condition: C, the size of c, `(N, C)`: numbers that networks take, such as `fam.Features(...)` makes of columns.
        latent: The number of latent dimensions; by default as said.
        hidden: Widths of the hidden layers of the networks, at least one; an int for one.
        gaps: Whether cells of x may be missing; by default whether some of these rows have a gap.
        ordered: As in `vae`.

    Returns:
        A `CVAE`.

    References:
        Sohn, Lee and Yan 2015, *Learning structured output representation using deep conditional generative models*.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"batch": list("abab" * 5), "x": np.arange(20.0), "y": np.arange(20.0) ** 2})
        >>> schema, conditions = pv.tables.infer(table[["x", "y"]]), pv.tables.infer(table[["batch"]])
        >>> x, given = schema.encode(table), conditions.encode(table)
        >>> c = fam.Features(conditions.family(given), mask=False)(given)
        >>> model = pv.tables.cvae(schema, x, c.shape[1], hidden=(8,))
        >>> fitted = pv.fit(model, {"x": x, "c": c}, epochs=2, engine="eager", progress=False, seed=0)
        >>> pv.generate(fitted, 3, given={"c": c[:3]}, seed=0).shape
        torch.Size([3, 2])
    """
    rows, hidden = as_tensor("rows", rows), as_widths("hidden", hidden, some=True)
    family = schema.family(rows, floor=FLOOR, ordered=ordered, scale="net")
    size = latent_size(schema) if latent is None else as_count("latent", latent, also=", or None")
    n, told = len(schema.numbers), as_count("condition", condition)
    copied = n if size >= n else 0
    seen = families.Features(family, mask=bool(rows.isnan().any()) if gaps is None else gaps)
    z_family = families.FullNormal(size) if size > 1 else families.Normal(size)
    decoder = nets.Skip(nets.MLP((size, told), tuple(family.param_shape), hidden, nn.ELU), copied)
    encoder = nets.Skip(nets.MLP((seen.num_features, told), tuple(z_family.param_shape), hidden, nn.ELU), copied)
    prior = nets.MLP(told, tuple(z_family.param_shape), hidden, nn.ELU)
    if copied:
        _start_as_copies(decoder, encoder, size, torch.full((copied,), NOISE))
    made = CVAE(
        condition=nn.Identity(),
        prior=Conditional(prior, z_family),
        likelihood=observed_only(Conditional(decoder, family)),
        encoder=Conditional(nets.Behind(seen, encoder), z_family),
    )
    _name_columns(made, schema)
    return made


def _name_columns(pair: Any, schema: Schema) -> None:
    """Tell the pair what its columns are called, which a fit of it keeps."""
    pair.column_names = {"x": list(schema.names)}


def latent_size(schema: Schema) -> int:
    """The number of latent dimensions of `vae`: one for each column of numbers, and up to eight more for those of classes."""
    return max(1, len(schema.numbers) + min(len(schema.classes), MOST_EXTRA))


def _without_gaps(numbers: Tensor, seed: int) -> Tensor:
    """Rows for the first mixture, `(N, D)`: each gap has a draw from a Normal of all columns given what the row has.

    Some `MOST_ROWS` rows are filled, and those without any entry left out. So the rows have the correlations of those observed.
    """
    if not bool(numbers.isnan().any()):
        return numbers
    random = torch.Generator().manual_seed(seed)
    x = numbers[torch.randperm(len(numbers), generator=random)[:MOST_ROWS]].double().cpu()
    x = x[~x.isnan().all(1)]
    filled, left = _given_the_rest(x, *normal_of_observed(x))
    values, vectors = torch.linalg.eigh(left)
    noise = torch.randn(len(x), x.shape[1], 1, generator=random, dtype=torch.float64)
    drawn = filled + (vectors @ (values.clamp_min(0).sqrt().unsqueeze(-1) * noise)).squeeze(-1)
    return torch.where(x.isnan(), drawn, x).to(numbers.dtype)


def normal_of_observed(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(D,)` and covariance `(D, D)` that make the observed entries of rows `(N, D)` most probable, by EM; NaN is missing.

    The covariance is that of the rows and one more, of variance 1 in each column, so that it has an inverse.

    References:
        Little and Rubin 2019, *Statistical Analysis with Missing Data*, chapter 11.
    """
    one = torch.eye(x.shape[1], dtype=x.dtype)
    mean, covariance = x.nanmean(0).nan_to_num(), one
    for _ in range(EM_STEPS):
        filled, left = _given_the_rest(x, mean, covariance)
        mean = filled.mean(0)
        covariance = ((filled - mean).mT @ (filled - mean) + left.sum(0) + one) / (len(x) + 1)
    return mean, covariance


def _given_the_rest(x: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """`E[x | observed]`, `(N, D)`, and `Cov[x | observed]`, `(N, D, D)`, of a Normal; NaN is missing."""
    known = (~x.isnan()).to(x.dtype)
    within = covariance * known.unsqueeze(-1) * known.unsqueeze(-2) + torch.diag_embed(1 - known)
    across = covariance * known.unsqueeze(-2)  # of all entries with the observed ones
    weights = torch.linalg.solve(within, across.mT).mT
    deviation = (x - mean).nan_to_num() * known
    return mean + (weights @ deviation.unsqueeze(-1)).squeeze(-1), covariance - weights @ across.mT


def _prior(
    kind: str | nn.Module, size: int, numbers: Tensor, seed: int, covariance: str, narrow: bool
) -> tuple[nn.Module, Tensor]:
    """The prior at the start, and the noise `(copied,)` with which the decoder copies its first dimensions to the numbers."""
    copied = numbers.shape[1]
    noise = torch.full((copied,), NOISE, dtype=torch.float64)
    if isinstance(kind, nn.Module):
        return kind, noise
    if kind not in KINDS:
        raise OptionError(
            f"tables.vae needs prior to be one of {', '.join(map(repr, KINDS))} or a module, got {kind!r}."
        )
    if kind == "normal":
        return priors.StandardNormal(size), noise
    if not copied:
        mixture = priors.MixtureOfNormals(size, covariance="full" if size > 1 else "diag")
    else:
        found = mixture_of(numbers, seed, COVARIANCES[covariance])
        k = found.n_components
        mixture = priors.MixtureOfNormals(size, k, covariance="full" if size > 1 else "diag")
        loc = torch.zeros(k, size, dtype=torch.float64)
        whole = torch.eye(size, dtype=torch.float64).repeat(k, 1, 1)
        loc[:, :copied] = torch.from_numpy(found.means_)
        each = _full(found)
        noise = _noise(each) if narrow else noise
        values, vectors = torch.linalg.eigh(each - noise.square().diag())  # the decoder's noise comes on top
        values = values.clamp_min((float(noise.min()) / 2) ** 2)
        whole[:, :copied, :copied] = (vectors * values.unsqueeze(-2)) @ vectors.mT
        mixture.start_from(torch.from_numpy(found.weights_), loc, whole)
        with torch.no_grad():  # dimensions of classes: clusters differ
            mixture.loc[:, copied:] = math.sqrt(0.5) * torch.randn(k, size - copied)
    return mixture if kind == "mixture" else priors.FlowPrior(size, transforms=2, hidden=(32,), base=mixture), noise


def _noise(covariances: Tensor) -> Tensor:
    """The noise of each number, `(D,)`: at most half its standard deviation given the others, in the narrowest component.

    So a column that others determine, or that has few values, starts as narrow as the mixture has it.
    """
    precision = torch.linalg.inv(covariances).diagonal(dim1=-2, dim2=-1)  # (K, D)
    return (precision.amax(0).rsqrt() / 2).clamp(LEAST_NOISE, NOISE)


def mixture_of(numbers: Tensor, seed: int, covariances: Sequence[str] = ("full",)) -> GaussianMixture:
    """scikit-learn's Gaussian mixture of rows, `(N, D)`, with as many components, and such covariances, as BIC finds best."""
    x = (
        numbers[torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))[:MOST_ROWS]]
        .double()
        .numpy()
    )
    how: dict[str, Any] = {"n_init": 2, "reg_covar": 1e-4, "random_state": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        tried = []
        for kind in covariances:
            rows_each = 2 * (x.shape[1] + 1) if kind == "full" else ROWS_EACH
            most = max(1, min(MOST_COMPONENTS, len(x) // rows_each))
            tried += [GaussianMixture(k, covariance_type=kind, **how).fit(x) for k in range(1, most + 1)]
        return min(tried, key=lambda one: float(one.bic(x)))


def _full(found: GaussianMixture) -> Tensor:
    """The covariance of each component of a mixture, `(K, D, D)`."""
    values = torch.from_numpy(found.covariances_)
    k, d = found.means_.shape
    if found.covariance_type == "spherical":
        return values[:, None, None] * torch.eye(d, dtype=values.dtype)
    if found.covariance_type == "diag":
        return torch.diag_embed(values)
    return values.expand(k, d, d)


def _start_as_copies(decoder: nets.Skip, encoder: nets.Skip, size: int, noise: Tensor) -> None:
    """Make both networks small at the start, with this noise, `(copied,)`, in the numbers and in their latent dimensions."""
    nets_of: list[Any] = [decoder.net, encoder.net]
    last, first = (net.rest[-1] for net in nets_of)
    copied, share = len(noise), (noise / NOISE).unsqueeze(-1).to(last.weight.dtype)
    with torch.no_grad():
        last.weight[: 2 * copied] *= 0.1
        last.weight[:copied] *= share
        last.bias[:copied] = 0.0
        last.bias[copied : 2 * copied] = (noise - FLOOR).expm1().log()
        first.weight *= 0.1
        first.weight[:copied] *= share
        first.bias.zero_()
        spread = torch.full((size,), math.log(math.expm1(1.0)))
        spread[:copied] = noise.expm1().log()
        first.bias[size : 2 * size] = spread
