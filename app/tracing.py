"""OpenTelemetry traces of requests.

They are off, and OpenTelemetry's SDK is not imported, unless the standard environment asks for them: one of
``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` and ``OTEL_TRACES_EXPORTER`` is set. Everything
else (headers, sampling, batches, resource attributes) is read by the SDK from the same environment.

A request is a span of kind server; below it stand ``queue``, in which it waited, and ``inference``, its call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOL = "http/protobuf"
# Seconds that the last spans get to be sent when the service ends.
_PATIENCE = 5.0


class TracingError(Exception):
    """Traces are asked for and cannot be sent; the text says what to do."""


def from_environment(environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Tracing as the environment asks for it; None if it does not.

    Raises:
        TracingError: the packages are not installed, or it asks for what is not there.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    asked = exporter or any(environment.get(name) for name in _ENDPOINTS)
    if not asked or exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if exporter not in ("", "otlp", "console"):
        raise TracingError(f"OTEL_TRACES_EXPORTER must be otlp, console or none, however: {exporter!r}")
    protocol = (
        environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
    )
    if exporter != "console" and protocol not in ("", _PROTOCOL):
        raise TracingError(f"OTEL_EXPORTER_OTLP_PROTOCOL must be {_PROTOCOL}, however: {protocol!r}")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError as error:
        raise TracingError(
            "the environment asks for OpenTelemetry traces, and their packages are not installed; install "
            "ensembled[otel], or set OTEL_TRACES_EXPORTER=none"
        ) from error
    return Tracing(BatchSpanProcessor(ConsoleSpanExporter() if exporter == "console" else OTLPSpanExporter()))


class Tracing:
    """Makes the spans of requests.

    Args:
        processor: is given every span that has ended.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({SERVICE_VERSION: VERSION})
        if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "ensembled"}))
        # Of its own, not the process's: whatever else watches that one would make every span a second time.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("ensembled", VERSION)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, path: str, request_id: str, headers: Mapping[str, str]) -> Span:
        """A request has come.

        Args:
            request_id: under which the log knows it.
            headers: ``traceparent`` and ``tracestate``, as far as the client sent them.
        """
        from opentelemetry.trace import SpanKind

        return self._tracer.start_span(
            method,
            context=self._propagator.extract(dict(headers)),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "url.path": path, "ensembled.request_id": request_id},
        )

    def end(self, span: Span, route: str, status: int, state: Mapping[str, Any]) -> None:
        """It was answered.

        Args:
            route: the pattern of its path.
            status: 0 if the client went away before.
            state: what the route noted: ``model``, ``version``, and of an inference ``rows``, ``asked_at``
                (nanoseconds since the epoch) and ``answer``.
        """
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        if not span.is_recording():
            return
        span.set_attribute("http.route", route)
        if status:
            span.set_attribute("http.response.status_code", status)
            # The interface has no attributes to read; the SDK's spans, which record, have.
            recorded: Any = span
            span.update_name(f"{recorded.attributes['http.request.method']} {route}")
        if status >= 500 or not status:
            span.set_status(Status(StatusCode.ERROR))
        about = {f"ensembled.{key}": state[key] for key in ("model", "version", "rows", "members") if key in state}
        span.set_attributes(about)
        if (answer := state.get("answer")) is not None:
            inside = set_span_in_context(span)
            taken = state["asked_at"] + round(answer.queued * 1e9)
            self._tracer.start_span("queue", inside, attributes=about, start_time=state["asked_at"]).end(taken)
            done = taken + round(answer.computed * 1e9)
            self._tracer.start_span("inference", inside, attributes=about, start_time=taken).end(done)
        span.end()

    def close(self) -> None:
        """Send what has not been sent, for a few seconds at most. To be called away from the event loop."""
        # A collector that cannot be reached must not keep the process from ending.
        sending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(_PATIENCE)
