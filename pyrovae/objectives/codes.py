"""Which codes the values of a run are, for sites whose prior can number them, and how evenly codes are used.

A distribution numbers its values if it has `num_codes`, the number K of codes, and a method `numbers(value)`, which returns
whole numbers below K of shape `(*batch, Q, M)`: of M places on each of Q levels, where each level has codes of its own.
`distributions.Codes` does.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.objectives.terms import Terms
from pyrovae.pair.program import is_local, sample_sites


class Numbered(NamedTuple):
    """The numbers of the codes of a site, `(N, Q, M)` for N rows, M places on each of Q levels; `num_codes` is K."""

    numbers: Tensor
    num_codes: int

    def counts(self, rows: int | None = None) -> Tensor:
        """How often each code of each level occurs in the first rows, by default in all, `(Q, K)` int64."""
        levels = self.numbers[:rows].transpose(0, 1).flatten(1)
        none = torch.zeros(len(levels), self.num_codes, dtype=torch.long, device=levels.device)
        return none.scatter_add(1, levels, torch.ones_like(levels))


def can_number(fn: Any) -> bool:
    """Whether a distribution numbers its values."""
    return callable(getattr(fn, "numbers", None)) and isinstance(getattr(fn, "num_codes", None), int)


def numbered(run: Terms) -> dict[str, Numbered]:
    """The codes of each latent site of the rows whose prior numbers them; none where sites are enumerated."""
    found: dict[str, Numbered] = {}
    for name, term in run.sites.items():
        fn = None if term.p is None or term.q is None else term.p.fn
        if fn is None or not can_number(fn) or not term.local or run.enum_dims:
            continue
        each = fn.numbers(run.each_row(term.value.detach(), len(fn.event_shape)))  # (K, N, *others, Q, M)
        found[name] = Numbered(each.movedim((1, -2), (0, 1)).flatten(2), fn.num_codes)
    return found


def perplexity(counts: Tensor) -> Tensor:
    """`exp(-sum_k f_k log f_k)` of the frequencies f, `(..., K)` -> `(...,)`: K where all codes are used equally."""
    shares = counts / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.special.entr(shares).sum(-1).exp()


def warn_of_unused_codes(traces: tuple[Any, Any], batch_rows: int, num_rows: int) -> None:
    """Warn of each codebook with more codes than the training rows have places, of which some can never be in use.

    Args:
        traces: Of the model and of the guide.
        batch_rows: The rows of that run.
        num_rows: All rows of the fit.
    """
    model, guide = map(sample_sites, traces)
    for name, node in model.items():
        fn = node["fn"]
        if name not in guide or not is_local(node) or not can_number(fn):
            continue
        with torch.no_grad():
            numbers = fn.numbers(node["value"].detach())
        places = numbers.numel() // numbers.shape[-2] * num_rows // batch_rows
        if fn.num_codes > places:
            warnings.warn(
                f"Site {name!r} has a codebook of {fn.num_codes} codes, and the {num_rows} training rows have {places} places "
                "for them in all, so that some can never be in use: take fewer codes, or more rows.",
                stacklevel=4,  # at the call of fit
            )
