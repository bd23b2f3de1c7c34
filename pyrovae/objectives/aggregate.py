"""The aggregate posterior `q(z) = 1/N sum_n q(z | x_n)` at the draws of a run, exactly or estimated from a minibatch.

With it the KL term of a site has three parts, `E KL(q(z | x) || p(z)) = I(x; z) + TC(z) + rest`:

    I(x; z) = E[log q(z | x) - log q(z)]              index-code mutual information
    TC(z)   = E[log q(z) - sum_d log q(z_d)]          total correlation
    rest    = E[sum_d log q(z_d) - log p(z)]          sum_d KL(q(z_d) || p(z_d)) if the prior's dimensions are independent

Hoffman and Johnson 2016, *ELBO surgery*; Chen et al. 2018, arXiv:1802.04942.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from pyrovae._shapes import broadcast_shapes
from pyrovae.errors import PairError
from pyrovae.objectives.enumeration import dims_of
from pyrovae.objectives.terms import Term, Terms, terms
from pyrovae.pair.batch import Batch, take_rows
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import PairLike

ESTIMATORS = ("stratified", "weighted")
RUNS, ROWS = 32, 64  # how often, and on how many rows at most, a guide is run to see whether it depends on its draws


class Codes(NamedTuple):
    """What the guide says of a site whose dimensions are independent and normal given the row: tensors `(K, B, D)`."""

    draws: Tensor
    loc: Tensor
    scale: Tensor


class Aggregate(NamedTuple):
    """Log-densities of the draws, in nats: `own` is log q(z | x), `joint` log q(z), both `(K, B)`; `units` log q(z_d)."""

    own: Tensor
    joint: Tensor
    units: Tensor  # (K, B, D)

    @property
    def information(self) -> Tensor:
        """log q(z | x) - log q(z), whose mean is the index-code mutual information."""
        return self.own - self.joint

    @property
    def total_correlation(self) -> Tensor:
        """log q(z) - sum_d log q(z_d), whose mean is the total correlation."""
        return self.joint - self.units.sum(-1)


def code_sites(run: Terms, wanted: Collection[str] | None = None) -> list[str]:
    """The sites to look at: those `wanted` that are latent in this run, or by default all drawn local sites of the guide."""
    drawn = [t for t in run.sites.values() if t.q is not None]
    if wanted is not None:
        return [t.name for t in drawn if t.name in wanted]
    return [t.name for t in drawn if t.local and t.enum_dim is None and t.fills is None]


def codes_of(run: Terms, name: str) -> Codes:
    """The draws of a site and the Normal of each row; PairError where q(z | x) has no density at the draws of other rows."""
    term = run.sites[name]
    fn = _normal(term, run)
    assert term.q is not None
    event, batch = tuple(term.q.fn.event_shape), tuple(term.q.log_prob.shape)
    found = [
        run.rows(value.expand(broadcast_shapes(value.shape, (*batch, *event))), event)
        for value in (term.value, fn.loc, fn.scale)
    ]
    return Codes(*(value.reshape(*value.shape[:2], -1) for value in found))


def check_codes(pair: PairLike, batch: Batch, layout: Layout, wanted: Collection[str] | None = None) -> None:
    """PairError unless the guide draws the sites from Normals given the rows alone, as far as several runs can tell.

    Autograd records no dependence on discrete draws, nor on draws below frozen parameters: there the Normals change from run
    to run.
    """
    rows, first = take_rows(batch, slice(0, ROWS)), dict[str, Codes]()
    with fork_rng():
        for number in range(RUNS):
            with torch.set_grad_enabled(number == 0):
                run = terms(pair, rows, layout=layout)
                for name in code_sites(run, wanted):
                    found = codes_of(run, name)
                    before = first.setdefault(name, found)
                    if not (torch.allclose(found.loc, before.loc) and torch.allclose(found.scale, before.scale)):
                        raise PairError(
                            f"The guide draws site {name!r} from a distribution that is another at every run, as it depends on "
                            "other draws: name the sites that depend on the data alone, sites=(...)."
                        )


def check_several_rows(rows: int) -> None:
    """PairError for a minibatch of one row, which says nothing of the aggregate posterior."""
    if rows < 2:
        raise PairError(
            "The aggregate posterior is estimated from the other rows of a minibatch, which has one row: give it more, by "
            "batch_size=..., or by group_size=... where rows are grouped."
        )


def log_density_matrix(draws: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log q(z_md | x_b) of M draws `(*, M, D)` under the Normals of B rows `(*, B, D)`: `(*, M, B, D)`."""
    return _log_density(draws.unsqueeze(-2), loc.unsqueeze(-3), scale.unsqueeze(-3))


def _log_density(draws: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return -0.5 * ((draws - loc) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)


def estimate(codes: Codes, num_rows: int, estimator: str = "stratified") -> Aggregate:
    """log q(z) and log q(z_d) at the draws of B rows of a minibatch, for a data set of N = `num_rows`.

    "stratified" gives the draw's own row the weight 1/N and each other row `(N - 1) / (N (B - 1))`, so that the estimate of
    q(z), the density and not its logarithm, has no bias, and is exact for B = N. It is the mean of the stratified estimate of
    Chen et al., appendix C.2, over the orders of the rows. "weighted" gives all rows the weight 1/(N B), their appendix C.1.
    """
    rows = codes.loc.shape[-2]
    check_several_rows(rows)
    num_rows = max(num_rows, rows)
    log_q = log_density_matrix(*codes)
    own = log_q.sum(-1).diagonal(dim1=-2, dim2=-1)
    if estimator == "weighted":
        weights = log_q.new_full((rows, rows), -math.log(num_rows * rows))
    else:
        others = math.log((num_rows - 1) / (num_rows * (rows - 1)))
        same = torch.eye(rows, dtype=torch.bool, device=log_q.device)
        weights = torch.where(same, -math.log(num_rows), log_q.new_full((), others))
    joint = (log_q.sum(-1) + weights).logsumexp(-1)
    return Aggregate(own, joint, (log_q + weights.unsqueeze(-1)).logsumexp(-2))


def exact(codes: Codes, at_once: int = 2**22) -> Aggregate:
    """log q(z) and log q(z_d) at the draws of all N rows, by the sum over all rows. It takes K N^2 D operations."""
    rows, units = codes.loc.shape[-2:]
    step = max(1, at_once // (rows * units * len(codes.draws)))
    parts: list[tuple[Tensor, Tensor]] = []
    for some in codes.draws.split(step, -2):
        log_q = log_density_matrix(some, codes.loc, codes.scale)
        parts.append((log_q.sum(-1).logsumexp(-1), log_q.logsumexp(-2)))
    joint, each = (torch.cat(part, 1) - math.log(rows) for part in zip(*parts))
    return Aggregate(_log_density(*codes).sum(-1), joint, each)


def base_of(fn: Any) -> Any:
    """What is inside of `.to_event(n)` and `.expand(shape)`."""
    while hasattr(fn, "base_dist") and type(fn).__name__ in ("Independent", "ExpandedDistribution"):
        fn = fn.base_dist
    return fn


def _normal(term: Term, run: Terms) -> Any:
    """The Normal of each dimension of a site. Raises PairError for anything else."""
    wanted = "The aggregate posterior needs a guide that draws each dimension from a Normal given the row alone"
    q = term.q
    if term.enum_dim is not None or not term.local or q is None:
        what = "is enumerated" if term.local else "belongs to all rows"
        raise PairError(f"{wanted}, and site {term.name!r} {what}: name other sites, sites=(...).")
    fn = base_of(q.fn)
    if not isinstance(fn, Normal):
        raise PairError(
            f"{wanted}, and that of site {term.name!r} is {type(fn).__name__}: use fam.Normal, or name other sites."
        )
    if isinstance(q.mask, Tensor) or q.mask is False:
        raise PairError(f"{wanted}, and site {term.name!r} is masked, so that some rows have no code.")
    if dims_of(q.log_prob, run):
        raise PairError(f"{wanted}, and site {term.name!r} depends on an enumerated site.")
    above = [t for t in run.sites.values() if t.q is not None and t.local and t is not term and t.enum_dim is None]
    for other in above:
        if any(_depends(parameter, other.value) for parameter in (fn.loc, fn.scale)):
            raise PairError(
                f"{wanted}, and that of site {term.name!r} depends on the draw of {other.name!r}: name the site that depends "
                f"on the data alone, sites=({other.name!r},)."
            )
    return fn


def _depends(result: Tensor, draw: Any) -> bool:
    """Whether autograd recorded a way from a draw to a result; False where nothing is recorded."""
    goal = getattr(draw, "grad_fn", None)
    stack, seen = [result.grad_fn], set()
    while goal is not None and stack:
        node = stack.pop()
        if node is goal:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(following for following, _ in node.next_functions)
    return False
