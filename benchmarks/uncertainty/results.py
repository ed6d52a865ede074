"""What is kept of a run: a record for each method on each split, and a judgement of it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.uncertainty.scores import closed


@dataclasses.dataclass
class Record:
    """One method on one split.

    Args:
        table: the data set.
        head: what the nets return.
        method: its key.
        split: which.
        scores: by name: log_likelihood and rmse of a regression; nll, accuracy, ece and auroc … of a classification.
        cost: trainings of one net that it took besides the one; None where that was not counted.
        seconds: that it took.
        note: what was chosen.
        reason: why there are no scores; empty if there are.
    """

    table: str
    head: str
    method: str
    split: int
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    cost: float | None = None
    seconds: float = 0.0
    note: str = ""
    reason: str = ""


@dataclasses.dataclass
class Results:
    """A whole run.

    Args:
        machine: what it ran on.
        command: how it was started.
    """

    machine: str
    command: str
    records: list[Record] = dataclasses.field(default_factory=list)

    def of(self, table: str, head: str, method: str) -> list[Record]:
        """The records of a method, by split."""
        found = [r for r in self.records if (r.table, r.head, r.method) == (table, head, method)]
        return sorted(found, key=lambda record: record.split)

    def values(self, table: str, head: str, method: str, score: str) -> list[float]:
        """A score on each split that has one."""
        return [r.scores[score] for r in self.of(table, head, method) if score in r.scores]

    def mean(self, table: str, head: str, method: str, score: str) -> float | None:
        found = self.values(table, head, method, score)
        return statistics.fmean(found) if found else None

    def share(self, table: str, head: str, method: str, score: str) -> float | None:
        """The part of the gap between the single net and the deep ensemble of ten that is closed, of means."""
        ends = [self.mean(table, head, name, score) for name in (method, "single", "deep-10")]
        if any(end is None for end in ends) or not self._same_splits(table, head, method):
            return None
        value, single, ensemble = (float(end) for end in ends if end is not None)
        return closed(value, single, ensemble)

    def _same_splits(self, table: str, head: str, method: str) -> bool:
        # A method that failed on a split is not compared with means over more splits.
        having = [
            {r.split for r in self.of(table, head, name) if not r.reason} for name in (method, "single", "deep-10")
        ]
        return having[0] == having[1] == having[2]

    def tables(self, head: str) -> list[str]:
        """Names of the data sets that have records with this head, in order."""
        return list(dict.fromkeys(r.table for r in self.records if r.head == head))

    def methods(self, head: str) -> list[str]:
        return list(dict.fromkeys(r.method for r in self.records if r.head == head))

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


def error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
