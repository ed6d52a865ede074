"""What was fitted so that the numbers tell the truth, and how it is fitted."""

from ensemble.calibration.state import Calibration

__all__ = ["Calibration"]
