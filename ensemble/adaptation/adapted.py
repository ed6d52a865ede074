"""The members of an ensemble after gradient steps on examples, and what may be asked of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ensemble.errors import InputError
from ensemble.prediction import Prediction

if TYPE_CHECKING:
    from ensemble.adaptation.adaptable import Adaptable


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptedMembers:
    """The members of an ensemble after the steps, one set for each task.

    Args:
        weights: the adapted ones by name, each (tasks, members, *shape); of adapted factors those.
        losses: on the support, before each step and after all, (tasks, members, steps + 1), without gradients.

    Example:
        >>> adapted = ensemble.adapt(ens, (x, y), steps=5, lr=0.01)
        >>> adapted.predict(queries).std             # (tasks, rows, ...)
    """

    weights: dict[str, Tensor]
    losses: Tensor
    adaptable: Adaptable
    _vectorised: bool = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What each member says for each task.

        Args:
            args, kwargs: what the model's forward takes, each tensor (tasks, rows, ...).

        Returns:
            What the model returns, each tensor with (tasks, members, ...) in front.

        Raises:
            InputError: inputs that do not fit the model, or of another number of tasks.
        """
        outputs = self.adaptable.outputs(self.weights, self._bound(args, kwargs), self._vectorised)
        return self.adaptable.program.results.pack(list(outputs))

    def predict(
        self,
        *args: Any,
        statistics: Sequence[str] | None = None,
        confidence_level: float | None = None,
        levels: Iterable[float] | None = None,
        **kwargs: Any,
    ) -> Prediction:
        """Condensed outputs, as :meth:`ensemble.Ensemble.predict` gives them, for each task.

        What was fitted to the ensemble on data does not hold for adapted members, so there are no conformal statistics.

        Args:
            args, kwargs: as for a call.
            statistics: names; the task's default ones by default.
            confidence_level, levels: as for :meth:`ensemble.Ensemble.predict`.

        Returns:
            Statistics, each (tasks, rows, ...).

        Raises:
            InputError, StatisticError: as :meth:`ensemble.Ensemble.predict`.
        """
        inputs = self._bound(args, kwargs)
        tasks, rows = inputs[0].shape[:2]
        adaptable = self.adaptable
        asked = adaptable.asked(statistics, tasks * rows, confidence_level=confidence_level, levels=levels)
        found = adaptable.condensed(self.weights, inputs, [rows] * tasks, asked)
        results = {
            head: {name: t.reshape(tasks, rows, *t.shape[1:]) for name, t in statistics.items()}
            for head, statistics in found.items()
        }
        return Prediction(results, adaptable.members, len(asked.heads) > 1)

    def _bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        inputs = self.adaptable.bind(args, kwargs)
        if inputs[0].shape[0] != len(self.losses):
            raise InputError(f"There are {len(self.losses)} adapted tasks, and queries for {inputs[0].shape[0]}.")
        return inputs
