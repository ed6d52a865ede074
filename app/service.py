"""What every route needs: the settings, the models, the batcher, the metrics, in one place.

The way of a request: a route reads the body, the protocol decodes it, :meth:`Service.answer` waits in the batcher for
the engine, the protocol encodes. Nothing else touches a model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

import torch

from app.acceleration import Accelerator
from app.batching import Answer, Batcher
from app.engine import Engine, pick_device
from app.errors import BadRequest, TooManyRequests
from app.metrics import Metrics
from app.protocol import InferRequest
from app.repository import Repository
from app.served import Arrays, Served
from app.settings import Settings
from app.states import build, device_memory, model_states
from app.upkeep import Upkeep

log = logging.getLogger("app.service")


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
            models=lambda: model_states(self.repository),
            ready=lambda: self.repository.ready,
            devices=lambda: device_memory(device),
            build=build(device),
        )
        self.engine = Engine(settings.threads)
        self.repository = Repository(
            settings.models,
            self.engine,
            device=device,
            dtype=getattr(torch, settings.dtype) if settings.dtype else None,
            max_batch=settings.max_batch,
            default=settings.default_model,
            versions=settings.versions,
        )
        self.batcher = Batcher(
            self._run, max_rows=settings.max_batch, max_queued_rows=settings.max_queue, observer=self.metrics
        )
        self.accelerator = Accelerator(self.engine)
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
        await self._upkeep.stop()
        self.engine.close()
        log.info("stopped")

    async def answer(self, model: Served, request: InferRequest) -> Answer:
        """What a request asked for.

        Raises:
            BadRequest: more rows than the service ever takes at once.
            TooManyRequests, Unavailable: it cannot be taken now.
        """
        if request.rows > self.settings.max_queue:
            raise BadRequest(f"a request may have {self.settings.max_queue} rows at most, however: {request.rows}")
        try:
            return await self.batcher.submit(
                model, request.inputs, tuple(o.name for o in request.outputs), request.rows
            )
        except TooManyRequests:
            self.metrics.refused(model, "queue_full")
            raise

    async def _run(self, model: Served, inputs: Arrays, outputs: Collection[str]) -> Arrays:
        return await self.engine.run(model.infer, inputs, outputs)
