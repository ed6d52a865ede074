"""A process for each way of running, so that one that hangs, crashes or takes all memory costs itself alone.

The parent asks and the worker answers; a worker that is not asked anything sleeps, so the ways take turns on the same
cores.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any


class RefusedError(Exception):
    """What was asked cannot be done; the text says why in a few words."""


class LostError(RefusedError):
    """The worker is gone: it ended, or it was ``late`` with its answer and was ended."""

    def __init__(self, text: str, late: bool = False) -> None:
        super().__init__(text)
        self.late = late


class Worker:
    """An object in a process of its own.

    Args:
        make: a function of a module, or a class; called in the process.
        arguments: its arguments.
        verbose: leave what it prints on standard error.
        environment: variables that it has, where they are not set already. What reads them when it is imported, as
            OpenMP does, finds them.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        *arguments: Any,
        verbose: bool = False,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments, verbose), daemon=False)
        # Not a daemon, which might have no processes of its own.
        with _variables(environment):
            self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, method: str, *arguments: Any, timeout: float) -> Any:
        """Call a method of the object and wait.

        Raises:
            RefusedError: it raised; the text is its first line.
            LostError: it did not answer in so many seconds, or its process ended.
        """
        try:
            self._connection.send((method, arguments))
            if not self._connection.poll(timeout):
                self._kill()
                raise LostError(f"not done in {timeout:.0f} s", late=True)
            refusal, answer = self._connection.recv()
        except (EOFError, ConnectionError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            self._kill()
            raise LostError("out of memory?" if code == -signal.SIGKILL else f"its process ended ({code})") from None
        if refusal is not None:
            raise RefusedError(refusal)
        return answer

    def close(self) -> None:
        """Let it end, and end it with all that it started if it does not."""
        with contextlib.suppress(OSError):
            self._connection.close()
        self._process.join(10)
        self._kill()

    def _kill(self) -> None:
        if self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        with contextlib.suppress(OSError):
            self._connection.close()


@contextlib.contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
    added = {name: value for name, value in environment.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def isolated(function: Callable[..., Any], *arguments: Any, timeout: float, verbose: bool = False) -> Any:
    """Call a function in a process of its own.

    Raises:
        RefusedError: as :meth:`Worker.ask`.
    """
    with Worker(_Function, function, verbose=verbose) as worker:
        return worker.ask("call", *arguments, timeout=timeout)


class _Function:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.call = function


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple[Any, ...], verbose: bool) -> None:
    # Ctrl-C is the parent's; a group of its own, so that the parent can end it with all that it started.
    os.setpgid(0, 0)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    if not verbose:
        os.dup2(quiet, 2)
    # When memory runs out the system should end this, not what asked for it.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    made: Any = None
    reply: tuple[str | None, Any]
    while True:
        try:
            method, given = connection.recv()
        except EOFError:
            return
        try:
            made = make(*arguments) if made is None else made
            reply = (None, getattr(made, method)(*given))
        except Exception as error:
            if verbose:
                sys.excepthook(type(error), error, error.__traceback__)
            reply = (said(error), None)
            # Its traceback holds on to whatever was under way.
            del error
        connection.send(reply)
        gc.collect()


def said(error: BaseException) -> str:
    """An error in a few words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else ""
    if not isinstance(error, RefusedError):
        line = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return line if len(line) <= 160 else line[:157] + "..."
