"""The one thread that owns the models.

``functional_call`` swaps tensors on the module that it is given, so two threads in one model would read each other's
weights. Everything that touches a model, loading included, runs on this thread, one call after the other, while the
event loop goes on answering.

It is a daemon thread of its own and no executor, since a call that hangs (a driver that is lost, say) must neither keep
the process from ending nor go unnoticed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from app.settings import DEVICE

log = logging.getLogger("app.engine")

T = TypeVar("T")

# Seconds that :meth:`Engine.close` waits for the call that runs.
_LAST_CALL = 3.0


class DeviceError(Exception):
    """A device that this machine does not have; the text says what it has."""


class EngineClosed(Exception):  # noqa: N818 - it says what happened
    """The engine has ended, or ended before it came to this call."""


@dataclass(eq=False, slots=True)
class _Order:
    """A call that was asked for; ``begun`` is when, by the performance counter, 0 before."""

    call: Callable[..., Any]
    args: tuple[object, ...]
    bound: float | None
    answer: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    begun: float = 0.0
    reported: bool = False

    def settle(self, result: Any, error: Exception | None) -> None:
        """Give the result to who waits. For the event loop's thread."""
        if self.reported:
            log.warning("the engine's call has come back", extra={"seconds": round(time.perf_counter() - self.begun)})
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(result)


class Engine:
    """A thread that runs one call at a time.

    Args:
        threads: how many threads one operation of PyTorch may use; its own choice by default.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._running: _Order | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._started = False
        # Called when a call has become overdue, on the event loop's thread.
        self.on_overdue: Callable[[], None] = lambda: None

    async def run(self, call: Callable[..., T], *args: object, bound: float | None = None) -> T:
        """Run a call on the thread and wait for what it returns or raises. One not yet begun can be cancelled.

        Args:
            bound: seconds; while the call takes longer, the engine is :attr:`overdue`.

        Raises:
            EngineClosed: it was not run, since the engine has ended.
        """
        if self._closed:
            raise EngineClosed("the engine has ended")
        if not self._started:
            self._started = True
            self._thread.start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        order = _Order(call, args, bound, answer, loop)
        self._orders.put(order)
        if bound is None:
            return await answer
        watch = loop.call_later(bound, self._watch, order)
        try:
            return await answer
        finally:
            watch.cancel()

    @property
    def busy(self) -> bool:
        """Whether a call is running."""
        return self._running is not None

    @property
    def overdue(self) -> bool:
        """Whether the call that runs takes longer than its bound."""
        order = self._running
        return order is not None and order.bound is not None and time.perf_counter() - order.begun > order.bound

    def close(self, patience: float = _LAST_CALL) -> bool:
        """End the thread after the call that runs; calls that were not begun are not made.

        Args:
            patience: seconds to wait for the call; one that takes longer is left behind.

        Returns:
            Whether it ended.
        """
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                order = self._orders.get_nowait()
                if order is not None:
                    self._post(order, None, EngineClosed("the engine has ended"))
        if not self._started:
            return True
        self._orders.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            log.error("a call of the engine does not end and is left behind")
        return not self._thread.is_alive()

    def _watch(self, order: _Order) -> None:
        if order.answer.done() or order.bound is None:
            return
        # It may have waited for others, loading among them, before it was begun.
        left = order.bound - (time.perf_counter() - order.begun) if order.begun else order.bound
        if left > 0:
            order.loop.call_later(left + 0.001, self._watch, order)
            return
        order.reported = True
        log.error("the engine's call takes longer than %g s; the service is not alive", order.bound)
        self.on_overdue()

    def _work(self) -> None:
        torch.set_grad_enabled(False)
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        while (order := self._orders.get()) is not None:
            if not order.answer.cancelled():
                self._run(order)
            # Nothing of a call, a model least of all, is kept until the next one comes.
            del order

    def _run(self, order: _Order) -> None:
        result: Any = None
        error: Exception | None = None
        order.begun = time.perf_counter()
        self._running = order
        try:
            result = order.call(*order.args)
        except BaseException as problem:
            error = _harmless(problem)
        self._running = None
        self._post(order, result, error)

    @staticmethod
    def _post(order: _Order, result: Any, error: Exception | None) -> None:
        with contextlib.suppress(RuntimeError):
            # The loop may have ended meanwhile.
            order.loop.call_soon_threadsafe(order.settle, result, error)


def _harmless(problem: BaseException) -> Exception:
    """What a call raised, as something that ends no event loop, and that none takes for its own cancellation."""
    if isinstance(problem, Exception) and not isinstance(problem, concurrent.futures.CancelledError | StopIteration):
        return problem
    error = RuntimeError(f"a call of the engine raised {type(problem).__name__}")
    error.__cause__ = problem
    return error


def pick_device(setting: str) -> torch.device:
    """The device of a setting; "auto" takes CUDA where there is one.

    Raises:
        DeviceError: it is none, or CUDA is asked for and there is none.
    """
    if not DEVICE.fullmatch(setting):
        raise DeviceError(f"device must be cpu, cuda, cuda:N or auto, however: {setting!r}")
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(setting)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise DeviceError(
            f"device {setting!r} is not there: PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA "
            "devices; use --device cpu or auto"
        )
    return device
