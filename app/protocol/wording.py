"""How a value that a client sent is shown in an error text: in JSON's words, short, on one line.

An error text is sent back and logged, so what it quotes must not be long, must not break a line, and must not
be read as anything but a quotation. Names that the server chose (of inputs, outputs, models) are shown in
full.
"""

import math
from collections.abc import Iterable

_LONGEST_QUOTE = 60
_BIGGEST_SHOWN = 2**64


def quote(text: str) -> str:
    """A client's text in quotation marks, escaped, and cut to about 60 characters."""
    quoted = repr(text[:_LONGEST_QUOTE])
    if len(text) <= _LONGEST_QUOTE and len(quoted) <= _LONGEST_QUOTE + 2:
        return quoted
    # Escapes can make a short text long, hence the second cut.
    return f"{quoted[: _LONGEST_QUOTE + 1]}…{quoted[0]}"


def describe(value: object) -> str:
    """What a parsed JSON value is, for "must be …, however: …"."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the text {quote(value)}"
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "an object"
        case int():
            return str(value) if abs(value) <= _BIGGEST_SHOWN else "a number beyond 64 bits"
        case float():
            return repr(value) if math.isfinite(value) else "not a finite number"
        case _:
            return "something that JSON has no word for"


def listing(names: Iterable[str]) -> str:
    """Names of the server's own, for "must be one of …"."""
    return ", ".join(map(repr, names))
