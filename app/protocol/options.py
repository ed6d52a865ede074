"""The request parameters that mean something here, read to `Options`.

Both APIs know the same six, with one difference: V2's `timeout` is a whole number of microseconds, as its other
servers have it, and in the plain API the name says the unit, `timeout_seconds`. A deadline may also come as a header,
in seconds, from a proxy that knows nothing of bodies; the earlier of the two holds.

Parameters that V2 does not know are passed over, as its servers do, but for those of a sequence: a client that sends
them counts on a state that is kept between its requests, and there is none here. The plain API is for people, who make
typing errors, and refuses every name that it does not know.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.errors import BadRequest
from app.protocol.request import Options, Question
from app.protocol.wording import describe, listing, quote

__all__ = [
    "DEFAULT_PRIORITY",
    "LONGEST_TIMEOUT",
    "MOST_LEVELS",
    "MOST_MEMBERS",
    "PRIORITIES",
    "TIMEOUT_HEADER",
    "explain_plain_options",
    "explain_v2_options",
    "parse_timeout",
    "read_plain_options",
    "read_v2_options",
]

TIMEOUT_HEADER = "X-Request-Timeout"
# Seconds.
LONGEST_TIMEOUT = 86_400
# As in Triton's configuration of a model: 1 is the most urgent, 0 stands for the default.
PRIORITIES = 9
DEFAULT_PRIORITY = 5
# Where the caller does not know how many the model has.
MOST_MEMBERS = 2**31 - 1
# Each is a search of its own.
MOST_LEVELS = 100

_MICROSECONDS = 1_000_000
_MEANINGS = {
    "members": "use only the first so many members: 1 to {members}",
    "tolerance": "evaluate members, in steps, until the standard error of the mean is at most this, or all are used",
    "confidence_level": "of intervals and sets: between 0 and 1; {confidence_level:g} if it is not given",
    "levels": "of quantiles: up to {levels} numbers between 0 and 1, as a list, a text such as 0.05,0.5,0.95, or one "
    "number; 0.05, 0.5 and 0.95 if they are not given",
    "timeout": "microseconds after which the answer is of no use any more, and the request is answered 504 instead",
    "timeout_seconds": "seconds after which the answer is of no use any more, and the request is answered 504 instead",
    "priority": "1 (most urgent) to {priorities}; 0 or none is {default}",
}
_LEVEL = re.compile(r"[0-9]{0,9}\.?[0-9]{1,20}", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_BOTH = ("members", "tolerance", "confidence_level", "levels")
_PLAIN = (*_BOTH, "timeout_seconds", "priority")
_V2 = (*_BOTH, "timeout", "priority")


def parse_timeout(value: str | None) -> float | None:
    """The seconds that the header `X-Request-Timeout` gives; None without the header."""
    if value is None:
        return None
    text = value.strip(" \t")
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise BadRequest(
            f"{TIMEOUT_HEADER} must be seconds above 0 and up to {LONGEST_TIMEOUT}, such as 1.5, however: "
            f"{quote(value)}"
        )
    return seconds


def read_v2_options(
    parameters: Mapping[str, Any], *, most_members: int = MOST_MEMBERS, timeout: float | None = None
) -> Options:
    """Reads the parameters of a V2 request.

    Args:
        parameters: of the request.
        most_members: how many members the model has.
        timeout: seconds, from the header.

    Raises:
        BadRequest: one of them has a value that it cannot have, or the request is part of a sequence.
    """
    # Clients write 0 or an empty text for a request that is part of none.
    if parameters.get("sequence_id") not in (None, 0, ""):
        raise BadRequest("no state is kept between requests here: send them without sequence_id")
    micros = _whole(parameters, "timeout", 1, LONGEST_TIMEOUT * _MICROSECONDS, "a whole number of microseconds")
    own = None if micros is None else micros / _MICROSECONDS
    return _options(parameters, own, most_members, timeout)


def read_plain_options(
    parameters: Mapping[str, Any],
    *,
    most_members: int = MOST_MEMBERS,
    timeout: float | None = None,
    others: Sequence[str] = (),
) -> Options:
    """Reads the parameters of a request of the plain API; as `read_v2_options`, and no other names are allowed.

    Args:
        parameters, most_members, timeout: as there.
        others: names that are allowed too, and read elsewhere.
    """
    for name in parameters:
        if name not in _PLAIN and name not in others:
            raise BadRequest(f"parameters must be among {listing((*_PLAIN, *others))}, however: {quote(name)}")
    own = _positive(parameters, "timeout_seconds", LONGEST_TIMEOUT)
    return _options(parameters, own, most_members, timeout)


def explain_v2_options(most_members: int, confidence_level: float = 0.9) -> dict[str, str]:
    """What each parameter of a V2 request means, for people; as far as it depends on the model, for this one.

    Args:
        most_members: how many members the model has.
        confidence_level: of its intervals and sets where a request gives none.
    """
    return _explain(_V2, most_members, confidence_level)


def explain_plain_options(most_members: int, confidence_level: float = 0.9) -> dict[str, str]:
    """The same for the plain API."""
    return _explain(_PLAIN, most_members, confidence_level)


def _explain(names: Sequence[str], most_members: int, confidence_level: float) -> dict[str, str]:
    words = {
        "members": most_members,
        "priorities": PRIORITIES,
        "default": DEFAULT_PRIORITY,
        "confidence_level": confidence_level,
        "levels": MOST_LEVELS,
    }
    return {name: _MEANINGS[name].format(**words) for name in names}


def _options(
    parameters: Mapping[str, Any], own_timeout: float | None, most_members: int, header_timeout: float | None
) -> Options:
    timeouts = [seconds for seconds in (own_timeout, header_timeout) if seconds is not None]
    urgency = _whole(parameters, "priority", 0, PRIORITIES, "a whole number")
    return Options(
        Question(
            members=_whole(parameters, "members", 1, most_members, "a whole number"),
            tolerance=_positive(parameters, "tolerance", math.inf),
            confidence_level=_between(parameters.get("confidence_level"), "parameters.confidence_level"),
            levels=_levels(parameters.get("levels")),
        ),
        timeout=min(timeouts, default=None),
        priority=DEFAULT_PRIORITY - urgency if urgency else 0,
    )


def _whole(parameters: Mapping[str, Any], name: str, least: int, most: int, what: str) -> int | None:
    value = parameters.get(name)
    if value is None:
        return None
    # A bool is an int to Python.
    if type(value) is not int or not least <= value <= most:
        raise BadRequest(f"parameters.{name} must be {what} from {least} to {most}, however: {describe(value)}")
    return value


def _positive(parameters: Mapping[str, Any], name: str, most: float) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    # An infinity never gets past the parser, but this function does not know that.
    if type(value) not in (int, float) or not 0 < value <= most or value == math.inf:
        limit = f" and up to {most:g}" if most < math.inf else ""
        raise BadRequest(f"parameters.{name} must be a number above 0{limit}, however: {describe(value)}")
    return float(value)


def _between(value: object, subject: str) -> float | None:
    """A number between 0 and 1; None for null."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise BadRequest(f"{subject} must be a number between 0 and 1, such as 0.9, however: {describe(value)}")
    return float(value)


def _levels(value: object) -> tuple[float, ...] | None:
    if value is None:
        return None
    subject = "parameters.levels"
    given: Sequence[object] = value if isinstance(value, list) else [value]
    if isinstance(value, str):
        # Not every client of V2 can send a list.
        parts = [part.strip(" \t") for part in value.split(",", MOST_LEVELS + 1)]
        if not all(map(_LEVEL.fullmatch, parts)):
            raise BadRequest(
                f"{subject} as a text must be numbers between 0 and 1 with commas, such as 0.05,0.95, however: "
                f"{quote(value)}"
            )
        given = [float(part) for part in parts]
    if not 1 <= len(given) <= MOST_LEVELS:
        raise BadRequest(f"{subject} must be 1 to {MOST_LEVELS} numbers between 0 and 1, however: {len(given)}")
    found = [_between(level, "each of parameters.levels") for level in given]
    if None in found:
        raise BadRequest("each of parameters.levels must be a number between 0 and 1, such as 0.9, however: null")
    return tuple(level for level in found if level is not None)
