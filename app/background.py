"""Work that may be abandoned: compiling and loading, beside the engine and at a lower priority.

Neither can be interrupted wherever it is, and the service must stop when it is told to. So it runs on daemon threads,
and a process that ends while one is under way leaves it behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

# Seconds after which these threads give way to one that answers; Python's own 5 ms add up over the steps of a call.
_SWITCH = 0.0002
_switching = threading.Lock()
_under_way = 0
_usual_switch = 0.005


class Background:
    """Runs one call at a time on a thread of its own.

    Args:
        name: of the thread.
        niceness: added to the thread's own, so that those that answer come first.
        begin: called on the thread before each call.
    """

    def __init__(
        self, name: str = "background", niceness: int = 10, begin: Callable[[], object] = lambda: None
    ) -> None:
        self._name = name
        self._niceness = niceness
        self._begin = begin
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
                answer.set_result(result)  # type: ignore[arg-type]  # of whatever type the call returns

        def work() -> None:
            with contextlib.suppress(AttributeError, OSError):
                # On Linux the priority of a thread is its own.
                thread = threading.get_native_id()
                usual = os.getpriority(os.PRIO_PROCESS, thread)
                os.setpriority(os.PRIO_PROCESS, thread, min(19, usual + self._niceness))
            result, error = None, None
            with _giving_way():
                try:
                    self._begin()
                    result = call(*args)
                except Exception as problem:
                    error = problem
            with contextlib.suppress(RuntimeError):
                # The loop may have ended meanwhile.
                loop.call_soon_threadsafe(settle, result, error)
            # An error knows this frame, which would keep what it knows until the collector comes.
            del result, error

        self._thread = threading.Thread(target=work, name=self._name, daemon=True)
        self._thread.start()
        return await answer


@contextlib.contextmanager
def _giving_way() -> Iterator[None]:
    """A setting of the whole process; the first of several calls that overlap makes it and the last undoes it."""
    global _under_way, _usual_switch
    with _switching:
        if _under_way == 0:
            _usual_switch = sys.getswitchinterval()
            sys.setswitchinterval(_SWITCH)
        _under_way += 1
    try:
        yield
    finally:
        with _switching:
            _under_way -= 1
            if _under_way == 0:
                sys.setswitchinterval(_usual_switch)
