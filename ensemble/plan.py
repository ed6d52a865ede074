"""Which way of running is fastest here, for this model: measured, not guessed.

One ``vmap`` over all members is fast for some models and three times slower than a plain loop for others (a
convolution under ``vmap`` becomes a grouped one, whose kernels are slow for many groups), and where the turning point
lies depends on the batch, the model and the machine. So for each of a few batch sizes the candidates are timed on the
real ensemble: all members in one call, chunks of several sizes, and the loop. The loop being among them, the choice is
never slower than it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

# Called with the number of members in one call (LOOP: one after the other without vmap); runs the whole ensemble.
Run = Callable[[int], None]
LOOP = 0
# A candidate this much slower than the best so far is not tried again.
_HOPELESS = 1.5
_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Way:
    """How a batch is run.

    Attributes:
        rows: the batch size that was measured.
        chunk: members in one vectorised call; 0 is the loop.
        seconds: of a whole batch, the fastest of a few runs.
        loop_seconds: of the loop on the same batch; None if there was no time to try it.
    """

    rows: int
    chunk: int
    seconds: float
    loop_seconds: float | None

    def __str__(self) -> str:
        how = "the loop" if self.chunk == LOOP else f"vmap over {self.chunk} members at a time"
        against = f", the loop takes {1000 * self.loop_seconds:.3g} ms" if self.loop_seconds and self.chunk else ""
        return f"{self.rows} rows: {how}, {1000 * self.seconds:.3g} ms{against}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The ways for growing batch sizes; a batch between two is run as the larger one."""

    ways: tuple[Way, ...]

    def chunk(self, rows: int) -> int:
        """Members in one call for a batch of so many rows."""
        return next((way.chunk for way in self.ways if way.rows >= rows), self.ways[-1].chunk)


def candidates(members: int, most: int) -> list[int]:
    """Chunks to try, the most promising first; LOOP among the first, since it is the mark to beat.

    Args:
        members: N.
        most: the largest chunk whose activations fit.
    """
    sizes = [min(members, most)]
    while sizes[-1] > 2:
        sizes.append(max(2, sizes[-1] // (4 if sizes[-1] > 256 else 2)))
    return [sizes[0], LOOP, *sizes[1:]]


def measure(run: Run, rows: int, chunks: Sequence[int], seconds: float) -> Way:
    """Time the candidates for one batch size.

    Args:
        run: runs the batch with a chunk.
        rows: its size.
        chunks: what to try, in order.
        seconds: when this is spent, no further candidate is tried.
    """
    begun = time.perf_counter()
    fastest: dict[int, float] = {}
    for chunk in chunks:
        if fastest and time.perf_counter() - begun > seconds:
            break
        # The first run of a shape allocates and chooses kernels; only a hopeless one counts.
        times = [_timed(run, chunk)]
        best = min(fastest.values(), default=float("inf"))
        while len(times) <= _REPEATS and times[-1] < _HOPELESS * best and time.perf_counter() - begun < seconds:
            times.append(_timed(run, chunk))
        fastest[chunk] = min(times)
    chosen = min(fastest, key=fastest.__getitem__)
    return Way(rows, chosen, fastest[chosen], fastest.get(LOOP))


def _timed(run: Run, chunk: int) -> float:
    start = time.perf_counter()
    run(chunk)
    return time.perf_counter() - start
