"""Files with rows and targets, as the library takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.commands.reading import ReadingError, read_data, read_rows
from ensemble.tasks import Task

Rows = torch.Tensor | dict[str, torch.Tensor]


def rows_and_targets(path: Path, target: str | None, task: Task) -> tuple[Rows, torch.Tensor]:
    """(inputs, targets) of a file.

    Args:
        path, target: as for :func:`app.commands.reading.read_data`.
        task: class indices are whole numbers, though a table holds them as it holds all others.

    Raises:
        ReadingError: the file does not hold such rows; the text says what would be right.
    """
    inputs, targets = read_data(path, target)
    if task == "classification" and targets.dtype.kind == "f":
        whole = targets.astype(np.int64, copy=False) if np.isfinite(targets).all() else None
        if whole is None or not np.array_equal(whole, targets):
            raise ReadingError(f"{path}: the targets of a classification are class indices, whole numbers from 0")
        targets = whole
    lengths = {len(array) for array in (*inputs.values(), targets)}
    if len(lengths) > 1:
        raise ReadingError(f"{path}: inputs and targets must have as many rows as each other, however: {lengths}")
    return as_tensors(inputs), torch.from_numpy(trained_dtype(targets))


def rows_alone(path: Path) -> Rows:
    """The rows of a file, without targets.

    Raises:
        ReadingError: it holds none.
    """
    return as_tensors(read_rows(path))


def as_tensors(arrays: dict[str, NDArray[Any]]) -> Rows:
    """Tensors by name; a lone one itself."""
    found = {name: torch.from_numpy(trained_dtype(array)) for name, array in arrays.items()}
    return found[""] if list(found) == [""] else found


def trained_dtype(array: NDArray[Any]) -> NDArray[Any]:
    """Files hold float64 by default, models do not."""
    return array.astype(np.float32) if array.dtype == np.float64 else array
