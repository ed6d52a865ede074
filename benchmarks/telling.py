"""What the commands of the benchmarks share: how they are told numbers, and how they tell what they do."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def positive(text: str) -> int:
    """A number of the command line.

    Raises:
        ValueError: it is not above 0.
    """
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def teller() -> Callable[[str], None]:
    """Says lines on standard error, each with the minutes since this was called."""
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"{(time.monotonic() - begun) / 60:6.1f} min  {text}", file=sys.stderr, flush=True)

    return say
