"""A greedy batcher.

Requests that can share a call (same model, same version, same shape of a row) wait in one bucket. While a call runs,
requests gather; when it ends, the bucket whose first request has waited longest is emptied up to the largest batch and
run. So an idle engine answers at once, and a busy one answers as many as it can.

One request's fault is its own: a call that fails is repeated in halves until the request at fault stands alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.errors import TooManyRequests, Unavailable

Arrays = Mapping[str, NDArray[Any]]
# Runs one call: what is asked, its inputs, and the names of the outputs.
Run = Callable[[Any, Arrays, Collection[str]], Awaitable[Arrays]]


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        arrays: an array for each output that it asked for, its own rows.
        members: how many members were evaluated; None for all.
        queued, computed: seconds that it waited, and that its call took.
    """

    arrays: Arrays
    members: int | None
    queued: float
    computed: float


class Observer(Protocol):
    """What the batcher tells of each call."""

    def batch_done(self, target: Any, rows: int, queued: Sequence[float], compute: float) -> None:
        """A call of ``rows`` rows took ``compute`` seconds; its requests had waited ``queued`` seconds."""

    def queue_changed(self, rows: int) -> None:
        """So many rows wait now."""


@dataclass(eq=False)
class _Job:
    target: Any
    inputs: Arrays
    outputs: Collection[str]
    rows: int
    answer: asyncio.Future[Answer]
    queued_at: float = field(default_factory=time.perf_counter)


class Batcher:
    """Merges waiting requests into calls, one call at a time.

    Args:
        run: makes one call; what it raises reaches the requests of that call.
        max_rows: rows in one call; a request with more is a call of its own.
        max_queued_rows: rows that may wait; beyond it :meth:`submit` refuses.
        observer: told of each call.
    """

    def __init__(self, run: Run, *, max_rows: int, max_queued_rows: int, observer: Observer) -> None:
        self._run = run
        self._max_rows = max_rows
        self._max_queued_rows = max_queued_rows
        self._observer = observer
        # In the order in which each bucket's first request came.
        self._buckets: dict[Hashable, deque[_Job]] = {}
        self._queued_rows = 0
        # Smoothed seconds for a row, so that a refused client can be told when to come back.
        self._seconds_per_row = 0.0
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to run calls."""
        self._task = asyncio.create_task(self._serve(), name="batcher")

    async def close(self) -> None:
        """Refuse what is new, finish what was accepted, and end."""
        self._closed = True
        self._work.set()
        if self._task is not None:
            await self._task

    async def submit(self, target: Any, inputs: Arrays, outputs: Collection[str], rows: int) -> Answer:
        """Wait for the answer to a request.

        Args:
            target: what the call is made on; requests share calls only if it is the same object.
            inputs: arrays by name, each with ``rows`` rows.
            outputs: names of what to answer.

        Raises:
            TooManyRequests: too many rows wait.
            Unavailable: the service is shutting down.
            Exception: what the call raised.
        """
        if self._closed:
            raise Unavailable("the service is shutting down; ask another instance")
        # A request alone in the queue is taken whatever its size, or a large one could never be answered.
        if self._queued_rows and self._queued_rows + rows > self._max_queued_rows:
            raise TooManyRequests(
                f"{self._queued_rows} rows are waiting and the limit is {self._max_queued_rows}; try again later",
                retry_after=self._queued_rows * self._seconds_per_row,
            )
        job = _Job(target, inputs, outputs, rows, asyncio.get_running_loop().create_future())
        shapes = tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(inputs.items()))
        self._buckets.setdefault((id(target), shapes), deque()).append(job)
        self._count(rows)
        self._work.set()
        return await job.answer

    def _count(self, rows: int) -> None:
        self._queued_rows += rows
        self._observer.queue_changed(self._queued_rows)

    async def _serve(self) -> None:
        while True:
            if not self._buckets:
                if self._closed:
                    return
                self._work.clear()
                await self._work.wait()
                continue
            # Requests whose bytes have arrived, but were not decoded yet, may still join.
            await asyncio.sleep(0)
            await self._answer(self._next())

    def _next(self) -> list[_Job]:
        key = min(self._buckets, key=lambda key: self._buckets[key][0].queued_at)
        waiting = self._buckets[key]
        jobs = [waiting.popleft()]
        rows = jobs[0].rows
        while waiting and rows + waiting[0].rows <= self._max_rows:
            rows += waiting[0].rows
            jobs.append(waiting.popleft())
        if not waiting:
            del self._buckets[key]
        self._count(-rows)
        return jobs

    async def _answer(self, jobs: list[_Job]) -> None:
        # A client that has gone away is not computed for.
        jobs = [job for job in jobs if not job.answer.done()]
        if not jobs:
            return
        begun = time.perf_counter()
        rows = sum(job.rows for job in jobs)
        try:
            outputs = {name for job in jobs for name in job.outputs}
            answer = await self._run(jobs[0].target, _joined(jobs), outputs)
            parts = _split(jobs, answer)
        except Exception as error:
            if len(jobs) > 1:
                await self._answer(jobs[: len(jobs) // 2])
                await self._answer(jobs[len(jobs) // 2 :])
            elif not jobs[0].answer.done():
                jobs[0].answer.set_exception(error)
            return
        compute = time.perf_counter() - begun
        self._seconds_per_row += 0.2 * (compute / rows - self._seconds_per_row)
        for job, part in zip(jobs, parts, strict=True):
            if not job.answer.done():
                job.answer.set_result(Answer(part, None, begun - job.queued_at, compute))
        self._observer.batch_done(jobs[0].target, rows, [begun - job.queued_at for job in jobs], compute)


def _joined(jobs: list[_Job]) -> Arrays:
    if len(jobs) == 1:
        return jobs[0].inputs
    return {name: np.concatenate([job.inputs[name] for job in jobs]) for name in jobs[0].inputs}


def _split(jobs: list[_Job], answer: Arrays) -> list[Arrays]:
    parts: list[Arrays] = []
    start = 0
    for job in jobs:
        parts.append({name: answer[name][start : start + job.rows] for name in job.outputs})
        start += job.rows
    return parts
