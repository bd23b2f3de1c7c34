"""The parts of the ELBO of a fit: the KL term of each latent site and what it consists of, active and collapsed sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae._arguments import as_count, as_names, as_number
from pyrovae.batching.chunks import chunks
from pyrovae.batching.memory import halving
from pyrovae.criticism.importance import weight_blocks
from pyrovae.errors import DataError, OptionError, PairError, ShapeError
from pyrovae.fitted.fitted import Fit, in_order, seeded
from pyrovae.fitted.runs import need_particles
from pyrovae.objectives.aggregate import Codes, base_of, check_codes, code_sites, codes_of, exact
from pyrovae.objectives.enumeration import dims_of
from pyrovae.objectives.terms import Terms, terms
from pyrovae.objectives.weights import row_kl
from pyrovae.pair.asked import refuse_unfitted
from pyrovae.pair.batch import num_rows, take_rows
from pyrovae.pair.parameters import fork_rng


def active_units(
    means: Any, threshold: float = 0.01, again: Any | None = None, prior_variance: Any | None = None
) -> Tensor:
    """Which latent dimensions vary with the data: `Var_n(E_q[z_l | x_n]) > threshold * Var_p(z_l)`.

    Args:
        means: The posterior means of N rows, `(N, L)`, from `pv.encode`, or as an array.
        threshold: The variance over rows, as a share of the prior's, above which a dimension counts as active.
        again: The means once more from other draws (`pv.encode` with another seed), `(N, L)`. Use it if `means` are
            averages of S draws, as for the upper levels of a hierarchy: their noise adds 1/S of the variance within a row
            to the variance over rows, but nothing to the covariance of the two, which is then compared with the threshold.
        prior_variance: The variance of each dimension under the prior, `(L,)`. By default 1, that of a standard normal.

    Returns:
        Whether each dimension is active, `(L,)` bool.

    Raises:
        ShapeError: The means are not `(N, L)` with N >= 2, or `again` or `prior_variance` has another shape.
        DataError: They are no numbers, or not all finite.

    References:
        Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, section 5.2.

    Example:
        >>> means = torch.tensor([[-1.0, 0.0], [0.0, 0.01], [1.0, 0.0]])
        >>> pv.active_units(means)
        tensor([ True, False])
    """
    means = _as_means(means)
    again = means if again is None else _as_means(again)
    if means.dim() != 2 or len(means) < 2 or again.shape != means.shape:
        raise ShapeError(
            f"active_units takes posterior means of shape (N, L) with N >= 2, got {tuple(means.shape)}"
            + ("." if again.shape == means.shape else f" and, again, {tuple(again.shape)}.")
        )
    threshold = as_number("threshold", threshold, least=0)
    prior_variance = None if prior_variance is None else _as_means(prior_variance, "prior variances")
    if prior_variance is not None and prior_variance.shape != means.shape[1:]:
        raise ShapeError(f"prior_variance must be {tuple(means.shape[1:])}, got {tuple(prior_variance.shape)}.")
    spread = (means - means.mean(0)) * (again - again.mean(0))
    scale = 1.0 if prior_variance is None else prior_variance.to(spread)
    return spread.sum(0) / (len(means) - 1) > threshold * scale


def _as_means(means: Any, what: str = "posterior means") -> Tensor:
    """Means as a tensor of real numbers, or DataError."""
    try:
        found = torch.as_tensor(means)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"active_units takes {what} as a tensor or an array of numbers ({error}).") from error
    found = found if found.is_floating_point() else found.double()
    if bad := int((~found.isfinite()).sum()):  # would count as a dimension that does not vary
        raise DataError(f"active_units takes finite {what}, and {bad} of these are not.")
    return found


@halving
def kl_by_site(fitted: Fit, data: Any, num_samples: int = 10, seed: int | None = 0) -> dict[str, Tensor]:
    """The KL term of each latent site for each row, `E_q[log q(z | ...) - log p(z | ...)]`, in nats.

    The ELBO of a row is its expected log-likelihood minus these terms. A single term is a divergence, and so not negative in
    expectation, if the guide draws its sites in the order of the model.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_samples: The number of draws of the guide to average over.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The terms by site, `(N,)` each, on the CPU; 0 in rows where the site is observed. Global sites are left out, and
        sites whose priors share a site that only the model enumerates, since no term belongs to one of them alone.

    Raises:
        OptionError: `num_samples` is less than 1.
        DataError: The rows have another shape or dtype than those of the fit.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> {site: terms.shape for site, terms in pv.kl_by_site(fitted, x).items()}
        {'z': torch.Size([40])}
    """
    num_samples = as_count("num_samples", num_samples)
    found: list[dict[str, Tensor]] = []
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        for part in parts:
            with fork_rng():
                sites = list(row_kl(terms(fitted.pair, take_rows(part.batch, slice(0, 1)), layout=part.layout)))
            blocks = weight_blocks(fitted, part.batch, part.layout, num_samples, lambda run: [*row_kl(run).values()])
            columns = zip(*([kl.mean(0) for kl in block] for block in blocks))
            found.append({site: torch.cat(column).cpu() for site, column in zip(sites, columns)})
    names = dict.fromkeys(site for kl in found for site in kl)
    empty = [torch.zeros(num_rows(part.batch)) for part in parts]
    return {site: in_order(parts, [kl.get(site, none) for kl, none in zip(found, empty)]) for site in names}


def collapsed(fitted: Fit, threshold: float = 0.1) -> dict[str, float]:
    """The latent sites that have collapsed to their priors and so say almost nothing about a row.

    A site counts as collapsed if its KL term in the history, of the epoch whose weights were kept, is near 0. If the guide
    draws its sites in another order than the model (from the data upwards), the terms of all sites but the top one are not
    divergences, and one of them may be near 0 by chance: check with `pv.active_units`.

    Args:
        fitted: The fitted pair.
        threshold: The absolute value of the KL term below which a site counts as collapsed, in nats per row.

    Returns:
        The KL terms of the collapsed sites, in nats per row.

    References:
        Bowman, Vilnis, Vinyals, Dai, Jozefowicz & Bengio 2016, arXiv:1511.06349.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> list(pv.collapsed(fitted, threshold=1000.0))
        ['z']
    """
    refuse_unfitted(fitted)
    threshold = as_number("threshold", threshold, least=0)
    kept = int(fitted.settings.get("best_epoch", len(fitted.history)))
    terms: dict[str, float] = {}
    for row in reversed(fitted.history[:kept]):  # not every short epoch is measured
        terms = {name.removeprefix("kl/"): value for name, value in row.items() if name.startswith("kl/")}
        if terms:
            break
    return {site: value for site, value in terms.items() if abs(value) < threshold}


@dataclass(frozen=True)
class KLParts:
    """`KL = information + total_correlation + dimension_wise` of a latent site, in nats per row, as `pv.kl_parts` returns it.

    Attributes:
        kl: `E KL(q(z | x) || p(z))`, at the draws.
        information: `I(x; z) = E[log q(z | x) - log q(z)]`, of the row's index and its code; at most log N.
        total_correlation: `KL(q(z) || prod_d q(z_d))`, 0 where the dimensions are independent of each other over all rows.
        dimension_wise: `sum_d KL(q(z_d) || p(z_d))`. Where the prior's dimensions depend on each other, or on the row, it is
            what is left of the KL.
        units: `KL(q(z_d) || p(z_d))` of each dimension, `(D,)`, or None where the prior's dimensions depend on each other, or
            the prior is not the same for every row, as where it depends on a condition or on another latent variable.

    Example:
        >>> parts = pv.KLParts(kl=6.0, information=4.5, total_correlation=1.0, dimension_wise=0.5)
        >>> parts.marginal  # KL(q(z) || p(z)): how far all codes together are from the prior
        1.5
    """

    kl: float
    information: float
    total_correlation: float
    dimension_wise: float
    units: Tensor | None = None

    @property
    def marginal(self) -> float:
        """`KL(q(z) || p(z)) = KL - I(x; z)`."""
        return self.total_correlation + self.dimension_wise


@halving
def kl_parts(
    fitted: Fit, data: Any, num_samples: int = 1, sites: str | Sequence[str] | None = None, seed: int | None = 0
) -> dict[str, KLParts]:
    """What the KL term of each latent site consists of: information, total correlation and distance to the prior.

    The aggregate posterior `q(z) = 1/N sum_n q(z | x_n)` is that of exactly these rows, by the sum over all of them, at draws
    of `q(z | x_n)` for each row. So the parts have Monte Carlo error, and their sum is the KL at the draws to rounding. It
    takes S N^2 D operations. The information is at most log N: where it comes near, codes tell rows apart, and the total
    correlation is that of N single points, which more rows would lower.

    Args:
        fitted: The fitted pair.
        data: N rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_samples: S, the number of draws for each row.
        sites: The name of a site or the names of several, by default all that the guide draws for each row.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The parts by site, see `KLParts`. A site that is observed in some rows has the codes of the others. Sites whose priors
        share a site that only the model enumerates are left out, since no KL term belongs to one of them alone.

    Raises:
        OptionError: `num_samples` is less than 1, or there is no such site.
        PairError: The guide does not draw a site from a Normal of independent dimensions given the row alone.
        DataError: The rows have another shape or dtype than those of the fit.

    References:
        Hoffman and Johnson 2016, *ELBO surgery*; Chen et al. 2018, arXiv:1802.04942.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> parts = pv.kl_parts(fitted, x)["z"]
        >>> bool(np.isclose(parts.kl, parts.information + parts.total_correlation + parts.dimension_wise))
        True
    """
    num_samples = as_count("num_samples", num_samples)
    sites = as_names("sites", sites) or None
    latent = [s.name for layout in fitted.layouts for s in layout.sites if s.role in ("latent", "auxiliary")]
    unknown = sorted(set(sites or ()) - set(latent))
    if unknown:
        raise OptionError(f"The pair has no latent site {unknown[0]!r}; its latent sites: {sorted(set(latent))}.")
    found: dict[str, list[_Block]] = {}
    with fitted.scope(), seeded(seed):
        for part in fitted.parts(data):
            check_codes(fitted.pair, part.batch, part.layout, sites)
            need_particles(fitted, part.batch, part.layout, num_samples)
            for rows in chunks(part.batch, fitted.chunk_size(part.batch, num_samples)):
                run = terms(fitted.pair, rows, num_samples, layout=part.layout)
                divergences = row_kl(run)
                for name in code_sites(run, sites):
                    if name in divergences:
                        found.setdefault(name, []).append(_block(run, name, divergences[name]))
                    elif sites is not None:
                        raise PairError(
                            f"Site {name!r} has no KL term of its own: its prior shares an enumerated site."
                        )
    return {name: _parts(blocks) for name, blocks in found.items()}


class record_kl_parts:
    """A callback of `pv.fit` that writes the parts of the KL into the history, as "information/z" and so on.

    Args:
        data: The rows to look at, as for `pv.kl_parts`; a thousand will do.
        every: How many epochs lie between two measurements, at least 1.
        sites: The name of a site or the names of several, by default all that the guide draws for each row.

    Raises:
        OptionError: `every` is less than 1.

    Example:
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=2, callbacks=[pv.record_kl_parts(x)], progress=False)
        >>> [name for name in fitted.history[-1] if name.endswith("/z")]
        ['kl/z', 'information/z', 'total_correlation/z', 'dimension_wise/z']
    """

    def __init__(self, data: Any, every: int = 1, sites: str | Sequence[str] | None = None) -> None:
        self.data, self.every, self.sites = data, as_count("every", every), as_names("sites", sites) or None

    def __call__(self, fitted: Fit) -> None:
        row = fitted.history[-1]
        if len(fitted.history) % self.every:
            return
        for site, parts in kl_parts(fitted, self.data, sites=self.sites).items():
            for name in ("information", "total_correlation", "dimension_wise"):
                row[f"{name}/{site}"] = getattr(parts, name)


class _Block(NamedTuple):
    """Some rows' codes, their KL terms `(S, n)`, and log p of each dimension, `(S, n, D)` or None.

    `prior` is log p at the same `POINTS` for every row, `(S, n, POINTS, D)`, which says whether p is the same for all.
    """

    codes: Codes
    kl: Tensor
    units: Tensor | None
    prior: Tensor | None


POINTS = (-1.1, 0.3)


def _block(run: Terms, name: str, kl: Tensor) -> _Block:
    codes = Codes(*(value.double() for value in codes_of(run, name)))
    term, units, prior = run.sites[name], None, None
    fn: Any = None if term.p is None else base_of(term.p.fn)
    if term.p is not None and not getattr(fn, "event_shape", (1,)) and not dims_of(term.p.log_prob, run):
        at = [term.value, *(torch.full_like(term.value, point) for point in POINTS)]
        found = [run.rows(fn.log_prob(value), tuple(term.p.fn.event_shape)) for value in at]
        units, *others = [log_p.reshape(codes.draws.shape).double() for log_p in found]
        prior = torch.stack(others, 2)
    return _Block(codes, kl.double(), units, prior)


def _parts(blocks: Sequence[_Block]) -> KLParts:
    """The parts of a site from those of all rows."""
    codes = Codes(*(torch.cat(values, 1) for values in zip(*(block.codes for block in blocks))))
    found = exact(codes)
    information, correlation = found.information.mean().item(), found.total_correlation.mean().item()
    kl = torch.cat([block.kl for block in blocks], 1).mean().item()
    log_p = [block.units for block in blocks if block.units is not None]
    at = [block.prior for block in blocks if block.prior is not None]
    one = len(log_p) == len(blocks) and all(torch.allclose(prior, at[0][:1, :1]) for prior in at)
    units = (found.units - torch.cat(log_p, 1)).mean((0, 1)).cpu() if one else None
    return KLParts(kl, information, correlation, kl - information - correlation, units)
