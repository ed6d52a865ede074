"""Examples that members are made or judged with: flat inputs, and targets."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble.errors import InputError
from ensemble.program.export import first_line
from ensemble.program.program import Program
from ensemble.tasks import Head, Task


@dataclasses.dataclass(frozen=True)
class Data:
    """Rows of inputs and targets.

    Args:
        inputs: the program's flat inputs, each (rows, ...).
        targets: class indices (rows, ...) int64 of a classification, values (rows, ...) of any other task; None where
            only inputs are known.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor | None = None

    @staticmethod
    def of(program: Program, given: Any, task: Task = "raw", head: Head | None = None) -> Data:
        """What a caller gave, checked against a model.

        Args:
            given: the inputs as the model is called with them (a tensor or array, a tuple or a dict of them), or
                (inputs, targets). A tuple of two is taken for the latter unless the model has two or more inputs and
                the first of the two is a tensor of one of them; give ((a, b), targets) there.
            task: what the targets must be.
            head: the prediction that they are for, where their shape is to be checked.

        Raises:
            InputError: inputs that do not fit the model's signature, another number of targets, or targets that are
                none: of another shape, not finite, or no class.
        """
        inputs, targets = given, None
        if isinstance(given, tuple) and len(given) == 2 and not (len(program.inputs) > 1 and _is_leaf(given[0])):
            inputs, targets = given
        if inputs is None:
            raise InputError("data has no inputs: give inputs, or (inputs, targets).")
        inputs = _as_tensors(inputs)
        args: Sequence[Any] = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, Mapping) else (inputs,)
        kwargs: Mapping[str, Any] = inputs if isinstance(inputs, Mapping) else {}
        flat = tuple(program.bind(args, kwargs, torch.device("cpu")))
        if targets is None:
            return Data(flat)
        return Data(flat, checked_targets(_as_tensor(targets, "Targets"), flat[0].shape[0], task, head))

    def __len__(self) -> int:
        """How many rows."""
        return self.inputs[0].shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        tensors = [*self.inputs, *([] if self.targets is None else [self.targets])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def rows(self, index: Tensor | slice) -> Data:
        """Some of the rows."""
        return Data(tuple(t[index] for t in self.inputs), None if self.targets is None else self.targets[index])

    def batches(self, size: int) -> Iterator[Data]:
        """All rows in order, so many at a time."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def to(self, device: torch.device) -> Data:
        """The same rows elsewhere."""
        targets = None if self.targets is None else self.targets.to(device)
        return Data(tuple(t.to(device) for t in self.inputs), targets)

    def split(self, *shares: float, seed: int = 0) -> list[Data]:
        """Disjoint parts drawn at random, of about these shares of the rows, and the rest as the last.

        Raises:
            InputError: a part would have no row.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        sizes = [round(share * len(self)) for share in shares]
        sizes.append(len(self) - sum(sizes))
        if min(sizes) < 1:
            raise InputError(f"{len(self)} rows are too few to be split into parts of {sizes} rows.")
        return [self.rows(part) for part in torch.split(order, sizes)]


def first_rows(given: Any, rows: int = 4) -> Any:
    """A few rows of the inputs of such data, to capture a model with.

    Raises:
        InputError: there are none.
    """
    if given is None:
        raise InputError("Give example=, what the model is called with, or data= with inputs.")
    inputs = given
    # Two tensors of as many rows may also be two inputs; then the caller gives an example.
    if isinstance(given, tuple) and len(given) == 2:
        inputs = given[0]
    if isinstance(inputs, Mapping):
        return {name: _as_tensor(value, name)[:rows] for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_as_tensor(value, "Inputs")[:rows] for value in inputs)
    return _as_tensor(inputs, "Inputs")[:rows]


def _is_leaf(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _as_tensors(inputs: Any) -> Any:
    """The same inputs, NumPy's arrays and lists of numbers in them as tensors.

    An array keeps its memory, which may be that of a file (``numpy.load(..., mmap_mode="r")``).
    """
    if isinstance(inputs, Mapping):
        return {name: _as_tensors(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_as_tensors(value) for value in inputs)
    return _as_tensor(inputs, "Inputs") if isinstance(inputs, np.ndarray) or _is_number(_first(inputs)) else inputs


def _first(value: Any) -> Any:
    """The first leaf of nested lists."""
    while isinstance(value, list) and value:
        value = value[0]
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def _as_tensor(given: Any, what: str) -> Tensor:
    with warnings.catch_warnings():
        # Nothing here writes to what it was given.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        try:
            return torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{what} must be tensors, arrays or lists of numbers, however: {first_line(error)}."
            ) from error


def checked_targets(targets: Tensor, rows: int, task: Task, head: Head | None) -> Tensor:
    """Targets as they are computed with: class indices int64 of a classification, floating point of any other task.

    Args:
        targets: (rows, ...), what a caller gave.
        rows: how many rows of inputs there are.
        task: what the targets must be.
        head: the prediction that they are for, where their shape is to be checked.

    Raises:
        InputError: another number of targets, or targets that are none: of another shape, not finite, or no class.
    """
    if targets.ndim == 0 or targets.shape[0] != rows:
        raise InputError(f"There are {rows} rows of inputs and targets of shape {list(targets.shape)}.")
    if task == "classification":
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise InputError(f"Targets of a classification are class indices, integers, however: {targets.dtype}.")
        targets = targets.long()
        if head is not None:
            _check_shape(targets, head.trailing[:-1])
            classes = head.trailing[-1]
            if bool(((targets < 0) | (targets >= classes)).any()):
                raise InputError(f"Targets must be class indices from 0 to {classes - 1}.")
        return targets
    targets = targets.to(torch.promote_types(targets.dtype, torch.float32))
    if not bool(targets.isfinite().all()):
        raise InputError("Targets must be finite, however: some are NaN or infinite.")
    if head is not None and task in ("regression", "gaussian"):
        # (rows,) beside outputs of (rows, 1) is what most data come as.
        if targets.shape[1:] != head.trailing and targets.numel() == rows and head.trailing == (1,):
            targets = targets.reshape(rows, 1)
        _check_shape(targets, head.trailing)
    return targets


def _check_shape(targets: Tensor, trailing: tuple[int, ...]) -> None:
    given = targets.shape[1:]
    if len(given) != len(trailing) or any(size not in (-1, own) for own, size in zip(given, trailing, strict=True)):
        raise InputError(f"Targets must have shape {[-1, *trailing]} (-1: rows), however: {list(targets.shape)}.")
