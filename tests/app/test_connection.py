"""What a connection does, looked at from inside; attacks on a service as it is run are in the folder security."""

from __future__ import annotations

import asyncio

from app.connection import Limits
from tests.app.listening import listening

REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def answers(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_answers_say_that_the_connection_ends_once_the_service_is_about_to():
    """Between the signal and the end of the connections a client would otherwise send its next request into the end."""
    ending = False

    async def main() -> None:
        nonlocal ending
        async with listening(answers, Limits(ending=lambda: ending)) as server:
            reader, writer = await server.connect()
            writer.write(REQUEST)
            before = await reader.readuntil(b"ok")
            ending = True
            writer.write(REQUEST)
            # To the end of the connection.
            after = await reader.read()
            writer.close()
        assert b"connection: close" not in before
        assert after.startswith(b"HTTP/1.1 200 OK")
        assert b"connection: close" in after
        assert after.endswith(b"ok")

    asyncio.run(asyncio.wait_for(main(), 30))


def test_those_that_are_refused_already_count_until_they_are_gone():
    """They have some time to read why; whoever comes meanwhile takes the place of one that is cut off for it."""

    async def main() -> None:
        async with listening(answers, Limits(connections=3)) as server:
            refused, most = [], 0
            for _ in range(9):
                reader, writer = await server.connect()
                refused.append(writer)
                writer.write(b"GARBAGE\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 400")
                most = max(most, server.open)
            assert most == 3
            for writer in refused:
                writer.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_an_idle_connection_that_has_its_answer_makes_room():
    async def main() -> None:
        async with listening(answers, Limits(connections=3)) as server:
            idle = []
            for _ in range(9):
                reader, writer = await server.connect()
                idle.append((reader, writer))
                writer.write(REQUEST)
                assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
                assert server.open <= 3
            # The oldest went first.
            assert [reader.at_eof() or await reader.read() == b"" for reader, _ in idle[:6]] == [True] * 6
            for _, writer in idle:
                writer.close()

    asyncio.run(asyncio.wait_for(main(), 30))
