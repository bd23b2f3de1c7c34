"""`from_pyro_svi`: a Pyro model and its guide, fitted by any means, as a DataTree for ArviZ's functions."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae._arguments import as_count, as_function, as_mapping, told
from pyrovae.criticism.psis import pareto_k
from pyrovae.criticism.trees import SAMPLE_DIMS, Groups, Naming, Values, by_plates, chosen_groups, tree
from pyrovae.errors import OptionError, PairError
from pyrovae.fitted.fitted import seeded
from pyrovae.pair.handlers import DrawObserved, Replay, SetValues, same_memory
from pyrovae.pair.program import sample_sites
from pyrovae.pair.turns import turn

Placed = dict[str, tuple[Tensor, tuple[str, ...]]]
RUNS = "log_likelihood", "observed_data", "posterior", "posterior_predictive", "prior", "prior_predictive"


def from_pyro_svi(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    model_args: Sequence[Any] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 1000,
    groups: Sequence[str] | None = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    sample_dims: Sequence[str] = SAMPLE_DIMS,
    seed: int | None = None,
) -> Any:
    """What a Pyro model and its guide say as a DataTree of xarray, as `arviz_base.from_numpyro_svi` for NumPyro.

    Any two programs will do: with plates of any names or none, subsampled or not, and parameters in Pyro's param store or in
    modules, fitted by `pyro.infer.SVI` or otherwise. Each draw is a run of the guide, of the model at the values that the guide
    has drawn, and of the model with its observed sites drawn anew. All latent variables are taken as they are: where a program
    has many that belong to one row each, `pv.to_arviz` of a fit integrates these out.

    - `posterior`: the draws of the guide, with the values of `pyro.deterministic` sites.
    - `posterior_predictive`, `prior`, `prior_predictive`: draws of the model.
    - `log_likelihood`: the log-density of each observation given all latent values of the draw, nats.
    - `sample_stats`: of each draw `log_p`, log p(x, z), and `log_q`, log q(z), as `arviz_stats.loo_approximate_posterior`
      takes them, with their difference, `log_weight`; and `k_hat`, one number: how far the guide is from the posterior.
    - `observed_data`, `constant_data`: the values at the observed sites, and the other tensors among the arguments.

    Dimensions have the names of the plates. A latent site that the guide does not draw, as one that the model enumerates, is
    drawn from the model, and does not count in `log_p` and `log_q`.

    Args:
        model: The model.
        guide: The guide, with the same arguments.
        model_args: The arguments of both by position.
        model_kwargs: The arguments of both by keyword.
        num_samples: The number S of draws, each a few runs of the programs, one after the other.
        groups: The groups to make; None for all.
        coords: Coordinates by dimension.
        dims: Names of the dimensions of a site's event, as {"beta": ["covariate"]}; by default `beta_dim_0` and so on.
        sample_dims: The dimensions of the draws: ["chain", "draw"], a single chain, which all functions of ArviZ take, or
            ["sample"], as `from_numpyro_svi` has it.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The `xarray.DataTree`.

    Raises:
        OptionError: `num_samples` is less than 1, or there is no such group.
        PairError: A site has another shape from draw to draw.

    References:
        Yao, Vehtari, Simpson & Gelman 2018, arXiv:1802.02538 (k-hat of variational inference). Magnusson, Andersen, Jonasson &
        Vehtari 2019, arXiv:1904.10679 (LOO for approximate posteriors).

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("school", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 10.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("mu", dist.Normal(y.mean(), 4.0))
        >>> y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
        >>> tree = pv.from_pyro_svi(model, guide, model_args=(y,), num_samples=50, seed=0)
        >>> dict(tree["log_likelihood"]["y"].sizes), dict(tree["posterior"]["mu"].sizes)
        ({'chain': 1, 'draw': 50, 'school': 8}, {'chain': 1, 'draw': 50})
    """
    num_samples = as_count("num_samples", num_samples)
    for name, program in (("model", model), ("guide", guide)):
        as_function(name, program, "the data")
    wanted, naming = chosen_groups(groups), Naming.of(sample_dims, dims, coords)
    if not isinstance(model_args, (tuple, list)):
        raise OptionError(
            f"model_args must be a tuple of arguments of model and guide, (x,) for one, got {told(model_args)}."
        )
    arguments = (tuple(model_args), as_mapping("model_kwargs", model_kwargs, "arguments of model and guide by name"))
    prior, predictive = bool({"prior", "prior_predictive"} & set(wanted)), "posterior_predictive" in wanted
    kept: dict[str, list[Placed]] = {group: [] for group in RUNS}
    densities = []
    with turn(), seeded(seed), torch.no_grad():
        for _ in range(num_samples):
            found, log_p, log_q = _posterior_draw(model, guide, arguments)
            densities.append((log_p, log_q))
            held = {name: node["value"] for name, node in found.items() if not node["is_observed"]}
            observed = {name: node for name, node in found.items() if node["is_observed"] and node["value"].numel()}
            kept["posterior"].append(_placed({n: node for n, node in found.items() if n not in observed}))
            kept["log_likelihood"].append({name: _log_likelihood(node) for name, node in observed.items()})
            if not kept["observed_data"]:
                kept["observed_data"].append(_placed(observed))
            if predictive:
                again = sample_sites(_trace(SetValues(held)(DrawObserved()(model)), arguments))
                kept["posterior_predictive"].append(_placed({name: again[name] for name in observed if name in again}))
            if prior:
                nodes = _with_deterministic(_trace(DrawObserved()(model), arguments))
                kept["prior"].append(_placed({n: node for n, node in nodes.items() if n not in observed}))
                kept["prior_predictive"].append(_placed({n: node for n, node in nodes.items() if n in observed}))
        fixed = {name: Values(*value, False) for name, value in kept.pop("observed_data")[0].items()}
        constant = _constants(model, arguments, list(observed.values()))
    made: Groups = {group: _stacked(draws) for group, draws in kept.items() if draws and group in wanted}
    made |= {"observed_data": fixed, "constant_data": constant, "sample_stats": _stats(densities)}
    _warn_of_nan(made)
    return tree({group: made.get(group, {}) for group in wanted}, naming, {"proposal": "guide"})


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _trace(program: Any, arguments: Arguments) -> Any:
    return poutine.trace(program).get_trace(*arguments[0], **arguments[1])


def _posterior_draw(model: Any, guide: Any, arguments: Arguments) -> tuple[dict[str, Any], float, float]:
    """The sites of the model at a draw of the guide, and log p and log q of it."""
    guide_trace = _trace(guide, arguments)
    model_trace = _trace(Replay(guide_trace)(model), arguments)
    drawn = sample_sites(guide_trace)
    counted = {
        name: node
        for name, node in sample_sites(model_trace).items()
        if (node["is_observed"] or name in drawn) and not node["infer"].get("objective_only")
    }
    log_p = sum(float(_scaled_sum(node)) for node in counted.values())
    log_q = sum(float(_scaled_sum(node)) for node in drawn.values())
    return _with_deterministic(model_trace), log_p, log_q


def _with_deterministic(trace: Any) -> dict[str, Any]:
    sites = sample_sites(trace)
    others = {n: node for n, node in trace.nodes.items() if node["type"] == "sample" and _is_deterministic(node)}
    found = {**sites, **{name: {**node, "is_observed": False} for name, node in others.items()}}
    return {name: node for name, node in found.items() if not node["infer"].get("objective_only")}


def _is_deterministic(node: Any) -> bool:
    return bool(node["infer"].get("_deterministic"))


def _scaled_sum(node: Any) -> Tensor:
    log_prob = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
    return scale_and_mask(log_prob, node["scale"], node["mask"]).sum()


def _log_likelihood(node: Any) -> tuple[Tensor, tuple[str, ...]]:
    log_prob = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
    return by_plates(scale_and_mask(log_prob, 1.0, node["mask"]), node["cond_indep_stack"], 0)


def _placed(nodes: Mapping[str, Any]) -> Placed:
    return {name: by_plates(node["value"], *_plates(node)) for name, node in nodes.items()}


def _plates(node: Any) -> tuple[Sequence[Any], int]:
    """The plates of a site, and how many dimensions its event has; Pyro takes a deterministic value for one event."""
    frames, value = node["cond_indep_stack"], node["value"]
    if not _is_deterministic(node):
        return frames, len(node["fn"].event_shape)
    vectorised = [f for f in frames if f.vectorized]
    event = value.dim() - max([-int(f.dim) for f in vectorised], default=0)
    inside = event >= 0 and all(value.shape[int(f.dim) - event] == f.size for f in vectorised)
    return (frames, event) if inside else ((), value.dim())


def _stacked(draws: Sequence[Placed]) -> dict[str, Values]:
    """The variables of all draws, `(S, *plates, *event)`. PairError where a draw lacks one, or has another shape."""
    found = {}
    for name, (first, plates) in draws[0].items():
        values = [draw[name][0] if name in draw else None for draw in draws]
        shapes = {None if value is None else tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise PairError(
                f"Site {name!r} must have one shape in all draws, got {sorted(map(str, shapes))}. Give it one, or leave its "
                "group out, groups=[...]."
            )
        found[name] = Values(torch.stack([value if value is not None else first for value in values]), plates)
    return found


def _stats(densities: Sequence[tuple[float, float]]) -> dict[str, Values]:
    log_p, log_q = torch.tensor(densities, dtype=torch.float64).T
    k_hat = pareto_k((log_p - log_q)[:, None])[0]
    stats = {"log_p": log_p, "log_q": log_q, "log_weight": log_p - log_q}
    return {name: Values(value, ()) for name, value in stats.items()} | {"k_hat": Values(k_hat, (), False)}


def _constants(model: Any, arguments: Arguments, observed: Sequence[Any]) -> dict[str, Values]:
    """The tensors among the arguments that no site observes, by the names of the model's arguments."""
    try:
        bound = inspect.signature(getattr(model, "forward", model)).bind(*arguments[0], **arguments[1]).arguments
    except (TypeError, ValueError):
        bound = arguments[1]
    tensors = {name: value for name, value in bound.items() if isinstance(value, Tensor)}
    return {
        name: Values(value, (), False)
        for name, value in tensors.items()
        if not any(same_memory(node["value"], value) for node in observed)
    }


def _warn_of_nan(groups: Groups) -> None:
    bad = [f"{name} of {group}" for group, found in groups.items() for name, one in found.items() if _has_nan(one)]
    bad = [one for one in bad if not one.endswith(("_data", "k_hat of sample_stats"))]
    if bad:
        warnings.warn(f"There are NaNs in {', '.join(bad)}.", stacklevel=3)


def _has_nan(found: Values) -> bool:
    return found.values.is_floating_point() and bool(found.values.isnan().any())
