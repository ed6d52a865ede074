"""Both clients behind one face, and a server that does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from app.client import AsyncClient, Client, Retry

PATIENCE = 60


class Waiting:
    """The asynchronous client, its calls run to their end."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        self._runner = asyncio.Runner()
        try:
            self._client = self._runner.run(self._make(*args, **rest))
        except BaseException:
            self._runner.close()
            raise

    async def _make(self, *args: Any, **rest: Any) -> AsyncClient:
        return AsyncClient(*args, **rest)

    def __repr__(self) -> str:
        return repr(self._client)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        @functools.wraps(method)
        def call(*args: Any, **rest: Any) -> Any:
            return self._runner.run(method(*args, **rest))

        return call

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=[Client, Waiting], ids=["blocking", "asyncio"])
def connect(request) -> Iterator[Callable[..., Client]]:
    """Makes a client of either kind."""
    with contextlib.ExitStack() as made:

        def make(*args: Any, **rest: Any) -> Client:
            client = request.param(*args, **rest)
            made.callback(client.close)
            return client

        yield make


def answer(status: int, body: bytes = b"{}", **headers: object) -> bytes:
    """An answer in HTTP."""
    fields = {"content-length": len(body), "content-type": "application/json"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode() + body


# What it does instead of answering.
RESET, SILENCE, HALF = "reset", "silence", "half an answer"


@dataclass
class Dripping:
    """An answer that comes byte by byte."""

    answer: bytes
    seconds: float


def metadata(**inputs: str) -> bytes:
    """The metadata of model m, which takes these datatypes."""
    specs = [{"name": name, "datatype": datatype} for name, datatype in inputs.items()]
    return answer(200, json.dumps({"name": "m", "inputs": specs}).encode())


METADATA = metadata(x="FP32")
RESULT = answer(
    200,
    json.dumps(
        {
            "model_name": "m",
            "model_version": "1",
            "outputs": [{"name": "mean", "datatype": "FP32", "shape": [1], "data": [2]}],
        }
    ).encode(),
)
BUSY = answer(429, b'{"error": "too many rows wait"}', retry_after=0)
LOADING = answer(503, b'{"error": "loading"}')
QUICK = Retry(attempts=4, first=0.0)


class Scripted:
    """Answers each request with the next line of its script, and the last one for ever.

    Attributes:
        requests: the head and body of each, as they came.
    """

    def __init__(self, *script: bytes | str | Dripping, tls: ssl.SSLContext | None = None) -> None:
        self.script = list(script)
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._tls = tls
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = [self._listener]
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connected, _ = self._listener.accept()
                self._open.append(connected)
                threading.Thread(target=self._serve, args=(connected,), daemon=True).start()

    def _serve(self, connected: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                connected = self._tls.wrap_socket(connected, server_side=True)
                self._open.append(connected)
            while request := self._read(connected):
                with self._lock:
                    self.requests.append(request)
                    step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                if step == RESET:
                    # A reset, not an orderly end.
                    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connected.close()
                    return
                if step == HALF:
                    connected.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal")
                    connected.close()
                    return
                if isinstance(step, Dripping):
                    for byte in step.answer:
                        connected.sendall(bytes([byte]))
                        time.sleep(step.seconds)
                elif step != SILENCE:
                    connected.sendall(step)

    def _read(self, connected: socket.socket) -> bytes:
        seen = b""
        while b"\r\n\r\n" not in seen:
            if not (piece := connected.recv(65536)):
                return b""
            seen += piece
        head, _, body = seen.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        while len(body) < length:
            body += connected.recv(65536)
        return head + b"\r\n\r\n" + body

    def close(self) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    """Makes a server of a script."""
    with contextlib.ExitStack() as made:

        def make(*script: bytes | str | Dripping, **rest: Any) -> Scripted:
            server = Scripted(*script, **rest)
            made.callback(server.close)
            return server

        yield make
