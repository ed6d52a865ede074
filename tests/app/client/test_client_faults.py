"""What both clients do when the service does not answer as it should."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.client import (
    AsyncClient,
    BadRequest,
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidAnswer,
    Retry,
    ServerFault,
    TooManyRequests,
    Unavailable,
)
from tests.app.client.conftest import (
    BUSY,
    HALF,
    LOADING,
    METADATA,
    QUICK,
    RESET,
    RESULT,
    SILENCE,
    Dripping,
    answer,
)


def infer(client, **rest):
    return client.infer(np.ones((1, 1), np.float32), model="m", **rest)


@pytest.mark.parametrize("fault", [RESET, HALF, BUSY, LOADING, answer(502)])
def test_what_may_be_repeated_is(scripted, connect, fault):
    server = scripted(METADATA, fault, fault, RESULT)
    assert infer(connect(server.url, retry=QUICK))["mean"] == [2]
    assert len(server.requests) == 4
    # It is the same request each time, but for the time that is left.
    bodies = {request.partition(b"\r\n\r\n")[2] for request in server.requests[1:]}
    assert len(bodies) == 1


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (RESET, ConnectionFailed),
        (HALF, ConnectionFailed),
        (BUSY, TooManyRequests),
        (LOADING, Unavailable),
        (b"nonsense\r\n\r\n", ConnectionFailed),
    ],
)
def test_what_does_not_get_better_ends_with_the_last_error(scripted, connect, fault, kind):
    server = scripted(METADATA, fault)
    with pytest.raises(kind):
        infer(connect(server.url, retry=QUICK))
    assert len(server.requests) == 1 + QUICK.attempts


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (answer(400, b'{"error": "wrong"}'), BadRequest),
        (answer(413, b'{"error": "large"}'), BadRequest),
        (answer(500, b'{"error": "fault"}'), ServerFault),
        (answer(301, location="http://elsewhere"), InvalidAnswer),
        (answer(200, b"<html>"), InvalidAnswer),
        (answer(200, b"x", content_encoding="gzip"), InvalidAnswer),
    ],
)
def test_what_must_not_be_repeated_is_not(scripted, connect, fault, kind):
    server = scripted(METADATA, fault)
    with pytest.raises(kind):
        infer(connect(server.url, retry=QUICK))
    assert len(server.requests) == 2


def test_the_only_model_is_asked_where_none_is_named(scripted, connect):
    index = answer(200, b'[{"name": "m", "version": "1"}, {"name": "m", "version": "2"}]')
    server = scripted(index, METADATA, RESULT)
    assert connect(server.url).infer([[1.0]]).model == "m"
    assert b"POST /v2/repository/index " in server.requests[0]


def test_time_is_told_to_the_service_and_is_over_here_too(scripted, connect):
    server = scripted(METADATA, SILENCE)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"there was no answer within 0\.4 seconds"):
        infer(connect(server.url, retry=QUICK), timeout=0.4)
    assert time.monotonic() - begun > 0.3
    told = re.search(rb"x-request-timeout: ([0-9.]+)\r\n", server.requests[1])
    assert 0 < float(told[1]) <= 0.4
    assert b"x-request-timeout" not in server.requests[0]


def test_an_answer_that_comes_little_by_little_has_no_more_time_than_another(scripted, connect):
    # Whole after some five seconds, and never silent for long.
    server = scripted(METADATA, RESULT, Dripping(RESULT, 0.025))
    client = connect(server.url, retry=QUICK)
    infer(client)
    with pytest.raises(DeadlineExceeded, match=r"there was no answer within 0\.4 seconds"):
        infer(client, timeout=0.4)
    assert len(server.requests) == 3
    # As long as there is time for it, it is an answer.
    server = scripted(METADATA, Dripping(RESULT, 0.0005))
    assert infer(connect(server.url, retry=Retry(attempts=1)))["mean"] == [2]


@pytest.mark.parametrize("fault", [SILENCE, Dripping(answer(200), 0.1), answer(504)])
def test_a_service_that_does_not_answer_is_neither_live_nor_ready(scripted, connect, fault):
    client = connect(scripted(fault).url, timeout=0.4)
    assert client.live() is False
    assert client.ready() is False
    assert client.ready("m") is False


def test_a_service_that_was_too_late_is_asked_again_where_there_is_time(scripted, connect):
    late = answer(504, b'{"error": "its time had passed"}')
    server = scripted(METADATA, late, RESULT)
    assert infer(connect(server.url, retry=QUICK))["mean"] == [2]
    server = scripted(METADATA, late)
    with pytest.raises(DeadlineExceeded) as over:
        infer(connect(server.url, retry=Retry(attempts=9, first=50.0, longest=50.0)), timeout=0.5)
    assert over.value.status == 504 or "within 0.5 seconds" in str(over.value)


def test_the_time_that_the_service_asks_for_is_given(scripted, connect):
    server = scripted(METADATA, answer(429, b"{}", retry_after=1), RESULT)
    begun = time.monotonic()
    infer(connect(server.url, retry=QUICK))
    assert time.monotonic() - begun >= 1
    server = scripted(METADATA, answer(429, b"{}", retry_after=100))
    with pytest.raises(TooManyRequests) as refused:
        infer(connect(server.url, retry=QUICK))
    assert refused.value.retry_after == 100
    assert len(server.requests) == 2


def test_a_connection_that_the_service_closed_meanwhile_is_not_used(scripted, connect):
    closing = METADATA.replace(b"content-type", b"connection: close\r\ncontent-type")
    server = scripted(closing, RESULT)
    assert infer(connect(server.url, retry=Retry(attempts=1)))["mean"] == [2]


def test_nothing_sent_holds_more_than_it_must(scripted, connect):
    server = scripted(METADATA, RESULT)
    infer(connect(server.url, key="a-key-for-this-one"), request_id="r-1")
    head = server.requests[1].partition(b"\r\n\r\n")[0].decode().lower()
    assert "authorization: bearer a-key-for-this-one" in head
    assert "x-request-id: r-1" in head
    assert "accept-encoding: identity" in head
    assert "cookie" not in head
    server = scripted(METADATA, RESULT)
    client = connect(server.url, compress=True)
    client.infer(np.zeros((1, 5000), np.float32), model="m")
    head, _, body = server.requests[1].partition(b"\r\n\r\n")
    assert b"content-encoding: gzip" in head
    assert len(body) < 2000


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_more_than_it_has_connections_for_wait_their_turn(scripted, kind):
    server = scripted(METADATA, RESULT)
    if kind is Client:
        with Client(server.url, connections=1) as client, ThreadPoolExecutor(8) as pool:
            infer(client)
            results = list(pool.map(infer, [client] * 8))
    else:

        async def main():
            async with AsyncClient(server.url, connections=1) as client:
                await infer(client)
                return await asyncio.gather(*[infer(client) for _ in range(8)])

        results = asyncio.run(main())
    assert [result["mean"] for result in results] == [2] * 8
    # The one that listens, and one that was accepted.
    assert len(server._open) == 2
