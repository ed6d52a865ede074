"""The protocol's extension ``model_repository``: which models there are, and loading and unloading them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from app.errors import BadRequest, Forbidden
from app.protocol.document import parse_json
from app.protocol.wording import describe, quote
from app.routes.common import body_of, json_response, service_of

router = APIRouter(prefix="/v2/repository", tags=["Models"])
# By itself, since it may have a port of its own.
management = APIRouter(prefix="/v2/repository", tags=["Models"])

_OFF = (
    "loading and unloading models is switched off; start the service with --management (ENSEMBLED_MANAGEMENT=1), "
    "behind a key if others can reach it"
)


@router.post("/index", summary="Models that are there, and their state")
async def index(request: Request) -> Response:
    asked = await _document(request)
    only_ready = asked.get("ready")
    if only_ready is not None and not isinstance(only_ready, bool):
        raise BadRequest(f"ready must be true or false, however: {describe(only_ready)}")
    return json_response([state for state in states(request) if not only_ready or state["state"] == "READY"])


@management.post("/models/{name}/load", summary="Load a model, or what has changed of it")
async def load(request: Request, name: str) -> Response:
    _permitted(request)
    if given := await _parameters(request):
        raise BadRequest(
            "a model is loaded as it lies in the directory of models, so load takes no parameters, however: "
            f"{quote(next(iter(given)))}"
        )
    await service_of(request).repository.load(name)
    return json_response({})


@management.post("/models/{name}/unload", summary="Stop serving a model")
async def unload(request: Request, name: str) -> Response:
    _permitted(request)
    # No model of this service depends on another.
    if given := [key for key in await _parameters(request) if key != "unload_dependents"]:
        raise BadRequest(f"unload takes the parameter unload_dependents only, however: {quote(given[0])}")
    await service_of(request).repository.unload(name)
    return json_response({})


def states(request: Request) -> list[dict[str, str]]:
    """Every version that is served or should be."""
    entries = service_of(request).repository.entries.values()
    return [{"name": e.name, "version": e.version, "state": e.state, "reason": e.reason} for e in entries]


def _permitted(request: Request) -> None:
    if not service_of(request).settings.management:
        raise Forbidden(_OFF)


async def _parameters(request: Request) -> dict[str, Any]:
    given = (await _document(request)).get("parameters")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise BadRequest(f"parameters must be an object, however: {describe(given)}")
    return given


async def _document(request: Request) -> dict[str, Any]:
    body = await body_of(request)
    return parse_json(body) if body else {}
