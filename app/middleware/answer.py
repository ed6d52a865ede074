"""How an error is answered, wherever it was raised."""

from __future__ import annotations

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import ServiceError


def error_response(scope: Scope, error: ServiceError) -> Response:
    """``{"error": text}`` with the status and headers of the error's class; why it is refused is noted in its state."""
    if error.reason is not None:
        scope.setdefault("state", {})["refused"] = error.reason
    return Response(
        orjson.dumps(error.body()), status_code=error.status, headers=error.headers, media_type="application/json"
    )


async def send_error(scope: Scope, receive: Receive, send: Send, error: ServiceError) -> None:
    """Answer from a middleware."""
    await error_response(scope, error)(scope, receive, send)
