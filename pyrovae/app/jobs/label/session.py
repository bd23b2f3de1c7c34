"""A session of labelling: which rows are asked about, what is said of them, and what the model learns meanwhile.

It knows nothing of HTTP. All that it answers is made of numbers, texts, lists and dicts, as JSON has them.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyrovae._files import write_file
from pyrovae._json import of_json
from pyrovae.app.jobs.label.answers import INFORMATIVE, RANDOM, SECOND, Answers, check_annotator
from pyrovae.app.jobs.label.learning import Learned, Learner, why_not
from pyrovae.app.jobs.label.reading import Job
from pyrovae.app.jobs.label.views import Views
from pyrovae.criticism.calibration import share_interval
from pyrovae.data.labels import as_labels
from pyrovae.errors import DataError

BATCH = 24  # rows that are asked about together
SHARE = 6  # of a batch, one row in so many is drawn at random, and one asks for a second opinion
ENOUGH = 10  # new labels after which the model learns again
MOST_ROWS = 1_000  # that can be labelled in one step
LONGEST_LABEL = 100  # letters
KEYS = "1234567890abcdefghijklmnopqrstuvwxyz"
VIEWS = ("next", "disagreements", "doubtful")
HISTORY = "page.json"  # in the run folder: what the fits of this session found


class Session:
    """Rows to label, the labels that people give, and a model that learns from them and says what to ask next.

    Each annotator has a batch of rows. Of those, some are drawn at random from the rows without a label, so that there are
    labels which speak for all rows; some have a label by one other annotator, which is not shown before the second is given;
    the others are those of which the model is in doubt, by 1 minus the margin between its two most probable labels. As the
    most doubtful rows are often alike, each doubt is multiplied by a random factor (power acquisition): `log doubt + Gumbel
    noise` decides.

    Args:
        job: The rows, with the labels that are known before.
        path: The file of labels, see `Answers`.
        learner: What fits the model.
        folder: Where the history of fits is kept; None keeps it in memory.
        batch: The rows of a batch.
        seed: Of the rows that are chosen.

    References:
        Kirsch et al. 2021, arXiv:2106.12059 (power acquisition).
    """

    def __init__(
        self, job: Job, path: Path, learner: Learner, *, folder: Path | None = None, batch: int = BATCH, seed: int = 0
    ) -> None:
        given = job.labels.text(job.labels.y)
        self.job, self.learner, self.batch = job, learner, batch
        self.views = Views.of(job)
        self.answers = Answers(path, job.id_column, job.ids, len(job.x), given)
        self.learned: Learned | None = None
        self.failed = ""
        self._names = job.names()
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._folder = folder
        self._fits, added = _history(folder)
        self._added = list(as_labels([*job.labels.classes, *self.answers.classes(), *added]).classes)
        self._typed: set[str] = set()  # labels that came with a row, and go with it when that is taken back
        self._batches: dict[str, list[int]] = {}
        self._why: dict[int, str] = {}  # how a row of some batch was chosen
        self._skipped: dict[str, dict[int, None]] = {}
        self._taught: list[str] = [""] * len(job.x)  # the labels of the last fit that was started
        self._learned_from = self._taught  # those of the last one that has ended
        self._started = 0.0
        self._learn()

    # --- what is asked

    def state(self, annotator: object, view: str = "next") -> dict[str, Any]:
        """All that the page shows.

        Raises:
            DataError: The name of the annotator, or of the view, cannot be.
        """
        name = check_annotator(annotator)
        if view not in VIEWS:
            raise DataError(f"a view is one of {', '.join(VIEWS)}, got {view!r}.")
        with self._lock:
            self._poll()
            rows = self._batch(name) if view == "next" else self._listed(name, view)
            return {
                "name": self.job.dataset.name,
                "file": str(self.answers.path),
                "images": self.views.are_images,
                "annotator": name,
                "annotators": {who: len(self.answers.of(who)) for who in self.answers.annotators},
                "classes": [{"name": label, "key": key} for label, key in keys_of(self.classes()).items()],
                "view": view,
                "rows": [self._row(row, name) for row in rows],
                "progress": self._progress(name),
                "model": self._model(),
                "fits": self._fits,
            }

    def classes(self) -> list[str]:
        """The labels that can be given, in the order of their buttons."""
        with self._lock:
            return list(dict.fromkeys([*self._added, *self.answers.classes()]))

    def image(self, row: object) -> bytes:
        """The image of a row as a PNG file. DataError if there is none."""
        return self.views.image_of(self._check_rows([row])[0])

    # --- what is said

    def label(self, annotator: object, rows: object, label: object) -> None:
        """Give rows a label, which is in the file when this returns.

        Raises:
            DataError: A row is not there, or the label or the name cannot be.
            OSError: The file cannot be written; then nothing has changed.
        """
        name, some, text = check_annotator(annotator), self._check_rows(rows), self._check_label(label)
        with self._lock:
            self.answers.give(name, some, text, self._why)
            if text not in self._added:
                self._added.append(text)
                self._typed.add(text)
            self._forget_skipped(name, some)
            self._advance(name)

    def skip(self, annotator: object, rows: object) -> None:
        """Leave rows for later: they come again when there is nothing else."""
        name, some = check_annotator(annotator), self._check_rows(rows)
        with self._lock:
            self._skipped.setdefault(name, {}).update(dict.fromkeys(some))
            self._advance(name)

    def undo(self, annotator: object) -> list[int]:
        """Take back the last labels of an annotator: their rows, [] if there is nothing to take back."""
        name = check_annotator(annotator)
        with self._lock:
            rows = self.answers.undo(name)
            batch = self._batches.get(name, [])
            back = [row for row in rows if row not in batch and row not in self.answers.of(name)]
            used = set(self.answers.classes())
            self._added = [label for label in self._added if label in used or label not in self._typed]
            self._batches[name] = (back + batch)[: max(self.batch, len(back))]
            self._learn()
            return rows

    def next(self, annotator: object) -> None:
        """Take other rows in place of those of the batch that have no label yet."""
        name = check_annotator(annotator)
        with self._lock:
            self._poll()
            self._batches.pop(name, None)

    def add_class(self, label: object) -> str:
        """Add a label that nobody has given yet, and return it as it is written from now on."""
        text = self._check_label(label)
        with self._lock:
            if text not in self._added:
                self._added.append(text)
                self._remember()
        return text

    def close(self) -> None:
        """End the model's process. All labels are in the file already."""
        self.learner.close()

    # --- the model

    def _learn(self) -> None:
        """Let the model learn if it is idle, and enough is new."""
        if self.learner.busy:
            return
        texts = self.answers.texts()
        new = sum(now != before for now, before in zip(texts, self._taught))
        if new >= min(ENOUGH, max(2, len(texts) // 10)) and not why_not(texts):
            self._taught, self._started = texts, time.monotonic()
            self.learner.start(texts)

    def _poll(self) -> None:
        """Take up what the model has learned."""
        found = self.learner.poll()
        if isinstance(found, str):
            self.failed = found
        elif found is not None:
            self.failed, self.learned, self._learned_from = "", found, self._taught
            self._fits = [fit for fit in self._fits if fit["labels"] != found.labels] + [self._summary(found)]
            self._remember()
        if not isinstance(found, str):
            self._learn()

    def _remember(self) -> None:
        """Keep what no label says, for when the page is started again."""
        if self._folder is not None:
            with suppress(OSError):  # the next fit writes it again
                write_file(self._folder / HISTORY, json.dumps({"fits": self._fits, "classes": self._added}).encode())

    def _summary(self, found: Learned) -> dict[str, Any]:
        """The numbers of a fit that the page draws."""
        names = ("held_out", "accuracy", "accuracy_low", "accuracy_high", "calibration_error", "curve")
        report = {name: found.report.get(name) for name in names}
        at_random = [right for row, (_, right) in found.judged.items() if self.answers.chosen.get(row) == RANDOM]
        drawn: dict[str, Any] | None = None
        if at_random:
            low, high = share_interval(sum(at_random) / len(at_random), len(at_random))
            drawn = {"rows": len(at_random), "accuracy": sum(at_random) / len(at_random), "low": low, "high": high}
        return {"labels": found.labels, **report, "at_random": drawn}

    def _model(self) -> dict[str, Any]:
        """What the model is doing."""
        labels = sum(map(bool, self._taught))
        if self.learner.busy:
            return {"status": "learning", "labels": labels, "seconds": round(time.monotonic() - self._started)}
        if self.failed:
            return {"status": "failed", "says": self.failed}
        if self.learned is None:
            return {"status": "waiting", "says": why_not(self.answers.texts())}
        return {"status": "ready", "labels": self.learned.labels}

    # --- rows

    def _row(self, row: int, annotator: str) -> dict[str, Any]:
        mine, said = self.answers.of(annotator).get(row), self.answers.labels_of(row)
        shown: dict[str, Any] = {"row": row, "name": self._names[row], "cells": self.views.cells_of(row), "label": mine}
        shown["others"] = {who: label for who, label in said.items() if who != annotator} if mine is not None else {}
        shown["skipped"] = mine is None and row in self._skipped.get(annotator, {})
        shown["why"] = self.answers.chosen.get(row, "") if mine is not None else self._why.get(row, "")
        if self.learned is not None:
            shown |= {"guess": self.learned.predicted[row], "probability": self.learned.probability[row]}
            if row in self.learned.judged and mine is not None:
                shown["of_label"] = self.learned.judged[row][0]
        return shown

    def _progress(self, annotator: str) -> dict[str, Any]:
        return {
            "rows": len(self._names),
            "labelled": len(self.answers.rows()),
            "mine": len(self.answers.of(annotator)),
            "disagreements": len(self.answers.disagreements()),
            "doubtful": len(self._doubtful()),
        }

    def _doubtful(self) -> list[int]:
        """The rows whose label the model, which had not seen it, finds the least probable: it may be a slip.

        A row whose label has changed since is none of them until the model has learned again.
        """
        if self.learned is None:
            return []
        wrong = [(p, row) for row, (p, right) in self.learned.judged.items() if not right]
        return [row for _, row in sorted(wrong) if self.answers.agreed(row) == self._learned_from[row]]

    def _listed(self, annotator: str, view: str) -> list[int]:
        rows = self.answers.disagreements() if view == "disagreements" else self._doubtful()
        return rows[: self.batch]

    def _batch(self, annotator: str) -> list[int]:
        if not self._batches.get(annotator):  # an empty one is looked for again, since others may have gone on, or back
            self._batches[annotator] = self._choose(annotator)
        return self._batches[annotator]

    def _choose(self, annotator: str) -> list[int]:
        """The rows of the next batch, the skipped ones only if there are too few others."""
        mine, skipped = self.answers.of(annotator), self._skipped.get(annotator, {})
        elsewhere = {row for name, rows in self._batches.items() if name != annotator for row in rows}
        labelled = set(self.answers.rows())
        free = [row for row in range(len(self._names)) if row not in labelled and row not in skipped]
        unlabelled = [row for row in free if row not in elsewhere]
        if len(unlabelled) < self.batch:  # better to ask twice than not to ask
            unlabelled = free
        once = [
            row
            for name in self.answers.annotators
            if name != annotator
            for row in self.answers.of(name)
            if row not in mine and row not in skipped and len(self.answers.labels_of(row)) == 1
        ]
        part = max(1, self.batch // SHARE)
        second = self._random.sample(once, min(part, len(once)))
        ranked = self._ranked(unlabelled)
        num_random = part if self.learned is not None else self.batch
        drawn = self._random.sample(unlabelled, min(num_random, len(unlabelled), self.batch - len(second)))
        at_random = set(drawn)
        rest = [row for row in ranked if row not in at_random][: self.batch - len(second) - len(drawn)]
        self._why |= dict.fromkeys(second, SECOND) | dict.fromkeys(drawn, RANDOM)
        self._why |= dict.fromkeys(rest, INFORMATIVE)
        found = [*rest, *drawn]
        self._random.shuffle(found)
        found = [*found, *second]
        again = [row for row in skipped if row not in mine and row not in labelled][: self.batch - len(found)]
        for row in again:
            del skipped[row]
        return found + again

    def _ranked(self, rows: Sequence[int]) -> list[int]:
        """Rows in an order drawn by their doubts, see the class; without a model in any order."""
        margins = self.learned.margin if self.learned is not None else [1.0] * len(self._names)

        def score(row: int) -> float:
            return math.log(max(1 - margins[row], 1e-12)) - math.log(
                -math.log(self._random.random() or 1e-300) or 1e-300
            )

        return [row for _, row in sorted(((score(row), row) for row in rows), reverse=True)]

    def _advance(self, annotator: str) -> None:
        """Go on to the next batch if nothing of this one is left, and let the model learn."""
        mine, skipped = self.answers.of(annotator), self._skipped.get(annotator, {})
        if all(row in mine or row in skipped for row in self._batches.get(annotator, [])):
            self._batches.pop(annotator, None)
        self._poll()

    def _forget_skipped(self, annotator: str, rows: Iterable[int]) -> None:
        for row in rows:
            self._skipped.get(annotator, {}).pop(row, None)

    # --- what comes from outside

    def _check_rows(self, rows: object) -> list[int]:
        num = len(self._names)
        if not isinstance(rows, list) or not 0 < len(rows) <= MOST_ROWS:
            raise DataError(f"rows are a list of 1 to {MOST_ROWS} numbers.")
        if wrong := [row for row in rows if type(row) is not int or not 0 <= row < num]:
            raise DataError(f"there is no row {str(wrong[0])[:40]}: rows are numbered from 0 to {num - 1}.")
        return rows

    def _check_label(self, label: object) -> str:
        """A label as it is written. DataError for one that cannot be."""
        text = label.strip() if isinstance(label, str) else ""
        if not text or len(text) > LONGEST_LABEL or not text.isprintable():
            raise DataError(f"a label has 1 to {LONGEST_LABEL} letters, all in one line. Give another.")
        known = as_labels([*self.classes(), text])  # which writes 2.0 as 2 where all labels are whole numbers
        if int(known.y[-1]) < 0:
            raise DataError(f"{text!r} stands for a label that is unknown. Give another.")
        return known.text(known.y[-1:])[0]


def keys_of(classes: Sequence[str]) -> dict[str, str]:
    """The key of each class: its own letter or digit if it has one only, then free digits and letters; "" if none is left.

    Example:
        >>> from pyrovae.app.jobs.label.session import keys_of
        >>> keys_of(["cat", "3", "dog"])
        {'cat': '1', '3': '3', 'dog': '2'}
    """
    keys: dict[str, str] = {}
    for label in classes:
        if len(label) == 1 and label.lower() in KEYS and label.lower() not in keys.values():
            keys[label] = label.lower()
    free = iter([key for key in KEYS if key not in keys.values()])
    return {label: keys[label] if label in keys else next(free, "") for label in classes}


def _history(folder: Path | None) -> tuple[list[dict[str, Any]], list[str]]:
    """What earlier fits found, and the labels that were added; nothing where that is not known, or the file is damaged."""
    if folder is None:
        return [], []
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        found = of_json((folder / HISTORY).read_bytes())
        fits, classes = list(found["fits"]), [str(label) for label in found["classes"]]
        if all(isinstance(fit, dict) and type(fit["labels"]) is int for fit in fits):
            return fits, classes
    return [], []
