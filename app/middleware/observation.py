"""What is seen of every request: its id, a line in the log, the metrics; and the last net under exceptions."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InternalError, ServiceError, Unavailable
from app.logs import request_id
from app.metrics import Metrics
from app.middleware.answer import send_error

log = logging.getLogger("app.access")

# Echoed and logged, hence an allow-list.
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Asked every few seconds by whatever watches the service.
_QUIET = ("/v2/health/", "/metrics")


class Observation:
    """Gives each request an id (the client's own X-Request-ID where it is harmless), and sends it back."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        number = given if _ID.fullmatch(given) else uuid.uuid4().hex
        token = request_id.set(number)
        begun = time.perf_counter()
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = number
            await send(message)

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
            self._note(scope, status, time.perf_counter() - begun)
            request_id.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's pattern and a loaded model's name, so that clients cannot invent labels.
        route = scope.get("route")
        path = getattr(route, "path", None) or scope.get("root_path") or "other"
        model = scope.get("state", {}).get("model", "")
        self.metrics.requests.labels(path, model, str(status)).inc()
        self.metrics.request_seconds.labels(path).observe(seconds)
        log.log(
            logging.DEBUG if scope["path"].startswith(_QUIET) else logging.INFO,
            "%s %s",
            scope["method"],
            scope["path"][:200],
            extra={"status": status, "ms": round(1000 * seconds, 2)},
        )
