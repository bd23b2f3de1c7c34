"""What the latent variables say: rate and distortion, mutual information, and which units are in use."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyrovae.criticism.coordinates import is_delta
from pyrovae.criticism.decomposition import kl_by_site
from pyrovae.criticism.evidence import Evidence, quietly
from pyrovae.criticism.findings import BAD, LOOK, OK, Finding
from pyrovae.distributions.combine import log_prob_of_entries
from pyrovae.errors import PyrovaeError
from pyrovae.fitted.fitted import FittedGroup, seeded
from pyrovae.objectives.terms import Terms, terms
from pyrovae.pair.batch import num_rows, take_rows
from pyrovae.pair.handlers import SetValues
from pyrovae.pair.program import Pair

PART = "latent variables"
INACTIVE = 0.01  # of the prior's variance of a unit, between rows
MOST_NAMED = 8
MATRIX_ROWS = 300  # whose codes are looked at under each other's guide


def rate_and_distortion(evidence: Evidence) -> list[Finding]:
    """The ELBO in two parts, -ELBO = rate + distortion, and how much of the rate is information about the row.

    The rate is `R = E KL(q(z | x) || p(z))`, the distortion `D = -E log p(x | z)`. `R = I(x; z) + KL(q(z) || p(z))`, where
    q(z) is the mean of q(z | x) over rows. The information lies between two estimates: in one, a row's own guide is among those
    that are averaged, which bounds it by log N; in the other it is not.

    References:
        Hoffman & Johnson 2016, *ELBO surgery*. Alemi et al. 2018, arXiv:1711.00464. Poole et al. 2019, arXiv:1905.06922.
    """
    kl = kl_by_site(evidence.fitted, evidence.rows, 20, seed=evidence.seed + 7)
    if not kl:
        return []
    sites = {name: value.double().mean().item() for name, value in kl.items()}
    rate, elbo = sum(sites.values()), evidence.estimated.elbo.mean().item()
    values = {"rate": rate, "distortion": -elbo - rate, "elbo": elbo, **{f"kl_{n}": v for n, v in sites.items()}}
    says = f"rate {rate:.2f} nats a row"
    if len(sites) > 1:
        says += f" ({', '.join(f'{name} {value:.2f}' for name, value in sites.items())})"
    says += f", distortion {-elbo - rate:.2f}"
    bounds = mutual_information(evidence)
    if bounds is not None:
        low, high = bounds[0], min(bounds[1], rate)
        rows = min(MATRIX_ROWS, len(evidence.numbers))
        full = low > 0.9 * math.log(rows)
        says += f"; information about the row {f'at least {low:.2f}' if full else f'{low:.2f} to {high:.2f}'}"
        values |= {"information_low": low, "information_high": high}
    return [
        Finding(
            "rate and distortion",
            PART,
            says + " nats",
            "a rate that is information about the row: the rest, KL(q(z) || p(z)), is a prior at odds with the codes",
            BAD if rate < 0.1 else OK,
            "The code says nothing of the row: free bits, KL warm-up, or a weaker decoder.",
            values=values,
            curves={"sites": list(sites), "kl": list(sites.values())},
        )
    ]


def mutual_information(evidence: Evidence) -> tuple[float, float] | None:
    """A lower and an upper estimate of I(x; z) under the guide, nats; None where the guide has no density at other codes."""
    found = []
    with evidence.fitted.scope(), seeded(evidence.seed + 8), quietly():
        for part in evidence.parts:
            if any(s.role == "auxiliary" or s.plates for s in part.layout.sites if s.local and s.role != "observed"):
                return None
            try:
                found.append((len(part.rows), _information(evidence, part)))
            except (PyrovaeError, NotImplementedError, RuntimeError, ValueError):  # as of a flow without an inverse
                return None
    total = sum(rows for rows, _ in found)
    low, high = (sum(rows * bounds[i] for rows, bounds in found) / total for i in (0, 1))
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _information(evidence: Evidence, part: FittedGroup) -> tuple[float, float]:
    rows = take_rows(part.batch, slice(0, MATRIX_ROWS))
    count = num_rows(rows)
    sites = [s for s in evidence.latent_sites(part) if s.enumerated != "model"]
    if not sites or count < 3:
        return math.nan, math.nan
    guide: Any = evidence.fitted.pair.guide
    drawn = terms(evidence.fitted.pair, rows, layout=part.layout, enumerate=False)
    codes = {s.name: drawn.rows(drawn.sites[s.name].value, s.event_shape)[0] for s in sites}
    nesting = part.layout.plate_nesting
    of_rows = [1] * nesting
    of_rows[drawn.data_dim] = count
    log_q = []
    for numbers in torch.arange(count).split(max(1, evidence.fitted.chunk_size(part.batch) // count)):
        lead = [len(numbers), *of_rows] if len(numbers) > 1 else of_rows
        values = {}
        for site in sites:  # a code in the place of each particle, the same for all rows
            some = codes[site.name][numbers.to(codes[site.name].device)]
            some = some.reshape(len(some), *(1 for _ in of_rows), *site.event_shape)
            values[site.name] = some.expand(len(some), *of_rows, *site.event_shape).reshape(*lead, *site.event_shape)
        at = SetValues(values)(guide)  # on both sides, since the model is not needed
        run = terms(Pair(at, at), rows, len(numbers), plate_nesting=nesting, enumerate=False)
        each = [side.log_prob for s in sites if (side := run.sites[s.name].q) is not None]
        log_q.append(torch.stack([run.reduce(log_p, True) for log_p in each]).sum(0).double().cpu())
    matrix = torch.cat(log_q)  # (codes, rows)
    own = matrix.diagonal()
    others = matrix.clone().fill_diagonal_(-torch.inf)
    low = (own - matrix.logsumexp(1) + math.log(count)).mean().item()
    high = (own - others.logsumexp(1) + math.log(count - 1)).mean().item()
    return max(0.0, low), max(0.0, high)


def active_units(evidence: Evidence) -> list[Finding]:
    """Which units of each latent site differ between rows, and the KL term of each.

    A unit is active if the variance of the means E[z | x] is above a hundredth of the prior's, as for `pv.active_units`. The
    means are averages of draws: the covariance of two halves of them, whose noise is independent, stands for their variance.

    References:
        Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, section 5.2, for the variance of the means.
    """
    kl = _kl_of_units(evidence)
    found = []
    for name, draws in evidence.draws.items():
        shares = _shares(evidence, name, draws)
        idle = (shares < INACTIVE).nonzero().squeeze(1).tolist()
        listed = ", ".join(f"{name}[{i}]" for i in idle[:MOST_NAMED]) + (", ..." if len(idle) > MOST_NAMED else "")
        single = len(shares) == 1
        says = f"{len(shares) - len(idle)} of {len(shares)} units say something of a row"
        if idle:
            says += f"; {name if single else listed} {'does' if len(idle) == 1 else 'do'} not"
        terms_of = kl.get(name)
        if terms_of is not None and not single:
            says += f" (KL from {terms_of.min().item():.2f} to {terms_of.max().item():.2f} nats a unit)"
        found.append(
            Finding(
                f"active units of {name}",
                PART,
                says,
                "all units differ between rows, or there are more than the data need",
                BAD if len(idle) == len(shares) else LOOK if idle else OK,
                "Units have collapsed to the prior. If log p(x) is as good with fewer latent dimensions, take fewer; else try "
                "free bits, KL warm-up, or a weaker decoder."
                if len(idle) < len(shares)
                else f"The site {name} has collapsed to its prior: free bits, KL warm-up, a weaker decoder, or a model "
                "without it.",
                values={"active": float(len(shares) - len(idle)), "units": float(len(shares))},
                curves={"share": shares.tolist(), "kl": [] if terms_of is None else terms_of.tolist(), "idle": idle},
            )
        )
    return found


def _shares(evidence: Evidence, name: str, draws: Tensor) -> Tensor:
    """For each unit the variance of its means over rows, in units of the prior's, `(D,)`; of a class label one number."""
    values = draws.reshape(*draws.shape[:2], -1).double().cpu()
    prior = torch.cat([rows.latent[name] for rows in evidence.simulated if name in rows.latent])
    prior = prior.reshape(len(prior), -1).double().cpu()
    classes = any(
        s.name == name and s.enumerated is not None and not s.event_shape
        for part in evidence.parts
        for s in part.layout.sites
    )
    if classes:  # whose numbers have no mean
        num = int(max(values.max(), prior.max())) + 1
        values, prior = (torch.nn.functional.one_hot(v.squeeze(-1).long(), num).double() for v in (values, prior))
    one, two = values.chunk(2)
    one, two = (half.mean(0) - half.mean((0, 1)) for half in (one, two))
    between = (one * two).sum(0) / max(1, values.shape[1] - 1)
    total = prior.var(0)
    if classes:
        between, total = between.sum(0, keepdim=True), total.sum(0, keepdim=True)
    return torch.where(total > 0, between / total.clamp_min(1e-30), 0.0)


def _kl_of_units(evidence: Evidence) -> dict[str, Tensor]:
    """The KL term of each unit, `(D,)`, of the sites whose units are independent in model and guide."""
    sums: dict[str, list[Tensor]] = {}
    with evidence.fitted.scope(), seeded(evidence.seed + 9), quietly():
        for part in evidence.parts:
            rows = take_rows(part.batch, slice(0, 1000))
            for _ in range(10):
                run = terms(evidence.fitted.pair, rows, layout=part.layout, enumerate=False)
                for site in evidence.latent_sites(part):
                    each = _difference(run, site.name)
                    if each is not None:
                        sums.setdefault(site.name, []).append(each)
    return {name: torch.cat(found).mean(0) for name, found in sums.items()}


def _difference(run: Terms, name: str) -> Tensor | None:
    """log q - log p of each unit at the draw, `(N, D)`, or None where units are not independent."""
    term = run.sites[name]
    if term.p is None or term.q is None:
        return None
    each = [None if is_delta(side.fn) else log_prob_of_entries(side.fn, term.value) for side in (term.q, term.p)]
    event = tuple(term.q.fn.event_shape)
    found = [run.rows(one, event)[0].reshape(run.num_rows, -1).double().cpu() for one in each if one is not None]
    return found[0] - found[1] if len(found) == 2 else None
