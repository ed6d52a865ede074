"""What the routes of both protocols share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from app.batching import Answer
from app.errors import ClientGone, DeadlineExceeded
from app.protocol import TIMEOUT_HEADER, InferRequest, parse_timeout
from app.routes.gone import unless_gone
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
    request.state.version = model.version
    return model


async def body_of(request: Request) -> bytes:
    """The whole body; its size is capped by the middleware."""
    try:
        body = await request.body()
    except ClientDisconnect:
        raise ClientGone("the client went away before its request was complete") from None
    request.state.read_at = time.perf_counter()
    return body


def timeout_of(request: Request) -> float | None:
    """Seconds that the request's header allows; None if it does not say."""
    return parse_timeout(request.headers.get(TIMEOUT_HEADER))


async def ask(request: Request, model: Served, asked: InferRequest) -> Answer:
    """The model's answer, noted with what was asked for the log, the metrics, the traces and the headers."""
    state = request.state
    state.decoded = time.perf_counter() - state.read_at
    state.rows, state.asked_at = asked.rows, time.time_ns()
    arrived = getattr(state, "received_at", state.read_at)
    waiting = service_of(request).answer(model, asked, arrived=arrived)
    try:
        answer = await unless_gone(request.receive, waiting)
    except DeadlineExceeded as late:
        state.spent = late.spent
        raise
    state.answered_at = time.perf_counter()
    state.members = len(model.ensemble) if answer.members is None else answer.members
    state.answer, state.spent = answer, (answer.queued, answer.computed)
    return answer


def details_of(model: Served, answer: Answer) -> dict[str, Any]:
    """What an answer says so that it can be replayed, and of which rows some output is no finite number."""
    details = dict(model.details)
    for name, value in answer.details.items():
        # None takes away what is the model's own.
        if value is None:
            details.pop(name, None)
        else:
            details[name] = value
    if answer.members is not None:
        details["members"] = answer.members
    if answer.non_finite_rows:
        details["non_finite_rows"] = list(answer.non_finite_rows)
    return details


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Plain JSON."""
    return Response(orjson.dumps(document), status_code=status, headers=headers, media_type="application/json")
