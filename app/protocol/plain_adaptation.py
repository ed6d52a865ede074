"""Requests for a model that is adapted to the examples that come with them, in the words of the plain API.

    {"support": {"inputs": [[...], ...], "targets": [...]}, "queries": [[...], ...],
     "steps": 5, "learning_rate": 0.01, "outputs": ["mean", "std"], "keep_seconds": 600}

Without `queries` the adapted weights are only kept; without `keep_seconds` they are forgotten with the answer.
"""

from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from app.errors import BadRequest
from app.protocol.adapting import Adapting
from app.protocol.document import may_hold_booleans, parse_json
from app.protocol.options import read_plain_options
from app.protocol.plain import named_arrays, read_outputs
from app.protocol.request import InferRequest, RequestedOutput, common_rows, optional_object, read_id
from app.protocol.tensors import TensorSpec, array_from_json
from app.protocol.wording import listing, quote

__all__ = ["decode_adapt"]

_KEYS = (
    "support", "queries", "outputs", "steps", "learning_rate", "loss", "weights", "factors", "keep_seconds", "id",
    "parameters",
)  # fmt: skip


class _Input(TensorSpec):
    """An input of the examples."""

    @cached_property
    def subject(self) -> str:
        return f"support input {self.name!r}"


class _Targets(TensorSpec):
    """The targets of the examples."""

    @cached_property
    def subject(self) -> str:
        return f"support.{self.name}"


def decode_adapt(body: bytes, about: Adapting, *, timeout: float | None = None) -> InferRequest:
    """Decodes a body; every way in which it can be wrong is a `BadRequest`.

    Args:
        body: the whole body, no longer compressed.
        about: the model.
        timeout: seconds, what `parse_timeout` gave.
    """
    about.check()
    document = parse_json(body)
    for key in document:
        if key not in _KEYS:
            raise BadRequest(f"the body's keys must be among {listing(_KEYS)}, however: {quote(key)}")
    parameters = optional_object(document, "parameters", "parameters")
    options = read_plain_options(parameters, most_members=about.members, timeout=timeout)
    booleans = may_hold_booleans(body)
    adapt = about.read(document, *_support(document, about, booleans))
    queries: dict[str, NDArray[Any]] = {}
    rows = 0
    if document.get("queries") is not None:
        queries = named_arrays(document["queries"], "queries", about.inputs, booleans)
        rows = common_rows(queries, about.inputs)
    about.check_queries(rows, adapt, document.get("outputs"))
    outputs: tuple[RequestedOutput, ...] = ()
    if rows:
        outputs = read_outputs(document.get("outputs"), about.outputs, about.defaults)
    return InferRequest(read_id(document), queries, outputs, rows, options, adapt=adapt)


def _support(
    document: dict[str, Any], about: Adapting, booleans: bool
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Inputs by their names, and targets by the names of predictions."""
    if document.get("support") is None:
        raise BadRequest('support must be there: {"inputs": [[...], ...], "targets": [...]}, examples to adapt to')
    given = optional_object(document, "support", "support")
    for key in given:
        if key not in ("inputs", "targets"):
            raise BadRequest(f"support's keys must be among 'inputs', 'targets', however: {quote(key)}")
    specs = [_Input(spec.name, spec.datatype, spec.shape) for spec in about.inputs]
    arrays = named_arrays(given.get("inputs"), "support.inputs", specs, booleans)
    common_rows(arrays, specs)
    data = given.get("targets")
    if "" in about.targets:
        return arrays, {"": _targets(data, about.targets[""], booleans)}
    if not isinstance(data, dict) or not data:
        raise BadRequest(
            f"support.targets must be an object with a list of rows for some of {listing(about.targets)}, the "
            "predictions of this model that are to be right"
        )
    for name in data:
        if name not in about.targets:
            raise BadRequest(f"support.targets must be named among {listing(about.targets)}, however: {quote(name)}")
    return arrays, {name: _targets(rows, about.targets[name], booleans) for name, rows in data.items()}


def _targets(data: object, about: TensorSpec, booleans: bool) -> NDArray[Any]:
    spec = _Targets(about.name, about.datatype, about.shape)
    if spec.shape == (-1, 1) and isinstance(data, list) and data and type(data[0]) is not list:
        # A list of numbers beside outputs of one number is what most data come as.
        flat = _Targets(about.name, about.datatype, (-1,))
        return array_from_json(data, flat, may_hold_booleans=booleans)[:, None]
    return array_from_json(data, spec, may_hold_booleans=booleans)
