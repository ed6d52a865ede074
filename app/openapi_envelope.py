"""The parts of the OpenAPI description that stand around bodies, the same for all models: errors, headers, notes.

`tests/app/test_openapi.py` holds them to what the service does.
"""

from __future__ import annotations

from typing import Any

from app.protocol import HEADER_LENGTH, LONGEST_TIMEOUT, TIMEOUT_HEADER

Schema = dict[str, Any]

ERROR: Schema = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
MODEL_ERRORS = {
    "404": "no such model or version",
    "503": "the model is loading, or the service is shutting down",
}
BODY_ERRORS = {
    "400": "the request is wrong; the text says what would be right",
    "403": "a web page of another site asks, and no key guards the service",
    "408": "the body did not arrive in time",
    "413": "the body is too large, as it is sent or once it is inflated",
    "415": "the body's Content-Encoding is none of gzip, deflate and identity",
    "429": "the bodies of other requests take all memory that is for them; Retry-After says when to come back",
}
INFER_ERRORS = {
    "429": "too many rows wait, adapted models are kept, or bodies are held; Retry-After says when to come back",
    "504": "the request's deadline passed before it was answered",
}
_RETRY = {"Retry-After": {"description": "seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}}}
ERROR_HEADERS: dict[str, Schema] = {
    "415": {"Accept-Encoding": {"schema": {"type": "string"}}},
    "429": _RETRY,
}

_REQUEST_ID: Schema = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "the request's name in the log, sent back; another one is made where it is not harmless",
    "schema": {"type": "string"},
}
REQUEST_HEADERS: list[Schema] = [
    _REQUEST_ID,
    {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "required": False,
        "description": "seconds after which the answer is of no use; the earlier one of this and the parameter holds",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_TIMEOUT},
    },
]
INFER_HEADERS: list[Schema] = [
    {
        "name": HEADER_LENGTH,
        "in": "header",
        "required": False,
        "description": "bytes of JSON before the tensors, in the inflated body; 0 if all of it is one input's data",
        "schema": {"type": "integer", "minimum": 0},
    },
]
ANSWER_HEADERS: dict[str, Schema] = {
    "X-Request-ID": {"schema": {"type": "string"}},
    "Server-Timing": {
        "description": "milliseconds that the request waited, that its calls took, and in all",
        "schema": {"type": "string"},
    },
}
BODY_TEXT = (
    "The body may be compressed (`Content-Encoding: gzip` or `deflate`), and so is the answer for those who ask."
)
INFER_TEXT = (
    "As `application/json`, or with tensors as bytes behind the JSON, in the order of the inputs; the header "
    f"`{HEADER_LENGTH}` then says how long the JSON is. "
)
