"""`ensemble`: several fits of one structure as one fit, which averages over their weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from pyrovae.errors import OptionError, PairError, PyrovaeError
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.spec import externals, to_spec
from pyrovae.pair.batch import Batch
from pyrovae.pair.checks import check_enumeration
from pyrovae.pair.layout import Layout, describe
from pyrovae.pair.parameters import default_dtype, evaluating, fork_rng
from pyrovae.pair.program import PairLike, run, sample_sites
from pyrovae.weights.ensemble import Ensemble


def ensemble(fits: Sequence[Fit]) -> Fit:
    """Several fits, as from different seeds, as one: every question averages over their weights.

    Its pair has a global latent site "member", uniform over the M fits and summed out, see `pv.weights.Ensemble`. So
    `pv.importance` estimates `log (1/M) sum_m p_m(x)` of each row, with a proposal for each member, since each has codes z of
    its own; `pv.classify` averages `p_m(x, y)`; `pv.generate` draws by one member in each call, with `each_row` for each row;
    and `pv.reconstruct` averages over members. The mean of z over members, as of `pv.encode`, has no meaning, since their
    codes are not comparable; that of a label has.

    All members run at once, each with weights of its own. Linear layers, layer normalisation, and what works element by element
    can do so; convolutions, batch and group normalisation, `nn.PReLU`, recurrent networks and `weight_norm`, say, cannot.

    Args:
        fits: At least two fits of pairs that are modules and are alike in everything but their weights, of rows with the same
            arguments and the same transform; one that is a function of your own must be the same object in all. They are used
            and not copied.

    Returns:
        A fit, without a history. It can be saved, and is not meant to be fitted any further.

    Raises:
        OptionError: There are fewer than two fits, or they differ in more than their weights, or are ensembles themselves, or
            have layers that cannot run with the weights of all members at once.
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
    given = list(fits) if isinstance(fits, Iterable) else [fits]
    if not all(isinstance(one, Fit) for one in given) or len(given) < 2:
        raise OptionError(
            f"An ensemble needs a list of at least two fits, got {[type(one).__name__ for one in given]}."
        )
    first = given[0]
    if any(isinstance(one.pair, Ensemble) for one in given):
        raise OptionError("The members of an ensemble are no ensembles: give the fits of all their members.")
    if any(one.store.get("params") for one in given):
        raise OptionError("The members of an ensemble keep their weights in modules, and here some are of pyro.param.")
    for one in given:
        one.check_weights()
        if one.layouts != first.layouts or not _same_transform(one, first):
            raise OptionError(
                "The members of an ensemble have the same sites, arguments and transform (the same object, where it is code of "
                "your own); fit them alike."
            )
        if to_spec(one.pair, own=True) != to_spec(first.pair, own=True):
            raise OptionError(
                "The members of an ensemble are of one structure: they have the same layers, activations, priors, families and "
                "fixed numbers, and differ in their weights only."
            )
    made = fit_like(first, Ensemble([one.pair for one in given]))
    try:
        with made.scope(), fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            for layout in made.layouts:
                check_enumeration(made.pair, _drawn(first.pair, _rows(layout, made.device), layout), layout)
    except PairError as error:
        raise OptionError(
            "These pairs cannot run with the weights of all members at once. Linear layers, layer normalisation and what works "
            "element by element can; convolutions, batch and group normalisation, nn.PReLU, weight_norm, and code that takes "
            f"the shape of a weight for granted, cannot. {error}"
        ) from error
    return made


def _same_transform(one: Fit, other: Fit) -> bool:
    """Whether two fits transform rows alike. Functions may differ in what they enclose, and so must be the same object."""
    if one.transform is other.transform:
        return True
    spec = to_spec(one.transform, own=True)
    return spec == to_spec(other.transform, own=True) and not externals(spec)


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
        columns=dict(first.columns),
        threads=first.threads,
    )
    made.keep_weights()
    return made


def _layout(pair: PairLike, layout: Layout, device: torch.device) -> Layout:
    rows = {a: torch.zeros_like(value) for a, value in _rows(layout, device).items()}
    return describe(pair, rows)


def _rows(layout: Layout, device: torch.device) -> Batch:
    """Two rows of zeros and ones, which most supports contain."""
    return {
        a: torch.randint(0, 2, (2, *shape), device=device).to(dtype) for a, (shape, dtype) in layout.arguments.items()
    }


def _drawn(pair: PairLike, rows: Batch, layout: Layout) -> Batch:
    """Rows with values that a pair draws in the place of what its model observes, so that they are in its support."""
    nodes = sample_sites(run(pair, rows)[0])
    drawn = dict(rows)
    for site in layout.sites:
        if site.argument is not None and site.name in nodes:
            try:
                value = nodes[site.name]["fn"].sample()
            except (NotImplementedError, PyrovaeError):  # as by a Multinomial without a total
                continue
            if value.shape == rows[site.argument].shape:
                drawn[site.argument] = value.to(rows[site.argument].dtype)
    return drawn
