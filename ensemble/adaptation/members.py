"""The steps of an ensemble's members: each takes its own, on the examples of each task."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ensemble.adaptation import evaluation
from ensemble.adaptation.adaptable import Adaptable
from ensemble.adaptation.inner_loop import Before, Layout, Rates, Steps, descend, step_sizes
from ensemble.adaptation.objectives import Judge, Loss, Targets, of_task, scalar
from ensemble.data import checked_targets
from ensemble.errors import InputError, MemoryLimitError
from ensemble.memory import available, human
from ensemble.prediction import Prediction
from ensemble.variants.grouped import check_indices

# Of the memory that is free.
_SHARE = 0.9


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
        outputs = evaluation.outputs(self.adaptable, self.weights, self._bound(args, kwargs), self._vectorised)
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
        inputs, adaptable = self._bound(args, kwargs), self.adaptable
        tasks, rows = inputs[0].shape[:2]
        asked = evaluation.asked(adaptable, statistics, tasks * rows, confidence_level=confidence_level, levels=levels)
        found = evaluation.condensed(adaptable, self.weights, inputs, [rows] * tasks, asked)
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


def adapt_members(
    adaptable: Adaptable,
    support: tuple[Any, Targets],
    loss: Loss | None,
    steps: int,
    lr: Rates,
    *,
    create_graph: bool = False,
    first_order: bool = False,
    vectorised: bool = True,
    before: Before | None = None,
) -> AdaptedMembers:
    """Take the steps; arguments and errors as of :func:`ensemble.adapt`."""
    sizes = Steps(steps, step_sizes(lr, adaptable.one_member(adaptable.start)), first_order, before)
    inputs, targets = _examples(adaptable, support, loss)
    tasks, shots = inputs[0].shape[:2]
    judge, running = _judge(adaptable, loss), adaptable.program.with_own_inputs
    if not create_graph:
        _require(adaptable, tasks, shots)
    weights = {**adaptable.fixed, **adaptable.start}
    check_indices(adaptable.program, adaptable.one_member(weights), inputs)

    def one(own: dict[str, Tensor], examples: Any) -> tuple[dict[str, Tensor], Tensor]:
        rows, wanted = examples
        still = {name: own[name] for name in adaptable.fixed}

        def objective(changing: Mapping[str, Tensor]) -> Tensor:
            return judge(running({**still, **changing}, rows), wanted)

        return descend(objective, {name: own[name] for name in adaptable.start}, sizes)

    layout = Layout(frozenset(), adaptable.differing & weights.keys())
    with torch.enable_grad() if create_graph else torch.no_grad():
        found, losses = evaluation.run(adaptable, one, weights, layout, (tuple(inputs), targets), tasks, vectorised)
    return AdaptedMembers(found, losses, adaptable, vectorised)


def _examples(adaptable: Adaptable, support: tuple[Any, Targets], loss: Loss | None) -> tuple[list[Tensor], Targets]:
    """Flat inputs, each (tasks, shots, ...), and targets, checked."""
    given, targets = support
    args: Sequence[Any] = given if isinstance(given, tuple) else () if isinstance(given, Mapping) else (given,)
    inputs = adaptable.bind(args, given if isinstance(given, Mapping) else {})
    tasks, shots = inputs[0].shape[:2]
    outputs, device = evaluation.askable(adaptable), adaptable.ensemble.device
    heads = {head.name: head for head in outputs.heads}
    if not isinstance(targets, Mapping) and len(heads) > 1 and not callable(loss):
        raise InputError(f"This model makes {len(heads)} predictions: give targets by name, of {', '.join(heads)}.")
    named = dict(targets) if isinstance(targets, Mapping) else {"": targets}
    if strange := sorted(named.keys() - heads.keys() - {""}) if not callable(loss) else []:
        raise InputError(f"Targets are of {', '.join(heads)}, however: {', '.join(strange)}.")
    for name, tensor in named.items():
        if tensor.shape[:2] != (tasks, shots):
            raise InputError(
                f"targets must begin with (tasks, shots), here {[tasks, shots]}, however: {list(tensor.shape)}."
            )
        checked = tensor
        if not callable(loss):
            # Raw outputs are compared with targets like a regression's.
            task = "regression" if outputs.task == "raw" else outputs.task
            head = heads[name] if name in heads else outputs.heads[0]
            checked = checked_targets(tensor.flatten(0, 1), tasks * shots, task, head)
            checked = checked.reshape(tasks, shots, *checked.shape[1:])
        named[name] = checked.to(device)
    return inputs, named if isinstance(targets, Mapping) else named[""]


def _judge(adaptable: Adaptable, loss: Loss | None) -> Judge:
    if callable(loss):
        own = scalar(loss)
        return lambda outputs, targets: own(adaptable.program.results.pack(outputs), targets)
    return of_task(loss, adaptable.ensemble.task, adaptable.ensemble.outputs.heads)


def _require(adaptable: Adaptable, tasks: int, rows: int) -> None:
    free, each = available(adaptable.ensemble.device), adaptable.task_bytes(rows)
    if free is None or tasks * each <= _SHARE * free:
        return
    raise MemoryLimitError(
        f"{tasks} tasks of {adaptable.members} members need {human(tasks * each)} while they adapt, of which "
        f"{human(free)} is free. What would fit: {int(_SHARE * free // each)} tasks at a time, fewer members, or "
        "fewer weights (weights=, factors=True)."
    )
