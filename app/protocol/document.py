"""One JSON document from untrusted bytes: an object at most 100 deep, or an error that says where it breaks.

Opening brackets are counted first, since what holds very many takes long to parse and far more memory than its
text. orjson parses 1,024 levels without harm, so the depth is measured after it, on the bytes: a document with at
most 100 opening brackets cannot be deeper than 100, which settles it for ordinary bodies. For the rest
the text is reduced to its brackets outside of strings, and the running sum of openings less closings is the
depth. All of this runs at the speed of memory; a walk over the parsed values would cost more than the parsing
did.
"""

import re
from typing import Any

import numpy as np
import orjson

from app.errors import BadRequest

__all__ = ["MAX_CONTAINERS", "MAX_DEPTH", "may_hold_booleans", "parse_json"]

MAX_DEPTH = 100
# An empty list is two bytes of text and eighty of memory; a million of them keep the parser for tenths of a second.
MAX_CONTAINERS = 1_000_000

_BRACKET = np.uint8(ord("[") & ord("{"))
_ALL_BUT_THE_BIT = np.uint8(0xFF ^ (ord("[") ^ ord("{")))
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_STRING = re.compile(rb'"[^"]*"')
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_STEP = np.zeros(256, dtype=np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1
# Bounds the memory that the running sum takes, whatever the body's size.
_CHUNK = 1 << 18

_NOT_FINITE = re.compile(r"[+-]?(nan|inf)", re.IGNORECASE)
_NUMBER = re.compile(r"-?[0-9]")


def parse_json(body: bytes) -> dict[str, Any]:
    """Parses a request body that must be a JSON object.

    Raises:
        BadRequest: the body is empty, is not JSON (with line and column), is no object, is nested too deep, or
        holds too many lists and objects.
    """
    if not body:
        raise BadRequest('the body is empty; it must be a JSON object, such as {"inputs": ...}')
    brackets = _brackets(body)
    if brackets > MAX_CONTAINERS:
        raise BadRequest(
            f"the JSON must hold at most {MAX_CONTAINERS} lists and objects, however: {brackets}; V2 takes numbers in "
            "one flat list, or as bytes"
        )
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if brackets > MAX_DEPTH and _is_too_deep(body):
            raise _too_deep() from None
        raise BadRequest(_where_it_breaks(body, error)) from None
    if brackets > MAX_DEPTH and _is_too_deep(body):
        raise _too_deep()
    if type(document) is not dict:
        raise BadRequest('the body must be a JSON object, such as {"inputs": ...}, not another JSON value')
    return document


def may_hold_booleans(body: bytes) -> bool:
    """Whether there can be a `true` or `false` in a JSON document; False is certain.

    One letter of each is looked for, which takes no time and which the protocols' usual keys do not have.
    """
    return b"r" in body or b"l" in body


def _brackets(body: bytes) -> int:
    """How many opening brackets there are, those in strings included."""
    # Both kinds but for one bit; an array counts them several times as fast as bytes do.
    return int(np.count_nonzero((np.frombuffer(body, dtype=np.uint8) & _ALL_BUT_THE_BIT) == _BRACKET))


def _is_too_deep(body: bytes) -> bool:
    if b"\\" in body:
        body = _ESCAPE.sub(b"", body)
    skeleton = _STRING.sub(b"", body.translate(None, _NOT_STRUCTURE))
    depth = 0
    for start in range(0, len(skeleton), _CHUNK):
        steps = _STEP[np.frombuffer(skeleton[start : start + _CHUNK], dtype=np.uint8)]
        depths = np.cumsum(steps, dtype=np.int64)
        if depth + int(depths.max()) > MAX_DEPTH:
            return True
        depth += int(depths[-1])
    return False


def _too_deep() -> BadRequest:
    return BadRequest(f"the JSON must be nested at most {MAX_DEPTH} deep, however: it is deeper")


def _where_it_breaks(body: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        rest = body.decode()[error.pos : error.pos + 16]
    except UnicodeDecodeError as bad:
        return f"the body must be JSON in UTF-8, however: byte {bad.start} is not UTF-8"
    where = f"at line {error.lineno}, column {error.colno}"
    if _NOT_FINITE.match(rest):
        return f"the body is not JSON {where}: JSON has no NaN or infinity; binary tensors can carry them"
    if _NUMBER.match(rest) and "infinity" in error.msg:
        return f"the body has a number {where} that is too large for any datatype"
    return f"the body is not JSON {where}: {error.msg}"
