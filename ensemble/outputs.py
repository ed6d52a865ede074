"""What may be asked of an ensemble: the statistics of each of its model's heads, under one name each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ensemble import statistics as named
from ensemble.prediction import qualified
from ensemble.statistics import Statistic
from ensemble.tasks import Head, Task


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The outputs of one ensemble.

    Args:
        task: what the model's numbers mean.
        heads: the predictions that the model makes.
        noise_variance: of a regression, target²; None if it is not known.
    """

    task: Task
    heads: tuple[Head, ...]
    noise_variance: float | None

    def described(self) -> dict[str, tuple[Statistic, tuple[int, ...]]]:
        """Each statistic by its name ("mean", or "policy.mean" of several heads), with the shape of one row."""
        return {
            qualified(head.name, s.name, len(self.heads)): (s, s.shape(head.trailing))
            for head in self.heads
            for s in named.available(self.task, self.noise_variance)
        }

    def resolve(self, names: Sequence[str] | None) -> list[tuple[Head, list[Statistic]]]:
        """Which statistics of which heads these names ask for; the default ones for None.

        Raises:
            StatisticError: an unknown name.
        """
        if names is None or isinstance(names, str) or len(self.heads) == 1:
            found = named.resolve(names, self.task, self.noise_variance)
            return [(head, found) for head in self.heads]
        asked: dict[str, list[str]] = {}
        for name in names:
            prefix = max((h.name for h in self.heads if name.startswith(f"{h.name}.")), key=len, default=None)
            for head in [prefix] if prefix else [h.name for h in self.heads]:
                asked.setdefault(head, []).append(name.removeprefix(f"{prefix}.") if prefix else name)
        return [
            (head, named.resolve(asked[head.name], self.task, self.noise_variance))
            for head in self.heads
            if head.name in asked
        ]
