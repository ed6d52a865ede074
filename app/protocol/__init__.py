"""The codec of the service: bytes to checked arrays and back, as pure functions without I/O.

Every client error ends here, as a `BadRequest` that says what was wrong and what would be right, so nothing
past this package meets a malformed request. Two APIs are read, V2 (`v2`) and a plain one for people
(`plain`), to one and the same `InferRequest`.
"""

from app.protocol.adapting import NOT_ADAPTING, Adapt, Adapting
from app.protocol.bringing import NOTHING_BROUGHT, Bringable, Perturbed, WeightSpec
from app.protocol.datatypes import (
    DATATYPES,
    Datatype,
    bfloat16_bits,
    bfloat16_values,
    datatype_of,
)
from app.protocol.document import parse_json
from app.protocol.options import (
    DEFAULT_PRIORITY,
    LONGEST_TIMEOUT,
    MOST_LEVELS,
    PRIORITIES,
    TIMEOUT_HEADER,
    explain_plain_options,
    explain_v2_options,
    parse_timeout,
)
from app.protocol.plain import decode_predict, encode_predict
from app.protocol.request import InferRequest, Options, Question, RequestedOutput
from app.protocol.tensors import TensorSpec, array_from_bytes, array_from_json, array_to_json
from app.protocol.v2 import HEADER_LENGTH, EncodedResponse, decode_infer, encode_infer, parse_header_length
from app.protocol.v2_adaptation import described_adapting, explain_adapting

__all__ = [
    "DATATYPES",
    "DEFAULT_PRIORITY",
    "HEADER_LENGTH",
    "LONGEST_TIMEOUT",
    "MOST_LEVELS",
    "NOTHING_BROUGHT",
    "NOT_ADAPTING",
    "PRIORITIES",
    "TIMEOUT_HEADER",
    "Adapt",
    "Adapting",
    "Bringable",
    "Datatype",
    "EncodedResponse",
    "InferRequest",
    "Options",
    "Perturbed",
    "Question",
    "RequestedOutput",
    "TensorSpec",
    "WeightSpec",
    "array_from_bytes",
    "array_from_json",
    "array_to_json",
    "bfloat16_bits",
    "bfloat16_values",
    "datatype_of",
    "decode_infer",
    "decode_predict",
    "described_adapting",
    "encode_infer",
    "encode_predict",
    "explain_adapting",
    "explain_plain_options",
    "explain_v2_options",
    "parse_header_length",
    "parse_json",
    "parse_timeout",
]
