"""Models that adapt to the examples of a request: what may be asked, what it may cost, and what is kept of it.

Off unless the operator allows it: a request costs as much as thousands of rows, in a call that nothing interrupts, and
what is kept takes memory.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from app.adaptation.adapter import QUERY, SUPPORT, TARGETS, Adapter, Choice, Descent, Recall, Recalled, Task
from app.adaptation.kept import Kept, Store
from app.batching import Answer, Batcher, non_finite_rows
from app.errors import BadRequest
from app.protocol import Adapt, Adapting, InferRequest, Options, Question, TensorSpec
from app.protocol.adapting import TARGETS as TARGETS_NAME
from app.protocol.adapting import Limits
from app.served import DATATYPES, Served
from app.settings import Settings
from ensemble import EnsembledError
from ensemble.adaptation.adaptable import adapted_bytes, task_bytes
from ensemble.adaptation.objectives import OF_TASK
from ensemble.memory import human

_REFUSED = Adapting(
    refusal="adaptation is switched off; start the service with --adaptation (ENSEMBLED_ADAPTATION=1)", forbidden=True
)


class Adaptation:
    """See the module. All methods are for the event loop's thread.

    Args:
        settings: of the service.
        batcher: makes the calls.
        served: whether a model is still served.
    """

    def __init__(
        self,
        settings: Settings,
        batcher: Batcher,
        served: Callable[[Served], bool],
    ) -> None:
        self._settings = settings
        self._batcher = batcher
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
            _REFUSED.check()

    def of(self, model: Served) -> Adapting:
        """What of a model can be adapted, and whether anything can and may."""
        if not self._settings.adaptation:
            return _REFUSED
        found = self._abouts.get(model)
        if found is None:
            found = self._abouts[model] = replace(adapting(model), limits=self.limits)
        return found

    async def answer(self, model: Served, request: InferRequest, arrived: float) -> Answer:
        """Adapt a model to the examples of a request, or take what was kept of it, and answer the queries.

        Args:
            arrived: when the request was received, by ``time.perf_counter``.

        Returns:
            The answer; without arrays where there are no queries. Its details say what came of adapting.

        Raises:
            Forbidden: it is switched off.
            BadRequest: the model cannot be adapted so, the loss diverges, or what is asked for is not there.
            NotFound, Gone: nothing is kept under the handle.
            TooManyRequests, Unavailable: it cannot be taken now.
            DeadlineExceeded: its time passed before it was answered.
        """
        self.check_permitted()
        if request.adapt is None:
            assert request.adapted is not None
            return await self._recalled(model, request, request.adapted, arrived)
        question, members = self._question(model, request)
        choice = Choice(request.adapt.weights, request.adapt.factors, members)
        nbytes = self._check_memory(model, choice, request.adapt, request.rows)
        if request.adapt.keep_seconds is None:
            return await self._adapted(model, request, request.adapt, choice, question, arrived, nbytes)
        with self.store.room(nbytes):
            return await self._adapted(model, request, request.adapt, choice, question, arrived, nbytes)

    async def _adapted(
        self,
        model: Served,
        request: InferRequest,
        adapt: Adapt,
        choice: Choice,
        question: Question,
        arrived: float,
        nbytes: int,
    ) -> Answer:
        task = Task(model, adapt.keep_seconds is not None)
        arrays = {
            **{SUPPORT + name: array[None] for name, array in adapt.support.items()},
            **{TARGETS + name: array[None] for name, array in adapt.targets.items()},
            **{QUERY + name: array[None] for name, array in request.inputs.items()},
        }
        answer = await self._submit(
            model,
            arrays,
            tuple(output.name for output in request.outputs),
            1,
            Descent(choice, adapt.steps, adapt.learning_rate, adapt.loss, question),
            task,
            request.options,
            arrived,
        )
        _check_converged(task, adapt.learning_rate)
        outputs = {name: array[0] for name, array in answer.arrays.items()}
        bad = {row for rows in non_finite_rows(outputs).values() for row in np.flatnonzero(rows).tolist()}
        before, after = task.losses.mean(0, dtype=np.float64)[[0, -1]].astype(np.float32)
        details: dict[str, Any] = {
            "adaptation": {
                "steps": adapt.steps,
                "learning_rate": adapt.learning_rate,
                "loss": adapt.loss,
                "loss_before": before,
                "loss_after": after,
            }
        }
        if adapt.keep_seconds is not None:
            made = Kept(model.name, model.version, weakref.ref(model), task.weights, choice, nbytes)
            details["adapted"] = self.described(self.store.keep(made, adapt.keep_seconds))
        return replace(answer, arrays=outputs, non_finite_rows=tuple(sorted(bad)), details=details)

    async def _recalled(self, model: Served, request: InferRequest, handle: str, arrived: float) -> Answer:
        """The answer of weights that were kept."""
        kept, adapted = self.store.find(handle)
        if adapted is not model:
            raise BadRequest(
                f"this adapted model is of version {kept.version} of model {kept.name!r}, and must be asked there"
            )
        choice = kept.about
        assert isinstance(choice, Choice)
        if request.options.question.members is not None:
            raise BadRequest("parameters.members is chosen when a model is adapted, and not when it is asked")
        question, _ = self._question(model, request, choice.members)
        outputs = tuple(output.name for output in request.outputs)
        own = Recalled(model, kept)
        answer = await self._submit(
            model, request.inputs, outputs, request.rows, Recall(choice, question), own, request.options, arrived
        )
        return replace(answer, details={"adapted": self.described(kept)})

    def described(self, kept: Kept[Served]) -> dict[str, Any]:
        """What is told of an adapted model that is kept."""
        return {
            "handle": kept.handle,
            "expires_in_seconds": round(self.store.seconds_left(kept), 3),
            "bytes": kept.nbytes,
        }

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

    def _question(
        self, model: Served, request: InferRequest, adapted: int | None = None
    ) -> tuple[Question, int | None]:
        """What is asked of the members, and how many of them adapt, None for all.

        Args:
            adapted: how many adapted already.
        """
        question = request.options.question
        if question.tolerance is not None:
            raise BadRequest("parameters.tolerance cannot be used with adapted models; ask for fewer members")
        members = None if question.members == len(model.ensemble) else question.members
        mixture = model.ensemble.members.mixture
        if members is not None and mixture is not None and not bool(mixture[:members].any()):
            raise BadRequest(f"the first {members} members have no weight in the mixture; ask for more of them")
        outputs = tuple(output.name for output in request.outputs)
        model.check_searches(outputs, request.rows, members or adapted or len(model.ensemble), question)
        return replace(question, members=None), members

    def _check_memory(self, model: Served, choice: Choice, adapt: Adapt, queries: int) -> int:
        """Bytes of the adapted weights, once it is known that they are not too many."""
        made = model.ensemble
        count = choice.members or len(made)
        try:
            nbytes = adapted_bytes(made, weights=choice.weights, factors=choice.factors, members=count)
        except EnsembledError as error:
            raise BadRequest(f"the model cannot be adapted so: {error}") from error
        rows = max(adapt.examples, queries)
        need, limit = task_bytes(made.running, nbytes, count, rows), self._settings.adaptation_memory
        if need > limit:
            fits = int(limit // (need / count))
            raise BadRequest(
                f"adapting {count} members needs up to {human(need)}, and {human(limit)} is the limit. What would fit: "
                f"parameters.members of {fits} at most, fewer weights (weights, factors), or fewer rows"
            )
        return nbytes


def adapting(model: Served) -> Adapting:
    """What of a model can be adapted, whatever the limits."""
    made = model.ensemble
    targets, classes = {}, {}
    for head in made.outputs.heads:
        dtype = made.program.outputs[head.outputs[0]].dtype
        if not dtype.is_floating_point:
            continue
        name = head.name if len(made.outputs.heads) > 1 else ""
        classes[name] = head.trailing[-1] if made.task == "classification" else None
        shape = head.trailing[:-1] if made.task == "classification" else head.trailing
        targets[name] = TensorSpec(
            f"{TARGETS_NAME}.{name}" if name else TARGETS_NAME,
            DATATYPES[torch.int64 if made.task == "classification" else dtype],
            (-1, *shape),
        )
    if not targets:
        return Adapting(
            refusal=f"model {model.name!r} gives whole numbers, which have no gradient; it cannot be adapted"
        )
    # What was fitted on data does not hold for adapted members, and a target is no query.
    names = replace(made.outputs, calibration=None).described()
    allowed = {name for name, (statistic, _) in names.items() if "target" not in statistic.uses}
    return Adapting(
        model.inputs,
        targets,
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
    count = f"{int((~finite.all(1)).sum())} of {len(finite)} members"
    if not step:
        raise BadRequest(
            f"the loss diverges: before the first step it is no finite number for {count}; the examples hold numbers "
            "that are too large for the model"
        )
    raise BadRequest(
        f"the loss diverges: after step {step} it is no finite number for {count}; use a learning_rate below "
        f"{learning_rate:g}, fewer steps, or smaller targets"
    )
