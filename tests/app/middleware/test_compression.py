"""Compressed answers, without a server."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import numpy as np
import pytest

from app.middleware.compression import LEAST, Compression

DECODE = {"gzip": gzip.decompress, "deflate": zlib.decompress}
NUMBERS = b", ".join(b"%d.25" % number for number in range(2000))
assert len(NUMBERS) > LEAST


def ask(body: bytes = NUMBERS, *, accept: list[str] | None = None, status: int = 200, pieces: int = 1, **scope):
    """Status, headers and bodies that an application's answer becomes."""
    sent: list[dict] = []

    async def app(scope, receive, send):
        headers = [(b"content-length", str(len(body)).encode()), (b"inference-header-content-length", b"7")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for number in range(pieces):
            await send({"type": "http.response.body", "body": body, "more_body": number < pieces - 1})

    async def send(message):
        sent.append(message)

    headers = [(b"accept-encoding", value.encode()) for value in accept or []]
    whole = {"type": "http", "method": "POST", "path": "/v2/models/a/infer", "headers": headers} | scope
    asyncio.run(Compression(app, ("/infer", "/predict"))(whole, None, send))
    return sent[0]["status"], {n.decode(): v.decode() for n, v in sent[0]["headers"]}, [m["body"] for m in sent[1:]]


@pytest.mark.parametrize("path", ["/v2/models/a/infer", "/predict", "/v1/models/a/versions/1/predict"])
@pytest.mark.parametrize(("accept", "coding"), [("gzip", "gzip"), ("deflate", "deflate"), ("gzip;q=0, *", "deflate")])
def test_an_answer_is_sent_as_the_client_likes_it(path, accept, coding):
    status, headers, (body,) = ask(accept=[accept], path=path)
    assert (status, headers["content-encoding"], headers["vary"]) == (200, coding, "Accept-Encoding")
    assert headers["content-length"] == str(len(body))
    assert len(body) < len(NUMBERS) / 2
    assert DECODE[coding](body) == NUMBERS
    # The length of the JSON within the plain body.
    assert headers["inference-header-content-length"] == "7"


@pytest.mark.parametrize(
    ("change", "varies"),
    [
        ({"accept": None}, True),
        ({"accept": ["br"]}, True),
        ({"accept": ["gzip;q=0"]}, True),
        ({"body": NUMBERS[: LEAST - 1]}, True),
        ({"body": np.random.default_rng(0).bytes(LEAST * 3)}, True),
        ({"status": 400}, False),
        ({"path": "/v2/models/a"}, False),
        ({"path": "/metrics"}, False),
        ({"path": "/v2/models/infer", "method": "GET"}, False),
        ({"type": "other"}, False),
    ],
)
def test_what_is_sent_plain(change, varies):
    body = change.get("body", NUMBERS)
    _, headers, bodies = ask(**{"accept": ["gzip"], **change})
    assert "content-encoding" not in headers
    assert headers["content-length"] == str(len(body))
    assert bodies == [body]
    assert ("vary" in headers) == varies


def test_the_least_size_is_enough():
    assert ask(NUMBERS[:LEAST], accept=["gzip"])[1]["content-encoding"] == "gzip"


def test_a_large_answer_is_compressed_too():
    assert gzip.decompress(ask(NUMBERS * 20, accept=["gzip"])[2][0]) == NUMBERS * 20


def test_an_answer_in_pieces_passes_by():
    _, headers, bodies = ask(accept=["gzip"], pieces=3)
    assert "content-encoding" not in headers
    assert bodies == [NUMBERS] * 3
