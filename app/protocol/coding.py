"""Content codings: gzip and deflate, of requests and of answers.

A compressed body says nothing true of its size until it is inflated: a thousandth of what it becomes is enough. So
`Inflater` gives it out in small pieces, counts them, and stops at a limit; what it holds is a piece and what is left to
read. `deflate` is zlib's format, as HTTP defines it.
"""

import zlib
from collections.abc import Sequence

from app.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from app.protocol.wording import quote

__all__ = ["CODINGS", "PIECE", "Inflater", "accepted_coding", "compress", "content_coding"]

# What zlib calls them: 15 bits of window, and 16 more for gzip's frame instead of its own. The first is preferred.
CODINGS = {"gzip": 31, "deflate": 15}
# Inflated bytes at a time: about a millisecond, so that other requests are not kept waiting.
PIECE = 2**18
# Each costs a copy of what is left to read.
_MOST_MEMBERS = 100
# The fastest; the next ones gain a few percent on numbers and take several times as long.
_LEVEL = 1
_SAMPLE = 4096
_WORTH_IT = 0.8


class Inflater:
    """Inflates one body, a piece at a time.

    Args:
        coding: one of `CODINGS`.
        limit: bytes that the body may become.
    """

    def __init__(self, coding: str, limit: int) -> None:
        self._coding = coding
        self._limit = limit
        self._size = 0
        self._members = 1
        self._decoder = zlib.decompressobj(CODINGS[coding])
        self._input = b""
        self._holds_output = False

    def feed(self, data: bytes) -> None:
        """Add what has arrived, once `piece` has given out all that came before."""
        self._input += data

    def piece(self) -> bytes | None:
        """The next inflated bytes, at most `PIECE`; None if more must be fed first.

        Raises:
            BadRequest: this is not what the coding says.
            PayloadTooLarge: it is more than the limit.
        """
        while self._input or self._holds_output:
            if self._decoder.eof:
                self._next_member()
            most = min(PIECE, self._limit - self._size + 1)
            try:
                found = self._decoder.decompress(self._input, most)
            except zlib.error:
                raise BadRequest(f"the body is not what its Content-Encoding says: {self._broken()}") from None
            # The decoder may have read everything and still hold what did not fit.
            self._holds_output = len(found) == most and not self._decoder.eof
            self._input = self._decoder.unused_data if self._decoder.eof else self._decoder.unconsumed_tail
            self._size += len(found)
            if self._size > self._limit:
                raise PayloadTooLarge(
                    f"the body may have {self._limit} bytes at most once it is inflated; send fewer rows at a time"
                )
            if found:
                return found
        return None

    def end(self) -> None:
        """Check that the body is complete.

        Raises:
            BadRequest: it is not.
        """
        if not self._decoder.eof:
            raise BadRequest(f"the body must be whole, however: its {self._coding} data end too early")

    def _next_member(self) -> None:
        self._members += 1
        if self._coding != "gzip" or self._members > _MOST_MEMBERS:
            raise BadRequest(f"the body must end with its {self._coding} data, however: more bytes follow")
        self._decoder = zlib.decompressobj(CODINGS[self._coding])

    def _broken(self) -> str:
        if self._coding == "deflate" and self._size == 0:
            return "its deflate data are broken, or lack the frame of zlib (RFC 1950)"
        return f"its {self._coding} data are broken"


def content_coding(values: Sequence[str]) -> str | None:
    """The coding of a request's body by its `Content-Encoding` headers; None if it is plain.

    Raises:
        UnsupportedMediaType: it is another one, or there are several.
    """
    names = [name for value in values for name in _names(value) if name != "identity"]
    if not names:
        return None
    if len(names) == 1 and names[0] in CODINGS:
        return names[0]
    said = ", ".join(values)
    raise UnsupportedMediaType(
        f"Content-Encoding must be one of gzip, deflate or identity, however: {quote(said)}",
        headers={"Accept-Encoding": ", ".join(CODINGS)},
    )


def accepted_coding(values: Sequence[str]) -> str | None:
    """The coding that a client likes best by its `Accept-Encoding` headers; None if that is none."""
    weights: dict[str, float] = {}
    for value in values:
        for item in value.split(","):
            name, _, rest = item.partition(";")
            weights[_name(name)] = _weight(rest)
    other = weights.get("*", 0.0)
    liked = {coding: weights.get(coding, other) for coding in CODINGS}
    best = max(liked, key=lambda coding: liked[coding])
    return best if liked[best] > 0 and liked[best] >= weights.get("identity", 0.0) else None


def compress(body: bytes, coding: str) -> bytes | None:
    """The body in a coding; None if it would hardly be smaller, as random bytes would not."""
    sample = body[-_SAMPLE:]
    if len(_deflated(sample, coding)) > _WORTH_IT * len(sample):
        return None
    return _deflated(body, coding)


def _deflated(body: bytes, coding: str) -> bytes:
    encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, CODINGS[coding])
    return encoder.compress(body) + encoder.flush()


def _names(value: str) -> list[str]:
    return [_name(name) for name in value.split(",")]


def _name(text: str) -> str:
    name = text.strip(" \t").lower()
    # HTTP knows it by two names.
    return "gzip" if name == "x-gzip" else name


def _weight(text: str) -> float:
    """What stands behind a name: ``q=0.5``, or nothing for 1. What cannot be read is not wanted."""
    name, _, number = text.strip(" \t").partition("=")
    if not name:
        return 1.0
    try:
        weight = float(number) if name.strip(" \t").lower() == "q" else 0.0
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0
