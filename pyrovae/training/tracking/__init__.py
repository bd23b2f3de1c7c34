"""Trackers, `pv.tracking`: callbacks of `pv.fit` that keep its numbers in TensorBoard, in MLflow, or as lines of JSON.

A tracker only looks on. The pair is measured as often as without it, and the weights are the same; where several processes
fit together, the first one writes; and a tracker that fails, as where its server is away, is given up with one warning, while
the fit goes on. A fit that is resumed is told from its beginning, and what its tracker already has is not doubled.
"""

from pyrovae.training.tracking.files import JSONLines, TensorBoard
from pyrovae.training.tracking.server import MLflow
from pyrovae.training.tracking.tracker import Tracker

__all__ = ["JSONLines", "MLflow", "TensorBoard", "Tracker"]
