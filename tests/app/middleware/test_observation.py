"""Request ids, the line in the log, the metrics, and the last net under exceptions."""

from __future__ import annotations

import asyncio
import json
import logging
import re

import pytest

from app.batching import Answer
from app.errors import DeadlineExceeded, NotFound, TooManyRequests
from app.logs import request_id, trace_id
from app.metrics import Metrics
from app.middleware import Observation
from tests.app.support import metric, plain_body, rows_of, v2_body


def ask(app, metrics: Metrics | None = None, path: str = "/x", **headers: bytes):
    """What an application's answer becomes: the messages that are sent."""
    sent: list[dict] = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [(name.replace("_", "-").encode(), value) for name, value in headers.items()],
    }
    asyncio.run(Observation(app, metrics or Metrics())(scope, None, send))
    return sent


async def fine(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": (request_id.get() or "").encode()})


def id_of(sent) -> str:
    return dict(sent[0]["headers"])[b"x-request-id"].decode()


@pytest.mark.parametrize("given", [b"a", b"a-b_c.D-9", b"x" * 64])
def test_a_harmless_id_is_echoed_and_known_while_the_request_is_answered(given):
    sent = ask(fine, x_request_id=given)
    assert id_of(sent) == sent[1]["body"].decode() == given.decode()
    assert request_id.get() is None


@pytest.mark.parametrize(
    "given", [b"", b"a b", b"x" * 65, b"a\r\nSet-Cookie: b", b"a\n", b"\xe4", b"a;b", b"<b>", b"a\x00", b'"', b"%0d%0a"]
)
def test_any_other_id_is_replaced(given):
    sent = ask(fine, x_request_id=given)
    assert re.fullmatch(r"[0-9a-f]{32}", id_of(sent))


def test_every_request_has_an_id_of_its_own():
    assert len({id_of(ask(fine)) for _ in range(20)}) == 20


def test_an_exception_becomes_an_answer_that_says_nothing_of_it(caplog):
    async def broken(scope, receive, send):
        raise RuntimeError("secret")

    metrics = Metrics()
    sent = ask(broken, metrics)
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"]) == {
        "error": f"internal error; the server's log explains it under request id {id_of(sent)}"
    }
    assert "RuntimeError: secret" in caplog.text
    assert metric(metrics.text().decode(), "ensembled_requests_total", status="500") == 1


def test_an_error_of_the_service_is_answered_wherever_it_was_raised(caplog):
    async def lost(scope, receive, send):
        raise NotFound("no")

    sent = ask(lost)
    assert sent[0]["status"] == 404
    assert json.loads(sent[1]["body"]) == {"error": "no"}
    assert "Traceback" not in caplog.text


def test_an_exception_after_the_answer_began_is_not_answered_twice():
    async def late(scope, receive, send):
        await fine(scope, receive, send)
        raise RuntimeError("late")

    with pytest.raises(RuntimeError, match=r"late"):
        ask(late)


def test_health_is_logged_for_those_who_look_closely_only(caplog):
    caplog.set_level(logging.DEBUG)
    for path in ("/v2/health/live", "/metrics", "/predict"):
        ask(fine, path=path)
    levels = [(r.getMessage(), r.levelname) for r in caplog.records if r.name == "app.access"]
    assert levels == [("GET /v2/health/live", "DEBUG"), ("GET /metrics", "DEBUG"), ("GET /predict", "INFO")]
    assert all(r.status == 200 and r.ms >= 0 for r in caplog.records if r.name == "app.access")


def test_long_paths_are_cut_in_the_log(caplog):
    caplog.set_level(logging.INFO)
    ask(fine, path="/" + "a" * 5000)
    assert len(caplog.records[-1].getMessage()) < 300


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize("given", [f"00-{TRACE}-00f067aa0ba902b7-01", f"cc-{TRACE}-00f067aa0ba902b7-00"])
def test_the_clients_trace_is_known_while_the_request_is_answered(given):
    seen = []

    async def noting(scope, receive, send):
        seen.append(trace_id.get())
        await fine(scope, receive, send)

    ask(noting, traceparent=given.encode())
    assert seen == [TRACE]
    assert trace_id.get() is None


@pytest.mark.parametrize(
    "given",
    [
        "",
        TRACE,
        f"00-{TRACE}-00f067aa0ba902b7",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-00f067aa0ba902b7-01\n",
        f"00-{TRACE[:-1]}\u00e4-00f067aa0ba902b7-01",
    ],
)
def test_what_is_no_trace_is_passed_over(given):
    async def noting(scope, receive, send):
        assert trace_id.get() is None
        await fine(scope, receive, send)

    assert ask(noting, traceparent=given.encode("latin-1"))[0]["status"] == 200


def test_an_inference_says_how_long_its_parts_took_and_the_log_says_it_too(caplog):
    caplog.set_level(logging.INFO)

    async def inference(scope, receive, send):
        scope["state"] |= {
            "model": "m", "version": "3", "rows": 2, "members": 16, "asked_at": 1, "decoded": 0.0,
            "answered_at": 0.0, "answer": Answer({}, None, 0.0015, 0.25), "spent": (0.0015, 0.25),
        }  # fmt: skip
        await fine(scope, receive, send)

    headers = dict(ask(inference)[0]["headers"])
    found = re.fullmatch(rb"queue;dur=1\.500, infer;dur=250\.000, total;dur=(\d+\.\d{3})", headers[b"server-timing"])
    assert float(found[1]) >= 0
    said = vars(caplog.records[-1])
    assert (said["model"], said["version"], said["rows"], said["members"]) == ("m", "3", 2, 16)
    assert (said["queue_ms"], said["infer_ms"]) == (1.5, 250)


TOTAL = rb"total;dur=\d+\.\d{3}"


def test_what_is_no_inference_says_how_long_it_took_in_all():
    assert re.fullmatch(TOTAL, dict(ask(fine)[0]["headers"])[b"server-timing"])


def test_what_came_too_late_says_what_of_its_time_it_waited(caplog):
    caplog.set_level(logging.INFO)

    async def late(scope, receive, send):
        scope["state"]["spent"] = (0.5, 0.25)
        raise DeadlineExceeded("late")

    said = dict(ask(late)[0]["headers"])[b"server-timing"]
    assert re.fullmatch(rb"queue;dur=500\.000, infer;dur=250\.000, " + TOTAL, said)
    assert (vars(caplog.records[-1])["queue_ms"], vars(caplog.records[-1])["infer_ms"]) == (500, 250)


@pytest.mark.parametrize("error", [NotFound("no"), DeadlineExceeded("late"), TooManyRequests("full"), KeyError("bug")])
def test_an_error_says_how_long_it_took_to_come(error):
    async def failing(scope, receive, send):
        await asyncio.sleep(0.02)
        raise error

    (said,) = [value for name, value in ask(failing)[0]["headers"] if name == b"server-timing"]
    assert re.fullmatch(TOTAL, said)
    # Timers may be early by their resolution.
    assert float(said.split(b"=")[1]) > 15


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", plain_body(rows_of("classes", 2))),
        ("/v1/models/house/predict", plain_body(rows_of("house", 1))),
        ("/v2/models/pair/infer", v2_body(rows_of("pair", 3))),
    ],
)
def test_the_real_service_tells_the_times_of_an_inference(client, path, body):
    reply = client.post(path, json=body)
    names = re.findall(r"(\w+);dur=([\d.]+)", reply.headers["Server-Timing"])
    assert [name for name, _ in names] == ["queue", "infer", "total"]
    queue, infer, total = (float(value) for _, value in names)
    assert infer > 0
    assert queue + infer <= total
    for other in (client.get("/v2"), client.post(path, json={"inputs": []}), client.get("/no"), client.get("/metrics")):
        assert re.fullmatch(TOTAL, other.headers["Server-Timing"].encode())


@pytest.mark.parametrize("given", ["abc.DEF-1_2", "x" * 64])
def test_the_real_service_echoes_what_is_harmless(client, given):
    assert client.get("/v2", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given
    assert client.post("/nothing", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", [b"a b", b"a\tb", b"\xc3\xa4", b"x" * 65, b"a%0d%0aset-cookie:x", b"../../etc"])
def test_the_real_service_echoes_nothing_else(service, given):
    _, headers, _ = service.raw(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\nx-request-id: " + given + b"\r\n\r\n")
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
    assert "set-cookie" not in headers
