"""`generate` and `simulate`: new rows drawn from the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae.batching.memory import halving
from pyrovae.errors import DataError, PairError, counted
from pyrovae.fitted.fitted import Fit, seeded
from pyrovae.predict.forward import check_room, plain, run_in_parts, run_model, split_given, without_none
from pyrovae.predict.latent import reads_data
from pyrovae.predict.points import mean_of
from pyrovae.predict.sites import Names, Several, as_named, observed_sites, sites_to_generate


@overload
def generate(
    fitted: Fit,
    num: int,
    *,
    given: Mapping[str, Any] | None = ...,
    site: str | None = ...,
    mean: bool = ...,
    each_row: bool = ...,
    seed: int | None = ...,
) -> Tensor: ...
@overload
def generate(
    fitted: Fit,
    num: int,
    *,
    given: Mapping[str, Any] | None = ...,
    site: Several,
    mean: bool = ...,
    each_row: bool = ...,
    seed: int | None = ...,
) -> dict[str, Tensor]: ...


@halving
def generate(
    fitted: Fit,
    num: int,
    *,
    given: Mapping[str, Any] | None = None,
    site: Names = None,
    mean: bool = False,
    each_row: bool = False,
    seed: int | None = None,
) -> Tensor | dict[str, Tensor]:
    """Draw new rows of an observed site from the model, given what is known: `z ~ p(z)`, `x ~ p(x | z)`.

    Where a given argument depends on latent sites, as x1 of p(z) p(x1 | z) p(x2 | z), these are drawn from the guide given it:
    `z ~ q(z | x1)`, `x2 ~ p(x2 | z)`; or by weighing draws of the model, if the guide needs more than that.

    Global latent sites are drawn from the guide, anew in each call, so that the rows of a call follow the posterior
    predictive distribution together; with `each_row`, each row follows it by itself.

    Args:
        fitted: The fitted pair.
        num: The number of rows to draw.
        given: Values that are fixed, by name, with `num` rows each: arguments of the model, which stay observed, and latent
            sites. Given z2 of a hierarchy, `z1 ~ p(z1 | z2)` and `x ~ p(x | z1)` are drawn; sites on which z2 depends are
            drawn from their priors. A global latent site has one value for all rows.
        site: The observed site to draw, or a list of several, which are drawn jointly. It may be left out if there is only one
            that is not given.
        mean: Whether to return the mean `E[x | z]` at each draw of z instead of a draw of x.
        each_row: Whether global latent sites are drawn anew for each row, by a run of the model for each.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The draws, `(num, *event)`; with a list of sites a dict of them.

    Raises:
        OptionError: `num` is less than 1, or rows for which there is no memory.
        DataError: A given value is unknown to the model, outside the support of its site, or has another shape, dtype or number
            of rows.
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
    num = as_count("num", num)
    check_room(fitted, num)
    given = without_none(given)
    chosen = sites_to_generate(fitted, given, site)
    arguments, latent = split_given(fitted, given)
    if not each_row:

        def asked(nodes: dict[str, Any]) -> dict[str, Tensor]:
            return {name: _asked(fitted, nodes[name], name, given, mean) for name in chosen}

        return as_named(run_in_parts(fitted, num, arguments, latent, seed, chosen, asked), site)
    shared = {s.name for layout in fitted.layouts for s in layout.sites if not s.local}
    if wrong := {name: len(v) for name, v in {**arguments, **latent}.items() if name not in shared and len(v) != num}:
        raise DataError(f"What is given must have num={counted(num, 'row')}, got {wrong}.")
    rows = []
    with seeded(seed):
        for row in range(num):
            known = {name: value[row : row + 1] for name, value in arguments.items()}
            held = {name: value[row : row + 1] if name not in shared else value for name, value in latent.items()}
            nodes = run_model(fitted, 1, known, held, None, chosen)
            rows.append([_asked(fitted, nodes[name], name, given, mean) for name in chosen])
    return as_named({name: torch.cat(column) for name, column in zip(chosen, zip(*rows))}, site)


def _asked(fitted: Fit, node: Any, name: str, given: Mapping[str, Any], mean: bool) -> Tensor:
    """The draw of a site in a run, or its mean."""
    if node["is_observed"] and observed_sites(fitted.layouts)[name].argument not in given:
        raise PairError(reads_data(f"Site {name!r} observes a function of what is to be drawn, not an argument:"))
    value: Tensor = node["value"]
    if not mean:
        return plain(node, value)
    found = mean_of(node["fn"])
    if found is None:
        raise PairError(f"Site {name!r} has no finite mean ({node['fn']}): generate with mean=False.")
    return plain(node, found.expand(value.shape))


@halving
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
        OptionError: `num` is less than 1, or rows for which there is no memory.
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

    def values(nodes: dict[str, Any]) -> dict[str, Tensor]:
        return {name: plain(node, node["value"]) for name, node in nodes.items()}

    return run_in_parts(fitted, num, *split_given(fitted, without_none(given)), seed, None, values)
