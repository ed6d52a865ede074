"""The OpenAPI description, with examples that really work: the loaded models' own inputs and answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from numpy.typing import NDArray

from app import openapi_adaptation
from app import openapi_envelope as envelope
from app import openapi_schemas as schemas
from app.middleware.authentication import OPEN
from app.protocol import HEADER_LENGTH
from app.repository import Repository
from app.served import Served, few_digits

# An example of more numbers than this makes the page unusable.
_MOST_NUMBERS = 10_000
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_REPOSITORY = {"index": schemas.INDEX, "load": schemas.LOAD, "unload": schemas.UNLOAD}
_ANSWERS = {
    "/config": schemas.CONFIG,
    "/stats": schemas.STATISTICS,
    "/index": schemas.INDEX_ANSWER,
    "/load": {"type": "object"},
    "/unload": {"type": "object"},
}


def document(app: FastAPI, repository: Repository) -> dict[str, Any]:
    """Made anew for each request, since models become ready one after the other."""
    whole = get_openapi(
        title=app.title,
        version=app.version,
        routes=app.routes,
        summary="One trained model as an ensemble that says how sure it is.",
        description=_describe(repository),
    )
    # FastAPI's own validation is not used on bodies; errors look alike everywhere.
    whole.get("components", {}).pop("schemas", None)
    if guarded := app.state.service.settings.has_key:
        whole.setdefault("components", {})["securitySchemes"] = _KEYS
        whole["security"] = [{name: []} for name in _KEYS]
    ready = [entry.model for entry in repository.entries.values() if entry.model is not None]
    for path, methods in whole["paths"].items():
        for operation in methods.values():
            _name_models(operation, ready)
            _describe_answers(path, operation, guarded)
        shown = [m for m in ready if _numbers_in_example(m) <= _MOST_NUMBERS]
        if path == "/predict":
            shown = [m for m in shown if m.name == repository.default]
        if path.endswith("/predict"):
            _fill_predict(methods["post"], shown)
        elif path.endswith("/infer"):
            _fill_infer(methods["post"], shown)
        elif path.startswith("/v2/repository/"):
            _, _, action = path.rpartition("/")
            # All that it may say is optional, and so is a body.
            methods["post"]["requestBody"] = _json(_REPOSITORY[action])
        openapi_adaptation.describe(path, methods)
    return whole


def _name_models(operation: dict[str, Any], ready: list[Served]) -> None:
    for parameter in operation.get("parameters", []):
        choices = {model.name if parameter["name"] == "name" else model.version for model in ready}
        parameter["schema"] = {"type": "string", "examples": sorted(choices)}
        if len(choices) == 1:
            parameter["example"] = next(iter(choices))


def _describe_answers(path: str, operation: dict[str, Any], guarded: bool) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    asks, manages = path.endswith(("/predict", "/infer", "/adapt")), path.endswith(("/load", "/unload"))
    errors: dict[str, str] = {}
    if asks or "{name}" in path:
        errors |= envelope.MODEL_ERRORS
    if path in OPEN:
        errors["503"] = "it is not; the text says why"
    elif guarded:
        errors["401"] = "no key, or a wrong one"
    if asks or path.startswith("/v2/repository/"):
        errors |= envelope.BODY_ERRORS
        if manages:
            errors["403"] = "management is switched off; the text says how it is switched on"
        elif guarded:
            del errors["403"]
    if asks:
        errors |= envelope.INFER_ERRORS
    for status, text in sorted(errors.items()):
        responses[status] = _json(envelope.ERROR, description=text)
        if headers := envelope.ERROR_HEADERS.get(status):
            responses[status]["headers"] = headers
    if path in OPEN:
        operation["security"] = []
    for ending, schema in _ANSWERS.items():
        if path.endswith(ending):
            responses["200"] = _json(schema, description="the answer")


def _fill_predict(operation: dict[str, Any], shown: list[Served]) -> None:
    _fill(operation, schemas.PREDICT, {model.name: _predict_request(model) for model in shown})
    operation["description"] = envelope.BODY_TEXT
    operation.setdefault("parameters", []).extend(envelope.REQUEST_HEADERS)
    answers = {model.name: _predict_answer(model) for model in shown}
    operation["responses"]["200"] = {
        **_json(schemas.PREDICT_ANSWER, answers, "the model's answer"),
        "headers": envelope.ANSWER_HEADERS,
    }


def _fill_infer(operation: dict[str, Any], shown: list[Served]) -> None:
    _fill(operation, schemas.INFER, {model.name: _infer_request(model) for model in shown})
    operation["requestBody"]["content"] |= _BINARY
    operation["description"] = envelope.INFER_TEXT + envelope.BODY_TEXT
    operation.setdefault("parameters", []).extend([*envelope.REQUEST_HEADERS, *envelope.INFER_HEADERS])
    answer = _json(schemas.INFER_ANSWER, {model.name: _infer_answer(model) for model in shown}, "the model's answer")
    answer["content"] |= _BINARY
    length = {HEADER_LENGTH: {"description": "with tensors as bytes only", "schema": {"type": "integer"}}}
    operation["responses"]["200"] = {**answer, "headers": {**envelope.ANSWER_HEADERS, **length}}


def _fill(operation: dict[str, Any], schema: dict[str, Any], requests: dict[str, Any]) -> None:
    operation["requestBody"] = {**_json(schema, requests), "required": True}


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
    lines += [f"| `{n}` | {d} | {u} | {', '.join(dict.fromkeys(names))} |" for (n, d, u), names in outputs.items()]
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
    lacking = [name for name, array in model.example_outputs.items() if not _all_finite(array)]
    return {
        "model": model.name,
        "version": model.version,
        **_details(model, bool(lacking)),
        "outputs": {name: _numbers(array) for name, array in model.example_outputs.items()},
        **({"non_finite": lacking} if lacking else {}),
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
    outputs = [
        {
            "name": name,
            "datatype": model.outputs[name].datatype,
            "shape": list(array.shape),
            "data": _numbers(array.reshape(-1)),
            **({} if _all_finite(array) else {"parameters": {"non_finite": True}}),
        }
        for name, array in model.example_outputs.items()
    ]
    return {
        "model_name": model.name,
        "model_version": model.version,
        "parameters": _details(model, any("parameters" in output for output in outputs)),
        "outputs": outputs,
    }


def _details(model: Served, lacks_numbers: bool) -> dict[str, Any]:
    """Of an example, which is one row."""
    return {**model.details, **({"non_finite_rows": [0]} if lacks_numbers else {})}


def _all_finite(array: NDArray[Any]) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _numbers(array: NDArray[Any]) -> Any:
    if np.issubdtype(array.dtype, np.floating):
        # JSON has neither NaN nor infinity.
        exact = few_digits(array.astype(np.float64)).astype(object)
        exact[~np.isfinite(array)] = None
        return exact.tolist()
    return array.tolist()
