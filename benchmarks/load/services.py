"""The services that are compared: how each is started, waited for, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.machine import version

# Seconds in which a service ends when it is asked to.
_END = 20.0
# Seconds between two looks; that a model waits for its turn to be compiled shows in between.
_LOOK = 0.5
# Seconds in which a service must answer its first request.
_START = 90.0


class FailedError(Exception):
    """A service that cannot be measured; the text says why in a few words."""


@dataclass(frozen=True)
class Service:
    """One row of a table.

    Args:
        title: for people.
        module: to be run, with what follows it.
        packages: that it needs beside those of this project.
    """

    title: str
    module: tuple[str, ...]
    packages: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """Why it cannot be started here; empty if it can."""
        absent = [name for name in self.packages if version(name) is None]
        return f"{', '.join(absent)} not installed" if absent else ""

    def command(self, models: Path, case: str, port: int) -> list[str]:
        start = [sys.executable, "-m", *self.module]
        if self is OURS:
            return [*start, "--models", str(models), "--port", str(port)]
        return [start[0], *start[1:3], str(models / case / "1"), case, *start[3:], "--port", str(port)]


OURS = Service("ensembled", ("app.cli", "serve", "--log-level", "warning"))
SERVICES = {
    "fastapi-loop": Service("FastAPI, loop", ("benchmarks.load.with_fastapi", "--way", "loop")),
    "fastapi-vmap": Service("FastAPI, vmap", ("benchmarks.load.with_fastapi", "--way", "vmap")),
    "litserve": Service("LitServe, vmap, batching", ("benchmarks.load.with_litserve",), ("litserve",)),
    "ray": Service("Ray Serve, vmap, batching", ("benchmarks.load.with_ray",), ("ray",)),
    "ensembled": OURS,
}


@contextlib.contextmanager
def running(service: Service, models: Path, case: str, body: bytes, patience: float, log: Path) -> Iterator[str]:
    """A service that answers, as fast as it will ever be; yields the URL to post to.

    Args:
        models: directory with CASE/1.
        body: what it must answer with 200 before it counts as started.
        patience: seconds in which this service must have compiled its calls.
        log: file for what it prints.

    Raises:
        FailedError: it did not start.
    """
    if service.missing:
        raise FailedError(service.missing)
    port = _free_port()
    with log.open("wb") as stream:
        # A group of its own, so that whatever it starts can be ended with it.
        process = subprocess.Popen(
            service.command(models, case, port), stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for_answer(process, f"{url}/predict", body, log)
            if service is OURS:
                _wait_for_compiled(f"{url}/v1/models/{case}", patience)
            yield f"{url}/predict"
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and see to it, with all that it started."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.send_signal(signal.SIGTERM)
        process.wait(_END)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def post(url: str, bodies: Sequence[bytes]) -> list[httpx.Response]:
    """The answers to requests, one after the other on one connection."""
    with httpx.Client(timeout=60, trust_env=False, headers={"content-type": "application/json"}) as client:
        return [client.post(url, content=body) for body in bodies]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_for_answer(process: subprocess.Popen[bytes], url: str, body: bytes, log: Path) -> None:
    end_at = time.monotonic() + _START
    while time.monotonic() < end_at:
        if process.poll() is not None:
            raise FailedError(f"ended with {process.returncode}: {_last_line(log)}")
        with contextlib.suppress(httpx.HTTPError):
            reply = post(url, [body])[0]
            if reply.status_code == 200:
                return
            # One that is not ready yet says so, or does not know the path.
            if reply.status_code not in (404, 429, 503):
                raise FailedError(f"answers {reply.status_code}: {reply.text[:100]}")
        time.sleep(_LOOK)
    raise FailedError(f"did not answer within {_START:.0f} s: {_last_line(log)}")


def _wait_for_compiled(url: str, patience: float) -> None:
    end_at, idle = time.monotonic() + patience, 0
    while time.monotonic() < end_at:
        idle = 0 if httpx.get(url, trust_env=False, timeout=60).json()["compiling"] else idle + 1
        # Ready comes a moment before compiling begins.
        if idle == 3:
            return
        time.sleep(_LOOK)
    raise FailedError(f"was still compiling after {patience:.0f} s")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:160] if lines else "it said nothing"
