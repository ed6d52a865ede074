"""Arrays to the body of a V2 inference, and its answer to arrays: the client's side of the protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import ArrayLike, NDArray

from app.client.errors import InputError, InvalidAnswer
from app.client.result import Result
from app.errors import BadRequest
from app.protocol.datatypes import DATATYPES, Datatype, bfloat16_bits, bfloat16_values
from app.protocol.tensors import array_from_bytes
from app.protocol.v2_answer import HEADER_LENGTH

_TIMING = re.compile(r"\s*([a-z]+);dur=([0-9]+(?:\.[0-9]+)?)\s*")


@dataclass(frozen=True)
class Inputs:
    """What a model takes, from its metadata.

    Attributes:
        model: its name.
        datatypes: of each input, by its name.
        targets: of each target that an output may be about, by its name.
        weights: of each weight that may come with a request, by its name.
        perturbation: names of what a perturbation may hold.
    """

    model: str
    datatypes: Mapping[str, Datatype]
    targets: Mapping[str, Datatype] = field(default_factory=dict)
    weights: Mapping[str, Datatype] = field(default_factory=dict)
    perturbation: tuple[str, ...] = ()

    def check(self, perturbation: Mapping[str, Any]) -> None:
        """That the service knows what a perturbation holds, since the protocol passes over what it does not know.

        Raises:
            InputError: it does not.
        """
        for name in perturbation:
            if name not in self.perturbation:
                known = ", ".join(map(repr, self.perturbation)) or "nothing, as the service permits none"
                raise InputError(f"a perturbation of model {self.model!r} may hold {known}, however: {name!r}")


def read_metadata(document: Mapping[str, Any]) -> Inputs:
    """A model's inputs.

    Raises:
        InvalidAnswer: it is no metadata, or has a datatype that is not known here.
    """
    try:
        more = document.get("parameters") or {}
        lists = (document["inputs"], more.get("targets") or (), more.get("weight_inputs") or ())
        inputs, targets, weights = ({str(s["name"]): DATATYPES[s["datatype"]] for s in specs} for specs in lists)
        perturbation = tuple(map(str, more.get("perturbation_parameters") or ()))
        return Inputs(str(document["name"]), inputs, targets, weights, perturbation)
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidAnswer(f"the service's metadata cannot be read: {error} is missing or not known") from None


def encode(
    inputs: Mapping[str, ArrayLike] | ArrayLike,
    takes: Inputs,
    outputs: Sequence[str] | None,
    parameters: Mapping[str, Any],
    *,
    binary: bool,
    target: Mapping[str, ArrayLike] | ArrayLike | None = None,
    weights: Mapping[str, ArrayLike] | None = None,
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a request.

    Args:
        inputs: an array for each input by name, or the one array of a model with one input.
        takes: what the model takes; arrays are converted where no information but precision is lost.
        outputs: which to ask for; None for the model's defaults.
        parameters: of the request.
        binary: whether tensors go and come as bytes rather than JSON.
        target: of outputs that are about one, an array for each by name, or the one that there may be.
        weights: that the model is to have, or factors of what is added to them, by name.

    Raises:
        InputError: a name is missing or unknown, or an array is not what the model takes.
    """
    tensors: list[dict[str, Any]] = []
    tail: list[memoryview] = []
    arrays = [(name, array, takes.datatypes[name]) for name, array in _named(inputs, takes).items()]
    if target is not None:
        arrays += [(name, array, takes.targets[name]) for name, array in _named_targets(target, takes).items()]
    arrays += [(name, array, _weight(name, takes)) for name, array in (weights or {}).items()]
    for name, array, datatype in arrays:
        given = _converted(array, datatype, name)
        tensor: dict[str, Any] = {"name": name, "shape": list(given.shape), "datatype": datatype.name}
        if binary:
            tensor["parameters"] = {"binary_data_size": given.nbytes}
            tail.append(given.reshape(-1).view(np.uint8).data)
        else:
            tensor["data"] = _for_json(given, datatype, name)
        tensors.append(tensor)
    document: dict[str, Any] = {"inputs": tensors}
    if outputs is not None:
        document["outputs"] = [{"name": name, "parameters": {"binary_data": binary}} for name in outputs]
    said = {name: value for name, value in parameters.items() if value is not None}
    if binary and outputs is None:
        said["binary_data_output"] = True
    if said:
        document["parameters"] = said
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not binary:
        return head, {"content-type": "application/json"}
    return b"".join([head, *tail]), {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def decode(body: bytes, headers: Mapping[str, str]) -> Result:
    """A result from an answer.

    Raises:
        InvalidAnswer: it is none of this protocol.
    """
    try:
        length = int(headers.get(HEADER_LENGTH.lower(), len(body)))
        document = orjson.loads(body[:length])
        tail, used = memoryview(body)[length:], 0
        arrays: dict[str, NDArray[Any]] = {}
        for tensor in document["outputs"]:
            datatype, shape = DATATYPES[tensor["datatype"]], tuple(tensor["shape"])
            size = (tensor.get("parameters") or {}).get("binary_data_size")
            if size is None:
                array = _from_json(tensor["data"], datatype).reshape(shape)
            else:
                # Copied, so that it is the caller's own and does not keep the whole answer.
                array = np.array(array_from_bytes(tail[used : used + size], datatype, shape))
                used += size
            arrays[tensor["name"]] = bfloat16_values(array) if datatype.name == "BF16" else array
        said = dict(document.get("parameters") or {})
        return Result(
            arrays,
            document["model_name"],
            document.get("model_version", ""),
            said.pop("members", None),
            said.pop("seed", None),
            headers.get("x-request-id"),
            timings_of(headers.get("server-timing", "")),
            said,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, BadRequest) as error:
        raise InvalidAnswer(
            f"the answer cannot be read: {type(error).__name__}: {error}", request_id=headers.get("x-request-id")
        ) from None


def _weight(name: str, takes: Inputs) -> Datatype:
    """The datatype of a weight, or of a factor of one."""
    for known in (name, name.removesuffix(".left"), name.removesuffix(".right")):
        if known in takes.weights:
            return takes.weights[known]
    if not takes.weights:
        raise InputError(f"the service permits no weights in requests to model {takes.model!r}")
    raise InputError(f"model {takes.model!r} has the weights {', '.join(map(repr, takes.weights))}, however: {name!r}")


def _named(inputs: Mapping[str, ArrayLike] | ArrayLike, takes: Inputs) -> Mapping[str, ArrayLike]:
    names = ", ".join(map(repr, takes.datatypes))
    if not isinstance(inputs, Mapping):
        if len(takes.datatypes) != 1:
            raise InputError(f"model {takes.model!r} takes {names}: give a dict with an array for each")
        return {next(iter(takes.datatypes)): inputs}
    for name in inputs:
        if name not in takes.datatypes:
            raise InputError(f"model {takes.model!r} takes {names}, however: {name!r}")
    if missing := [name for name in takes.datatypes if name not in inputs]:
        raise InputError(f"model {takes.model!r} takes {names}, however: {', '.join(map(repr, missing))} missing")
    return inputs


def _named_targets(target: Mapping[str, ArrayLike] | ArrayLike, takes: Inputs) -> Mapping[str, ArrayLike]:
    names = ", ".join(map(repr, takes.targets))
    if not takes.targets:
        raise InputError(f"no output of model {takes.model!r} is about a target")
    if not isinstance(target, Mapping):
        if len(takes.targets) != 1:
            raise InputError(f"model {takes.model!r} takes the targets {names}: give a dict with those asked about")
        return {next(iter(takes.targets)): target}
    for name in target:
        if name not in takes.targets:
            raise InputError(f"model {takes.model!r} takes the targets {names}, however: {name!r}")
    return target


def _converted(given: ArrayLike, datatype: Datatype, name: str) -> NDArray[Any]:
    """An array of the datatype, contiguous; refused where numbers would become others."""
    try:
        array = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise InputError(f"input {name!r} is no array: {error}") from None
    is_bfloat = datatype.name == "BF16"
    wanted = np.dtype(np.float32) if is_bfloat else datatype.dtype
    if array.dtype != wanted:
        both_whole = array.dtype.kind in "iu" and wanted.kind in "iu"
        if array.dtype.kind == "b" or not (both_whole or np.can_cast(array.dtype, wanted, casting="same_kind")):
            raise InputError(f"input {name!r} must be {datatype.name}, however: an array of {array.dtype}")
        if wanted.kind in "iu" and array.size:
            limits: Any = np.iinfo(str(wanted))
            if int(array.min()) < limits.min or int(array.max()) > limits.max:
                raise InputError(f"input {name!r} must hold {datatype.values}")
        try:
            with np.errstate(over="raise"):
                array = array.astype(wanted)
        except FloatingPointError:
            raise InputError(f"input {name!r} has numbers that are too large for {datatype.name}") from None
    if is_bfloat:
        array = bfloat16_bits(array)
    return np.ascontiguousarray(array, dtype=datatype.dtype).reshape(array.shape)


def _for_json(array: NDArray[Any], datatype: Datatype, name: str) -> NDArray[Any]:
    if not datatype.in_json:
        raise InputError(f"input {name!r} is {datatype.name}, which JSON does not carry: use binary")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"input {name!r} holds NaN or infinity, which JSON does not carry: use binary")
    return array.reshape(-1).astype(array.dtype.newbyteorder("="), copy=False)


def _from_json(data: Any, datatype: Datatype) -> NDArray[Any]:
    if datatype.is_float:
        # JSON has neither NaN nor infinity; the service writes null.
        data = [np.nan if value is None else value for value in data]
    return np.array(data, dtype=datatype.dtype)


def timings_of(header: str) -> dict[str, float]:
    """Seconds by name, of a ``Server-Timing`` header."""
    found = (_TIMING.fullmatch(part) for part in header.split(","))
    return {match[1]: float(match[2]) / 1000 for match in found if match}
