"""What waits, how fast it is computed, and what the observer is told of it."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from app.batching.contract import Observer, Reason, Target
from app.batching.job import Job, Pace
from app.batching.turn import Turn

log = logging.getLogger("app.batching")


class Ledger:
    """Counts rows and requests that wait.

    Args:
        observer: is told of every change.

    Attributes:
        rows, requests: how many wait.
    """

    def __init__(self, observer: Observer) -> None:
        self.rows = self.requests = 0
        self.observer = observer
        # A target that is served no more is forgotten.
        self._paces: weakref.WeakKeyDictionary[Target, Pace] = weakref.WeakKeyDictionary()

    def pace(self, target: Target) -> Pace:
        """How fast calls on a target are."""
        found = self._paces.get(target)
        if found is None:
            found = self._paces[target] = Pace()
        return found

    def backlog(self, now: float, turns: Iterable[Turn]) -> float:
        """Seconds until what waits, and what runs, will have been computed."""
        seconds = sum(pace.seconds * pace.rows for pace in self._paces.values())
        for turn in turns:
            if turn.noted and turn.begun:
                rows = sum(piece.rows for piece in turn.live)
                seconds += max(0.0, turn.pieces[0].job.pace.seconds * rows - (now - turn.begun))
        return seconds

    def enter(self, job: Job) -> None:
        """All rows of a request wait."""
        self._count(job, job.rows)
        self._tell_queue()

    def leave(self, job: Job) -> None:
        """None of its rows waits any more."""
        if job.waiting:
            self._count(job, -job.waiting)
            self._tell_queue()

    def taken(self, turn: Turn) -> None:
        """The rows of a call wait no more."""
        for piece in turn.pieces:
            self._count(piece.job, -min(piece.rows, piece.job.waiting))
        self._tell_queue()

    def done(self, turn: Turn, waits: Sequence[float], members: int | None) -> None:
        """A call gave what was asked for."""
        rows, seconds = sum(piece.rows for piece in turn.live), turn.ended - turn.begun
        job = turn.live[0].job
        job.pace.measured(rows, seconds)
        self._tell(self.observer.batch_done, job.target, rows, waits, seconds, members)

    def refused(self, target: Target, reason: Reason) -> None:
        """A request gets no answer."""
        self._tell(self.observer.refused, target, reason)

    def _count(self, job: Job, rows: int) -> None:
        waited = job.waiting > 0
        job.waiting += rows
        job.pace.rows += rows
        self.requests += (job.waiting > 0) - waited
        self.rows += rows

    def _tell_queue(self) -> None:
        self._tell(self.observer.queue_changed, self.rows, self.requests)

    @staticmethod
    def _tell(what: Callable[..., None], *about: Any) -> None:
        try:
            what(*about)
        except Exception:
            # Counting wrongly is no reason to leave a request without its answer.
            log.exception("the observer of the batcher raised")
