"""What both APIs decode a body to, an `InferRequest`, and the fields that both read in the same way.

Both APIs share one path through the service: from here on nobody knows which of them a request came by, but
for whether an output goes back as JSON or as bytes. Optional fields that are null count as absent, since many
clients write all their fields.
"""

import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from app.errors import BadRequest
from app.protocol.adapting import Adapt
from app.protocol.bringing import Perturbed
from app.protocol.tensors import TensorSpec
from app.protocol.wording import describe, listing, quote

__all__ = [
    "InferRequest",
    "Options",
    "Question",
    "RequestedOutput",
    "check_output_name",
    "check_targets",
    "common_rows",
    "optional_object",
    "read_id",
]

NOTHING: Mapping[str, Any] = MappingProxyType({})
# Ids are echoed in answers and written to logs, hence an allow-list.
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


@dataclass(frozen=True)
class RequestedOutput:
    """One output that the client wants, and whether as bytes rather than JSON."""

    name: str
    binary: bool = False


@dataclass(frozen=True)
class Question:
    """How a model is to be evaluated. Requests with equal questions can share a call.

    Attributes:
        members: use only the first so many members; all by default.
        tolerance: evaluate members until the Monte-Carlo standard error of the mean is at most this, each row alone.
        confidence_level: of intervals and sets, between 0 and 1; the model's own by default.
        levels: of quantiles, each between 0 and 1, in the order of the answer; the library's default ones by default.
        kind: what members that requests bring have in common; None where they are the model's own.
    """

    members: int | None = None
    tolerance: float | None = None
    confidence_level: float | None = None
    levels: tuple[float, ...] | None = None
    kind: Hashable = None


@dataclass(frozen=True)
class Options:
    """How a request wants to be answered.

    Attributes:
        question: how the model is to be evaluated.
        timeout: seconds from the request's arrival after which the answer is of no use any more.
        priority: greater is more urgent; from -4 to 4.
    """

    question: Question = Question()
    timeout: float | None = None
    priority: int = 0


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A decoded request for one inference.

    Attributes:
        id: the client's own name for the request, echoed in the answer.
        inputs: one array for each input of the model, of its datatype (BF16 as uint16 bit patterns). Arrays
            that came as bytes are read-only and may be unaligned.
        outputs: what to send back, in the order asked for.
        rows: the size of the batch, which all inputs share.
        options: how it wants to be answered.
        targets: one array for each output that is asked for and is about a target, such as a log-likelihood; by the
            target's name.
        perturbation: what the members are to be, instead of the model's.
        weights: weights that the members are to have, by name, each of the weight's shape or with the members first.
        adapt: the examples that the members are to be adapted to; rows may be 0 then.
        adapted: the handle of the adapted members that are asked instead of the model's.
    """

    id: str | None
    inputs: dict[str, NDArray[Any]]
    outputs: tuple[RequestedOutput, ...]
    rows: int
    options: Options = Options()
    targets: dict[str, NDArray[Any]] = field(default_factory=dict)
    perturbation: Perturbed | None = None
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)
    adapt: Adapt | None = None
    adapted: str | None = None


def read_id(document: dict[str, Any]) -> str | None:
    """The request's id; numbers count as their text, an empty text as no id."""
    value = document.get("id")
    if value is None or value == "":
        return None
    text = str(value) if type(value) in (int, float) else value
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise BadRequest(f"id must be 1 to 128 of the characters A-Z a-z 0-9 . _ : -, however: {describe(value)}")
    return text


def optional_object(holder: dict[str, Any], key: str, subject: str) -> dict[str, Any]:
    """The object under a key, or an empty one where there is none."""
    value = holder.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"{subject} must be an object, however: {describe(value)}")
    return value


def check_output_name(
    name: object, allowed: Collection[str], taken: Collection[str], lacking: Mapping[str, str] = NOTHING
) -> str:
    """An output's name, once it is known to be the model's and asked for only once.

    Args:
        name: what the client sent.
        allowed: the model's outputs.
        taken: those that were asked for already.
        lacking: outputs that it would have if it were made otherwise: by name, what to do.
    """
    if not isinstance(name, str):
        raise BadRequest(f"an output's name must be text, however: {describe(name)}")
    if name in lacking:
        raise BadRequest(f"output {name!r} is not there: {lacking[name]}")
    if name not in allowed:
        raise BadRequest(f"output must be one of {listing(allowed)}, however: {quote(name)}")
    if name in taken:
        raise BadRequest(f"output {name!r} must be asked for only once")
    return name


def common_rows(inputs: dict[str, NDArray[Any]], specs: Sequence[TensorSpec]) -> int:
    """The number of rows, once all inputs of the model are known to be there and to have the same."""
    missing = [spec.name for spec in specs if spec.name not in inputs]
    if missing:
        raise BadRequest(f"all inputs of the model must be given, however: {listing(missing)} missing")
    first, *others = inputs.items()
    rows = len(first[1])
    for name, array in others:
        if len(array) != rows:
            raise BadRequest(
                f"all inputs must have the same number of rows, however: {first[0]!r} has {rows} and "
                f"{name!r} has {len(array)}"
            )
    return rows


def check_targets(
    given: Mapping[str, NDArray[Any]],
    rows: int,
    outputs: Sequence[RequestedOutput],
    targets: Mapping[str, TensorSpec],
) -> None:
    """That there is a target for each output that is about one, and no other.

    Args:
        given: by the target's name.
        rows: of the request.
        outputs: what is asked for.
        targets: of each output that is about a target, by the output's name, what the target must be.
    """
    wanted = {targets[output.name].name: output.name for output in outputs if output.name in targets}
    for spec in targets.values():
        if spec.name in wanted and spec.name not in given:
            raise BadRequest(f"output {wanted[spec.name]!r} must come with {spec.subject} of the shape {spec.layout}")
        if spec.name in given and spec.name not in wanted:
            output = next(name for name, other in targets.items() if other is spec)
            raise BadRequest(f"{spec.subject} must come with output {output!r} asked for, which it is for")
        if spec.name in given and len(given[spec.name]) != rows:
            raise BadRequest(
                f"{spec.subject} must have {rows} rows, as the inputs have, however: {len(given[spec.name])}"
            )
