"""What a fitted pair says about data: encode, reconstruct, generate. Each runs the pair's own model and guide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.errors import DataError, OptionError, PairError
from pyrovae.handlers import Uncondition
from pyrovae.infer.fitted import Fit, chunks, seeded
from pyrovae.infer.terms import Terms, terms
from pyrovae.pair import as_tensor, sample_sites

CHUNK_ROWS = 4096


def encode(fitted: Fit, data: Any, *, site: str | None = None, num_samples: int = 100, seed: int | None = 0) -> Tensor:
    """E_q[z | x], the guide's posterior mean of a latent site: (N, *event).

    Exact where the guide draws this site alone from a family with a mean; else an average over `num_samples` runs of the
    guide (from a fixed `seed`) of the mean given what was drawn before, or of the draws themselves. `site` may be left out
    when there is only one.
    """
    chosen = fitted.layout.site(site, role="latent", local=True)
    alone = [s.name for s in fitted.layout.sites if s.role != "observed"] == [chosen.name]
    parts = []
    with fitted.scope(), seeded(seed):
        for rows in chunks(fitted.batch(data), CHUNK_ROWS):
            total, runs = torch.zeros(()), 0
            while runs < num_samples:
                found = terms(fitted.pair, rows, layout=fitted.layout)
                term = found.sites[chosen.name]
                assert term.q is not None
                mean = _mean(term.q.fn)
                drawn = found.rows(term.value if mean is None else mean, chosen.event_shape)[0]
                total, runs = total.to(drawn) + drawn, runs + 1
                if alone and mean is not None:
                    break
            parts.append(total / runs)
    return torch.cat(parts)


def reconstruct(
    fitted: Fit, data: Any, *, site: str | None = None, num_samples: int = 10, seed: int | None = 0
) -> Tensor:
    """E_q[E[x' | z] | x], what the model makes of a row it has seen: (N, *event).

    An average over `num_samples` draws of the guide (from a fixed `seed`) of the likelihood's mean, or of its draws where it
    has none; for class labels the most probable class. The fit's transform is not applied: the guide sees the data as given.
    """
    chosen = fitted.layout.site(site, role="observed", local=True)
    if num_samples < 1:
        raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
    parts = []
    with fitted.scope(), seeded(seed):
        for rows in chunks(fitted.batch(data), CHUNK_ROWS):
            points = [_point(terms(fitted.pair, rows, layout=fitted.layout), chosen.name) for _ in range(num_samples)]
            stacked = torch.stack(points)
            parts.append(stacked.mean(0) if stacked.is_floating_point() else stacked.mode(0).values)
    return torch.cat(parts)


def generate(
    fitted: Fit,
    num: int,
    *,
    given: Mapping[str, Any] | None = None,
    site: str | None = None,
    mean: bool = False,
    seed: int | None = None,
) -> Tensor:
    """`num` draws of an observed site from the model: z ~ p(z), x ~ p(x | z); (num, *event).

    `given` are arguments that stay observed, with `num` rows each. `mean` gives E[x | z] of each draw of z in place of x.
    `seed` None goes on with torch's random state. Raises PairError when the model reads the data it is to generate other than
    by observing it.
    """
    chosen = fitted.layout.site(site, role="observed")
    draws, fns = _simulate(fitted, num, given or {}, seed)
    if not mean:
        return draws[chosen.name]
    found = _mean(fns[chosen.name])
    if found is None:
        raise PairError(f"Site {chosen.name!r} has no mean ({fns[chosen.name]}): generate with mean=False.")
    return found.expand(draws[chosen.name].shape)


def simulate(
    fitted: Fit, num: int, *, given: Mapping[str, Any] | None = None, seed: int | None = None
) -> dict[str, Tensor]:
    """Joint draws of every site of the model, by name: what `generate` makes, with the latent values it came from."""
    return _simulate(fitted, num, given or {}, seed)[0]


def decode(fitted: Fit, z: Any, *, latent: str | None = None, site: str | None = None) -> Tensor:
    """E[x | z] at given values of a latent site, (N, *event of z) -> (N, *event of x): traversals and manifolds."""
    source = fitted.layout.site(latent, role="latent", local=True)
    chosen = fitted.layout.site(site, role="observed", local=True)
    values = as_tensor(source.name, z).to(fitted.device)
    if tuple(values.shape[1:]) != tuple(source.event_shape):
        raise DataError(f"{source.name!r} must have rows of shape {source.event_shape}, got {tuple(values.shape[1:])}.")
    with fitted.scope(), seeded(0):
        model = poutine.condition(Uncondition()(fitted.pair.model), data={source.name: values})
        node = sample_sites(poutine.trace(model).get_trace(**_dummies(fitted, len(values), {})))[chosen.name]
        mean = _mean(node["fn"])
        found: Tensor = node["value"] if mean is None else mean.expand(node["value"].shape)
        _refuse_nan({chosen.name: found})
    return found


# --- pieces ----------------------------------------------------------------------------------------------------------


def _simulate(
    fitted: Fit, num: int, given: Mapping[str, Any], seed: int | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if num < 1:
        raise OptionError(f"num must be at least 1, got {num}.")
    unknown = [name for name in given if name not in fitted.layout.arguments]
    if unknown:
        raise DataError(f"The model takes {sorted(fitted.layout.arguments)}; it does not take {unknown}.")
    kept = {name: as_tensor(name, value).to(fitted.device) for name, value in given.items()}
    for name, value in kept.items():
        if len(value) != num:
            raise DataError(f"{name!r} must have num={num} rows, got {len(value)}.")
    with fitted.scope(), seeded(seed):
        replayed = _global_draws(fitted, num, kept)
        model = Uncondition(kept.values())(replayed)
        nodes = sample_sites(poutine.trace(model).get_trace(**_dummies(fitted, num, kept)))
        draws = {name: node["value"] for name, node in nodes.items()}
        _refuse_nan(draws)
    return draws, {name: node["fn"] for name, node in nodes.items()}


def _global_draws(fitted: Fit, num: int, kept: Mapping[str, Tensor]) -> Any:
    """The model with its global latents at a draw of the guide: new data come from the fitted posterior of those."""
    names = [s.name for s in fitted.layout.sites if s.role == "latent" and not s.local]
    if not names:
        return fitted.pair.model
    # Zeros, not NaN: the guide's local sites may read the data here, and are thrown away.
    rows = {name: torch.nan_to_num(value) for name, value in _dummies(fitted, num, kept).items()}
    guide = sample_sites(poutine.trace(fitted.pair.guide).get_trace(**rows))
    return poutine.condition(fitted.pair.model, data={name: guide[name]["value"] for name in names})


def _dummies(fitted: Fit, num: int, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stand-ins for what is not given, NaN where floating: if one is read, NaN comes out."""
    made = {}
    for name, (shape, dtype) in fitted.layout.arguments.items():
        fill = float("nan") if dtype.is_floating_point else 0
        made[name] = kept.get(name, torch.full((num, *shape), fill, dtype=dtype, device=fitted.device))
    return made


def _refuse_nan(draws: Mapping[str, Tensor]) -> None:
    for name, value in draws.items():
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise PairError(
                f"Site {name!r} came out NaN: the model reads an argument that it is to generate, other than by obs=. "
                "Make what it reads an argument of its own, and pass it in given={...}."
            )


def _mean(fn: Any) -> Tensor | None:
    try:
        mean: Tensor = fn.mean
    except (NotImplementedError, AttributeError):
        return None
    return mean if bool(torch.isfinite(mean).all()) else None


def _point(found: Terms, name: str) -> Tensor:
    term = found.sites[name]
    assert term.p is not None
    fn = term.p.fn
    event = tuple(fn.event_shape)
    base = fn
    while isinstance(base, dist.Independent):
        base = base.base_dist
    if isinstance(base, dist.Categorical):
        return found.rows(base.logits.argmax(-1), event)[0]
    mean = _mean(fn)
    return found.rows(fn.sample() if mean is None else mean, event)[0]
