"""`decode`: the mean of the likelihood at given values of latent sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyrovae.errors import DataError, OptionError
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.program import arguments
from pyrovae.predict.forward import latent_values, run_model, site_to_generate
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
    """The mean `E[x | z]` of an observed site at given values of a latent site, as for traversals of the latent space.

    Latent sites that are not given are drawn from the model.

    Args:
        fitted: The fitted pair.
        z: Values of the latent site, `(N, *event)`; or a dict of the values of several sites, {"z1": ..., "z2": ...}.
        given: Arguments of the model that are known, such as a class label, with N rows each.
        latent: The latent site that `z` belongs to. It may be left out if there is only one, and if `z` is a dict.
        site: The observed site to predict. It may be left out if there is only one that is not given.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The mean for each row of `z`, `(N, *event)`. Entries of a distribution without a finite mean are draws instead.

    Raises:
        OptionError: `z` is an empty dict, or a dict together with `latent`.
        DataError: The values have another shape than the site or another number of rows, or `given` has a latent site.
        PairError: The site is not named although there are several, or the model reads the data that it should predict.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> z = torch.cartesian_prod(torch.linspace(-2, 2, 5), torch.linspace(-2, 2, 5))
        >>> pv.decode(fitted, z).shape
        torch.Size([25, 6])
    """
    if isinstance(z, Mapping) and (latent is not None or not z):
        raise OptionError(
            f"If z is a dict, it must have at least one latent site, and latent= must be left out: got the sites {list(z)} "
            f"and latent={latent!r}."
        )
    sites = z if isinstance(z, Mapping) else {fitted.layout.site(latent, role="latent", local=True).name: z}
    latents = [s.name for s in fitted.layout.sites if s.role == "latent" and s.name not in arguments(fitted.pair)]
    if both := [name for name in given or {} if name in latents]:
        raise DataError(f"given= takes arguments of the model; {both} are latent sites: pass a dict of them as z.")
    held = {name: latent_values(fitted, name, value) for name, value in sites.items()}
    num = len(next(iter(held.values())))
    nodes = run_model(fitted, num, given or {}, held, seed)
    node = nodes[site_to_generate(fitted, fitted.layout, given or {}, site)]
    return mean_or(node["fn"], node["value"])
