"""New rows drawn from the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyrovae.errors import PairError
from pyrovae.fitted.fitted import Fit
from pyrovae.predict.forward import held_values, reads_data, run_model, site_to_draw
from pyrovae.predict.points import mean_of


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
    chosen = site_to_draw(fitted, fitted.layout, given or {}, site)
    node = run_model(fitted, num, *held_values(fitted, given or {}), seed)[chosen]
    if node["is_observed"] and fitted.layout.site(chosen, role="observed").argument not in (given or {}):
        raise PairError(reads_data(f"Site {chosen!r} observes a function of what is to be drawn, not an argument:"))
    if not mean:
        return node["value"]
    found = mean_of(node["fn"])
    if found is None:
        raise PairError(f"Site {chosen!r} has no mean ({node['fn']}): generate with mean=False.")
    return found.expand(node["value"].shape)


def simulate(
    fitted: Fit, num: int, *, given: Mapping[str, Any] | None = None, seed: int | None = None
) -> dict[str, Tensor]:
    """Joint draws of every site of the model, by name: what `generate` makes, with the latent values it came from."""
    nodes = run_model(fitted, num, *held_values(fitted, given or {}), seed)
    return {name: node["value"] for name, node in nodes.items()}
