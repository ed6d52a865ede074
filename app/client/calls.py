"""What both clients share: how a call becomes a request, and an answer a value or an error. Nothing here waits."""

from __future__ import annotations

import enum
import functools
import gzip
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from app.client.codec import Inputs, read_metadata
from app.client.errors import ClientError, ConnectionFailed, InputError, InvalidAnswer, NotFound, error_of
from app.client.retry import Attempts, Retry
from app.version import VERSION

# Fewer bytes are not worth the work.
_LEAST_TO_COMPRESS = 1024
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# What the service lets a request ask for, seconds.
_LONGEST_TIMEOUT = 86_400.0
_CONNECT_SECONDS = 5.0
# Paths of requests that have a deadline.
_COMPUTING = ("/infer", "/predict", "/adapt")
# What an attempt without an answer raises.
FAILURES = (httpx.HTTPError, TimeoutError)


class Own(enum.Enum):
    """Stands for what the client itself was made with."""

    TIMEOUT = "the client's own"


class Settled:
    """What a client was made with.

    Args:
        url: of the service, as ``http://127.0.0.1:8000``; a path in it stands before every path of the service.
        key: sent with every request.
        model: asked where a call names none.
        timeout: seconds for a call with all its attempts, where it names none; None for no end.
        retry: how often a call is repeated.
        binary: whether tensors travel as bytes; JSON else.
        compress: whether large requests are sent in gzip, and answers are asked for in it.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None,
        model: str | None,
        timeout: float | None,
        retry: Retry,
        binary: bool,
        compress: bool,
    ) -> None:
        try:
            self.url = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise ValueError(f"url must be one such as http://127.0.0.1:8000, however: {error}") from None
        if self.url.scheme not in ("http", "https") or not self.url.host:
            raise ValueError(f"url must begin with http:// or https:// and name a host, however: {str(self.url)!r}")
        self.base = str(self.url.copy_with(query=None, fragment=None)).rstrip("/")
        self.model = model
        self.timeout = timeout
        self.retry = retry
        self.binary = binary
        self.compress = compress
        self.headers = {"user-agent": f"ensembled/{VERSION}", "accept": "*/*"}
        self.headers["accept-encoding"] = "gzip, deflate" if compress else "identity"
        if key is not None:
            if not (key.isascii() and key.isprintable() and " " not in key and key):
                # The text does not show it.
                raise ValueError("key must be printable ASCII without spaces")
            self.headers["authorization"] = f"Bearer {key}"
        # What models take, by name and version.
        self.known: dict[tuple[str, str | None], Inputs] = {}

    def attempts(self, timeout: float | Own | None) -> Attempts:
        """The attempts at a call that has so many seconds."""
        return Attempts(self.retry, self.timeout if isinstance(timeout, Own) else timeout)

    def one_attempt(self) -> Attempts:
        """Those of a call that is not repeated, whatever comes of it."""
        return Attempts(Retry(attempts=1), self.timeout)

    def request(
        self,
        method: str,
        path: str,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Request:
        """A request with what all have in common."""
        whole = {**self.headers, **(headers or {})}
        if self.compress and len(content) >= _LEAST_TO_COMPRESS:
            content, whole["content-encoding"] = gzip.compress(content, 1), "gzip"
        return httpx.Request(method, _parsed(self.base + path), headers=whole, content=content)

    def identity(self, request_id: str | None) -> dict[str, str]:
        """The header that names a request.

        Raises:
            ValueError: the id has other characters than the service accepts.
        """
        if request_id is None:
            return {}
        if not _REQUEST_ID.fullmatch(request_id):
            raise ValueError(f"request_id must be 1 to 64 of the characters A-Z a-z 0-9 . _ -, however: {request_id!r}")
        return {"x-request-id": request_id}

    def remember(self, name: str, version: str | None, document: Any) -> Inputs:
        """Keep what a model takes."""
        self.known[name, version] = takes = read_metadata(document)
        return takes

    def forget(self, name: str, version: str | None) -> None:
        """Look up anew what a model takes, since one that replaced it may take other inputs."""
        self.known.pop((name, version), None)


def parameters(
    members: int | None,
    tolerance: float | None,
    confidence_level: float | None,
    levels: Sequence[float] | None,
    priority: int | None,
    perturbation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a call says, as the parameters of its request.

    Raises:
        InputError: a number of members beside a perturbation, which has its own.
    """
    if perturbation is not None and members is not None:
        raise InputError("members belongs into the perturbation: it has members of its own")
    return {
        "members": members,
        "tolerance": tolerance,
        "confidence_level": confidence_level,
        "levels": None if levels is None else [float(level) for level in levels],
        "priority": priority,
        **(perturbation or {}),
    }


@functools.lru_cache(256)
def _parsed(url: str) -> httpx.URL:
    return httpx.URL(url)


def model_path(name: str, version: str | None) -> str:
    """The path of a model."""
    path = f"/v2/models/{quote(name, safe='')}"
    return path if version is None else f"{path}/versions/{quote(str(version), safe='')}"


def limit(request: httpx.Request, seconds: float | None) -> None:
    """Tell service and transport how much time is left, before each attempt."""
    request.extensions["timeout"] = {
        "connect": _CONNECT_SECONDS if seconds is None else min(_CONNECT_SECONDS, seconds),
        "read": seconds,
        "write": seconds,
        "pool": seconds,
    }
    if seconds is not None and request.url.path.endswith(_COMPUTING):
        # Rounded up to what the service reads, since no time at all is none that it accepts.
        request.headers["x-request-timeout"] = f"{min(max(seconds, 0.001), _LONGEST_TIMEOUT):.3f}"


def only_model(index: Any) -> str:
    """The name of the one model that a service has.

    Raises:
        NotFound: it has none, or several.
    """
    try:
        names = sorted({str(entry["name"]) for entry in index})
    except (KeyError, TypeError):
        raise InvalidAnswer("the service's list of models cannot be read") from None
    if len(names) != 1:
        raise NotFound(f"name a model: there are {', '.join(names) or 'none'}")
    return names[0]


def document_of(response: httpx.Response) -> Any:
    """The JSON of an answer."""
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        raise InvalidAnswer(
            f"{response.headers.get('content-type', 'something')} came where JSON was expected; is the URL right?",
            status=response.status_code,
            request_id=response.headers.get("x-request-id"),
        ) from None


def refusal(response: httpx.Response) -> ClientError | None:
    """The error that an answer is; None if it is none."""
    if 200 <= response.status_code < 300:
        return None
    try:
        text = str(orjson.loads(response.content)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        text = f"{response.status_code} {response.reason_phrase}".strip()
    return error_of(response.status_code, response.headers, text)


def failure(error: Exception, attempts: Attempts) -> ClientError:
    """The error of an attempt without an answer."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ConnectionFailed(f"there is no connection: {error}", unprocessed=True)
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return attempts.over()
    if isinstance(error, httpx.DecodingError):
        return InvalidAnswer(f"the answer cannot be decompressed: {error}")
    return ConnectionFailed(
        f"the connection broke before the answer was complete: {str(error) or type(error).__name__}"
    )
