"""Which way of running is fastest here, for this model: measured, not guessed.

One ``vmap`` over all members is fast for some models and three times slower than a plain loop for others (a
convolution under ``vmap`` becomes a grouped one, whose kernels are slow for many groups), and where the turning point
lies depends on the batch, the model and the machine. So a plan names, for each of a few batch sizes, what was tried on
the real ensemble and which of it is fastest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

# In place of a number of members in one call: one after the other without vmap.
LOOP = 0
EAGER = ("loop", "vmap")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One way of running a batch, and what came of trying it.

    Attributes:
        kind: "loop", "vmap", or the backend that compiled it ("openvino", "unrolled", "inductor",
            "cudagraph").
        chunk: members in one call; 0 is the loop.
        rows: rows that the call takes; a smaller batch is padded to it.
        seconds: of a whole batch, the fastest of a few runs; of a loop for which there was no time, what it took for
            some members, times as many as there are.
        precision: in which it computes.
        error: largest difference from the loop over materialised members, on some of them, relative to the largest
            magnitude; None if it was not compared.
    """

    kind: str
    chunk: int
    rows: int
    seconds: float
    precision: str = "float32"
    error: float | None = None

    @property
    def compiled(self) -> bool:
        """Whether it runs a compiled call."""
        return self.kind not in EAGER

    def described(self) -> dict[str, Any]:
        """As JSON values for people and tools."""
        return {
            "way": self.kind,
            "members_in_one_call": self.chunk or 1,
            "padded_to_rows": self.rows if self.compiled else None,
            "precision": self.precision if self.compiled else None,
            "ms": _milliseconds(self.seconds),
            "relative_error": self.error,
        }

    def __str__(self) -> str:
        how = "the loop" if self.kind == "loop" else f"{self.kind}, {self.chunk} members at a time"
        precision = "" if self.precision == "float32" or not self.compiled else f", {self.precision}"
        return f"{how}{precision}, {1000 * self.seconds:.3g} ms"


@dataclasses.dataclass(frozen=True)
class Way:
    """How a batch is run.

    Attributes:
        rows: the batch size that was measured.
        best: what runs it.
        trials: everything that was tried, fastest first.
    """

    rows: int
    best: Trial
    trials: tuple[Trial, ...]

    @staticmethod
    def of(rows: int, trials: Sequence[Trial]) -> Way:
        """The way that these trials lead to."""
        ranked = tuple(sorted(trials, key=lambda trial: trial.seconds))
        return Way(rows, ranked[0], ranked)

    @property
    def eager(self) -> Trial:
        """The fastest without compiling, for batches that no compiled call takes."""
        return next(trial for trial in self.trials if not trial.compiled)

    def without_compiled(self) -> Way:
        """The same way before anything was compiled."""
        return Way.of(self.rows, [trial for trial in self.trials if not trial.compiled])

    @property
    def kind(self) -> str:
        """In a word, as in :class:`Trial`."""
        return self.best.kind

    @property
    def chunk(self) -> int:
        """Members in one call; 0 is the loop."""
        return self.best.chunk

    @property
    def seconds(self) -> float:
        """Of a whole batch."""
        return self.best.seconds

    @property
    def loop_seconds(self) -> float | None:
        """Of the loop on the same batch; None if it was not timed."""
        return next((trial.seconds for trial in self.trials if trial.kind == "loop"), None)

    def described(self) -> dict[str, Any]:
        """As JSON values for people and tools: what a batch of so many rows is run as, and what that saves."""
        loop = self.loop_seconds
        best = self.best.described()
        return {
            "rows": self.rows,
            **best,
            "loop_ms": None if loop is None else _milliseconds(loop),
            "tried": [trial.described() for trial in self.trials],
        }

    def __str__(self) -> str:
        against = self.loop_seconds and self.kind != "loop"
        loop = f", the loop takes {1000 * (self.loop_seconds or 0):.3g} ms" if against else ""
        return f"{self.rows} rows: {self.best}{loop}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The ways for growing batch sizes; a batch between two is run as the larger one.

    Attributes:
        ways: one for each size.
        failures: why a backend is not used, by its name.
    """

    ways: tuple[Way, ...]
    failures: dict[str, str] = dataclasses.field(default_factory=dict)

    def trial(self, rows: int) -> Trial:
        """How a batch of so many rows is run; one larger than all that were measured without compiling."""
        found = next((way for way in self.ways if way.rows >= rows), None)
        return found.best if found else self.ways[-1].eager

    def way(self, rows: int) -> Way:
        """What is known of batches of so many rows."""
        return next((way for way in self.ways if way.rows >= rows), self.ways[-1])

    def with_trial(self, trial: Trial) -> Plan:
        """The same plan where a compiled call runs every batch, padded to its rows, that it is fastest for."""
        return dataclasses.replace(
            self,
            ways=tuple(
                Way.of(way.rows, (*(t for t in way.trials if not _same(t, trial)), trial))
                if way.rows == trial.rows or (way.rows < trial.rows and trial.seconds < way.seconds)
                else way
                for way in self.ways
            ),
        )

    def with_failure(self, kind: str, reason: str) -> Plan:
        """The same plan, which says why a backend is not used."""
        return dataclasses.replace(self, failures={**self.failures, kind: reason})

    def covers(self, rows: Sequence[int]) -> bool:
        """Whether it has these sizes and no others, each with the loop that it is measured by."""
        measured = [way.rows for way in self.ways if way.loop_seconds is not None]
        return measured == list(rows) and len(measured) == len(self.ways)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        ways = [{"rows": w.rows, "trials": [dataclasses.asdict(t) for t in w.trials]} for w in self.ways]
        return {"ways": ways, "failures": self.failures}

    @staticmethod
    def from_json(values: Any) -> Plan | None:
        """Read back what :meth:`to_json` wrote; None if it is something else."""
        try:
            ways = [Way.of(int(way["rows"]), [Trial(**trial) for trial in way["trials"]]) for way in values["ways"]]
            plan = Plan(tuple(ways), {str(kind): str(reason) for kind, reason in values["failures"].items()})
            # What is missing in it shows when it is used.
            usable = [str(way) for way in plan.ways if any(not trial.compiled for trial in way.trials)]
            return plan if plan.ways and len(usable) == len(plan.ways) else None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            return None


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)


def _same(one: Trial, other: Trial) -> bool:
    return (one.kind, one.chunk, one.rows, one.precision) == (other.kind, other.chunk, other.rows, other.precision)
