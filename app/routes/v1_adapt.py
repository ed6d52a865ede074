"""Adaptation, in the plain API: examples in, the answers of a model that is adapted to them out."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response

from app.adaptation import Adaptation, Adapted
from app.batching import Answer
from app.kept import Kept
from app.protocol import decode_predict, encode_predict
from app.protocol.adaptation import decode_adapt
from app.routes.common import body_of, chosen_model, details_of, json_response, service_of, timeout_of
from app.routes.gone import unless_gone
from app.served import Served

router = APIRouter(prefix="/v1", tags=["Adaptation"])

T = TypeVar("T")


@router.post("/models/{name}/adapt", summary="Adapt a model to examples, and ask what came of it")
async def adapt(request: Request, name: str) -> Response:
    return await _adapt(request, name)


@router.post("/models/{name}/versions/{version}/adapt", summary="Adapt a version of a model to examples")
async def adapt_version(request: Request, name: str, version: str) -> Response:
    return await _adapt(request, name, version)


@router.post("/adapted/{handle}/predict", summary="Ask an adapted model that was kept")
async def predict(request: Request, handle: str) -> Response:
    adaptation = _adaptation(request)
    kept, model = _found(request, handle)
    about = adaptation.about(model)
    asked = decode_predict(
        await body_of(request),
        model.inputs,
        about.outputs,
        about.defaults,
        most_members=about.members,
        timeout=timeout_of(request),
    )
    answer = await _wait(request, asked.rows, adaptation.ask(kept, model, asked, _arrived(request)))
    _note(request, model, answer)
    details = details_of(model, answer) | {"adapted": _described(adaptation, kept)}
    return Response(
        encode_predict(model.name, model.version, asked, answer.arrays, details), media_type="application/json"
    )


@router.get("/adapted/{handle}", summary="An adapted model that was kept")
async def describe(request: Request, handle: str) -> Response:
    adaptation = _adaptation(request)
    kept, model = _found(request, handle)
    return json_response({"model": model.name, "version": model.version, **_described(adaptation, kept)})


@router.delete("/adapted/{handle}", summary="Forget an adapted model")
async def forget(request: Request, handle: str) -> Response:
    _adaptation(request).store.remove(handle)
    return json_response({})


async def _adapt(request: Request, name: str, version: str | None = None) -> Response:
    adaptation = _adaptation(request)
    model = chosen_model(request, name, version)
    asked = decode_adapt(
        await body_of(request), adaptation.about(model), adaptation.limits, timeout=timeout_of(request)
    )
    found: Adapted = await _wait(request, asked.query.rows, adaptation.adapt(model, asked, _arrived(request)))
    _note(request, model, found.answer)
    details = details_of(model, found.answer)
    details["adaptation"] = {
        "steps": asked.steps,
        "learning_rate": asked.learning_rate,
        "loss": asked.loss,
        "loss_before": found.before,
        "loss_after": found.after,
    }
    if found.kept is not None:
        details["adapted"] = _described(adaptation, found.kept)
    body = encode_predict(model.name, model.version, asked.query, found.answer.arrays, details)
    return Response(body, media_type="application/json")


def _adaptation(request: Request) -> Adaptation:
    adaptation = service_of(request).adaptation
    adaptation.check_permitted()
    return adaptation


def _found(request: Request, handle: str) -> tuple[Kept[Served], Served]:
    kept, model = _adaptation(request).store.find(handle)
    request.state.model, request.state.version = model.name, model.version
    return kept, model


def _described(adaptation: Adaptation, kept: Kept[Served]) -> dict[str, Any]:
    return {
        "handle": kept.handle,
        "expires_in_seconds": round(adaptation.store.seconds_left(kept), 3),
        "bytes": kept.nbytes,
    }


def _arrived(request: Request) -> float:
    state = request.state
    return float(getattr(state, "received_at", state.read_at))


async def _wait(request: Request, rows: int, answer: Awaitable[T]) -> T:
    state = request.state
    state.decoded = time.perf_counter() - state.read_at
    state.rows, state.asked_at = rows, time.time_ns()
    return await unless_gone(request.receive, answer)


def _note(request: Request, model: Served, answer: Answer) -> None:
    """For the log, the metrics and the headers."""
    state = request.state
    state.answered_at = time.perf_counter()
    state.members = len(model.ensemble) if answer.members is None else answer.members
    state.answer = answer
