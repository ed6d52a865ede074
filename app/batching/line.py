"""Who is next: the waiting requests, those that can share a call in one bucket."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

from app.batching.job import Job, Piece


@dataclass(eq=False)
class Bucket:
    """Requests that can share a call.

    Attributes:
        rows: how many wait in it.
        levels: the requests of each priority, in the order of their ranks.
    """

    rows: int = 0
    levels: dict[int, dict[Job, None]] = field(default_factory=dict)

    @property
    def first(self) -> Job:
        """The request that is next."""
        heads = [next(iter(jobs)) for jobs in self.levels.values()]
        return heads[0] if len(heads) == 1 else min(heads, key=lambda job: job.rank)

    @property
    def oldest(self) -> float:
        """When the first of its requests came."""
        return min(next(iter(jobs)).queued_at for jobs in self.levels.values())


class Line:
    """All buckets. A request waits in at most one, and what leaves it costs the same wherever it stood."""

    def __init__(self) -> None:
        self._buckets: dict[Hashable, Bucket] = {}

    def __bool__(self) -> bool:
        return bool(self._buckets)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._buckets

    def add(self, job: Job) -> None:
        """A request at the end of its priority's line."""
        bucket = self._buckets.get(job.key)
        if bucket is None:
            bucket = self._buckets[job.key] = Bucket()
        bucket.levels.setdefault(job.priority, {})[job] = None
        bucket.rows += job.rows - job.handed
        job.bucket = bucket

    def remove(self, job: Job) -> None:
        """Take a request out, wherever it stands."""
        bucket, job.bucket = job.bucket, None
        if bucket is None:
            return
        level = bucket.levels[job.priority]
        del level[job]
        bucket.rows -= job.rows - job.handed
        if not level:
            del bucket.levels[job.priority]
            if not bucket.levels:
                del self._buckets[job.key]

    def postpone(self, job: Job, now: float) -> None:
        """Put what remains of a request behind those that wait now."""
        self.remove(job)
        job.stand(now)
        self.add(job)

    def restore(self, pieces: list[Piece]) -> None:
        """Put rows that were taken last back where they stood."""
        for piece in pieces:
            job = piece.job
            if job.gone:
                continue
            self.remove(job)
            job.handed, job.rank = piece.start, piece.rank
            self.add(job)
            level = self._buckets[job.key].levels[job.priority]
            ordered = sorted(level, key=lambda waiting: waiting.rank)
            level.clear()
            level.update(dict.fromkeys(ordered))

    def take(self, now: float, delay: float) -> list[Piece]:
        """The rows of the next call: of the bucket that is next, as many as a call takes.

        Args:
            now: by the performance counter.
            delay: seconds that a bucket which does not fill a call waits for more, from its first request on.
        """
        due: Collection[Bucket] = self._buckets.values()
        if delay > 0:
            due = [b for b in due if b.rows >= b.first.target.max_batch or b.oldest + delay <= now]
        if not due:
            return []
        bucket = min(due, key=lambda bucket: bucket.first.rank) if len(due) > 1 else next(iter(due))
        limit = bucket.first.target.max_batch
        pieces: list[Piece] = []
        rows = 0
        while bucket.levels and rows < limit:
            job = bucket.first
            left = job.rows - job.handed
            if left <= limit and rows + left > limit:
                break
            size = min(left, limit - rows)
            self.remove(job)
            pieces.append(job.take(size, now))
            rows += size
            if size < left:
                # What remains goes behind the others, so that they get their turn between its pieces.
                self.add(job)
        return pieces

    def due(self, delay: float) -> float:
        """When the first bucket will have waited for so many seconds."""
        return min((bucket.oldest for bucket in self._buckets.values()), default=math.inf) + delay
