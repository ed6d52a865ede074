"""The OpenAPI description, with examples that really work: the loaded models' own inputs and answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from numpy.typing import NDArray

from app.repository import Repository
from app.served import Served, few_digits

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_MODEL_ERRORS = {
    "404": "no such model or version",
    "503": "the model is loading, or the service is shutting down",
}
_BODY_ERRORS = {
    "400": "the request is wrong; the text says what would be right",
    "408": "the body did not arrive in time",
    "413": "the body is too large",
    "415": "the body is compressed",
    "429": "too many rows wait; Retry-After says when to come back",
}
# As everywhere, null is as good as left out, and a number is an id too.
_ID = {"type": ["string", "number", "null"], "pattern": "^[A-Za-z0-9._:-]{0,128}$"}
_PARAMETERS = {"type": ["object", "null"]}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "examples": ["FP32"]},
        "parameters": _PARAMETERS,
        "data": {"type": "array", "items": {}, "description": "row-major, flat or nested"},
    },
}
_PREDICT = {
    "type": "object",
    "required": ["inputs"],
    "additionalProperties": False,
    "properties": {
        "inputs": {
            "description": "a list of rows, or an object with a list of rows for each input",
            "anyOf": [{"type": "array", "minItems": 1}, {"type": "object", "minProperties": 1}],
        },
        "outputs": {"type": ["array", "null"], "items": {"type": "string"}, "description": "statistics to send back"},
        "id": _ID,
        "parameters": _PARAMETERS,
    },
}
_INFER = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": _ID,
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "minItems": 1, "items": _TENSOR},
        "outputs": {
            "type": ["array", "null"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
            },
        },
    },
}
# An example of more numbers than this makes the page unusable.
_MOST_NUMBERS = 10_000


def document(app: FastAPI, repository: Repository) -> dict[str, Any]:
    """Made anew for each request, since models become ready one after the other."""
    whole = get_openapi(
        title=app.title,
        version=app.version,
        routes=app.routes,
        summary="One trained model as an ensemble that says how sure it is.",
        description=_describe(repository),
    )
    whole.get("components", {}).pop("schemas", None)
    ready = [entry.model for entry in repository.entries.values() if entry.model is not None]
    for path, methods in whole["paths"].items():
        for operation in methods.values():
            # FastAPI's own validation is not used on bodies; errors look alike everywhere.
            operation["responses"].pop("422", None)
            for parameter in operation.get("parameters", []):
                choices = {m.name if parameter["name"] == "name" else m.version for m in ready}
                parameter["schema"] = {"type": "string", "examples": sorted(choices)}
                if len(choices) == 1:
                    parameter["example"] = next(iter(choices))
            asks_a_model = path.endswith(("/predict", "/infer"))
            errors = _MODEL_ERRORS if asks_a_model or "{name}" in path or path.endswith("/ready") else {}
            for status, text in sorted({**errors, **(_BODY_ERRORS if asks_a_model else {})}.items()):
                operation["responses"][status] = _json(_ERROR, description=text)
        shown = [m for m in ready if _numbers_in_example(m) <= _MOST_NUMBERS]
        if path == "/predict":
            shown = [m for m in shown if m.name == repository.default]
        if path.endswith("/predict"):
            _fill(methods["post"], _PREDICT, {m.name: (_predict_request(m), _predict_answer(m)) for m in shown})
        elif path.endswith("/infer"):
            _fill(methods["post"], _INFER, {m.name: (_infer_request(m), _infer_answer(m)) for m in shown})
    return whole


def _fill(operation: dict[str, Any], schema: dict[str, Any], examples: dict[str, tuple[Any, Any]]) -> None:
    operation["requestBody"] = {
        **_json(schema, {name: request for name, (request, _) in examples.items()}),
        "required": True,
    }
    operation["responses"]["200"] = _json(
        {"type": "object"}, {name: answer for name, (_, answer) in examples.items()}, "the model's answer"
    )


def _json(
    schema: dict[str, Any], examples: dict[str, Any] | None = None, description: str | None = None
) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schema}
    if examples:
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"content": {"application/json": content}, **({"description": description} if description else {})}


def _describe(repository: Repository) -> str:
    lines = ["Models of this service:", ""]
    for entry in repository.entries.values():
        if (model := entry.model) is None:
            lines.append(f"- **{entry.name}** (version {entry.version}): {entry.reason}")
            continue
        about = model.ensemble.metadata.get("description", "")
        inputs = ", ".join(f"`{s.name}` {s.datatype} {list(s.shape)}" for s in model.inputs)
        lines.append(
            f"- **{entry.name}** (version {entry.version}): {len(model.ensemble)} members, task "
            f"{model.ensemble.task}. {about} Takes {inputs}."
        )
    lines += ["", "| output | meaning | unit | of |", "| --- | --- | --- | --- |"]
    outputs: dict[tuple[str, str, str], list[str]] = {}
    for entry in repository.entries.values():
        for output in entry.model.outputs.values() if entry.model else []:
            outputs.setdefault((output.name, output.description, output.unit), []).append(entry.name)
    lines += [f"| `{n}` | {d} | {u} | {', '.join(names)} |" for (n, d, u), names in outputs.items()]
    return "\n".join(lines)


def _numbers_in_example(model: Served) -> int:
    return sum(array.size for array in [*model.example_inputs.values(), *model.example_outputs.values()])


def _predict_request(model: Served) -> dict[str, Any]:
    rows = {name: _numbers(array) for name, array in model.example_inputs.items()}
    return {
        "inputs": next(iter(rows.values())) if len(rows) == 1 else rows,
        "outputs": list(model.defaults),
    }


def _predict_answer(model: Served) -> dict[str, Any]:
    return {
        "model": model.name,
        "version": model.version,
        **model.details,
        "outputs": {name: _numbers(array) for name, array in model.example_outputs.items()},
    }


def _infer_request(model: Served) -> dict[str, Any]:
    return {
        "inputs": [
            {
                "name": spec.name,
                "shape": list(model.example_inputs[spec.name].shape),
                "datatype": spec.datatype,
                "data": _numbers(model.example_inputs[spec.name].reshape(-1)),
            }
            for spec in model.inputs
        ],
        "outputs": [{"name": name} for name in model.defaults],
    }


def _infer_answer(model: Served) -> dict[str, Any]:
    return {
        "model_name": model.name,
        "model_version": model.version,
        "parameters": model.details,
        "outputs": [
            {
                "name": name,
                "datatype": model.outputs[name].datatype,
                "shape": list(array.shape),
                "data": _numbers(array.reshape(-1)),
            }
            for name, array in model.example_outputs.items()
        ],
    }


def _numbers(array: NDArray[Any]) -> Any:
    if np.issubdtype(array.dtype, np.floating):
        # JSON has neither NaN nor infinity.
        exact = few_digits(array.astype(np.float64)).astype(object)
        exact[~np.isfinite(array)] = None
        return exact.tolist()
    return array.tolist()
