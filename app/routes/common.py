"""What the routes of both protocols share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from app.batching import Answer
from app.errors import BadRequest
from app.protocol import TIMEOUT_HEADER, parse_timeout
from app.served import Served
from app.service import Service


def service_of(request: Request) -> Service:
    """The service that an application was made for."""
    service: Service = request.app.state.service
    return service


def chosen_model(request: Request, name: str | None = None, version: str | None = None) -> Served:
    """The ready model that a request is for, noted for the log and the metrics."""
    model = service_of(request).repository.ready_model(name, version)
    request.state.model = model.name
    return model


async def body_of(request: Request) -> bytes:
    """The whole body; its size is capped by the middleware."""
    try:
        return await request.body()
    except ClientDisconnect:
        raise BadRequest("the client went away before its request was complete") from None


def timeout_of(request: Request) -> float | None:
    """Seconds that the request's header allows; None if it does not say."""
    return parse_timeout(request.headers.get(TIMEOUT_HEADER))


def details_of(model: Served, answer: Answer) -> dict[str, Any]:
    """What an answer says so that it can be replayed; ``members`` is how many were evaluated."""
    return model.details if answer.members is None else {**model.details, "members": answer.members}


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Plain JSON."""
    return Response(orjson.dumps(document), status_code=status, headers=headers, media_type="application/json")
