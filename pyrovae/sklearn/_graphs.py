"""The default graphs of the estimators, for rows of a table: NaN is missing, and its place is shown to the networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

from pyrovae import families, models, nets, priors
from pyrovae._arguments import as_widths
from pyrovae.conditionals import Conditional, mlp
from pyrovae.distributions import observed_only
from pyrovae.sklearn._search import Start
from pyrovae.tables import Column, Schema, linear, recipe, starts

FLOOR = 1e-2  # of the scale of a likelihood, in standard deviations of the column
MIXTURE = 10  # components of the prior of a density
MOST_LATENT = 10
FEWEST_FOR_RIDGE = 5
MOST_COPIED = 32  # columns of a table whose density starts as a mixture of them; more were not tried
MOST_COLUMNS = 64  # of a table that is compared with one Normal
MOST_COMPARED = 5000  # rows; of more, any start is learned from
MIXTURE_START, FLOW_START = "a mixture as prior", "a mixture and a flow as prior"
RANDOM_START = "10 latent dimensions at most, started at random"


def masked(family: families.Family, num_columns: int, hidden: int | Sequence[int], *others: int) -> Conditional:
    """A conditional whose first parent is a row with gaps."""
    net = nets.MLP((num_columns, num_columns, *others), family.param_shape, hidden, nn.SiLU)
    return Conditional(nets.WithMask(net), family)


def reals(num_columns: int, hidden: int | Sequence[int], *parents: int, scale: str = "net") -> observed_only:
    """The likelihood of the observed columns, Normal with a standard deviation that depends on the parents, or does not."""
    family = families.Normal(num_columns, scale=scale, floor=FLOOR)
    return observed_only(mlp(parents if len(parents) > 1 else parents[0], family, hidden, nn.SiLU))


def latent_size(num_columns: int, n_components: int | None) -> int:
    return min(num_columns, MOST_LATENT) if n_components is None else n_components


def vae(x: Tensor, n_components: int | None, hidden: int | Sequence[int]) -> models.VAE:
    """A VAE for codes: a standard normal prior, so that latent dimensions are comparable."""
    num = latent_size(x.shape[1], n_components)
    encoder = masked(families.Normal(num), x.shape[1], hidden)
    return models.VAE(priors.StandardNormal(num), reals(x.shape[1], hidden, num), encoder)


def densities(
    num_rows: int, num_columns: int, n_components: int | None, hidden: int | Sequence[int], *, compared: bool
) -> list[Start]:
    """The VAEs for log p(x) of which one is kept, the usual one first: see `pyrovae.tables.starts`."""
    at_random = Start(RANDOM_START, lambda x: flexible(x, n_components, hidden))
    if n_components is not None or not as_widths("hidden_layer_sizes", hidden) or num_columns > MOST_COPIED:
        return [at_random]
    others: Sequence[str] = ()
    if compared and num_rows <= MOST_COMPARED:  # codes at random were better in some tables of eight columns, too
        others = [*(one for one in starts.also(num_rows, num_rows, num_columns) if one != starts.RANDOM), starts.RANDOM]
    made = {
        starts.FLOW: Start(FLOW_START, lambda x: copies(x, hidden, "flow"), rate=3e-3),
        starts.MIXTURE: Start(MIXTURE_START, lambda x: copies(x, hidden, "mixture")),
        starts.RANDOM: at_random,
    }
    found = [made[name] for name in (starts.usual(num_rows), *others)]
    if others and starts.usual(num_rows) == starts.FLOW:
        narrow = Start(FLOW_START + ", with little noise", lambda x: copies(x, hidden, "flow", narrow=True), rate=3e-3)
        found.insert(1, narrow)
    return found


def imputers(num_columns: int, n_components: int | None, hidden: int | Sequence[int], *, compared: bool) -> list[Start]:
    """The models of which one fills in gaps: one Normal of all columns, and a VAE, which has to lead where they are compared.

    A flow in the prior fills in no better, and takes several times as long.
    """
    if n_components is not None or not as_widths("hidden_layer_sizes", hidden) or num_columns > MOST_COPIED:
        made = Start(RANDOM_START, lambda x: flexible(x, n_components, hidden), leads=True)
    else:
        made = Start(MIXTURE_START, lambda x: copies(x, hidden, "mixture"), leads=True)
    if not compared or num_columns > MOST_COLUMNS:
        return [made]
    return [Start("a Normal with full covariance", linear.normal, trained=False), made]


def copies(x: Tensor, hidden: int | Sequence[int], prior: str, narrow: bool = False) -> models.VAE:
    """A VAE that starts as the Gaussian mixture of the rows, see `pyrovae.tables.vae`."""
    schema = Schema(tuple(Column(str(number), "real") for number in range(x.shape[1])))
    seed = int(torch.randint(2**31 - 1, ()))  # of the estimator's random state
    return recipe.vae(schema, x, hidden=hidden, prior=prior, covariance="any", narrow=narrow, gaps=True, seed=seed)


def detector(x: Tensor, n_components: int | None, hidden: int | Sequence[int]) -> models.VAE:
    """A VAE that is too plain to learn a few outliers: a standard normal prior, and one standard deviation a column."""
    columns = x.shape[1]
    num = min(max(1, columns - 1), MOST_LATENT) if n_components is None else n_components
    encoder = masked(families.FullNormal(num), columns, hidden)
    return models.VAE(priors.StandardNormal(num), reals(columns, hidden, num, scale="column"), encoder)


def flexible(x: Tensor, n_components: int | None, hidden: int | Sequence[int]) -> models.VAE:
    """A VAE with a mixture as prior, and a guide with full covariance."""
    num = latent_size(x.shape[1], n_components)
    encoder = masked(families.FullNormal(num), x.shape[1], hidden)
    return models.VAE(priors.MixtureOfNormals(num, MIXTURE), reals(x.shape[1], hidden, num), encoder)


def classifier(
    x: Tensor,
    num_classes: int,
    n_components: int | None,
    hidden: int | Sequence[int],
    dropout: float,
    alpha: float | None,
) -> models.SSVAE:
    """M2, whose classifier q(y|x) has dropout; `alpha` grows with the columns, whose log-densities it has to outweigh."""
    columns, num = x.shape[1], latent_size(x.shape[1], n_components)
    labels = families.Categorical((), num_classes)
    net = nets.MLP((columns, columns), labels.param_shape, hidden, nets.ReLUDropout(dropout))
    return models.SSVAE(
        label_prior=priors.Categorical(num_classes),
        prior=priors.StandardNormal(num),
        likelihood=reals(columns, hidden, num, num_classes),
        encoder=masked(families.Normal(num), columns, hidden, num_classes),
        classifier=Conditional(nets.WithMask(net), labels),
        code=nets.OneHot(num_classes),
        alpha=max(50.0, 0.6 * columns) if alpha is None else alpha,
    )


def regressor(
    x: Tensor, y: Tensor, n_components: int | None, hidden: int | Sequence[int], dropout: float, alpha: float | None
) -> models.SSRegression:
    """Semi-supervised regression of one standardised number; q(y|x) is ridge regression, and a network of what that leaves."""
    columns, num = x.shape[1], latent_size(x.shape[1], n_components)
    family = families.Normal((), scale="shared", floor=FLOOR)
    net = nets.MLP((columns, columns), family.param_shape, hidden, nets.ReLUDropout(dropout))
    beside = nets.Skip(net, copied=0)
    last: Any = net.rest[-1] if len(net.rest) else net.first[0]
    with torch.no_grad():
        beside.linear.weight.copy_(ridge(x, y))
        last.weight.mul_(0.1)
        last.bias.zero_()
    beside.linear.requires_grad_(False)
    return models.SSRegression(
        label_prior=priors.StandardNormal(()),
        prior=priors.StandardNormal(num),
        likelihood=reals(columns, hidden, num, 1),
        encoder=masked(families.Normal(num), columns, hidden, 1),
        regressor=Conditional(nets.WithMask(beside), family),
        code=nets.Column(),
        alpha=max(50.0, 0.6 * columns) if alpha is None else alpha,
    )


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """Coefficients of ridge regression, `(1, D)`, of the rows whose y is known, gaps filled by means; its strength by GCV."""
    known = ~y.isnan()
    if int(known.sum()) < FEWEST_FOR_RIDGE:
        return torch.zeros(1, x.shape[1], dtype=x.dtype)
    found = RidgeCV(np.logspace(-2, 4, 25)).fit(x[known].nan_to_num(0.0).numpy(), y[known].numpy())
    return torch.from_numpy(found.coef_).to(x.dtype).unsqueeze(0)


def small_weights(pair: Any) -> Tensor:
    """Minus the log-density, without its constant, of the weights of the default regressor's network: w ~ N(0, 2/D), D columns.

    It counts alpha times, as the rows do that the network learns from.
    """
    net = pair.regressor.net.net.net
    weights = [layer.weight for layer in net.modules() if isinstance(layer, nn.Linear)]
    columns = net.first[0].in_features
    return 0.25 * pair.alpha * columns * torch.stack([w.square().sum() for w in weights]).sum()


def clusters(x: Tensor, num_clusters: int, n_components: int | None, hidden: int | Sequence[int]) -> models.SSVAE:
    """M2, of which no label will be known: a mixture of VAEs, each with one standard deviation a column."""
    columns, num = x.shape[1], latent_size(x.shape[1], n_components)
    return models.SSVAE(
        label_prior=priors.Categorical(num_clusters, learned=True),
        prior=priors.StandardNormal(num),
        likelihood=reals(columns, hidden, num, num_clusters, scale="column"),
        encoder=masked(families.Normal(num), columns, hidden, num_clusters),
        classifier=masked(families.Categorical((), num_clusters), columns, hidden),
        code=nets.OneHot(num_clusters),
    )
