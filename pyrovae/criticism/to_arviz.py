"""`to_arviz`: a fitted pair, its posterior, predictions and estimates of log p(x) as a DataTree, for ArviZ's functions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae.batching.chunks import chunks
from pyrovae.batching.memory import halving
from pyrovae.criticism.draws import (
    Kind,
    Placed,
    absent_arguments,
    data_names,
    filled,
    is_data,
    kinds_of,
    observed_arguments,
    observed_in_parts,
    observed_values,
    placeholder,
    run_model,
    stacked,
    together,
)
from pyrovae.criticism.importance import Importance, silently, tell_undefined
from pyrovae.criticism.kept import proposals_kept
from pyrovae.criticism.posterior import posterior
from pyrovae.criticism.trees import SAMPLE_DIMS, Groups, Naming, Values, by_plates, chosen_groups, tree
from pyrovae.errors import PairError, PyrovaeError
from pyrovae.fitted.fitted import Fit, seeded
from pyrovae.objectives.terms import Terms, terms
from pyrovae.pair.batch import Batch, columns_of, num_rows
from pyrovae.pair.datasets import is_batches, is_streamed
from pyrovae.pair.handlers import DATA_PLATE, DrawObserved, FixDraws, SetRows, SetValues
from pyrovae.pair.layout import Layout
from pyrovae.pair.mistakes import where_it_failed
from pyrovae.pair.program import Pair

# The least spread of log_likelihood over the draws, in nats: ArviZ fits a tail to it, and equal values have none.
LEAST_SPREAD = 1e-6


@halving
def to_arviz(
    fitted: Fit,
    data: Any,
    *,
    num_samples: int = 100,
    num_particles: int = 1000,
    proposal: str = "refined",
    groups: Sequence[str] | None = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    sample_dims: Sequence[str] = SAMPLE_DIMS,
    seed: int | None = None,
) -> Any:
    """What a fitted pair says of rows as a DataTree of xarray, on which the functions of ArviZ work.

    With global latent sites b and the latent sites z of a row, a draw is `b ~ q(b)` and, for each row, `z_n ~ p(z_n | x_n, b)`
    by `pv.posterior`. Each row has its place along the dimension "data". The groups are

    - `posterior`: draws of all latent sites, jointly. A site that a row observes has the observed value there.
    - `posterior_predictive`: each observed site drawn anew at each posterior draw. A site that is latent in rows which lack its
      argument has its posterior draws there. Whatever the model reads of the data other than by `obs=` stays as observed.
      Since z_n was inferred from x_n, ranks of x_n among these draws crowd in the middle: for calibration take held-out rows
      and `prior_predictive`, the fitted model's p(x).
    - `log_likelihood`: log p(x_n | b) of each row, nats, with z integrated out, as `pv.importance` estimates it. It varies
      from draw to draw as b does. Without global sites, all draws are of one estimate: their mean is `pv.log_likelihood`,
      their spread its standard error. Hence `loo`, `loo_approximate_posterior` and `compare` of ArviZ are about log p(x): give
      rows that were held out, since the weights of networks are not left out with a row. (log p(x_n | z_n) would be wrong
      there: a row that is left out leaves no data to its z.) The variable has the name of the observed site, or "joint" if
      there are several.
    - `sample_stats`: of the draws `log_p`, log p(b) + sum_n log p(x_n | b), and `log_q`, log q(b), as
      `loo_approximate_posterior` takes them (without global sites they are constant); of draws and rows `log_joint`,
      log p(x_n, z_n | b), `log_guide`, log q(z_n | x_n, b), and `log_weight`, their difference; of rows `k_hat`, `ess` and
      `standard_error` of the estimate of log p(x_n), the worst over all b.
    - `prior`, `prior_predictive`: draws of the model, with conditions as they are in the data. They are left out, with a
      warning, if the model reads what it should draw.
    - `observed_data`, `constant_data`: what the sites observe, and the other arguments of the model. Where a row lacks a value,
      it is NaN, or -1 among integers; real numbers that the model masks are NaN, too.

    ArviZ's functions of draws (`summary`, `rhat`, `ess`, `plot_dist`, `plot_trace`), of log p(x) (`loo`, `loo_i`,
    `loo_approximate_posterior`, `compare`, `plot_khat`) and `plot_ppc_dist` take the tree as it is, `plot_ppc_pit` one column
    of it, `coords={"x_dim_0": 0}`. `loo_pit`, `plot_loo_pit`, `loo_expectations`, `loo_metrics` and `loo_score` do not fit it.
    They reweigh `posterior_predictive` by a log-likelihood of each of its elements (one of each row ends in an IndexError), and
    no such weights take x_n out of a z_n that was inferred from it: of rows that are single numbers, with which they run,
    their answers are as if the model were too wide. Without global sites, what they ask is where x_n lies under p(x),
    `pit = (tree["prior_predictive"]["x"] <= tree["observed_data"]["x"]).mean(["chain", "draw"])`, which
    `plot_ecdf_pit(DataTree.from_dict({"prior_sbc": pit.to_dataset(name="x")}), sample_dims=["data"])` shows.

    The draws take up memory for `num_samples` times N rows: give as many rows as you want to look at.

    Args:
        fitted: The fitted pair.
        data: N rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_samples: The number S of draws.
        num_particles: The number of importance draws for each row and, if there are global sites, for each draw of them.
        proposal: "refined", "laplace" or "guide", as for `pv.importance`; with global sites it is found for each draw of them.
        groups: The groups to make; None for all.
        coords: Coordinates by dimension, as {"data": ids, "gene": names}. By default the columns of a table have their names,
            those of a DataFrame or else those that the fit knows (`Fit.columns`), and other elements numbers.
        dims: Names of the dimensions of a site's event, as {"x": ["gene"]}; by default `x_dim_0` and so on. Other plates than
            "data" keep their names.
        sample_dims: The dimensions of the draws: ["chain", "draw"], a single chain, which all functions of ArviZ take, or
            ["sample"], as `arviz_base.from_numpyro_svi` has it, which its `loo` and `plot_ppc_pit` do not.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The `xarray.DataTree`.

    Raises:
        OptionError: `num_samples` or `num_particles` is less than 1, or there is no such group or proposal.
        DataError: The rows have another shape or dtype than those of the fit, or values outside the support of their site.
        PairError: A latent site is in a plate inside of "data", or a global site is enumerated in the model alone.
        NotFiniteError: A row has probability 0 at every draw.

    References:
        Magnusson, Andersen, Jonasson & Vehtari 2019, arXiv:1904.10679 (LOO for approximate posteriors). Merkle, Furr &
        Rabe-Hesketh 2019, arXiv:1802.04452 (why latent variables are integrated out).

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> tree = pv.to_arviz(fitted, x, num_samples=5, num_particles=50, dims={"x": ["pixel"]}, seed=0)
        >>> dict(tree["posterior"]["z"].sizes), dict(tree["posterior_predictive"]["x"].sizes)
        ({'chain': 1, 'draw': 5, 'data': 40, 'z_dim_0': 2}, {'chain': 1, 'draw': 5, 'data': 40, 'pixel': 6})
    """
    num_samples, num_particles = as_count("num_samples", num_samples), as_count("num_particles", num_particles)
    wanted, naming = chosen_groups(groups), Naming.of(sample_dims, dims, coords)
    naming = replace(naming, columns=_columns(fitted, data))
    with fitted.scope(), seeded(seed), _warning_once():
        kinds = list(kinds_of(fitted, fitted.batch(data)))
        found: Groups = {}
        if {"posterior", "posterior_predictive", "log_likelihood", "sample_stats"} & set(wanted):
            found |= _given_rows(fitted, kinds, _Wishes(num_samples, num_particles, proposal, frozenset(wanted)))
        if {"prior", "prior_predictive"} & set(wanted):
            found |= _of_the_model(fitted, kinds, num_samples)
        found |= _data(fitted, kinds)
    attributes = {"proposal": proposal, "num_particles": num_particles}
    return tree({group: found.get(group, {}) for group in wanted}, naming, attributes)


def _columns(fitted: Fit, data: Any) -> dict[str, list[str]]:
    """The names of the columns of each variable, where the data or the fit know them: of a site those of its argument."""
    known = fitted.columns | ({} if is_batches(data) or is_streamed(data) else columns_of(fitted.pair, data))
    sites = [site for layout in fitted.layouts for site in layout.sites if site.argument in known]
    return known | {site.name: known[site.argument] for site in sites if site.argument is not None}


@contextmanager
def _warning_once() -> Iterator[None]:
    """Of many warnings that begin alike, as of every draw of a global site, give the first, at the caller's line.

    Warnings of other kinds, such as a library's deprecations, stay where they are, for the caller's filters to hide.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    first = {(one.category, str(one.message)[:20]): one for one in reversed(caught)}
    for one in reversed(first.values()):
        if issubclass(one.category, UserWarning):
            warnings.warn(one.message, one.category, stacklevel=5)  # past contextlib, to_arviz and what halves its runs
        else:  # it has passed the filters
            warnings.showwarning(one.message, one.category, one.filename, one.lineno)


def _per_row(values: Tensor, drawn: bool = True) -> Values:
    return Values(values, (DATA_PLATE,), drawn)


# --- groups of the posterior


@dataclass(frozen=True)
class _GlobalDraw:
    """A draw of all global sites from the guide, shaped as in a run, and its log-densities under model and guide."""

    values: dict[str, Tensor]
    placed: Placed
    log_p: float
    log_q: float


def _global_draw(fitted: Fit, kind: Kind) -> _GlobalDraw:
    rows = next(chunks(kind.batch, fitted.chunk_size(kind.batch)))
    run = terms(fitted.pair, rows, 1, layout=kind.layout, enumerate=False)
    names = [s.name for s in kind.layout.sites if s.role == "latent" and not s.local]
    for name in names:
        kind.layout.site(name, role="latent", guided=True)
    shared = [t for t in run.sites.values() if not t.local and not t.objective_only]
    log_p = sum(run.reduce(t.p.log_prob, False).item() for t in shared if t.p is not None)
    log_q = sum(run.reduce(t.q.log_prob, False).item() for t in shared if t.q is not None)
    placed = {
        t.name: by_plates(t.value, t.either.frames, len(t.either.fn.event_shape)) for t in shared if t.name in names
    }
    return _GlobalDraw({name: run.sites[name].value for name in names}, placed, log_p, log_q)


def _at_globals(fitted: Fit, values: Mapping[str, Tensor]) -> Fit:
    """The fit with a guide that gives the global sites these values."""
    if not values:
        return fitted
    pair = Pair(fitted.pair.model, FixDraws(values)(fitted.pair.guide))

    def unmarked(layout: Layout) -> Layout:
        sites = (replace(s, enumerated=None) if s.name in values else s for s in layout.sites)
        return replace(layout, sites=tuple(sites))

    layouts = [unmarked(layout) for layout in fitted.layouts]
    return replace(fitted, pair=pair, layout=layouts[0], more_layouts=tuple(layouts[1:]), checksums={})


@dataclass(frozen=True)
class _Wishes:
    """What is asked for of the rows."""

    num_samples: int
    num_particles: int
    proposal: str
    groups: frozenset[str]

    def any_of(self, *groups: str) -> bool:
        return not self.groups.isdisjoint(groups)


def _given_rows(fitted: Fit, kinds: Sequence[Kind], wishes: _Wishes) -> Groups:
    """The groups that are conditional on the rows."""
    has_globals = any(s.role == "latent" and not s.local for s in kinds[0].layout.sites)
    shared = [_global_draw(fitted, kinds[0]) for _ in range(wishes.num_samples)] if has_globals else []
    pieces = [_of_kind(fitted, kind, shared, wishes) for kind in kinds]
    found = {group: together(kinds, [piece[group] for piece in pieces]) for group in pieces[0]}
    for name, (_, dims) in shared[0].placed.items() if shared else ():
        found["posterior"][name] = Values(torch.stack([one.placed[name][0] for one in shared]), dims)
    if not wishes.any_of("log_likelihood", "sample_stats"):
        return found
    estimate = found["log_likelihood"].pop(ESTIMATE).values
    log_p = estimate.sum(1) + torch.tensor([one.log_p for one in shared] or [0.0], dtype=torch.float64)
    log_q = torch.tensor([one.log_q for one in shared] or [0.0] * wishes.num_samples, dtype=torch.float64)
    found["sample_stats"] = {"log_p": Values(log_p, ()), "log_q": Values(log_q, ()), **found["sample_stats"]}
    observed = {s.name for kind in kinds for s in kind.layout.sites if is_data(s) and s.local}
    if not shared:
        estimate = _spread(estimate[0], found["sample_stats"]["standard_error"].values, wishes.num_samples)
    found["log_likelihood"] = {observed.pop() if len(observed) == 1 else "joint": _per_row(estimate)}
    return found


def _of_kind(fitted: Fit, kind: Kind, shared: Sequence[_GlobalDraw], wishes: _Wishes) -> Groups:
    """The same groups for rows with the same arguments."""
    fits = [_at_globals(fitted, one.values) for one in shared] or [fitted]
    found: Groups = {"posterior": {}, "posterior_predictive": {}, "log_likelihood": {}, "sample_stats": {}}
    at = {}
    local = any(s.role != "observed" and s.local for s in kind.layout.sites)
    drawn = wishes.any_of("posterior", "posterior_predictive", "sample_stats")
    estimated = local and wishes.any_of("log_likelihood", "sample_stats")
    draws, estimates = [], []
    for one in fits:
        # at a draw of the global sites both take the same proposal
        with proposals_kept() if shared else nullcontext():
            if drawn:
                draws.append(_latent_draws(one, kind, 1 if shared else wishes.num_samples, wishes))
            if estimated:
                estimates.append(silently(one, kind.given, wishes.num_particles, wishes.proposal, None))
    if drawn:
        at = {s.name: torch.cat([each[s.name] for each in draws]) for s in kind.latent}
        fixed = observed_values(fitted, kind)
        found["posterior"] = {name: _per_row(value) for name, value in at.items()} | {
            name: _repeated(fixed[name], wishes.num_samples) for name in _latent_elsewhere(fitted, kind)
        }
    if estimated:
        log_p, found["sample_stats"] = _estimates(estimates)
        found["log_likelihood"][ESTIMATE] = _per_row(log_p.expand(wishes.num_samples, -1))
    if wishes.any_of("posterior_predictive", "sample_stats") or not local:
        runs = _at_draws(fitted, kind, at, shared, wishes)
        log_p, log_q = (runs.pop(name)[0] for name in (LOG_P, LOG_Q))
        stats = {"log_joint": log_p, "log_guide": log_q, "log_weight": log_p - log_q}
        if not local:  # there is nothing to integrate out
            found["log_likelihood"][ESTIMATE] = _per_row(log_p)
            found["sample_stats"]["standard_error"] = _per_row(torch.zeros_like(log_p[0]), drawn=False)
        found["sample_stats"] = {name: _per_row(value) for name, value in stats.items()} | found["sample_stats"]
        found["posterior_predictive"] = {name: Values(*value) for name, value in runs.items()}
    return found


# Names that no site has.
ESTIMATE, LOG_P, LOG_Q = " estimate", " log p", " log q"


def _latent_draws(fitted: Fit, kind: Kind, num_samples: int, wishes: _Wishes) -> dict[str, Tensor]:
    """Posterior draws of the latent sites of rows, `(S, n, *event)`."""
    names = [s.name for s in kind.latent]
    how: dict[str, Any] = {"num_particles": wishes.num_particles, "proposal": wishes.proposal}
    return dict(posterior(fitted, kind.given, num_samples, site=names, **how)) if names else {}


def _estimates(found: Sequence[Importance]) -> tuple[Tensor, dict[str, Values]]:
    """log p(x) of rows for each fit, `(F, n)`, and how reliable that is in the worst of them."""
    stats = {
        "k_hat": torch.stack([one.k_hat for one in found]).amax(0),
        "ess": torch.stack([one.ess for one in found]).amin(0),
        "standard_error": torch.stack([one.standard_error for one in found]).nan_to_num(0.0).amax(0),
    }
    log_p = torch.stack([one.log_likelihood for one in found])
    tell_undefined(log_p.sum(0), error=True)
    return log_p, {name: _per_row(value, drawn=False) for name, value in stats.items()}


def _spread(estimate: Tensor, error: Tensor, num_samples: int) -> Tensor:
    """S values for each row, `(S, N)`, whose mean is the estimate and whose spread its standard error: Normal quantiles."""
    places = (torch.arange(num_samples, dtype=torch.float64) + 0.5) / num_samples
    quantiles = math.sqrt(2) * torch.erfinv(2 * places - 1)
    order = torch.rand(num_samples, len(estimate)).argsort(0)
    return estimate + error.clamp_min(LEAST_SPREAD) * quantiles[order]


def _repeated(found: Values, num_samples: int) -> Values:
    return Values(found.values.expand(num_samples, *found.values.shape), found.dims)


def _latent_elsewhere(fitted: Fit, kind: Kind) -> list[str]:
    """Sites that these rows observe, and other rows have as latent ones."""
    latent = {s.name for layout in fitted.layouts for s in layout.sites if s.role == "latent"}
    return [s.name for s in kind.layout.sites if is_data(s) and s.name in latent]


def _at_draws(
    fitted: Fit, kind: Kind, values: Mapping[str, Tensor], shared: Sequence[_GlobalDraw], wishes: _Wishes
) -> Placed:
    """Runs at each posterior draw: the log-densities of rows, `(S, n)`, and if wanted the observed sites, drawn anew."""
    size = fitted.chunk_size(kind.batch)
    absent = absent_arguments(fitted, kind)

    def run(s: int, start: int, rows: Batch) -> Placed:
        of_rows = {name: value[s, start : start + num_rows(rows)] for name, value in values.items()}

        def held(program: Any) -> Any:
            return SetValues(shared[s].values if shared else {})(SetRows(of_rows)(program))

        pair = Pair(held(fitted.pair.model), held(fitted.pair.guide))
        found = terms(pair, rows, 1, layout=kind.layout, enumerate=False)
        log_p, log_q = _row_densities(found)
        made: Placed = {LOG_P: (log_p[0], (DATA_PLATE,)), LOG_Q: (log_q[0], (DATA_PLATE,))}
        if wishes.any_of("posterior_predictive"):
            nodes = run_model(held(DrawObserved()(fitted.pair.model)), {**rows, **filled(absent, rows)})
            made |= {name: placed for name, placed in nodes.items() if name in data_names(fitted)}
        return made

    return stacked(kind.batch, size, wishes.num_samples, run)


def _row_densities(found: Terms) -> tuple[Tensor, Tensor]:
    """log p and log q of all sites of each row, `(1, n)` each."""
    sums = []
    for side in ("p", "q"):
        total = torch.zeros(found.num_particles, found.num_rows, dtype=torch.float64)
        for term in found.sites.values():
            density = getattr(term, side)
            if term.local and not term.objective_only and density is not None:
                total = total + found.reduce(density.log_prob, True).double().cpu()
        sums.append(total)
    return sums[0], sums[1]


# --- groups of the model alone


def _of_the_model(fitted: Fit, kinds: Sequence[Kind], num_samples: int) -> Groups:
    try:
        held: dict[int, dict[str, Tensor]] = {}
        pieces = [_prior_draws(fitted, kind, num_samples, held) for kind in kinds]
        if bad := [n for piece in pieces for n, (v, _) in piece.items() if v.is_floating_point() and v.isnan().any()]:
            raise PairError(f"site {bad[0]!r} came out NaN.")
    except (PyrovaeError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        warnings.warn(
            "The groups prior and prior_predictive are left out, since the model reads what it is to draw, other than by obs="
            f"{_how_it_showed(error)}. To have them, give what it reads as an argument of its own.",
            stacklevel=3,
        )
        return {}
    draws = together(kinds, [{name: Values(*value) for name, value in piece.items()} for piece in pieces])
    latent = {s.name for layout in fitted.layouts for s in layout.sites if s.role == "latent"}
    return {
        "prior": {name: value for name, value in draws.items() if name in latent},
        "prior_predictive": {name: value for name, value in draws.items() if name in data_names(fitted)},
    }


def _how_it_showed(error: Exception) -> str:
    """Where the model failed without data, in words of ours: those of torch are about a tensor that nobody has given."""
    if isinstance(error, PyrovaeError):
        return f": {str(error).removesuffix('.')}"
    place = where_it_failed(error)
    return f", as with NaN in the place of data{place}" if place else " (with NaN in the place of data it fails)"


def _prior_draws(fitted: Fit, kind: Kind, num_samples: int, held: dict[int, dict[str, Tensor]]) -> Placed:
    """All sites of the model, drawn for rows of which only the conditions are known; `held` keeps what all rows share."""
    observed = observed_arguments(fitted, [kind]) | observed_in_parts(fitted, kind)
    batch = {n: v if n not in observed else placeholder(v.shape, v.dtype, v.device) for n, v in kind.batch.items()}
    absent = absent_arguments(fitted, kind)
    names = {s.name for layout in fitted.layouts for s in layout.sites if not s.local}

    def run(s: int, start: int, rows: Batch) -> Placed:
        rows = {**rows, **filled(absent, rows)}
        with poutine.trace() as tracer:
            found = run_model(SetValues(held.get(s, {}))(DrawObserved()(fitted.pair.model)), rows)
        nodes = tracer.trace.nodes
        held.setdefault(s, {name: nodes[name]["value"] for name in names if name in nodes})
        return found

    return stacked(batch, fitted.chunk_size(kind.batch), num_samples, run)


# --- data


def _data(fitted: Fit, kinds: Sequence[Kind]) -> Groups:
    arguments = observed_arguments(fitted, kinds)
    constant = [{n: _per_row(v, drawn=False) for n, v in kind.batch.items() if n not in arguments} for kind in kinds]
    return {
        "observed_data": together(kinds, [observed_values(fitted, kind) for kind in kinds]),
        "constant_data": together(kinds, constant),
    }
