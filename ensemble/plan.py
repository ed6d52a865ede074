"""Which way of running is fastest here, for this model: measured, not guessed.

One ``vmap`` over all members is fast for some models and three times slower than a plain loop for others (a
convolution under ``vmap`` becomes a grouped one, whose kernels are slow for many groups), and where the turning point
lies depends on the batch, the model and the machine. So for each of a few batch sizes the candidates are timed on the
real ensemble: all members in one call, chunks of several sizes, the loop, and calls that were compiled. The loop runs
the same program one member after the other (on factors, where members have them); it is tried right after the first
candidate, so that the choice is never slower than it unless there was no time for it at all.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from ensemble.errors import ModelError

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
        compiled: rows that a compiled call takes, to which the batch is padded; None if it runs without one.
        eager: the fastest chunk without compiling, for batches that no compiled call takes.
    """

    rows: int
    chunk: int
    seconds: float
    loop_seconds: float | None
    compiled: int | None = None
    eager: int = LOOP

    @property
    def kind(self) -> str:
        """In a word: "loop", "vmap" or "compiled"."""
        return "compiled" if self.compiled else "vmap" if self.chunk != LOOP else "loop"

    def __str__(self) -> str:
        how = "the loop" if self.kind == "loop" else f"{self.kind}, {self.chunk} members at a time"
        against = self.loop_seconds and self.kind != "loop"
        loop = f", the loop takes {1000 * (self.loop_seconds or 0):.3g} ms" if against else ""
        return f"{self.rows} rows: {how}, {1000 * self.seconds:.3g} ms{loop}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The ways for growing batch sizes; a batch between two is run as the larger one."""

    ways: tuple[Way, ...]

    def way(self, rows: int) -> Way:
        """How a batch of so many rows is run; one larger than all that were measured without compiling."""
        found = next((way for way in self.ways if way.rows >= rows), None)
        return found or dataclasses.replace(self.ways[-1], chunk=self.ways[-1].eager, compiled=None)

    def with_compiled(self, rows: int, chunk: int, seconds: float) -> Plan:
        """The same plan where a compiled call for so many rows, which took so long, runs every batch that it is
        fastest for."""
        return Plan(
            tuple(
                dataclasses.replace(way, chunk=chunk, seconds=seconds, compiled=rows)
                if way.rows <= rows and seconds < way.seconds
                else way
                for way in self.ways
            )
        )


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
        try:
            times = [timed(run, chunk)]
        except ModelError:
            # vmap refuses the model; the loop does not.
            continue
        best = min(fastest.values(), default=float("inf"))
        while len(times) <= _REPEATS and times[-1] < _HOPELESS * best and time.perf_counter() - begun < seconds:
            times.append(timed(run, chunk))
        fastest[chunk] = min(times)
    chosen = min(fastest, key=fastest.__getitem__)
    return Way(rows, chosen, fastest[chosen], fastest.get(LOOP), eager=chosen)


def timed(run: Callable[..., object], *arguments: object) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start
