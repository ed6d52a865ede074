"""The protocol's extension ``statistics``: what each loaded version did, and how long that took."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.routes.common import json_response, service_of
from app.states import model_states

# To be included before the routes of models, or "stats" would be taken for the name of one.
router = APIRouter(prefix="/v2/models", tags=["Open Inference Protocol (V2)"])


@router.get("/stats", summary="Statistics of every loaded model")
async def every_model(request: Request) -> Response:
    return _statistics(request)


@router.get("/{name}/stats", summary="Statistics of a model's loaded versions")
async def model(request: Request, name: str) -> Response:
    return _statistics(request, name)


@router.get("/{name}/versions/{version}/stats", summary="Statistics of a version")
async def model_version(request: Request, name: str, version: str) -> Response:
    return _statistics(request, name, version)


def _statistics(request: Request, name: str | None = None, version: str | None = None) -> Response:
    service = service_of(request)
    if name is not None:
        # Says what is wrong where there is none.
        service.repository.ready_model(name, version)
    keys = [
        (state.name, state.version)
        for state in model_states(service.repository, service.variants)
        if state.ready and name in (None, state.name) and version in (None, state.version)
    ]
    return json_response(service.metrics.statistics.document(keys))
