"""Log-weights `log p(x, z) - log q(z | x)` of each row and draw, from which every evaluation starts."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from pyrovae.errors import PairError
from pyrovae.objectives.enumeration import Factor, dims_of, eliminate, expected, from_model, probability, upstream
from pyrovae.objectives.marginals import expected_term, is_latent, log_p_of, prior_factor, times, zeros
from pyrovae.objectives.terms import Term, Terms
from pyrovae.pair.handlers import DATA_PLATE, PARTICLE_PLATE


def log_weights(terms: Terms, *, kl_weight: Tensor | float | None = None, keep: str | None = None) -> Tensor:
    """`log w = log p(x, z) - log q(z | x)` of each row and draw, unscaled.

    The mean of w over draws is an unbiased estimate of p(x) of a row. Enumerated sites y are summed out,
    `log sum_y p(x, y, z) / q(z | x)`, so their own q is not in the denominator. Global sites do not enter: they are drawn
    from the guide, or summed under it if enumerated, so that the mean weight of a row estimates its predictive density.
    Sites marked `objective_only` do not enter either.

    Args:
        terms: One run of the pair, from `pv.terms`.
        kl_weight: b, which makes it `log p(x | z) - b (log q - log p)` of the drawn sites.
        keep: Name of an enumerated site y that is not summed out: the result is `log p(x, y = c, z) - log q(z | x, y = c)`
            for each of its C values, and the mean weight of a value estimates p(x, y = c). Values of one draw share the
            draws of sites that do not depend on y.

    Returns:
        Nats, shape `(K, N)`, or `(C, K, N)` with `keep`.

    Raises:
        PairError: A global site is enumerated in the model alone, so that no row has a density of its own; `keep` is not an
            enumerated site with one value for each row; the KL weight cannot be applied inside a sum over an enumerated site.

    Example:
        >>> x = torch.rand(8, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> run = pv.terms(vae, {"x": x}, num_particles=100)
        >>> log_w = pv.log_weights(run)
        >>> log_w.shape
        torch.Size([100, 8])
        >>> log_p = log_w.logsumexp(0) - np.log(100)  # an estimate of log p(x), nats per row
        >>> bool((log_p >= log_w.mean(0)).all())  # at least the ELBO
        True
    """
    return _log_weights(terms, kl_weight, keep, None if keep is None else _kept_dim(keep, terms))


def each_log_weight(terms: Terms, keep: str) -> Tensor:
    """`log_weights` for each value of an enumerated site of the guide, of each row or of all rows together, `(C, K, N)`.

    The values of one of all rows together have their probabilities under the guide, so that the sum over them is what
    `log_weights` estimates.
    """
    term = terms.sites[keep]
    return log_weights(terms, keep=keep) if term.local else _log_weights(terms, None, keep, term.enum_dim)


def _log_weights(terms: Terms, kl_weight: Tensor | float | None, keep: str | None, kept: int | None) -> Tensor:
    sites = [t for t in terms.sites.values() if t.local and not t.objective_only]
    dims = frozenset(terms.enum_dims) - {kept}
    shared: list[Factor] = []
    if keep is not None and not terms.sites[keep].local:
        q = terms.sites[keep].q
        assert q is not None and q.whole is not None
        shared = [Factor(q.whole, q.plates, (keep,))]

    def add_up(factors: list[Factor]) -> Tensor:
        total = zeros(terms)
        for factor in shared + (_eliminate_rows(factors, dims, terms) if dims else factors):
            total = total + by_value(factor.log_prob, kept, terms)
        return total

    shape = (terms.num_particles, terms.num_rows)
    values = () if keep is None else (_count(terms, keep),)
    return _weighed(sites, terms, kl_weight, add_up).expand(*values, *shape)


def num_values(terms: Terms, name: str) -> int:
    """C, the number of values of an enumerated site. PairError unless it has one value for each row."""
    _kept_dim(name, terms)
    return _count(terms, name)


def _count(terms: Terms, name: str) -> int:
    site = terms.sites[name]
    assert site.enum_dim is not None
    return int(site.value.shape[site.enum_dim - len(site.either.fn.event_shape)])


def guide_probabilities(terms: Terms, name: str) -> Tensor:
    """What the guide says of an enumerated site: `q(y = c | x, draws before it)`, `(C, K, N)`, other enumerated sites averaged.

    For a site that only the model has it is `p(y = c | x, z)` at the guide's draws of z, the responsibilities, which no guide
    could improve at these draws. PairError unless the site has one value for each row.
    """
    dim, q = _kept_dim(name, terms), terms.sites[name].q
    if q is None:
        return log_weights(terms, keep=name).softmax(0)
    found = probability([dim], upstream([dim], terms), name, q.plates, terms)
    assert found is not None
    return by_value(found, dim, terms).expand(num_values(terms, name), terms.num_particles, terms.num_rows)


def joint_log_weights(terms: Terms, *, kl_weight: Tensor | float | None = None) -> Tensor:
    """`log w = log p(x, z) - log q(z | x)` of all rows and global sites together, nats, unscaled: `(K,)`."""

    def add_up(factors: list[Factor]) -> Tensor:
        total = zeros(terms, terms.num_particles)
        for factor in eliminate(factors, frozenset(terms.enum_dims), terms):
            total = total + terms.reduce(factor.log_prob, False)
        return total

    return _weighed([t for t in terms.sites.values() if not t.objective_only], terms, kl_weight, add_up)


def row_bounds(terms: Terms) -> Tensor:
    """The share of each row and particle in the ELBO, unscaled and without global sites, in nats: `(K, N)`.

    These are the log-weights if nothing is enumerated. Enumerated sites of the guide are averaged under it, as in `elbo`.
    """
    if not terms.enum_dims:
        return log_weights(terms)
    total = zeros(terms)
    sites = [t for t in terms.sites.values() if t.local and not t.objective_only]
    factors = [Factor(log_p_of(t), t.p.plates, (t.name,)) for t in sites if t.p is not None]
    for factor in _eliminate_rows(factors, from_model(terms), terms, guide=False):
        total = total + terms.reduce(expected(factor.log_prob, factor.plates, factor.sites[0], terms), True)
    for term in sites:
        if term.q is not None:
            total = total - terms.reduce(expected_term(term.q, term, terms, term.q.log_prob), True)
    return total.expand(terms.num_particles, terms.num_rows)


def row_kl(terms: Terms) -> dict[str, Tensor]:
    """The KL term of each latent site for each row and particle, log q - log p at the draw, nats, unscaled: `{site: (K, N)}`.

    Enumerated sites of the guide are averaged under it; sites that only the model enumerates are summed out in log p. Only the
    expectation of the sum over all sites is a divergence: a single term may be negative, by noise, or where the guide draws a
    site before one that its prior depends on. Global sites are left out, and so are sites whose priors share a site that only
    the model sums out, since no term belongs to one of them alone.
    """
    latent = [t for t in terms.sites.values() if t.local and not t.objective_only and is_latent(t)]
    found = {t.name: terms.reduce(expected_term(t.q, t, terms, t.q.log_prob), True) for t in latent if t.q is not None}
    factors = [Factor(log_p_of(t), t.p.plates, (t.name,)) for t in latent if t.p is not None]
    if terms.enum_dims:
        factors = _eliminate_rows(factors, from_model(terms), terms, guide=False)
    for factor in factors:
        names = [n for n in factor.sites if n in found]
        if len(names) > 1:
            for name in names:
                del found[name]
        elif names:
            log_p = expected(factor.log_prob, factor.plates, factor.sites[0], terms)
            found[names[0]] = found[names[0]] - terms.reduce(log_p, True)
    return found


def global_bound(terms: Terms, counted: Collection[str] = ()) -> Tensor:
    """log p - log q of the global sites that are not in `counted`, scaled and summed over particles: what belongs to no row."""
    total = zeros(terms)
    for term in terms.sites.values():
        if not term.local and not term.objective_only and term.name not in counted:
            for side, sign in ((term.p, 1), (term.q, -1)):
                if side is not None:
                    total = total + sign * expected_term(side, term, terms, side.scaled).sum()
    return total


def _weighed(
    sites: list[Term], terms: Terms, kl_weight: Tensor | float | None, add_up: Callable[[list[Factor]], Tensor]
) -> Tensor:
    """`log p(x | z) + b (log p - log q)` of the drawn sites, with b = 1 for None.

    `add_up` sums out enumerated sites from a product of factors and adds up the logarithms of the rest.
    """
    priors = {t.name: prior_factor(t) for t in sites if t.p is not None}
    log_q = {
        t.name: Factor(-t.q.log_prob, t.q.plates, (t.name,)) for t in sites if t.q is not None and t.enum_dim is None
    }
    if kl_weight is None:
        return add_up([side[t.name] for t in sites for side in (priors, log_q) if t.name in side])
    varying = {name: dims_of(factor.log_prob, terms) for name, factor in log_q.items()}
    if all(dims_of(priors[name].log_prob, terms) <= dims for name, dims in varying.items() if name in priors):
        # there is one draw, and so one weight, for each value that the prior depends on
        each = [times(f, kl_weight) if name in log_q else f for name, f in priors.items()]
        return add_up([*each, *(times(f, kl_weight) for f in log_q.values())])
    for name, dims in varying.items():
        if dims:
            raise PairError(
                f"Site {name!r} is drawn for each value of an enumerated site, and the prior of another site depends on one "
                "that its draw does not: a KL weight has no place inside such a sum. Use Trace_ELBO, or no KL weight."
            )
    latent = [priors[t.name] for t in sites if t.name in priors and is_latent(t)]
    return add_up(list(priors.values())) + (kl_weight - 1) * add_up(latent) + kl_weight * add_up(list(log_q.values()))


def _kept_dim(name: str, terms: Terms) -> int:
    """The dimension of an enumerated site that has one value for each row; PairError for any other site."""
    term = terms.sites.get(name)
    if term is None or term.enum_dim is None:
        listed = ", ".join(map(repr, terms.enum_dims.values())) or "none"
        raise PairError(
            f"{name!r} must be an enumerated site, marked infer={{'enumerate': 'parallel'}}; those of this run: {listed}."
        )
    if {plate for plate, _ in term.either.plates} - {PARTICLE_PLATE} != {DATA_PLATE}:
        raise PairError(
            f"Site {name!r} must have one value for each row, in the plate 'data' and in no other; its plates: "
            f"{sorted(plate for plate, _ in term.either.plates) or 'none'}."
        )
    return term.enum_dim


def by_value(tensor: Tensor, dim: int | None, terms: Terms) -> Tensor:
    """`terms.reduce` for each value along an enumerated dimension, `(C, K, N)`; `(K, N)` where nothing varies along it."""
    if dim is None or dim not in dims_of(tensor, terms):
        return terms.reduce(tensor, True)
    return torch.stack([terms.reduce(part, True) for part in tensor.split(1, dim)])


def _eliminate_rows(factors: list[Factor], dims: frozenset[int], terms: Terms, guide: bool = True) -> list[Factor]:
    """Sum out `dims` for each row by itself; an enumerated global site is averaged under the guide, once for every row."""
    row = frozenset({(DATA_PLATE, terms.data_dim)})
    places = {d: terms.sites[name].either.plates | row for d, name in terms.enum_dims.items()}
    made = list(factors)
    for dim, name in terms.enum_dims.items():
        term = terms.sites[name]
        if term.local:
            continue
        if term.q is None:
            raise PairError(
                f"Site {name!r} belongs to all rows and only the model sums it out, so no row has a density of its own. Add it "
                "to the guide, marked infer={'enumerate': 'parallel'} there."
            )
        if guide and dim in dims:
            assert term.q.whole is not None
            made.append(Factor(term.q.whole, term.q.plates, (name,)))
    made = [Factor(f.log_prob, f.plates | row, f.sites) for f in made]
    return eliminate(made, dims, terms, places)
