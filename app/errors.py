"""What can go wrong with a request: a tree of errors, each with its HTTP status and its public text.

The HTTP answer follows from the class alone, so there is no table that maps errors to answers: whoever finds
a fault raises the class that names it, and one handler turns any `ServiceError` into `status`, `headers` and
`body()`. `reason` is the word under which the metrics count it as refused (:data:`app.metrics.REASONS`): None where
that is no refusal, or where whoever raises it has told the metrics itself. A message is public: it says what was wrong
and what would be right, and never holds a path, a stack trace or the text of another exception.

    ServiceError
      BadRequest 400            Unauthorized 401          Forbidden 403
      NotFound 404              MethodNotAllowed 405      Gone 410
      RequestTimeout 408        PayloadTooLarge 413       UnsupportedMediaType 415
      Misdirected 421           TooManyRequests 429       ClientGone 499
      InternalError 500         Unavailable 503           DeadlineExceeded 504
"""

# ruff: noqa: N818 - a name says what went wrong, in HTTP's own words; the base class says that it is an error.

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

__all__ = [
    "BadRequest",
    "ClientGone",
    "DeadlineExceeded",
    "Forbidden",
    "Gone",
    "InternalError",
    "MethodNotAllowed",
    "Misdirected",
    "NotFound",
    "PayloadTooLarge",
    "RequestTimeout",
    "ServiceError",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "UnsupportedMediaType",
]

# A client told to wait longer than this would rather be told that the service is down.
_LONGEST_WAIT = 3600


class ServiceError(Exception):
    """Base of every error that has an HTTP answer; raise one of its subclasses."""

    status: ClassVar[int] = 500
    reason: str | None = None

    def __init__(self, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.headers: dict[str, str] = dict(headers or {})

    def body(self) -> dict[str, str]:
        """The JSON object of the answer, the same for every error of both protocols."""
        return {"error": self.message}


class BadRequest(ServiceError):
    """The request itself is wrong: sending it again unchanged cannot help."""

    status = 400


class Unauthorized(ServiceError):
    """There is no key, or one that opens nothing."""

    status = 401
    reason = "unauthorized"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"WWW-Authenticate": 'Bearer realm="ensembled"'})


class Forbidden(ServiceError):
    """Whoever asks may not, whatever the request says."""

    status = 403
    reason = "forbidden"


class NotFound(ServiceError):
    """No such path, model or version."""

    status = 404


class Gone(ServiceError):
    """What was there under this name has ended."""

    status = 410


class MethodNotAllowed(ServiceError):
    """The path exists, but not with this method; `allow` lists those that it has."""

    status = 405

    def __init__(self, message: str, *, allow: Iterable[str] = ()) -> None:
        methods = ", ".join(allow)
        super().__init__(message, headers={"Allow": methods} if methods else None)


class RequestTimeout(ServiceError):
    """The body did not arrive in time."""

    status = 408
    reason = "too_slow"


class PayloadTooLarge(ServiceError):
    """The body, as sent or once inflated, is over the cap."""

    status = 413
    reason = "too_large"


class UnsupportedMediaType(ServiceError):
    """The content type or content encoding is not one that the path reads."""

    status = 415


class Misdirected(ServiceError):
    """The request is for a host that this service is not."""

    status = 421
    reason = "misdirected"


class TooManyRequests(ServiceError):
    """The service is at its limit; the same request may succeed after `retry_after` seconds."""

    status = 429

    def __init__(self, message: str, *, reason: str | None = None, retry_after: float = 1.0) -> None:
        self.reason = reason
        # The header holds whole seconds; zero would invite an immediate retry.
        seconds = max(1, math.ceil(min(retry_after, _LONGEST_WAIT)))
        super().__init__(message, headers={"Retry-After": str(seconds)})


class ClientGone(ServiceError):
    """Nobody waits for the answer any more. The status, which no client sees, is the one that proxies log."""

    status = 499


class InternalError(ServiceError):
    """A fault of the service. Its text is fixed: the log, not the client, is told what happened."""

    status = 500

    def __init__(self, request_id: str) -> None:
        super().__init__(f"internal error; the server's log explains it under request id {request_id}")
        self.request_id = request_id


class Unavailable(ServiceError):
    """The model or the service cannot answer now: loading, unloading or shutting down."""

    status = 503


class DeadlineExceeded(ServiceError):
    """The time that the request gave, or that the service gives, passed before there was an answer.

    Attributes:
        spent: seconds that it waited, and that its calls took until then; None if it was past before either.
    """

    status = 504

    def __init__(self, message: str, *, spent: tuple[float, float] | None = None) -> None:
        super().__init__(message)
        self.spent = spent
