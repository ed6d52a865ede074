"""Both formats, as they are written and as the real service writes them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys

import pytest

from app import logs
from app.metrics import Metrics
from tests.app.support import MEMBERS, plain_body, rows_of, serving

HOSTILE = "a\r\nb\x1b[31m\x00\x7f\x85\x9b\u2028\u202e\ud800\ttab"


def record(message: str = "hello %s", *args: object, error: bool = False, **extra: object) -> logging.LogRecord:
    info = None
    if error:
        try:
            raise ValueError("oh")
        except ValueError:
            info = sys.exc_info()
    made = logging.LogRecord("app.x", logging.WARNING, __file__, 1, message, args or ("you",), info)
    made.__dict__.update(extra)
    return made


def test_json_is_one_object_a_line_with_the_fields_beside():
    line = logs.JsonFormatter().format(record(status=200, ms=1.5, other={1}))
    event = json.loads(line)
    assert event["message"] == "hello you"
    assert (event["level"], event["logger"], event["status"], event["ms"]) == ("warning", "app.x", 200, 1.5)
    assert event["other"] == "{1}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
    assert "request_id" not in event


def test_both_formats_know_the_trace():
    token = logs.trace_id.set("4bf9")
    try:
        assert json.loads(logs.JsonFormatter().format(record()))["trace_id"] == "4bf9"
        assert logs.TextFormatter().format(record()).endswith(" warning hello you trace_id=4bf9")
    finally:
        logs.trace_id.reset(token)


def test_both_formats_know_the_request():
    token = logs.request_id.set("abc")
    try:
        assert json.loads(logs.JsonFormatter().format(record()))["request_id"] == "abc"
        assert logs.TextFormatter().format(record()).endswith(" warning hello you request_id=abc")
    finally:
        logs.request_id.reset(token)


@pytest.mark.parametrize("formatter", [logs.JsonFormatter(), logs.TextFormatter()])
def test_what_a_client_sent_can_neither_begin_a_line_nor_steer_a_terminal(formatter):
    line = formatter.format(record("path %s", HOSTILE, field=HOSTILE))
    assert len(line.splitlines()) == 1
    assert line.encode()
    assert all(character.isprintable() for character in line)


def test_json_gives_it_back_as_it_was():
    event = json.loads(logs.JsonFormatter().format(record("path %s", HOSTILE)))
    assert event["message"] == f"path {HOSTILE}"


def test_an_exception_is_told():
    assert "ValueError: oh" in json.loads(logs.JsonFormatter().format(record(error=True)))["exception"]
    assert logs.TextFormatter().format(record(error=True)).splitlines()[-1] == "ValueError: oh"


def test_text_of_other_languages_stays_readable():
    assert "naïve 数字" in logs.TextFormatter().format(record("naïve %s", "数字"))


def test_the_real_service_logs_json_that_parses_line_by_line_with_ids_and_without_bodies(service, client):
    client.post("/predict", json={"inputs": "the-secret-body"}, headers={"X-Request-ID": "my-id-1"})
    client.get("/nothing%0d%0a%1b%5b31m%e2%80%a8?the-secret-query=1", headers={"X-Request-ID": "my-id-2"})
    client.post("/predict", content=b'{"inputs": [["the-secret-value"]]}', headers={"Authorization": "the-secret-key"})
    events = [json.loads(line) for line in service.text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= event.keys() for event in events)
    found = {event["request_id"]: event for event in events if "request_id" in event}
    assert found["my-id-1"]["message"] == "POST /predict"
    assert found["my-id-1"]["status"] == 400
    assert found["my-id-1"]["ms"] >= 0
    assert found["my-id-2"]["message"] == "GET /nothing\r\n\x1b[31m\u2028"
    assert "the-secret" not in service.text()


def test_every_line_of_a_request_has_its_id_and_its_trace(service, client):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"X-Request-ID": "my-id-3", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    client.post("/v1/models/house/predict", json=plain_body(rows_of("house", 2)), headers=headers)
    wrong = {"inputs": {"features": [[0, 0, 0, 0]], "tokens": [[0, 99]]}}
    client.post("/v1/models/pair/predict", json=wrong, headers=headers | {"X-Request-ID": "my-id-4"})
    events = [json.loads(line) for line in service.text().splitlines()]
    (good,) = [event for event in events if event.get("request_id") == "my-id-3"]
    assert (good["trace_id"], good["model"], good["version"], good["rows"]) == (trace, "house", "1", 2)
    assert good["members"] == MEMBERS
    assert good["queue_ms"] >= 0
    assert 0 < good["infer_ms"] <= good["ms"]
    bad = [event for event in events if event.get("request_id") == "my-id-4"]
    assert bad[-1]["status"] == 400
    assert all(event["trace_id"] == trace for event in bad)


def test_what_concerns_many_requests_is_logged_under_the_id_of_none(running, models, monkeypatch):
    seen = []
    monkeypatch.setattr(Metrics, "batch_done", lambda *_, **__: seen.append(logs.request_id.get()))

    async def main():
        async with running(models=models) as client:
            # The first one wakes the batcher; the others come while it is awake.
            asked = [
                client.post(
                    "/v1/models/house/predict", json=plain_body(rows_of("house", 1)), headers={"X-Request-ID": i}
                )
                for i in "abcd"
            ]
            return [reply.status_code for reply in await asyncio.gather(*asked)]

    assert asyncio.run(main()) == [200] * 4
    assert seen
    assert set(seen) == {None}


def test_the_real_service_logs_text_without_control_characters(models, tmp_path):
    with serving(tmp_path / "log", "--models", models, "--log-level", "debug") as server:
        server.wait_ready()
        server.get("/evil%0d%0a00:00:00%20info%20forged%1b%5b31m%c2%9b", headers={"X-Request-ID": "bad id"})
        server.post("/v1/models/house/predict", json=plain_body(rows_of("house", 1)), headers={"X-Request-ID": "ok-1"})
        assert server.stop() == 0
        text = server.text()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert all(re.match(r"\d\d:\d\d:\d\d (debug|info|warning|error) ", line) for line in text.splitlines())
    assert "forged" in next(line for line in text.splitlines() if "GET /evil" in line)
    assert "POST /v1/models/house/predict status=200" in text
    assert "request_id=ok-1" in text
    assert "bad id" not in text
    assert text.splitlines()[-1].endswith("stopped")
