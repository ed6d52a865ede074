"""What a statistic is, and what is asked of an ensemble."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ensemble.calibration.state import Calibration
from ensemble.statistics.moments import Moments
from ensemble.tasks import Head, Task

CONFIDENCE_LEVEL = 0.9
LEVELS = (0.05, 0.5, 0.95)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of an ensemble, and all that is needed to answer it from its members' outputs.

    Args:
        task, heads: what the outputs mean, and every prediction that the model makes.
        statistics: which of which heads.
        noise_variance: of a regression, target²; None if it is not known.
        calibration: what was fitted; None if nothing was.
        mixture: weights of the members, (N,) float64, in the order in which they are evaluated; equal by default.
        confidence_level: of intervals and sets.
        levels: of quantiles.
        targets: by the name of the head, what :func:`~ensemble.data.checked_targets` gives, on any device.
    """

    task: Task
    heads: tuple[Head, ...]
    statistics: tuple[tuple[Head, tuple[Statistic, ...]], ...]
    noise_variance: float | None = None
    calibration: Calibration | None = None
    mixture: Tensor | None = None
    confidence_level: float = CONFIDENCE_LEVEL
    levels: tuple[float, ...] = LEVELS
    targets: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Statistic:
    """One named output.

    Args:
        name: as it is asked for.
        description: what it is, with its formula.
        unit: of the values; "target" stands for the unit of the model's target.
        tasks: which tasks have it.
        needs: the moments that it is computed from.
        finish: moments, what is asked -> (batch, ...).
        shape: trailing shape of the model's output -> trailing shape of the statistic, -1 for a size that depends on
            what is asked: the members, the levels.
        dtype: of the values.
        default: part of the default set.
        uses: what a request may say about it: "confidence_level", "levels", "target".
        searches: quantiles of the mixture that each element takes a search for; -1 for as many as levels are asked.
    """

    name: str
    description: str
    unit: str
    tasks: tuple[Task, ...]
    needs: tuple[str, ...]
    finish: Callable[[Moments, Asked], Tensor]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda trailing: trailing
    dtype: torch.dtype = torch.float32
    default: bool = False
    uses: tuple[str, ...] = ()
    searches: int = 0

    @property
    def keeps_members(self) -> bool:
        """Whether every member's output is kept until the last one was seen."""
        return bool({"values", "variances"} & set(self.needs))
