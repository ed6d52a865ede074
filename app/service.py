"""What every route needs: the settings, the models, the batcher, the metrics, in one place.

The way of a request: a route reads the body, the protocol decodes it, :meth:`Service.answer` waits in the batcher for
the engine, the protocol encodes. Nothing else touches a model.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from app.acceleration import Accelerator
from app.adaptation import Adaptation, Adapter
from app.batching import Answer, Batcher, Call, Outcome
from app.engine import Engine, pick_device
from app.errors import BadRequest, Unavailable
from app.metrics import Metrics
from app.planning import Planning
from app.processors import available, default_threads
from app.protocol import InferRequest
from app.repository import Repository
from app.served import Served
from app.settings import Settings
from app.states import build, device_memory, model_states
from app.upkeep import Upkeep
from app.variants import Limits, Variants
from ensemble import EnsembledError
from ensemble.backends.workshop import Workshop

log = logging.getLogger("app.service")

_STUCK = "the engine does not answer; ask another instance"


class Service:
    """One running service.

    Args:
        settings: what it was started with.

    Raises:
        RepositoryError: there is no model to serve.
        DeviceError: the device is not there.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        device = pick_device(settings.device)
        self.metrics = Metrics(
            models=lambda: model_states(self.repository, self.variants),
            ready=lambda: self.repository.ready,
            live=lambda: self.alive,
            draining=lambda: self.repository.draining,
            devices=lambda: device_memory(device),
            build=build(device),
            kept=lambda: (len(self.adaptation.store), self.adaptation.store.used),
        )
        if device.type == "cuda":
            # Of the whole process, convolutions too, which PyTorch would round unasked.
            torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = settings.tf32
        threads = settings.threads or default_threads()
        self.engine = Engine(threads)
        workshop = _workshop(settings)
        planning = Planning(workshop, settings.precision)
        self.repository = Repository(
            settings.models,
            self.engine,
            device=device,
            dtype=getattr(torch, settings.dtype) if settings.dtype else None,
            max_batch=settings.max_batch,
            default=settings.default_model,
            versions=settings.versions,
            planning=planning,
        )
        self.batcher = Batcher(
            functools.partial(self.engine.run, bound=settings.engine_timeout),
            _compute,
            max_queued_rows=settings.max_queue,
            observer=self.metrics,
            max_delay=settings.max_delay,
            beside=device.type != "cpu" or threads < available(),
        )
        self.variants = Variants(
            Limits(
                settings.max_perturbed_members,
                settings.max_perturbed_bytes,
                settings.perturbation_cache,
                settings.allow_weights,
                settings.max_weights,
            )
        )
        self.adaptation = Adaptation(settings, self.batcher, self.repository.is_served)
        # Nobody knows whether it will ever end, and another instance can answer those that wait for it.
        self.engine.on_overdue = lambda: self.batcher.give_up_waiting(Unavailable(_STUCK), "stuck")
        self.accelerator = Accelerator(self.engine, planning, settings.engine_timeout)
        self._upkeep = Upkeep(self.repository, self.accelerator if settings.compile else None, settings.poll)

    @property
    def busy(self) -> bool:
        """Whether a thread is at work that the process may leave behind."""
        return self.accelerator.busy or self.repository.loading_beside or self.engine.busy

    @property
    def _loading(self) -> asyncio.Task[None]:
        return self._upkeep.loading

    def start(self) -> None:
        """Begin to load models and to answer; returns at once."""
        self.batcher.start()
        self._upkeep.start()

    async def stop(self) -> None:
        """Finish what was accepted, and end."""
        self.repository.stop()
        await self.batcher.close()
        self.adaptation.store.close()
        # Whoever waits for the process that compiles goes on when it has ended.
        self.accelerator.close()
        await self._upkeep.stop()
        self.engine.close()
        log.info("stopped")

    @property
    def alive(self) -> bool:
        """Whether calls end in time: false while one takes longer than the setting ``engine_timeout``."""
        return not self.engine.overdue

    async def answer(self, model: Served, request: InferRequest, *, arrived: float | None = None) -> Answer:
        """What a request asked for. Who cancels the wait takes the request back.

        Args:
            model: what is asked.
            request: with as many members at most as the model has.
            arrived: when it was received, by ``time.perf_counter``, from which its deadline counts; now by default.

        Raises:
            BadRequest: it asks for what this model, or the service, never gives.
            TooManyRequests, Unavailable: it cannot be taken now.
            DeadlineExceeded: its time passed before it was answered.
        """
        if request.rows > self.settings.max_queue:
            raise BadRequest(f"a request may have {self.settings.max_queue} rows at most, however: {request.rows}")
        if not self.alive:
            self.metrics.refused(model, "stuck")
            raise Unavailable(_STUCK)
        received = time.perf_counter() if arrived is None else arrived
        if request.adapt is not None or request.adapted is not None:
            return await self.adaptation.answer(model, request, received)
        options, question, count = request.options, request.options.question, len(model.ensemble)
        outputs = tuple(output.name for output in request.outputs)
        variants = self.variants.of(model)
        own = await variants.own(model, request)
        if question.members is not None and not 1 <= question.members <= count:
            raise BadRequest(f"members must be between 1 and {count}, however: {question.members}")
        if question.tolerance is not None:
            _check_tolerance(model, outputs, question.tolerance)
        members = own.kind.count if own is not None else question.members or count
        model.check_searches(outputs, request.rows, members, question)
        if request.targets:
            model.check_targets(request.targets, request.rows)
        timeout = self.settings.default_timeout if options.timeout is None else options.timeout
        answer = await self.batcher.submit(
            model if own is None else variants,
            {**request.inputs, **request.targets} if request.targets else request.inputs,
            outputs,
            request.rows,
            question=model.plainest(question, outputs) if own is None else replace(question, kind=own.sharing),
            own=own,
            priority=options.priority,
            deadline=math.inf if timeout is None else received + timeout,
        )
        return answer if own is None else replace(answer, details=own.details)


def _workshop(settings: Settings) -> Workshop | None:
    """Where calls are compiled; None if they are not to be, or if there is no place for it."""
    if not settings.compile:
        return None
    try:
        return Workshop(settings.cache_dir)
    except EnsembledError as error:
        log.warning("calls are not compiled: %s", error)
        return None


def _compute(call: Call) -> Outcome:
    target: Served | Adapter = call.target
    return target.compute(call)


def _check_tolerance(model: Served, outputs: Sequence[str], tolerance: float) -> None:
    if not 0 < tolerance < math.inf:
        raise BadRequest(f"tolerance must be a number above 0, however: {tolerance}")
    # Every member's output of a row that needs few would be shorter than that of one that needs many.
    if ragged := next((name for name in outputs if model.outputs[name].keeps_members), None):
        raise BadRequest(f"output {ragged!r} cannot be asked for with a tolerance; ask for it with members")
