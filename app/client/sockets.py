"""Sockets for httpcore without a clock at each read and write.

httpcore's own carry a timeout on every operation, which costs a quarter of the speed. One timeout around the whole
request does the same, so here only connecting has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable, Iterator

import httpcore

__all__ = ["Sockets"]

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
            raise httpcore.ConnectTimeout(f"no connection within {timeout:g} seconds") from None


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
    except TimeoutError:
        # One of the system's own is an OSError, and one of asyncio's is no fault of the socket.
        raise
    except (OSError, RuntimeError) as broken:  # uvloop raises RuntimeError where a transport is closed
        raise error(str(broken)) from broken
