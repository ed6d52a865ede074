"""Connections to the service, as many as there are requests in flight.

httpx sends through httpcore, and httpcore's pool looks at every connection, with a system call each,
whenever a request starts or ends. At 64 clients that leaves 220 requests per second, and what would be
measured is the client. So the pool is left out: this module holds httpcore's single connections in a plain
stack, where taking one costs the same however many there are, and which keeps the recently used ones busy.
On the same core the whole load tester then reaches 8,000 per second.
"""

from __future__ import annotations

import asyncio
import ssl

import httpcore

from app.client.sockets import Sockets


class Connections:
    """A stack of idle keep-alive connections to one origin; grows on demand, and the caller bounds it."""

    def __init__(self, origin: httpcore.Origin) -> None:
        self._origin = origin
        self._idle: list[httpcore.AsyncHTTPConnection] = []
        secure = origin.scheme == b"https"
        self._ssl: ssl.SSLContext | None = httpcore.default_ssl_context() if secure else None
        # httpcore's own sockets carry a timeout on every read and write, which costs a quarter of the speed.
        # The caller's one timeout on the whole request replaces them; TLS needs more than plain sockets.
        self._backend = None if secure else Sockets()

    async def send(self, request: httpcore.Request) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises:
            httpcore.ConnectError: if no connection could be made.
            httpcore.NetworkError, httpcore.ProtocolError: if the connection broke, or the answer is not HTTP.
        """
        connection = self._take()
        # A connection that does not get to the end is dropped here: httpcore has closed it.
        response = await connection.handle_async_request(request)
        body = await response.aread()
        await response.aclose()
        if connection.is_idle():
            self._idle.append(connection)
        return response.status, body

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().aclose()
        # The transports close in the next turn of the loop, which must not be gone by then.
        await asyncio.sleep(0)

    def _take(self) -> httpcore.AsyncHTTPConnection:
        while self._idle:
            connection = self._idle.pop()
            # The service may have closed it meanwhile.
            if not connection.has_expired():
                return connection
        return httpcore.AsyncHTTPConnection(self._origin, ssl_context=self._ssl, network_backend=self._backend)
