"""Connections to one service, as many as there are requests in flight.

httpx sends through httpcore, and httpcore's pool looks at every connection, with a system call each, whenever a request
starts or ends: with 64 requests in flight that leaves a tenth of the speed. So the pool is left out: these transports
hold httpcore's single connections in a plain stack, where taking one costs the same however many there are, and which
keeps the recently used ones busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Iterator

import httpcore
import httpx

from app.client.sockets import BlockingSockets, Sockets

# Seconds; less than the service keeps one open, so that it is seldom closed just when a request is sent.
_KEEP = 30.0


class Stack(httpx.BaseTransport):
    """For threads; see the module. A request has its ``timeout`` for all that it takes, waiting for its turn included.

    Args:
        url: of the service.
        most: connections; requests beyond wait for one.
        tls: how https is verified.
    """

    def __init__(self, url: httpx.URL, most: int, tls: ssl.SSLContext | None) -> None:
        self._origin = httpcore.URL(str(url)).origin
        self._tls = tls
        self._most = most
        self._room = threading.Semaphore(most)
        self._idle: list[tuple[httpcore.HTTPConnection, BlockingSockets]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        seconds = request.extensions.get("timeout", {}).get("pool")
        end = None if seconds is None else time.monotonic() + seconds
        if not self._room.acquire(timeout=seconds):
            raise httpx.PoolTimeout(f"{self._most} requests are in flight")
        try:
            connection, sockets = self._take()
            sockets.end = end
            try:
                with _as_httpx():
                    response = connection.handle_request(_request(request))
                    body = response.read()
                    response.close()
            except BaseException:
                connection.close()
                raise
            if connection.is_idle():
                self._idle.append((connection, sockets))
        finally:
            self._room.release()
        return _response(response, body)

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[0].close()

    def _take(self) -> tuple[httpcore.HTTPConnection, BlockingSockets]:
        with contextlib.suppress(IndexError):
            while True:
                connection, sockets = self._idle.pop()
                if not connection.has_expired():
                    return connection, sockets
                # The service may have closed it meanwhile.
                connection.close()
        sockets = BlockingSockets()
        made = httpcore.HTTPConnection(
            self._origin, ssl_context=self._tls, keepalive_expiry=_KEEP, network_backend=sockets
        )
        return made, sockets


class AsyncStack(httpx.AsyncBaseTransport):
    """As :class:`Stack`, for asyncio. Has no timeout but for connecting: whoever calls has one for all."""

    def __init__(self, url: httpx.URL, most: int, tls: ssl.SSLContext | None) -> None:
        self._origin = httpcore.URL(str(url)).origin
        self._tls = tls
        self._room = asyncio.Semaphore(most)
        self._idle: list[tuple[httpcore.AsyncHTTPConnection, Sockets]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async with self._room:
            connection, sockets = self._take()
            try:
                with _as_httpx():
                    response = await connection.handle_async_request(_request(request))
                    body = await response.aread()
                    await response.aclose()
            except BaseException:
                # httpcore closes it in most cases, but not if it is given up while it ends.
                sockets.abort()
                raise
            if connection.is_idle():
                self._idle.append((connection, sockets))
        return _response(response, body)

    async def aclose(self) -> None:
        while self._idle:
            self._idle.pop()[1].abort()
        # The sockets close in the next turn of the loop, which must not be gone by then.
        await asyncio.sleep(0)

    def _take(self) -> tuple[httpcore.AsyncHTTPConnection, Sockets]:
        while self._idle:
            connection, sockets = self._idle.pop()
            if not connection.has_expired():
                return connection, sockets
            sockets.abort()
        sockets = Sockets()
        made = httpcore.AsyncHTTPConnection(
            self._origin, ssl_context=self._tls, keepalive_expiry=_KEEP, network_backend=sockets
        )
        return made, sockets


def _request(request: httpx.Request) -> httpcore.Request:
    url = httpcore.URL(
        scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
    )
    return httpcore.Request(
        request.method, url, headers=request.headers.raw, content=request.content, extensions=request.extensions
    )


def _response(response: httpcore.Response, body: bytes) -> httpx.Response:
    return httpx.Response(response.status, headers=response.headers, stream=httpx.ByteStream(body))


@contextlib.contextmanager
def _as_httpx() -> Iterator[None]:
    """httpx has an error of the same name for each of httpcore's."""
    try:
        yield
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error
