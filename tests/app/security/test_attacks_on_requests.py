"""Bodies, headers and names in requests, by somebody who has a key."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import pickle
import re
import zlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.app.security.conftest import MAX_BODIES, MAX_BODY, MAX_INFLATED, Trap
from tests.app.support import PATIENCE, plain_body, read_answer, rows_of, until, v2_body

BODY = v2_body(rows_of("house", 2))
INFER = "/v2/models/house/infer"


def no_secrets(text: str) -> None:
    """Neither a traceback, nor a path, nor the name of a library."""
    assert not re.search(r"Traceback|File \"|/tmp|/usr|/root|\.py|site-packages|torch|numpy|uvicorn|orjson", text), text


@pytest.mark.parametrize(
    "media",
    ["application/python-pickle", "application/x-pickle", "application/vnd.bentoml+pickle", "application/octet-stream",
     "application/json", "application/x-msgpack", "multipart/form-data; boundary=x", "text/plain", ""],
)  # fmt: skip
def test_a_pickle_in_a_request_is_a_bad_request(fortress, tmp_path, media):
    """6: whatever the request calls it, the body is JSON or raw numbers, and nothing of it runs."""
    content = pickle.dumps(Trap(tmp_path / "owned"))
    with fortress.client() as client:
        for path in ("/predict", INFER, "/v1/models/house/predict"):
            reply = client.post(path, content=content, headers={"content-type": media})
            assert reply.status_code in (400, 415)
            no_secrets(reply.text)
        reply = client.post(
            INFER, content=content, headers={"content-type": media, "Inference-Header-Content-Length": "0"}
        )
        assert reply.status_code == 400
    assert not (tmp_path / "owned").exists()


def memory(process: int) -> int:
    """The most memory that a process ever held, bytes."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1])


@pytest.mark.parametrize("length", [MAX_BODY + 1, 2**40, "9" * 30])
def test_a_body_that_is_announced_too_large_is_refused_unread(fortress, length):
    """7: from its head, before a byte of it is there."""
    status, _, body = fortress.server.raw(fortress.head(content_length=length) + b"\r\n")
    # Thirty digits are no number for the parser.
    assert status == (400 if length == "9" * 30 else 413)
    assert list(json.loads(body)) == ["error"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_body_without_an_end_is_cut_off_and_not_held(fortress):
    """7: nothing is announced, and it never ends."""
    assert fortress.is_well()
    before = memory(fortress.server.process.pid)
    chunk = b"%x\r\n%s\r\n" % (2**18, b" " * 2**18)
    status, _, body = fortress.server.raw(fortress.head(transfer_encoding="chunked") + b"\r\n", *[chunk] * 200)
    assert status == 413
    assert "at most" in json.loads(body)["error"]
    assert memory(fortress.server.process.pid) - before < 16 * 2**20
    assert fortress.is_well()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_inflated_no_further_than_the_cap(fortress, coding):
    """8: 60 kB that become 64 MiB are refused when the cap is reached; what stays below is read."""
    pack = gzip.compress if coding == "gzip" else zlib.compress
    bomb = pack(b" " * (60 * 2**20), 9)
    assert len(bomb) < MAX_BODY
    headers = {"content-encoding": coding, "content-type": "application/json"}
    with fortress.client() as client:
        good = client.post(INFER, content=pack(json.dumps(BODY).encode()), headers=headers)
        assert good.status_code == 200
        before = memory(fortress.server.process.pid)
        reply = client.post(INFER, content=bomb, headers=headers)
        assert reply.status_code == 413
        assert str(MAX_INFLATED) in reply.json()["error"]
        assert memory(fortress.server.process.pid) - before < 16 * 2**20
        # A bomb in a bomb is not inflated twice.
        twice = client.post(INFER, content=pack(bomb), headers=headers | {"content-encoding": f"{coding}, {coding}"})
        assert twice.status_code in (400, 415)
    assert fortress.is_well()


@pytest.mark.parametrize("path", ["/predict", INFER])
def test_bombs_that_wait_together_are_held_within_the_limit_of_all_bodies(fortress, path):
    """7, 8: each stays below its own cap and is sent in a few hundred bytes; what is held counts, not what was sent."""
    body = json.dumps(BODY if path == INFER else plain_body(rows_of("house", 2)))
    bomb = gzip.compress(body.ljust(MAX_INFLATED).encode())
    fits, more = MAX_BODIES // MAX_INFLATED, 6

    def post(_: int) -> httpx.Response:
        with fortress.client() as client:
            return client.post(path, content=bomb, headers={"content-encoding": "gzip"})

    with ThreadPoolExecutor(fits + more) as pool:
        with fortress.busy():
            replies = as_completed([pool.submit(post, number) for number in range(fits + more)], timeout=PATIENCE)
            refused = [next(replies).result() for _ in range(more)]
        answered = [reply.result() for reply in replies]
    assert [reply.status_code for reply in refused] == [429] * more
    assert all(f"hold {MAX_BODIES} bytes, the limit" in reply.json()["error"] for reply in refused)
    assert [reply.status_code for reply in answered] == [200] * fits
    assert fortress.is_well()


@pytest.mark.parametrize("depth", [101, 1000, 20_000])
@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_deep_json_is_refused(fortress, depth, pair):
    """10: before anything walks through it."""
    opening = "[" if pair == "[]" else '{"a":'
    deep = opening * depth + "1" + pair[1] * depth
    with fortress.client() as client:
        for path, body in [(INFER, f'{{"inputs":{deep}}}'), ("/predict", f'{{"inputs":{deep}}}'), (INFER, deep)]:
            if len(body) < MAX_BODY:
                reply = client.post(path, content=body)
                assert reply.status_code == 400
                assert "deep" in reply.json()["error"] or "not JSON" in reply.json()["error"]
    assert fortress.is_well()


@pytest.mark.parametrize(
    "shape",
    [[2**62, 5], [2**31, 2**31], [-1, 5], [-(2**63), 5], [2**64, 5], [1e300, 5], [2, 5.0], [True, 5], [1] * 5000,
     [0, 2**62], [2**20, 0], "2,5", None, [[2, 5]], []],
)  # fmt: skip
@pytest.mark.parametrize("binary", [False, True])
def test_a_shape_that_is_huge_or_none_allocates_nothing(fortress, shape, binary):
    """10: what is declared is compared with what is there; nothing is made from it."""
    before = memory(fortress.server.process.pid)
    tensor = {**BODY["inputs"][0], "shape": shape}
    headers, content = {}, json.dumps({"inputs": [tensor]}).encode()
    if binary:
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": 40}
        text = json.dumps({"inputs": [tensor]}).encode()
        headers, content = {"Inference-Header-Content-Length": str(len(text))}, text + bytes(40)
    with fortress.client() as client:
        reply = client.post(INFER, content=content, headers=headers)
    assert reply.status_code == 400
    no_secrets(reply.text)
    assert memory(fortress.server.process.pid) - before < 16 * 2**20


@pytest.mark.parametrize(
    ("path", "content", "headers"),
    [
        (INFER, b"{", {}),
        (INFER, b"\xff\xfe", {}),
        (INFER, b"{}", {"Inference-Header-Content-Length": "99999999"}),
        (INFER, b'{"inputs": 5}', {}),
        (INFER, b"x", {"content-encoding": "gzip"}),
        (INFER, b"x", {"content-encoding": "x" * 300}),
        ("/v2/models/..%2f..%2fetc/infer", b"{}", {}),
        ("/v2/models/pickled/infer", json.dumps(BODY).encode(), {}),
        ("/docs/static/..%2f..%2fetc%2fpasswd", b"", {}),
        ("/nothing", b"", {}),
    ],
)
def test_an_error_tells_nothing_of_the_machine(fortress, path, content, headers):
    """12: whatever is wrong, the answer has one short sentence, and an id that the log has too."""
    with fortress.client() as client:
        reply = client.post(path, content=content, headers=headers)
    assert 400 <= reply.status_code < 600
    assert set(reply.json()) == {"error"}
    assert len(reply.text) < 700
    no_secrets(reply.text)
    until(lambda: reply.headers["x-request-id"] in fortress.server.text(), "the log has its id")


@pytest.mark.parametrize("header", ["x-request-id", "traceparent", "user-agent", "x-forwarded-for", "referer"])
@pytest.mark.parametrize(
    "value",
    [
        b'a", "level": "error", "injected": "1',
        b"a\tb",
        b"a; set-cookie: x=1",
        b"\xc2\x85injected",
        "\u2028injected".encode(),
        b"<script>alert(1)</script>",
        b"../../etc/passwd",
        b"%0d%0ainjected: 1",
        b"a" * 5000,
    ],
)
def test_a_header_that_is_echoed_or_logged_is_harmless(fortress, header, value):
    """13: an id is echoed only if it is one; every line of the log stays one, and is what it was meant to be."""
    request = fortress.head("GET /v2/models/house HTTP/1.1") + header.encode() + b": " + value + b"\r\n\r\n"
    status, headers, _ = fortress.server.raw(request)
    assert status == 200
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
    assert not {"set-cookie", "injected"} & headers.keys()
    until(lambda: headers["x-request-id"] in fortress.server.text(), "the log has it")
    for line in fortress.server.text().splitlines():
        event = json.loads(line)
        assert "injected" not in event
        assert value.decode("latin-1") not in event.values()


@pytest.mark.parametrize("injected", [b"a\r\ninjected: 1", b"a\ninjected: 1", b"a\rinjected: 1", b"a\x00b"])
def test_a_header_that_ends_early_is_no_header(fortress, injected):
    """13: a line break is a line break, in the request and nowhere else."""
    request = fortress.head("GET /v2/models/house HTTP/1.1") + b"x-request-id: " + injected + b"\r\n\r\n"
    status, headers, _ = fortress.server.raw(request)
    assert "injected" not in headers
    assert (status, headers["x-request-id"]) == (200, "a") or status == 400


def test_what_a_path_holds_cannot_begin_a_line_of_the_log(fortress):
    """13: line breaks, controls and marks that turn text around, in a path."""
    for path in ("/x%0d%0aforged", "/x%0aforged", "/x%e2%80%a8forged", "/x%1b[2Jforged", "/x%e2%80%aeforged"):
        status, headers, _ = fortress.server.raw(fortress.head(f"GET {path} HTTP/1.1") + b"\r\n")
        assert status == 404
        until(lambda: headers["x-request-id"] in fortress.server.text(), "the log has it")  # noqa: B023
    lines = [line for line in fortress.server.text().split("\n") if "forged" in line]
    assert len(lines) == 5
    assert all(
        line.isascii() and line.isprintable() and json.loads(line)["message"].startswith("GET /x") for line in lines
    )


def labels(page: str) -> set[tuple[str, str]]:
    return {
        pair
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        for pair in sample.labels.items()
        if pair[0] not in ("le",)
    }


def test_requests_make_no_labels(fortress):
    """14: paths, names, versions and ids that a client invents count as what they are: something else."""
    with fortress.client(fortress.metrics) as metrics, fortress.client() as client:
        assert fortress.is_well()
        client.get("/nothing")
        client.get("/v2/models/nobody")
        client.post("/v2/models/nobody/infer", json=BODY)
        client.post("/v2/models/house/versions/9/infer", json=BODY)
        client.get("/v2/models/stats")
        metrics.get("/metrics")
        before = labels(metrics.get("/metrics").text)
        for n in range(30):
            client.get(f"/invented-{n}")
            client.get(f"/v2/models/invented-{n}")
            client.post(f"/v2/models/invented-{n}/infer", json=BODY)
            client.post(f"/v2/models/house/versions/{n + 7}/infer", json=BODY)
            client.post(INFER, json={**BODY, "id": f"invented-{n}"}, headers={"x-request-id": f"invented-{n}"})
        page = metrics.get("/metrics").text
        assert "invented" not in page
        new = {value for value in labels(page) - before if value[0] != "status"}
        assert not new


def test_a_client_that_names_itself_everybody_is_not_believed(fortress):
    """3, 13: headers of proxies change neither who may ask nor where an answer leads."""
    told = {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "X-Forwarded-Host": "evil.example",
            "X-Original-URL": "/v2/health/live", "Host": "evil.example"}  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", fortress.server.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/v2/models/house", headers=told)
        assert connection.getresponse().status == 401
    with fortress.server.connection() as connected:
        connected.sendall(
            fortress.head("GET / HTTP/1.1", host="evil.example", x_forwarded_host="evil.example") + b"\r\n"
        )
        status, headers, _ = read_answer(connected)
    assert (status, headers["location"]) == (307, "/docs")
