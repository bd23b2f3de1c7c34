"""Labelling: from a few labels to the most probable label of every row, how sure it is, and which row to label next."""

from pyrovae.app.jobs.label.job import LABELS, PREDICTIONS, label_rows
from pyrovae.app.jobs.label.label_studio import write_tasks
from pyrovae.app.jobs.label.reading import Job, read_job
from pyrovae.app.jobs.label.report import ENOUGH, MISTAKES, committee, held_out_report, tabulate
from pyrovae.app.jobs.label.training import decide_labelling, labelling_rows
from pyrovae.app.jobs.label.writing import Answer

__all__ = [
    "ENOUGH",
    "LABELS",
    "MISTAKES",
    "PREDICTIONS",
    "Answer",
    "Job",
    "committee",
    "decide_labelling",
    "held_out_report",
    "label_rows",
    "labelling_rows",
    "read_job",
    "tabulate",
    "write_tasks",
]
