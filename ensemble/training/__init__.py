"""Training many members of one model in one vectorised loop."""

from ensemble.training.loop import Trained, steps_within, train
from ensemble.training.rows import Rows
from ensemble.training.schedule import Schedule

__all__ = ["Rows", "Schedule", "Trained", "steps_within", "train"]
