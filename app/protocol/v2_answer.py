"""The Open Inference Protocol (V2) over REST: arrays to the body of an infer answer.

Each output goes back as JSON or as raw bytes, as the request asked. The bytes follow the JSON in the order of
the outputs, and a header then says how long the JSON is. An answer without bytes has no such header.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.errors import BadRequest
from app.protocol.datatypes import DATATYPES
from app.protocol.request import InferRequest
from app.protocol.tensors import array_to_json

__all__ = ["HEADER_LENGTH", "EncodedResponse", "encode_infer"]

HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class EncodedResponse:
    """An answer ready to send."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


def encode_infer(
    model_name: str,
    model_version: str,
    request: InferRequest,
    arrays: Mapping[str, NDArray[Any]],
    datatypes: Mapping[str, str],
    parameters: Mapping[str, Any],
) -> EncodedResponse:
    """Encodes the outputs that a request asked for, in its order.

    Args:
        model_name: echoed.
        model_version: echoed.
        request: what was asked.
        arrays: an array for each requested output, of the dtype of its datatype (BF16 as uint16 bit
            patterns).
        datatypes: the protocol's name of each requested output's datatype.
        parameters: the answer's own parameters; left out if there are none.

    Raises:
        BadRequest: an output was asked for as JSON whose datatype travels in binary only.
        ValueError: an array is not of its datatype, which is the caller's mistake.
    """
    tensors: list[dict[str, Any]] = []
    tail: list[memoryview] = []
    for output in request.outputs:
        array = arrays[output.name]
        datatype = DATATYPES[datatypes[output.name]]
        if array.dtype.newbyteorder("<") != datatype.dtype:
            raise ValueError(f"output {output.name!r} must be of {datatype.dtype}, however: {array.dtype}")
        tensor: dict[str, Any] = {"name": output.name, "datatype": datatype.name, "shape": array.shape}
        if output.binary:
            raw = np.ascontiguousarray(array, dtype=datatype.dtype)
            tensor["parameters"] = {"binary_data_size": raw.nbytes}
            tail.append(raw.data)
        elif datatype.in_json:
            tensor["data"], had_nonfinite = array_to_json(array.reshape(-1))
            if had_nonfinite:
                tensor["parameters"] = {"non_finite": True}
        else:
            raise BadRequest(
                f"output {output.name!r} is {datatype.name}, which travels in binary only: ask for it with "
                "parameters.binary_data true"
            )
        tensors.append(tensor)
    document: dict[str, Any] = {"model_name": model_name, "model_version": model_version}
    if request.id is not None:
        document["id"] = request.id
    if parameters:
        document["parameters"] = dict(parameters)
    document["outputs"] = tensors
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return EncodedResponse(head)
    return EncodedResponse(b"".join([head, *tail]), {HEADER_LENGTH: str(len(head))}, "application/octet-stream")
