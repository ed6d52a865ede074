"""The plain API, for people: the numbers alone, without shapes and datatypes.

    {"inputs": [[...], ...], "outputs": ["mean", "std"], "id": "a-1", "parameters": {"members": 16}}

`inputs` is a list of rows for a model with one input, or an object with a list of rows for each input. All
else may be left out. As people make typing errors, a key that is not known is an error here, where V2 would
ignore it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson
from numpy.typing import NDArray

from app.errors import BadRequest
from app.protocol.document import may_hold_booleans, parse_json
from app.protocol.options import MOST_MEMBERS, read_plain_options
from app.protocol.request import (
    InferRequest,
    RequestedOutput,
    check_output_name,
    common_rows,
    optional_object,
    read_id,
)
from app.protocol.tensors import TensorSpec, array_from_json, array_to_json
from app.protocol.wording import describe, listing, quote

__all__ = ["decode_predict", "encode_predict"]

_KEYS = ("inputs", "outputs", "id", "parameters")


def decode_predict(
    body: bytes,
    specs: Sequence[TensorSpec],
    outputs: Collection[str],
    default_outputs: Sequence[str],
    *,
    most_members: int = MOST_MEMBERS,
    timeout: float | None = None,
) -> InferRequest:
    """Decodes a body of the plain API; every way in which it can be wrong is a `BadRequest`.

    Args:
        body: the whole body, no longer compressed.
        specs: what the model takes.
        outputs: the names that the client may ask for.
        default_outputs: what a client that asks for nothing gets.
        most_members: how many members the model has.
        timeout: seconds, what `parse_timeout` gave.
    """
    document = parse_json(body)
    for key in document:
        if key not in _KEYS:
            raise BadRequest(f"the body's keys must be among {listing(_KEYS)}, however: {quote(key)}")
    parameters = optional_object(document, "parameters", "parameters")
    options = read_plain_options(parameters, most_members=most_members, timeout=timeout)
    request_id = read_id(document)
    requested = _read_outputs(document.get("outputs"), outputs, default_outputs)
    by_name = _by_name(document.get("inputs"), specs)
    booleans = may_hold_booleans(body)
    arrays = {
        spec.name: array_from_json(by_name[spec.name], spec, may_hold_booleans=booleans)
        for spec in specs
        if spec.name in by_name
    }
    return InferRequest(request_id, arrays, requested, common_rows(arrays, specs), options)


def encode_predict(
    model_name: str,
    model_version: str,
    request: InferRequest,
    arrays: Mapping[str, NDArray[Any]],
    details: Mapping[str, Any],
) -> bytes:
    """Encodes the outputs that a request asked for, in its order, as nested lists.

    Args:
        model_name: echoed.
        model_version: echoed.
        request: what was asked.
        arrays: an array for each requested output. JSON takes numbers, so BF16 must have become float32
            before.
        details: what else the answer says, such as members and seed.
    """
    values: dict[str, Any] = {}
    non_finite: list[str] = []
    for output in request.outputs:
        values[output.name], had_nonfinite = array_to_json(arrays[output.name])
        if had_nonfinite:
            non_finite.append(output.name)
    document: dict[str, Any] = {"model": model_name, "version": model_version, **details}
    if request.id is not None:
        document["id"] = request.id
    document["outputs"] = values
    if non_finite:
        document["non_finite"] = non_finite
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _by_name(inputs: object, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    names = listing(spec.name for spec in specs)
    if isinstance(inputs, dict):
        for name in inputs:
            if all(name != spec.name for spec in specs):
                raise BadRequest(f"inputs must be named among {names}, however: {quote(name)}")
        return inputs
    if len(specs) > 1:
        raise BadRequest(f"inputs must be an object with a list for each of {names}, however: {describe(inputs)}")
    if not isinstance(inputs, list):
        raise BadRequest(f"inputs must be a list of rows, such as [[...], ...], however: {describe(inputs)}")
    return {specs[0].name: inputs}


def _read_outputs(names: object, allowed: Collection[str], defaults: Sequence[str]) -> tuple[RequestedOutput, ...]:
    if names is None or names == []:
        return tuple(map(RequestedOutput, defaults))
    if not isinstance(names, list):
        raise BadRequest(f"outputs must be a list of names among {listing(allowed)}, however: {describe(names)}")
    requested: dict[str, RequestedOutput] = {}
    for name in names:
        requested[name] = RequestedOutput(check_output_name(name, allowed, requested))
    return tuple(requested.values())
