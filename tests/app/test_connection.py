"""Bad HTTP, large heads, offers to upgrade: what is decided before a request exists."""

from __future__ import annotations

import json

import pytest

from app.connection import MAX_HEAD
from tests.app.support import assert_same, expected, plain_body, read_answer, rows_of

BODY = json.dumps(plain_body(rows_of("classes", 2))).encode()


@pytest.mark.parametrize(
    "request_",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\nhost: x\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nhost x\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nx: a\x00b\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"BREW /v2 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /predict HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST /predict HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /predict HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /predict HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_bad_http_is_told_so_in_json_and_the_connection_ends(service, request_):
    with service.connection() as connected:
        connected.sendall(request_)
        status, headers, body = read_answer(connected)
        assert status == 400
        assert list(json.loads(body)) == ["error"]
        assert headers["x-request-id"]
        while connected.recv(1024):
            pass


LONG = b"GET /v2 HTTP/1.1\r\nhost: x\r\nx: " + b"a" * (MAX_HEAD + 1)
MANY = b"GET /v2 HTTP/1.1\r\nhost: x\r\n" + b"".join(b"h%d: v\r\n" % i for i in range(MAX_HEAD // 8))
PATH = b"GET /" + b"a" * (MAX_HEAD + 1)


@pytest.mark.parametrize("head", [LONG, MANY, PATH])
@pytest.mark.parametrize("ends", [True, False])
def test_a_head_that_is_too_large_is_refused_whether_it_ends_or_not(service, head, ends):
    rest = b" HTTP/1.1\r\n\r\n" if head is PATH else b"\r\n\r\n"
    pieces = [head[i : i + 5000] for i in range(0, len(head), 5000)] if not ends else [head + rest]
    status, headers, body = service.raw(*pieces)
    assert status == 431
    assert headers["connection"] == "close"
    assert json.loads(body) == {"error": f"a head may have {MAX_HEAD} bytes at most"}


def test_a_large_head_below_the_limit_is_read(service):
    head = b"GET /v2 HTTP/1.1\r\nhost: x\r\nx: " + b"a" * (MAX_HEAD - 1000) + b"\r\n\r\n"
    assert service.raw(head)[0] == 200
    assert service.raw(*(head[i : i + 7000] for i in range(0, len(head), 7000)))[0] == 200


def test_large_bodies_do_not_count_as_heads(service, loaded):
    padded = BODY + b" " * 200_000
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(padded)
    with service.connection() as connected:
        for _ in range(3):
            connected.sendall(head + padded)
            status, _, body = read_answer(connected)
            assert status == 200
            assert_same(json.loads(body)["outputs"], expected(loaded["classes"], rows_of("classes", 2)))


@pytest.mark.parametrize("offer", [b"h2c", b"websocket", b"nonsense"])
def test_an_offer_to_upgrade_is_passed_over_and_the_body_is_read(service, loaded, offer):
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: %s\r\ncontent-length: %d\r\n\r\n"
    head = head % (offer, len(BODY))
    for pieces in ([head + BODY], [head, BODY], [head[:50], head[50:] + BODY[:9], BODY[9:]]):
        with service.connection() as connected:
            for _ in range(2):
                for piece in pieces:
                    connected.sendall(piece)
                status, _, body = read_answer(connected)
                assert status == 200
                assert_same(json.loads(body)["outputs"], expected(loaded["classes"], rows_of("classes", 2)))


def test_requests_that_are_sent_before_the_answers_are_answered_in_order(service):
    heads = b"".join(b"GET /v2/models/%s HTTP/1.1\r\nhost: x\r\n\r\n" % m for m in (b"classes", b"house", b"nobody"))
    with service.connection() as connected:
        connected.sendall(heads)
        seen = b""
        while seen.count(b"HTTP/1.1 ") < 3 or b"unknown model" not in seen:
            seen += connected.recv(65536)
    assert seen.index(b'"classes"') < seen.index(b'"house"') < seen.index(b"unknown model")


def test_http_1_0_is_answered_and_the_connection_ends(service):
    status, headers, body = service.raw(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
    assert (status, headers["connection"], json.loads(body)) == (200, "close", {"live": True})
