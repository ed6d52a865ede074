"""The next call, put together while another one runs.

Rows are copied into it as their requests come, so that when the engine's thread is free it finds a batch that is
complete, without waiting for the event loop. Until that moment the batch is open: requests join it, and those whose
client has gone or whose deadline has passed are left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from app.batching.contract import Arrays, Call, Outcome
from app.batching.job import Job, Piece

# A buffer up to this size is made at once for as many rows as a call takes; a larger one grows.
_BUFFER_BYTES = 8 * 2**20


class Turn:
    """One call, and the rows that it is for.

    Args:
        pieces: what it begins with, at least one; all of requests that can share a call.
        limit: rows that it takes.
        again: whether it is what is left of a call that failed, which nobody joins.

    Attributes:
        key: of the requests that may join.
        pieces: all rows that it was given.
        live: those that it was made with, in the order of its rows; known once it was taken.
        begun, ended: when it was computed, by the performance counter.
        noted: whether the batcher has seen that it was taken.
        again: whether it is what is left of a call that failed.
    """

    def __init__(self, pieces: list[Piece], limit: int, *, again: bool = False) -> None:
        self.key = pieces[0].job.key
        self.pieces: list[Piece] = []
        self.live: list[Piece] = []
        self.begun = self.ended = 0.0
        self.noted = False
        self.again = again
        self._limit = limit
        self._rows = 0
        # The event loop adds while the engine's thread takes.
        self._lock = threading.Lock()
        self._taken = False
        self._buffers: dict[str, np.ndarray] = {}
        self._capacity = 0
        expected = sum(piece.rows for piece in pieces)
        for piece in pieces:
            self._append(piece, expected)

    @property
    def taken(self) -> bool:
        """Whether it is closed: being computed, done, or withdrawn."""
        return self._taken

    @property
    def rows(self) -> int:
        """How many it was given."""
        return self._rows

    def join(self, piece: Piece) -> bool:
        """Give it more rows; whether it could take them."""
        with self._lock:
            if self._taken or self._rows + piece.rows > self._limit:
                return False
            self._append(piece, self._rows + piece.rows)
            return True

    def has_room(self, rows: int) -> bool:
        """Whether so many rows more would fit, if it is not taken first."""
        return not (self._taken or self.again) and self._rows + rows <= self._limit

    def gives_way_to(self, job: Job) -> bool:
        """Whether a request should be computed before some of these rows."""
        if self._taken or self.again:
            return False
        ranks = [piece.rank for piece in self.pieces]
        return job.rank < (max(ranks) if job.key == self.key else min(ranks))

    def withdraw(self) -> bool:
        """Close it, so that its rows can go into another; False if it was taken before."""
        with self._lock:
            open_, self._taken = not self._taken, True
            return open_

    def compute(self, make: Callable[[Call], Outcome]) -> Outcome | None:
        """Take it and make the call. Runs on the engine's thread; None if nothing is left to compute."""
        with self._lock:
            if self._taken:
                return None
            self._taken = True
        self.begun = self.ended = time.perf_counter()
        live = [piece for piece in self.pieces if not piece.job.gone and piece.job.deadline > self.begun]
        if not live:
            return None
        self.live = live
        job = live[0].job
        rows = sum(piece.rows for piece in live)
        outputs = dict.fromkeys(name for piece in live for name in piece.job.outputs)
        try:
            owners = tuple((piece.job.own, piece.rows) for piece in live) if job.own is not None else ()
            call = Call(job.target, self._inputs(live, rows), tuple(outputs), rows, job.question, owners)
            outcome = make(call)
            for name in outputs:
                if len(outcome.arrays[name]) != rows:
                    raise ValueError(f"a call of {rows} rows gave {len(outcome.arrays[name])} of {name!r}")
            return outcome
        finally:
            self.ended = time.perf_counter()
            self._buffers = {}

    def _inputs(self, live: list[Piece], rows: int) -> Arrays:
        if len(live) == 1:
            return live[0].inputs
        if len(live) == len(self.pieces) and self._capacity:
            return {name: buffer[:rows] for name, buffer in self._buffers.items()}
        parts = [piece.inputs for piece in live]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _append(self, piece: Piece, expected: int) -> None:
        self.pieces.append(piece)
        start, self._rows = self._rows, self._rows + piece.rows
        # A request alone is run as it came.
        if len(self.pieces) == 1:
            return
        try:
            if self._rows > self._capacity:
                self._grow(expected)
            for name, array in piece.inputs.items():
                self._buffers[name][start : self._rows] = array
        except Exception:
            # It is put together, or fails for those it concerns, when it is taken.
            self._capacity, self._buffers = 0, {}
            self._limit = self._rows

    def _grow(self, expected: int) -> None:
        """Make room for what is expected at least, and copy what is there."""
        before = self.pieces[:-1]
        example = before[0].inputs
        row_bytes = max(1, sum(array.nbytes // max(1, len(array)) for array in example.values()))
        rows = min(self._limit, max(2 * expected, _BUFFER_BYTES // row_bytes))
        capacity = max(rows, self._rows)
        buffers = {name: np.empty((capacity, *array.shape[1:]), array.dtype) for name, array in example.items()}
        filled = 0
        if self._capacity:
            filled = self._rows - self.pieces[-1].rows
            for name, old in self._buffers.items():
                buffers[name][:filled] = old[:filled]
        else:
            for piece in before:
                for name, array in piece.inputs.items():
                    buffers[name][filled : filled + piece.rows] = array
                filled += piece.rows
        self._buffers, self._capacity = buffers, capacity
