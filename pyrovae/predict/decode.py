"""The likelihood's mean at given values of the latent sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyrovae.errors import DataError, OptionError
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.program import arguments
from pyrovae.predict.forward import latent_values, run_model, site_to_draw
from pyrovae.predict.points import mean_or


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
    held = {name: latent_values(fitted, name, value) for name, value in sites.items()}
    node = run_model(fitted, len(next(iter(held.values()))), given or {}, held, seed)[
        site_to_draw(fitted, fitted.layout, given or {}, site)
    ]
    return mean_or(node["fn"], node["value"])
