"""The cap on bodies, without a server."""

from __future__ import annotations

import asyncio
import json

import pytest

from app.errors import ServiceError, TooManyRequests
from app.middleware import BodyLimit, Held


def ask(pieces: list[bytes], limit: int = 10, kind: str = "http", held: Held | None = None, **headers: str):
    """Status, document and pieces read, of an application that reads all of its body."""
    read: list[bytes] = []
    sent: list[dict] = []
    left = list(pieces)

    async def app(scope, receive, send):
        more = True
        while more:
            message = await receive()
            read.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive():
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    scope = {
        "type": kind,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(BodyLimit(app, limit, 60, held or Held(1000))(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"]), read


def test_a_body_of_the_limit_passes():
    assert ask([b"12345", b"67890"], content_length="10") == (200, {}, [b"12345", b"67890"])


@pytest.mark.parametrize("length", ["11", "9" * 18, "9" * 10_000])
def test_what_is_announced_too_large_is_not_read(length):
    status, document, read = ask([b"x"], content_length=length)
    assert (status, read) == (413, [])
    assert "10 bytes at most" in document["error"]


@pytest.mark.parametrize("length", ["-1", "x", "", "1.5", "٣", "²"])
def test_a_length_that_is_no_number_is_refused(length):
    assert ask([b"x"], content_length=length)[0] == 400


@pytest.mark.parametrize("headers", [{}, {"content_length": "3"}])
def test_what_grows_too_large_is_read_no_further(headers):
    with pytest.raises(ServiceError) as refused:
        ask([b"12345", b"678901", b"never"], **headers)
    assert refused.value.status == 413


def test_what_is_not_http_passes_by():
    assert ask([b"x" * 100], kind="other")[0] == 200


def test_all_bodies_together_are_held_within_a_limit_and_given_back():
    held = Held(15)
    assert ask([b"12345", b"67890"], held=held)[0] == 200
    assert held.bytes == 0
    held.add(8)
    with pytest.raises(TooManyRequests, match="hold 15 bytes"):
        ask([b"12345", b"678"], held=held)
    # What had come of it was let go, and one that fits is taken.
    assert held.bytes == 8
    assert ask([b"1234567"], held=held)[0] == 200
    held.remove(8)
    assert held.bytes == 0


def test_a_body_is_held_until_its_request_is_answered():
    held = Held(10)
    seen = []

    async def slow(scope, receive, send):
        await receive()
        seen.append(held.bytes)
        raise RuntimeError("whatever it is")

    async def receive():
        return {"type": "http.request", "body": b"12345", "more_body": False}

    with pytest.raises(RuntimeError):
        asyncio.run(BodyLimit(slow, 10, 60, held)({"type": "http", "headers": []}, receive, None))
    assert (seen, held.bytes) == ([5], 0)
