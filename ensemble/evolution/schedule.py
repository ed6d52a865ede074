"""Settings that may follow the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from ensemble.errors import RecipeError

# A number, or a function of the step.
Schedule = float | Callable[[int], float]


def scheduled(name: str, schedule: Schedule, step: int) -> float:
    """The value at a step.

    Args:
        name: of the setting, for the error.

    Raises:
        RecipeError: it is no finite number above 0.
    """
    value = schedule(step) if callable(schedule) else schedule
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise RecipeError(f"{name} must be a finite number above 0, however: {value!r} at step {step}.")
    return float(value)
