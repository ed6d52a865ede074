"""One request while it waits: what it asks, how far it has come, and its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from app.batching.contract import Answer, Arrays, Outcome, Target

if TYPE_CHECKING:
    from app.batching.line import Bucket

# Seconds by which a request is put before others for each step of its priority.
HEAD_START = 1.0


@dataclass(eq=False)
class Pace:
    """How fast calls on one target are.

    Attributes:
        seconds: smoothed, for a row.
        rows: how many wait for it.
    """

    seconds: float = 0.0
    rows: int = 0

    def measured(self, rows: int, seconds: float) -> None:
        """Take in a call."""
        new = seconds / rows
        self.seconds = self.seconds + 0.2 * (new - self.seconds) if self.seconds else new


@dataclass(eq=False, slots=True)
class Job:
    """A request.

    Attributes:
        key: of the requests that can share its calls.
        target, inputs, outputs, rows, question: what it asks.
        own: what belongs to it alone, None for nothing.
        pace: of its target.
        answer: what it waits for.
        priority: greater is more urgent.
        deadline: when the answer is of no use any more, by the performance counter.
        queued_at: when it came, by the same clock.
        rank: its place; what has the lowest is next. A request of priority p stands where one of priority 0 would that
            had come p head starts earlier, so it is overtaken only by what came within a fixed time after it.
        handed: how many of its first rows were given to calls.
        waiting: how many of its rows are counted as waiting.
        gone: nobody waits for it any more.
        bucket: where it waits.
        timer: ends its wait at the deadline.
    """

    key: Hashable
    target: Target
    inputs: Arrays
    outputs: Collection[str]
    rows: int
    question: Hashable
    own: Any
    pace: Pace
    answer: asyncio.Future[Answer]
    priority: int
    deadline: float
    queued_at: float
    rank: float = 0.0
    handed: int = 0
    waiting: int = 0
    gone: bool = False
    bucket: Bucket | None = None
    timer: asyncio.TimerHandle | None = None
    _parts: list[tuple[int, Answer]] = field(default_factory=list)
    _given: int = 0

    def __post_init__(self) -> None:
        self.stand(self.queued_at)

    def stand(self, since: float) -> None:
        """Take the place of one that came at this time."""
        self.rank = since - HEAD_START * self.priority

    def take(self, rows: int, now: float) -> Piece:
        """Its next rows, for a call; what remains takes its place behind those that wait now."""
        piece = Piece(self, self.handed, self.handed + rows, self.rank)
        self.handed += rows
        self.stand(now)
        return piece

    def give(self, piece: Piece, part: Answer) -> None:
        """Take in what a call gave for some of its rows, and answer once all are there."""
        if self.answer.done():
            return
        if piece.rows == self.rows:
            self.answer.set_result(part)
            return
        self._parts.append((piece.start, part))
        self._given += piece.rows
        if self._given == self.rows:
            self.answer.set_result(self._joined())

    def _joined(self) -> Answer:
        parts = sorted(self._parts, key=lambda pair: pair[0])
        computed = self.computed
        counts = [part.members for _, part in parts if part.members is not None]
        return Answer(
            {name: np.concatenate([part.arrays[name] for _, part in parts]) for name in self.outputs},
            max(counts, default=None),
            # Between its calls it waits, too.
            max(0.0, time.perf_counter() - self.queued_at - computed),
            computed,
            tuple(start + row for start, part in parts for row in part.non_finite_rows),
        )

    @property
    def computed(self) -> float:
        """Seconds that the calls took which gave some of its rows."""
        return sum(part.computed for _, part in self._parts)

    def fail(self, error: BaseException) -> None:
        """Answer with an error."""
        self.gone = True
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(eq=False, slots=True)
class Piece:
    """Rows [start, stop) of a request, which go into one call; ``rank`` was its place."""

    job: Job
    start: int
    stop: int
    rank: float

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def inputs(self) -> Arrays:
        """Its rows of every input, as views."""
        if self.rows == self.job.rows:
            return self.job.inputs
        return {name: array[self.start : self.stop] for name, array in self.job.inputs.items()}

    def part(self, outcome: Outcome, start: int, queued: float, computed: float) -> Answer:
        """Its own of what a call gave, in which its rows begin at ``start``."""
        own = slice(start, start + self.rows)
        members = outcome.members
        if isinstance(members, np.ndarray):
            members = int(members[own].max())
        rows: set[int] = set()
        for name, bad in outcome.non_finite.items():
            if name in self.job.outputs:
                rows.update(np.flatnonzero(bad[own]).tolist())
        arrays: dict[str, Any] = {name: outcome.arrays[name][own] for name in self.job.outputs}
        return Answer(arrays, members, queued, computed, tuple(sorted(rows)))


def packed(pieces: list[Piece], limit: int) -> list[list[Piece]]:
    """Pieces in their order, as calls of at most ``limit`` rows; a piece with more is cut."""
    calls: list[list[Piece]] = [[]]
    rows = 0
    for whole in pieces:
        for start in range(whole.start, whole.stop, limit):
            piece = Piece(whole.job, start, min(start + limit, whole.stop), whole.rank)
            if rows and rows + piece.rows > limit:
                calls.append([])
                rows = 0
            calls[-1].append(piece)
            rows += piece.rows
    return calls
