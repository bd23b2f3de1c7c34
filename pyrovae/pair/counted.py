"""Sites that count otherwise than once in what a fit calls the ELBO, by `poutine.scale` or a mask, and factors."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.pair.masks import masked_out
from pyrovae.pair.program import distribution_name, is_local, sample_sites

Traces = tuple[Any, Any]  # of the model and of the guide

OUTSIDE = "infer={'objective_only': True}"


def warn_of_counts(runs: Iterable[Traces], *, stacklevel: int) -> None:
    """Warn where the ELBO of a pair is no bound on log p(x), since `poutine.scale`, `pyro.factor` or a mask enter it.

    Args:
        runs: The traces of model and guide, of each group of rows.
        stacklevel: As for `warnings.warn`, seen from the function that calls this one.
    """
    for text in dict.fromkeys(text for traces in runs for text in _notes(*map(sample_sites, traces))):
        warnings.warn(text, stacklevel=stacklevel + 1)


def handled(node: Any) -> Tensor:
    """How often the log-density of a site counts by handlers, without the scale of plates that draw some of their rows."""
    scale = torch.as_tensor(node["scale"]).detach().cpu().double()
    for frame in node["cond_indep_stack"]:
        if frame.full_size is not None and frame.size:
            scale = scale / (frame.full_size / frame.size)
    return scale


def is_factor(node: Any) -> bool:
    """Whether a site is a `pyro.factor`: a number to be added, and no distribution of anything."""
    return distribution_name(node["fn"]) == "Unit"


def _notes(model: Mapping[str, Any], guide: Mapping[str, Any]) -> list[str]:
    counted = {name: node for name, node in model.items() if not node["infer"].get("objective_only")}
    found = [_of_scales(counted, guide)]
    found += [_of_masks(name, counted[name], node) for name, node in guide.items() if name in counted]
    found += [_of_factor(name, node) for name, node in counted.items() if is_factor(node)]
    return [text for text in found if text]


def _of_scales(model: Mapping[str, Any], guide: Mapping[str, Any]) -> str:
    of_model = {name: handled(node) for name, node in model.items()}
    of_guide = {name: handled(node) for name, node in guide.items()}
    scaled = {name for side in (of_model, of_guide) for name, scale in side.items() if not _is_one(scale)}
    if not scaled:
        return ""
    every = [*of_model.values(), *of_guide.values()]
    if all(_same(every[0], other) for other in every):
        often = _often(every[0])
        if every[0].numel() == 1 or _same(every[0], every[0].flatten()[0]):
            return (
                f"All sites count {often} (poutine.scale), so that what a fit calls the ELBO is so many times the ELBO. A fit "
                "divides by the number of rows itself, and Adam's steps do not depend on it: leave the scale out."
            )
        return (
            f"Rows count {often} (poutine.scale at all sites): what a fit calls the ELBO is a sum with these weights. "
            "pv.importance and all other questions give numbers of each row, which no scale changes."
        )
    which = []
    for name in (name for name in dict.fromkeys((*of_model, *of_guide)) if name in scaled):
        p, q = of_model.get(name), of_guide.get(name)
        if p is None or q is None or _same(p, q):
            side = p if p is not None else of_guide[name]
            which.append(
                f"{name!r} counts {_often(side)}{' in model and guide' if p is not None and q is not None else ''}"
            )
        else:
            which.append(f"{name!r} counts {_often(p)} in the model and {_often(q)} in the guide")
    return (
        f"By poutine.scale site {_in_a_sentence(which)}. A fit then maximises a tempered objective, and what it calls the ELBO "
        "is no bound on log p(x). pv.importance and other questions count each site once: their ELBO and log p(x) are those "
        f"of the model without scales. {_cure_of_scales(model, of_model, of_guide, scaled)}"
    )


def _cure_of_scales(
    model: Mapping[str, Any], of_model: Mapping[str, Tensor], of_guide: Mapping[str, Tensor], scaled: set[str]
) -> str:
    """The weight of KL terms that is meant, where one is; else where to put a term that is no part of the model."""
    latent = {name for name, node in model.items() if not node["is_observed"]} | of_guide.keys()
    scales = [side[name] for side in (of_model, of_guide) for name in scaled if name in side]
    first = scales[0].flatten()[0]
    if all(_same(first, scale) for scale in scales):
        weight = first.item() if scaled == latent else 1 / first.item() if scaled == of_model.keys() - latent else 0.0
        if weight > 0 and weight != float("inf"):
            return (
                f"It is the objective of loss=pv.Trace_ELBO(kl=pv.kl.beta({weight:.3g})), or of a schedule of the KL weight "
                "(pv.schedules.kl_warmup), whose ELBO stays a bound."
            )
    return (
        "Weigh KL terms by loss=pv.Trace_ELBO(kl=pv.kl.beta(...)) or a schedule, whose ELBO stays a bound, and mark what is no "
        f"part of the model, such as the loss of a classifier, {OUTSIDE}."
    )


def _of_masks(name: str, p: Any, q: Any) -> str:
    """Where a latent site counts in the guide and not in the model, or the other way round."""
    value = q["value"]
    sides = [masked_out(node["fn"], node["mask"], value) for node in (p, q)]
    none = torch.zeros_like(value, dtype=torch.bool)
    of_model, of_guide = torch.broadcast_tensors(*(none if out is None else out | none for out in sides))
    only_model, only_guide = of_model & ~of_guide, of_guide & ~of_model
    alike = "with pyro.poutine.mask(mask=...) around both statements"
    if bool(only_model.any()):
        return (
            f"Site {name!r} is masked in the model and not in the guide, {_share(only_model)}. There its prior counts nothing, "
            "as one of density 1 everywhere would, which is improper: what is called the ELBO bounds, and log p(x) is, the "
            f"logarithm of an integral that is no probability of x. If that is not meant, mask it alike, {alike}."
        )
    if bool(only_guide.any()):
        return (
            f"Site {name!r} is masked in the guide and not in the model, {_share(only_guide)}. There its draws are weighed as "
            "if they had density 1 under q: what is called the ELBO is no bound on log p(x), and estimates of log p(x) are "
            f"wrong. Mask it alike, {alike}, or take the mask out of the guide."
        )
    return ""


def _share(gone: Tensor) -> str:
    return f"at {int(gone.sum())} of {gone.numel()} of its elements"


def _of_factor(name: str, node: Any) -> str:
    value = node["fn"].log_prob(node["value"]).detach() * torch.as_tensor(node["scale"])
    cure = (
        "Rows that are drawn, as by pv.generate, know nothing of it. To keep a penalty out of both, write "
        f"pyro.sample({name!r}, pyro.distributions.Unit(value), obs=value.new_empty(0), {OUTSIDE}) in place of "
        f"pyro.factor({name!r}, value)."
    )
    if is_local(node):
        return (
            f"Site {name!r} is a factor (pyro.factor), whose number, {_number(value)} for a row here, is part of the ELBO and "
            "of log p(x). They are what they are called if it is a log-density of the row, of a likelihood that Pyro lacks; if "
            f"it is a penalty or a constraint, they are those of an unnormalised p(x, z), and bound no log p(x). {cure}"
        )
    return (
        f"Site {name!r} is a factor (pyro.factor) of all rows together, whose number, {_number(value)} here, is part of what a "
        "fit calls the ELBO, which is then a penalised objective and no bound on log p(x), unless it is a log-density of data. "
        f"log p(x) of rows is without it. {cure}"
    )


def _in_a_sentence(parts: list[str]) -> str:
    """A few of these, as a sentence has them."""
    return ", and site ".join(parts[:4]) + (f", and {len(parts) - 4} more" if len(parts) > 4 else "")


def _is_one(scale: Tensor) -> bool:
    return bool(torch.isclose(scale, torch.ones_like(scale)).all())


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two scales, each of one number or one for each place, are the same everywhere."""
    if a.numel() != b.numel():
        return bool(torch.isclose(a.flatten()[:1], a).all() and torch.isclose(b.flatten()[:1], b).all()) and bool(
            torch.isclose(a.flatten()[0], b.flatten()[0])
        )
    return bool(torch.isclose(a.flatten(), b.flatten()).all())


def _often(scale: Tensor) -> str:
    least, most = scale.min().item(), scale.max().item()
    return f"{least:.3g} times" if f"{least:.3g}" == f"{most:.3g}" else f"between {least:.3g} and {most:.3g} times"


def _number(value: Tensor) -> str:
    least, most = value.min().item(), value.max().item()
    return f"{least:.3g}" if f"{least:.3g}" == f"{most:.3g}" else f"from {least:.3g} to {most:.3g}"
