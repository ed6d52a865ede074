"""Figures, drawn with matplotlib where it is installed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from ensemble.errors import EnsembledError, first_line


@contextlib.contextmanager
def figure(width: float = 6.4, height: float = 4.0) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, without any window or state of the process.

    Raises:
        EnsembledError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnsembledError("Plots need matplotlib: pip install 'ensembled[plot]'.") from error
    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    yield made, axes


def written(made: Any, path: str | os.PathLike[str]) -> None:
    """Save a figure; the file's name tells the format.

    Raises:
        EnsembledError: it cannot be written there, or not in that format.
    """
    try:
        made.savefig(path, dpi=150)
    except OSError as error:
        raise EnsembledError(f"{path} cannot be written: {error.strerror or error}.") from error
    except ValueError as error:
        raise EnsembledError(f"{path}: {first_line(error)}.") from error
