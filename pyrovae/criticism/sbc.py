"""Is the guide the posterior of its own model? Calibration on rows that the model draws, whose codes are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae._lazily import Lazily
from pyrovae.criticism import ecdf
from pyrovae.criticism.evidence import GUIDE_DRAWS, LIKELIHOOD, Codes, Evidence
from pyrovae.criticism.findings import LEVEL, Finding, grade

stats = Lazily("scipy.stats")

PART = "guide"
MOST_CURVES = 12  # units that are drawn


def ranks(truth: Tensor, draws: Tensor, generator: np.random.Generator) -> NDArray[Any]:
    """The rank of each value among its draws, 0 to L, `(N, D)`; a value that equals draws has any of their ranks at random."""
    below = (draws < truth).sum(0).numpy()
    same = (draws == truth).sum(0).numpy()
    found: NDArray[Any] = below + generator.integers(0, same + 1)
    return found


def simulation_based_calibration(evidence: Evidence) -> list[Finding]:
    """Ranks of true codes among draws of the guide, for rows drawn from the model: uniform if the guide is the posterior.

    The distribution function of the ranks of each unit is compared with the uniform one by the exact p-value of its largest
    departure, multiplied by the number of units. Discrete codes have randomised ranks. Beside the units stands the
    log-likelihood of the row, whose ranks depend on all units together: they find correlations that the guide lacks.

    References:
        Talts, Betancourt, Simpson, Vehtari & Gelman 2018, arXiv:1804.06788. Saeilynoja, Buerkner & Vehtari 2022,
        arXiv:2103.10522. Modrak, Moon, Kim, Buerkner, Huurre, Faltejskova, Gelman & Vehtari 2023, arXiv:2211.02383.
    """
    generator = np.random.default_rng(evidence.seed)
    found = []
    for codes in evidence.codes:
        r = ranks(codes.truth, codes.draws, generator)
        smallest = ecdf.smallest_p(r, GUIDE_DRAWS)
        unit = int(smallest.argmin())
        p = min(1.0, r.shape[1] * ecdf.p_value(float(smallest[unit]), len(r), GUIDE_DRAWS))
        curves = ecdf.difference(r, GUIDE_DRAWS)
        size = float(np.abs(curves).max(0)[unit])
        u = (r + 0.5) / (GUIDE_DRAWS + 1)
        spread = float(np.sqrt(np.mean((u - 0.5) ** 2, 0) * 12)[unit])  # 1 for uniform ranks
        moved = float(u.mean(0)[unit] - 0.5)
        what = _fault(codes.name, spread, moved)
        at, low, high = ecdf.band(len(r), GUIDE_DRAWS, LEVEL / r.shape[1])
        shown = np.argsort(smallest)[:MOST_CURVES]
        found.append(
            Finding(
                f"calibration of the guide, {codes.name}",
                PART,
                f"of {len(r)} rows drawn from the model, ranks of true codes among draws of the guide depart from uniform by "
                f"up to {size:.3f} ({_of_unit(codes, unit)})",
                "ranks are uniform to 0.03",
                grade(size, 0.03, 0.07),
                f"Under its own model {what}: train for longer, give the encoder more units or rows, take a richer family "
                "(full, a flow), and use log p(x), posterior draws and classes of a refined proposal until then.",
                values={
                    "departure": size,
                    "unit": float(unit),
                    "spread": spread,
                    "shift": moved,
                    "rows": float(len(r)),
                },
                p_value=p,
                curves={
                    "at": at,
                    "low": low,
                    "high": high,
                    "units": {_of_unit(codes, i): curves[:, i].tolist() for i in shown},
                },
            )
        )
    return found


def _fault(name: str, spread: float, moved: float) -> str:
    """What ranks say of the guide: its draws too narrow, too wide, or moved."""
    if name == LIKELIHOOD:
        return f"draws of the guide explain a row {'worse' if moved > 0 else 'better'} than its true code does"
    if abs(moved) > 0.5 * abs(spread - 1) and abs(moved) > 0.01:
        return f"the guide is too {'low' if moved > 0 else 'high'}"
    if spread > 1:
        return "the guide is too narrow, or its means are off from row to row"
    return "the guide is too wide"


def _of_unit(codes: Codes, unit: int) -> str:
    return f"{codes.name}[{unit}]" if codes.truth.shape[1] > 1 else codes.name


def symmetry(evidence: Evidence) -> list[Finding]:
    """VSBC: the probabilities that the guide gives to codes below the true one are symmetric around 1/2, if it is not biased.

    Wilcoxon's signed-rank test, with the smallest p-value over units multiplied by their number. Unlike the ranks'
    uniformity it does not mind a guide that is too narrow, as that of mean-field inference, but finds one that is off to one
    side. Classes and other discrete codes have randomised ranks.

    References:
        Yao, Vehtari, Simpson & Gelman 2018, arXiv:1802.02538, section 3.2.
    """
    generator = np.random.default_rng(evidence.seed + 1)
    found = []
    for codes in evidence.codes:
        if codes.name == LIKELIHOOD:
            continue
        r = ranks(codes.truth, codes.draws, generator)
        centred = (r + 0.5) / (GUIDE_DRAWS + 1) - 0.5
        p = np.array([stats.wilcoxon(column).pvalue if np.any(column) else 1.0 for column in centred.T])
        unit = int(p.argmin())
        moved = float(centred.mean(0)[unit])
        found.append(
            Finding(
                f"bias of the guide, {codes.name}",
                PART,
                f"true codes have a mean probability of {0.5 + moved:.3f} under the guide ({_of_unit(codes, unit)})",
                "0.5, to 0.02 for each unit",
                grade(abs(moved), 0.02, 0.07),
                "The guide's means are off to one side: train for longer, or give the encoder more units.",
                values={"shift": moved, "unit": float(unit)},
                p_value=min(1.0, float(p[unit]) * len(p)),
            )
        )
    return found


def joint_coverage(evidence: Evidence) -> list[Finding]:
    """TARP: the share of draws of the guide that are nearer to a random point than the true code is, uniform for the posterior.

    All latent sites that every row has together, each unit in units of its standard deviation; the random points are codes of
    other rows.

    References:
        Lemos, Coogan, Hezaveh & Perreault-Levasseur 2023, arXiv:2302.03026.
    """
    everywhere = max((len(one.truth) for one in evidence.codes), default=0)
    codes = [one for one in evidence.codes if one.name != LIKELIHOOD and len(one.truth) == everywhere]
    if not codes or sum(c.truth.shape[1] for c in codes) < 2:
        return []
    truth, draws = torch.cat([c.truth for c in codes], -1), torch.cat([c.draws for c in codes], -1)
    scale = truth.std(0).clamp_min(1e-9)
    points = truth.roll(1, 0)  # rows are drawn independently of each other
    own = ((truth - points) / scale).square().sum(-1, keepdim=True)
    each = ((draws - points) / scale).square().sum(-1, keepdim=True)
    r = ranks(own, each, np.random.default_rng(evidence.seed + 2))
    p = ecdf.p_value(float(ecdf.smallest_p(r, GUIDE_DRAWS)[0]), len(r), GUIDE_DRAWS)
    curve = ecdf.difference(r, GUIDE_DRAWS)[:, 0]
    size = float(np.abs(curve).max())
    at, low, high = ecdf.band(len(r), GUIDE_DRAWS, LEVEL)
    return [
        Finding(
            "joint coverage of the guide",
            PART,
            f"regions of the guide in all {truth.shape[1]} units together hold the true code with a share that is off by up to "
            f"{size:.3f}",
            "to 0.03",
            grade(size, 0.03, 0.07),
            "Regions of the guide hold the true code too seldom or too often: take a family that has correlations (full, a "
            "flow), or refine q for each row.",
            values={"departure": size, "units": float(truth.shape[1])},
            p_value=p,
            curves={"at": at, "low": low, "high": high, "units": {"all units together": curve.tolist()}},
        )
    ]
