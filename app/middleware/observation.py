"""What is seen of every request: its id, a line in the log, the metrics; and the last net under exceptions."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InternalError, ServiceError, Unavailable
from app.logs import request_id, trace_id
from app.metrics import Metrics
from app.middleware.answer import send_error
from app.tracing import Tracing

log = logging.getLogger("app.access")

# Echoed and logged, hence an allow-list.
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# W3C's traceparent: version, trace, span, flags.
_TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACED = (b"traceparent", b"tracestate")
_LONGEST_PATH = 200
# Asked every few seconds by whatever watches the service.
_QUIET = ("/v2/health/", "/metrics")


class Observation:
    """Gives each request an id (the client's own X-Request-ID where it is harmless), and sends it back.

    Every answer says in ``Server-Timing`` how many milliseconds passed since its head was read (``total``); that of an
    inference, or of one whose deadline passed, also how many it waited (``queue``) and its call took (``infer``).

    Args:
        tracing: makes a span of each request.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self.app = app
        self.metrics = metrics
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        number, trace = _identity(scope)
        # Whatever is mounted below may change the scope's own.
        path, state = scope["path"], scope.setdefault("state", {})
        state["received_at"] = begun
        quiet = path.startswith(_QUIET)
        span = None
        if self.tracing is not None and not quiet:
            span = self.tracing.begin(scope["method"], path[:_LONGEST_PATH], number, _traced(scope))
            trace = format(span.get_span_context().trace_id, "032x")
        tokens = request_id.set(number), trace_id.set(trace)
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                now = time.perf_counter()
                if "answer" in state:
                    state["encoded"] = now - state["answered_at"]
                timing = _timing(state.get("spent"), now - begun)
                headers = ((b"x-request-id", number.encode()), (b"server-timing", timing))
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        self.metrics.request_begun()
        try:
            await self.app(scope, receive, observed)
        except asyncio.CancelledError:
            if status:
                raise
            # The time for stopping has run out, and what is not complete was never accepted.
            await send_error(
                scope, receive, observed, Unavailable("the service is shutting down; ask another instance")
            )
        except Exception as error:
            if status:
                raise
            answer = error if isinstance(error, ServiceError) else InternalError(number)
            if answer.status == 500:
                log.exception("internal error")
            await send_error(scope, receive, observed, answer)
        finally:
            seconds = time.perf_counter() - begun
            # The route's pattern and a loaded model's name, so that clients cannot invent labels.
            route = getattr(scope.get("route"), "path", None) or scope.get("root_path") or "other"
            self.metrics.request_done(route, status, seconds, state)
            if span is not None and self.tracing is not None:
                self.tracing.end(span, route, status, state)
            level = logging.DEBUG if quiet else logging.INFO
            if log.isEnabledFor(level):
                log.log(level, "%s %s", scope["method"], path[:_LONGEST_PATH], extra=_told(status, seconds, state))
            request_id.reset(tokens[0])
            trace_id.reset(tokens[1])


def _identity(scope: Scope) -> tuple[str, str | None]:
    """The request's id, and that of the trace which it is part of."""
    number, trace = None, None
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            number = given if _ID.fullmatch(given) else None
        elif name == b"traceparent" and (found := _TRACE.fullmatch(value.decode("latin-1"))):
            trace = found[1]
    # No secret, so that the system need not be asked for it.
    return number or f"{random.getrandbits(128):032x}", trace


def _traced(scope: Scope) -> dict[str, str]:
    return {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _TRACED}


def _timing(spent: tuple[float, float] | None, seconds: float) -> bytes:
    total = b"total;dur=%.3f" % (1000 * seconds)
    if spent is None:
        return total
    queued, computed = spent
    return b"queue;dur=%.3f, infer;dur=%.3f, %b" % (1000 * queued, 1000 * computed, total)


def _told(status: int, seconds: float, state: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request's line in the log."""
    fields: dict[str, Any] = {"status": status, "ms": round(1000 * seconds, 2)}
    fields |= {key: state[key] for key in ("model", "version", "rows", "members") if key in state}
    if (spent := state.get("spent")) is not None:
        queued, computed = spent
        fields |= {"queue_ms": round(1000 * queued, 2), "infer_ms": round(1000 * computed, 2)}
    return fields
