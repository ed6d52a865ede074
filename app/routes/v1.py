"""The plain API for people: rows in, named numbers out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from app.protocol import decode_predict, encode_predict, explain_plain_options
from app.routes.common import ask, body_of, chosen_model, details_of, json_response, service_of, timeout_of
from app.routes.v2 import metadata
from app.routes.v2_repository import states

router = APIRouter(tags=["Plain"])


@router.post("/predict", summary="Ask the default model")
async def predict_default(request: Request) -> Response:
    return await _predict(request)


@router.post("/v1/models/{name}/predict", summary="Ask a model")
async def predict(request: Request, name: str) -> Response:
    return await _predict(request, name)


@router.post("/v1/models/{name}/versions/{version}/predict", summary="Ask a version of a model")
async def predict_with_version(request: Request, name: str, version: str) -> Response:
    return await _predict(request, name, version)


@router.get("/v1/models", summary="Every model and its state, and which one answers where none is named")
async def models(request: Request) -> Response:
    return json_response({"default": service_of(request).repository.default, "models": states(request)})


@router.get("/v1/models/{name}", summary="All that is known of a model")
async def describe(request: Request, name: str) -> Response:
    model = chosen_model(request, name)
    made = model.ensemble
    recipe = made.origin.recipe
    variants = service_of(request).variants.of(model)
    explained = explain_plain_options(len(made), model.confidence_level)
    about: dict[str, Any] = {
        **metadata(request, model, explained | variants.bringable.explain_plain()),
        "recipe": {"name": recipe.name, **recipe.settings()} if recipe else None,
        "calibration": None if made.calibration is None else made.calibration.described(),
        "report": made.report,
        "metadata": made.metadata,
        "device": str(made.device),
        "dtype": str(made.dtype).removeprefix("torch."),
        "weight_bytes": made.members.nbytes,
        "weights": model.weights,
        "looped_because": made.looped_because or None,
        "checked_against_loop": {"relative_error": model.error},
        "compiling": service_of(request).repository.entry(name).compiling,
        "plan": [way.described() for way in made.plan.ways] if made.plan else [],
        "kept_perturbations": variants.kept.described(),
        "backends_not_used": made.plan.failures if made.plan else {},
    }
    return json_response(about)


async def _predict(request: Request, name: str | None = None, version: str | None = None) -> Response:
    model = chosen_model(request, name, version)
    asked = decode_predict(
        await body_of(request),
        model.inputs,
        model.outputs,
        model.defaults,
        most_members=len(model.ensemble),
        brings=service_of(request).variants.of(model).bringable,
        timeout=timeout_of(request),
        targets=model.targets,
        lacking=model.lacking,
    )
    answer = await ask(request, model, asked)
    body = encode_predict(model.name, model.version, asked, answer.arrays, details_of(model, answer))
    return Response(body, media_type="application/json")
