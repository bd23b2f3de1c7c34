"""`decode`: the mean of the likelihood at given values of latent sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

from torch import Tensor

from pyrovae.batching.memory import halving
from pyrovae.errors import DataError, OptionError
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.program import arguments
from pyrovae.predict.forward import latent_values, plain, run_in_parts, split_given, without_none
from pyrovae.predict.points import mean_or
from pyrovae.predict.sites import Names, Several, as_named, sites_to_generate


@overload
def decode(
    fitted: Fit,
    z: Any,
    *,
    given: Mapping[str, Any] | None = ...,
    latent: str | None = ...,
    site: str | None = ...,
    seed: int | None = ...,
) -> Tensor: ...
@overload
def decode(
    fitted: Fit,
    z: Any,
    *,
    given: Mapping[str, Any] | None = ...,
    latent: str | None = ...,
    site: Several,
    seed: int | None = ...,
) -> dict[str, Tensor]: ...


@halving
def decode(
    fitted: Fit,
    z: Any,
    *,
    given: Mapping[str, Any] | None = None,
    latent: str | None = None,
    site: Names = None,
    seed: int | None = 0,
) -> Tensor | dict[str, Tensor]:
    """The mean `E[x | z]` of an observed site at given values of a latent site, as for traversals of the latent space.

    Latent sites that are not given are drawn from the model, global ones from the guide.

    Args:
        fitted: The fitted pair.
        z: Values of the latent site, `(N, *event)`; or a dict of the values of several sites, {"z1": ..., "z2": ...}.
        given: Arguments of the model that are known, such as a class label, with N rows each, and values of global latent
            sites.
        latent: The latent site that `z` belongs to. It may be left out if there is only one, and if `z` is a dict.
        site: The observed site to predict, or a list of several. It may be left out if there is only one that is not given.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The mean for each row of `z`, `(N, *event)`; with a list of sites a dict of them. Entries of a distribution without a
        finite mean are draws instead.

    Raises:
        OptionError: `z` is an empty dict, or a dict together with `latent`.
        DataError: The values have another shape than the site or another number of rows, or are outside its support, or
            `given` has a latent site of rows.
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
    known = without_none(given)
    values = z if isinstance(z, Mapping) else {fitted.layout.site(latent, role="latent", local=True).name: z}
    local = [s.name for one in fitted.layouts for s in one.sites if s.role == "latent" and s.local]
    if both := [name for name in known if name in local and name not in arguments(fitted.pair)]:
        raise DataError(f"given= takes arguments of the model; {both} are latent sites: pass a dict of them as z.")
    others, held = split_given(fitted, known)
    held |= {name: latent_values(fitted, name, value) for name, value in values.items()}
    if not (rows := [len(held[name]) for name in values if name in local]):
        raise OptionError(f"z needs at least one latent site that each row has, of {local}, got {list(values)}.")
    chosen = sites_to_generate(fitted, known, site)

    def means(nodes: dict[str, Any]) -> dict[str, Tensor]:
        return {name: plain(nodes[name], mean_or(nodes[name]["fn"], nodes[name]["value"])) for name in chosen}

    return as_named(run_in_parts(fitted, rows[0], others, held, seed, chosen, means), site)
