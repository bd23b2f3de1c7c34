"""A posterior for each training row, without an encoder: `per_row`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.guides.by_row import ByRow, Place, as_pair, normals, sites_of
from pyrovae.pair.batch import as_batch, columns_of, named_by, num_rows
from pyrovae.pair.program import PairLike

LEAST_SCALE = 1e-3  # of a prior draw, where the prior is a point in some direction


class PerRow(ByRow):
    """`p(x, z)` with `q(z_n) = N(m_n, diag(s_n^2))` for each row n: a mean and a scale for each row, and no encoder.

    `pv.per_row` makes it, and finds the sites.

    Args:
        pair: The pair whose model it is.
        num_rows: The number N of rows.
        sites: The shape of each continuous latent site of a row without constraints, by name.
        summed: Names of discrete latent sites, which are summed out.

    Attributes:
        loc: The means, `(N, d)`.
        log_scale: The logarithms of the scales, `(N, d)`.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> pv.guides.PerRow(vae, num_rows=40, sites={"z": (2,)}).loc.shape
        torch.Size([40, 2])
    """

    def __init__(
        self, pair: PairLike, num_rows: int, sites: Mapping[str, Sequence[int]], summed: Sequence[str] = ()
    ) -> None:
        super().__init__(pair, num_rows, sites, summed)
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(()))
        self.loc = nn.Parameter(torch.zeros(self.num_rows, self.size, dtype=like.dtype, device=like.device))
        self.log_scale = nn.Parameter(torch.zeros_like(self.loc))

    def _place(self, index: Tensor, rows: Mapping[str, Tensor]) -> Place:
        loc, log_scale = self.loc[index], self.log_scale[index]
        return normals(self.parts(loc), self.parts(log_scale.exp()))


def per_row(pair: Any, data: Any) -> PerRow:
    """Stochastic variational inference without amortisation: a mean and a scale for each training row, and no encoder.

    `q(z_n) = N(m_n, diag(s_n^2))` in coordinates without constraints, where m and s are rows of two tables, which a fit learns
    beside the model's parameters. They start at the moments of the prior. Fit it to `pair.indexed(data)`, the rows with their
    numbers: the argument `index`, which stands beside those of the model, says which rows a minibatch holds. Discrete latent
    sites are summed out.

    What an encoder loses on a row, the amortisation gap, is not lost here; what a Normal without correlations loses is. An
    encoder shares what it learns among rows, and so learns faster per row seen; tables of N rows are 2 N d numbers,
    and twice as many in Adam. With Adam, rows that are not in a minibatch move on by their momentum.

    Rows without a number get the prior as guide. Questions refine it to each row's own posterior where they can
    (`pv.importance`, `pv.refine`, `pv.posterior`), so that new rows need no encoder either; `pv.encode` does not, and gives
    their prior mean. Validation rows have a poor ELBO for the same reason: judge by `pv.log_likelihood`.

    Args:
        pair: A pair, whose own guide plays no part: parameters that it alone reads are frozen. Or a model alone, a function.
        data: All training rows, as the model takes them, after any transform.

    Returns:
        The pair, see `pv.guides.PerRow`.

    Raises:
        PairError: A latent site is shared by all rows, is in another plate beside "data", is discrete with too many values to
            sum, or has no vector of real numbers. When called: a step is to be taken with rows that have no number.
        OptionError: The model has an argument `index` of its own. From `pv.fit`: the loss has a sleep phase.
        DataError: From `pv.fit`: numbers of rows are out of range, or occur twice.

    References:
        Hoffman, Blei, Wang & Paisley 2013, arXiv:1206.7055. Cremer, Li & Duvenaud 2018, arXiv:1801.03558 (the gaps).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> class Factors(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.likelihood = pv.mlp(2, fam.Bernoulli(6))
        ...     def model(self, x):
        ...         with pyro.plate("data", len(x)):
        ...             z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        ...             pyro.sample("x", self.likelihood(z), obs=x)
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> pair = pv.per_row(Factors().model, x)
        >>> fitted = pv.fit(pair, pair.indexed(x), epochs=2, engine="eager", progress=False)
        >>> pv.encode(fitted, pair.indexed(x)).shape, pv.log_likelihood(fitted, x[:3], num_samples=50).shape
        (torch.Size([40, 2]), torch.Size([3]))
    """
    whole = as_pair(pair)
    found = sites_of(whole, data)
    made = PerRow(whole, num_rows(as_batch(whole, data)), found.free, found.summed)
    made.name_columns(columns_of(whole, data) or named_by(whole))
    draws = made.prior_draws(data)
    with torch.no_grad():
        made.loc.copy_(draws.mean(0))
        made.log_scale.copy_(draws.std(0).clamp_min(LEAST_SCALE).log())
    return made
