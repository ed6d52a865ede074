"""Requests as bytes on a connection of their own, for whatever no well-behaved client would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

# Seconds in which anything must be answered.
PATIENCE = 60.0


@dataclass(frozen=True)
class Reply:
    """Status, headers by their names in lower case, and body; ``more`` is what came after it."""

    status: int
    headers: dict[str, str]
    body: bytes
    more: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


def head(path: str, length: int, *lines: str, method: str = "POST") -> bytes:
    """A request's head."""
    given = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", *lines]
    return "\r\n".join([*given, f"content-length: {length}", "", ""]).encode("latin-1")


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is closed with the block."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def read(reader: asyncio.StreamReader) -> Reply:
    """One answer, which must have a length.

    Raises:
        EOFError: the connection ended before that.
    """
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers["content-length"]))
    return Reply(int(first.split()[1]), headers, body)


async def exchange(port: int, pieces: Iterable[bytes], pause: float = 0.0) -> Reply:
    """The one answer to bytes that are sent with pauses; the connection is then closed, and nothing else comes.

    Raises:
        EOFError: the service closed the connection without an answer.
    """
    async with asyncio.timeout(PATIENCE), connected(port) as (reader, writer):
        answer = asyncio.ensure_future(read(reader))
        try:
            for piece in pieces:
                # Whoever is refused while still sending stops.
                if answer.done():
                    break
                writer.write(piece)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                if pause:
                    await asyncio.wait([answer], timeout=pause)
            reply = await answer
        finally:
            answer.cancel()
        with contextlib.suppress(OSError):
            writer.write_eof()
        try:
            more = await reader.read(1000)
        except ConnectionError:
            more = b""
        return Reply(reply.status, reply.headers, reply.body, more)


async def vanish(port: int, sent: bytes, after: float, *, reset: bool) -> None:
    """Send bytes and go away, by an ordinary end or by a reset."""
    async with connected(port) as (_, writer):
        writer.write(sent)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        await asyncio.sleep(after)
        if reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
