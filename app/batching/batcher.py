"""Merges waiting requests into calls, and sees to it that each gets exactly one answer.

Requests that can share a call wait in one bucket: those of the same served model, with inputs of the same dtype and
shape of a row, that ask the same question (a call evaluates one number of members for all its rows, say, or stops by
one tolerance). Which outputs they ask for makes no difference. Rows are counted, not requests.

An idle engine is given a request at once. While a call runs, the next one is put together (:mod:`app.batching.turn`)
from the bucket whose first request stands first in line (:mod:`app.batching.line`), and others join it until the
engine takes it: as soon as it is free where calls leave the event loop a processor, else once nobody else is about to
join. A request with more rows than a call takes goes in pieces, each of which stands in line anew.

One request's fault is its own: a call that fails is repeated in halves until the request at fault stands alone. Where
memory runs out, the target's calls are smaller from then on.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Hashable
from typing import Any

from app.batching.contract import Answer, Arrays, Call, Observer, Outcome, Reason, Target
from app.batching.ending import Ending
from app.batching.job import Job
from app.batching.ledger import Ledger
from app.batching.line import Line
from app.batching.turn import Turn
from app.errors import DeadlineExceeded, TooManyRequests, Unavailable

log = logging.getLogger("app.batching")

# One that runs, and one that is put together meanwhile.
_TURNS = 2
# Turns of the event loop in which nobody joins, after which nobody else is waited for. A client that was answered in
# one turn is read in the next, and its request is decoded in the one after it.
_QUIET = 3
# Seconds for a call that runs, when everybody who waited for it has gone.
_LAST_CALL = 1.0
_ENDING = "the service is shutting down; ask another instance"

# Runs a function on the engine's thread, after those that it was given before.
Execute = Callable[..., Awaitable[Any]]


class Batcher:
    """See the module. All methods are for the event loop's thread.

    Args:
        execute: runs a function with its arguments on the engine's thread, one after the other.
        make: makes one call, there. What it raises reaches the requests at fault; :class:`OutOfMemory` makes calls
            smaller.
        max_queued_rows: rows that may wait; beyond it :meth:`submit` refuses.
        observer: told of calls, of the queue and of requests that get no answer.
        max_delay: seconds that requests which do not fill a call wait for others, though the engine is idle.
        beside: whether calls leave a processor to the event loop. If not, the two take turns: a call begins when what
            has arrived is read, since either would only hold up the other, and so would two calls for one.
    """

    def __init__(
        self,
        execute: Execute,
        make: Callable[[Call], Outcome],
        *,
        max_queued_rows: int,
        observer: Observer,
        max_delay: float = 0.0,
        beside: bool = True,
    ) -> None:
        self._execute = execute
        self._make = make
        self._max_queued_rows = max_queued_rows
        self._max_delay = max_delay
        self._beside = beside
        self._one = asyncio.Lock()
        self._line = Line()
        self._turns: list[Turn] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ledger = Ledger(observer)
        self._ending = Ending(self._line, self._ledger)
        self._unanswered = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        # What is logged of a call must not name the request that happened to wake the batcher.
        self._context = contextvars.copy_context()
        self._pumping = False
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = False
        self._settled = asyncio.Event()

    @property
    def queued_rows(self) -> int:
        """Rows that wait."""
        self._note_taken()
        return self._ledger.rows

    def start(self) -> None:
        """Begin to make calls."""
        self._loop = asyncio.get_running_loop()
        self._wake()

    async def close(self) -> None:
        """Refuse what is new, finish what was accepted, and end."""
        self._closed = True
        if self._loop is None:
            self._fail_all()
        self._wake()
        while self._unanswered:
            self._settled.clear()
            await self._settled.wait()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_CALL)

    async def submit(
        self,
        target: Target,
        inputs: Arrays,
        outputs: Collection[str],
        rows: int,
        *,
        question: Hashable = None,
        own: Any = None,
        priority: int = 0,
        deadline: float = math.inf,
    ) -> Answer:
        """Wait for the answer to a request. Who cancels the wait takes the request back.

        Args:
            target: what the call is made on.
            inputs: arrays by name, each with ``rows`` rows; not to be changed until the answer is there.
            outputs: names of what to answer.
            rows: how many, at least one.
            question: as in :class:`Call`.
            own: what belongs to this request alone. Requests that have something share no call with those that do not.
            priority: greater is more urgent: each step counts as having come a second earlier.
            deadline: when the answer is of no use any more, by ``time.perf_counter``.

        Raises:
            TooManyRequests: too many rows wait.
            Unavailable: the service is shutting down, or memory does not suffice.
            DeadlineExceeded: its deadline came first.
            Exception: what the call raised.
        """
        job = self._admitted(target, inputs, outputs, rows, question, own, priority, deadline)
        self._unanswered += 1
        try:
            self._ledger.enter(job)
            self._place(job)
            return await job.answer
        except asyncio.CancelledError:
            self._leave(job, "gone")
            raise
        finally:
            if job.timer is not None:
                job.timer.cancel()
            self._unanswered -= 1
            if not self._unanswered:
                self._settled.set()

    def _admitted(
        self,
        target: Target,
        inputs: Arrays,
        outputs: Collection[str],
        rows: int,
        question: Hashable,
        own: Any,
        priority: int,
        deadline: float,
    ) -> Job:
        now = time.perf_counter()
        if self._closed:
            self._ledger.refused(target, "draining")
            raise Unavailable(_ENDING)
        if deadline <= now:
            self._ledger.refused(target, "deadline")
            raise _too_late()
        self._note_taken()
        # A request alone in the queue is taken whatever its size, or a large one could never be answered.
        waiting = self._ledger.rows
        if waiting and waiting + rows > self._max_queued_rows:
            self._ledger.refused(target, "queue_full")
            raise TooManyRequests(
                f"{waiting} rows are waiting and the limit is {self._max_queued_rows}; try again later",
                retry_after=self._ledger.backlog(now, self._turns),
            )
        shapes = tuple((name, array.dtype, array.shape[1:]) for name, array in sorted(inputs.items()))
        loop = asyncio.get_running_loop()
        job = Job(
            (id(target), shapes, question, own is None),
            target,
            inputs,
            outputs,
            rows,
            question,
            own,
            self._ledger.pace(target),
            loop.create_future(),
            priority,
            deadline,
            now,
        )
        if deadline < math.inf:
            job.timer = loop.call_later(deadline - now, self._leave, job, "deadline")
        return job

    def _place(self, job: Job) -> None:
        if job.key not in self._line:
            for turn in self._turns:
                # Whether it was taken in between is known only once it is tried.
                if turn.key == job.key and turn.has_room(job.rows) and self._join(turn, job):
                    return
        self._line.add(job)
        last = self._turns[-1] if self._turns else None
        if last is not None and last.gives_way_to(job) and last.withdraw():
            # It is more urgent than what would be next, which stands in line again.
            self._turns.remove(last)
            self._line.restore(last.pieces)
        if len(self._turns) < _TURNS:
            self._wake()

    def _join(self, turn: Turn, job: Job) -> bool:
        rank, piece = job.rank, job.take(job.rows, job.queued_at)
        if turn.join(piece):
            return True
        job.handed, job.rank = 0, rank
        return False

    def _wake(self) -> None:
        # Requests whose bytes have arrived, but were not decoded yet, may still join.
        if not self._pumping and self._loop is not None:
            self._pumping = True
            self._loop.call_soon(self._pump, context=self._context)

    def _pump(self) -> None:
        """Give the engine as many calls as it may have."""
        self._pumping = False
        assert self._loop is not None
        self._note_taken()
        while len(self._turns) < _TURNS:
            turn = self._next()
            if turn is None:
                return
            self._turns.append(turn)
            task = self._loop.create_task(self._see_through(turn), name="call")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next(self) -> Turn | None:
        if again := self._ending.again():
            return again
        if not self._line:
            return None
        delay = 0.0 if self._closed else self._max_delay
        now = time.perf_counter()
        pieces = self._line.take(now, delay)
        if pieces:
            return Turn(pieces, pieces[0].job.target.max_batch)
        if self._alarm is not None:
            self._alarm.cancel()
        assert self._loop is not None
        # Timers may be early by their resolution.
        self._alarm = self._loop.call_later(max(0.001, self._line.due(delay) - now), self._wake)
        return None

    async def _see_through(self, turn: Turn) -> None:
        outcome: Outcome | None = None
        error: Exception | None = None
        try:
            outcome = await (self._execute(turn.compute, self._make) if self._beside else self._in_turn(turn))
        except asyncio.CancelledError as cancelled:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                # The event loop ends.
                self._closed = True
                self._turns = [other for other in self._turns if other is not turn]
                self._ending.abandon(turn, cancelled)
                raise
            error = Unavailable(_ENDING)
        except Exception as problem:
            # Whatever it is, it is told to those whom the call was for.
            error = problem
        # One that was withdrawn is not among them any more, and its rows are in another.
        if turn in self._turns:
            self._turns.remove(turn)
            try:
                self._settle(turn, outcome, error)
            except Exception as problem:
                # Else its requests would wait for ever.
                log.exception("a call cannot be given to its requests")
                self._ending.abandon(turn, problem)
        self._wake()

    async def _in_turn(self, turn: Turn) -> Outcome | None:
        """Make a call once the one before it has ended and nobody else is about to join."""
        async with self._one:
            rows, quiet = turn.rows, 0
            while quiet < _QUIET and turn.has_room(1):
                await asyncio.sleep(0)
                quiet, rows = (quiet + 1 if turn.rows == rows else 0), turn.rows
            found: Outcome | None = await self._execute(turn.compute, self._make)
            return found

    def _settle(self, turn: Turn, outcome: Outcome | None, error: Exception | None) -> None:
        unbegun = turn.withdraw()
        self._note(turn)
        if unbegun:
            log.error("the engine takes no calls: %s", error)
            self._ending.abandon(turn, error or RuntimeError("the engine did not take the call"))
        elif error is not None:
            self._ending.repeat(turn.live or turn.pieces, error)
        elif outcome is not None:
            self._ending.give(turn, outcome)
        for piece in turn.pieces:
            job = piece.job
            if not job.answer.done() and job.deadline <= turn.begun:
                self._leave(job, "deadline")

    def _leave(self, job: Job, reason: Reason) -> None:
        """Let a request go that nobody waits for any more."""
        if job.gone or (job.answer.done() and not job.answer.cancelled()):
            return
        self._note_taken()
        self._ending.give_up(job, _too_late(self._spent(job)))
        self._ledger.refused(job.target, reason)

    def _spent(self, job: Job) -> tuple[float, float]:
        """Seconds that a request has waited, and that its calls have taken, until now."""
        now = time.perf_counter()
        running = (turn.begun for turn in self._turns if any(piece.job is job for piece in turn.live))
        computed = job.computed + sum(now - begun for begun in running)
        return max(0.0, now - job.queued_at - computed), computed

    def give_up_waiting(self, error: Exception, reason: Reason) -> None:
        """Answer every request with an error, but for those of the call that runs."""
        self._note_taken()
        jobs = [piece.job for turn in self._turns if not turn.taken for piece in turn.pieces]
        jobs += self._ending.waiting()
        while pieces := self._line.take(time.perf_counter(), 0.0):
            jobs += [piece.job for piece in pieces]
        for job in dict.fromkeys(jobs):
            self._ledger.refused(job.target, reason)
            self._ending.give_up(job, error)

    def _fail_all(self) -> None:
        while pieces := self._line.take(time.perf_counter(), 0.0):
            for piece in pieces:
                self._ending.give_up(piece.job, Unavailable(_ENDING))

    def _note_taken(self) -> None:
        for turn in self._turns:
            if turn.taken and not turn.noted:
                self._note(turn)

    def _note(self, turn: Turn) -> None:
        """Rows that the engine has taken wait no more."""
        if turn.noted:
            return
        turn.noted = True
        if not turn.again:
            # What goes again was taken from those that wait when it went first.
            self._ledger.taken(turn)
        for piece in turn.pieces:
            if piece.job.bucket is not None:
                # Those that came before this piece was taken get their turn before the next one.
                self._line.postpone(piece.job, time.perf_counter())


def _too_late(spent: tuple[float, float] | None = None) -> DeadlineExceeded:
    text = "the request's deadline passed before it was answered; it was not computed in time"
    return DeadlineExceeded(text, spent=spent)
