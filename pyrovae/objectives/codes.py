"""Which codes the values of a run are, for sites whose prior can number them, and how evenly codes are used.

A distribution numbers its values if it has `num_codes`, the number K of codes, and a method `numbers(value)`, which returns
whole numbers below K of shape `(*batch, Q, M)`: of M places on each of Q levels, where each level has codes of its own.
`distributions.Codes` does.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.errors import PairError
from pyrovae.objectives.terms import Terms
from pyrovae.pair.program import is_local, sample_sites


class Numbered(NamedTuple):
    """The numbers of the codes of a site, `(N, Q, M)` for N rows, M places on each of Q levels; `num_codes` is K."""

    site: str
    numbers: Tensor
    num_codes: int

    def counts(self, rows: int | None = None) -> Tensor:
        """How often each code of each level occurs in the first rows, by default in all, `(Q, K)` int64."""
        levels = self.numbers[:rows].transpose(0, 1).flatten(1)
        _check_range(self.site, levels, self.num_codes)
        none = torch.zeros(len(levels), self.num_codes, dtype=torch.long, device=levels.device)
        return none.scatter_add(1, levels, torch.ones_like(levels))


def can_number(fn: Any) -> bool:
    """Whether a distribution numbers its values."""
    return callable(getattr(fn, "numbers", None)) and isinstance(getattr(fn, "num_codes", None), Integral)


def numbered(run: Terms) -> dict[str, Numbered]:
    """The codes of each latent site of the rows whose prior numbers them; none where sites are enumerated."""
    found: dict[str, Numbered] = {}
    for name, term in run.sites.items():
        fn = None if term.p is None or term.q is None else term.p.fn
        if fn is None or not can_number(fn) or not term.local or run.enum_dims:
            continue
        each = _numbers(name, fn, run.each_row(term.value, len(fn.event_shape)))  # (K, N, *others, Q, M)
        found[name] = Numbered(name, each.movedim((1, -2), (0, 1)).flatten(2), int(fn.num_codes))
    return found


def _numbers(site: str, fn: Any, value: Tensor) -> Tensor:
    """What a distribution numbers a value, int64; PairError unless it has the shape `(*batch, Q, M)`."""
    found = fn.numbers(value.detach())
    batch = tuple(value.shape[: value.dim() - len(fn.event_shape)])
    shape, dtype = tuple(getattr(found, "shape", ())), getattr(found, "dtype", type(found).__name__)
    whole = (
        isinstance(found, Tensor) and dtype is not torch.bool and not (found.is_floating_point() or found.is_complex())
    )
    if not whole or len(shape) != len(batch) + 2 or shape[:-2] != batch:
        wanted = ", ".join(map(str, (*batch, "Q", "M")))
        raise PairError(
            f"Site {site!r}: {type(fn).__name__}.numbers has to return whole numbers of shape ({wanted}), for M places on each "
            f"of Q levels, got {dtype} of shape {shape}."
        )
    return found.long()


def _check_range(site: str, numbers: Tensor, num_codes: int) -> None:
    """PairError unless these are numbers of codes; it reads them on the host."""
    low, high = (int(extreme) for extreme in numbers.aminmax()) if numbers.numel() else (0, 0)
    if low < 0 or high >= num_codes:
        raise PairError(
            f"Site {site!r} has num_codes={num_codes}, so that its values are numbered from 0 to {num_codes - 1}, got "
            f"{low if low < 0 else high}."
        )


def perplexity(counts: Tensor) -> Tensor:
    """`exp(-sum_k f_k log f_k)` of the frequencies f, `(..., K)` -> `(...,)`: K where all codes are used equally."""
    shares = counts / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.special.entr(shares).sum(-1).exp()


def warn_of_unused_codes(groups: Iterable[tuple[tuple[Any, Any], int, int]]) -> None:
    """Warn of each codebook with more codes than the training rows have places, of which some can never be in use.

    Args:
        groups: For each group of rows the traces of the model and of the guide, the rows of that run, and all of the group.

    Raises:
        PairError: A site numbers its values in another way than `numbered` needs.
    """
    sizes: dict[str, int] = {}
    places: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for traces, batch_rows, num_rows in groups:
        model, guide = map(sample_sites, traces)
        for name, node in model.items():
            fn = node["fn"]
            if name not in guide or not is_local(node) or not can_number(fn):
                continue
            with torch.no_grad():
                numbers = _numbers(name, fn, node["value"].unsqueeze(0))  # one particle, as in a history
            sizes[name] = int(fn.num_codes)
            _check_range(name, numbers, sizes[name])
            places[name] += numbers.numel() // max(1, numbers.shape[-2]) * num_rows // batch_rows
            rows[name] += num_rows
    for name, size in sizes.items():
        if size > places[name]:
            warnings.warn(
                f"Site {name!r} has a codebook of {size} codes, and the {rows[name]} training rows have {places[name]} places "
                "for them in all, so that some can never be in use: take fewer codes, or more rows.",
                stacklevel=6,  # at the call of fit
            )
