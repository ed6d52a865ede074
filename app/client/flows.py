"""A call as the requests that it makes one after the other.

A flow is a generator: it yields what to send, is sent the answer or thrown the error that came of it, and returns what
the call gives. It never waits, so that both clients run the same flows; httpx's authentication does likewise.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import httpx
from numpy.typing import ArrayLike

from app.client import adapting, calls
from app.client.calls import Settled
from app.client.codec import Inputs, decode, encode
from app.client.errors import (
    BadRequest,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    InputError,
    NotFound,
    Unavailable,
)
from app.client.result import Result
from app.client.retry import Attempts

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One request of a call.

    Attributes:
        request: what is sent.
        idempotent: whether the service may do it twice; if not, it is repeated only where the service surely did
            nothing.
    """

    request: httpx.Request
    idempotent: bool = True


Flow: TypeAlias = Generator[Step, httpx.Response, T]


def infer(
    settled: Settled,
    model: str | None,
    version: str | None,
    inputs: Mapping[str, ArrayLike] | ArrayLike,
    outputs: Sequence[str] | None,
    parameters: Mapping[str, Any],
    *,
    target: Mapping[str, ArrayLike] | ArrayLike | None,
    perturbation: Mapping[str, Any] | None,
    weights: Mapping[str, ArrayLike] | None,
    request_id: str | None,
) -> Flow[Result]:
    """An inference; arguments are those of the clients' calls.

    What the model takes is remembered from call to call. Where that may be the reason for a refusal, it is looked up
    once more, and the call made again if it has changed: the model may have been replaced meanwhile.

    Raises:
        InputError: the inputs, the target or the weights are not what the model takes.
        ValueError: the request id has other characters than the service accepts.
    """
    identity = settled.identity(request_id)

    def step(takes: Inputs) -> Step:
        takes.check(perturbation or {})
        content, headers = encode(
            inputs, takes, outputs, parameters, binary=settled.binary, target=target, weights=weights
        )
        path = f"{calls.model_path(takes.model, version)}/infer"
        return Step(settled.request("POST", path, content, headers | identity))

    name = yield from _name(settled, model)
    known = settled.known.get((name, version))
    takes = known or (yield from _takes(settled, name, version))
    try:
        response = yield step(takes)
    except (InputError, BadRequest, NotFound) as error:
        if known is None:
            raise
        refused = error
    else:
        return decode(response.content, response.headers)
    settled.forget(name, version)
    try:
        takes = yield from _takes(settled, name, version)
    except ClientError:
        raise refused from None
    if takes == known:
        raise refused
    response = yield step(takes)
    return decode(response.content, response.headers)


def adapt(
    settled: Settled,
    model: str | None,
    version: str | None,
    support: tuple[adapting.Inputs, adapting.Inputs],
    queries: adapting.Inputs | None,
    request_id: str | None,
    wishes: Mapping[str, Any],
) -> Flow[Result]:
    """An adaptation; ``wishes`` are the fields of the request beside the examples and the queries."""
    document = {"support": adapting.support(support), "queries": adapting.rows(queries, "queries"), **wishes}
    path = adapting.adapt_path((yield from _name(settled, model)), version)
    # Adapted twice is as good as once, but of a second model that is kept nobody would know the handle.
    keeps = wishes["keep_seconds"] is not None
    response = yield Step(adapting.request(settled, path, document, request_id), idempotent=not keeps)
    return adapting.decode(response)


def ask_adapted(
    settled: Settled,
    handle: str,
    inputs: Mapping[str, ArrayLike] | ArrayLike,
    outputs: Sequence[str] | None,
    parameters: Mapping[str, Any],
    request_id: str | None,
) -> Flow[Result]:
    """What an adapted model says that was kept."""
    document = {"inputs": adapting.rows(inputs, "inputs"), "outputs": outputs, "parameters": parameters}
    path = f"{adapting.adapted_path(handle)}/predict"
    return adapting.decode((yield Step(adapting.request(settled, path, document, request_id))))


def forget_adapted(settled: Settled, handle: str, attempts: Attempts) -> Flow[None]:
    """End an adapted model before its time."""
    try:
        yield Step(settled.request("DELETE", adapting.adapted_path(handle)))
    except NotFound:
        # What an attempt without an answer may have ended is gone as it should be.
        if not attempts.in_doubt:
            raise


def metadata(settled: Settled, model: str | None, version: str | None) -> Flow[dict[str, Any]]:
    """A model's description."""
    return (yield from _metadata(settled, (yield from _name(settled, model)), version))


def index(settled: Settled) -> Flow[Any]:
    """Every version of every model."""
    return calls.document_of((yield Step(settled.request("POST", "/v2/repository/index"))))


def is_well(settled: Settled, path: str) -> Flow[bool]:
    """Whether what is asked about its health says that it is well."""
    try:
        yield Step(settled.request("GET", path))
    except (Unavailable, ConnectionFailed, DeadlineExceeded):
        return False
    return True


def manage(settled: Settled, model: str, verb: str) -> Flow[None]:
    """Load or unload a model; either may be repeated, and comes to the same."""
    path = f"/v2/repository{calls.model_path(model, None).removeprefix('/v2')}/{verb}"
    settled.forget(model, None)
    yield Step(settled.request("POST", path, b"{}", {"content-type": "application/json"}))


def _name(settled: Settled, model: str | None) -> Flow[str]:
    return model or settled.model or calls.only_model((yield from index(settled)))


def _takes(settled: Settled, name: str, version: str | None) -> Flow[Inputs]:
    return settled.remember(name, version, (yield from _metadata(settled, name, version)))


def _metadata(settled: Settled, name: str, version: str | None) -> Flow[dict[str, Any]]:
    response = yield Step(settled.request("GET", calls.model_path(name, version)))
    found: dict[str, Any] = calls.document_of(response)
    return found
