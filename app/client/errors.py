"""What can go wrong for a client.

ClientError
  InputError               the inputs cannot be sent, and were not
  ConnectionFailed         no connection, or it broke before the whole answer had come
  DeadlineExceeded         the time was over, here or at the service (504)
  InvalidAnswer            an answer that is none of this protocol
  Refused                  the service said no
    BadRequest             400, 413, 415 and what else is the request's own fault
    Unauthorized           401, 403
    NotFound               404, 410
    TooManyRequests        429
    ServerFault            500 and its like
    Unavailable            502, 503
"""

# ruff: noqa: N818 - a name says what went wrong; the base class says that it is an error.

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from typing import ClassVar

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]+)?")
_LONGEST_TEXT = 500


class ClientError(Exception):
    """Base of all.

    Attributes:
        text: what was wrong, in the service's words where it answered.
        status: of the answer; None where there was none.
        request_id: under which the service's log explains it.
        retry_after: seconds after which the service would like to be asked again.
        retryable: whether the same request may succeed later.
        unprocessed: whether the service is known to have done nothing: it refused at once (429, 503), or there was no
            connection to it.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        unprocessed: bool = False,
    ) -> None:
        super().__init__(text)
        self.text = text
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after
        self.unprocessed = unprocessed

    def __str__(self) -> str:
        facts = [] if self.status is None else [f"status {self.status}"]
        if self.request_id is not None:
            facts.append(f"request {self.request_id}")
        return f"{self.text} ({', '.join(facts)})" if facts else self.text


class InputError(ClientError, ValueError):
    """The inputs cannot be sent, and were not."""


class ConnectionFailed(ClientError):
    """There was no whole answer."""

    retryable = True


class DeadlineExceeded(ClientError, TimeoutError):
    """The time was over."""

    retryable = True


class InvalidAnswer(ClientError):
    """Whatever answered does not speak the protocol."""


class Refused(ClientError):
    """The service answered, and not with a result."""


class BadRequest(Refused):
    """The request itself is wrong."""


class Unauthorized(Refused):
    """The key is missing, or does not open this."""


class NotFound(Refused):
    """There is no such model or version."""


class TooManyRequests(Refused):
    """Too much waits already."""

    retryable = True


class ServerFault(Refused):
    """The service's own fault."""


class Unavailable(Refused):
    """It is loading, or shutting down, or out of memory."""

    retryable = True


_OF_STATUS: dict[int, type[ClientError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    410: NotFound,
    429: TooManyRequests,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
# Not 502, from a proxy whose service may have done it, nor 504.
_UNPROCESSED = (429, 503)


def error_of(status: int, headers: Mapping[str, str], text: str) -> ClientError:
    """The error that an answer is.

    Args:
        status: 300 or more.
        headers: of the answer.
        text: what it says.
    """
    if status < 400:
        kind: type[ClientError] = InvalidAnswer
    else:
        kind = _OF_STATUS.get(status, BadRequest if status < 500 else ServerFault)
    return kind(
        text[:_LONGEST_TEXT] or f"the service answered {status}",
        status=status,
        request_id=headers.get("x-request-id"),
        retry_after=_retry_after(headers.get("retry-after")),
        unprocessed=status in _UNPROCESSED,
    )


def _retry_after(value: str | None) -> float | None:
    """Seconds, which the header gives as such or as a date."""
    if value is None:
        return None
    if _SECONDS.fullmatch(value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
