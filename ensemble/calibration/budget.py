"""How long fitting may take."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable

from ensemble.errors import InputError

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds(given: str | float) -> float:
    """A duration: a number of seconds, or text such as "60s", "5m", "1.5h".

    Raises:
        InputError: it is none, or not above 0.
    """
    found = math.nan
    if isinstance(given, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|min|m|h)?\s*", given)):
        found = float(match[1]) * _UNITS[match[2] or "s"]
    elif isinstance(given, int | float) and not isinstance(given, bool):
        found = float(given)
    if not 0 < found < math.inf:
        raise InputError(f'budget must be a time above 0, such as "60s", "5m" or 90 (seconds), however: {given!r}.')
    return found


class Budget:
    """Seconds that are running out.

    Args:
        total: seconds in all.
        clock: gives seconds.
    """

    def __init__(self, total: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.total = total
        self._clock = clock
        self._begun = clock()

    @property
    def spent(self) -> float:
        """Seconds since it was made."""
        return self._clock() - self._begun

    @property
    def left(self) -> float:
        """Seconds; below 0 once it is overdrawn."""
        return self.total - self.spent
