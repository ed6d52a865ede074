"""Loading one version: on which thread, how it is stopped, and what is told of a failure."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from app import served
from app.background import Background
from app.engine import Engine
from app.errors import BadRequest, ServiceError, Unavailable
from app.planning import PLAIN, Planning
from app.repository.scan import Stamp, stamp_of
from app.served import Served
from ensemble import EnsembledError, MemoryLimitError

log = logging.getLogger("app.repository")

SHUTTING_DOWN = "the service is shutting down"
# Seconds between lines in the log that tell how far loading has come.
_TELL_EVERY = 3
# Less than that of compiling: what is loaded is waited for, and is measured at this priority.
_NICENESS = 5
# How often files are read again that were exchanged while they were being read.
_ATTEMPTS = 3


class _Stopped(Exception):  # noqa: N818 - no error, but the way out of a load
    """The service ends while a model is being loaded."""


class LoadFailure(Exception):  # noqa: N818 - what became of a load
    """A version that cannot be served.

    Attributes:
        reason: public; names no path.
        kind: the error that a request to load it is answered with.
    """

    def __init__(self, reason: str, kind: type[ServiceError]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind


@dataclass(frozen=True)
class Loaded:
    """A model, and the stamp that its files had before they were read."""

    model: Served
    stamp: Stamp


@dataclass(frozen=True)
class Place:
    """Where and as what models are loaded.

    Attributes:
        device, dtype: of the weights.
        max_batch: rows in one call.
        planning: how the fastest way is found.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    max_batch: int = 64
    planning: Planning = PLAIN


class Loader:
    """Loads versions, one at a time.

    Args:
        engine: the thread that answers, which loads what nothing that is ready would have to wait for.
        place: where to.
    """

    def __init__(self, engine: Engine, place: Place) -> None:
        self._engine = engine
        self._place = place
        # Its thread computes as the engine's does, with as many threads for an operation: PyTorch keeps that number.
        self._beside = Background("loading", _NICENESS, lambda: torch.set_grad_enabled(False))
        self._turn = asyncio.Lock()
        self._stopped = False

    @property
    def busy(self) -> bool:
        """Whether a model is being loaded on a thread that the process may leave behind."""
        return self._beside.busy

    def stop(self) -> None:
        """Leave what is being loaded at its next step."""
        self._stopped = True

    async def load(self, name: str, version: str, path: Path, *, beside: bool, tell: Callable[[str], None]) -> Loaded:
        """Load a version, measure it, and check it.

        Args:
            name, version, path: which.
            beside: on a thread of its own, while the engine goes on answering.
            tell: called on the event loop's thread with how far it has come.

        Raises:
            LoadFailure: it cannot be served.
        """
        about = {"model": name, "version": version}
        async with self._turn:
            begun = time.perf_counter()
            try:
                loaded = await self._load(name, version, path, beside, tell)
            except _Stopped:
                raise LoadFailure(SHUTTING_DOWN, Unavailable) from None
            except EnsembledError as error:
                # As text, since an error knows the frames that made half a model.
                text = str(error)
                log.error("model cannot be served: %s", text, extra=about)
                # The reason is public, and where the models are is not.
                reason = text.replace(str(path), f"{name}/{version}")
                raise LoadFailure(reason, Unavailable if isinstance(error, MemoryLimitError) else BadRequest) from None
            except Exception as error:
                log.exception("model cannot be served: %s", type(error).__name__, extra=about)
                raise LoadFailure("an unexpected error; the log explains it", Unavailable) from None
        log.info(
            "model ready: %d members on %s, differs from the loop by %.1e",
            len(loaded.model.ensemble),
            loaded.model.ensemble.device,
            loaded.model.error,
            extra={**about, "seconds": round(time.perf_counter() - begun, 2)},
        )
        return loaded

    async def _load(self, name: str, version: str, path: Path, beside: bool, tell: Callable[[str], None]) -> Loaded:
        loop = asyncio.get_running_loop()
        told = time.perf_counter()

        def progress(doing: str, part: float) -> None:
            nonlocal told
            if self._stopped:
                raise _Stopped
            loop.call_soon_threadsafe(tell, f"{doing} ({part:.0%})")
            if time.perf_counter() - told > _TELL_EVERY:
                told = time.perf_counter()
                log.info("loading: %s (%d %%)", doing, round(100 * part), extra={"model": name, "version": version})

        def attempt() -> Loaded:
            progress("reading", 0.0)
            place, stamp = self._place, stamp_of(path)
            model = served.load(
                name,
                version,
                path,
                device=place.device,
                dtype=place.dtype,
                max_batch=place.max_batch,
                progress=progress,
                planning=place.planning,
            )
            return Loaded(model, stamp)

        def work() -> Loaded:
            for _ in range(_ATTEMPTS - 1):
                before = stamp_of(path)
                try:
                    return attempt()
                except EnsembledError:
                    if stamp_of(path) == before:
                        raise
            return attempt()

        run = self._beside.run if beside else self._engine.run
        return await run(work)
