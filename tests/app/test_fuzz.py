"""Anything at all is sent to the real service: it never answers 5xx, never hangs, and answers rightly afterwards."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import socket
import zlib
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.app.support import assert_same, expected, plain_body, read_answer, rows_of, v2_arrays, v2_body

# The time of all of this file is about examples × a few milliseconds.
EXAMPLES = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
PATHS = ["/predict", "/v1/models/pair/predict", "/v2/models/classes/infer", "/v2/models/pair/infer",
         "/v1/models/house/versions/1/predict", "/v2/models/weather/versions/1/infer"]  # fmt: skip
WISHES = {"members": 3, "priority": 2}
GOOD = [
    (f"/v1/models/{model}/predict", plain_body(rows_of(model, 2), outputs) | {"id": "a", "parameters": WISHES})
    for model, outputs in (("classes", ["mean", "members"]), ("pair", ["value.mean"]), ("weather", ["std"]))
] + [(f"/v2/models/{model}/infer", v2_body(rows_of(model, 2), [name]) | {"id": "a", "parameters": WISHES})
     for model, name in (("classes", "mean"), ("pair", "policy.mean"), ("house", "mean"))]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _still_right(service, loaded):
    """After all of a test's examples the service answers as it should, and no fault of its own is in its log."""
    yield
    with httpx.Client(base_url=service.url, timeout=30) as client:
        for model in loaded:
            inputs = rows_of(model, 3)
            plain = client.post(f"/v1/models/{model}/predict", json=plain_body(inputs)).json()["outputs"]
            assert_same(plain, expected(loaded[model], inputs))
            v2 = client.post(f"/v2/models/{model}/infer", json=v2_body(inputs)).json()
            assert_same(v2_arrays(v2), expected(loaded[model], inputs))
        assert client.get("/v2/health/ready").status_code == 200
    assert "Traceback" not in service.text()
    assert "internal error" not in service.text()


def fine(reply: httpx.Response) -> None:
    assert reply.status_code < 500
    if reply.status_code >= 400:
        document = reply.json()
        assert list(document) == ["error"]
        assert len(document["error"]) < 2000
        assert "Traceback" not in reply.text
        assert "site-packages" not in reply.text


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=8)
    | st.sampled_from(["FP32", "INT64", "BYTES", "mean", "x", "input", "data", "", "a" * 5000, 0, -1, 2**63, 1e308])
)
WORDS = ["inputs", "outputs", "id", "parameters", "name", "shape", "datatype", "data", "binary_data_size",
         "binary_data", "binary_data_output", "input", "features", "members", "tolerance", "timeout",
         "timeout_seconds", "priority"]  # fmt: skip
KEYS = st.sampled_from(WORDS) | st.text(max_size=4)
LENGTHS = st.none() | st.integers(-5, 310) | st.text(max_size=5)
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=20
)


@EXAMPLES
@given(
    path=st.sampled_from(PATHS),
    body=st.binary(max_size=300),
    length=st.none() | st.integers(-5, 310) | st.text(max_size=5),
)
def test_random_bytes(client, path, body, length):
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length).encode("utf-8", "replace")}
    # The client itself refuses to send some headers.
    with contextlib.suppress(httpx.LocalProtocolError):
        fine(client.post(path, content=body, headers=headers))


@EXAMPLES
@given(path=st.sampled_from(PATHS), document=DOCUMENTS)
def test_random_documents(client, path, document):
    fine(client.post(path, content=json.dumps(document).encode()))


def places(value, where=()):
    """Every place in a document."""
    yield where
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*where, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from places(value[index], (*where, index))


@EXAMPLES
@given(data=st.data())
def test_valid_bodies_with_a_few_changes(client, data):
    path, document = data.draw(st.sampled_from(GOOD))
    document = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from([w for w in places(document) if w]))
        holder = document
        for key in parents:
            holder = holder[key]
        match data.draw(st.sampled_from(["replace", "remove", "double"])):
            case "replace":
                holder[last] = data.draw(DOCUMENTS)
            case "remove":
                del holder[last]
            case "double":
                holder[last] = [holder[last], holder[last]]
        if not any(places(document)):
            break
    fine(client.post(path, content=json.dumps(document).encode()))


@EXAMPLES
@given(data=st.data())
def test_valid_bodies_with_a_few_bytes_changed(client, data):
    path, document = data.draw(st.sampled_from(GOOD))
    fine(client.post(path, content=damaged(data, json.dumps(document).encode())))


@EXAMPLES
@given(data=st.data(), coding=st.sampled_from(["gzip", "deflate"]))
def test_compressed_bodies_with_a_few_bytes_changed(client, data, coding):
    path, document = data.draw(st.sampled_from(GOOD))
    encode = gzip.compress if coding == "gzip" else zlib.compress
    body = damaged(data, encode(json.dumps(document).encode()))
    fine(client.post(path, content=body, headers={"Content-Encoding": coding}))


def damaged(data, whole: bytes) -> bytes:
    """A body of which some bytes are others, missing or new."""
    body = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if change == "set":
            body[place] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del body[place : place + data.draw(st.integers(1, 9))]
        else:
            body[place:place] = data.draw(st.binary(max_size=6))
        if not body:
            break
    return bytes(body)


SEGMENTS = st.sampled_from(["v1", "v2", "models", "classes", "pair", "versions", "1", "2", "predict", "infer", "ready",
                            "health", "live", "repository", "index", "docs", "static", "metrics", "..", ".", "",
                            "%2e%2e", "%2f", "%00", "%ff", "a" * 300]) | st.text(max_size=6)  # fmt: skip
NAMES = st.sampled_from(["X-Request-ID", "Content-Encoding", "Inference-Header-Content-Length", "Accept", "Range",
                         "If-None-Match", "Accept-Encoding", "Transfer", "Upgrade", "Expect", "Cookie", "Host",
                         "X-Forwarded-For", "X-Forwarded-Proto", "Content-Type", "Connection"])  # fmt: skip


VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30)


@EXAMPLES
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"]),
    segments=st.lists(SEGMENTS, max_size=6),
    headers=st.dictionaries(NAMES, VALUES, max_size=4),
    query=st.text(max_size=10),
    body=st.sampled_from([b"", b"{}", b"[", b"\x00" * 20]),
)
def test_random_paths_methods_and_headers(client, method, segments, headers, query, body):
    if "Expect" in headers:
        headers["Expect"] = "100-continue"
    url = client.base_url.copy_with(raw_path=_encoded("/" + "/".join(segments), query))
    reply = client.request(method, url, headers=headers, content=body)
    assert reply.status_code < 500
    if reply.status_code >= 400 and method != "HEAD":
        assert list(reply.json()) == ["error"]
    assert "Traceback" not in reply.text


def _encoded(path: str, query: str) -> bytes:
    return quote(path, safe="/%.").encode() + (b"?" + quote(query).encode() if query else b"")


LINES = st.sampled_from([b"GET /v2 HTTP/1.1\r\n", b"POST /predict HTTP/1.1\r\n", b"Host: localhost\r\n", b"\r\n", b"\n",
                         b"\r",
                         b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
                         b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"5\r\nhello\r\n",
                         b"0\r\n\r\n", b"hello", b"Expect: 100-continue\r\n", b": \r\n", b" folded\r\n",
                         b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]) | st.binary(max_size=12)  # fmt: skip


@EXAMPLES
@given(pieces=st.lists(LINES, min_size=1, max_size=9))
def test_random_http_on_the_raw_socket(service, pieces):
    with service.connection() as connected:
        try:
            connected.sendall(b"".join(pieces))
            # No more will come: the service must end, not wait for ever.
            connected.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := connected.recv(65536):
                answer += piece
        except ConnectionError:
            return
    for status in answer.split(b"HTTP/1.1 ")[1:]:
        assert status[:1] in b"1234", answer
    assert b"Traceback" not in answer


def test_what_is_wrong_does_not_end_the_connection_for_what_is_right(service, loaded):
    inputs = rows_of("classes", 1)
    good = json.dumps(plain_body(inputs)).encode()
    with service.connection() as connected:
        for body, status in ((b"{", 400), (good, 200), (b"", 400), (b"x" * 50_000, 400), (good, 200)):
            head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
            connected.sendall(head + body)
            got, _, answer = read_answer(connected)
            assert got == status
            if status == 200:
                assert_same(json.loads(answer)["outputs"], expected(loaded["classes"], inputs))
