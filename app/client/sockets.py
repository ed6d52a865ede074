"""Sockets for httpcore that keep the time of a whole request.

httpcore's own begin each read and write with the whole timeout anew, so that a service that says a little now and then
holds a request for ever. For asyncio that costs a quarter of the speed besides; there the caller has one timeout around
the whole request, and only connecting has one here. A thread cannot be interrupted: each of its waits is as long as the
request has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Iterable, Iterator

import httpcore

__all__ = ["BlockingSockets", "Sockets"]

_HOLD = 2**16


class Sockets(httpcore.AsyncNetworkBackend):
    """asyncio's streams as httpcore wants them, for one connection."""

    def __init__(self) -> None:
        self._stream: _Stream | None = None

    def abort(self) -> None:
        """Close the socket at once, without waiting for anything."""
        if self._stream is not None:
            self._stream.abort()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            with _raising(httpcore.ConnectError):
                async with asyncio.timeout(timeout):
                    self._stream = _Stream(*await asyncio.open_connection(host, port))
                    return self._stream
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"none within {timeout:g} seconds") from None


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._held: list[bytes] = []

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._held:
            # A service that refuses early may close its side, and its answer is there to be read all the same.
            with contextlib.suppress(httpcore.WriteError):
                await self._send()
        with _raising(httpcore.ReadError):
            return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # httpcore writes head and body one after the other, and then reads: small ones go in one packet.
        self._held.append(buffer)
        if sum(map(len, self._held)) > _HOLD:
            await self._send()

    async def _send(self) -> None:
        held, self._held = b"".join(self._held), []
        with _raising(httpcore.WriteError):
            self._writer.write(held)
            await self._writer.drain()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            with _raising(httpcore.ConnectError):
                async with asyncio.timeout(timeout):
                    await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"no TLS within {timeout:g} seconds") from None
        return self

    async def aclose(self) -> None:
        self.abort()

    def abort(self) -> None:
        # Not close(), which would first wait for the service to take what is still to be written.
        self._writer.transport.abort()

    def get_extra_info(self, info: str) -> object:
        match info:
            case "is_readable":
                return self._reader.at_eof()
            case "ssl_object":
                return self._writer.get_extra_info("ssl_object")
        return None


@contextlib.contextmanager
def _raising(error: type[httpcore.NetworkError]) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as broken:  # uvloop raises RuntimeError where a transport is closed
        if isinstance(broken, TimeoutError) and broken.errno is None:
            # Our own time is over; with a number it is the system's, which gave up the connection.
            raise
        raise error(str(broken)) from broken


class BlockingSockets(httpcore.NetworkBackend):
    """A thread's sockets as httpcore wants them, for one connection.

    Attributes:
        end: of the time of the request under way, as of time.monotonic(); None for no end.
    """

    def __init__(self) -> None:
        self.end: float | None = None
        self._made = httpcore.SyncBackend()

    def left(self, over: type[httpcore.TimeoutException]) -> float | None:
        """Seconds that the request has left; raises the error if there are none."""
        if self.end is None:
            return None
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise over("the time is over")
        return seconds

    def connecting(self, timeout: float | None) -> float | None:
        """Seconds for one step of connecting."""
        left = self.left(httpcore.ConnectTimeout)
        return min((each for each in (timeout, left) if each is not None), default=None)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        with _raising(httpcore.ConnectError):
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        failed: Exception = httpcore.ConnectError(f"{host} has no address")
        # One by one, since given the name the socket would begin the time anew for each address.
        for *_, address in found:
            try:
                stream = self._made.connect_tcp(
                    str(address[0]), port, self.connecting(timeout), local_address, socket_options
                )
                return _BlockingStream(stream, self)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed


class _BlockingStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, sockets: BlockingSockets) -> None:
        self._stream = stream
        self._socket: socket.socket = stream.get_extra_info("socket")
        self._sockets = sockets
        self._held: list[bytes] = []

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._held:
            held, self._held = b"".join(self._held), []
            with contextlib.suppress(httpcore.WriteError):
                self._send(held)
        return self._stream.read(max_bytes, self._sockets.left(httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._held.append(buffer)
        if sum(map(len, self._held)) > _HOLD:
            held, self._held = self._held, []
            # Not as one, since copying a large body takes as long as sending it.
            for each in held:
                self._send(each)

    def _send(self, buffer: bytes) -> None:
        unsent = memoryview(buffer)
        try:
            with _raising(httpcore.WriteError):
                while unsent:
                    self._socket.settimeout(self._sockets.left(httpcore.WriteTimeout))
                    unsent = unsent[self._socket.send(unsent) :]
        except TimeoutError:
            raise httpcore.WriteTimeout("the time is over") from None

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, self._sockets.connecting(timeout))
        return _BlockingStream(stream, self._sockets)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
