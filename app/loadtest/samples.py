"""What happened to each request.

A `Recorder` is written to while the test runs: plain typed arrays, because a million small objects would
make the garbage collector pause in the middle of the measurement. `Samples` is the same as numpy arrays,
once the test is over. Times are seconds from the start of the part that counts, so the warm-up is negative.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OK = "ok"
EXAMPLE_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class Samples:
    """One entry per request that has an outcome.

    Shape:
        Every array is (requests,). `kind` indexes `kinds`, where `ok` is 0. Of a request that was never sent,
        `sent` and `done` equal the moment at which that was decided.
    """

    due: NDArray[np.float64]
    sent: NDArray[np.float64]
    done: NDArray[np.float64]
    kind: NDArray[np.int64]
    bytes_sent: NDArray[np.int64]
    bytes_received: NDArray[np.int64]
    kinds: tuple[str, ...] = (OK,)

    def select(self, which: NDArray[np.bool_]) -> Samples:
        return Samples(
            due=self.due[which],
            sent=self.sent[which],
            done=self.done[which],
            kind=self.kind[which],
            bytes_sent=self.bytes_sent[which],
            bytes_received=self.bytes_received[which],
            kinds=self.kinds,
        )

    @property
    def good(self) -> NDArray[np.bool_]:
        return np.equal(self.kind, 0)

    @property
    def latency(self) -> NDArray[np.float64]:
        """Seconds from when a request was due to the end of its answer."""
        return self.done - self.due


class Recorder:
    """Collects outcomes, and counts them for whoever watches."""

    def __init__(self) -> None:
        self.sent = 0
        self.ok = 0
        self.errors = 0
        self.unfinished = 0
        self.examples: dict[str, str] = {}
        self._kinds = {OK: 0}
        self._times = array("d")
        self._facts = array("q")

    def add(
        self,
        *,
        due: float,
        sent: float,
        done: float,
        kind: str = OK,
        bytes_sent: int = 0,
        bytes_received: int = 0,
        example: str = "",
    ) -> None:
        """Record one outcome; `example` is what an error said, and the first of each kind is kept."""
        if kind == OK:
            self.ok += 1
        else:
            self.errors += 1
            if example:
                self.examples.setdefault(kind, example[:EXAMPLE_CHARACTERS])
        code = self._kinds.setdefault(kind, len(self._kinds))
        self._times.extend((due, sent, done))
        self._facts.extend((code, bytes_sent, bytes_received))

    def samples(self) -> Samples:
        times = np.array(self._times).reshape(-1, 3)
        facts = np.array(self._facts).reshape(-1, 3)
        return Samples(
            due=times[:, 0],
            sent=times[:, 1],
            done=times[:, 2],
            kind=facts[:, 0],
            bytes_sent=facts[:, 1],
            bytes_received=facts[:, 2],
            kinds=tuple(self._kinds),
        )
