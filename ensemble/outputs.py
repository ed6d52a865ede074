"""What may be asked of an ensemble: the statistics of each of its model's heads, under one name each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ensemble.calibration.state import Calibration
from ensemble.data import checked_targets
from ensemble.errors import InputError
from ensemble.prediction import qualified
from ensemble.statistics.available import FITTED, available, check, unavailable
from ensemble.statistics.statistic import CONFIDENCE_LEVEL, LEVELS, Asked, Statistic
from ensemble.tasks import Head, Task


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of one ensemble.

    Args:
        task: what the model's numbers mean.
        heads: the predictions that the model makes.
        noise_variance: of a regression, target²; None if it is not known.
        calibration: what was fitted; None if nothing was.
    """

    task: Task
    heads: tuple[Head, ...]
    noise_variance: float | None
    calibration: Calibration | None = None

    @cached_property
    def _having(self) -> dict[str, Statistic]:
        return {s.name: s for s in available(self.task, self.noise_variance, self.calibration)}

    @cached_property
    def _lacking(self) -> dict[str, str]:
        found = unavailable(self.task, self.noise_variance, self.calibration)
        if len(self.heads) == 1:
            return found
        several = "is not there for a model with several outputs; make an ensemble for each of them, and fit that."
        return {name: f"{name} {several}" if name in FITTED else why for name, why in found.items()}

    @cached_property
    def _defaults(self) -> tuple[tuple[Head, tuple[Statistic, ...]], ...]:
        default = tuple(s for s in self._having.values() if s.default)
        return tuple((head, default) for head in self.heads)

    def described(self) -> dict[str, tuple[Statistic, tuple[int, ...]]]:
        """Each statistic by its name ("mean", or "policy.mean" of several heads), with the shape of one row."""
        return {
            self._named(head, s.name): (s, s.shape(head.trailing)) for head in self.heads for s in self._having.values()
        }

    def lacking(self) -> dict[str, str]:
        """What could be asked if more were known of the ensemble: by name, what to do."""
        return {self._named(head, name): why for head in self.heads for name, why in self._lacking.items()}

    def targets(self) -> dict[str, tuple[Head, tuple[int, ...]]]:
        """Of each ``log_prob``, by its name: the head that its target is for, and the target's shape of one row."""
        return {
            self._named(head, name): (head, s.shape(head.trailing))
            for head in self.heads
            for name, s in self._having.items()
            if "target" in s.uses
        }

    def _named(self, head: Head, statistic: str) -> str:
        return qualified(head.name, statistic, len(self.heads))

    def resolve(self, names: Sequence[str] | None) -> tuple[tuple[Head, tuple[Statistic, ...]], ...]:
        """Which statistics of which heads these names ask for; the default ones for None.

        Raises:
            StatisticError: an unknown name, or one that was not fitted.
        """
        if names is None:
            return self._defaults
        if isinstance(names, str) or len(self.heads) == 1:
            found = self._checked(names)
            return tuple((head, found) for head in self.heads)
        asked: dict[str, list[str]] = {}
        for name in names:
            prefix = max((h.name for h in self.heads if name.startswith(f"{h.name}.")), key=len, default=None)
            for head in [prefix] if prefix else [h.name for h in self.heads]:
                asked.setdefault(head, []).append(name.removeprefix(f"{prefix}.") if prefix else name)
        return tuple((head, self._checked(asked[head.name])) for head in self.heads if head.name in asked)

    def _checked(self, names: Sequence[str]) -> tuple[Statistic, ...]:
        check(names, self._having, self._lacking, self.task)
        return tuple(self._having[name] for name in dict.fromkeys(names))

    def searches(self, names: Sequence[str] | None, levels: int = len(LEVELS)) -> int:
        """How many quantiles of the mixture are searched for in each row; each search goes through all members.

        Args:
            names: of statistics, as for :meth:`asked`.
            levels: how many levels are asked for.
        """
        return sum(
            (levels if s.searches < 0 else s.searches) * math.prod(max(1, size) for size in head.trailing)
            for head, statistics in self.resolve(names)
            for s in statistics
        )

    def asked(
        self,
        names: Sequence[str] | None,
        rows: int,
        *,
        mixture: Tensor | None = None,
        confidence_level: float | None = None,
        levels: Iterable[float] | None = None,
        target: Any = None,
    ) -> Asked:
        """What a caller asks, checked.

        Args:
            names: of statistics; None for the default ones.
            rows: how many rows it is asked of.
            mixture: weights of the members.
            confidence_level: of intervals and sets; by default what was fitted for, or 0.9.
            levels: of quantiles; by default 0.05, 0.5 and 0.95.
            target: for ``log_prob``; of a model with several outputs a mapping by their names.

        Raises:
            StatisticError: an unknown statistic, or one that was not fitted.
            InputError: levels that are none, a target that does not fit, is missing or is not asked about.
        """
        statistics = self.resolve(names)
        fitted = CONFIDENCE_LEVEL if self.calibration is None else self.calibration.confidence_level
        return Asked(
            self.task,
            self.heads,
            statistics,
            self.noise_variance,
            self.calibration,
            mixture,
            fitted if confidence_level is None else checked_level(confidence_level),
            LEVELS if levels is None else checked_levels(levels),
            self._targets([head for head, some in statistics if any("target" in s.uses for s in some)], target, rows),
        )

    def _targets(self, heads: Sequence[Head], target: Any, rows: int) -> dict[str, Tensor]:
        if target is None and not heads:
            return {}
        if not heads:
            raise InputError(
                "A target is for the statistic log_prob, which was not asked for; an input of the model that has this "
                "name is given by its position, or in one dict with all inputs."
            )
        if target is None:
            raise InputError("log_prob is that of a target: give it with target=, a target for each row.")
        if len(self.heads) > 1:
            if not isinstance(target, Mapping) or target.keys() != {head.name for head in heads}:
                raise InputError(
                    f"target must be a dict with a target for each of {', '.join(head.name for head in heads)}, of "
                    "which log_prob was asked for."
                )
        else:
            target = {heads[0].name: target}
        return {head.name: checked_targets(_as_tensor(target[head.name]), rows, self.task, head) for head in heads}


def _as_tensor(target: Any) -> Tensor:
    try:
        return torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"target must be a tensor, array or list of numbers, however: {str(error)[:200]}.") from error


def checked_level(level: Any) -> float:
    """A confidence level, or the level of a quantile.

    Raises:
        InputError: it is not a number between 0 and 1.
    """
    try:
        number = float(level)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(level, str | bool) or not 0 < number < 1:
        raise InputError(f"A level must be a number between 0 and 1, such as 0.9, however: {str(level)[:60]}.")
    return number


def checked_levels(levels: Any) -> tuple[float, ...]:
    """Levels of quantiles, as they are asked for.

    Raises:
        InputError: there are none, or one is not a number between 0 and 1.
    """
    if isinstance(levels, str | bytes) or not isinstance(levels, Iterable):
        raise InputError(
            f"levels must be a list of numbers, each between 0 and 1, such as [0.05, 0.95], however: {levels!r}"
        )
    found = tuple(checked_level(level) for level in levels)
    if not found:
        raise InputError("levels must hold at least one number between 0 and 1, such as 0.5.")
    return found
