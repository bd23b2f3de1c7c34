"""How many of its codes a quantised latent variable uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae._html import Told
from pyrovae.batching.chunks import chunks
from pyrovae.batching.memory import halving
from pyrovae.errors import PairError
from pyrovae.fitted.fitted import Fit, seeded
from pyrovae.objectives.codes import numbered, perplexity
from pyrovae.objectives.terms import terms


@dataclass(frozen=True, repr=False)
class CodeUsage(Told):
    """How often each code is the guide's choice, over the rows and the places of the grid.

    Attributes:
        counts: How often each code was chosen, `(Q, K)` int64, on the CPU, for each of Q residual levels; Q is 1 without these.

    Example:
        >>> usage = pv.CodeUsage(torch.tensor([[5, 5, 0, 0]]))
        >>> usage.perplexity, usage.used, usage.num_codes
        (tensor([2.]), tensor([2]), 4)
    """

    counts: Tensor

    @property
    def num_codes(self) -> int:
        """K, the number of codes of a level."""
        return int(self.counts.shape[-1])

    @property
    def used(self) -> Tensor:
        """How many codes of each level were chosen at all, `(Q,)`."""
        return (self.counts > 0).sum(-1)

    @property
    def perplexity(self) -> Tensor:
        """`exp(-sum_k f_k log f_k)` of the frequencies f of each level, `(Q,)`: K where all codes are used equally."""
        return perplexity(self.counts)

    def _told(self) -> tuple[Any, ...]:
        rows = [
            (level, f"{perplexity:.1f}", used, self.num_codes)
            for level, (perplexity, used) in enumerate(zip(self.perplexity.tolist(), self.used.tolist()), 1)
        ]
        return ("Use of codes", ("level", "perplexity", "codes in use", "codes"), rows)


@halving
def code_usage(fitted: Fit, data: Any, site: str | None = None) -> CodeUsage:
    """How often the guide chooses each code of a quantised latent site, and the perplexity of these choices.

    The codes of a site can be told where its prior numbers them, as `distributions.Codes` does, the prior of a `VQVAE`.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        site: The latent site. It may be left out if only one is quantised.

    Returns:
        The counts, see `CodeUsage`.

    Raises:
        PairError: No site of that name is quantised, or several are and none is named.
        DataError: The rows have another shape or dtype than those of the fit.

    References:
        van den Oord et al. 2017, arXiv:1711.00937, appendix A.1.

    Example:
        >>> codes = pv.nets.FSQ((5, 3), grid=2)
        >>> pair = pv.VQVAE(
        ...     prior=pv.priors.Categorical(codes.num_codes, event_shape=codes.index_shape),
        ...     likelihood=pv.Conditional(pv.nets.Behind(pv.nets.Flat((2, 2)), pv.nets.MLP(4, (1, 6))), fam.Bernoulli(6)),
        ...     encoder=pv.nets.MLP(6, (codes.width, *codes.grid)),
        ...     codes=codes,
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(pair, x, epochs=1, engine="eager", progress=False)
        >>> usage = pv.code_usage(fitted, x)
        >>> int(usage.counts.sum()), bool((usage.perplexity <= usage.used).all())
        (80, True)
    """
    counts: dict[str, Tensor] = {}
    with fitted.scope(), seeded(0), torch.no_grad():
        for part in fitted.parts(data):
            for rows in chunks(part.batch, fitted.chunk_size(part.batch)):
                for name, codes in numbered(terms(fitted.pair, rows, layout=part.layout, enumerate=False)).items():
                    if site in (None, name):
                        counts[name] = counts.get(name, 0) + codes.counts()
    if len(counts) != 1:
        listed = ", ".join(map(repr, counts)) or "none"
        got = "no name was given" if site is None else f"got {site!r}"
        raise PairError(
            f"Choose one latent site whose prior numbers its values, as that of a VQVAE: this pair has {listed}; {got}."
        )
    return CodeUsage(next(iter(counts.values())).cpu())
