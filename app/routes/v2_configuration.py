"""The protocol's extension ``model_configuration``: a model in the words of Triton's configuration file.

Tools that measure or tune servers (perf_analyzer, model_analyzer) read from it how requests may be batched. A
dimension without the batch that is empty is written as Triton must have it: one number, reshaped to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from app.protocol import DEFAULT_PRIORITY, PRIORITIES
from app.routes.common import chosen_model, json_response, service_of
from app.routes.v2 import PLATFORM
from app.served import Served

router = APIRouter(prefix="/v2/models", tags=["Open Inference Protocol (V2)"])

_BACKEND = "ensembled"
_MICROSECONDS = 1_000_000


@router.get("/{name}/config", summary="Model configuration")
async def model_configuration(request: Request, name: str) -> Response:
    return _answer(request, name)


@router.get("/{name}/versions/{version}/config", summary="Model configuration of a version")
async def version_configuration(request: Request, name: str, version: str) -> Response:
    return _answer(request, name, version)


def _answer(request: Request, name: str, version: str | None = None) -> Response:
    model = chosen_model(request, name, version)
    service = service_of(request)
    return json_response(configuration(model, service.repository.served(name), service.settings.max_delay))


def configuration(model: Served, versions: Sequence[str], max_delay: float) -> dict[str, Any]:
    """A model's configuration.

    Args:
        model: one version of it.
        versions: all of it that can be asked.
        max_delay: seconds that a request may wait for others.
    """
    made = model.ensemble
    planned = [way.rows for way in made.plan.ways] if made.plan else []
    gpu = made.device.type == "cuda"
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": _BACKEND,
        "version_policy": {"specific": {"versions": [int(version) for version in versions]}},
        # The rows of one call. A request with more is answered too, in several.
        "max_batch_size": model.max_batch,
        "input": [
            {
                "name": spec.name,
                "data_type": f"TYPE_{spec.datatype}",
                "format": "FORMAT_NONE",
                **_dimensions(spec.shape),
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": False,
            }
            for spec in model.inputs
        ],
        "output": [
            {
                "name": output.name,
                "data_type": f"TYPE_{output.datatype}",
                **_dimensions(output.shape),
                "label_filename": "",
                "is_shape_tensor": False,
            }
            for output in model.outputs.values()
        ],
        "dynamic_batching": {
            "preferred_batch_size": [rows for rows in planned if rows <= model.max_batch],
            "max_queue_delay_microseconds": round(max_delay * _MICROSECONDS),
            "preserve_ordering": False,
            "priority_levels": PRIORITIES,
            "default_priority_level": DEFAULT_PRIORITY,
        },
        "instance_group": [
            {
                "name": f"{model.name}_0",
                "kind": "KIND_GPU" if gpu else "KIND_CPU",
                "count": 1,
                "gpus": [made.device.index or 0] if gpu else [],
            }
        ],
        "parameters": {
            key: {"string_value": str(value)} for key, value in {**model.details, "task": made.task}.items()
        },
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": False},
    }


def _dimensions(shape: tuple[int, ...]) -> dict[str, Any]:
    """Of a row: without the batch."""
    return {"dims": list(shape[1:])} if len(shape) > 1 else {"dims": [1], "reshape": {"shape": []}}
