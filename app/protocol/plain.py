"""The plain API, for people: the numbers alone, without shapes and datatypes.

    {"inputs": [[...], ...], "outputs": ["mean", "std"], "id": "a-1", "parameters": {"members": 16}}

`inputs` is a list of rows for a model with one input, or an object with a list of rows for each input. `target` is the
same for outputs that are about a target. All else may be left out. As people make typing errors, a key that is not
known is an error here, where V2 would ignore it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson
from numpy.typing import NDArray

from app.errors import BadRequest
from app.protocol.bringing import NOTHING_BROUGHT, Bringable
from app.protocol.document import may_hold_booleans, parse_json
from app.protocol.options import MOST_MEMBERS, read_plain_options
from app.protocol.request import (
    NOTHING,
    InferRequest,
    RequestedOutput,
    check_output_name,
    check_targets,
    common_rows,
    optional_object,
    read_id,
)
from app.protocol.tensors import TensorSpec, array_from_json, array_to_json
from app.protocol.wording import describe, listing, quote

__all__ = ["decode_predict", "encode_predict", "named_arrays", "read_outputs"]

_KEYS = ("inputs", "outputs", "id", "parameters", "target")


def decode_predict(
    body: bytes,
    specs: Sequence[TensorSpec],
    outputs: Collection[str],
    default_outputs: Sequence[str],
    *,
    most_members: int = MOST_MEMBERS,
    timeout: float | None = None,
    targets: Mapping[str, TensorSpec] = NOTHING,
    lacking: Mapping[str, str] = NOTHING,
    brings: Bringable = NOTHING_BROUGHT,
) -> InferRequest:
    """Decodes a body of the plain API; every way in which it can be wrong is a `BadRequest`.

    Args:
        body: the whole body, no longer compressed.
        specs: what the model takes.
        outputs: the names that the client may ask for.
        default_outputs: what a client that asks for nothing gets.
        most_members: how many members the model has.
        timeout: seconds, what `parse_timeout` gave.
        targets: of each output that is about a target, by the output's name, what the target must be.
        lacking: outputs that the model would have if it were made otherwise: by name, what to do.
        brings: what the request may bring of its own.
    """
    document = parse_json(body)
    for key in document:
        if key not in _KEYS:
            raise BadRequest(f"the body's keys must be among {listing(_KEYS)}, however: {quote(key)}")
    parameters = optional_object(document, "parameters", "parameters")
    perturbation = brings.from_plain(parameters)
    others = ("perturbation",) if brings.settings else ()
    options = read_plain_options(parameters, most_members=most_members, timeout=timeout, others=others)
    request_id = read_id(document)
    requested = read_outputs(document.get("outputs"), outputs, default_outputs, lacking)
    booleans = may_hold_booleans(body)
    arrays = named_arrays(document.get("inputs"), "inputs", specs, booleans)
    rows = common_rows(arrays, specs)
    asked = {}
    if (given := document.get("target")) is not None:
        if not targets:
            raise BadRequest("target must be left out: no output of this model is about a target")
        asked = named_arrays(given, "target", tuple(targets.values()), booleans)
    if targets:
        check_targets(asked, rows, requested, targets)
    return InferRequest(request_id, arrays, requested, rows, options, asked, perturbation)


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


def named_arrays(given: object, key: str, specs: Sequence[TensorSpec], booleans: bool) -> dict[str, NDArray[Any]]:
    """The arrays of named tensors that a body has under a key, or of the only one without its name.

    Args:
        given: what stands under the key.
        key: for errors.
        specs: what may be there; what is not there is not looked for.
        booleans: whether the document may hold `true` or `false`, as for `array_from_json`.
    """
    by_name = _by_name(given, key, specs)
    return {
        spec.name: array_from_json(by_name[spec.name], spec, may_hold_booleans=booleans)
        for spec in specs
        if spec.name in by_name
    }


def _by_name(given: object, key: str, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    names = listing(spec.name for spec in specs)
    if isinstance(given, dict):
        for name in given:
            if all(name != spec.name for spec in specs):
                raise BadRequest(f"{key} must be named among {names}, however: {quote(name)}")
        return given
    if len(specs) > 1:
        raise BadRequest(f"{key} must be an object with a list for each of {names}, however: {describe(given)}")
    if not isinstance(given, list):
        raise BadRequest(f"{key} must be a list of rows, such as [[...], ...], however: {describe(given)}")
    return {specs[0].name: given}


def read_outputs(
    names: object, allowed: Collection[str], defaults: Sequence[str], lacking: Mapping[str, str] = NOTHING
) -> tuple[RequestedOutput, ...]:
    """The outputs that a body asks for by a list of names; the default ones if it asks for none."""
    if names is None or names == []:
        return tuple(map(RequestedOutput, defaults))
    if not isinstance(names, list):
        raise BadRequest(f"outputs must be a list of names among {listing(allowed)}, however: {describe(names)}")
    requested: dict[str, RequestedOutput] = {}
    for name in names:
        requested[name] = RequestedOutput(check_output_name(name, allowed, requested, lacking))
    return tuple(requested.values())
