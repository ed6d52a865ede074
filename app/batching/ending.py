"""What becomes of a call once it was made: each request gets its own, or the rows of one that failed go again."""

from __future__ import annotations

import logging
from collections import deque

from app.batching.contract import Outcome, OutOfMemory
from app.batching.job import Job, Piece, packed
from app.batching.ledger import Ledger
from app.batching.line import Line
from app.batching.turn import Turn
from app.errors import Unavailable

log = logging.getLogger("app.batching")


class Ending:
    """Ends requests, well or not.

    Args:
        line: where what remains of them may wait.
        ledger: counts what waits.
    """

    def __init__(self, line: Line, ledger: Ledger) -> None:
        self._line = line
        self._ledger = ledger
        self._again: deque[list[Piece]] = deque()

    def again(self) -> Turn | None:
        """What is left of calls that failed, which goes before all others."""
        while self._again:
            pieces = [piece for piece in self._again.popleft() if not piece.job.gone]
            if pieces:
                return Turn(pieces, sum(piece.rows for piece in pieces), again=True)
        return None

    def waiting(self) -> list[Job]:
        """The requests of which something is to go again."""
        return [piece.job for pieces in self._again for piece in pieces]

    def give(self, turn: Turn, outcome: Outcome) -> None:
        """Give each request of a call its rows."""
        computed = turn.ended - turn.begun
        rows = 0
        waits: list[float] = []
        for piece in turn.live:
            waits.append(turn.begun - piece.job.queued_at)
            try:
                piece.job.give(piece, piece.part(outcome, rows, waits[-1], computed))
            except Exception as problem:
                log.exception("a request's rows cannot be given to it")
                self.give_up(piece.job, problem)
            rows += piece.rows
        members = outcome.members
        most = members if members is None or isinstance(members, int) else int(members.max())
        self._ledger.done(turn, waits, most)

    def repeat(self, pieces: list[Piece], error: Exception) -> None:
        """Find out whose fault the failure of a call is, and make calls smaller where it was memory."""
        rows = sum(piece.rows for piece in pieces)
        if isinstance(error, OutOfMemory) and rows > 1:
            target = pieces[0].job.target
            target.max_batch = min(target.max_batch, max(1, rows // 2))
            log.warning(
                "memory does not suffice for %d rows at once; from now on it is %d at most",
                rows,
                target.max_batch,
                extra={"model": target.name},
            )
            self._again.extendleft(reversed(packed(pieces, target.max_batch)))
        elif len(pieces) > 1:
            half = len(pieces) // 2
            self._again.extendleft((pieces[half:], pieces[:half]))
        elif isinstance(error, OutOfMemory):
            refusal = Unavailable("there is not enough memory to evaluate this request")
            refusal.__cause__ = error
            self.give_up(pieces[0].job, refusal)
        else:
            self.give_up(pieces[0].job, error)

    def abandon(self, turn: Turn, reason: BaseException) -> None:
        """Nothing can be computed for these rows, nor for a half of them."""
        for piece in turn.pieces:
            refusal = Unavailable("the service cannot answer any more; ask another instance")
            refusal.__cause__ = reason
            self.give_up(piece.job, refusal)

    def give_up(self, job: Job, error: Exception) -> None:
        """Answer a request with an error, if it has no answer yet, and forget what remains of it."""
        self._line.remove(job)
        self._ledger.leave(job)
        job.fail(error)
