"""Compressed requests, without a server."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib

import pytest

from app.errors import BadRequest, PayloadTooLarge, TooManyRequests
from app.middleware import BodyLimit, Held, Inflation
from app.protocol.coding import PIECE

# Without the time of making it, so that a test's parameters are the same in every process.
GZIPPED = gzip.compress(b"hello " * 100, mtime=0)


def inflation(app, limit: int, most: int = 2**30) -> Inflation:
    """With room for all bodies, unless a test is about that."""
    return Inflation(app, limit, Held(most))


def ask(pieces: list[bytes], limit: int = 2**20, kind: str = "http", headers: list[tuple[str, str]] | None = None):
    """Status, document, headers and pieces read, of an application that reads all of its body and then waits."""
    read: list[bytes] = []
    sent: list[dict] = []
    left = list(pieces)

    async def app(scope, receive, send):
        more = True
        while more:
            message = await receive()
            read.append(message["body"])
            more = message["more_body"]
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive():
        if not left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    given = [("Content-Encoding", "gzip")] if headers is None else headers
    scope = {"type": kind, "headers": [(n.lower().encode(), v.encode()) for n, v in given]}
    asyncio.run(inflation(app, limit)(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"]), dict(sent[0]["headers"]), read


@pytest.mark.parametrize("pieces", [[GZIPPED], [GZIPPED[:20], GZIPPED[20:]], [b"", GZIPPED, b""]])
def test_the_application_sees_a_plain_body(pieces):
    status, _, _, read = ask(pieces)
    assert (status, b"".join(read)) == (200, b"hello " * 100)


def test_deflate_is_read_too():
    assert b"".join(ask([zlib.compress(b"abc")], headers=[("Content-Encoding", "deflate")])[3]) == b"abc"


@pytest.mark.parametrize("headers", [[], [("Content-Encoding", "identity")]])
def test_a_plain_body_passes_by(headers):
    assert ask([b"12", b"34"], limit=1, headers=headers)[3] == [b"12", b"34"]


def test_what_is_not_http_passes_by():
    assert ask([b"12"], kind="other")[3] == [b"12"]


def test_a_large_body_comes_in_pieces():
    read = ask([gzip.compress(bytes(10 * PIECE))], limit=10 * PIECE)[3]
    assert [len(piece) for piece in read] == [PIECE] * 10 + [0]


@pytest.mark.parametrize("said", [["br"], ["gzip", "gzip"], ["gzip, deflate"], [""]])
def test_other_codings_are_refused_unread(said):
    status, document, headers, read = ask([b"x"], headers=[("Content-Encoding", value) for value in said])
    assert (status, read) == (415, [])
    assert document["error"].startswith("Content-Encoding must be one of gzip, deflate or identity, however: ")
    assert headers[b"accept-encoding"] == b"gzip, deflate"


@pytest.mark.parametrize("body", [b"hello", b"", GZIPPED[:-1], GZIPPED + b"x", GZIPPED[:30] + b"?" + GZIPPED[31:]])
def test_broken_bodies_are_bad_requests(body):
    with pytest.raises(BadRequest):
        ask([body])


def test_what_becomes_too_large_is_inflated_no_further():
    bomb = gzip.compress(bytes(100 * PIECE))
    with pytest.raises(PayloadTooLarge):
        ask([bomb], limit=2 * PIECE)


def test_a_client_that_goes_away_is_told_of():
    async def main():
        gone = iter([{"type": "http.request", "body": GZIPPED[:9], "more_body": True}, {"type": "http.disconnect"}])
        seen = []

        async def app(scope, receive, send):
            seen.append(await receive())

        async def receive():
            return next(gone)

        scope = {"type": "http", "headers": [(b"content-encoding", b"gzip")]}
        await inflation(app, 100)(scope, receive, None)
        assert seen == [{"type": "http.disconnect"}]

    asyncio.run(main())


def asking(app, body: bytes, coding: str = "gzip"):
    """A request to an application, a coroutine."""
    left = [body[:100], body[100:]]

    async def receive():
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return app({"type": "http", "headers": [(b"content-encoding", coding.encode())]}, receive, None)


async def read(receive) -> None:
    more = True
    while more:
        more = (await receive())["more_body"]


@pytest.mark.parametrize(
    ("body", "holds"),
    [
        (gzip.compress(bytes(3 * PIECE + 5), mtime=0), 3 * PIECE + 5),
        # What hardly shrinks holds what was sent.
        (gzip.compress(b"abc", mtime=0), len(gzip.compress(b"abc"))),
    ],
)
def test_what_a_body_has_become_is_held_until_its_request_is_answered(body, holds):
    held, seen = Held(2**20), []

    async def app(scope, receive, send):
        await read(receive)
        seen.append(held.bytes)
        raise ArithmeticError

    limited = BodyLimit(Inflation(app, 2**20, held), 2**20, 60, held)
    with pytest.raises(ArithmeticError):
        asyncio.run(asking(limited, body))
    assert seen == [holds]
    assert held.bytes == 0


def test_bodies_that_wait_hold_no_more_than_all_may_together():
    """Many of few bytes each, which are all read before the first is answered."""
    held = Held(10 * PIECE)

    async def main():
        free = asyncio.Event()

        async def app(scope, receive, send):
            await read(receive)
            await free.wait()

        limited = BodyLimit(Inflation(app, 3 * PIECE, held), 2**20, 60, held)
        body = gzip.compress(bytes(3 * PIECE))
        requests = [asyncio.create_task(asking(limited, body)) for _ in range(12)]
        while sum(request.done() for request in requests) < 9:
            await asyncio.sleep(0)
        assert held.bytes == 9 * PIECE
        free.set()
        return await asyncio.gather(*requests, return_exceptions=True)

    ended = asyncio.run(asyncio.wait_for(main(), 30))
    assert [type(error) for error in ended if error is not None] == [TooManyRequests] * 9
    assert held.bytes == 0


def test_what_never_finds_room_is_too_large_rather_than_told_to_come_back():
    held = Held(PIECE)

    async def app(scope, receive, send):
        await read(receive)

    limited = BodyLimit(Inflation(app, 3 * PIECE, held), PIECE, 60, held)
    asyncio.run(asking(limited, gzip.compress(bytes(PIECE))))
    with pytest.raises(PayloadTooLarge, match=f"{PIECE} bytes at most once it is inflated"):
        asyncio.run(asking(limited, gzip.compress(bytes(PIECE + 1))))
    assert held.bytes == 0


def test_few_large_bodies_are_inflated_at_once_and_small_ones_pass_them():
    """So that the memory that is held does not follow from what little was sent for it."""

    async def main():
        held: set[int] = set()
        most, done = 0, []
        free = asyncio.Event()

        async def app(scope, receive, send):
            nonlocal most
            number, more = scope["number"], True
            while more:
                message = await receive()
                more = message["more_body"]
                if len(message["body"]) == PIECE:
                    held.add(number)
                    most = max(most, len(held))
                    await free.wait()
            held.discard(number)
            done.append(number)
            if number == 3:
                # What goes wrong later keeps nobody's place.
                raise ArithmeticError

        middleware = inflation(app, 10 * PIECE)

        def request(number, body):
            async def receive():
                return {"type": "http.request", "body": body, "more_body": False}

            scope = {"type": "http", "number": number, "headers": [(b"content-encoding", b"gzip")]}
            return asyncio.create_task(middleware(scope, receive, None))

        large = [request(number, gzip.compress(bytes(3 * PIECE))) for number in range(12)]
        await asyncio.wait_for(request(99, GZIPPED), 30)
        assert done == [99]
        assert len(held) == 4
        free.set()
        await asyncio.gather(*large, return_exceptions=True)
        assert sorted(done) == [*range(12), 99]
        assert most == 4

    asyncio.run(main())


def test_a_large_body_gives_others_their_turns():
    async def main():
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async def app(scope, receive, send):
            while (await receive())["more_body"]:
                pass

        async def receive():
            return {"type": "http.request", "body": gzip.compress(bytes(40 * PIECE)), "more_body": False}

        beside = asyncio.create_task(other())
        await asyncio.sleep(0)
        before = turns
        await inflation(app, 40 * PIECE)({"type": "http", "headers": [(b"content-encoding", b"gzip")]}, receive, None)
        assert turns - before >= 40
        beside.cancel()

    asyncio.run(main())
