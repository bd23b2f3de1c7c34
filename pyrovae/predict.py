"""What a fitted pair says about data: encode, reconstruct, generate. Each runs the pair's own model and guide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.check import Layout
from pyrovae.errors import DataError, OptionError, PairError, PyrovaeError
from pyrovae.handlers import Uncondition
from pyrovae.infer.chunks import chunk_size, chunks
from pyrovae.infer.fitted import Fit, Part, in_order, seeded
from pyrovae.infer.terms import Terms, terms
from pyrovae.pair import arguments, as_tensor, known_rows, sample_sites


def encode(fitted: Fit, data: Any, *, site: str | None = None, num_samples: int = 100, seed: int | None = 0) -> Tensor:
    """E_q[z | x], the guide's posterior mean of a latent site: (N, *event).

    Exact where the guide draws this site alone from a family with a mean; else an average over `num_samples` runs of the
    guide (from a fixed `seed`) of the mean given what was drawn before, or of the draws themselves where a mean is not
    finite; for class labels the most probable class. The fit's transform is not applied. `site` may be left out when there is
    only one.
    """
    if num_samples < 1:
        raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data, transformed=False)
        return in_order(parts, [_encode(fitted, part, site, num_samples) for part in parts])


def _encode(fitted: Fit, part: Part, site: str | None, num_samples: int) -> Tensor:
    chosen = part.layout.site(site, role="latent", local=True, guided=True)
    guided = [s.name for s in part.layout.sites if s.role != "observed" and s.enumerated != "model"]
    alone = guided == [chosen.name]
    done = []
    for rows in chunks(part.batch, chunk_size(fitted.pair, part.batch)):
        points: list[Tensor] = []
        while len(points) < num_samples:
            found = terms(fitted.pair, rows, layout=part.layout, enumerate=False)
            term = found.sites[chosen.name]
            assert term.q is not None
            classes = _probabilities(term.q.fn)
            if classes is not None:
                points.append(found.rows(classes, tuple(classes.shape[-1:]))[0])
            else:
                points.append(_point(found, term.q.fn, term.value))
            if alone and (classes is not None or _mean(term.q.fn) is not None):
                break  # exact: nothing was drawn before it
        done.append(_average(points) if classes is None else _average(points).argmax(-1))
    return torch.cat(done)


def reconstruct(
    fitted: Fit, data: Any, *, site: str | None = None, num_samples: int = 10, seed: int | None = 0
) -> Tensor:
    """E_q[E[x' | z] | x], what the model makes of a row it has seen: (N, *event).

    An average over `num_samples` draws of the guide (from a fixed `seed`) of the likelihood's mean, or of its draws where it
    has none; for class labels, and columns of them, the most frequent of the most probable classes. The fit's transform
    is not applied: the guide sees the data as given.
    """
    if num_samples < 1:
        raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data, transformed=False)
        return in_order(parts, [_reconstruct(fitted, part, site, num_samples) for part in parts])


def _reconstruct(fitted: Fit, part: Part, site: str | None, num_samples: int) -> Tensor:
    name = part.layout.site(site, role="observed", local=True).name if site else _to_draw(fitted, part.layout, {})
    done = []
    for rows in chunks(part.batch, chunk_size(fitted.pair, part.batch)):
        points, labels = [], None
        for _ in range(num_samples):
            found = terms(fitted.pair, rows, layout=part.layout, enumerate=False)
            likelihood = found.sites[name].p
            assert likelihood is not None
            points.append(_point(found, likelihood.fn, None))
            labels = getattr(likelihood.fn, "labels", None)
        done.append(_average(points, labels))
    return torch.cat(done)


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

    `given`, with `num` rows each, are arguments that stay observed, and latent sites that are held: given z2, what is drawn
    is z1 ~ p(z1 | z2), x ~ p(x | z1); what stands above a held site is still drawn from its prior. `mean` gives E[x | z] of
    each draw of z in place of x. Global latents are drawn once, from the guide. `seed` None goes on with torch's random state.
    Raises DataError for what is given wrongly, PairError when the model reads the data it is to generate other than by
    observing it.
    """
    chosen = _to_draw(fitted, fitted.layout, given or {}, site)
    node = _run_model(fitted, num, *_held(fitted, given or {}), seed)[chosen]
    if node["is_observed"] and fitted.layout.site(chosen, role="observed").argument not in (given or {}):
        raise PairError(_reads_data(f"Site {chosen!r} observes a function of what is to be drawn, not an argument:"))
    if not mean:
        return node["value"]
    found = _mean(node["fn"])
    if found is None:
        raise PairError(f"Site {chosen!r} has no mean ({node['fn']}): generate with mean=False.")
    return found.expand(node["value"].shape)


def simulate(
    fitted: Fit, num: int, *, given: Mapping[str, Any] | None = None, seed: int | None = None
) -> dict[str, Tensor]:
    """Joint draws of every site of the model, by name: what `generate` makes, with the latent values it came from."""
    nodes = _run_model(fitted, num, *_held(fitted, given or {}), seed)
    return {name: node["value"] for name, node in nodes.items()}


def decode(
    fitted: Fit,
    z: Any,
    *,
    given: Mapping[str, Any] | None = None,
    latent: str | None = None,
    site: str | None = None,
    seed: int | None = 0,
) -> Tensor:
    """E[x | z] at given values of a latent site, (N, *event of z) -> (N, *event of x): traversals and manifolds.

    `z` may be a dict of values of several latent sites, {"z1": ..., "z2": ...}, and then needs no `latent`. Other latents are
    drawn, from a fixed `seed`; where x has no mean, a draw of it is returned.
    """
    if isinstance(z, Mapping) and (latent is not None or not z):
        raise OptionError(
            f"z is a dict of at least one latent site and needs no latent=, got {list(z)} and {latent!r}."
        )
    sites = z if isinstance(z, Mapping) else {fitted.layout.site(latent, role="latent", local=True).name: z}
    latents = [s.name for s in fitted.layout.sites if s.role == "latent" and s.name not in arguments(fitted.pair)]
    if both := [name for name in given or {} if name in latents]:
        raise DataError(f"given takes arguments of the model; {both} are latent sites: pass a dict of them as z.")
    held = {name: _values(fitted, name, value) for name, value in sites.items()}
    node = _run_model(fitted, len(next(iter(held.values()))), given or {}, held, seed)[
        _to_draw(fitted, fitted.layout, given or {}, site)
    ]
    return _mean_or(node["fn"], node["value"])


# --- pieces ----------------------------------------------------------------------------------------------------------


def _to_draw(fitted: Fit, layout: Layout, given: Mapping[str, Any], site: str | None = None) -> str:
    """The observed site to generate: the one named, or the only one that is not given; of several, the only one whose
    argument must always be there."""
    open_sites = [s for s in layout.sites if s.role == "observed" and s.argument not in given and not s.objective_only]
    if site is None and len(open_sites) > 1:
        wanted = arguments(fitted.pair)
        open_sites = [s for s in open_sites if s.argument in wanted and wanted[s.argument].default is not None]
    if site is None and len(open_sites) == 1:
        return open_sites[0].name
    return layout.site(site, role="observed").name


def _held(fitted: Fit, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is given, in two: arguments, and values of latent sites."""
    taken = arguments(fitted.pair)
    latent = [s.name for s in fitted.layout.sites if s.role == "latent" and s.local and s.name not in taken]
    held = {name: _values(fitted, name, value) for name, value in given.items() if name in latent}
    return {name: value for name, value in given.items() if name not in held}, held


def _values(fitted: Fit, latent: str, z: Any) -> Tensor:
    """Values of a latent site, a row each. DataError unless their rows have its shape."""
    source = fitted.layout.site(latent, role="latent", local=True)
    dtypes = [dtype for _, dtype in fitted.arguments.values() if dtype.is_floating_point]
    values = as_tensor(source.name, z, dtypes[0] if dtypes else None).to(fitted.device)
    if tuple(values.shape[1:]) != tuple(source.event_shape):
        raise DataError(f"{source.name!r} must have rows of shape {source.event_shape}, got {tuple(values.shape[1:])}.")
    return values


def _run_model(
    fitted: Fit, num: int, given: Mapping[str, Any], latent: Mapping[str, Tensor], seed: int | None
) -> dict[str, Any]:
    """The model's sample sites for `num` new rows: what is given stays observed, global latents come from the guide."""
    if num < 1:
        raise OptionError(f"num must be at least 1, got {num}.")
    known, taken = fitted.arguments, arguments(fitted.pair)
    unknown = [name for name in given if name not in taken]
    if unknown:
        sites = [s.name for s in fitted.layout.sites if s.role == "latent" and s.local]
        raise DataError(f"The model takes {sorted(taken)} and draws {sites} for each row; it does not know {unknown}.")
    wrong = {name: len(value) for name, value in latent.items() if len(value) != num}
    if wrong:
        raise DataError(
            f"Latent sites must be given for num={num} rows, got {wrong} rows. Use z.expand(num, -1) of one row."
        )
    kept = {}
    for name, value in given.items():
        dtype = known[name][1] if name in known else None
        kept[name] = as_tensor(name, value, dtype).to(fitted.device)
        shape, dtype = known.get(name, (tuple(kept[name].shape[1:]), kept[name].dtype))
        if len(kept[name]) != num or tuple(kept[name].shape[1:]) != shape or kept[name].dtype != dtype:
            raise DataError(
                f"{name!r} must have num={num} rows of shape {shape} and dtype {str(dtype)[6:]} as in the fit, "
                f"got {tuple(kept[name].shape)} {str(kept[name].dtype)[6:]}."
            )
        if taken[name].default is None and not bool(known_rows(kept[name]).all()):
            raise DataError(
                f"{name!r} is unknown (-1, or NaN) in some of the rows given: give it for all, or not at all."
            )
    observed = {s.argument for s in fitted.layout.sites}
    for name, (_, dtype) in _stand_ins(fitted, kept).items():
        # A floating stand-in is NaN and shows where it is read; a whole number would pass for a value.
        if name not in given and name not in observed and not dtype.is_floating_point:
            raise DataError(f"The model reads {name!r}, which no site observes: pass it, given={{{name!r}: ...}}.")
    with fitted.scope(), seeded(seed):
        rows = _dummies(fitted, num, kept)
        values = {**_global_draws(fitted, rows), **latent}
        # The condition stands outside: what it sets must not be drawn again.
        model = poutine.condition(Uncondition(kept.values())(fitted.pair.model), data=values)
        try:
            nodes = sample_sites(poutine.trace(model).get_trace(**rows))
        except PyrovaeError:
            raise
        except (RuntimeError, ValueError) as error:  # some distributions refuse to draw at NaN
            raise PairError(
                _reads_data(f"The model failed ({(str(error).splitlines() or [''])[0]}). Perhaps")
            ) from error
        for name, node in nodes.items():
            value = node["value"]
            if value.is_floating_point() and bool(torch.isnan(value).any()):
                raise PairError(_reads_data(f"Site {name!r} came out NaN:"))
    return nodes


def _reads_data(what: str) -> str:
    return (
        f"{what} the model reads an argument that it is to generate, other than by obs=. "
        "Make what it reads an argument of its own, and pass it in given={...}."
    )


def _global_draws(fitted: Fit, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One draw of the guide of every global latent: new data come from the fitted posterior of those."""
    names = [s.name for s in fitted.layout.sites if s.role == "latent" and not s.local and s.enumerated != "model"]
    if not names:
        return {}
    # Zeros, not NaN: the guide's local sites may read the data here, and are thrown away.
    filled = {name: torch.nan_to_num(value) for name, value in rows.items()}
    guide = sample_sites(poutine.trace(fitted.pair.guide).get_trace(**filled))
    return {name: guide[name]["value"] for name in names}


def _dummies(fitted: Fit, num: int, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stand-ins for what is not given, NaN where floating: if one is read, NaN comes out."""
    made = dict(kept)
    for name, (shape, dtype) in _stand_ins(fitted, kept).items():
        fill = float("nan") if dtype.is_floating_point else 0
        made[name] = torch.full((num, *shape), fill, dtype=dtype, device=fitted.device)
    return {name: made[name] for name in arguments(fitted.pair) if name in made}


def _stand_ins(fitted: Fit, kept: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The arguments that are not given and must be there all the same: None is left to be None."""
    wanted = arguments(fitted.pair)
    return {
        name: what for name, what in fitted.arguments.items() if name not in kept and wanted[name].default is not None
    }


def _mean(fn: Any) -> Tensor | None:
    """The mean, where all of it is finite."""
    try:
        mean: Tensor = fn.mean
    except (NotImplementedError, AttributeError):
        return None
    return mean if bool(torch.isfinite(mean).all()) else None


def _mean_or(fn: Any, drawn: Tensor) -> Tensor:
    """The mean, and the draw in its place where it is not finite: one row without a mean leaves the others theirs."""
    try:
        mean: Tensor = fn.mean.expand(drawn.shape)
    except (NotImplementedError, AttributeError):
        return drawn
    return torch.where(torch.isfinite(mean), mean, drawn) if drawn.is_floating_point() else drawn


def _categorical(fn: Any) -> Any:
    """The Categorical that a distribution is, whose codes have no mean; None for anything else."""
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    return fn if isinstance(fn, dist.Categorical) else None


def _probabilities(fn: Any) -> Tensor | None:
    """Of a single class label, (*batch, C)."""
    classes = _categorical(fn)
    return None if classes is None or len(fn.event_shape) else classes.probs


def _point(found: Terms, fn: Any, drawn: Tensor | None) -> Tensor:
    """One run's point for a site, (N, *event): mode of classes, else mean, else what was drawn, else a draw."""
    classes = _categorical(fn)
    point = _mean(fn) if classes is None else classes.logits.argmax(-1)
    if point is None:
        point = _mean_or(fn, fn.sample() if drawn is None else drawn)
    return found.rows(point, tuple(fn.event_shape))[0]


def _average(points: list[Tensor], labels: Sequence[bool] | None = None) -> Tensor:
    """The mean of numbers, the most frequent of classes; `labels` says which columns of a mixed table are classes."""
    stacked = torch.stack(points)
    if labels is not None:
        return torch.where(torch.tensor(labels, device=stacked.device), stacked.mode(0).values, stacked.mean(0))
    return stacked.mean(0) if stacked.is_floating_point() else stacked.mode(0).values
