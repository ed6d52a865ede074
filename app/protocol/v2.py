"""The Open Inference Protocol (V2) over REST: the body of an infer request to arrays.

A body is a JSON document, alone or followed by raw tensors. In the second case a header says how long the
JSON is, each input that is raw says how many bytes it takes (`parameters.binary_data_size`) and has no
`data`, and the bytes follow in the order of the inputs, with none missing and none left over. Both kinds of
input mix. If the header says zero, the whole body is the one input of the model: a batch of one.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from app.errors import BadRequest, PayloadTooLarge
from app.protocol.adapting import NOT_ADAPTING, Adapting
from app.protocol.bringing import NOTHING_BROUGHT, Bringable, WeightSpec
from app.protocol.document import may_hold_booleans, parse_json
from app.protocol.options import MOST_MEMBERS, read_v2_options
from app.protocol.request import (
    NOTHING,
    InferRequest,
    Options,
    RequestedOutput,
    check_output_name,
    check_targets,
    common_rows,
    optional_object,
    read_id,
)
from app.protocol.tensors import TensorSpec, array_from_bytes, array_from_json, checked_shape
from app.protocol.v2_adaptation import asks_to_adapt, read_adapt, read_handle, support_inputs
from app.protocol.v2_answer import HEADER_LENGTH, EncodedResponse, encode_infer
from app.protocol.wording import describe, listing, quote

__all__ = ["HEADER_LENGTH", "EncodedResponse", "decode_infer", "encode_infer", "parse_header_length"]

_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
# Extensions that change what an output holds or where it goes: to ignore them would be to answer wrongly.
_REFUSED_OUTPUT_PARAMETERS = ("classification", "shared_memory_region")


def parse_header_length(value: str | None) -> int | None:
    """The length of the JSON as the header gives it; None without the header, when all the body is JSON."""
    if value is None:
        return None
    if not _LENGTH.fullmatch(value.strip(" \t")):
        raise BadRequest(f"{HEADER_LENGTH} must be a number of bytes, 0 or more, however: {quote(value)}")
    return int(value)


def decode_infer(
    body: bytes,
    specs: Sequence[TensorSpec],
    outputs: Collection[str],
    default_outputs: Sequence[str],
    json_length: int | None = None,
    *,
    most_members: int = MOST_MEMBERS,
    timeout: float | None = None,
    targets: Mapping[str, TensorSpec] = NOTHING,
    lacking: Mapping[str, str] = NOTHING,
    brings: Bringable = NOTHING_BROUGHT,
    adapts: Adapting = NOT_ADAPTING,
) -> InferRequest:
    """Decodes an infer request; every way in which it can be wrong is a `BadRequest`.

    Args:
        body: the whole body, no longer compressed.
        specs: what the model takes.
        outputs: the names that the client may ask for.
        default_outputs: what a client that asks for nothing gets.
        json_length: what `parse_header_length` gave.
        most_members: how many members the model has.
        timeout: seconds, what `parse_timeout` gave.
        targets: of each output that is about a target, by the output's name, what the target must be. It comes as
            one input more.
        lacking: outputs that the model would have if it were made otherwise: by name, what to do.
        brings: what the request may bring of its own.
        adapts: what the model may be adapted to.
    """
    if json_length == 0:
        return _decode_raw(body, specs, default_outputs, Options(timeout=timeout))
    text, tail = _split(body, json_length)
    document = parse_json(text)
    parameters = optional_object(document, "parameters", "parameters")
    adapting = asks_to_adapt(document, adapts, [spec.name for spec in specs])
    if adapting:
        if brings.from_v2(parameters) is not None:
            raise BadRequest("a request may ask for adapted members or for a perturbation, however: both")
        outputs, default_outputs, targets, lacking = adapts.outputs, adapts.defaults, NOTHING, NOTHING
        brings = NOTHING_BROUGHT
    perturbation = brings.from_v2(parameters)
    if perturbation is not None:
        # They are the perturbation's, not how many of the model's are used.
        parameters = {name: value for name, value in parameters.items() if name != "members"}
    options = read_v2_options(parameters, most_members=most_members, timeout=timeout)
    binary_default = _read_flag(parameters.get("binary_data_output"), "parameters.binary_data_output", False)
    request_id = read_id(document)
    requested = _read_outputs(document.get("outputs"), outputs, default_outputs, binary_default, lacking)
    known = (*specs, *targets.values()) if targets else specs
    if adapting:
        known = (*specs, *support_inputs(adapts))
    inputs = _read_inputs(document.get("inputs"), known, tail, json_length is not None, may_hold_booleans(text), brings)
    weights = {}
    if brings.weights:
        own = {spec.name for spec in known}
        weights = {name: inputs.pop(name) for name in list(inputs) if name not in own}
    asked = {}
    if targets:
        asked = {spec.name: inputs.pop(spec.name) for spec in targets.values() if spec.name in inputs}
    adapt = read_adapt(parameters, inputs, adapts) if adapting else None
    rows = common_rows(inputs, specs) if inputs or adapt is None else 0
    if adapting:
        adapts.check_queries(rows, adapt, document.get("outputs"))
        handle = read_handle(parameters)
        requested = requested if rows else ()
        return InferRequest(request_id, inputs, requested, rows, options, adapt=adapt, adapted=handle)
    if targets:
        check_targets(asked, rows, requested, targets)
    return InferRequest(request_id, inputs, requested, rows, options, asked, perturbation, weights)


def _split(body: bytes, json_length: int | None) -> tuple[bytes, memoryview]:
    if json_length is None:
        return body, memoryview(b"")
    if not 0 <= json_length <= len(body):
        raise BadRequest(f"{HEADER_LENGTH} must be at most the body's {len(body)} bytes, however: {json_length}")
    return body[:json_length], memoryview(body)[json_length:]


def _decode_raw(
    body: bytes, specs: Sequence[TensorSpec], default_outputs: Sequence[str], options: Options
) -> InferRequest:
    if len(specs) != 1:
        raise BadRequest(
            f"{HEADER_LENGTH} may be 0 only for a model with one input, however: this one takes "
            f"{listing(spec.name for spec in specs)}"
        )
    (spec,) = specs
    sizes = list(spec.shape[1:])
    if sizes.count(-1) > 1:
        raise BadRequest(f"{spec.subject} has several variable dimensions; send it with a JSON part that has its shape")
    if -1 in sizes:
        known = -math.prod(sizes) * spec.type.size
        if known == 0 or not body or len(body) % known:
            raise BadRequest(
                f"{spec.subject} must have bytes for one row of {spec.layout}, a multiple of {known}, "
                f"however: {len(body)}"
            )
        sizes[sizes.index(-1)] = len(body) // known
    array = array_from_bytes(memoryview(body), spec.type, (1, *sizes), subject=spec.subject)
    outputs = tuple(RequestedOutput(name, True) for name in default_outputs)
    return InferRequest(None, {spec.name: array}, outputs, 1, options)


def _read_inputs(
    entries: object,
    specs: Sequence[TensorSpec],
    tail: memoryview,
    has_tail: bool,
    booleans: bool,
    brings: Bringable,
) -> dict[str, NDArray[Any]]:
    if not isinstance(entries, list) or not entries:
        raise BadRequest(
            f"inputs must be a list of objects with name, shape, datatype, data, however: {describe(entries)}"
        )
    by_name = {spec.name: spec for spec in specs}
    arrays: dict[str, NDArray[Any]] = {}
    used = weight_bytes = 0
    for entry in entries:
        spec = _read_spec(entry, by_name, brings)
        if spec.name in arrays:
            raise BadRequest(f"{spec.subject} must be given only once")
        shape, alone = _shape_of(entry, spec), False
        if isinstance(spec, WeightSpec):
            shape, alone = spec.with_members(shape)
            weight_bytes += math.prod(shape) * spec.type.size
            if weight_bytes > brings.weight_bytes:
                raise PayloadTooLarge(
                    f"the weights of a request may have {brings.weight_bytes} bytes at most; with {spec.subject} they "
                    f"have {weight_bytes}"
                )
        size = _read_binary_size(entry, spec, has_tail)
        if size is None:
            data = entry.get("data")
            if data is None:
                raise BadRequest(f"{spec.subject} must have data, or parameters.binary_data_size and bytes")
            if alone and isinstance(data, list) and data and type(data[0]) is list:
                data = [data]
            array = array_from_json(data, spec, shape, may_hold_booleans=booleans)
            arrays[spec.name] = array[0] if alone else array
            continue
        if size > len(tail) - used:
            raise BadRequest(
                f"{spec.subject} must be followed by the {size} bytes of its binary_data_size, "
                f"however: {len(tail) - used} are left of the body"
            )
        raw = tail[used : used + size]
        array = array_from_bytes(raw, spec.type, checked_shape(shape, spec), subject=spec.subject)
        arrays[spec.name] = array[0] if alone else array
        used += size
    if used != len(tail):
        raise BadRequest(
            f"the body must end with the last binary tensor, however: {len(tail) - used} bytes are left over"
        )
    return arrays


def _read_spec(entry: object, by_name: Mapping[str, TensorSpec], brings: Bringable) -> TensorSpec:
    if not isinstance(entry, dict):
        raise BadRequest(f"inputs must hold objects with name, shape, datatype and data, however: {describe(entry)}")
    name = entry.get("name")
    spec = None
    if isinstance(name, str):
        spec = by_name[name] if name in by_name else brings.weight(name)
    if spec is None:
        may = "; or be a weight of the model, or a factor of one" if brings.weights else ""
        raise BadRequest(
            f"input must have a name that is one of {listing(by_name)}{may}, however: {describe(name)}"
            f"{brings.refusal(name)}"
        )
    datatype = entry.get("datatype")
    if datatype != spec.datatype:
        hint = "; BYTES is not served, as models here take numbers" if datatype == "BYTES" else ""
        raise BadRequest(f"{spec.subject} must have datatype {spec.datatype}, however: {describe(datatype)}{hint}")
    return spec


def _shape_of(entry: dict[str, Any], spec: TensorSpec) -> list[Any]:
    shape = entry.get("shape")
    if not isinstance(shape, list):
        raise BadRequest(f"{spec.subject} must have a shape such as {spec.layout}, however: {describe(shape)}")
    return shape


def _read_binary_size(entry: dict[str, Any], spec: TensorSpec, has_tail: bool) -> int | None:
    parameters = optional_object(entry, "parameters", f"parameters of {spec.subject}")
    if "shared_memory_region" in parameters:
        raise BadRequest(f"{spec.subject} must be sent without shared_memory_region, which is not served here")
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise BadRequest(f"binary_data_size of {spec.subject} must be a number of bytes, however: {describe(size)}")
    if entry.get("data") is not None:
        raise BadRequest(f"{spec.subject} must have either data or binary_data_size, however: both")
    if not has_tail:
        raise BadRequest(f"{spec.subject} has binary_data_size, so the request must have the header {HEADER_LENGTH}")
    return size


def _read_outputs(
    entries: object,
    allowed: Collection[str],
    defaults: Sequence[str],
    binary_default: bool,
    lacking: Mapping[str, str],
) -> tuple[RequestedOutput, ...]:
    if entries is None or entries == []:
        return tuple(RequestedOutput(name, binary_default) for name in defaults)
    if not isinstance(entries, list):
        raise BadRequest(f"outputs must be a list of objects with a name, however: {describe(entries)}")
    requested: dict[str, RequestedOutput] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise BadRequest(f"outputs must hold objects with a name, however: {describe(entry)}")
        name = check_output_name(entry.get("name"), allowed, requested, lacking)
        parameters = optional_object(entry, "parameters", f"parameters of output {name!r}")
        for refused in _REFUSED_OUTPUT_PARAMETERS:
            if refused in parameters:
                raise BadRequest(f"output {name!r} must be asked for without {refused}, which is not served here")
        binary = _read_flag(parameters.get("binary_data"), f"binary_data of output {name!r}", binary_default)
        requested[name] = RequestedOutput(name, binary)
    return tuple(requested.values())


def _read_flag(value: object, subject: str, default: bool) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequest(f"{subject} must be true or false, however: {describe(value)}")
    return value
