"""What `pyrovae label` leaves: its answer, and how one answer replaces another in the run folder and in the table."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from pyrovae._files import swap, write_beside
from pyrovae.app.jobs.label.judging import Judged, judge
from pyrovae.app.jobs.label.reading import Job
from pyrovae.app.jobs.label.report import tabulate
from pyrovae.app.jobs.label.rounds import Rounds
from pyrovae.app.options import Options
from pyrovae.errors import counted
from pyrovae.fitted.files import STATE, claim_folder, read_run, replace_files
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.folder import WITHOUT_PAIR, write_fit


@dataclass(frozen=True, eq=False)
class Answer:
    """What the job leaves.

    Args:
        fitted: the fitted model; None without one.
        info: what its run.json has recorded.
        table: one line a row, see `tabulate`.
        probabilities: of the classes of all rows, `(N, C)`.
        report: the numbers of the held-out rows, see `held_out_report`.
        pictures: the files that were drawn.
        rounds: how many ensembles have answered; 0 where there is none.
    """

    fitted: Fit | None
    info: dict[str, Any]
    table: pd.DataFrame
    probabilities: Tensor
    report: dict[str, Any]
    pictures: list[Path]
    rounds: int


@dataclass(frozen=True, eq=False)
class Writer:
    """What all answers of a call have in common, and how each replaces the one before.

    Args:
        job: the rows.
        options: with everything decided.
        folder: of the run.
        to: the table.
        fitted: the model; None without one.
        q: what its classifier says of all rows, `(N, C)`.
        held: the positions of the rows that are held out.
        judged: what cross-validation has found by the first ensemble, if there was one.
        known: the digest of the labels that are learned from.
        written: the digests of the tables that earlier calls have written.
    """

    job: Job
    options: Options
    folder: Path
    to: Path
    fitted: Fit | None
    q: Tensor | None
    held: Tensor
    judged: Judged | None
    known: str
    written: Mapping[str, str]

    @property
    def truth(self) -> Tensor:
        """The labels of the rows by which answers are judged, `(n,)`."""
        return self.job.labels.y[self.held if self.judged is None else self.judged.rows]

    def write(self, ensembles: Rounds | None) -> Answer:
        """Write the answer, and what the next call needs to go on, so that a crash leaves the one before or this one."""
        judged, f = self.judged, None
        if ensembles is not None:
            f, of_judged = ensembles.answer(self.truth)
            judged = None if judged is None else replace(judged, ensemble=of_judged)
        report, weights = judge(self.job, self.q, f, self.held, judged, self.options)
        probabilities = weights.pooled(self.q, f)
        table = tabulate(self.job, probabilities)
        content = table.to_csv(index=False, float_format="%.6g").encode()
        number = 0 if ensembles is None else ensembles.number
        info = {
            "job": "label",
            "data": self.job.dataset.source,
            "rows": self.job.digest(),
            "options": self.options.to_json("label"),
            "classes": list(self.job.labels.classes),
            "held_out": self.held.tolist(),
            "known_labels": self.known,
            "rounds": number,
            **({"cross_validation": judged.to_json()} if judged is not None else {}),
            "results": report,
            "written": dict(self.written) | {str(self.to.absolute()): hashlib.sha256(content).hexdigest()},
        }
        claim_folder(self.folder, force=True)
        write_beside(self.to, content)
        if ensembles is not None and number > 1:  # the run is there, and only its answer is another
            run = read_run(self.folder) | {"info": info}
            replace_files(self.folder, run, {STATE: ensembles.content()}, anew=False)
        elif self.fitted is None:
            replace_files(self.folder, {"status": WITHOUT_PAIR, "info": info}, {}, anew=True)
        else:
            self.fitted.info = info
            write_fit(self.folder, self.fitted, anew=True)
        swap(self.to)
        return Answer(self.fitted, info, table, probabilities, report, [], number)

    def line(self, ensembles: Rounds, answer: Answer, seconds: float) -> str:
        """How good an answer is, and by how much better than the first, in one line."""
        done = f"{seconds:.0f} s, {counted(ensembles.number, 'ensemble')}"
        if "log_score" not in answer.report:
            return f"{done}; no label is held out, so nothing is known about how good they are"
        gain, error = ensembles.gain(self.truth)
        how = "held-out rows" if self.judged is None else "cross-validated"
        first = f"{abs(gain):.3f} ± {error:.3f} {'below' if gain >= 0 else 'above'} the first alone"
        kept = "; the first answers" if gain < -error else ""
        right = 100 * answer.report["accuracy"]
        return f"{done}: log-loss {answer.report['log_score']:.3f}, accuracy {right:.1f}% ({how}); {first}{kept}"
