"""What goes on beside the requests: models are loaded, made faster, looked for, and cleared away."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import weakref

from app import heap
from app.acceleration import Accelerator
from app.repository import Repository
from app.served import Served

log = logging.getLogger("app.upkeep")

# Seconds after a model has left the table: requests under way may still hold it, and others may be about to leave.
_CLEAR_AFTER = 1.0


class Upkeep:
    """The tasks of one service beside its requests.

    Args:
        repository: the models.
        accelerator: makes models faster once they are ready; None if they are to stay as they are.
        poll: seconds between looks at the directory of models; 0 for none.

    Attributes:
        loading: the task that loads what there is at the start.
    """

    loading: asyncio.Task[None]

    def __init__(self, repository: Repository, accelerator: Accelerator | None, poll: float) -> None:
        self._repository = repository
        self._accelerator = accelerator
        self._poll = poll
        self._waiting: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        # Whether models are among what the collector does not see.
        self._settled_with_models = False
        # What has to go with models that left the table.
        self._leaving: list[weakref.ref[object]] = []
        self._clearing: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        repository.on_ready = lambda name, version: self._waiting.put_nowait((name, version))
        repository.on_retired = self._clear_soon

    def start(self) -> None:
        """Begin; returns at once."""
        # Before there are models, which come and go.
        heap.settle()
        self.loading = asyncio.create_task(self._repository.load_all(), name="loading")
        self._tasks = [self.loading]
        if self._accelerator is not None:
            self._tasks.append(asyncio.create_task(self._accelerate(self._accelerator), name="accelerating"))
        if self._poll:
            self._tasks.append(asyncio.create_task(self._look(), name="polling"))

    async def stop(self) -> None:
        """End what goes on."""
        self._repository.stop()
        for task in [*self._tasks, *([self._clearing] if self._clearing else [])]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _accelerate(self, accelerator: Accelerator) -> None:
        await self.loading
        while True:
            name, version = await self._waiting.get()
            try:
                await self._repository.accelerate(name, version, accelerator)
            except Exception:
                # The next model may be faster for it.
                log.exception("a model stays as it is", extra={"model": name, "version": version})
            if self._waiting.empty() and heap.crowded():
                heap.settle()
                self._settled_with_models = True

    async def _look(self) -> None:
        await self.loading
        while not self._repository.draining:
            await asyncio.sleep(self._poll)
            try:
                await self._repository.poll()
            except Exception:
                # The next look may succeed, and what is served goes on being served.
                log.exception("the directory of models could not be looked at")

    def _clear_soon(self, model: Served) -> None:
        made = model.ensemble
        self._leaving += [weakref.ref(part) for part in (made, *made.members.stacked.values())]
        if self._clearing is None or self._clearing.done():
            self._clearing = asyncio.create_task(self._clear(), name="clearing")

    async def _clear(self) -> None:
        await asyncio.sleep(_CLEAR_AFTER)
        # Most go with the last request that knows them. What refers to itself does not, and may be out of sight.
        if any(part() is not None for part in self._leaving):
            if self._settled_with_models:
                heap.clear()
            else:
                gc.collect()
        self._leaving.clear()
        await asyncio.to_thread(heap.trim)
