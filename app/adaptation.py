"""Models that adapt to the examples of a request: what may be asked, what it may cost, and what is kept of it.

Off unless the operator allows it: a request costs as much as thousands of rows, in a call that nothing interrupts, and
what is kept takes memory.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.adapter import QUERY, SUPPORT, TARGETS, Adapter, Choice, Descent, Recall, Recalled, Task
from app.batching import Answer, Batcher, non_finite_rows
from app.errors import BadRequest, Forbidden, Unavailable
from app.kept import Kept, Store
from app.protocol import InferRequest, Options, Question, TensorSpec
from app.protocol.adaptation import Adapting, AdaptRequest, Limits
from app.served import Served
from app.settings import Settings
from ensemble import EnsembledError
from ensemble.adaptation.adaptable import adapted_bytes, task_bytes
from ensemble.adaptation.objectives import OF_TASK
from ensemble.memory import human

_OFF = "adaptation is switched off; start the service with --adaptation (ENSEMBLED_ADAPTATION=1)"
_STUCK = "the engine does not answer; ask another instance"


@dataclass(frozen=True)
class Adapted:
    """What a request that adapts gets.

    Attributes:
        answer: of its queries; without arrays where it has none.
        before, after: the loss on its examples, the mean over members.
        kept: under which handle; None if nothing is.
    """

    answer: Answer
    before: np.float32
    after: np.float32
    kept: Kept[Served] | None


class Adaptation:
    """See the module. All methods are for the event loop's thread.

    Args:
        settings: of the service.
        batcher: makes the calls.
        alive: whether the engine answers.
        served: whether a model is still served.
    """

    def __init__(
        self,
        settings: Settings,
        batcher: Batcher,
        alive: Callable[[], bool],
        served: Callable[[Served], bool],
    ) -> None:
        self._settings = settings
        self._batcher = batcher
        self._alive = alive
        # A model that is served no more is forgotten.
        self._abouts: weakref.WeakKeyDictionary[Served, Adapting] = weakref.WeakKeyDictionary()
        self._adapters: weakref.WeakKeyDictionary[Served, Adapter] = weakref.WeakKeyDictionary()
        self.store: Store[Served] = Store(settings.adapted_models, settings.adapted_memory, served)

    @property
    def limits(self) -> Limits:
        """What one request may ask for."""
        s = self._settings
        keep = s.adapted_seconds if s.adapted_models else 0
        return Limits(s.adaptation_steps, s.adaptation_examples, s.max_queue, keep)

    def check_permitted(self) -> None:
        """Raise unless the operator allows it.

        Raises:
            Forbidden: it is switched off.
        """
        if not self._settings.adaptation:
            raise Forbidden(_OFF)

    async def adapt(self, model: Served, request: AdaptRequest, arrived: float) -> Adapted:
        """Adapt a model, and answer the request's queries with what came of it.

        Args:
            arrived: when the request was received, by ``time.perf_counter``.

        Raises:
            BadRequest: the model cannot be adapted so, or the loss diverges.
            TooManyRequests, Unavailable: it cannot be taken now.
            DeadlineExceeded: its time passed before it was answered.
        """
        question, members = self._question(model, request.query.options)
        choice = Choice(request.weights, request.factors, members)
        nbytes = self._check_memory(model, choice, request)
        if request.keep_seconds is None:
            return await self._adapted(model, request, choice, question, arrived, nbytes)
        with self.store.room(nbytes):
            return await self._adapted(model, request, choice, question, arrived, nbytes)

    async def _adapted(
        self, model: Served, request: AdaptRequest, choice: Choice, question: Question, arrived: float, nbytes: int
    ) -> Adapted:
        task = Task(model, request.keep_seconds is not None)
        arrays = {
            **{SUPPORT + name: array[None] for name, array in request.support.items()},
            TARGETS: request.targets[None],
            **{QUERY + name: array[None] for name, array in request.query.inputs.items()},
        }
        answer = await self._submit(
            model,
            arrays,
            tuple(output.name for output in request.query.outputs),
            1,
            Descent(choice, request.steps, request.learning_rate, request.loss, question),
            task,
            request.query.options,
            arrived,
        )
        _check_converged(task, request.learning_rate)
        outputs = {name: array[0] for name, array in answer.arrays.items()}
        bad = {row for rows in non_finite_rows(outputs).values() for row in np.flatnonzero(rows).tolist()}
        answer = replace(answer, arrays=outputs, non_finite_rows=tuple(sorted(bad)))
        kept = None
        if request.keep_seconds is not None:
            made = Kept(model.name, model.version, weakref.ref(model), task.weights, choice, nbytes)
            kept = self.store.keep(made, request.keep_seconds)
        before, after = task.losses.mean(0, dtype=np.float64)[[0, -1]].astype(np.float32)
        return Adapted(answer, before, after, kept)

    async def ask(self, kept: Kept[Served], model: Served, request: InferRequest, arrived: float) -> Answer:
        """Answer queries with weights that were kept.

        Raises:
            BadRequest: what is asked for is not there of adapted models.
            TooManyRequests, Unavailable, DeadlineExceeded: as :meth:`adapt`.
        """
        choice = kept.about
        assert isinstance(choice, Choice)
        if request.rows > self._settings.max_queue:
            raise BadRequest(f"a request may have {self._settings.max_queue} rows at most, however: {request.rows}")
        if request.options.question.members is not None:
            raise BadRequest("parameters.members is chosen when a model is adapted, and not when it is asked")
        question, _ = self._question(model, request.options)
        outputs = tuple(output.name for output in request.outputs)
        own = Recalled(model, kept)
        return await self._submit(
            model, request.inputs, outputs, request.rows, Recall(choice, question), own, request.options, arrived
        )

    def about(self, model: Served) -> Adapting:
        """What of a model can be adapted.

        Raises:
            BadRequest: nothing can be.
        """
        found = self._abouts.get(model)
        if found is None:
            found = self._abouts[model] = adapting(model)
        return found

    async def _submit(
        self,
        model: Served,
        arrays: dict[str, Any],
        outputs: tuple[str, ...],
        rows: int,
        question: Descent | Recall,
        own: Task | Recalled,
        options: Options,
        arrived: float,
    ) -> Answer:
        if not self._alive():
            raise Unavailable(_STUCK)
        timeout = self._settings.default_timeout if options.timeout is None else options.timeout
        return await self._batcher.submit(
            self._adapter(model),
            arrays,
            outputs,
            rows,
            question=question,
            own=own,
            priority=options.priority,
            deadline=math.inf if timeout is None else arrived + timeout,
        )

    def _adapter(self, model: Served) -> Adapter:
        found = self._adapters.get(model)
        if found is None:
            found = self._adapters[model] = Adapter(
                model,
                most_tasks=self._settings.max_batch,
                memory=self._settings.adaptation_memory,
                seconds=self._settings.adaptation_seconds,
            )
        return found

    def _question(self, model: Served, options: Options) -> tuple[Question, int | None]:
        """What is asked of the members, and how many of them adapt, None for all."""
        question = options.question
        if question.tolerance is not None:
            raise BadRequest("parameters.tolerance cannot be used with adapted models; ask for fewer members")
        members = None if question.members == len(model.ensemble) else question.members
        mixture = model.ensemble.members.mixture
        if members is not None and mixture is not None and not bool(mixture[:members].any()):
            raise BadRequest(f"the first {members} members have no weight in the mixture; ask for more of them")
        return replace(question, members=None), members

    def _check_memory(self, model: Served, choice: Choice, request: AdaptRequest) -> int:
        """Bytes of the adapted weights, once it is known that they are not too many."""
        made = model.ensemble
        count = choice.members or len(made)
        try:
            nbytes = adapted_bytes(made, weights=choice.weights, factors=choice.factors, members=count)
        except EnsembledError as error:
            raise BadRequest(f"the model cannot be adapted so: {error}") from error
        rows = max(len(request.targets), request.query.rows)
        need, limit = task_bytes(made.running, nbytes, count, rows), self._settings.adaptation_memory
        if need > limit:
            fits = int(limit // (need / count))
            raise BadRequest(
                f"adapting {count} members needs up to {human(need)}, and {human(limit)} is the limit. What would fit: "
                f"parameters.members of {fits} at most, fewer weights (weights, factors), or fewer rows"
            )
        return nbytes


def adapting(model: Served) -> Adapting:
    """What of a model can be adapted.

    Raises:
        BadRequest: nothing can be.
    """
    made = model.ensemble
    outputs = made.outputs
    if len(outputs.heads) != 1:
        raise BadRequest(
            f"model {model.name!r} makes {len(outputs.heads)} predictions; only a model with one can be adapted"
        )
    head = outputs.heads[0]
    dtype = made.program.outputs[head.outputs[0]].dtype
    if not dtype.is_floating_point:
        raise BadRequest(f"model {model.name!r} gives whole numbers, which have no gradient; it cannot be adapted")
    classes = head.trailing[-1] if made.task == "classification" else None
    shape = head.trailing if classes is None else head.trailing[:-1]
    datatype = "INT64" if classes is not None else "FP64" if dtype.itemsize == 8 else "FP32"
    # What was fitted on data does not hold for adapted members, and a target is no query.
    names = replace(outputs, calibration=None).described()
    allowed = {name for name, (statistic, _) in names.items() if "target" not in statistic.uses}
    return Adapting(
        model.inputs,
        TensorSpec(TARGETS, datatype, (-1, *shape)),
        classes,
        OF_TASK[made.task],
        [name for name in model.outputs if name in allowed],
        [name for name in model.defaults if name in allowed],
        len(made),
    )


def _check_converged(task: Task, learning_rate: float) -> None:
    finite = np.isfinite(task.losses)
    if finite.all():
        return
    step = int(np.argmin(finite.all(0)))
    count = int((~finite.all(1)).sum())
    when = f"after step {step}" if step else "before the first step"
    raise BadRequest(
        f"the loss diverges: {when} it is no finite number for {count} of {len(finite)} members; use a "
        f"learning_rate below {learning_rate:g}, fewer steps, or smaller targets"
    )
