"""`generate` and `simulate`: new rows drawn from the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyrovae.errors import PairError
from pyrovae.fitted.fitted import Fit
from pyrovae.predict.forward import reads_data, run_model, site_to_generate, split_given
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
    """Draw new rows of an observed site from the model: `z ~ p(z)`, `x ~ p(x | z)`.

    Global latent sites are drawn once, from the guide, so that the new rows follow the posterior predictive distribution.

    Args:
        fitted: The fitted pair.
        num: The number of rows to draw.
        given: Values that are fixed, by name, with `num` rows each: arguments of the model, which stay observed, and latent
            sites. Given z2 of a hierarchy, `z1 ~ p(z1 | z2)` and `x ~ p(x | z1)` are drawn; sites on which z2 depends are
            drawn from their priors.
        site: The observed site to draw. It may be left out if there is only one that is not given.
        mean: Whether to return the mean `E[x | z]` at each draw of z instead of a draw of x.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The draws, `(num, *event)`.

    Raises:
        OptionError: `num` is less than 1.
        DataError: A given value is unknown to the model, or has another shape, dtype or number of rows.
        PairError: The model reads the data that it should generate in another way than by `obs=`, there are several sites
            and none is named, or `mean` is asked of a site that has none.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> pv.generate(fitted, 5, seed=0).shape
        torch.Size([5, 6])
        >>> z = torch.tensor([[0.5, -1.0]]).expand(3, -1)
        >>> probabilities = pv.generate(fitted, 3, given={"z": z}, mean=True)
        >>> torch.equal(probabilities[0], probabilities[2])
        True
    """
    given = given or {}
    chosen = site_to_generate(fitted, fitted.layout, given, site)
    node = run_model(fitted, num, *split_given(fitted, given), seed)[chosen]
    if node["is_observed"] and fitted.layout.site(chosen, role="observed").argument not in given:
        raise PairError(reads_data(f"Site {chosen!r} observes a function of what is to be drawn, not an argument:"))
    if not mean:
        return node["value"]
    found = mean_of(node["fn"])
    if found is None:
        raise PairError(f"Site {chosen!r} has no finite mean ({node['fn']}): generate with mean=False.")
    return found.expand(node["value"].shape)


def simulate(
    fitted: Fit, num: int, *, given: Mapping[str, Any] | None = None, seed: int | None = None
) -> dict[str, Tensor]:
    """Draw new rows of all sites of the model jointly: observed sites, and the latent values that they came from.

    Args:
        fitted: The fitted pair.
        num: The number of rows to draw.
        given: Values that are fixed, by name, with `num` rows each: arguments of the model and latent sites, as in
            `pv.generate`.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The draws of each site by its name, `(num, *event)`, or `(*event)` for a global site.

    Raises:
        OptionError: `num` is less than 1.
        DataError: A given value is unknown to the model, or has another shape, dtype or number of rows.
        PairError: The model reads the data that it should generate in another way than by `obs=`.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> {site: tuple(values.shape) for site, values in pv.simulate(fitted, 5).items()}
        {'z': (5, 2), 'x': (5, 6)}
    """
    nodes = run_model(fitted, num, *split_given(fitted, given or {}), seed)
    return {name: node["value"] for name, node in nodes.items()}
