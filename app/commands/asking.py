"""One question about rows, asked of a saved ensemble or of a running service; both answer with the same document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
from numpy.typing import NDArray

from app.keys import key_header

# Of a saved ensemble; a larger file is asked in slices.
_ROWS_AT_ONCE = 256


class AskingError(Exception):
    """Who is asked cannot answer; the text says why."""


@dataclass(frozen=True)
class Asking:
    """What is asked.

    Attributes:
        inputs: arrays by the names of the inputs; a lone one may be named "".
        outputs: statistics; None for the default ones.
        parameters: of the request, such as levels.
        targets: by the names of the model's outputs; that of the only one is named "".
    """

    inputs: dict[str, NDArray[Any]]
    outputs: list[str] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    targets: dict[str, NDArray[Any]] = field(default_factory=dict)

    def body(self, about: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
        """The body of a request.

        Args:
            about: of each output that is about a target, the target's name and shape, -1 for the rows.

        Raises:
            AskingError: numbers that JSON has no word for, or targets that the model has no output for.
        """
        for name, array in (*self.inputs.items(), *self.targets.items()):
            if not np.isfinite(array).all():
                raise AskingError(f"{name or 'the file'} holds NaN or infinity, for which JSON has no word")
        body: dict[str, Any] = {"inputs": _alone({name: array.tolist() for name, array in self.inputs.items()})}
        if self.outputs:
            body["outputs"] = self.outputs
        if self.parameters:
            body["parameters"] = self.parameters
        if self.targets:
            body["target"] = dict(_named(name, array, about) for name, array in self.targets.items())
        return orjson.dumps(body)


def of_saved(path: Path, device: str, asking: Asking) -> dict[str, Any]:
    """What a saved ensemble answers, by the way of a request through the service, without the service.

    Raises:
        AskingError: it cannot answer.
    """
    import ensemble
    from app.engine import DeviceError, pick_device
    from app.errors import ServiceError
    from app.protocol import decode_predict, encode_predict
    from app.served import wrap

    try:
        made = ensemble.load(path, device=pick_device(device))
        whole = path.resolve()
        served = wrap(whole.parent.name, whole.name, made, _ROWS_AT_ONCE)
        body = asking.body({output: (spec.name, spec.shape) for output, spec in served.targets.items()})
        asked = decode_predict(
            body, served.inputs, served.outputs, served.defaults, targets=served.targets, lacking=served.lacking
        )
        served.check_targets(asked.targets, asked.rows)
        names = tuple(output.name for output in asked.outputs)
        arrays = served.infer({**asked.inputs, **asked.targets}, names, asked.options.question)
    except (ensemble.EnsembledError, ServiceError, DeviceError) as error:
        raise AskingError(str(error)) from error
    answer: dict[str, Any] = orjson.loads(encode_predict(served.name, served.version, asked, arrays, served.details))
    return answer


def of_service(url: str, model: str | None, timeout: float, asking: Asking) -> dict[str, Any]:
    """What a running service answers.

    Args:
        url: its base.
        model: None for its default model.
        timeout: seconds for each answer.

    Raises:
        AskingError: it cannot answer.
    """
    about = {}
    if asking.targets:
        if model is None:
            model = _reply(url, "/v1/models", timeout, {"models"})["default"]
        if model is None:
            raise AskingError(f"{url} has no default model; --model says which is asked")
        found = _reply(url, f"/v1/models/{quote(model, safe='')}", timeout, {"parameters"})
        targets = found["parameters"].get("targets", [])
        about = {target["output"]: (target["name"], tuple(target["shape"])) for target in targets}
    path = f"/v1/models/{quote(model, safe='')}/predict" if model else "/predict"
    return _reply(url, path, timeout, {"outputs"}, asking.body(about))


def _reply(url: str, path: str, timeout: float, wanted: set[str], body: bytes | None = None) -> dict[str, Any]:
    """The document that a service answers.

    Raises:
        AskingError: there is none, or it is an error.
    """
    import httpx

    headers = {"Content-Type": "application/json", **key_header()}
    where = url.rstrip("/") + path
    try:
        if body is None:
            reply = httpx.get(where, headers=headers, timeout=timeout)
        else:
            reply = httpx.post(where, content=body, headers=headers, timeout=timeout)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise AskingError(f"{url} does not answer: {str(error) or type(error).__name__}") from None
    try:
        answer = reply.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not (answer.keys() & {*wanted, "error"}):
        raise AskingError(f"{url} answered {reply.status_code}, but not as ensembled does; is it the base URL?")
    if reply.status_code != 200:
        raise AskingError(f"{url} answered {reply.status_code}: {answer.get('error', '')}")
    return answer


def _named(name: str, array: NDArray[Any], about: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[str, list[Any]]:
    """A target as a request has it: its name, and its numbers."""
    output = f"{name}.log_prob" if name else next(iter(about), "")
    if output not in about or (not name and len(about) > 1):
        there = ", ".join(sorted(other.removesuffix(".log_prob") for other in about))
        if not about:
            raise AskingError("--target is for log_prob, which this model does not have; ensembled inspect says why")
        if len(about) == 1:
            raise AskingError("--target takes the name of an array or column, since the model makes one prediction")
        raise AskingError(f"--target must be OUTPUT=NAME, with OUTPUT among {there}, since the model makes several")
    called, shape = about[output]
    # A table has no whole numbers, and a column no second dimension.
    whole = array.dtype.kind == "f" and np.array_equal(array, np.rint(array)) and np.abs(array).max() < 2**53
    values = array.astype(np.int64) if whole else array
    return called, (values[:, None] if shape[1:] == (1,) and values.ndim == 1 else values).tolist()


def _alone(lists: dict[str, list[Any]]) -> Any:
    return lists[""] if list(lists) == [""] else lists
