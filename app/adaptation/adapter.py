"""One model as what adapts to examples: calls for many requests at once, on the engine's thread.

A request that adapts is one row to the batcher, a task, whose arrays hold all of its examples and queries; requests
with as many of both stand in one call, whose tasks adapt together. A query of adapted weights that were kept is rows as
any other, and brings the weights as its own; the groups of a call are evaluated together.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.adaptation.kept import Kept
from app.batching import Call, Outcome, OutOfMemory, non_finite_rows
from app.errors import BadRequest
from app.protocol import Question
from app.served import Served, is_out_of_memory, to_tensor
from ensemble import EnsembledError, MemoryLimitError
from ensemble.adaptation import evaluation
from ensemble.adaptation.adaptable import Adaptable
from ensemble.adaptation.members import adapt_members
from ensemble.prediction import Prediction
from ensemble.variants.grouped import pad

SUPPORT, QUERY, TARGETS = "support.", "query.", "targets."
# Choices of weights for which what runs is kept.
_MOST_CHOICES = 4


@dataclass(frozen=True)
class Choice:
    """Which weights of which members adapt."""

    weights: tuple[str, ...]
    factors: bool
    members: int | None


@dataclass(frozen=True)
class Descent:
    """What requests have in common that adapt in one call; with the shapes of their arrays, by which they are told
    apart anyway."""

    choice: Choice
    steps: int
    learning_rate: float
    loss: str
    question: Question


@dataclass(frozen=True)
class Recall:
    """What queries of kept weights have in common that share a call."""

    choice: Choice
    question: Question


@dataclass(eq=False)
class Task:
    """One request that adapts.

    Attributes:
        model: what it adapts, held until it is answered.
        keep: whether its weights are wanted.
        losses: on its examples, before each step and after all, (members, steps + 1).
        weights: the adapted ones, each (members, *shape).
    """

    model: Served
    keep: bool
    losses: NDArray[Any] = field(default_factory=lambda: np.zeros((0, 1)))
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class Recalled:
    """One request that asks kept weights."""

    model: Served
    kept: Kept[Served]


class _TooLongError(Exception):
    """A call's steps take longer than the setting permits."""


class Adapter:
    """What calls are made on; see the module. Not more than one for a model.

    Args:
        model: what adapts.
        most_tasks: in one call.
        memory: bytes that the tasks of one call may take.
        seconds: that one call may take.

    Attributes:
        name, version, ensemble: of the model.
        max_batch: tasks in one call, or rows of queries; lowered when memory runs out.
    """

    def __init__(self, model: Served, *, most_tasks: int, memory: int, seconds: float) -> None:
        self.name = model.name
        self.version = model.version
        self.ensemble = model.ensemble
        self.max_batch = most_tasks
        self._specs = model.inputs
        self._memory = memory
        self._seconds = seconds
        self._prepared: OrderedDict[Choice, Adaptable] = OrderedDict()

    def compute(self, call: Call) -> Outcome:
        """Make one call. Runs on the engine's thread.

        Raises:
            BadRequest: the model cannot be adapted so, or evaluated on these values, or it takes too long.
            OutOfMemory: there is not enough memory for so many tasks at once.
        """
        try:
            if isinstance(call.question, Recall):
                return self._recall(call, call.question)
            assert isinstance(call.question, Descent)
            return self._descend(call, call.question)
        except _TooLongError:
            raise BadRequest(
                f"adapting took more than the {self._seconds:g} s that it may; send fewer steps or examples, or adapt "
                "fewer weights or members"
            ) from None
        except MemoryLimitError as error:
            raise OutOfMemory(str(error)) from error
        except EnsembledError as error:
            raise BadRequest(f"the model cannot be adapted so: {error}") from error
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemory(f"not enough memory for {call.rows} tasks") from error
            if not call.owners[0][0].model.example_works():
                raise
            raise BadRequest(
                "the model cannot be adapted to, or evaluated on, these values, although it can be evaluated on its "
                "example; an index beyond the model's table is a usual reason"
            ) from error

    def _descend(self, call: Call, asked: Descent) -> Outcome:
        adaptable = self._adaptable(asked.choice)
        support = {spec.name: to_tensor(call.inputs[SUPPORT + spec.name]) for spec in self._specs}
        targets = {n.removeprefix(TARGETS): to_tensor(a) for n, a in call.inputs.items() if n.startswith(TARGETS)}
        queries = {spec.name: to_tensor(call.inputs[QUERY + spec.name]) for spec in self._specs} if call.outputs else {}
        rows = max(tensor.shape[1] for tensor in (*support.values(), *queries.values()))
        step = max(1, min(call.rows, self._memory // adaptable.task_bytes(rows)))
        end = time.perf_counter() + self._seconds

        def before(_: int) -> None:
            if time.perf_counter() > end:
                raise _TooLongError

        parts = []
        for start in range(0, call.rows, step):
            some = slice(start, start + step)
            wanted = {name: tensor[some] for name, tensor in targets.items()}
            adapted = adapt_members(
                adaptable,
                (({name: tensor[some] for name, tensor in support.items()},), wanted.get("", wanted)),
                asked.loss,
                asked.steps,
                asked.learning_rate,
                before=before,
            )
            losses = adapted.losses.cpu().numpy()
            for index, (task, _) in enumerate(call.owners[some]):
                task.losses = losses[index]
                # Copies, so that those of the other tasks are not kept with them.
                task.weights = {n: w[index].clone() for n, w in adapted.weights.items()} if task.keep else {}
            if queries:
                inputs = adaptable.bind(({name: tensor[some] for name, tensor in queries.items()},), {})
                counts = [inputs[0].shape[1]] * inputs[0].shape[0]
                flat = self._condensed(adaptable, adapted.weights, inputs, counts, call.outputs, asked.question)
                parts.append({n: a.reshape(len(counts), counts[0], *a.shape[1:]) for n, a in flat.items()})
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in call.outputs}
        return Outcome(arrays, asked.choice.members)

    def _recall(self, call: Call, asked: Recall) -> Outcome:
        adaptable = self._adaptable(asked.choice)
        tensors = [to_tensor(call.inputs[spec.name]) for spec in self._specs]
        # The same handle may be asked by several requests.
        groups: dict[Kept[Served], list[int]] = {}
        row = 0
        for own, rows in call.owners:
            groups.setdefault(own.kept, []).extend(range(row, row + rows))
            row += rows
        step = max(1, self._memory // adaptable.task_bytes(max(map(len, groups.values()))))
        everyone, parts, order = list(groups.items()), [], [row for rows in groups.values() for row in rows]
        for start in range(0, len(everyone), step):
            some = everyone[start : start + step]
            inputs, counts = pad([[tensor[rows] for tensor in tensors] for _, rows in some])
            weights = {name: torch.stack([kept.weights[name] for kept, _ in some]) for name in adaptable.start}
            given = {spec.name: tensor for spec, tensor in zip(self._specs, inputs, strict=True)}
            bound = adaptable.bind((given,), {})
            parts.append(self._condensed(adaptable, weights, bound, counts, call.outputs, asked.question))
        back = np.argsort(np.array(order), kind="stable")
        arrays = {name: np.concatenate([part[name] for part in parts])[back] for name in call.outputs}
        return Outcome(arrays, asked.choice.members, non_finite_rows(arrays))

    def _condensed(
        self,
        adaptable: Adaptable,
        weights: dict[str, Tensor],
        inputs: Sequence[Tensor],
        counts: Sequence[int],
        outputs: Any,
        question: Question,
    ) -> dict[str, NDArray[Any]]:
        asked = evaluation.asked(
            adaptable, list(outputs), sum(counts), confidence_level=question.confidence_level, levels=question.levels
        )
        found = evaluation.condensed(adaptable, weights, inputs, counts, asked)
        flat = Prediction(found, adaptable.members, len(asked.heads) > 1).flat()
        return {name: flat[name].cpu().numpy() for name in outputs}

    def _adaptable(self, choice: Choice) -> Adaptable:
        found = self._prepared.get(choice)
        if found is None:
            found = Adaptable.of(self.ensemble, weights=choice.weights, factors=choice.factors, members=choice.members)
            self._prepared[choice] = found
            if len(self._prepared) > _MOST_CHOICES:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(choice)
        return found
