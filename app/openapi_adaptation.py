"""What the OpenAPI description says of adaptation; it states what :mod:`app.protocol.plain_adaptation` checks."""

from __future__ import annotations

import copy
from typing import Any

from app import openapi_envelope as envelope
from app import openapi_schemas as schemas

_ROWS: dict[str, Any] = {
    "description": "a list of rows, or an object with a list of rows for each input",
    "anyOf": [{"type": "array", "minItems": 1}, {"type": "object", "minProperties": 1}],
}
_KEPT: dict[str, Any] = {
    "type": "object",
    "required": ["handle", "expires_in_seconds", "bytes"],
    "properties": {
        "handle": {"type": "string", "description": "under which the adapted model is asked"},
        "expires_in_seconds": {"type": "number", "minimum": 0},
        "bytes": {"type": "integer", "minimum": 0, "description": "of its weights"},
    },
}
ADAPT: dict[str, Any] = {
    "type": "object",
    "required": ["support"],
    "additionalProperties": False,
    "properties": {
        "support": {
            "type": "object",
            "required": ["inputs", "targets"],
            "additionalProperties": False,
            "properties": {
                "inputs": _ROWS,
                "targets": {
                    "description": "a class, or values, for each row; of a model with several outputs an object with "
                    "such a list for some of them",
                    "anyOf": [{"type": "array", "minItems": 1}, {"type": "object", "minProperties": 1}],
                },
            },
            "description": "examples that every member adapts to",
        },
        "queries": {
            **_ROWS,
            "description": "inputs that the adapted model is asked about; needed without keep_seconds",
        },
        "steps": {"type": ["integer", "null"], "minimum": 1, "description": "of gradient descent; 5 by default"},
        "learning_rate": {"type": ["number", "null"], "exclusiveMinimum": 0, "description": "0.01 by default"},
        "loss": {"enum": ["cross_entropy", "mse", "gaussian_nll", None], "description": "that of the task by default"},
        "weights": {
            "description": "patterns of the names of weights that adapt; those in which members differ by default",
            "type": ["string", "array", "null"],
            "items": {"type": "string"},
        },
        "factors": {"type": ["boolean", "null"], "description": "adapt the members' factors instead of full weights"},
        "keep_seconds": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "description": "keep the adapted model for so long; the answer tells its handle",
        },
        **{key: schemas.PREDICT["properties"][key] for key in ("outputs", "id", "parameters")},
    },
}
_ADAPTATION: dict[str, Any] = {
    "type": "object",
    "required": ["steps", "learning_rate", "loss", "loss_before", "loss_after"],
    "properties": {
        "loss_before": {"type": "number", "description": "on the examples, the mean over members"},
        "loss_after": {"type": "number"},
    },
}
_ERRORS = {
    "403": "adaptation is switched off, or a page of another site asks",
    "404": "there is no such model, version or adapted model",
    "410": "this adapted model is not kept any more; the text says why",
}


def describe(path: str, methods: dict[str, Any]) -> None:
    """Complete what is described of a path; of one that is not about adaptation nothing is changed."""
    adapts, kept = path.endswith("/adapt"), path.startswith("/v1/adapted/")
    if not adapts and not kept:
        return
    for verb, operation in methods.items():
        errors = _ERRORS if kept else {status: _ERRORS[status] for status in ("403", "404")}
        operation["responses"] |= {status: _json(envelope.ERROR, text) for status, text in errors.items()}
        for parameter in operation.get("parameters", []):
            if parameter["name"] == "handle":
                parameter["schema"] = {"type": "string"}
                parameter.pop("example", None)
        if verb == "get":
            operation["responses"]["200"] = _json(_KEPT, "what is kept")
        elif verb == "delete":
            operation["responses"]["200"] = _json({"type": "object"}, "it is forgotten")
        elif kept:
            # Its model may be any of those that the description shows.
            operation["requestBody"]["content"]["application/json"].pop("examples", None)
            operation["responses"]["200"]["content"]["application/json"].pop("examples", None)
        else:
            operation["requestBody"] = {**_json(ADAPT), "required": True}
            operation["description"] = envelope.BODY_TEXT
            operation.setdefault("parameters", []).extend(envelope.REQUEST_HEADERS)
            operation["responses"]["200"] = {
                **_json(_answer(), "the adapted model's answer"),
                "headers": envelope.ANSWER_HEADERS,
            }


def _answer() -> dict[str, Any]:
    whole = copy.deepcopy(schemas.PREDICT_ANSWER)
    whole["required"] = [*whole["required"], "adaptation"]
    whole["properties"] |= {"adaptation": _ADAPTATION, "adapted": _KEPT}
    return whole


def _json(schema: dict[str, Any], description: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"content": {"application/json": {"schema": schema}}}
    return found if description is None else {**found, "description": description}
