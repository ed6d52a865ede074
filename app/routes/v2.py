"""The Open Inference Protocol (V2) over REST."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from app.protocol import (
    HEADER_LENGTH,
    decode_infer,
    described_adapting,
    encode_infer,
    explain_adapting,
    explain_v2_options,
    parse_header_length,
)
from app.routes.common import ask, body_of, chosen_model, details_of, json_response, service_of, timeout_of
from app.served import Served
from app.version import VERSION

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol (V2)"])

EXTENSIONS = [
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
]
# Triton's clients take the bare word "ensemble" for a pipeline of models.
PLATFORM = "pytorch_ensemble"


@router.get("", summary="Server metadata")
async def server_metadata() -> Response:
    return json_response({"name": "ensembled", "version": VERSION, "extensions": EXTENSIONS})


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", summary="Is the process alive, and do its calls end?")
async def live(request: Request) -> Response:
    if service_of(request).alive:
        return json_response({"live": True})
    return json_response({"live": False, "error": "a call has been running for longer than it may"}, 503)


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", summary="Is every model loaded, checked and warm?")
async def ready(request: Request) -> Response:
    repository = service_of(request).repository
    if repository.ready:
        return json_response({"ready": True})
    error = "the service is shutting down" if repository.draining else "not ready"
    # Asked without the key, too, and then names and reasons are nobody's business.
    told = {"models": repository.waiting} if getattr(request.state, "may_ask", True) else {}
    return json_response({"ready": False, "error": error, **told}, 503)


@router.get("/models/{name}", summary="Model metadata")
async def model_metadata(request: Request, name: str) -> Response:
    return _metadata(request, name)


@router.get("/models/{name}/versions/{version}", summary="Model metadata of a version")
async def version_metadata(request: Request, name: str, version: str) -> Response:
    return _metadata(request, name, version)


@router.get("/models/{name}/ready", summary="Can this model answer?")
async def model_ready(request: Request, name: str) -> Response:
    return _ready(request, name)


@router.get("/models/{name}/versions/{version}/ready", summary="Can this version answer?")
async def version_ready(request: Request, name: str, version: str) -> Response:
    return _ready(request, name, version)


@router.post("/models/{name}/infer", summary="Infer")
async def infer(request: Request, name: str) -> Response:
    return await _infer(request, name)


@router.post("/models/{name}/versions/{version}/infer", summary="Infer with a version")
async def infer_with_version(request: Request, name: str, version: str) -> Response:
    return await _infer(request, name, version)


def _metadata(request: Request, name: str, version: str | None = None) -> Response:
    model = chosen_model(request, name, version)
    explained = explain_v2_options(len(model.ensemble), model.confidence_level)
    brings, adapts = service_of(request).variants.of(model).bringable, service_of(request).adaptation.of(model)
    return json_response(metadata(request, model, explained | brings.explain_v2() | explain_adapting(adapts)))


def _ready(request: Request, name: str, version: str | None = None) -> Response:
    model = service_of(request).repository.ready_model(name, version)
    return json_response({"name": model.name, "version": model.version, "ready": True})


async def _infer(request: Request, name: str, version: str | None = None) -> Response:
    model = chosen_model(request, name, version)
    asked = decode_infer(
        await body_of(request),
        model.inputs,
        model.outputs,
        model.defaults,
        parse_header_length(request.headers.get(HEADER_LENGTH)),
        most_members=len(model.ensemble),
        brings=service_of(request).variants.of(model).bringable,
        timeout=timeout_of(request),
        targets=model.targets,
        lacking=model.lacking,
        adapts=service_of(request).adaptation.of(model),
    )
    answer = await ask(request, model, asked)
    datatypes = {name: output.datatype for name, output in model.outputs.items()}
    details = details_of(model, answer)
    # As they are asked for here: next to each other, each one value.
    details |= details.pop("perturbation", {})
    details |= details.pop("adaptation", {})
    if kept := details.pop("adapted", None):
        details |= {"adapted": kept["handle"], "expires_in_seconds": kept["expires_in_seconds"], "bytes": kept["bytes"]}
    encoded = encode_infer(model.name, model.version, asked, answer.arrays, datatypes, details)
    return Response(encoded.body, headers=encoded.headers, media_type=encoded.content_type)


def metadata(request: Request, model: Served, request_parameters: dict[str, str]) -> dict[str, Any]:
    """The protocol's model metadata; what this service adds to it stands under ``parameters``."""
    brings, adapts = service_of(request).variants.of(model).bringable, service_of(request).adaptation.of(model)
    return {
        "name": model.name,
        "versions": service_of(request).repository.served(model.name),
        "platform": PLATFORM,
        "inputs": [{"name": s.name, "datatype": s.datatype, "shape": list(s.shape)} for s in model.inputs],
        "outputs": [
            {
                "name": o.name,
                "datatype": o.datatype,
                "shape": list(o.shape),
                "parameters": {
                    "description": o.description,
                    "unit": o.unit,
                    "default": o.default,
                    **({"uses": list(o.uses)} if o.uses else {}),
                },
            }
            for o in model.outputs.values()
        ],
        "parameters": {
            **model.details,
            "task": model.ensemble.task,
            "request_parameters": request_parameters,
            **({"targets": _targets(model)} if model.targets else {}),
            **({"calibration": fitted.described()} if (fitted := model.ensemble.calibration) else {}),
            **({"not_fitted": model.lacking} if model.lacking else {}),
            # Not among the inputs: clients would take each for one that has a batch and must come.
            **({"weight_inputs": weights} if (weights := brings.described()) else {}),
            **({"perturbation_parameters": names} if (names := brings.names) else {}),
            **({"adaptation": about} if (about := described_adapting(adapts)) else {}),
        },
    }


def _targets(model: Served) -> list[dict[str, Any]]:
    """Inputs that are sent only with an output that is about a target."""
    return [
        {"name": s.name, "datatype": s.datatype, "shape": list(s.shape), "output": output}
        for output, s in model.targets.items()
    ]
