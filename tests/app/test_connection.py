"""What a connection does where no client attacks it; the attacks are in the folder security."""

from __future__ import annotations

import asyncio

import uvicorn

from app.connection import Limits, connections_within

REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def answers(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_answers_say_that_the_connection_ends_once_the_service_is_about_to():
    """Between the signal and the end of the connections a client would otherwise send its next request into the end."""
    ending = False

    async def main() -> None:
        nonlocal ending
        limits = Limits(ending=lambda: ending)
        config = uvicorn.Config(
            answers, port=0, lifespan="off", log_config=None, http=connections_within(limits), ws="none"
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
        writer.write(REQUEST)
        before = await reader.readuntil(b"ok")
        ending = True
        writer.write(REQUEST)
        # To the end of the connection.
        after = await reader.read()
        writer.close()
        server.should_exit = True
        await running
        assert b"connection: close" not in before
        assert after.startswith(b"HTTP/1.1 200 OK")
        assert b"connection: close" in after
        assert after.endswith(b"ok")

    asyncio.run(asyncio.wait_for(main(), 30))
