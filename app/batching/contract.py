"""What the batcher is given, what it gives back, and whom it tells."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
# Why a request got no answer: no room for it, past its deadline, its client gone, the service shutting down.
Reason = Literal["queue_full", "deadline", "gone", "draining", "stuck"]


class OutOfMemory(Exception):  # noqa: N818 - it says what ran out
    """There is not enough memory for a call of this many rows; fewer may fit."""


class Target(Protocol):
    """What calls are made on. Requests share a call only if theirs is the same object.

    Attributes:
        name: for the log.
        max_batch: rows in one call; the batcher lowers it when memory runs out.
    """

    name: str
    max_batch: int


@dataclass(frozen=True)
class Call:
    """One call: the rows of one or more requests.

    Attributes:
        target: what it is made on.
        inputs: arrays by name, each with ``rows`` rows.
        outputs: every output that one of the requests asked for.
        rows: how many.
        question: how it is to be answered, the same for all of its requests. The batcher only compares it.
        owners: what belongs to each request alone, with how many of the rows are its own, in the order of the rows.
            Empty where no request has anything.
    """

    target: Any
    inputs: Arrays
    outputs: Collection[str]
    rows: int
    question: Hashable = None
    owners: tuple[tuple[Any, int], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a call gave.

    Attributes:
        arrays: each output, row by row.
        members: how many were evaluated: for each row, or for all of them; None if all there are.
        non_finite: of each output that holds NaN or infinity, which rows do.
    """

    arrays: Arrays
    members: NDArray[np.int64] | int | None = None
    non_finite: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        arrays: an array for each output that it asked for, its own rows.
        members: how many members were evaluated, for the row that needed most; None for all.
        queued, computed: seconds that it waited, and that its calls took.
        non_finite_rows: rows of which some output is NaN or infinite, ascending.
        details: what else it says; the batcher leaves it empty.
    """

    arrays: Arrays
    members: int | None
    queued: float
    computed: float
    non_finite_rows: tuple[int, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Observer(Protocol):
    """What the batcher tells of its work. What an observer raises is logged and changes nothing."""

    def batch_done(
        self, target: Any, rows: int, queued: Sequence[float], compute: float, members: int | None = None
    ) -> None:
        """A call is done.

        Args:
            target: what it was made on.
            rows: how many it had.
            queued: seconds that each of its requests had waited, one for each.
            compute: seconds that it took.
            members: how many were evaluated, for the row that needed most; None for all.
        """

    def queue_changed(self, rows: int, requests: int) -> None:
        """So many rows, of so many requests, wait now."""

    def refused(self, target: Any, reason: Reason) -> None:
        """A request gets no answer."""


def non_finite_rows(arrays: Arrays) -> dict[str, NDArray[np.bool_]]:
    """Of each output that holds NaN or infinity, which rows do."""
    found: dict[str, NDArray[np.bool_]] = {}
    for name, array in arrays.items():
        if array.dtype.kind in "fc" and not (finite := np.isfinite(array)).all():
            found[name] = np.logical_not(finite.reshape(len(array), -1).all(axis=1))
    return found
