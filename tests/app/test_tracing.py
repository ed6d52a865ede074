"""Traces: off and not even imported unless they are asked for, and right where they are."""

from __future__ import annotations

import asyncio
import http.server
import json
import shutil
import subprocess
import sys
import threading

import pytest

from app.errors import NotFound
from app.metrics import Metrics
from app.middleware import Observation
from app.tracing import Tracing, TracingError, from_environment
from tests.app.support import MEMBERS, ROOT, clean_environment, command, plain_body, rows_of, serving

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "my-id"}


class Kept:
    """Tracing whose spans are kept in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(SimpleSpanProcessor(self.exporter))

    def spans(self) -> dict[str, object]:
        found = self.exporter.get_finished_spans()
        assert len({span.name for span in found}) == len(found)
        return {span.name: span for span in found}


@pytest.fixture
def kept(monkeypatch):
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)
    return Kept()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:1"},
    ],
)
def test_it_is_off_unless_the_environment_asks(environment):
    assert from_environment(environment) is None


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, r"OTEL_TRACES_EXPORTER must be otlp, console or none, however: 'zipkin'"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            r"OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, however: 'grpc'",
        ),
    ],
)
def test_what_it_cannot_do_is_said(environment, text):
    with pytest.raises(TracingError, match=text):
        from_environment(environment)


def test_the_sdk_is_not_imported_while_traces_are_off():
    code = (
        "import sys; from app.server import create_app; from app import tracing; assert tracing.from_environment() is "
        "None; heavy = ('opentelemetry.sdk', 'opentelemetry.exporter'); "
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    environment = {k: v for k, v in clean_environment().items() if not k.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_without_the_packages_the_service_does_not_start_and_says_why(models, tmp_path):
    # A module that cannot be imported stands before the real one.
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text(
        "from pkgutil import extend_path\n__path__ = [p for p in extend_path(__path__, __name__)]\n"
    )
    (tmp_path / "opentelemetry" / "sdk").mkdir()
    (tmp_path / "opentelemetry" / "sdk" / "__init__.py").write_text("raise ImportError('not installed')")
    done = command(
        "serve", "--models", models, "--port", "0",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", PYTHONPATH=f"{tmp_path}:{ROOT}",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("ensembled serve: the environment asks for OpenTelemetry traces")
    assert "install ensembled[otel]" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_inference_has_a_span_for_the_request_the_wait_and_the_call(running, models, kept, monkeypatch):
    monkeypatch.setattr("app.tracing.from_environment", lambda: kept.tracing)

    async def main():
        async with running(models=models) as client:
            reply = await client.post("/v1/models/house/predict", json=plain_body(rows_of("house", 3)), headers=HEADERS)
            assert reply.status_code == 200
            return await client.get("/v2/health/ready")

    assert asyncio.run(main()).status_code == 200
    spans = kept.spans()
    # Health is asked too often to be of interest.
    assert set(spans) == {"POST /v1/models/{name}/predict", "queue", "inference"}
    request, queue, inference = (spans[name] for name in ("POST /v1/models/{name}/predict", "queue", "inference"))
    assert request.kind is SpanKind.SERVER
    assert format(request.context.trace_id, "032x") == TRACE
    assert format(request.parent.span_id, "016x") == PARENT
    assert request.attributes["http.request.method"] == "POST"
    assert request.attributes["ensembled.request_id"] == "my-id"
    assert request.attributes["http.route"] == "/v1/models/{name}/predict"
    assert request.attributes["http.response.status_code"] == 200
    assert request.status.status_code is StatusCode.UNSET
    about = {"ensembled.model": "house", "ensembled.version": "1", "ensembled.rows": 3, "ensembled.members": MEMBERS}
    for span in (request, queue, inference):
        assert about.items() <= span.attributes.items()
    for span in (queue, inference):
        assert span.parent.span_id == request.context.span_id
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    assert queue.end_time == inference.start_time
    assert inference.end_time > inference.start_time
    assert request.resource.attributes["service.name"] == "ensembled"


def test_an_error_of_the_service_is_one_in_the_trace_and_that_of_a_client_is_not(kept):
    def ask(error):
        async def broken(scope, receive, send):
            raise error

        async def send(message):
            pass

        scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
        asyncio.run(Observation(broken, Metrics(), kept.tracing)(scope, None, send))
        (span,) = kept.exporter.get_finished_spans()
        kept.exporter.clear()
        return span

    assert ask(RuntimeError("secret")).status.status_code is StatusCode.ERROR
    lost = ask(NotFound("no"))
    assert lost.status.status_code is StatusCode.UNSET
    assert lost.attributes["http.response.status_code"] == 404
    assert lost.parent is None


def test_what_the_caller_does_not_sample_is_not_kept(kept):
    span = kept.tracing.begin("GET", "/x", "id", {"traceparent": f"00-{TRACE}-{PARENT}-00"})
    kept.tracing.end(span, "/x", 200, {})
    assert kept.spans() == {}


def test_the_name_of_the_service_can_be_chosen(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    kept = Kept()
    kept.tracing.end(kept.tracing.begin("GET", "/x", "id", {}), "/x", 200, {})
    assert kept.spans()["GET /x"].resource.attributes["service.name"] == "mine"


def test_a_collector_that_does_not_answer_does_not_keep_the_service_from_ending(monkeypatch):
    monkeypatch.setattr("app.tracing._PATIENCE", 0.01)
    free = threading.Event()

    class Hanging(SimpleSpanProcessor):
        def shutdown(self):
            free.wait()

    tracing = Tracing(Hanging(InMemorySpanExporter()))
    tracing.close()
    assert not free.is_set()
    free.set()


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans as an OpenTelemetry collector does."""

    received: list[bytes]

    def do_POST(self):
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_real_service_sends_its_spans_before_it_ends_and_its_log_names_the_trace(models, tmp_path):
    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Collector,), {"received": []}))
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        shutil.copytree(models / "house", tmp_path / "models" / "house")
        settings = ("--models", tmp_path / "models", "--log-format", "json")
        with serving(tmp_path / "log", *settings, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as server:
            server.wait_ready()
            reply = server.post("/v1/models/house/predict", json=plain_body(rows_of("house", 1)))
            assert reply.status_code == 200
            assert server.stop() == 0
            events = [json.loads(line) for line in server.text().splitlines()]
    finally:
        collector.shutdown()
        collector.server_close()
    sent = b"".join(collector.RequestHandlerClass.received)
    # A string of protobuf is its own bytes.
    assert b"inference" in sent
    assert b"POST /v1/models/{name}/predict" in sent
    (line,) = [event for event in events if event["message"] == "POST /v1/models/house/predict"]
    assert bytes.fromhex(line["trace_id"]) in sent
