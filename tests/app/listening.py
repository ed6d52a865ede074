"""An application behind this service's connections in the test's own process, where each of them can be looked at."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import uvicorn
from starlette.types import ASGIApp

from app.connection import Limits, connections_within


class Listening:
    """The server, and where it listens.

    Attributes:
        address: host and port.
    """

    def __init__(self, server: uvicorn.Server) -> None:
        self._server = server
        self.address: tuple[str, int] = server.servers[0].sockets[0].getsockname()

    @property
    def open(self) -> int:
        """Connections whose sockets the server still holds."""
        return len(self._server.server_state.connections)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection whose client takes no more than it reads, but for some kilobytes."""
        client = socket.socket()
        # Before it is connected, or the system lets it grow to megabytes.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**15)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, self.address)
        return await asyncio.open_connection(sock=client, limit=1024)


@contextlib.asynccontextmanager
async def listening(app: ASGIApp, limits: Limits) -> AsyncIterator[Listening]:
    """Serve with these limits on a free port of this machine."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_config=None, http=connections_within(limits), ws="none")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield Listening(server)
    finally:
        # Without waiting for connections that a test which failed has left open.
        server.should_exit = server.force_exit = True
        await running
