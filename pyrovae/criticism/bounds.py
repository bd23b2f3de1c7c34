"""How probable rows are, how far the estimates can be trusted, and how far the guide is from the posterior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.criticism.ais import ais
from pyrovae.criticism.averages import of_mean, over_rows
from pyrovae.criticism.decomposition import kl_by_site
from pyrovae.criticism.evidence import Evidence, quietly
from pyrovae.criticism.findings import BAD, LOOK, OK, Finding, grade
from pyrovae.criticism.importance import weight_blocks
from pyrovae.criticism.psis import k_hat_threshold
from pyrovae.criticism.refine import refine
from pyrovae.errors import PairError, counted
from pyrovae.fitted.fitted import seeded
from pyrovae.pair.batch import take_rows

PART = "bounds"
PARTICLES = (10, 100, 1000, 5000)  # K of the importance-weighted bounds
BOUND_ROWS = 100  # on which they are computed
WORST = 5  # rows that are shown
ANNEALED_ROWS, SPLIT_ROWS = 8, 100
AMORTISATION = (
    "The encoder does not find the best q of a row: train it on more rows or on transformed ones, widen it, or refine q for "
    "each row (proposal='refined')."
)
FAMILY = "The family of the guide is too small: try a full covariance or a flow."


def log_likelihood(evidence: Evidence) -> list[Finding]:
    """log p(x) of the rows, its error, and the share of rows whose draws do not carry it."""
    found = evidence.estimated
    log_p, error = found.log_likelihood, found.standard_error
    mean, spread = log_p.mean().item(), over_rows(log_p)
    noise = of_mean(error)
    limit = k_hat_threshold(found.num_samples)
    known = not bool(torch.isnan(found.k_hat).any())
    share = (found.k_hat > limit).double().mean().item() if known else float("nan")
    worst = found.k_hat.nan_to_num(0.0).argsort(descending=True)[:WORST]
    least = log_p.argsort()[:WORST]
    numbers = evidence.numbers
    says = f"log p(x) is {mean:.2f} ± {spread:.2f} nats a row (Monte Carlo ± {noise:.3f})"
    if evidence.is_point:
        says = f"log p(x) is at least {mean:.2f} ± {spread:.2f} nats a row, the ELBO: all draws of the guide are one"
    elif known:
        says += f"; k-hat is above {limit:.2f} in {share:.1%} of {len(log_p)} rows"
        if share:
            says += f", most in row {int(numbers[worst[0]])} ({found.k_hat[worst[0]]:.2f})"
    if found.factors:
        says += (
            f", with the factors {', '.join(map(repr, found.factors))}: of log p(x) only if they are part of p(x, z)"
        )
    verdict = grade(share, 0.05, 0.25) if known else LOOK
    advice = (
        "log p(x) is a lower bound in these rows: raise num_samples, or give the guide a richer family (full, iaf)."
        if known
        else "k-hat needs 25 draws a row or more: raise num_samples."
    )
    return [
        Finding(
            "log p(x)",
            PART,
            says,
            f"k-hat at most {limit:.2f} in 95 % of the rows or more",
            verdict,
            advice,
            values={
                "log_likelihood": mean,
                "log_likelihood_se": spread,
                "monte_carlo_error": noise,
                "elbo": found.elbo.mean().item(),
                "k_hat_threshold": limit,
                "k_hat_above": share,
                "ess_median": found.ess.median().item(),
                "rows": float(len(log_p)),
            },
            curves={
                "k_hat": found.k_hat.tolist(),
                "log_likelihood": log_p.tolist(),
                "worst_rows": [[int(numbers[i]), found.k_hat[i].item(), log_p[i].item()] for i in worst],
                "least_probable_rows": [[int(numbers[i]), log_p[i].item()] for i in least],
            },
        )
    ]


def importance_bounds(evidence: Evidence) -> list[Finding]:
    """The ELBO and the importance-weighted bounds of K draws of the guide, which rise to log p(x).

    References:
        Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519.
    """
    evidence.check_spread()
    fitted, found, most = evidence.fitted, [], PARTICLES[-1]
    with fitted.scope(), seeded(evidence.seed + 5), quietly():
        for part in evidence.parts:
            few = max(2, round(BOUND_ROWS * len(part.rows) / len(evidence.numbers)))
            rows = take_rows(part.batch, slice(0, few))
            blocks = [block[0].double().cpu() for block in weight_blocks(fitted, rows, part.layout, most)]
            found.append((part.rows[:few].cpu(), torch.cat(blocks, 1)))
    index, log_w = torch.cat([rows for rows, _ in found]), torch.cat([w for _, w in found], 1)
    curve = [(1, evidence.estimated.elbo[index].mean().item())]
    curve += [(k, _bound(log_w, k).mean().item()) for k in PARTICLES]
    log_p = evidence.estimated.log_likelihood[index].mean().item()
    listed = ", ".join(f"{value:.2f} (K = {k})" for k, value in curve[1:])
    left = log_p - curve[-1][1]
    return [
        Finding(
            "importance-weighted bounds",
            PART,
            f"of {counted(len(index), 'row')}: ELBO {curve[0][1]:.2f}, {listed}, log p(x) {log_p:.2f}",
            "the bounds rise with K to log p(x), to 0.1 nats at K = 5,000",
            OK if left < 0.1 else LOOK,
            "Draws of the guide alone miss part of the posterior even at K = 5,000: compare models by log p(x) of a refined "
            "proposal, and not by such bounds.",
            values={"elbo": curve[0][1], **{f"iwae_{k}": v for k, v in curve[1:]}, "log_likelihood": log_p},
            curves={"particles": [k for k, _ in curve], "bound": [v for _, v in curve], "log_likelihood": log_p},
        )
    ]


def _bound(log_w: Tensor, particles: int) -> Tensor:
    """The bound of so many draws for each row, averaged over all sets of them among the draws."""
    sets = log_w[: len(log_w) // particles * particles].reshape(-1, particles, log_w.shape[1])
    return (sets.logsumexp(1) - math.log(particles)).mean(0)


def annealed(evidence: Evidence) -> list[Finding]:
    """Annealed importance sampling of a few rows, which needs no good proposal, beside log p(x) of a refined one.

    100 temperatures from a Normal at the guide's moments, 8 chains of 5 leapfrog steps. Both are too low in expectation, so
    that only an annealed estimate above the other says that log p(x) is too low.

    References:
        Neal 2001, *Annealed importance sampling*, Statistics and Computing 11. Wu et al. 2017, arXiv:1611.04273.
    """
    if evidence.proposal != "refined" or evidence.estimated.proposal != "refined":
        return []
    few = take_rows(evidence.rows, slice(0, ANNEALED_ROWS))
    with quietly():
        how = {"num_temperatures": 100, "num_chains": 8, "num_leapfrog": 5, "start": "guide"}
        found = ais(evidence.fitted, few, seed=evidence.seed + 12, **how)  # type: ignore[arg-type]
    refined = evidence.estimated
    count = len(found.log_likelihood)
    difference = (found.log_likelihood - refined.log_likelihood[:count]).mean().item()
    error = math.hypot(of_mean(found.standard_error), of_mean(refined.standard_error[:count]))
    above = max(0.0, difference - 3 * error)
    return [
        Finding(
            "annealed importance sampling",
            PART,
            f"of {counted(count, 'row')}: {difference:+.2f} ± {error:.2f} nats from log p(x) of the refined proposal",
            "not above it: both are too low where they err",
            grade(above, 0.2, 1.0),
            "log p(x) is too low: the posterior has parts that the refined proposal misses. Raise num_samples, and compare "
            "models by pv.ais with more temperatures.",
            values={"difference": difference, "difference_se": error, "acceptance": found.acceptance.mean().item()},
        )
    ]


def inference_gap(evidence: Evidence) -> list[Finding]:
    """How far the guide's ELBO is below log p(x), `KL(q(z | x) || p(z | x))`, on rows held out, and why.

    Of some rows it is split by a Normal with full covariance that is fitted to each row: what the guide loses against it is the
    amortisation gap, the rest the approximation gap.

    References:
        Cremer, Li & Duvenaud 2018, arXiv:1801.03558.
    """
    evidence.check_spread()
    found = evidence.estimated
    kl = kl_by_site(evidence.fitted, evidence.rows, seed=evidence.seed)
    if not kl:
        return []
    gap = found.log_likelihood - found.elbo
    mean, error = gap.mean().item(), over_rows(gap)
    rate = sum(terms.double().mean().item() for terms in kl.values())
    values = {"gap": mean, "gap_se": error, "rate": rate}
    says = f"the ELBO is {mean:.2f} ± {error:.2f} nats below log p(x), the code's rate is {rate:.2f} nats"
    advice = f"{AMORTISATION} {FAMILY}"
    split = _split(evidence)
    if split is not None:
        amortisation, approximation = split["amortisation_gap"], split["approximation_gap"]
        few = min(SPLIT_ROWS, len(gap))
        says += f"; of {counted(few, 'row')} {amortisation:.2f} by amortisation"
        says += f" and {approximation:.2f} by the family of a Normal"
        advice = AMORTISATION if amortisation > approximation else FAMILY
        values |= {name: split[name] for name in ("amortisation_gap", "approximation_gap")}
    # the median row, since one draw far out can make the mean rate as large as any gap, and so excuse it
    scale = torch.stack([terms.double() for terms in kl.values()]).sum(0).median().abs().item()
    return [
        Finding(
            "inference gap",
            PART,
            says,
            "a gap of less than 0.3 nats or 5 % of the rate",
            BAD if mean > max(1.0, 0.3 * scale) else LOOK if mean > max(0.3, 0.05 * scale) else OK,
            advice,
            values=values,
            curves={"gap": gap.tolist()},
        )
    ]


def _split(evidence: Evidence) -> dict[str, float] | None:
    """The gaps of some rows; None where a row has no q of its own, or the proposal is to be cheap."""
    if evidence.proposal != "refined" or evidence.estimated.proposal != "refined" or evidence.samples < 2:
        return None
    rows = take_rows(evidence.rows, slice(0, SPLIT_ROWS))
    try:
        with quietly():
            return refine(evidence.fitted, rows, min(evidence.samples, 500), seed=evidence.seed + 13).summary()
    except PairError:
        return None
