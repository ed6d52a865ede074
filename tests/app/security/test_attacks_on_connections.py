"""Clients that take their time, that are many, and that write HTTP which can be read in two ways."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time

import httpx
import pytest

from app.connection import MAX_HEAD, MAX_PIPELINED, Limits
from tests.app.listening import listening
from tests.app.security.conftest import ANSWER, BODY, CONNECTIONS, HEAD
from tests.app.support import PATIENCE, metric, read_answer, rows_of, until, v2_body

CONTENT = json.dumps(v2_body(rows_of("house", 2))).encode()
LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


def ends(connected: socket.socket) -> bytes:
    """What still comes on a connection that the server must end; fails if it does not."""
    seen = b""
    connected.settimeout(PATIENCE)
    with contextlib.suppress(ConnectionError):
        while piece := connected.recv(65536):
            seen += piece
    return seen


def statuses(seen: bytes) -> list[int]:
    """Of all answers on a connection, in order."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", seen)]


def refused(fortress, reason: str) -> float:
    with fortress.client(fortress.metrics) as client:
        return metric(client.get("/metrics").text, "ensembled_rejected_total", reason=reason)


def test_a_head_that_comes_byte_by_byte_is_cut_off(fortress):
    """9: each byte is in time, the head is not; the answer says so, and the connection ends."""
    before = refused(fortress, "head_timeout")
    begun = time.monotonic()
    with fortress.server.connection() as connected:
        with contextlib.suppress(ConnectionError):
            for byte in fortress.head("GET /v2 HTTP/1.1") * 100:
                connected.sendall(bytes([byte]))
                time.sleep(0.05)
                if time.monotonic() > begun + HEAD + 0.3:
                    break
        status, headers, body = read_answer(connected)
        assert (status, headers["connection"]) == (408, "close")
        assert json.loads(body) == {"error": f"the head of the request did not arrive within {HEAD:g} seconds"}
        assert ends(connected) == b""
    assert time.monotonic() - begun >= HEAD
    assert refused(fortress, "head_timeout") == before + 1


def test_a_second_head_has_no_more_time_than_the_first(fortress):
    """9: patience is for the time between requests, not for half of one; blank lines are no request."""
    with fortress.server.connection() as connected:
        connected.sendall(LIVE)
        assert read_answer(connected)[0] == 200
        connected.sendall(b"\r\n\r\nGET /v2 HTT")
        assert read_answer(connected)[0] == 408
        assert ends(connected) == b""


@pytest.mark.parametrize("sent", [b"", b"\r\n", LIVE])
def test_a_connection_that_says_nothing_is_closed(fortress, sent):
    """9: whether it never asked, or will not ask again."""
    with fortress.server.connection() as connected:
        connected.sendall(sent)
        if sent == LIVE:
            assert read_answer(connected)[0] == 200
        assert ends(connected) == b""


def test_blank_lines_keep_no_connection_open(fortress):
    """9: what is sent between requests and is none does not count as one."""
    with fortress.server.connection() as connected:
        connected.sendall(LIVE)
        assert read_answer(connected)[0] == 200

        def refuses_more() -> bool:
            time.sleep(0.1)
            try:
                connected.sendall(b"\r\n")
            except ConnectionError:
                return True
            return False

        until(refuses_more, "it is closed all the same")


def test_a_body_that_comes_byte_by_byte_is_cut_off(fortress):
    """9: it is answered 408, and what would still come is not waited for."""
    with fortress.server.connection() as connected:
        connected.sendall(fortress.head(content_length=len(CONTENT)) + b"\r\n")
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in CONTENT:
                connected.sendall(bytes([byte]))
                time.sleep(0.05)
                if time.monotonic() > begun + BODY + 0.3:
                    break
        status, _, body = read_answer(connected)
        assert status == 408
        assert "did not arrive within" in json.loads(body)["error"]
        assert ends(connected) == b""


def test_a_body_that_nobody_reads_is_not_waited_for(fortress):
    """9: it is refused from its head; the rest may come at once, or never."""
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n"
    with fortress.server.connection() as connected:
        connected.sendall(head)
        assert read_answer(connected)[0] == 401
        # In time, so the connection can be used again.
        connected.sendall(b"0123456789" + LIVE)
        assert read_answer(connected)[0] == 200
        connected.sendall(head + b"0123")
        assert read_answer(connected)[0] == 401
        assert ends(connected) == b""


def test_a_client_that_does_not_take_its_answer_is_cut_off(fortress):
    """9: megabytes wait for it, and then nothing does."""
    before = refused(fortress, "slow_reader")
    page = fortress.head("GET /docs/static/swagger-ui-bundle.js HTTP/1.1") + b"\r\n"
    with socket.socket() as connected:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.settimeout(PATIENCE)
        connected.connect(("127.0.0.1", fortress.server.port))
        begun = time.monotonic()
        connected.sendall(page * 10)
        until(lambda: refused(fortress, "slow_reader") > before, "it is cut off")
        assert time.monotonic() - begun >= ANSWER
        seen = ends(connected)
    with fortress.client() as client:
        whole = len(client.get("/docs/static/swagger-ui-bundle.js").content)
    assert len(seen) < 10 * whole
    assert fortress.is_well()


def test_connections_have_a_number_and_idle_ones_make_room(fortress):
    """9: who holds connections without asking keeps nobody out; when all are at work, the next is told so in JSON."""
    held = [fortress.server.connection() for _ in range(2 * CONNECTIONS)]
    try:
        assert fortress.is_well()
    finally:
        for connected in held:
            connected.close()
    before = refused(fortress, "connections")
    # Of each of these a request was taken, whose body is still to come.
    busy = []
    try:
        for _ in range(CONNECTIONS + 3):
            busy.append(fortress.server.connection())
            busy[-1].sendall(fortress.head(content_length=10) + b"\r\n")
        until(lambda: refused(fortress, "connections") >= before + 3, "some are refused")
        told = [read_answer(connected) for connected in busy]
    finally:
        for connected in busy:
            connected.close()
    # The others were too slow by then.
    said = [status for status, _, _ in told]
    assert said.count(503) >= 3
    assert set(said) == {503, 408}
    for status, headers, body in told:
        if status == 503:
            assert headers["connection"] == "close"
            assert headers["retry-after"] == "1"
            assert json.loads(body)["error"].startswith(f"{CONNECTIONS} connections are open, which is the most")
    until(fortress.is_well, "it has room again")


def test_answers_that_nobody_reads_keep_their_connections_counted():
    """9: each is asked for at little cost and held for as long as a client may take; they are no more than others."""
    large = b"x" * 2**24
    most, refusals = 4, []

    async def answers(scope, receive, send):
        length = str(len(large)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": large})

    async def main():
        async with listening(answers, Limits(connections=most, answer_seconds=PATIENCE, refused=refusals.append)) as at:
            held = [await at.connect() for _ in range(most)]
            for reader, writer in held:
                writer.write(LIVE)
                # It is being answered, and the client takes no more than the beginning.
                assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            for _ in range(2 * most):
                reader, writer = await at.connect()
                writer.write(LIVE)
                assert await reader.readline() == b"HTTP/1.1 503 Service Unavailable\r\n"
                assert at.open <= most + 1
                writer.close()
            assert refusals == ["connections"] * 2 * most
            # Nobody was cut off for them, and who takes an answer after all makes room.
            reader, writer = held.pop()
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(large)) == large
            last, other = await at.connect()
            other.write(LIVE)
            assert await last.readline() == b"HTTP/1.1 200 OK\r\n"
            assert at.open == most
            for connected in (writer, other, *(each for _, each in held)):
                connected.transport.abort()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_many_slow_clients_leave_room_for_one_that_is_not(fortress):
    """9: of heads that do not end nothing was accepted, so they make room for one that does, and are told so."""
    slow = []
    try:
        for _ in range(2 * CONNECTIONS):
            slow.append(fortress.server.connection())
            slow[-1].sendall(b"GET /v2 HTTP/1.1\r\nx: ")
        # All in less time than they have for a head.
        assert fortress.is_well()
        assert read_answer(slow[0])[0] == 503
    finally:
        for connected in slow:
            connected.close()


@pytest.mark.parametrize("count", [MAX_HEAD // 4, 10 * MAX_HEAD // 4])
def test_headers_have_a_size_all_together(fortress, count):
    """9: tens of thousands of small ones, or a large one, or a path."""
    for head in (b"a:b\r\n" * count, b"a: " + b"b" * MAX_HEAD + b"\r\n"):
        status, _, body = fortress.server.raw(fortress.head("GET /v2 HTTP/1.1") + head + b"\r\n")
        assert status == 431
        assert json.loads(body) == {"error": f"a head may have {MAX_HEAD} bytes at most"}


@pytest.mark.parametrize("extension", [b";" + b"a" * 10_000, b";a=" + b"b" * 2000])
def test_what_surrounds_chunks_has_a_size(fortress, extension):
    """7, 9: a body of few bytes in chunks with much to say."""
    chunk = b"1" + extension + b"\r\n \r\n"
    head = fortress.head(transfer_encoding="chunked") + b"\r\n"
    status, _, body = fortress.server.raw(head, *[chunk] * 500)
    assert status == 400
    assert "around the chunks" in json.loads(body)["error"]


def test_a_body_in_chunks_of_one_byte_is_none_of_these(fortress):
    """9: a clumsy client is read all the same."""
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in CONTENT) + b"0\r\n\r\n"
    assert fortress.server.raw(fortress.head(transfer_encoding="chunked") + b"\r\n" + chunks)[0] == 200


def test_requests_that_wait_on_one_connection_have_a_number(fortress):
    """9: a thousand requests in one packet are no thousand objects; those that are taken are answered in order."""
    request = fortress.head("GET /v2/models/house HTTP/1.1") + b"\r\n"
    with fortress.server.connection() as connected:
        with contextlib.suppress(ConnectionError):
            connected.sendall(request * 1000)
        seen = ends(connected)
    *answered, last = statuses(seen)
    assert 1 <= len(answered) <= MAX_PIPELINED + 1
    assert set(answered) == {200}
    assert last == 429
    assert b"requests wait on this connection" in seen


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n"


def smuggling(*fields: bytes, body: bytes = b"0\r\n\r\n" + SMUGGLED, version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([b"POST /predict " + version, b"host: x", *fields, b"", body])


AMBIGUOUS = {
    "CL.TE": smuggling(b"content-length: 5", b"transfer-encoding: chunked"),
    "TE.CL": smuggling(b"transfer-encoding: chunked", b"content-length: 5"),
    "two lengths": smuggling(b"content-length: 5", b"content-length: 40"),
    "the same length twice": smuggling(b"content-length: 5", b"content-length: 5"),
    "lengths in a list": smuggling(b"content-length: 5, 5"),
    "a length with a sign": smuggling(b"content-length: +5"),
    "a length in hexadecimal": smuggling(b"content-length: 0x5"),
    "a length with a space": smuggling(b"content-length: 5 0"),
    "a length without digits": smuggling(b"content-length: "),
    "a folded line": smuggling(b"transfer-encoding:", b" chunked"),
    "a folded line after a value": smuggling(b"x: y", b"\tcontent-length: 5"),
    "a space before the colon": smuggling(b"transfer-encoding : chunked"),
    "a tab before the colon": smuggling(b"content-length\t: 5"),
    "a coding of no name": smuggling(b"transfer-encoding: xchunked"),
    "a coding after a control": smuggling(b"transfer-encoding: \x0bchunked"),
    "chunked, then another": smuggling(b"transfer-encoding: chunked, identity"),
    "another, then chunked": smuggling(b"transfer-encoding: identity, chunked"),
    "gzip, then chunked": smuggling(b"transfer-encoding: gzip, chunked"),
    "chunked twice": smuggling(b"transfer-encoding: chunked, chunked"),
    "two codings": smuggling(b"transfer-encoding: identity", b"transfer-encoding: chunked"),
    "two codings, turned": smuggling(b"transfer-encoding: chunked", b"transfer-encoding: identity"),
    "identity": smuggling(b"transfer-encoding: identity", b"content-length: 5"),
    "chunked in HTTP/1.0": smuggling(b"transfer-encoding: chunked", version=b"HTTP/1.0"),
    "a name with a zero": smuggling(b"content\x00-length: 5"),
    "a bare line feed": smuggling(b"x: y\ncontent-length: 5"),
    "a bare carriage return": smuggling(b"x: y\rcontent-length: 5"),
    "a line before the headers": b"POST /predict HTTP/1.1\r\n content-length: 5\r\nhost: localhost\r\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_request_that_can_be_read_in_two_ways_is_not_read_at_all(fortress, name):
    """16: one answer, 400, and the connection ends: what was hidden behind it is no request."""
    with fortress.server.connection() as connected:
        connected.sendall(AMBIGUOUS[name])
        seen = ends(connected)
    assert statuses(seen) == [400]
    assert b"smuggled" not in fortress.server.text().encode()


@pytest.mark.parametrize(
    "body",
    [b"5\r\nabcdefgh\r\n0\r\n\r\n", b"0x1\r\na\r\n0\r\n\r\n", b"-1\r\na\r\n0\r\n\r\n", b"1\na\n0\n\n",
     b"1 \r\na\r\n0\r\n\r\n", b"10000000000000001\r\na\r\n0\r\n\r\n", b"1\r\na0\r\n\r\n", b"\r\n0\r\n\r\n", b"g\r\n"],
)  # fmt: skip
def test_chunks_that_are_wrong_end_the_connection(fortress, body):
    """16: with one answer, although the head was good."""
    with fortress.server.connection() as connected:
        connected.sendall(fortress.head(transfer_encoding="chunked") + b"\r\n" + body + SMUGGLED)
        seen = ends(connected)
    assert statuses(seen) == [400]


def test_what_follows_a_chunked_body_is_no_header(fortress):
    """3, 16: a key there would get past a proxy that looks at headers only."""
    body = b"%x\r\n%s\r\n0\r\nx-api-key: %s\r\nx-request-id: trailer\r\n\r\n" % (
        len(CONTENT),
        CONTENT,
        fortress.key.encode(),
    )
    head = b"POST /v2/models/house/infer HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    status, headers, _ = fortress.server.raw(head + body)
    assert status == 401
    assert headers["x-request-id"] != "trailer"
    assert fortress.server.raw(fortress.head(transfer_encoding="chunked") + b"\r\n" + body)[0] == 200


def test_a_bad_request_behind_good_ones_is_answered_after_them(fortress):
    """16: no answer is taken for that to another request."""
    good = fortress.head("GET /v2/models/house HTTP/1.1") + b"\r\n"
    for bad, status in ((b"GARBAGE\r\n\r\n", 400), (AMBIGUOUS["CL.TE"], 400), (b"GET / HTTP/1.1\r\nx", 408)):
        with fortress.server.connection() as connected:
            connected.sendall(good * 3 + bad)
            seen = ends(connected)
        assert statuses(seen) == [200, 200, 200, status]


def test_a_bad_body_behind_a_good_request_is_answered_after_it(fortress):
    """16: its head was taken, its body is broken; the request before it has its own answer."""
    good = fortress.head(content_length=len(CONTENT)) + b"\r\n" + CONTENT
    bad = fortress.head(transfer_encoding="chunked") + b"\r\nzz\r\n"
    with fortress.server.connection() as connected:
        connected.sendall(good + bad)
        seen = ends(connected)
    assert statuses(seen) == [200, 400]


def test_limits_of_one_port_are_not_those_of_another(fortress):
    """9: whoever fills the port of the models does not keep its owner from metrics and management."""
    busy = [fortress.server.connection() for _ in range(CONNECTIONS + 2)]
    try:
        for connected in busy:
            connected.sendall(fortress.head(content_length=10) + b"\r\n")
        for base in (fortress.metrics, fortress.management):
            assert httpx.get(base + "/metrics", headers=fortress.headers, timeout=PATIENCE).status_code in (200, 404)
    finally:
        for connected in busy:
            connected.close()
    until(fortress.is_well, "it has room again")
