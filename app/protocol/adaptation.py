"""Requests for a model that is adapted to the examples that come with them, in the words of the plain API.

    {"support": {"inputs": [[...], ...], "targets": [...]}, "queries": [[...], ...],
     "steps": 5, "learning_rate": 0.01, "outputs": ["mean", "std"], "keep_seconds": 600}

Without `queries` the adapted weights are only kept; without `keep_seconds` they are forgotten with the answer. V2 has
no such request: all inputs of one share their first dimension, and examples are not as many as queries.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import BadRequest
from app.protocol.document import may_hold_booleans, parse_json
from app.protocol.options import read_plain_options
from app.protocol.request import (
    InferRequest,
    RequestedOutput,
    check_output_name,
    common_rows,
    optional_object,
    read_id,
)
from app.protocol.tensors import TensorSpec, array_from_json
from app.protocol.wording import describe, listing, quote

__all__ = ["AdaptRequest", "Adapting", "Limits", "decode_adapt"]

_KEYS = (
    "support", "queries", "outputs", "steps", "learning_rate", "loss", "weights", "factors", "keep_seconds", "id",
    "parameters",
)  # fmt: skip
_MOST_PATTERNS = 64
_LONGEST_PATTERN = 256
STEPS, LEARNING_RATE = 5, 0.01


@dataclass(frozen=True)
class Limits:
    """What one request may ask for at most.

    Attributes:
        steps: of gradient descent.
        examples: rows of support.
        queries: rows of queries.
        keep_seconds: for which weights may be kept; 0 if they may not.
    """

    steps: int
    examples: int
    queries: int
    keep_seconds: float


@dataclass(frozen=True)
class Adapting:
    """What can be adapted, and to what.

    Attributes:
        inputs: what the model takes.
        targets: what its one output is compared with; -1 first for the rows.
        classes: how many classes targets are indices of; None where they are values.
        losses: by name, the default first.
        outputs, defaults: names that may be asked for, and those that are sent by default.
        members: how many the model has.
    """

    inputs: Sequence[TensorSpec]
    targets: TensorSpec
    classes: int | None
    losses: tuple[str, ...]
    outputs: Collection[str]
    defaults: Sequence[str]
    members: int


@dataclass(frozen=True, eq=False)
class AdaptRequest:
    """A decoded request.

    Attributes:
        query: what is asked of the adapted model; of no rows where it is only to be kept.
        support: one array for each input, (examples, ...).
        targets: (examples, ...).
        steps, learning_rate, loss: of gradient descent.
        weights: patterns of the weights that adapt.
        factors: whether the members' factors adapt instead of full weights.
        keep_seconds: how long the adapted weights are kept; None for not at all.
    """

    query: InferRequest
    support: dict[str, NDArray[Any]]
    targets: NDArray[Any]
    steps: int
    learning_rate: float
    loss: str
    weights: tuple[str, ...]
    factors: bool
    keep_seconds: float | None


class _Support(TensorSpec):
    """An input, or the targets, of the examples."""

    @cached_property
    def subject(self) -> str:
        return "support.targets" if self.name == "targets" else f"support input {self.name!r}"


def support_spec(spec: TensorSpec) -> TensorSpec:
    """The same tensor as errors about examples name it."""
    return _Support(spec.name, spec.datatype, spec.shape)


def decode_adapt(body: bytes, about: Adapting, limits: Limits, *, timeout: float | None = None) -> AdaptRequest:
    """Decodes a body; every way in which it can be wrong is a `BadRequest`.

    Args:
        body: the whole body, no longer compressed.
        about: the model.
        limits: of the service.
        timeout: seconds, what `parse_timeout` gave.
    """
    document = parse_json(body)
    for key in document:
        if key not in _KEYS:
            raise BadRequest(f"the body's keys must be among {listing(_KEYS)}, however: {quote(key)}")
    options = read_plain_options(
        optional_object(document, "parameters", "parameters"), most_members=about.members, timeout=timeout
    )
    if options.question.tolerance is not None:
        raise BadRequest(
            "parameters.tolerance cannot be used with adaptation: all members adapt; ask for fewer members"
        )
    keep = _number(document, "keep_seconds", None, limits.keep_seconds)
    booleans = may_hold_booleans(body)
    support, targets = _support(document, about, limits, booleans)
    queries: dict[str, NDArray[Any]] = {}
    rows = 0
    if document.get("queries") is not None:
        queries = _arrays(document["queries"], "queries", about.inputs, booleans)
        rows = common_rows(queries, about.inputs)
        if rows > limits.queries:
            raise BadRequest(f"queries must have {limits.queries} rows at most, however: {rows}")
    elif keep is None:
        raise BadRequest(
            "a request must have queries to answer, or keep_seconds to keep the adapted model for; or both"
        )
    elif document.get("outputs"):
        raise BadRequest("outputs are of queries, and there are none")
    outputs = _outputs(document.get("outputs"), about) if rows else ()
    loss = document.get("loss")
    if loss is not None and loss not in about.losses:
        raise BadRequest(f"loss must be one of {listing(about.losses)} for this model, however: {describe(loss)}")
    factors = document.get("factors")
    if factors is not None and type(factors) is not bool:
        raise BadRequest(f"factors must be true or false, however: {describe(factors)}")
    return AdaptRequest(
        InferRequest(read_id(document), queries, outputs, rows, options),
        support,
        targets,
        _steps(document, limits.steps),
        _number(document, "learning_rate", LEARNING_RATE, math.inf) or LEARNING_RATE,
        loss or about.losses[0],
        _patterns(document.get("weights")),
        bool(factors),
        keep,
    )


def _support(
    document: dict[str, Any], about: Adapting, limits: Limits, booleans: bool
) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    if document.get("support") is None:
        raise BadRequest('support must be there: {"inputs": [[...], ...], "targets": [...]}, examples to adapt to')
    given = optional_object(document, "support", "support")
    for key in given:
        if key not in ("inputs", "targets"):
            raise BadRequest(f"support's keys must be among 'inputs', 'targets', however: {quote(key)}")
    specs = [support_spec(spec) for spec in about.inputs]
    arrays = _arrays(given.get("inputs"), "support.inputs", specs, booleans)
    examples = common_rows(arrays, specs)
    if examples > limits.examples:
        raise BadRequest(f"support must have {limits.examples} examples at most, however: {examples}")
    data, spec = given.get("targets"), support_spec(about.targets)
    if spec.shape == (-1, 1) and isinstance(data, list) and data and type(data[0]) is not list:
        # A list of numbers beside outputs of one number is what most data come as.
        targets = array_from_json(data, _Support("targets", spec.datatype, (-1,)), may_hold_booleans=booleans)[:, None]
    else:
        targets = array_from_json(data, spec, may_hold_booleans=booleans)
    if len(targets) != examples:
        raise BadRequest(f"support.targets must have {examples} rows, as support.inputs have, however: {len(targets)}")
    if about.classes is not None and bool(np.any((targets < 0) | (targets >= about.classes))):
        raise BadRequest(f"support.targets must be classes from 0 to {about.classes - 1}, however: some are not")
    return arrays, targets


def _arrays(given: object, key: str, specs: Sequence[TensorSpec], booleans: bool) -> dict[str, NDArray[Any]]:
    """Rows of each input by its name, or of the only one."""
    names = listing(spec.name for spec in specs)
    if len(specs) == 1 and isinstance(given, list):
        given = {specs[0].name: given}
    if not isinstance(given, dict):
        form = (
            "a list of rows, such as [[...], ...]" if len(specs) == 1 else f"an object with a list for each of {names}"
        )
        raise BadRequest(f"{key} must be {form}, however: {describe(given)}")
    for name in given:
        if all(name != spec.name for spec in specs):
            raise BadRequest(f"{key} must be named among {names}, however: {quote(name)}")
    return {
        spec.name: array_from_json(given[spec.name], spec, may_hold_booleans=booleans)
        for spec in specs
        if spec.name in given
    }


def _outputs(names: object, about: Adapting) -> tuple[RequestedOutput, ...]:
    if names is None or names == []:
        return tuple(map(RequestedOutput, about.defaults))
    if not isinstance(names, list):
        raise BadRequest(f"outputs must be a list of names among {listing(about.outputs)}, however: {describe(names)}")
    requested: dict[str, RequestedOutput] = {}
    for name in names:
        requested[name] = RequestedOutput(check_output_name(name, about.outputs, requested))
    return tuple(requested.values())


def _steps(document: dict[str, Any], most: int) -> int:
    value = document.get("steps")
    if value is None:
        return min(STEPS, most)
    if type(value) is not int or not 1 <= value <= most:
        raise BadRequest(f"steps must be a whole number from 1 to {most}, however: {describe(value)}")
    return value


def _number(document: dict[str, Any], key: str, default: float | None, most: float) -> float | None:
    value = document.get(key)
    if value is None:
        return default
    if key == "keep_seconds" and most == 0:
        raise BadRequest("keep_seconds cannot be used: this service keeps no adapted models")
    if type(value) not in (int, float) or not 0 < value <= most or value == math.inf:
        limit = f" and up to {most:g}" if most < math.inf else ""
        raise BadRequest(f"{key} must be a number above 0{limit}, however: {describe(value)}")
    return float(value)


def _patterns(value: object) -> tuple[str, ...]:
    if value is None:
        return ("*",)
    given = value if isinstance(value, list) else [value]
    fine = all(isinstance(text, str) and 0 < len(text) <= _LONGEST_PATTERN for text in given)
    if not 1 <= len(given) <= _MOST_PATTERNS or not fine:
        raise BadRequest(
            f'weights must be names or patterns such as "head.*", one or a list of up to {_MOST_PATTERNS}, however: '
            f"{describe(value)}"
        )
    return tuple(given)
