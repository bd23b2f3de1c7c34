"""`ensemble`: several fits of one structure as one fit, which averages over their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyrovae.errors import OptionError
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.spec import to_spec
from pyrovae.pair.layout import Layout, describe
from pyrovae.pair.parameters import default_dtype, evaluating, fork_rng
from pyrovae.pair.program import PairLike
from pyrovae.weights.ensemble import Ensemble


def ensemble(fits: Sequence[Fit]) -> Fit:
    """Several fits, as from different seeds, as one: every question averages over their weights.

    Its pair has a global latent site "member", uniform over the M fits and summed out, see `pv.weights.Ensemble`. So
    `pv.importance` estimates `log (1/M) sum_m p_m(x)` of each row, with a proposal for each member, since each has codes z of
    its own; `pv.classify` averages `p_m(x, y)`; `pv.generate` draws by one member in each call, with `each_row` for each row;
    and `pv.reconstruct` averages over members. The mean of z over members, as of `pv.encode`, has no meaning, since their
    codes are not comparable; that of a label has.

    Args:
        fits: At least two fits of pairs that are modules and are alike in everything but their weights, of rows with the same
            arguments and the same transform. They are used and not copied.

    Returns:
        A fit, without a history. It can be saved, and not be fitted any further.

    Raises:
        OptionError: There are fewer than two fits, or they differ in more than their weights.
        PairError: The weights of a fit have changed since.

    References:
        Lakshminarayanan, Pritzel and Blundell 2017, arXiv:1612.01474.

    Example:
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> def fit(seed):
        ...     torch.manual_seed(seed)
        ...     vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        ...     return pv.fit(vae, x, epochs=1, seed=seed, engine="eager", progress=False)
        >>> together = pv.ensemble([fit(seed) for seed in range(3)])
        >>> together
        Fit(Ensemble of member, z, x: 0 epochs)
        >>> pv.log_likelihood(together, x, num_samples=50, seed=0).shape
        torch.Size([40])
    """
    fits = list(fits)
    if not all(isinstance(one, Fit) for one in fits) or len(fits) < 2:
        raise OptionError(f"An ensemble needs a list of at least two fits, got {[type(one).__name__ for one in fits]}.")
    first = fits[0]
    if any(one.store.get("params") for one in fits):
        raise OptionError("The members of an ensemble keep their weights in modules, and here some are of pyro.param.")
    for one in fits:
        one.check_weights()
        if one.layouts != first.layouts or to_spec(one.transform) != to_spec(first.transform):
            raise OptionError(
                "The members of an ensemble have the same sites, arguments and transform; fit them alike."
            )
    return fit_like(first, Ensemble([one.pair for one in fits]))


def fit_like(first: Fit, pair: PairLike) -> Fit:
    """Another pair, of the same arguments, as it stands, as if it had been fitted with the settings of a fit."""
    with fork_rng(), default_dtype(pair), evaluating(pair), torch.no_grad():
        layouts = [_layout(pair, layout, first.device) for layout in first.layouts]
    made = Fit(
        pair,
        layouts[0],
        settings={name: first.settings[name] for name in ("engine", "num_rows", "device") if name in first.settings},
        transform=first.transform,
        more_layouts=tuple(layouts[1:]),
        untransformed=dict(first.untransformed),
        threads=first.threads,
    )
    made.keep_weights()
    return made


def _layout(pair: PairLike, layout: Layout, device: torch.device) -> Layout:
    rows = {a: torch.zeros(2, *shape, dtype=dtype, device=device) for a, (shape, dtype) in layout.arguments.items()}
    return describe(pair, rows)
