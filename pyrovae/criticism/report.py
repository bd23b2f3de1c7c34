"""`criticise`: every question about a fit, asked at once, and the report of what was found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyrovae._arguments import as_count, as_function, as_mapping, as_names, as_seed, as_several
from pyrovae._html import table
from pyrovae.criticism.aggregate import aggregate_posterior
from pyrovae.criticism.bounds import annealed, importance_bounds, inference_gap, log_likelihood
from pyrovae.criticism.evidence import Evidence
from pyrovae.criticism.findings import BAD, LEVEL, LOOK, NONE, OK, Finding, judged, plain_numbers
from pyrovae.criticism.intervals import predictive_intervals
from pyrovae.criticism.overfitting import copies, overfitting
from pyrovae.criticism.predictive import predictive_checks
from pyrovae.criticism.proposals import check_proposal
from pyrovae.criticism.sbc import joint_coverage, simulation_based_calibration, symmetry
from pyrovae.criticism.units import active_units, rate_and_distortion
from pyrovae.errors import DataError, OptionError, PyrovaeError, ShapeError
from pyrovae.fitted.diverged import CURE, diverged
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.asked import refuse_unfitted

Question = Callable[[Evidence], list[Finding]]
PARTS = ("bounds", "predictions", "latent variables", "guide")  # of a report, in their order

# Each question: the part of the report that it is in, and how it is asked.
QUESTIONS: dict[str, tuple[str, Question]] = {
    "log_likelihood": ("bounds", log_likelihood),
    "importance_bounds": ("bounds", importance_bounds),
    "annealed": ("bounds", annealed),
    "inference_gap": ("bounds", inference_gap),
    "overfitting": ("bounds", overfitting),
    "copies": ("bounds", copies),
    "predictive_checks": ("predictions", predictive_checks),
    "predictive_intervals": ("predictions", predictive_intervals),
    "rate_and_distortion": ("latent variables", rate_and_distortion),
    "active_units": ("latent variables", active_units),
    "aggregate_posterior": ("latent variables", aggregate_posterior),
    "simulation_based_calibration": ("guide", simulation_based_calibration),
    "symmetry": ("guide", symmetry),
    "joint_coverage": ("guide", joint_coverage),
}


@dataclass(frozen=True)
class Report:
    """What `pv.criticise` has found of a fit. Printed, it is a table with advice below; a notebook shows it as one.

    Attributes:
        findings: The answers, see `pv.Finding`, in the order of the questions.
        about: The numbers of rows and draws, the seed, the level of the tests, and the seconds that each question took.

    Example:
        >>> found = pv.Finding("copies of training rows", "bounds", "3 % stand there", "none", "bad", "Split anew.")
        >>> report = pv.Report((found,))
        >>> report.verdict, report["copies of training rows"].says
        ('bad', '3 % stand there')
        >>> print(report)
        bad   copies of training rows: 3 % stand there
              Good: none. Split anew.
    """

    findings: tuple[Finding, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The worst of the findings: "bad", "look" or "ok"."""
        found = {finding.verdict for finding in self.findings}
        return BAD if BAD in found else LOOK if LOOK in found else OK

    def of(self, *verdicts: str) -> list[Finding]:
        """The findings with these verdicts."""
        return [finding for finding in self.findings if finding.verdict in verdicts]

    def __getitem__(self, name: str) -> Finding:
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"{name!r} is none of {[finding.name for finding in self.findings]}")

    def to_json(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        about = plain_numbers(dict(self.about))
        return {"verdict": self.verdict, "about": about, "findings": [f.to_json() for f in self.findings]}

    def __str__(self) -> str:
        lines = []
        for found in self.findings:
            lines.append(f"{found.verdict:<5} {found.name}: {found.says}")
            if found.advice:
                lines.append(f"      Good: {found.good}. {found.advice}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(f.verdict, f.name, f.says, f.good) for f in self.findings]
        return table(
            f"Criticism: {self.verdict}",
            ("verdict", "question", "found", "good"),
            rows,
            [f.advice for f in self.of(BAD)],
        )


def criticise(
    fitted: Fit,
    data: Any,
    *,
    train: Any = None,
    num_rows: int = 400,
    num_samples: int = 1000,
    proposal: str = "refined",
    image_shape: tuple[int, ...] | None = None,
    columns: Sequence[str] | Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
    also: Mapping[str, Question] | None = None,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Ask every question about a fit that its trace can answer: is it any good, and if not, where?

    - bounds: ELBO, importance-weighted bounds, log p(x) with its error and k-hat, annealed importance sampling of a few
      rows, the gap between ELBO and log p(x); training rows against rows held out, and copies of training rows among these;
    - predictions: posterior predictive checks, `T(x)` beside `T(x_rep)`, with statistics that fit the values (zeros and
      dispersion of counts, tails and correlations of tables, neighbouring pixels), and the coverage of predictive intervals;
    - latent variables: rate, distortion and information, active units, and the aggregate posterior `q(z)` against the prior;
    - the guide: simulation-based calibration under its own model, bias (VSBC), and joint coverage (TARP).

    A verdict that rests on a test changes only if the test is significant at a level of 1 % among all tests of the report, by
    Holm's procedure: were the model exactly right, one report in a hundred at most would differ by chance. What is significant
    must also be large enough to matter. The other verdicts rest on the sizes of effects alone.

    Args:
        fitted: The fitted pair.
        data: Rows that were held out of the fit, as for `pv.fit`.
        train: The rows of the fit, for what compares the two; None leaves these questions out. What some row of either lacks,
            such as a label, is left out of the comparison.
        num_rows: The most rows of each that are looked at, drawn at random if there are more.
        num_samples: The number K of draws for each row.
        proposal: "refined", "laplace" or "guide", as for `pv.importance`.
        image_shape: `(H, W)` or `(C, H, W)` where rows are flattened images.
        columns: The names of the columns of a table, by which the findings call them. A mapping gives the names of the
            classes of each, too, in the order of their numbers, an empty tuple for a column of numbers, and
            what those of dates, periods and times count: the date of day 0, such as `np.datetime64("1970-01-01")`, the period
            of number 0, `pd.Period("1970-01", "M")`, or a duration, `np.timedelta64(1, "s")`. `pv.tables.Schema` has all that
            as `meanings`.
        only: The names of questions, to ask these alone: log_likelihood, importance_bounds, annealed, inference_gap,
            overfitting, copies, predictive_checks, predictive_intervals, rate_and_distortion, active_units,
            aggregate_posterior, simulation_based_calibration, symmetry, joint_coverage.
        also: Questions of your own by name, asked after those about bounds, whatever `only` says. Each is a function of the
            evidence, of which `rows` are the rows held out and `estimated` is `pv.importance` of them, and returns a list of
            `pv.Finding`.
        seed: The seed of all draws.
        say: Called with the name of each question before it is asked.

    Returns:
        The report, see `pv.Report`. A question that cannot be asked of the pair has the verdict "none", and says why.

    Raises:
        OptionError: `num_rows` is less than 2, `num_samples` less than 1, or a question or proposal is unknown.
        ShapeError: No part of the rows has as many columns as have names.
        DataError: There are fewer than two rows, or they have another shape or dtype than those of the fit.

    References:
        Gelman et al. 2020, *Bayesian workflow*, arXiv:2011.01808. Talts et al. 2018, arXiv:1804.06788. Yao, Vehtari, Simpson &
        Gelman 2018, arXiv:1802.02538. Cremer, Li & Duvenaud 2018, arXiv:1801.03558.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> report = pv.criticise(fitted, x, only=("log_likelihood", "active_units"), num_samples=50, proposal="guide")
        >>> [finding.name for finding in report.findings]
        ['log p(x)', 'active units of z']
    """
    refuse_unfitted(fitted)
    num_rows, num_samples = as_count("num_rows", num_rows, least=2), as_count("num_samples", num_samples)
    check_proposal(proposal)
    seed, only = as_seed(seed), as_names("only", only)
    columns = columns if columns is None or isinstance(columns, Mapping) else as_several("columns", columns, "names")
    say = None if say is None else as_function("say", say, "the name of a question")
    also = as_mapping("also", also, "functions of the evidence, by the names of questions")
    if unknown := [name for name in only or () if name not in QUESTIONS]:
        raise OptionError(f"only= names questions: {', '.join(QUESTIONS)}; got {', '.join(map(repr, unknown))}.")
    how: dict[str, Any] = {"samples": num_samples, "proposal": proposal, "image_shape": image_shape, "seed": seed}
    how["columns"] = None if columns is None else tuple((str(name), _classes(columns, name)) for name in columns)
    evidence = Evidence(fitted, data, train, rows=num_rows, **how)
    if len(evidence.numbers) < 2:
        raise DataError("A report needs at least two rows held out, better some hundreds, got one.")
    _check_columns(columns, evidence)
    found, seconds = [], {}
    asked = [(name, *QUESTIONS[name]) for name in QUESTIONS if only is None or name in only]
    asked += [(name, PARTS[0], ask) for name, ask in also.items()]
    for name, part, ask in sorted(asked, key=lambda one: PARTS.index(one[1])):
        start = time.perf_counter()
        if say is not None:
            say(name.replace("_", " "))
        try:
            found += ask(evidence)
        except PyrovaeError as error:
            found.append(Finding(name.replace("_", " "), part, f"not asked of this pair: {error}", "", NONE))
        seconds[name] = time.perf_counter() - start
    about = {
        "rows": len(evidence.numbers),
        "held_out_rows": len(next(iter(evidence.held_out.values()))),
        "training_rows": 0 if evidence.training is None else len(next(iter(evidence.training.values()))),
        "num_samples": num_samples,
        "proposal": evidence.estimated.proposal if "estimated" in vars(evidence) else proposal,
        "level": LEVEL,
        "seed": seed,
        "seconds": seconds,
    }
    return Report(_of_divergence(fitted, judged(found)), about)


def _of_divergence(fitted: Fit, found: list[Finding]) -> tuple[Finding, ...]:
    """The findings; of a fit that diverged, that first, and no advice on anything else, which would be wrong."""
    said = diverged(fitted)
    if not said:
        return tuple(found)
    advice = f"Nothing else that is found here says anything of the model: {CURE}."
    first = Finding("course of the fit", PARTS[0], said, "the ELBO rises", BAD, advice)
    return (first, *(replace(one, advice="") for one in found))


def _classes(columns: Sequence[str] | Mapping[str, Any], name: str) -> Any:
    return columns[name] if isinstance(columns, Mapping) else ()


def _check_columns(columns: Sequence[str] | Mapping[str, Any] | None, evidence: Evidence) -> None:
    """ShapeError unless some argument has as many columns as have names."""
    widths = sorted({int(values[0].numel()) for values in evidence.rows.values()})
    if columns is not None and len(columns) not in widths:
        raise ShapeError(
            f"columns= names {len(columns)} columns, and rows have {' or '.join(map(str, widths))}. Name all of them, in order."
        )


def as_text(report: Report) -> str:
    """The report as the text of a JSON file."""
    return json.dumps(report.to_json(), indent=1)
