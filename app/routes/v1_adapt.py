"""Adaptation, in the plain API: examples in, the answers of a model that is adapted to them out."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request, Response

from app.adaptation import Adaptation, Kept
from app.protocol import InferRequest, decode_predict, encode_predict
from app.protocol.plain_adaptation import decode_adapt
from app.routes.common import ask, body_of, chosen_model, details_of, json_response, service_of, timeout_of
from app.served import Served

router = APIRouter(prefix="/v1", tags=["Adaptation"])


@router.post("/models/{name}/adapt", summary="Adapt a model to examples, and ask what came of it")
async def adapt(request: Request, name: str) -> Response:
    return await _adapt(request, name)


@router.post("/models/{name}/versions/{version}/adapt", summary="Adapt a version of a model to examples")
async def adapt_version(request: Request, name: str, version: str) -> Response:
    return await _adapt(request, name, version)


@router.post("/adapted/{handle}/predict", summary="Ask an adapted model that was kept")
async def predict(request: Request, handle: str) -> Response:
    adaptation = _adaptation(request)
    _, model = _found(request, handle)
    about = adaptation.of(model)
    asked = decode_predict(
        await body_of(request),
        model.inputs,
        about.outputs,
        about.defaults,
        most_members=about.members,
        timeout=timeout_of(request),
    )
    return await _answer(request, model, replace(asked, adapted=handle))


@router.get("/adapted/{handle}", summary="An adapted model that was kept")
async def describe(request: Request, handle: str) -> Response:
    adaptation = _adaptation(request)
    kept, model = _found(request, handle)
    return json_response({"model": model.name, "version": model.version, **adaptation.described(kept)})


@router.delete("/adapted/{handle}", summary="Forget an adapted model")
async def forget(request: Request, handle: str) -> Response:
    _adaptation(request).store.remove(handle)
    return json_response({})


async def _adapt(request: Request, name: str, version: str | None = None) -> Response:
    adaptation = _adaptation(request)
    model = chosen_model(request, name, version)
    asked = decode_adapt(await body_of(request), adaptation.of(model), timeout=timeout_of(request))
    return await _answer(request, model, asked)


async def _answer(request: Request, model: Served, asked: InferRequest) -> Response:
    answer = await ask(request, model, asked)
    body = encode_predict(model.name, model.version, asked, answer.arrays, details_of(model, answer))
    return Response(body, media_type="application/json")


def _adaptation(request: Request) -> Adaptation:
    adaptation = service_of(request).adaptation
    adaptation.check_permitted()
    return adaptation


def _found(request: Request, handle: str) -> tuple[Kept[Served], Served]:
    kept, model = _adaptation(request).store.find(handle)
    request.state.model, request.state.version = model.name, model.version
    return kept, model
