"""Work that may be abandoned: compiling, beside the engine and at a lower priority.

A compile cannot be interrupted, and the service must stop when it is told to. So it runs on a daemon thread, and a
process that ends while one is under way leaves it behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_NICENESS = 10
# Seconds after which this thread gives way to one that answers; Python's own 5 ms add up over the steps of a call.
_SWITCH = 0.0002


class Background:
    """Runs one call at a time on a thread of its own."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._thread is not None and self._thread.is_alive()

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """Run a call and wait for what it returns or raises. Cancelling the wait leaves the call behind."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                # Without an error it is what the call returned, None included.
                answer.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            with contextlib.suppress(AttributeError, OSError):
                # On Linux the priority of a thread is its own.
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            result, error = None, None
            interval = sys.getswitchinterval()
            sys.setswitchinterval(_SWITCH)
            try:
                result = call(*args)
            except Exception as problem:
                error = problem
            finally:
                sys.setswitchinterval(interval)
            with contextlib.suppress(RuntimeError):
                # The loop may have ended meanwhile.
                loop.call_soon_threadsafe(settle, result, error)

        self._thread = threading.Thread(target=work, name="background", daemon=True)
        self._thread.start()
        return await answer
