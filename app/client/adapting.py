"""Adaptation from the client's side: examples to the body of a request in the plain API, and its answer to arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import numpy as np
import orjson
from numpy.typing import ArrayLike, NDArray

from app.client.codec import timings_of
from app.client.errors import InputError, InvalidAnswer
from app.client.result import Result

if TYPE_CHECKING:
    from app.client.calls import Settled

Inputs = Mapping[str, ArrayLike] | ArrayLike
_JSON = {"content-type": "application/json"}


def adapt_path(name: str, version: str | None) -> str:
    """Where a model is adapted."""
    path = f"/v1/models/{quote(name, safe='')}"
    return f"{path}/adapt" if version is None else f"{path}/versions/{quote(str(version), safe='')}/adapt"


def adapted_path(handle: str) -> str:
    """Where what is kept under a handle is."""
    return f"/v1/adapted/{quote(handle, safe='')}"


def request(settled: Settled, path: str, document: Mapping[str, Any], request_id: str | None) -> httpx.Request:
    """A request with a JSON body; of what is None nothing is said."""
    body = orjson.dumps(_said(document), option=orjson.OPT_SERIALIZE_NUMPY)
    return settled.request("POST", path, body, _JSON | settled.identity(request_id))


def support(examples: tuple[Inputs, Inputs]) -> dict[str, Any]:
    """The examples of a request.

    Raises:
        InputError: it is not (inputs, targets), or they cannot be sent.
    """
    if not isinstance(examples, tuple) or len(examples) != 2:
        raise InputError("support must be (inputs, targets)")
    return {"inputs": _named(examples[0], "support"), "targets": _named(examples[1], "targets")}


def rows(inputs: Inputs | None, what: str) -> Any:
    """Rows of a model's inputs, as JSON takes them.

    Raises:
        InputError: they are no numbers, or not finite.
    """
    return None if inputs is None else _named(inputs, what)


def decode(response: httpx.Response) -> Result:
    """A result from an answer of the plain API.

    Raises:
        InvalidAnswer: it is none.
    """
    try:
        said = orjson.loads(response.content)
        outputs = {name: _from_json(values) for name, values in said.pop("outputs").items()}
        return Result(
            outputs,
            said.pop("model"),
            said.pop("version"),
            said.pop("members", None),
            said.pop("seed", None),
            response.headers.get("x-request-id"),
            timings_of(response.headers.get("server-timing", "")),
            said,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidAnswer(
            f"the answer cannot be read: {type(error).__name__}: {error}",
            request_id=response.headers.get("x-request-id"),
        ) from None


def _said(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _said(value) if key == "parameters" else value for key, value in document.items() if value is not None}


def _named(given: Inputs, what: str) -> Any:
    if isinstance(given, Mapping):
        return {name: _array(array, name) for name, array in given.items()}
    return _array(given, what)


def _array(given: ArrayLike, what: str) -> NDArray[Any]:
    try:
        array = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise InputError(f"{what!r} is no array: {error}") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{what!r} must be numbers, however: an array of {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{what!r} holds NaN or infinity, which a request that adapts does not carry")
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)


def _from_json(values: Any) -> NDArray[Any]:
    array = np.array(values)
    if array.dtype.kind in "iub":
        return array
    # JSON has neither NaN nor infinity; the service writes null.
    return np.array(values, dtype=np.float32)
